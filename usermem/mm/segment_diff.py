"""What two sets of segments do not have in common, at a cost that follows it and not the size of the sets.

A set that was made out of another shares all nodes with it but a few.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeVar

from usermem.mm.segment import Segment, SegmentSet

S = TypeVar("S", bound=Segment)


def changed(old: SegmentSet[S], new: SegmentSet[S]) -> tuple[list[S], list[S]]:
    """The segments of the old set that are not in the new one, and those of the new one that are not in the old one.

    Each in order. They are compared by identity.
    """
    sides: list[list[Any]] = [[each._root] if each._root is not None else [] for each in (old, new)]
    height = max([node.height for side in sides for node in side], default=-1)
    while True:
        common = {id(each) for each in sides[0]} & {id(each) for each in sides[1]}
        if common:
            sides = [[each for each in side if id(each) not in common] for side in sides]
        if height < 0:
            return sides[0], sides[1]
        # Nodes of the greatest height make room for what is in them. What is not as high may be in one of those.
        sides = [
            [item for each in side for item in (each.items if each.height == height else [each])] for side in sides
        ]
        height -= 1


def differences(old: list[S], new: list[S]) -> Iterator[tuple[int, int, S | None, S | None]]:
    """[start, end) of all addresses that lie in a segment of two lists in order, with the one of each, in order."""
    bounds = sorted({bound for segment in [*old, *new] for bound in (segment.start, segment.end)})
    i = j = 0
    for start, end in pairwise(bounds):
        while i < len(old) and old[i].end <= start:
            i += 1
        while j < len(new) and new[j].end <= start:
            j += 1
        before = old[i] if i < len(old) and old[i].start <= start else None
        after = new[j] if j < len(new) and new[j].start <= start else None
        if before is not None or after is not None:
            yield start, end, before, after
