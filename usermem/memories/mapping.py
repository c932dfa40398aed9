"""MappedRange: one mapping of a memory that is not ours, as /proc/PID/maps or a core's program headers describe it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from attrs import frozen


@frozen
class MappedRange:
    """[start, end) with the rights ``prot`` (mmap(2)'s bits). ``offset`` is where it begins in the file ``label``."""

    start: int
    end: int
    prot: int
    shared: bool = False
    offset: int = 0
    inode: int = 0
    """Of the file; 0 for anonymous memory, and where it is not known."""
    label: str = ""


def find(ranges: Sequence[MappedRange], addr: int) -> int:
    """The index of the range that holds addr, of ranges in order; -1 if none does."""
    index = bisect_right(ranges, addr, key=lambda each: each.start) - 1
    return index if index >= 0 and addr < ranges[index].end else -1
