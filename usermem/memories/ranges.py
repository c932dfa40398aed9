"""Ranges of user memory as plain pairs, for calls that take all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from hostarch import AddrRangeSeq

Ranges: TypeAlias = Sequence[tuple[int, int]]
"""(address, length) of ranges of user memory, in order."""


def drop_first(ranges: Ranges, n: int) -> Ranges:
    """The ranges without their first n bytes, and without empty ones before the rest."""
    for index, (addr, length) in enumerate(ranges):
        if n < length:
            return [(addr + n, length - n), *ranges[index + 1 :]]
        n -= length
    return []


def first_bytes(ars: AddrRangeSeq, n: int) -> Ranges:
    """The ranges that hold the first n bytes; of what comes behind the last byte nothing is checked."""
    pairs: list[tuple[int, int]] = []
    for addr, length in ars.pairs():
        if not n:
            break
        pairs.append((addr, min(length, n)))
        n -= pairs[-1][1]
    return pairs


def cut(ranges: Ranges, n: int) -> Ranges:
    """The first n bytes of the ranges."""
    found: list[tuple[int, int]] = []
    for addr, length in ranges:
        found.append((addr, min(length, n)))
        n -= found[-1][1]
    return found
