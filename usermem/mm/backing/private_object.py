"""PrivateObject: a private mapping of a simulator's object. Its bytes are read once, when they are first touched.

Source: mmap(2), MAP_PRIVATE.
"""

from __future__ import annotations

from typing import Final

from safemem.buffers import check_int
from usermem.mm.arena import Arena
from usermem.mm.backing.backing import Backing
from usermem.mm.backing.mapped_object import MappedObject
from usermem.mm.host_run import HostRun

WINDOW: Final = 1 << 16
"""How much of a mapped object is read where it is first touched, in bytes, aligned in the object."""

# A guest that reads on gets twice as much each time, up to this: fewer calls for who reads all, little for one byte.
_MOST_AHEAD: Final = 1 << 20

_arena = Arena()


class PrivateObject(Backing):
    """The bytes of an object as they were when they were first touched, in memory of the mapping's own."""

    steady = False  # the object may shrink at any time
    is_read_ahead = True

    def __init__(self, mapped: MappedObject) -> None:
        self._mapped = mapped
        self._last = -1, WINDOW  # where what was read last ends, and how much was to be read

    @property
    def key(self) -> object:
        """Neighbours of one object merge."""
        return type(self), id(self._mapped)

    @property
    def mapped(self) -> object:
        """The object."""
        return self._mapped

    def accessible(self, page: int) -> int:
        """The object's size in whole pages. See Backing.accessible."""
        return -(-check_int(self._mapped.size(), "what size() returned") // page) * page

    def run(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """The window around ``offset``, read from the object. See Backing.run."""
        start = max(offset & -WINDOW, low)
        last, ahead = self._last
        ahead = min(2 * ahead, _MOST_AHEAD) if start == last else WINDOW
        end = min((offset & -WINDOW) + ahead, high)
        run = _arena.allocate(end - start)
        self._last = end, ahead
        self._mapped.read_at(start, run.view())
        return start, run

    def unread(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """Zeros. See Backing.unread."""
        return low, _arena.allocate(high - low)

    def private(self) -> PrivateObject:
        """Return self: it is private."""
        return self
