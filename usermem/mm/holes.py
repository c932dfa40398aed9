"""The holes of sparse files, which cost nothing to read past.

Source: lseek(2), SEEK_DATA and SEEK_HOLE.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from usermem.mm.ranges import Ranges

# -1: a host that has no such call refuses it, as a file system does that knows no holes.
_SEEK_DATA: Final[int] = getattr(os, "SEEK_DATA", -1)
_SEEK_HOLE: Final[int] = getattr(os, "SEEK_HOLE", -1)


def next_data(fd: int, at: int, end: int) -> int:
    """Where the first byte from ``at`` on is that lies in no hole; ``end`` if there is none before it.

    ``at`` if the host cannot tell.
    """
    try:
        return min(os.lseek(fd, at, _SEEK_DATA), end)
    except OSError as exc:
        return end if exc.errno == errno.ENXIO else at


def next_hole(fd: int, at: int, end: int) -> int:
    """Where the data at ``at`` ends; ``end`` if there is no hole before it, or if the host cannot tell."""
    try:
        return min(os.lseek(fd, at, _SEEK_HOLE), end)
    except OSError:
        return end


def data(fd: int, start: int, end: int) -> Ranges:
    """The parts of [start, end) of a file that are no holes; all of it if the host cannot tell."""
    found: Ranges = []
    while (start := next_data(fd, start, end)) < end:
        stop = next_hole(fd, start, end)
        found.append((start, stop))
        start = stop
    return found
