"""SegmentSet: a sorted set of disjoint segments of an address space, as a value that never changes.

The tables of an address space are such sets: the guest's mappings (VMAs), the host memory behind them (PMAs), and
guards. A change makes a new set, which shares all but a few nodes with the old one. So whoever holds a set may read it
without a lock, a change is published by one store, and a change that fails has changed nothing.

The set is a B+ tree. A node has up to 96 items: segments in a leaf, nodes above. A list beside them says where they
start, so that searching is :func:`bisect`. A node also has a bound for its longest gap, so that the search for free
space passes by whatever has none that is long enough: O(log n), whatever the lengths.

Source: gVisor pkg/segment, whose gap tracking this follows.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, Final, Generic, Protocol, Self, TypeVar

_FANOUT: Final = 96
"""How many items a node has at most. Of 32 to 512 the quickest for mmap and munmap beside 100,000 mappings."""


class Segment(Protocol):
    """Something that holds for [start, end), start < end, and of which a part can be taken."""

    @property
    def start(self) -> int:
        """The first address."""

    @property
    def end(self) -> int:
        """The first address past it."""

    @property
    def floor(self) -> int:
        """Where the free space below it ends for new segments: ``start``, or less if a guard belongs to it."""

    def cut(self, start: int, end: int) -> Self:
        """The part in [start, end), which lies inside and is not empty."""


S = TypeVar("S", bound=Segment)

_start = attrgetter("start")


class _Node:
    """Some segments in a row (height 0), or some nodes of the next lower height. Immutable, but for ``gap``.

    ``starts`` are those of the items; nodes share the list where it is the same. ``start`` is the first item's, ``end``
    the last one's. ``gap`` is no less than the longest free space between two segments in the node: searches make it
    exact where it matters.
    """

    __slots__ = ("end", "gap", "height", "items", "start", "starts")

    def __init__(self, height: int, items: list[Any], starts: list[int], gap: int) -> None:
        self.height: int = height
        self.items: list[Any] = items
        self.starts: list[int] = starts
        self.start: int = starts[0]
        self.end: int = items[-1].end
        self.gap: int = gap

    @property
    def floor(self) -> int:
        """The floor of the first segment in it."""
        floor: int = self.items[0].floor
        return floor

    def splice(self, start: int, end: int, new: list[Any]) -> list[_Node]:
        """The nodes that take this one's place with ``new`` instead of the segments that start in [start, end)."""
        if not self.height:
            i = bisect_left(self.starts, start)
            return self.with_items(i, bisect_left(self.starts, end, i), new)
        i = (bisect_right(self.starts, start) or 1) - 1
        middle: list[_Node] = self.items[i].splice(start, end, new)
        j = i + 1
        if j < len(self.starts) and self.starts[j] < end:
            j = bisect_left(self.starts, end, j)
            middle += self.items[j - 1].splice(start, end, [])
        elif len(middle) == 1 and len(middle[0].items) >= _FANOUT // 4:
            return [self._with_one(i, middle[0])]  # nearly always: two thirds of the time of what follows
        # A small node is joined with its neighbours, so that the tree does not thin out.
        if len(middle) != 1 or len(middle[0].items) < _FANOUT // 4:
            left, right = self.items[max(i - 1, 0) : i], self.items[j : j + 1]
            middle = _joined(left + middle + right)
            i, j = i - len(left), j + len(right)
        return self.with_items(i, j, middle)

    def _with_one(self, i: int, item: Any) -> _Node:
        """The node with another item in the place of one."""
        items, starts, gap = self.items.copy(), self.starts, self.gap
        items[i] = item
        if self.height and item.gap > gap:
            gap = item.gap
        start, end = item.start, item.end
        if start != starts[i]:
            starts = starts.copy()
            starts[i] = start
        # Also where it starts as before: its floor may be higher.
        if i and start - items[i - 1].end > gap:
            gap = start - items[i - 1].end
        if i + 1 < len(items) and starts[i + 1] - end > gap:
            gap = starts[i + 1] - end
        return _Node(self.height, items, starts, gap)

    def with_items(self, i: int, j: int, new: list[Any]) -> list[_Node]:
        """The nodes with ``new`` in the place of the items i to j; none if there are none left."""
        if j - i == len(new) == 1:
            return [self._with_one(i, new[0])]  # half the time of what follows
        items = self.items.copy()
        items[i:j] = new
        if not items:
            return []
        gap = self.gap
        firsts = []
        end = items[i - 1].end if i else items[0].start
        for item in new:
            start = item.start  # a floor may lie below: the bound need not be exact
            firsts.append(start)
            if start - end > gap:
                gap = start - end
            end = item.end
        starts = self.starts.copy()
        if j < len(starts) and starts[j] - end > gap:
            gap = starts[j] - end
        starts[i:j] = firsts
        if self.height:
            gap = max([gap, *[node.gap for node in new]])
        if len(items) <= _FANOUT:
            return [_Node(self.height, items, starts, gap)]
        return _packed(items, self.height, gap)

    def part(self, start: int, end: int) -> list[Any]:
        """The items that have an address in [start, end), start < end, in order."""
        i = bisect_right(self.starts, start)
        if i and self.items[i - 1].end > start:
            i -= 1
        return self.items[i : bisect_left(self.starts, end, i)]


def _packed(items: list[Any], height: int, gap: int) -> list[_Node]:
    """Nodes of even size for the items."""
    count = -(-len(items) // _FANOUT)
    bounds = [len(items) * k // count for k in range(count + 1)]
    parts = [items[low:high] for low, high in itertools.pairwise(bounds)]
    return [_Node(height, part, list(map(_start, part)), gap) for part in parts]


def _joined(nodes: list[_Node]) -> list[_Node]:
    """Neighbours joined where two fit well into one node."""
    done: list[_Node] = []
    for node in nodes:
        if done and len(done[-1].items) + len(node.items) <= _FANOUT // 2:
            left = done.pop()
            gap = max(left.gap, node.gap, node.start - left.end)
            node = _Node(node.height, left.items + node.items, left.starts + node.starts, gap)
        done.append(node)
    return done


def _length(segment: Segment) -> int:
    return segment.end - segment.start


class SegmentSet(Generic[S]):
    """Disjoint segments in order. Immutable: what changes it returns another set.

    ``len(s)`` or ``count`` is how many there are.
    """

    __slots__ = ("_root", "_totals", "count")

    def __init__(self, root: _Node | None = None, count: int = 0, totals: dict[Any, int] | None = None) -> None:
        """An empty set; the arguments are for this class alone."""
        self._root = root
        self.count: int = count
        self._totals = totals

    def total(self, weigh: Callable[[S], int]) -> int:
        """The sum of ``weigh(segment)``, which adds up: O(1) in a set made out of one that was asked before."""
        totals = self._totals or {}
        if weigh not in totals:
            self._totals = totals = {**totals, weigh: sum(map(weigh, self))}
        return totals[weigh]

    @property
    def num_bytes(self) -> int:
        """The sum of the lengths. See :meth:`total`."""
        return self.total(_length)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[S]:
        return iter(self.overlapping(self._root.start, self._root.end)) if self._root is not None else iter(())

    def find(self, addr: int) -> S | None:
        """The segment that addr lies in."""
        node = self._root
        while node is not None:
            i = bisect_right(node.starts, addr)
            if not i or (item := node.items[i - 1]).end <= addr:
                return None
            if not node.height:
                found: S = item
                return found
            node = item
        return None

    def first_from(self, addr: int) -> S | None:
        """The first segment that ends after addr. (Linux's find_vma().)"""
        node = self._root
        while node is not None:
            i = bisect_right(node.starts, addr)
            if i and node.items[i - 1].end > addr:
                i -= 1
            elif i == len(node.starts):
                return None
            item = node.items[i]
            if not node.height:
                found: S = item
                return found
            node = item
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
        node = self._root
        if node is None or start >= end:
            return []
        while True:
            starts, items = node.starts, node.items
            i = bisect_right(starts, start)
            if i and items[i - 1].end > start:
                i -= 1
            if i == len(starts) or starts[i] >= end:
                return []
            j = i + 1
            if j < len(starts) and starts[j] < end:
                j = bisect_left(starts, end, j + 1)
            if not node.height:
                return items[i:j]
            if j - i > 1:
                break
            node = items[i]
        found = items[i:j]
        for _ in range(node.height):
            found = [item for node in found for item in node.part(start, end)]
        return found

    def is_free(self, start: int, end: int) -> bool:
        """Whether no segment has an address in [start, end)."""
        after = self.first_from(start)
        return after is None or after.start >= end

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
        if before is not None and before.end > low:
            low = before.end
        if after is not None and after.start < high:
            high = after.start
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
        root = self._root
        if root is None or high - length >= (root.end if root.end > low else low):
            return high - length if high - low >= length else None
        if root.gap >= length:
            for _, top in _inner_gaps(root, length, low, high, upward=False):
                return top - length
        top = min(root.floor, high)
        return top - length if top - low >= length else None

    def lowest_gap(self, length: int, low: int, high: int) -> int | None:
        """As highest_gap, as low as can be."""
        root = self._root
        if root is None or min(root.floor, high) - low >= length:
            return low if high - low >= length else None
        if root.gap >= length:
            for bottom, _ in _inner_gaps(root, length, low, high, upward=True):
                return bottom
        bottom = max(root.end, low)
        return bottom if high - bottom >= length else None

    def replace(self, start: int, end: int, segments: list[S], old: list[S] | None = None) -> Self:
        """The set with ``segments``, in order and inside, instead of [start, end); others are cut at the bounds.

        ``old`` are those that overlap it, if the caller has them.
        """
        if old is None:
            old = self.overlapping(start, end)
        new = segments
        if old and old[0].start < start:
            new = [old[0].cut(old[0].start, start), *new]
        if old and old[-1].end > end:
            new = [*new, old[-1].cut(end, old[-1].end)]
        return self.exchange(old, new)

    def exchange(self, old: list[S], new: list[S]) -> Self:
        """The set with some segments instead of others that are neighbours in it. They must cover no other's place."""
        if old == new:
            return self
        root = self._root
        if root is None:
            nodes = _packed(new, 0, 1 << 64)
        elif root.height:
            start = (old or new)[0].start
            nodes = root.splice(start, old[-1].start + 1 if old else start, new)
        else:  # a third of the time saved
            i = bisect_left(root.starts, (old or new)[0].start)
            nodes = root.with_items(i, i + len(old), new)
        while len(nodes) > 1:
            nodes = _packed(nodes, nodes[0].height + 1, 1 << 64)
        top = nodes[0] if nodes else None
        while top is not None and top.height and len(top.items) == 1:
            top = top.items[0]
        totals = self._totals
        if totals is not None:
            totals = {weigh: n + sum(map(weigh, new)) - sum(map(weigh, old)) for weigh, n in totals.items()}
        return type(self)(top, self.count + len(new) - len(old), totals)

    def _check(self) -> None:
        """Raise AssertionError if the set is not what it says: for stress tests."""
        last, count = -1 << 64, 0
        for segment in self:
            assert last <= segment.start < segment.end, f"{segment} at {last:#x}"
            last, count = segment.end, count + 1
        assert count == self.count
        assert all(n == sum(map(weigh, self)) for weigh, n in (self._totals or {}).items())
        nodes = [self._root] if self._root is not None else []
        for node in nodes:
            assert 0 < len(node.items) <= _FANOUT
            assert node.starts == [item.start for item in node.items]
            assert node.end == node.items[-1].end
            between = [right.floor - left.end for left, right in itertools.pairwise(node.items)]
            assert node.gap >= max(between, default=0)
            if node.height:
                assert all(item.height == node.height - 1 and item.gap <= node.gap for item in node.items)
                nodes += node.items


def _inner_gaps(node: _Node, length: int, low: int, high: int, upward: bool) -> Iterator[tuple[int, int]]:
    """The free stretches between the segments of a node, cut to [low, high), that are no shorter than ``length``.

    In the order of addresses. A node that was gone through whole, for nothing, learns how long its longest gap is.
    """
    items = node.items
    indices = range(max(bisect_right(node.starts, low) - 1, 0), bisect_left(node.starts, high))
    longest = 0
    for i in indices if upward else reversed(indices):
        inner = items[i].gap if node.height else 0
        gap = items[i + 1].floor - items[i].end if i + 1 < len(items) else 0
        if upward and inner >= length:
            yield from _inner_gaps(items[i], length, low, high, upward)
        if gap >= length:
            bottom, top = max(items[i].end, low), min(items[i + 1].floor, high)
            if top - bottom >= length:
                yield bottom, top
        if not upward and inner >= length:
            yield from _inner_gaps(items[i], length, low, high, upward)
        longest = max(longest, gap, items[i].gap if node.height else 0)
    if len(indices) == len(items):
        node.gap = longest
