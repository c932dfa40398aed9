"""Ranges of user memory as plain pairs, for calls that take all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

Ranges: TypeAlias = Sequence[tuple[int, int]]
"""(address, length) of ranges of user memory, in order."""


def first_bytes(ranges: Iterable[tuple[int, int]], n: int) -> list[tuple[int, int]]:
    """The ranges that hold the first n bytes; those behind the last byte are not looked at."""
    found: list[tuple[int, int]] = []
    for addr, length in ranges:
        if not n:
            break
        found.append((addr, min(length, n)))
        n -= found[-1][1]
    return found
