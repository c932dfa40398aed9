"""HostMapping: part of a file that is mapped in this process.

Source: mmap(2).
"""

from __future__ import annotations

import mmap as host_mmap

from hostarch import mman
from usermem.mm.host_calls import Unmapping, check_mappings, map_over, reserve
from usermem.mm.host_run import HostRun, Whole, mmap_address
from usermem.mm.overlay import Overlay


class HostMapping(Whole):
    """Part of a file, mapped in this process: unmapped when the last reference to it is gone.

    ``memory`` is an mmap object over it if it was asked for, for memory that nobody can truncate; else None.
    """

    __slots__ = ("_overlay", "_unmapping", "address", "flags", "length", "memory", "offset", "prot")

    def __init__(
        self, file: int | HostMapping, offset: int, length: int, prot: int, flags: int, plain: bool = False
    ) -> None:
        """Map ``length`` bytes at ``offset``, both in host pages; ``flags`` is MAP_SHARED or MAP_PRIVATE.

        ``file`` is a descriptor, or a shared mapping of the file's start with the same rights, whatever seals it since.
        Raises MemoryError if the host refuses, or has no mapping left for guests.
        """
        self.memory: host_mmap.mmap | None = None
        self.offset: int = offset
        self.length: int = length
        self.prot: int = prot
        self.flags: int = flags
        self.address: int = 0
        check_mappings()
        self._unmapping = pages = Unmapping(0 if plain else length)
        try:
            if isinstance(file, HostMapping):
                self.address = pages.map_again(file.address, offset)
            elif plain:  # an mmap object that the module makes of a file keeps a descriptor each
                memory = reserve(length)
                map_over(mmap_address(memory), file, offset, length, prot, flags)
                self.memory = memory
                self.address = mmap_address(memory)
            else:
                self.address = pages.map_file(file, offset, prot, flags)
        except OSError as exc:
            raise MemoryError(f"the host does not map {length:#x} bytes at {offset:#x} of a file: {exc}") from exc
        self._overlay = None
        if flags & mman.MAP_PRIVATE and isinstance(file, int):
            self._overlay = Overlay(file, offset - self.address)

    @property
    def overlay(self) -> Overlay | None:
        """What shows in a private one that nobody has written since."""
        return self._overlay

    def run(self, start: int, end: int, keeper: Whole | None = None) -> HostRun:
        """Bytes [start, end) of it, counted from its first. ``keeper`` keeps the mapping, if it is not the keeper."""
        if self.memory is not None:
            return HostRun(self.memory, self.address, start, end, keeper or self)
        return HostRun(None, self.address, start, end, keeper or self)


class Held(Whole):
    """A keeper that keeps several things alive."""

    __slots__ = ("_overlay", "things")

    def __init__(self, *things: object) -> None:
        self.things: tuple[object, ...] = things
        mappings = [thing for thing in things if isinstance(thing, HostMapping)]
        self._overlay = mappings[0].overlay if mappings else None

    @property
    def overlay(self) -> Overlay | None:
        """That of the host mapping among them."""
        return self._overlay
