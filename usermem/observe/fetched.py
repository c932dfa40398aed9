"""Fetched: which bytes a system call has fetched, as disjoint intervals in order, each with the place that did it."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final, TypeAlias

from usermem.errors import FaultError
from usermem.observe.access import Access
from usermem.observe.observed import ObservedIO, memory_of
from usermem.scan import SCAN

_MOST: Final = 1 << 12

Interval: TypeAlias = tuple[int, int, Any]
"""[start, end), and its value."""


def fetched_spans(io: ObservedIO, access: Access, first: int | None = None) -> list[tuple[int, int]]:
    """The spans of the ``first`` bytes that a fetch uses: of a scan's no more than up to its zero."""
    spans = access.spans(io.arch, first)
    scan = SCAN.get()
    if scan is None or len(spans) != 1:
        return spans
    start, end = spans[0]
    data = bytearray(end - start)
    try:
        memory_of(io).copy_in(start, data, ignore_permissions=True)
    except FaultError as fault:
        del data[fault.transferred :]
    base, unit = scan
    at = data.find(bytes(unit))
    while at >= 0 and (access.addr + at - base) % unit:
        at = data.find(bytes(unit), at + 1)
    return spans if at < 0 else [(start, start + at + unit)]


class Fetched:
    """Disjoint intervals [start, end), each with a value. Neighbours with equal values are one.

    At most ``_MOST`` of them: bytes beyond are not remembered, so that a guest's calls do not grow the host's memory.

    A signal handler may come at any point, and access memory in the same call. Each change ends in one assignment, so
    that intervals never overlap; what a handler adds in the middle of another change may be lost.
    """

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: list[Interval] = []

    def __len__(self) -> int:
        return len(self._items)

    def add_all(self, spans: list[tuple[int, int]], value: Any) -> list[Interval]:
        """Add spans of one access, and return the parts that were there before it, with their values."""
        if len(spans) == 1:
            start, end = spans[0]
            items = self._items
            if items and items[-1][1] == start and items[-1][2] == value:  # one place that fetches piece after piece
                items[-1] = items[-1][0], end, value
                return []
        found = [part for start, end in spans for part in self.overlaps(start, end)]
        if [part[:2] for part in found] != spans:  # else all of it is there
            for start, end in spans:
                self.add(start, end, value)
        return found

    def overlaps(self, start: int, end: int) -> list[Interval]:
        """The parts of [start, end) that are there, in order, with their values."""
        items = self._items
        if not items or items[-1][1] <= start:  # as in most calls
            return []
        found = []
        i = bisect_left(items, (start,))
        if i and items[i - 1][1] > start:
            i -= 1
        for first, last, value in items[i : bisect_left(items, (end,), i)]:
            found.append((max(first, start), min(last, end), value))
        return found

    def add(self, start: int, end: int, value: Any) -> None:
        """Add what is not there yet of [start, end); what is keeps its value."""
        items = self._items
        if not items or items[-1][1] < start:
            if len(items) < _MOST:
                items.append((start, end, value))
            return
        i = bisect_left(items, (start,))
        if i and items[i - 1][1] >= start:
            i -= 1
        stop = bisect_left(items, (end + 1,))
        merged: list[Interval] = []
        at = start
        for first, last, old in items[i:stop]:
            if at < first:
                _append(merged, (at, min(first, end), value))
            _append(merged, (first, last, old))
            at = max(at, last)
        if at < end:
            _append(merged, (at, end, value))
        if len(items) - (stop - i) + len(merged) <= _MOST:
            self._items = [*items[:i], *merged, *items[stop:]]


def _append(items: list[Interval], item: Interval) -> None:
    """Append an interval, or make the last one longer if it touches and has the same value."""
    if items and items[-1][1] == item[0] and items[-1][2] == item[2]:
        items[-1] = (items[-1][0], item[1], item[2])
    else:
        items.append(item)
