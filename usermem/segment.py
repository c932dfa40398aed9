"""SegmentSet: a sorted set of disjoint segments of the address space, each with something to say about its part.

Both tables of an address space are one: what the guest asked for (VMAs) and where its bytes are (PMAs).

Source: gVisor pkg/segment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Generic, Protocol, Self, TypeVar


class Segment(Protocol):
    """Something that holds for [start, end), start < end, and can be cut in two."""

    @property
    def start(self) -> int:
        """The first address."""
        ...

    @property
    def end(self) -> int:
        """The first address past it."""
        ...

    def split(self, at: int) -> tuple[Self, Self]:
        """The parts before and from an address strictly inside."""
        ...


S = TypeVar("S", bound=Segment)


class SegmentSet(Generic[S]):
    """Disjoint segments in order. Not thread-safe: the owner locks."""

    __slots__ = ("_segments", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._segments: list[S] = []

    def __iter__(self) -> Iterator[S]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)

    def _index_from(self, addr: int) -> int:
        """The index of the first segment that ends after addr."""
        i = bisect_right(self._starts, addr)
        return i - 1 if i and self._segments[i - 1].end > addr else i

    def find(self, addr: int) -> S | None:
        """The segment that addr lies in."""
        i = bisect_right(self._starts, addr) - 1
        if i >= 0 and self._segments[i].end > addr:
            return self._segments[i]
        return None

    def first_from(self, addr: int) -> S | None:
        """The first segment that ends after addr. (Linux's find_vma().)"""
        i = self._index_from(addr)
        return self._segments[i] if i < len(self._segments) else None

    def overlapping(self, start: int, end: int) -> list[S]:
        """The segments that have an address in [start, end), in order."""
        i = self._index_from(start)
        j = bisect_right(self._starts, end - 1, i)
        return self._segments[i:j] if end > start else []

    def gap(self, addr: int, low: int, high: int) -> tuple[int, int]:
        """The bounds, within [low, high), of the free space around addr, which lies in no segment."""
        i = bisect_right(self._starts, addr)
        if i:
            low = max(low, self._segments[i - 1].end)
        if i < len(self._starts):
            high = min(high, self._starts[i])
        return low, high

    def find_gap(self, length: int, low: int, high: int) -> int | None:
        """The start of ``length`` free addresses as high as possible in [low, high), None if there is no such gap."""
        for i in range(bisect_right(self._starts, high), -1, -1):
            start = self._segments[i - 1].end if i else low
            end = min(high, self._starts[i]) if i < len(self._starts) else high
            if end - max(start, low) >= length:
                return end - length
            if start <= low:
                break
        return None

    def insert(self, segment: S) -> None:
        """Add a segment where there is none."""
        i = bisect_right(self._starts, segment.start)
        self._starts.insert(i, segment.start)
        self._segments.insert(i, segment)

    def isolate(self, start: int, end: int) -> None:
        """Cut the segments that reach over start or end there."""
        for at in (start, end):
            segment = self.find(at)
            if segment is not None and segment.start < at:
                i = bisect_right(self._starts, at) - 1
                self._segments[i : i + 1] = segment.split(at)
                self._starts.insert(i + 1, at)

    def remove(self, start: int, end: int) -> list[S]:
        """Take out everything in [start, end), cutting at the bounds, and return it."""
        self.isolate(start, end)
        removed = self.overlapping(start, end)
        if removed:
            i = bisect_right(self._starts, start - 1)
            del self._starts[i : i + len(removed)]
            del self._segments[i : i + len(removed)]
        return removed

    def _check(self) -> None:
        """Raise AssertionError if the set is not what it says: for stress tests."""
        last = 0
        assert self._starts == [s.start for s in self._segments]
        for segment in self._segments:
            assert last <= segment.start < segment.end, f"{segment} at {last:#x}"
            last = segment.end
