"""File descriptors as Readers and Writers: one system call for all blocks, or what one of Linux's would move.

Source: readv(2), preadv(2), writev(2), pwritev(2). Python restarts a call that a signal interrupts (PEP 475).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from safemem import safecopy
from safemem.block import Block
from safemem.block_seq import BlockSeq, copy_seq
from safemem.buffers import check_count, check_int
from safemem.errors import HostFaultError, add_transferred

FD_MAX: Final = (1 << 31) - 1
"""The greatest descriptor that a C int can be. What is more is none: Python has an OverflowError for it."""
# readv(2) refuses more buffers than this.
_IOV_MAX = 1024
# Of memory that needs safecopy at most so much is moved by a system call: a copy of it is made.
_STAGE = 1 << 20
# How often memory that others take away and bring back is looked at before its fault is the kernel's EFAULT.
_ATTEMPTS = 8


class _FD:
    """A descriptor that stays the caller's, and where in its file to go on; None is the file's own position.

    The descriptor may be any int; what is none of this process's is OSError (EBADF) in each call.
    """

    _goes_on: tuple[int, ...] = (stat.S_IFREG, stat.S_IFBLK)

    def __init__(self, fd: int, offset: int | None = None) -> None:
        """Raises ValueError if offset is negative."""
        if type(fd) is not int:
            fd = check_int(fd, "fd")
        if offset is not None:
            offset = check_count(offset, "offset")
        self._fd = fd if 0 <= fd <= FD_MAX else -1
        self.offset = offset

    def _move(self, blocks: BlockSeq, move: Callable[[BlockSeq], int]) -> int:
        """Call ``move`` with as much as one system call takes, and again where that is as one call of Linux's.

        An error after progress, but a fault of the blocks, is left to the next call, as in the kernel.
        """
        done = 0
        while blocks:
            part = blocks.take_blocks(_IOV_MAX)
            if part.need_safecopy:
                part = part.take_first(_STAGE)
            try:
                if done and stat.S_IFMT(os.fstat(self._fd).st_mode) not in self._goes_on:
                    break
                n = move(part)
            except BaseException as exc:
                if done and isinstance(exc, OSError) and not isinstance(exc, HostFaultError):
                    break
                add_transferred(exc, done)
                raise
            done += n
            if n < part.num_bytes:
                break
            blocks = blocks.drop_first(n)
        return done


class FDReader(_FD):
    """A Reader over a file descriptor: each call is one ``readv``, or ``preadv`` when ``offset`` is given.

    ``offset`` then moves on with what was read, and the file's own does not. What takes several system calls (more
    blocks than one takes, much memory that may fault) is read as by one of a regular file or block device; of anything
    else the first gives a short count, since another one might wait.
    """

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Raises BlockingIOError if nothing is there now, OSError as readv does, HostFaultError if dsts faults.

        Nothing is read that dsts cannot take: what memory that may fault can take is looked at before.
        """
        pieces = dsts.pieces()
        try:
            if 0 < len(pieces) <= _IOV_MAX:
                return os.readv(self._fd, pieces) if self.offset is None else self._read(pieces)  # type: ignore[arg-type]
        except TypeError:  # a block is no buffer
            if not dsts.need_safecopy:
                raise
        return self._move(dsts, self._read_part)

    def _read_part(self, dsts: BlockSeq) -> int:
        return self._read_careful(dsts) if dsts.need_safecopy else self._read(dsts.views())

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
        """Read a part of which some may fault: only the kernel touches it, and only as far as it does not."""
        for attempt in range(_ATTEMPTS):
            _, fault = _staged(dsts)
            taken = dsts if fault is None else dsts.take_first(fault.transferred)
            views = [
                piece if isinstance(piece, memoryview) else safecopy.view_at(piece.address, len(piece))
                for piece in taken.pieces()
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
                try:
                    raise fault
                finally:
                    del fault
            return n
        raise AssertionError("the last attempt returns or raises")


class FDWriter(_FD):
    """A Writer over a file descriptor: each call is one ``writev``, or ``pwritev`` when ``offset`` is given.

    ``offset`` then moves on with what was written, and the file's own does not. What takes several system calls is
    written as by one to a regular file, block device or pipe; to anything else the first gives a short count, since
    another one might begin another message.
    """

    _goes_on = (*_FD._goes_on, stat.S_IFIFO)

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Raises BlockingIOError if nothing can be taken now, OSError as writev does, HostFaultError if srcs faults."""
        pieces = srcs.pieces()
        try:
            if 0 < len(pieces) <= _IOV_MAX:
                return os.writev(self._fd, pieces) if self.offset is None else self._write(pieces)  # type: ignore[arg-type]
        except TypeError:  # a block is no buffer
            if not srcs.need_safecopy:
                raise
        return self._move(srcs, self._write_part)

    def _write_part(self, srcs: BlockSeq) -> int:
        if not srcs.need_safecopy:
            return self._write(srcs.views())
        staged, fault = _staged(srcs)
        n = self._write([staged]) if staged else 0
        if fault is not None and n == fault.transferred:
            try:
                raise fault
            finally:
                del fault
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
        return buffer[: exc.transferred], exc.with_traceback(None)
    return buffer, None
