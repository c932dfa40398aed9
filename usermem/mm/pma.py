"""PMAs (physical-memory areas): where the guest's bytes are.

A table of its own beside the VMAs, because the two differ: memory gets a place when it is first touched, one place
may serve several mappings, and rights change without the bytes moving.

Anonymous memory gets its place a window at a time, and the window reaches past the mapping into free space: what is
mapped there later is then contiguous with it in host memory too. So PMAs may cover unmapped addresses, and what they
hold there is zero.

Source: gVisor pkg/sentry/mm/pma.go.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from usermem.mm.host_run import HostRun
from usermem.mm.overlay import Overlay
from usermem.mm.page_cache import Stretch
from usermem.mm.ranges import Ranges, joined
from usermem.mm.segment import SegmentSet


class PMA:
    """Guest addresses [start, end) are the host memory ``run``. A value, but for ``cached``.

    ``cached`` has the stretches of it that the page cache refers to: see :mod:`usermem.mm.page_cache`.
    """

    __slots__ = ("cached", "end", "run", "start")

    def __init__(self, start: int, run: HostRun) -> None:
        self.start: int = start
        self.end: int = start + run.end - run.start
        self.run: HostRun = run
        self.cached: dict[int, Stretch] = {}

    @property
    def floor(self) -> int:
        """Where the free space below it ends: at its start."""
        return self.start

    def cut(self, start: int, end: int) -> PMA:
        """The part in [start, end), which may be all of it; the rest is not kept alive by it."""
        if start == self.start and end == self.end:
            return self
        return PMA(start, self.run.cut(start - self.start, end - self.start))

    def stretch(self, end: int) -> Stretch:
        """The stretch of it that ends at an address inside, as the page cache has them."""
        base = self.start - self.run.start
        return [self.run.memory, base, end - base, self.run]

    def note_used(self, start: int, end: int) -> None:
        """Tell the memory that nothing but [start, end) of it, some addresses, was ever mapped. It has to be so."""
        first = max(start, self.start)
        last = max(min(end, self.end), first)
        offset = self.run.start - self.start
        self.run.keeper.note_used(first + offset, last + offset)

    def moved(self, distance: int) -> PMA:
        """The same memory, ``distance`` addresses further up."""
        return PMA(self.start + distance, self.run)

    def __repr__(self) -> str:
        return f"<PMA [{self.start:#x}-{self.end:#x}) {self.run}>"


class PMASet(SegmentSet[PMA]):
    """The host memory behind an address space, in the order of guest addresses. Immutable."""

    __slots__ = ("_private",)

    _private: Private

    @property
    def private(self) -> Private:
        """The private memory among it, found once: snapshots ask for it again and again."""
        try:
            return self._private
        except AttributeError:
            self._private = found = Private(self)
            return found


class Private:
    """Private host memory, and the guest addresses of it."""

    def __init__(self, pmas: Iterable[PMA]) -> None:
        own = [pma for pma in pmas if pma.run.keeper.overlay is not None]
        self.spans: dict[Overlay, Ranges] = private_spans(own)
        """See :func:`private_spans`."""
        self._pmas = sorted(own, key=_address)
        self._addresses = list(map(_address, self._pmas))

    def guest_ranges(self, found: Ranges) -> Ranges:
        """The guest addresses of what lies in some host ranges."""
        ranges: Ranges = []
        for start, end in found:
            first = max(bisect_right(self._addresses, start) - 1, 0)
            for pma in self._pmas[first : bisect_left(self._addresses, end)]:
                distance = pma.start - pma.run.address
                low, high = max(start + distance, pma.start), min(end + distance, pma.end)
                if low < high:
                    ranges.append((low, high))
        return ranges


def private_spans(pmas: Iterable[PMA]) -> dict[Overlay, Ranges]:
    """The host ranges of private memory, by whose they are."""
    found: dict[Overlay, Ranges] = {}
    for pma in pmas:
        overlay = pma.run.keeper.overlay
        if overlay is not None:
            found.setdefault(overlay, []).append((pma.run.address, pma.run.address + len(pma.run)))
    return {overlay: joined(spans) for overlay, spans in found.items()}


def _address(pma: PMA) -> int:
    return pma.run.address
