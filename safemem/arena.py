"""Host memory for guest pages, from few large reservations.

An :class:`Arena` maps host memory in big NORESERVE chunks (the host allows about 65,530 mappings a process) and hands
out page-aligned :class:`HostRange` pieces of it, all zero. Reserved memory costs nothing until it is touched. Nobody
else can see or truncate it, so plain slices are safe.

A piece is given back when the last reference to its HostRange is gone: a table's, a copy's in flight, or that of any
view made by :func:`export`. Its content then becomes zero and its pages return to the host.
"""

from __future__ import annotations

import mmap
import platform
import sys
from bisect import bisect_left
from collections import deque
from typing import Final, NamedTuple, Protocol

# Not in the mmap module before Python 3.13. Other systems reserve nothing by default, or refuse what is too much.
MAP_NORESERVE: Final = (
    0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64", "riscv64") else 0
)
"""What keeps the host from setting memory aside for what nobody has touched; 0 where that is not needed."""
_MADV_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_FIRST_CHUNK = 1 << 28
_LARGEST_CHUNK = 1 << 36


class _Free(NamedTuple):
    chunk: int
    start: int
    end: int


class HostRange:
    """``[start, end)`` in ``memory``, an mmap object: yours until the last reference to this object is gone."""

    __slots__ = ("_arena", "_chunk", "_parts", "end", "memory", "start")

    def __init__(self, arena: Arena, chunk: int, start: int, end: int) -> None:
        self._arena = arena
        self._chunk = chunk
        self._parts: tuple[HostRange, HostRange] | None = None
        self.memory = arena.chunks[chunk]
        self.start = start
        self.end = end

    def split(self, at: int) -> tuple[HostRange, HostRange]:
        """The two parts left and right of an offset into memory, page-aligned and strictly inside.

        Each part is given back on its own, but not before this object is gone too: who still holds the whole keeps
        both parts. Raises ValueError if it was split before.
        """
        if self._parts is not None:
            raise ValueError("the range was split before: split its parts")
        self._parts = (
            HostRange(self._arena, self._chunk, self.start, at),
            HostRange(self._arena, self._chunk, at, self.end),
        )
        return self._parts

    def __del__(self) -> None:
        if self._parts is None:
            self._arena.give_back(self._chunk, self.start, self.end)


class Arena:
    """A source of zeroed, page-aligned host memory. ``allocate`` must be called under the owner's lock."""

    def __init__(self) -> None:
        self.chunks: list[mmap.mmap] = []
        self._free: list[_Free] = []  # sorted, neighbours joined
        # Ranges come back from __del__, which may run in any thread at any moment: an append is atomic.
        self._returned: deque[_Free] = deque()
        self._next_chunk = _FIRST_CHUNK
        self._madvise_zeroes = _MADV_ZEROES

    def allocate(self, length: int) -> HostRange:
        """``length`` bytes, a multiple of mmap.PAGESIZE, all zero. Raises MemoryError if the host has none left."""
        while self._returned:
            self._insert(self._returned.popleft())
        i = next((i for i, free in enumerate(self._free) if free.end - free.start >= length), -1)
        if i < 0:
            i = self._grow(length)
        free = self._free[i]
        end = free.start + length
        if end == free.end:
            del self._free[i]
        else:
            self._free[i] = free._replace(start=end)
        return HostRange(self, free.chunk, free.start, end)

    def give_back(self, chunk: int, start: int, end: int) -> None:
        """Take back a range that nothing refers to any more: zero it, and let the host have its pages."""
        memory = self.chunks[chunk]
        # Guest pages may be smaller than the host's: only whole host pages can be given up.
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if self._madvise_zeroes and _MADV_DONTNEED is not None and first < last:
            memory.madvise(_MADV_DONTNEED, first, last - first)
            memory[start:first] = bytes(first - start)
            memory[last:end] = bytes(end - last)
        else:
            memory[start:end] = bytes(end - start)
        self._returned.append(_Free(chunk, start, end))

    def _grow(self, length: int) -> int:
        size = max(self._next_chunk, length)
        while True:
            try:
                memory = _reserve(size)
                break
            except (OSError, ValueError, OverflowError) as exc:
                if size == length:
                    raise MemoryError(f"the host has no {length:#x} bytes of address space left") from exc
                size = max(size // 2, length)
        self._next_chunk = min(size * 2, _LARGEST_CHUNK)
        self.chunks.append(memory)
        return self._insert(_Free(len(self.chunks) - 1, 0, size))

    def _insert(self, free: _Free) -> int:
        """Add a free range, joined with its neighbours, and return its index."""
        i = bisect_left(self._free, free)
        if i < len(self._free) and free.chunk == self._free[i].chunk and free.end == self._free[i].start:
            free = free._replace(end=self._free.pop(i).end)
        if i and free.chunk == self._free[i - 1].chunk and free.start == self._free[i - 1].end:
            i -= 1
            free = free._replace(start=self._free.pop(i).start)
        self._free.insert(i, free)
        return i


def _reserve(size: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    return mmap.mmap(-1, size)


def _madvise_zeroes() -> bool:
    """Whether MADV_DONTNEED makes private pages zero here, as on Linux and not elsewhere."""
    if _MADV_DONTNEED is None:
        return False
    with _reserve(mmap.PAGESIZE) as memory:
        memory[0] = 1
        memory.madvise(_MADV_DONTNEED)
        return memory[0] == 0


_MADV_ZEROES = _madvise_zeroes()


class Host(Protocol):
    """A part of an mmap object: ``[start, end)`` in ``memory``."""

    @property
    def memory(self) -> mmap.mmap | None:
        """The mmap object; None where there is none, and nothing can be exported."""
        ...

    @property
    def start(self) -> int:
        """The first byte's offset in it."""
        ...

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        ...


def export(host: Host) -> memoryview:
    """A flat writable view of the range, offset 0 at its start, that keeps the range alive.

    So does everything made from the view: a slice, a NumPy array. (A plain slice of the mmap object would keep only
    the chunk; the buffer of a ctypes array is owned by the array, and that can hold the range. About 10 µs.)
    """
    import ctypes

    if host.memory is None:
        raise ValueError("this memory has no mmap object to be exported")
    array = (ctypes.c_ubyte * (host.end - host.start)).from_buffer(host.memory, host.start)
    array.host_range = host  # type: ignore[attr-defined]
    return memoryview(array).cast("B")
