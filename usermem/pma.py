"""PMAs: where the guest's bytes are.

A table of its own beside the VMAs, because the two differ: memory gets a place when it is first touched, one place
may serve several mappings, and rights change without the bytes moving.

Anonymous memory gets its place a window at a time, and the window reaches past the mapping into free space: what is
mapped there later is then contiguous with it in host memory too. So PMAs may cover unmapped addresses, and what they
hold there is zero.

Source: gVisor pkg/sentry/mm/pma.go.
"""

from __future__ import annotations

from typing import Final, Protocol

from safemem import Block
from safemem.arena import Arena, Host, export
from usermem.attached import Attached, AttachedPiece
from usermem.host_file import FaultyPiece, HostFile
from usermem.segment import SegmentSet
from usermem.shared_memory import SharedMemory
from usermem.vma import VMA

WINDOW: Final = 1 << 26
"""How much host address space anonymous memory gets at a time, in bytes, aligned in the guest."""

OBJECT_WINDOW: Final = 1 << 20
"""How much of a mapped object is read at a time, in bytes, aligned in the guest."""

# The window when the host cannot give more; no smaller than the largest page.
_LEAST: Final = 1 << 16


class HostMemory(Host, Protocol):
    """Host memory that can be cut."""

    def split(self, at: int) -> tuple[HostMemory, HostMemory]:
        """The parts before and from a place strictly inside."""
        ...


class PMA:
    """Guest addresses [start, end) are the host memory ``host``; None where an object has not been read yet."""

    __slots__ = ("_view", "end", "host", "start")

    def __init__(self, start: int, end: int, host: HostMemory | None) -> None:
        self.start = start
        self.end = end
        self.host = host
        self._view: memoryview | None = None

    def split(self, at: int) -> tuple[PMA, PMA]:
        """See Segment.split. Who still holds this PMA keeps both parts' memory."""
        if self.host is None:
            return PMA(self.start, at, None), PMA(at, self.end, None)
        left, right = self.host.split(self.host.start + at - self.start)
        return PMA(self.start, at, left), PMA(at, self.end, right)

    def view(self) -> memoryview:
        """All its memory. It, and what is made from it, keeps the memory alive."""
        if self._view is None:
            if self.host is None:
                raise ValueError(f"nothing is at {self.start:#x} yet")
            self._view = self.host.view() if isinstance(self.host, AttachedPiece) else export(self.host)
        return self._view

    def block(self, addr: int, length: int) -> Block:
        """The memory at [addr, addr + length), which lies inside."""
        if isinstance(self.host, FaultyPiece | AttachedPiece):
            return self.host.block(addr - self.start, length)
        return Block.from_view(self.view(), addr - self.start, length)


class PMASet(SegmentSet[PMA]):
    """Where the bytes of an address space are. ``place`` and ``draft`` find host memory for what has none."""

    __slots__ = ("_arena",)

    def __init__(self) -> None:
        super().__init__()
        self._arena = Arena()

    def reserve(self, vma: VMA) -> None:
        """Make sure that a new mapping's memory is its own: for an object, nothing else is placed there."""
        self.reserve_part(vma, vma.start, vma.end)

    def reserve_part(self, vma: VMA, start: int, end: int) -> None:
        """The same for [start, end) of the mapping, which forgets what it had there."""
        if vma.mapped is None:
            return
        self.remove(start, end)
        if isinstance(vma.mapped, HostFile):
            offset = vma.offset + start - vma.start
            self.insert(PMA(start, end, vma.mapped.piece(offset, offset + end - start)))
            return
        if isinstance(vma.mapped, SharedMemory | Attached):
            offset = vma.offset + start - vma.start
            stop = min(end, start + vma.mapped.room() - offset)
            if start < stop:
                self.insert(PMA(start, stop, vma.mapped.piece(offset, offset + stop - start)))
            start = max(start, stop)
        if start < end:
            self.insert(PMA(start, end, None))

    def move(self, pmas: list[PMA], distance: int) -> None:
        """Put memory that was taken out where it is ``distance`` addresses away, in the place of what is there."""
        for pma in pmas:
            if pma.host is not None:
                self.replace(PMA(pma.start + distance, pma.end + distance, pma.host))

    def place(self, addr: int, high: int) -> PMA:
        """Give anonymous memory at addr, which lies in no PMA, its window: zeros, and nothing at ``high`` and above.

        Raises MemoryError if the host has none left; then nothing has changed.
        """
        low = addr & -WINDOW
        pma = self._new(addr, *self.gap(addr, low, min(low + WINDOW, high)))
        self.insert(pma)
        return pma

    def draft(self, unread: PMA, addr: int, high: int) -> PMA:
        """Memory for the window around addr of an object's pages, up to ``high``: not in the set before it is read.

        Raises MemoryError if the host has none left.
        """
        low = addr & -OBJECT_WINDOW
        return self._new(addr, max(unread.start, low), min(unread.end, low + OBJECT_WINDOW, high))

    def replace(self, pma: PMA) -> None:
        """Put a PMA in the place of what was there."""
        self.remove(pma.start, pma.end)
        self.insert(pma)

    def _new(self, addr: int, start: int, end: int) -> PMA:
        try:
            return PMA(start, end, self._arena.allocate(end - start))
        except MemoryError:
            start, end = max(start, addr & -_LEAST), min(end, (addr & -_LEAST) + _LEAST)
            return PMA(start, end, self._arena.allocate(end - start))
