"""File descriptors as Readers and Writers: one system call for all blocks.

Source: readv(2), preadv(2), writev(2), pwritev(2). Python restarts a call that a signal interrupts (PEP 475).
"""

from __future__ import annotations

import os

from safemem.block import Block, copy
from safemem.block_seq import BlockSeq, copy_seq
from safemem.buffers import check_count
from safemem.errors import TransferError
from safemem.pending import PendingBytes

# readv(2) refuses more buffers than this; taking fewer is a short count, which is progress.
_IOV_MAX = 1024
# Memory that needs safecopy goes through a buffer of at most this size.
_STAGE = 1 << 20


class _FD:
    """A descriptor that stays the caller's, and where in its file to go on; None is the file's own position."""

    def __init__(self, fd: int, offset: int | None = None) -> None:
        """Raises ValueError if fd or offset is negative."""
        check_count(fd, "fd")
        if offset is not None:
            check_count(offset, "offset")
        self._fd = fd
        self.offset = offset


class FDReader(_FD):
    """A Reader over a file descriptor: each call is one ``readv``, or ``preadv`` when ``offset`` is given.

    ``offset`` then moves on with what was read, and the file's own does not.
    """

    def __init__(self, fd: int, offset: int | None = None) -> None:
        """Raises ValueError if fd or offset is negative."""
        super().__init__(fd, offset)
        self._pending = PendingBytes()

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Raises BlockingIOError if nothing is there now, OSError as readv does, HostFaultError if dsts faults."""
        if not dsts:
            return 0
        if self._pending:
            return self._pending.deliver(dsts)
        views, staged = _views(dsts)
        if staged:
            views = [memoryview(bytearray(min(dsts.num_bytes, _STAGE)))]
        if self.offset is None:
            n = os.readv(self._fd, views)
            return self._pending.deliver(dsts, bytes(views[0][:n])) if staged and n else n
        n = os.preadv(self._fd, views, self.offset)
        if staged:
            try:
                copy_seq(dsts, BlockSeq.of(Block(views[0][:n])))
            except TransferError as exc:
                self.offset += exc.transferred
                raise
        self.offset += n
        return n


class FDWriter(_FD):
    """A Writer over a file descriptor: each call is one ``writev``, or ``pwritev`` when ``offset`` is given.

    ``offset`` then moves on with what was written, and the file's own does not.
    """

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Raises BlockingIOError if nothing can be taken now, OSError as writev does, HostFaultError if srcs faults."""
        if not srcs:
            return 0
        fault: TransferError | None = None
        views, staged = _views(srcs)
        if staged:
            views, fault = _stage(srcs.take_first(_STAGE))
        total = sum(map(len, views))
        if not total:
            n = 0
        elif self.offset is None:
            n = os.writev(self._fd, views)
        else:
            n = os.pwritev(self._fd, views, self.offset)
            self.offset += n
        if fault is not None and n == total:
            fault.transferred = n
            raise fault
        return n


def _views(blocks: BlockSeq) -> tuple[list[memoryview], bool]:
    """The first blocks' memory, or that some of them needs safecopy."""
    views: list[memoryview] = []
    for block in blocks:
        if block.need_safecopy:
            return [], True
        views.append(block.view())
        if len(views) == _IOV_MAX:
            break
    return views, False


def _stage(srcs: BlockSeq) -> tuple[list[memoryview], TransferError | None]:
    """The bytes of srcs in one buffer, up to where its memory faults, and that fault."""
    buffer = memoryview(bytearray(srcs.num_bytes))
    done = 0
    for block in srcs:
        try:
            done += copy(Block(buffer[done:]), block)
        except TransferError as exc:
            return [buffer[: done + exc.transferred]], exc
    return [buffer], None
