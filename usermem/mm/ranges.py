"""Ranges of addresses as lists of (start, end), in order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from mmap import PAGESIZE
from typing import Final

_COMPARED: Final = 1 << 16  # bytes at a time

Ranges = list[tuple[int, int]]
"""[start, end) each, in order and disjoint."""


def joined(ranges: Ranges) -> Ranges:
    """Ranges that touch or overlap as one, in order whatever order they had."""
    found: Ranges = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def near(ranges: Ranges, spans: Ranges, most: int, step: int) -> Ranges:
    """Ranges that are near each other in one span as one: at most so many, or one a span.

    ``step`` is the least distance. All are in order.
    """
    gaps = sorted(after[0] - before[1] for before, after in pairwise(ranges))
    distance = max(step, gaps[len(ranges) - most - 1] if len(ranges) > most else 0)
    while True:
        found: Ranges = []
        ends, limit = iter(spans), 0
        for start, end in ranges:
            if end <= limit and start <= found[-1][1] + distance:
                found[-1] = found[-1][0], end
                continue
            while limit < end:
                _, limit = next(ends)
            found.append((start, end))
        if len(found) <= max(most, len(spans)):
            return found
        distance *= 2


Read = Callable[[int, int], bytes]
"""The bytes of [start, end)."""


def differing(ranges: Ranges, one: Read, other: Read) -> Ranges:
    """The host pages of some ranges whose bytes differ."""
    found: Ranges = []
    for start, end in ranges:
        for at in range(start, end, _COMPARED):
            stop = min(at + _COMPARED, end)
            left, right = one(at, stop), other(at, stop)
            if left != right:
                for page in range(0, stop - at, PAGESIZE):
                    last = min(page + PAGESIZE, stop - at)
                    if left[page:last] != right[page:last]:
                        found.append((at + page, at + last))
    return joined(found)
