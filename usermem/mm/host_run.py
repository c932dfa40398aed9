"""HostRun: one stretch of host memory, and what keeps it alive.

Everything that lies behind a guest's pages is told by HostRuns: pieces of an arena, of shared memory, of a file, of a
caller's buffer. Memory that may fault (a file that somebody can truncate) has an address and no view: only
:mod:`safemem.safecopy` touches it.
"""

from __future__ import annotations

import mmap
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, Self

from safemem import Block
from safemem.safecopy import address_of

if TYPE_CHECKING:
    from usermem.mm.overlay import Overlay


class Keeper(Protocol):
    """What keeps host memory alive: as long as it is referred to, the memory is not used for anything else."""

    @property
    def overlay(self) -> Overlay | None:
        """What shows in private memory that nobody has written since; None if the memory is shared, or not ours."""
        ...

    def part(self, start: int, end: int) -> Keeper:
        """What keeps [start, end) alive, positions as in the run; the keeper itself if it cannot be parted."""
        ...

    def note_used(self, start: int, end: int) -> None:
        """Take note that all bytes outside [start, end) are still zero, and that nobody will write them."""
        ...

    def forget_used(self) -> None:
        """Take back all that was noted of the memory, for it is mapped again."""
        ...


class Whole:
    """A keeper that cannot be parted: all of its memory lives as long as any part is in use."""

    __slots__ = ("__weakref__",)

    @property
    def overlay(self) -> Overlay | None:
        """Return None: a subclass may know better."""
        return None

    def part(self, start: int, end: int) -> Self:
        """Return self."""
        return self

    def note_used(self, start: int, end: int) -> None:
        """Do nothing: such memory is not used again."""

    def forget_used(self) -> None:
        """Do nothing: nothing was noted."""


class HostRun:
    """``[start, end)`` of ``memory``; if that is None, host addresses that may fault when they are touched.

    ``memory`` is an mmap object, whose slices are bytes, or a flat view. ``base`` is the host address of its first
    byte. The run, and every block and view of it, keeps the memory alive.
    """

    __slots__ = ("_view", "base", "end", "keeper", "memory", "start")

    def __init__(self, memory: mmap.mmap | memoryview | None, base: int, start: int, end: int, keeper: Keeper) -> None:
        self.memory: mmap.mmap | memoryview | None = memory
        self.base: int = base
        self.start: int = start
        self.end: int = end
        self.keeper: Keeper = keeper
        self._view: memoryview | None = None

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def address(self) -> int:
        """The host address of its first byte."""
        return self.base + self.start

    @property
    def may_fault(self) -> bool:
        """Whether touching the memory may raise a signal, so that only safecopy may touch it."""
        return self.memory is None

    @property
    def is_imaged(self) -> bool:
        """Whether MADV_DONTNEED would not make it what it was when it was mapped, for an image shows in it."""
        overlay = self.keeper.overlay
        return overlay is not None and overlay.covers(self.address, self.address + len(self))

    def that_may_fault(self) -> HostRun:
        """The same memory, which only safecopy may touch: somebody can truncate what will show in it."""
        return HostRun(None, self.base, self.start, self.end, self.keeper)

    def cut(self, start: int, end: int) -> HostRun:
        """The bytes [start, end) of it, counted from its first, not empty. The rest is not kept alive by them."""
        start += self.start
        end += self.start
        if start == self.start and end == self.end:
            return self
        return HostRun(self.memory, self.base, start, end, self.keeper.part(start, end))

    def part(self, start: int, end: int) -> HostRun:
        """The same bytes as :meth:`cut`; but they keep the whole run alive, and nothing is cut for them."""
        return HostRun(self.memory, self.base, self.start + start, self.start + end, self.keeper)

    def view(self) -> memoryview:
        """All of it as flat bytes. The view, and whatever is made from it, keeps the memory alive.

        A plain slice of an mmap object would keep that object only; a ctypes array can hold the run (about 10 us, so
        the view is kept). Raises BufferError if the memory may fault.
        """
        if self._view is None:
            if self.memory is None:
                raise BufferError(f"host memory at {self.address:#x} may fault and has no view")
            if isinstance(self.memory, memoryview):
                self._view = self.memory[self.start : self.end]
            else:
                whole = memoryview(self.memory)
                if whole.readonly:  # a caller's: it keeps itself alive
                    self._view = whole[self.start : self.end]
                    return self._view
                run = HostRun(self.memory, self.base, self.start, self.end, self.keeper)  # not self: no cycle
                self._view = kept_view(self.memory, self.start, self.end - self.start, run)
        return self._view

    def block(self, offset: int, length: int) -> Block:
        """The bytes [offset, offset + length), which lie inside, as a block that keeps them alive."""
        if self.memory is None:
            return Block.from_address(self.address + offset, length, self.keeper)
        return Block.from_view(self.view(), offset, length)

    def __repr__(self) -> str:
        return f"<HostRun [{self.address:#x}-{self.address + len(self):#x}){'*' if self.may_fault else ''}>"


def kept_view(memory: mmap.mmap | memoryview, start: int, length: int, kept: object) -> memoryview:
    """A flat view of writable memory that keeps an object alive, as all that is made from it does."""
    array = _array_type(length).from_buffer(memory, start)
    array.kept = kept
    return memoryview(array).cast("B")


@lru_cache(64)
def _array_type(length: int) -> Any:
    import ctypes  # 2 ms at import

    return ctypes.c_ubyte * length


def mmap_address(memory: mmap.mmap) -> int:
    """The host address of an mmap object's first byte."""
    with memoryview(memory) as view:
        return address_of(view)
