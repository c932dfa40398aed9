"""SharedMemory: anonymous memory that several mappings, address spaces and forked processes have in common.

Source: mmap(2), MAP_SHARED with MAP_ANONYMOUS; Linux mm/shmem.c.
"""

from __future__ import annotations

import mmap

from safemem.arena import MAP_NORESERVE

_MADV_REMOVE = getattr(mmap, "MADV_REMOVE", None)

_GRAIN = 1 << 16  # no smaller than the largest page


class HostPiece:
    """``[start, end)`` in ``memory``, an mmap object that lives as long as this does."""

    __slots__ = ("end", "memory", "start")

    def __init__(self, memory: mmap.mmap, start: int, end: int) -> None:
        self.memory = memory
        self.start = start
        self.end = end

    def split(self, at: int) -> tuple[HostPiece, HostPiece]:
        """The parts before and from an offset into memory, strictly inside."""
        return HostPiece(self.memory, self.start, at), HostPiece(self.memory, at, self.end)


class SharedMemory:
    """``length`` bytes, zeros at first, which nobody can cut short.

    Map it by ``AddressSpace.map_object``, as often as you like: all mappings see the same bytes. A child process that
    is forked off later shares them.
    """

    def __init__(self, length: int) -> None:
        """``length`` in bytes, above 0. Raises OSError or ValueError if the host refuses."""
        room = -(-length // _GRAIN) * _GRAIN  # the rest of the last page is shared, too
        if hasattr(mmap, "MAP_SHARED"):
            self._memory = mmap.mmap(-1, room, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        else:
            self._memory = mmap.mmap(-1, room)
        self._length = length

    def size(self) -> int:
        """How many bytes it has, always."""
        return self._length

    def room(self) -> int:
        """How many bytes there are to be mapped: the last page is whole, whatever the machine's pages are."""
        return len(self._memory)

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        data = self._memory[offset : offset + len(dst)]
        dst[: len(data)] = data
        return len(data)

    def zero(self, start: int, end: int) -> None:
        """Make [start, end) zero for all who share it; what lies beyond the last page is none of it (MADV_REMOVE)."""
        end = min(end, len(self._memory))
        if start >= end:
            return
        # Where the host can, it gets its memory back. It does so for whole pages of its own.
        if _MADV_REMOVE is not None and not (start | end) & (mmap.PAGESIZE - 1):
            try:
                self._memory.madvise(_MADV_REMOVE, start, end - start)
                return
            except OSError:
                pass
        self._memory[start:end] = bytes(end - start)

    def piece(self, start: int, end: int) -> HostPiece:
        """The host memory of [start, end), page-aligned and inside."""
        return HostPiece(self._memory, start, end)
