"""File descriptors as Readers and Writers: one system call for all blocks.

Source: readv(2), preadv(2), writev(2), pwritev(2). Python restarts a call that a signal interrupts (PEP 475).
"""

from __future__ import annotations

import os

from safemem import safecopy
from safemem.block import Block
from safemem.block_seq import BlockSeq, copy_seq
from safemem.buffers import check_count
from safemem.errors import HostFaultError

# readv(2) refuses more buffers than this; taking fewer is a short count, which is progress.
_IOV_MAX = 1024
# Of memory that needs safecopy at most so much is moved at a time.
_STAGE = 1 << 20


class _FD:
    """A descriptor that stays the caller's, and where in its file to go on; None is the file's own position."""

    def __init__(self, fd: int, offset: int | None = None) -> None:
        """Raises ValueError if fd or offset is negative."""
        if type(fd) is not int or fd < 0:
            check_count(fd, "fd")
        if offset is not None:
            check_count(offset, "offset")
        self._fd = fd
        self.offset = offset


class FDReader(_FD):
    """A Reader over a file descriptor: each call is one ``readv``, or ``preadv`` when ``offset`` is given.

    ``offset`` then moves on with what was read, and the file's own does not.
    """

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Raises BlockingIOError if nothing is there now, OSError as readv does, HostFaultError if dsts faults.

        Nothing is read that dsts cannot take: what memory that may fault can take is looked at before.
        """
        views = dsts.pieces()
        if Block in map(type, views):
            return self._read_careful(dsts.take_first(_STAGE))
        return self._read(views if len(views) <= _IOV_MAX else views[:_IOV_MAX]) if views else 0  # type: ignore[arg-type]

    def _read(self, views: list[memoryview]) -> int:
        if self.offset is None:
            return os.readv(self._fd, views)
        n = os.preadv(self._fd, views, self.offset)
        self.offset += n
        return n

    def _read_careful(self, dsts: BlockSeq) -> int:
        """Read into memory of which some may fault: only the kernel touches it, and only as far as it does not."""
        _, fault = _staged(dsts)
        if fault is not None:
            dsts = dsts.take_first(fault.transferred)
        views = [piece if isinstance(piece, memoryview) else kernel_view(piece) for piece in dsts.pieces()[:_IOV_MAX]]
        n = self._read(views) if views else 0
        if fault is not None and n == dsts.num_bytes:
            raise fault
        return n


class FDWriter(_FD):
    """A Writer over a file descriptor: each call is one ``writev``, or ``pwritev`` when ``offset`` is given.

    ``offset`` then moves on with what was written, and the file's own does not.
    """

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Raises BlockingIOError if nothing can be taken now, OSError as writev does, HostFaultError if srcs faults."""
        views = srcs.pieces()
        fault: HostFaultError | None = None
        if Block in map(type, views):
            staged, fault = _staged(srcs.take_first(_STAGE))
            views = [staged] if staged else []
        n = self._write(views if len(views) <= _IOV_MAX else views[:_IOV_MAX]) if views else 0  # type: ignore[arg-type]
        if fault is not None and n == fault.transferred:
            raise fault
        return n

    def _write(self, views: list[memoryview]) -> int:
        if self.offset is None:
            return os.writev(self._fd, views)
        n = os.pwritev(self._fd, views, self.offset)
        self.offset += n
        return n


def kernel_view(block: Block) -> memoryview:
    """The memory of a block that needs safecopy, for a system call: if we touched it, it might end the process."""
    return safecopy.view_at(block.address, len(block))


def _staged(srcs: BlockSeq) -> tuple[memoryview, HostFaultError | None]:
    """A copy of the bytes of srcs, up to where its memory faults, and that fault."""
    buffer = memoryview(bytearray(srcs.num_bytes))
    try:
        copy_seq(BlockSeq.of(Block(buffer)), srcs)
    except HostFaultError as exc:
        return buffer[: exc.transferred], exc
    return buffer, None
