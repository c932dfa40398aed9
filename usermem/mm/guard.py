"""Guards: pages inside a mapping where every access faults (madvise(2), MADV_GUARD_INSTALL).

They split no mapping, and neither rights nor MADV_DONTNEED change them: only MADV_GUARD_REMOVE, unmapping, and mapping
something else there. mremap moves them along. A table of their own, for they are few; no host memory is ever placed
behind a guard, so that what is cached ends before it.

Source: Linux mm/madvise.c (madvise_guard_install), include/linux/swapops.h (PTE_MARKER_GUARD).
"""

from __future__ import annotations

from attrs import define

from usermem.mm.segment import SegmentSet


@define(eq=False)
class Guard:
    """Pages [start, end) that are guarded. A value."""

    start: int
    end: int

    @property
    def floor(self) -> int:
        """Where the free space below it ends: at its start."""
        return self.start

    def cut(self, start: int, end: int) -> Guard:
        """The part in [start, end)."""
        return Guard(start, end)

    def moved(self, distance: int) -> Guard:
        """The same, ``distance`` addresses further up."""
        return Guard(self.start + distance, self.end + distance)


class GuardSet(SegmentSet[Guard]):
    """The guards of an address space, in order. Immutable."""

    __slots__ = ()

    def with_guard(self, start: int, end: int) -> GuardSet:
        """The set with [start, end) guarded, and neighbours as one."""
        around = self.overlapping(start - 1, end + 1)
        low = min([start, *[guard.start for guard in around[:1]]])
        high = max([end, *[guard.end for guard in around[-1:]]])
        return self.exchange(around, [Guard(low, high)])

    def without(self, start: int, end: int) -> GuardSet:
        """The set with nothing guarded in [start, end)."""
        return self.replace(start, end, []) if self.count else self
