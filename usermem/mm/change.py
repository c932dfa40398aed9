"""Change: a change of an address space's tables in the making.

The tables are values that never change. A call builds new ones aside, by the few primitives here; MemoryMap publishes
them by one store. Until then nobody sees anything, and a call that fails leaves no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from attrs import evolve

from usermem.mm.backing import anonymous
from usermem.mm.backing.backing import Backing
from usermem.mm.guard import GuardSet
from usermem.mm.listeners import ChangeKind, Told
from usermem.mm.pma import PMA, PMASet
from usermem.mm.vma import MLOCK_NONE, VMA, VMASet

# Of how many pieces the memory that was placed ahead in a free space may be.
_PIECES: Final = 4

Dropped = tuple[Backing, int, int]
"""A part of a backing, by offsets."""


class Tables:
    """All that an address space knows at one moment. Nobody changes them once they are published."""

    __slots__ = ("brk", "brk_start", "closed", "guards", "mlock_future", "pmas", "vmas")

    def __init__(self, vmas: VMASet, pmas: PMASet) -> None:
        self.vmas: VMASet = vmas
        self.pmas: PMASet = pmas
        self.guards: GuardSet = GuardSet()
        self.brk_start: int = 0
        self.brk: int = 0
        self.mlock_future: int = MLOCK_NONE
        """How what is mapped from now on is locked: mlockall(2), MCL_FUTURE."""
        self.closed: bool = False


class Change(Tables):
    """The next tables, made out of old ones step by step, and what the change does to whom."""

    __slots__ = ("dropped", "gone", "told", "touched", "used")

    def __init__(self, old: Tables) -> None:
        self.vmas: VMASet = old.vmas
        self.pmas: PMASet = old.pmas
        self.guards: GuardSet = old.guards
        self.brk_start: int = old.brk_start
        self.brk: int = old.brk
        self.mlock_future: int = old.mlock_future
        self.closed: bool = old.closed
        self.told: list[Told] = []
        """What listeners are told, in order."""
        self.touched: list[tuple[PMA, list[VMA]]] = []
        """Memory, and the mappings of it whose cached pages may be wrong now, or of other memory too."""
        self.gone: list[PMA] = []
        """The memory that is no longer where it was, or cut."""
        self.used: list[tuple[PMA, int, int]] = []
        """Memory that goes as a whole, and the range of addresses that was all of it that was ever mapped."""
        self.dropped: list[Dropped] = []
        """The parts of backings that shared mappings no longer show."""

    def add(self, vma: VMA) -> None:
        """Map, in the place of whatever is mapped there."""
        start, end = vma.start, vma.end
        around = self.vmas.overlapping(start - 1, end + 1)
        self.told.append((start, end, ChangeKind.MAP))
        if self.pmas.count:
            self._touch(start, end, around)
        if around and self._drop(around, start, end):
            self._clear(start, end)
        elif not vma.backing.anonymous:  # memory that was placed ahead is anonymous: no use to a file
            self._empty(start, end, around)
        self.vmas = self.vmas.put(start, end, [vma], around)

    def unmap(self, start: int, end: int) -> None:
        """Unmap, and give up the memory too, with what was placed ahead in the free space around."""
        around = self.vmas.overlapping(start - 1, end + 1)
        if self._drop(around, start, end):
            self.told.append((start, end, ChangeKind.UNMAP))
            self.vmas = self.vmas.put(start, end, [], around)
        if self.pmas.count:
            self._empty(start, end, around)

    def _drop(self, around: list[VMA], start: int, end: int) -> bool:
        """Whether one of some mappings lies in [start, end); then its guards go.

        What shared ones no longer show is noted.
        """
        any_there = False
        for vma in around:
            if vma.start < end and vma.end > start:
                any_there = True
                if vma.shared:
                    first, last = max(vma.start, start), min(vma.end, end)
                    self.dropped.append((vma.backing, vma.offset_at(first), vma.offset_at(last)))
        if any_there and self.guards.count:
            self.guards = self.guards.without(start, end)
        return any_there

    def _empty(self, start: int, end: int, around: Sequence[VMA] = ()) -> None:
        """Give up the host memory of [start, end), where nothing is mapped.

        What was placed ahead in the free space around goes with it, unless that is little and near a mapping: then the
        next one there finds it. ``around``, if the caller has them, are the mappings in [start - 1, end + 1) before.
        """
        before = around[0] if around and around[0].start < start else self.vmas.last_before(start)
        low = min(before.end, start) if before is not None else -anonymous.WINDOW  # nothing is near the ends
        first = self.pmas.first_from(low)
        if first is None:
            return
        after = around[-1] if around and around[-1].end > end else self.vmas.first_from(end)
        high = max(after.start, end) if after is not None else 1 << 65
        if first.start >= high:
            return
        ahead = self.pmas.overlapping(low, high)
        near = high - ahead[0].start <= anonymous.WINDOW or ahead[-1].end - low <= anonymous.WINDOW
        if near and len(ahead) <= _PIECES:
            self._clear(start, end)
            return
        # What is mapped over or unmapped is cut out of its memory, so nothing else in it was ever mapped.
        self.used += [(pma, start, end) for pma in ahead if low <= pma.start and pma.end <= high]
        self.gone += ahead
        self.pmas = self.pmas.replace(low, high, [], ahead)

    def _clear(self, start: int, end: int, new: Sequence[PMA] = ()) -> None:
        """Put ``new`` in the place of the memory in [start, end)."""
        old = self.pmas.overlapping(start, end)
        if old:
            self.gone += old
            self.pmas = self.pmas.replace(start, end, [*new], old)

    def protect(self, start: int, end: int, prot: int, around: list[VMA] | None = None) -> None:
        """Give everything mapped in [start, end) the rights prot. ``around``: see VMASet.put."""
        if around is None:
            around = self.vmas.overlapping(start - 1, end + 1)
        self.told.append((start, end, ChangeKind.PROTECT))
        self._touch(start, end, around)
        vmas = [
            vma.over(vma.start if vma.start > start else start, vma.end if vma.end < end else end, prot)
            for vma in around
            if vma.start < end and vma.end > start
        ]
        self.vmas = self.vmas.put(start, end, vmas, around)

    def rename(self, start: int, end: int, name: str) -> None:
        """Give everything mapped in [start, end) a name."""
        self._put_evolved(start, end, name=name)

    def lock(self, start: int, end: int, mode: int) -> None:
        """Lock everything mapped in [start, end) by an mlock_mode, or unlock it. Its rights and bytes are as before."""
        self._put_evolved(start, end, mlock_mode=mode)

    def set_advice(self, start: int, end: int, flags: int) -> None:
        """Say what a forked child has of everything mapped in [start, end). Its rights and bytes are as before."""
        self._put_evolved(start, end, advice_flags=flags)

    def _put_evolved(self, start: int, end: int, **changes: Any) -> None:
        """Change some fields of everything mapped in [start, end)."""
        around = self.vmas.overlapping(start - 1, end + 1)
        self._touch(start, end, around)
        evolved = [evolve(vma, **changes) for vma in self.vmas.within(start, end)]
        self.vmas = self.vmas.put(start, end, evolved, around)

    def refill(self, start: int, end: int) -> None:
        """Forget the memory of [start, end): the backing gives it anew when it is touched."""
        self.told.append((start, end, ChangeKind.MEMORY))
        self._clear(start, end)

    def replace(self, pma: PMA) -> None:
        """Put other memory, with the same bytes, in the place of what is there."""
        self.told.append((pma.start, pma.end, ChangeKind.MEMORY))
        self._clear(pma.start, pma.end, [pma])

    def guard(self, start: int, end: int) -> None:
        """Guard [start, end), all of which is mapped: its memory is forgotten, and nothing can be accessed there."""
        self.refill(start, end)
        self.guards = self.guards.with_guard(start, end)

    def unguard(self, start: int, end: int) -> None:
        """Guard nothing in [start, end): what was guarded is as if it had just been mapped."""
        for guard in self.guards.within(start, end):
            self.told.append((guard.start, guard.end, ChangeKind.MEMORY))
        self.guards = self.guards.without(start, end)

    def move(self, vma: VMA, old: tuple[int, int], new: tuple[int, int], keep: bool) -> None:
        """Map at ``new``, where nothing is mapped, what a mapping shows from the start of ``old`` on, with its bytes.

        What was at ``old`` goes, unless it is to be kept: then it is as if it had just been mapped.
        """
        start, end = old
        to, stop = new
        pmas = [] if vma.shared else [pma.moved(to - start) for pma in self.pmas.within(start, end)]
        guards = self.guards.within(start, end)
        self.guards = self.guards.without(start, end)
        if start < end and not keep:
            self.told.append((start, end, ChangeKind.UNMAP))
            self.vmas = self.vmas.put(start, end, [])
            self._empty(start, end)
        elif start < end:
            if not vma.shared:
                self.refill(start, end)
            if vma.mlock_mode:
                self.lock(vma.start, vma.end, MLOCK_NONE)  # all of it, as the kernel
        self._empty(to, stop)
        around = self.vmas.overlapping(to - 1, stop + 1)
        self.told.append((to, stop, ChangeKind.MOVE))
        self._touch(to, stop, around)
        self.vmas = self.vmas.put(to, stop, [vma.over(start, start + stop - to, vma.prot).placed(to, stop)], around)
        for pma in pmas:
            self.place(pma)
        for guard in guards:
            moved = guard.moved(to - start)
            self.guards = self.guards.with_guard(moved.start, moved.end)

    def place(self, pma: PMA) -> None:
        """Put memory where there was none yet. No listener is told, and nothing that is cached becomes wrong."""
        self.pmas = self.pmas.exchange([], [pma])

    def divide(self, pma: PMA) -> None:
        """Make two of a PMA, at a mapping in the middle of those that are cached; not if others were quicker."""
        firsts = sorted({key & -2 for key in tuple(pma.cached)})
        if len(firsts) > 1 and self.pmas.find(pma.start) is pma:
            at = firsts[len(firsts) // 2]
            self._clear(pma.start, pma.end, [pma.cut(pma.start, at), pma.cut(at, pma.end)])

    def rewrite(self, start: int, end: int) -> None:
        """Note that the same memory has other bytes: a listener is told, and what is cached stays right."""
        self.told.append((start, end, ChangeKind.MEMORY))

    def _touch(self, start: int, end: int, around: list[VMA]) -> None:
        """Note a change of [start, end) that cached pages may not outlive. ``around``: see VMASet.put.

        Of memory that is replaced the caches know by themselves.
        """
        pma = self.pmas.first_from(start)
        if pma is not None and pma.start < end:
            pmas = [pma] if pma.end >= end else self.pmas.overlapping(start, end)
            self.touched += [(pma, around) for pma in pmas]
