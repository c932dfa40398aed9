"""File descriptors as Readers and Writers: one system call for all blocks.

Source: readv(2), preadv(2), writev(2), pwritev(2). Python restarts a call that a signal interrupts (PEP 475).
"""

from __future__ import annotations

import errno
import os

from safemem import safecopy
from safemem.block import Block
from safemem.block_seq import BlockSeq, copy_seq
from safemem.buffers import check_count, check_int
from safemem.errors import HostFaultError

_FD_MAX = (1 << 31) - 1
# readv(2) refuses more buffers than this; taking fewer is a short count, which is progress.
_IOV_MAX = 1024
# Of memory that needs safecopy at most so much is moved at a time.
_STAGE = 1 << 20
# How often memory that others take away and bring back is looked at before its fault is the kernel's EFAULT.
_ATTEMPTS = 8


class _FD:
    """A descriptor that stays the caller's, and where in its file to go on; None is the file's own position.

    The descriptor may be any int; what is none of this process's is OSError (EBADF) in each call.
    """

    def __init__(self, fd: int, offset: int | None = None) -> None:
        """Raises ValueError if offset is negative."""
        if type(fd) is not int:
            fd = check_int(fd, "fd")
        if offset is not None:
            check_count(offset, "offset")
        self._fd = fd if 0 <= fd <= _FD_MAX else -1  # Python has an OverflowError for more than a C int
        self.offset = offset


class FDReader(_FD):
    """A Reader over a file descriptor: each call is one ``readv``, or ``preadv`` when ``offset`` is given.

    ``offset`` then moves on with what was read, and the file's own does not.
    """

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Raises BlockingIOError if nothing is there now, OSError as readv does, HostFaultError if dsts faults.

        Nothing is read that dsts cannot take: what memory that may fault can take is looked at before.
        """
        pieces = dsts.pieces()
        try:
            if self.offset is None and 0 < len(pieces) <= _IOV_MAX:
                return os.readv(self._fd, pieces)  # type: ignore[arg-type]
            return self._read(pieces[:_IOV_MAX]) if pieces else 0  # type: ignore[arg-type]
        except TypeError:  # a block is no buffer
            if not dsts.need_safecopy:
                raise
        return self._read_careful(dsts.take_first(_STAGE))

    def check(self) -> int:
        """Raise what readv or preadv says of the descriptor: it moves nothing, and returns 0."""
        return self._read([])

    def _read(self, views: list[memoryview]) -> int:
        if self.offset is None:
            return os.readv(self._fd, views)
        n = os.preadv(self._fd, views, self.offset)
        self.offset += n
        return n

    def _read_careful(self, dsts: BlockSeq) -> int:
        """Read into memory of which some may fault: only the kernel touches it, and only as far as it does not."""
        for attempt in range(_ATTEMPTS):
            _, fault = _staged(dsts)
            taken = dsts if fault is None else dsts.take_first(fault.transferred)
            views = [
                piece if isinstance(piece, memoryview) else safecopy.view_at(piece.address, len(piece))
                for piece in taken.pieces()[:_IOV_MAX]
            ]
            try:
                n = self._read(views) if views else 0
            except OSError as exc:
                if exc.errno != errno.EFAULT or attempt == _ATTEMPTS - 1:
                    raise
                continue  # some went away in between, as by ftruncate(2), and nothing was read
            if fault is None and n < taken.num_bytes:
                _, fault = _staged(taken)  # was it cut short by a fault?
            if fault is not None and n == fault.transferred:
                raise fault
            return n
        raise AssertionError("the last attempt returns or raises")


class FDWriter(_FD):
    """A Writer over a file descriptor: each call is one ``writev``, or ``pwritev`` when ``offset`` is given.

    ``offset`` then moves on with what was written, and the file's own does not.
    """

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Raises BlockingIOError if nothing can be taken now, OSError as writev does, HostFaultError if srcs faults."""
        pieces = srcs.pieces()
        try:
            if self.offset is None and 0 < len(pieces) <= _IOV_MAX:
                return os.writev(self._fd, pieces)  # type: ignore[arg-type]
            return self._write(pieces[:_IOV_MAX]) if pieces else 0  # type: ignore[arg-type]
        except TypeError:  # a block is no buffer
            if not srcs.need_safecopy:
                raise
        staged, fault = _staged(srcs.take_first(_STAGE))
        n = self._write([staged]) if staged else 0
        if fault is not None and n == fault.transferred:
            raise fault
        return n

    def check(self) -> int:
        """Raise what writev or pwritev says of the descriptor: it moves nothing, and returns 0."""
        return self._write([])

    def _write(self, views: list[memoryview]) -> int:
        if self.offset is None:
            return os.writev(self._fd, views)
        n = os.pwritev(self._fd, views, self.offset)
        self.offset += n
        return n


def _staged(srcs: BlockSeq) -> tuple[memoryview, HostFaultError | None]:
    """A copy of the bytes of srcs, up to where its memory faults, and that fault."""
    buffer = memoryview(bytearray(srcs.num_bytes))
    try:
        copy_seq(BlockSeq.of(Block(buffer)), srcs)
    except HostFaultError as exc:
        return buffer[: exc.transferred], exc
    return buffer, None
