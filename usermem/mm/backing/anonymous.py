"""Anonymous: private memory that begins as zeros, out of an address space's arena.

Source: mmap(2), MAP_ANONYMOUS with MAP_PRIVATE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from usermem.mm.arena import Arena
from usermem.mm.backing.backing import Backing

if TYPE_CHECKING:
    from usermem.mm.host_run import HostRun

WINDOW: Final = 1 << 26
"""How much host address space anonymous memory gets at a time, in bytes, aligned in the guest."""

# The window when the host cannot give more; no smaller than the largest page.
_LEAST: Final = 1 << 16


class Anonymous(Backing):
    """All private anonymous memory of one address space. Its offsets are the guest's addresses."""

    anonymous = True
    mapped: None = None
    name_format: str | None = "[anon:{}]"

    def __init__(self) -> None:
        self.arena: Arena = Arena()

    def run(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """Zeros for the window around ``offset``. See Backing.run."""
        for window in (WINDOW, _LEAST):
            start = max(offset & -window, low)
            end = min((offset & -window) + window, high)
            try:
                return start, self.arena.allocate(end - start)
            except MemoryError:
                if window == _LEAST:
                    raise
        raise AssertionError("the last window raises")

    def discard(self, run: HostRun) -> bool:
        """Zero the pages where they are: no table changes, so that a guest cannot fragment its memory by it.

        Pages that a snapshot has an image of, or a file of one, get another place, once.
        """
        if run.is_imaged or run.may_fault:
            return False
        self.arena.zero(run)
        return True

    def private(self) -> Anonymous:
        """Return self: it is private."""
        return self
