"""AddrRange: the addresses from start up to, but not including, end.

Source: gVisor pkg/hostarch/addr_range.go (generated from pkg/segment/range.go).
"""

from __future__ import annotations

from attrs import frozen

from hostarch.arch import AMD64, Arch
from hostarch.integers import check_int

_MASK = (1 << 64) - 1
_set = object.__setattr__


@frozen
class AddrRange:
    """[start, end), in bytes. It may be ill-formed (end < start): what a guest says is kept as it was said."""

    start: int
    end: int

    def __init__(self, start: int, end: int) -> None:
        """Raises TypeError if a bound is no int."""
        if not type(start) is type(end) is int:
            start, end = check_int(start, "start"), check_int(end, "end")
        _set(self, "start", start)
        _set(self, "end", end)

    def well_formed(self) -> bool:
        """Whether start <= end."""
        return self.start <= self.end

    @property
    def length(self) -> int:
        """end - start, modulo 2**64 where the range is ill-formed."""
        length = self.end - self.start
        return length if length >= 0 else length & _MASK

    def contains(self, addr: int) -> bool:
        """Whether addr lies in the range."""
        return self.start <= check_int(addr, "addr") < self.end

    def overlaps(self, other: AddrRange) -> bool:
        """Whether the two have an address in common; an empty range strictly inside the other counts too."""
        return self.start < other.end and other.start < self.end

    def is_superset_of(self, other: AddrRange) -> bool:
        """Whether other lies in this range; an empty range at either bound does."""
        return self.start <= other.start and self.end >= other.end

    def intersect(self, other: AddrRange) -> AddrRange:
        """The common addresses; an empty range at the greater start if there are none."""
        start = max(self.start, other.start)
        return AddrRange(start, max(start, min(self.end, other.end)))

    def can_split_at(self, addr: int) -> bool:
        """Whether addr cuts the range into two that are not empty."""
        return self.start < check_int(addr, "addr") < self.end

    def is_page_aligned(self, arch: Arch = AMD64) -> bool:
        """Whether both bounds are page boundaries."""
        return arch.is_page_aligned(self.start) and arch.is_page_aligned(self.end)

    def is_huge_page_aligned(self, arch: Arch = AMD64) -> bool:
        """Whether both bounds are huge page boundaries."""
        return not (self.start | self.end) % arch.huge_page_size

    def __str__(self) -> str:
        return f"[{self.start:#x}, {self.end:#x})"
