"""SegmentSet: a sorted set of disjoint segments of an address space, as a value that never changes.

Both tables of an address space are one: the guest's mappings (VMAs) and the host memory behind them (PMAs). A change
makes a new set, which shares all but a few nodes with the old one. So whoever holds a set may read it without a lock,
a change is published by one store, and a change that fails has changed nothing.

The set is a B+ tree. A node has up to 32 items: segments in a leaf, nodes above. Four lists side by side say where the
items start, where they end, where the free space below each ends (its floor), and what they are; so that searching is
:func:`bisect` and copying a node is slicing. A node also knows its largest gap, once somebody has asked, so that the
search for free space passes by whatever has none that is large enough: O(log n), whatever the lengths.

Source: gVisor pkg/segment, whose gap tracking this follows.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from operator import sub
from typing import Any, Final, Generic, Protocol, Self, TypeVar

_FANOUT: Final = 32
"""How many items a node has at most. Of 16, 32 and 64 the quickest for mmap and munmap beside 100,000 mappings."""


class Segment(Protocol):
    """Something that holds for [start, end), start < end, and of which a part can be taken."""

    @property
    def start(self) -> int:
        """The first address."""
        ...

    @property
    def end(self) -> int:
        """The first address past it."""
        ...

    @property
    def floor(self) -> int:
        """Where the free space below it ends for new segments: ``start``, or less if a guard belongs to it."""
        ...

    def cut(self, start: int, end: int) -> Self:
        """The part in [start, end), which lies inside and is not empty."""
        ...


S = TypeVar("S", bound=Segment)


class _Node:
    """Some segments in a row (height 0), or some nodes of the next lower height."""

    __slots__ = ("_gap", "end", "ends", "floor", "floors", "height", "items", "start", "starts")

    def __init__(self, items: list[Any], height: int) -> None:
        self.items = items
        self.height = height
        self.starts = [item.start for item in items]
        self.ends = [item.end for item in items]
        self.floors = [item.floor for item in items]
        self.start = self.starts[0]
        self.end = self.ends[-1]
        self.floor = self.floors[0]
        self._gap = -1

    @property
    def gap(self) -> int:
        """The length of the longest free space between two neighbours in it."""
        if self._gap < 0:
            self._gap = max(map(sub, self.floors[1:], self.ends), default=0)
            if self.height:
                self._gap = max(self._gap, max([node.gap for node in self.items]))
        return self._gap

    def splice(self, start: int, end: int, new: list[Any]) -> list[_Node]:
        """The nodes that take this one's place with ``new`` instead of the segments that start in [start, end)."""
        i = max(bisect_right(self.starts, start) - 1, 0)
        j = max(bisect_left(self.starts, end) - 1, i)
        if self.height == 0:
            i = bisect_left(self.starts, start)
            j = bisect_left(self.starts, end, i)
            return _packed(self.items[:i] + new + self.items[j:], 0)
        middle = self.items[i].splice(start, end, new)
        if j > i:
            middle += self.items[j].splice(start, end, [])
        return _packed(_joined(self.items[:i], middle, self.items[j + 1 :]), self.height)


def _packed(items: list[Any], height: int) -> list[_Node]:
    """Nodes of even size for the items; none for none."""
    count = -(-len(items) // _FANOUT)
    bounds = [len(items) * k // count for k in range(count + 1)] if count else []
    return [_Node(items[low:high], height) for low, high in itertools.pairwise(bounds)]


def _joined(left: list[_Node], middle: list[_Node], right: list[_Node]) -> list[_Node]:
    """The nodes in a row; a small one of the middle is joined with its neighbour, lest the tree thin out."""
    for node in (*middle, *right[:1]):
        if left and len(left[-1].items) + len(node.items) <= _FANOUT // 2:
            left = [*left[:-1], _Node(left[-1].items + node.items, node.height)]
        else:
            left = [*left, node]
    return left + right[1:]


class SegmentSet(Generic[S]):
    """Disjoint segments in order. Immutable: what changes it returns another set.

    ``len(s)`` is how many there are, ``num_bytes`` the sum of their lengths; both O(1).
    """

    __slots__ = ("_length", "_root", "num_bytes")

    def __init__(self) -> None:
        self._root: _Node | None = None
        self._length = 0
        self.num_bytes = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[S]:
        return iter(self.overlapping(self._root.start, self._root.end)) if self._root is not None else iter(())

    def find(self, addr: int) -> S | None:
        """The segment that addr lies in."""
        node = self._root
        while node is not None:
            i = bisect_right(node.starts, addr) - 1
            if i < 0 or node.ends[i] <= addr:
                return None
            if not node.height:
                found: S = node.items[i]
                return found
            node = node.items[i]
        return None

    def first_from(self, addr: int) -> S | None:
        """The first segment that ends after addr. (Linux's find_vma().)"""
        node = self._root
        while node is not None:
            i = bisect_right(node.ends, addr)
            if i == len(node.ends):
                return None
            if not node.height:
                found: S = node.items[i]
                return found
            node = node.items[i]
        return None

    def last_before(self, addr: int) -> S | None:
        """The last segment that starts below addr."""
        node = self._root
        while node is not None:
            i = bisect_left(node.starts, addr) - 1
            if i < 0:
                return None
            if not node.height:
                found: S = node.items[i]
                return found
            node = node.items[i]
        return None

    def overlapping(self, start: int, end: int) -> list[S]:
        """The segments that have an address in [start, end), in order."""
        found: list[S] = []
        nodes = [self._root] if self._root is not None and start < end else []
        while nodes:
            node = nodes.pop()
            part = node.items[bisect_right(node.ends, start) : bisect_left(node.starts, end)]
            if node.height:
                nodes += reversed(part)
            else:
                found += part
        return found

    def within(self, start: int, end: int) -> list[S]:
        """The parts of the segments that lie in [start, end), in order; those cut off are new ones."""
        found = self.overlapping(start, end)
        for i in {0, len(found) - 1} if found else ():
            segment = found[i]
            if segment.start < start or segment.end > end:
                found[i] = segment.cut(max(segment.start, start), min(segment.end, end))
        return found

    def gap(self, addr: int, low: int, high: int) -> tuple[int, int]:
        """The bounds, within [low, high), of the free space around addr, which lies in no segment."""
        before, after = self.last_before(addr), self.first_from(addr)
        if before is not None:
            low = max(low, before.end)
        if after is not None:
            high = min(high, after.start)
        return low, high

    def covered_up_to(self, start: int, end: int) -> int:
        """The first address in [start, end) that lies in no segment; end if there is none."""
        for segment in self.overlapping(start, end):
            if segment.start > start:
                break
            start = segment.end
        return min(start, end)

    def highest_gap(self, length: int, low: int, high: int) -> int | None:
        """Where ``length`` free addresses begin, as high as can be in [low, high); None if there are none."""
        gap = next(self._gaps(length, low, high, upward=False), None)
        return None if gap is None else gap[1] - length

    def lowest_gap(self, length: int, low: int, high: int) -> int | None:
        """As highest_gap, as low as can be."""
        gap = next(self._gaps(length, low, high, upward=True), None)
        return None if gap is None else gap[0]

    def _gaps(self, length: int, low: int, high: int, upward: bool) -> Iterator[tuple[int, int]]:
        """The free stretches in [low, high), cut to it, that are no shorter than ``length``, in order of addresses."""
        root = self._root
        below = (low, high if root is None else min(root.floor, high))
        above = (high, high) if root is None else (max(root.end, low), high)
        for gap in (below, None, above) if upward else (above, None, below):
            if gap is not None:
                if gap[1] - gap[0] >= length:
                    yield gap
            elif root is not None:
                yield from _inner_gaps(root, length, low, high, upward)

    def replace(self, start: int, end: int, segments: Sequence[S]) -> Self:
        """The set with ``segments``, in order and inside, instead of [start, end); others are cut at the bounds."""
        new = list(segments)
        old = self.overlapping(start, end)
        made = type(self).__new__(type(self))
        made._length = self._length + len(new) - len(old)
        made.num_bytes = self.num_bytes + sum([s.end - s.start for s in new])
        made.num_bytes -= sum([min(s.end, end) - max(s.start, start) for s in old])
        low = start
        if old and old[0].start < start:
            low = old[0].start
            new.insert(0, old[0].cut(low, start))
            made._length += 1
        if old and old[-1].end > end:
            new.append(old[-1].cut(end, old[-1].end))
            made._length += 1
        if not new and not old:
            return self
        nodes = self._root.splice(low, end, new) if self._root is not None else _packed(new, 0)
        while len(nodes) > 1:
            nodes = _packed(nodes, nodes[0].height + 1)
        root = nodes[0] if nodes else None
        while root is not None and root.height and len(root.items) == 1:
            root = root.items[0]
        made._root = root
        return made

    def _check(self) -> None:
        """Raise AssertionError if the set is not what it says: for stress tests."""
        last, count, size = -1 << 64, 0, 0
        for segment in self:
            assert last <= segment.start < segment.end, f"{segment} at {last:#x}"
            last, count, size = segment.end, count + 1, size + segment.end - segment.start
        assert (count, size) == (self._length, self.num_bytes)
        nodes = [self._root] if self._root is not None else []
        for node in nodes:
            assert 0 < len(node.items) <= _FANOUT
            assert node.starts == [item.start for item in node.items]
            assert node.ends == [item.end for item in node.items]
            if node.height:
                assert all(item.height == node.height - 1 for item in node.items)
                nodes += node.items


def _inner_gaps(node: _Node, length: int, low: int, high: int, upward: bool) -> Iterator[tuple[int, int]]:
    """As SegmentSet._gaps, of the free space between the segments of a node."""
    if node.gap < length:
        return
    first = bisect_right(node.ends, low)
    indices = range(max(first - 1, 0), bisect_left(node.starts, high))
    for i in indices if upward else reversed(indices):
        after = (max(node.ends[i], low), min(node.floors[i + 1], high)) if i + 1 < len(node.items) else (0, 0)
        if not upward and after[1] - after[0] >= length:
            yield after
        if node.height:
            yield from _inner_gaps(node.items[i], length, low, high, upward)
        if upward and after[1] - after[0] >= length:
            yield after
