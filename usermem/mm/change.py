"""Change: a change of an address space's tables in the making.

The tables are values that never change. A call builds new ones aside, by the few primitives here; MemoryMap publishes
them by one store. Until then nobody sees anything, and a call that fails leaves no trace.
"""

from __future__ import annotations

from typing import NamedTuple

from attrs import evolve

from usermem.mm.backing.backing import Backing
from usermem.mm.listeners import ChangeKind, Event, Told
from usermem.mm.pma import PMA, PMASet
from usermem.mm.vma import VMA, VMASet


class Tables(NamedTuple):
    """All that an address space knows at one moment."""

    vmas: VMASet
    pmas: PMASet
    brk_start: int = 0
    brk: int = 0
    closed: bool = False


class Change:
    """New tables, made out of old ones step by step, and what they do to whom."""

    __slots__ = ("brk", "brk_start", "closed", "dropped", "events", "pmas", "told", "touched", "vmas")

    def __init__(self, old: Tables) -> None:
        self.vmas, self.pmas, self.brk_start, self.brk, self.closed = old
        self.told: list[Told] = []
        """What listeners are told, in order."""
        self.touched: list[tuple[int, int]] = []
        """The ranges of addresses in which cached pages may be wrong now."""
        self.dropped: list[tuple[Backing, int, int]] = []
        """The parts of backings, by offsets, that shared mappings no longer show."""
        self.events: list[Event] = []
        """What listeners are told, once it is noted in its order."""

    def tables(self) -> Tables:
        """The new tables."""
        return Tables(self.vmas, self.pmas, self.brk_start, self.brk, self.closed)

    def add(self, vma: VMA) -> None:
        """Map, in the place of whatever is mapped there."""
        start, end = vma.start, vma.end
        around = self.vmas.overlapping(start - 1, end + 1)
        if self._drop(around, start, end):
            self.pmas = self.pmas.replace(start, end, [])
        elif not vma.backing.anonymous:  # memory that was placed ahead is anonymous: no use to a file
            self._drop_ahead(start, end)
        self.vmas = self.vmas.put(start, end, [vma], around)
        self.tell(start, end, ChangeKind.MAP)

    def unmap(self, start: int, end: int) -> None:
        """Unmap, and give up the memory too, with what was placed ahead in the free space around."""
        around = self.vmas.overlapping(start - 1, end + 1)
        if self._drop(around, start, end):
            self.vmas = self.vmas.put(start, end, [], around)
            self.tell(start, end, ChangeKind.UNMAP)
        self._drop_ahead(start, end)

    def _drop(self, around: list[VMA], start: int, end: int) -> bool:
        """Whether one of some mappings lies in [start, end); what shared ones no longer show is noted."""
        any_there = False
        for vma in around:
            if vma.start < end and vma.end > start:
                any_there = True
                if vma.shared:
                    first, last = max(vma.start, start), min(vma.end, end)
                    self.dropped.append((vma.backing, vma.offset_at(first), vma.offset_at(last)))
        return any_there

    def _drop_ahead(self, start: int, end: int) -> None:
        """Give up the host memory of the free space that [start, end) is part of."""
        if not self.pmas:
            return
        low, high = self.vmas.gap(start, 0, 1 << 64)
        if self.pmas.overlapping(low, high):
            self.pmas = self.pmas.replace(low, high, [])
            self.touched.append((low, high))

    def protect(self, start: int, end: int, prot: int) -> None:
        """Give everything mapped in [start, end) the rights prot."""
        vmas = [vma.over(vma.start, vma.end, prot) for vma in self.vmas.within(start, end)]
        self.vmas = self.vmas.put(start, end, vmas)
        self.tell(start, end, ChangeKind.PROTECT)

    def rename(self, start: int, end: int, name: str) -> None:
        """Give everything mapped in [start, end) a name."""
        self.vmas = self.vmas.put(start, end, [evolve(vma, name=name) for vma in self.vmas.within(start, end)])
        self.touched.append((start, end))

    def refill(self, start: int, end: int) -> None:
        """Forget the memory of [start, end): the backing gives it anew when it is touched."""
        self.pmas = self.pmas.replace(start, end, [])
        self.tell(start, end, ChangeKind.MEMORY)

    def move(self, vma: VMA, old: tuple[int, int], new: tuple[int, int], keep: bool) -> None:
        """Map at ``new``, where nothing is mapped, what a mapping shows from the start of ``old`` on, with its bytes.

        What was at ``old`` goes, unless it is to be kept: then it is as if it had just been mapped.
        """
        start, end = old
        to, stop = new
        pmas = [] if vma.shared else [pma.moved(to - start) for pma in self.pmas.within(start, end)]
        if start < end and not keep:
            self.vmas = self.vmas.put(start, end, [])
            self._drop_ahead(start, end)
            self.tell(start, end, ChangeKind.UNMAP)
        elif start < end and not vma.shared:
            self.refill(start, end)
        self._drop_ahead(to, stop)
        self.vmas = self.vmas.put(to, stop, [vma.over(start, start + stop - to, vma.prot).placed(to, stop)])
        for pma in pmas:
            self.place(pma)
        self.tell(to, stop, ChangeKind.MOVE)

    def place(self, pma: PMA) -> None:
        """Put memory where there was none yet. No listener is told, and nothing that is cached becomes wrong."""
        self.pmas = self.pmas.replace(pma.start, pma.end, [pma])

    def divide(self, pma: PMA) -> None:
        """Make two of a PMA, at a mapping in the middle of those that are cached; not if others were quicker."""
        firsts = sorted({key & -2 for key in pma.cached})
        if len(firsts) > 1 and self.pmas.find(pma.start) is pma:
            at = firsts[len(firsts) // 2]
            self.pmas = self.pmas.replace(pma.start, pma.end, [pma.cut(pma.start, at), pma.cut(at, pma.end)])
            self.touched.append((pma.start, pma.end))

    def rewrite(self, start: int, end: int) -> None:
        """Note that the same memory has other bytes: a listener is told, and what is cached stays right."""
        self.told.append((start, end, ChangeKind.MEMORY))

    def tell(self, start: int, end: int, kind: ChangeKind) -> None:
        """Note a change of [start, end) that a listener is told, and that cached pages may not outlive."""
        self.told.append((start, end, kind))
        self.touched.append((start, end))
