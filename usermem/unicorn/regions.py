"""Regions: what an engine has mapped of a space's memory, and what keeps that alive.

The time of an engine's map and unmap grows with the square of the number of its regions: 10 us beside none, 50 beside
100, 20 ms beside 2,000 (Unicorn 2.1.4). So neighbours that go on in host memory are made one when there are many, and
if that does not help all are forgotten: each comes back when it is touched. Not sooner: unmapping takes 5 us a region
and 55 ns a page.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final, NamedTuple, Protocol

from hostarch import mman
from usermem.unicorn.engine import Engine

THROUGH: Final = 1 << 64
"""``Region.host`` of memory that has no host address: this and its guest address. The engine asks for each access."""

# How many regions there may be before neighbours are joined, and before all are forgotten.
MANY: Final = 32
_MOST: Final = 128


class Region(NamedTuple):
    """Guest addresses [start, end) at a host address, with rights; ``kept`` keeps the host memory alive."""

    start: int
    end: int
    host: int
    prot: int
    kept: frozenset[object]

    @property
    def asks(self) -> bool:
        """Whether it has no host memory. The engine cannot divide it: its parts would ask for wrong addresses."""
        return self.host >= THROUGH

    def part(self, start: int, end: int) -> Region:
        """What of it lies in [start, end)."""
        if start <= self.start and self.end <= end:
            return self
        first = max(start, self.start)
        return Region(first, min(end, self.end), self.host + first - self.start, self.prot, self.kept)

    def meets(self, other: Region) -> bool:
        """Whether the other goes on where this ends, here and in the guest, with the same rights."""
        return (self.end, self.host + self.end - self.start, self.prot) == (other.start, other.host, other.prot)


def joined(regions: list[Region]) -> list[Region]:
    """Regions in order, those made one that meet."""
    found: list[Region] = []
    for region in regions:
        if found and found[-1].meets(region):
            last = found.pop()
            region = Region(last.start, region.end, last.host, last.prot, last.kept | region.kept)
        found.append(region)
    return found


class Asked(Protocol):
    """Who is asked for memory that has no host address."""

    def load(self, addr: int, size: int) -> int:
        """The number of ``size`` bytes at addr."""
        ...

    def store(self, addr: int, size: int, value: int) -> None:
        """Store a number of ``size`` bytes at addr."""
        ...


class Regions:
    """The regions of one engine, in the order of their addresses."""

    def __init__(self, uc: Engine, asked: Asked) -> None:
        self.replaced: int = 0
        """How many regions the engine has given up or divided: it must not go on with one of them."""
        self._uc = uc
        self._asked = asked
        self._starts: list[int] = []
        self._regions: list[Region] = []
        self._many = MANY
        self._new: Region | None = None  # what the engine may have, though it is not among the regions

    def __len__(self) -> int:
        return len(self._regions)

    def _span(self, start: int, end: int) -> tuple[int, int]:
        """The indices of the regions that have a byte in [start, end)."""
        starts = self._starts
        first = bisect_right(starts, start)
        if first and self._regions[first - 1].end > start:
            first -= 1
        return first, bisect_left(starts, end, first)

    def parts(self, start: int, end: int) -> list[Region]:
        """What is mapped in [start, end)."""
        first, last = self._span(start, end)
        return [region.part(start, end) for region in self._regions[first:last]]

    def gap(self, addr: int) -> tuple[int, int]:
        """The addresses around one that is not mapped, up to the next regions."""
        index = bisect_right(self._starts, addr)
        low = self._regions[index - 1].end if index else 0
        return low, self._starts[index] if index < len(self._starts) else 1 << 64

    def prot(self, addr: int) -> int | None:
        """The rights at an address; None if nothing is mapped there."""
        index = bisect_right(self._starts, addr) - 1
        if index < 0:
            return None
        region = self._regions[index]
        return region.prot if addr < region.end else None

    def asks(self, addr: int) -> bool:
        """Whether the engine asks for what is at an address."""
        parts = self.parts(addr, addr + 1)
        return bool(parts) and parts[0].asks

    def add(self, region: Region) -> None:
        """Map a region where nothing is mapped. Raises what the engine raises; then it is not mapped."""
        if len(self._regions) >= self._many:
            self._make_few()
        index = bisect_left(self._starts, region.start)
        self._put(index, index, region)

    def _put(self, first: int, last: int, region: Region) -> None:
        """Map a region in the place of some that lie in it."""
        if first < last:
            for old in self._regions[first:last]:
                self._uc.mem_unmap(old.start, old.end - old.start)
            self._replace(first, last, [])
        self._new = region
        if region.asks:
            self._map_asking(region)
        else:
            self._uc.mem_map_ptr(region.start, region.end - region.start, region.prot, region.host)
        self._starts.insert(first, region.start)
        self._regions.insert(first, region)
        self._new = None

    def _map_asking(self, region: Region) -> None:
        asked, start, size = self._asked, region.start, region.end - region.start
        self._uc.mmio_map(
            start,
            size,
            lambda uc, offset, n, data: asked.load(start + offset, n),
            None,
            lambda uc, offset, n, value, data: asked.store(start + offset, n, value),
            None,
        )
        if region.prot != mman.PROT_READ | mman.PROT_WRITE:
            self._uc.mem_protect(start, size, region.prot)

    def remove(self, start: int, end: int) -> None:
        """Unmap what is mapped in [start, end), and let go of the memory."""
        first, last = self._span(start, end)
        if first < last:
            removed = self._regions[first:last]
            if removed[0].asks:
                start = min(start, removed[0].start)
            if removed[-1].asks:
                end = max(end, removed[-1].end)
            for region in removed:
                part = region.part(start, end)
                self._uc.mem_unmap(part.start, part.end - part.start)
            low, high = removed[0], removed[-1]
            left = [low.part(low.start, start)] if low.start < start else []
            self._replace(first, last, [*left, high.part(end, high.end)] if end < high.end else left)

    def forget(self) -> None:
        """Unmap all, whatever an interrupt has left half done: what the engine has itself is asked for."""
        known = [*self._regions, self._new] if self._new is not None else self._regions
        for start, last, _ in list(self._uc.mem_regions()):
            if any(region.start <= last and start < region.end for region in known):
                self._uc.mem_unmap(start, last + 1 - start)
        self.replaced += 1
        self._starts, self._regions, self._new = [], [], None

    def protect(self, start: int, end: int, prot: int) -> None:
        """Give [start, end), which lies in one region, other rights."""
        first, last = self._span(start, end)
        (region,) = self._regions[first:last]
        self._uc.mem_protect(start, end - start, prot)
        parts = [region.part(start, end)._replace(prot=prot)]
        if region.start < start:
            parts.insert(0, region.part(region.start, start))
        if end < region.end:
            parts.append(region.part(end, region.end))
        self._replace(first, last, parts)

    def _replace(self, first: int, last: int, regions: list[Region]) -> None:
        if last - first != 1 or len(regions) != 1 or regions[0][:3] != self._regions[first][:3]:
            self.replaced += 1
        self._starts[first:last] = [region.start for region in regions]
        self._regions[first:last] = regions

    def _make_few(self) -> None:
        """Join what meets; if there are still too many, forget all."""
        few = joined(self._regions)
        if len(few) >= _MOST:
            self.remove(0, 1 << 64)
            few = []
        self._many = max(MANY, min(2 * len(few), _MOST))
        for region in few:
            first, last = self._span(region.start, region.end)
            if last - first > 1:
                self._put(first, last, region)

    def retranslate(self, start: int, end: int) -> bool:
        """Forget what was translated of [start, end); whether anything there is executable."""
        parts = [part for part in self.parts(start, end) if part.prot & mman.PROT_EXEC]
        for part in parts:  # Unicorn 2.1.4 forgets nothing beyond the region that a range begins in
            self._uc.ctl_remove_cache(part.start, part.end)
        return bool(parts)
