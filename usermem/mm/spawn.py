"""A new map that begins as another one was: a forked child's, or one that a snapshot starts.

Private memory is shared copy-on-write: the new map shows the same images at host addresses of its own. What has none
gets its memory when it is touched.

Source: fork(2); Linux mm/mmap.c (dup_mmap), mm/memory.c (copy_page_range).
"""

from __future__ import annotations

from attrs import evolve

from usermem.mm.backing.backing import Backing
from usermem.mm.change import Change, Tables
from usermem.mm.extent import Extent, ExtentSet
from usermem.mm.fork import inherited
from usermem.mm.memory_map import MemoryMap
from usermem.mm.overlay import Overlay
from usermem.mm.pma import PMA
from usermem.mm.room import room
from usermem.mm.state import State
from usermem.mm.vma import VM_WIPEONFORK, VMA, VMASet


def spawn(mm: MemoryMap, state: State) -> None:
    """Make an empty map what a state is, on its own: shared anonymous memory is new, with the bytes of then.

    Raises MemoryError, or OSError if the host refuses.
    """
    twins: dict[Backing | None, Backing] = {memory: copy.twin() for memory, copy in state.copies.items()}
    vmas = state.tables.vmas
    if twins:
        vmas = VMASet().exchange([], [_over(vma, twins) for vma in vmas])
    mm.change(lambda change: _begin(change, state.tables, vmas, state.extents))


def _over(vma: VMA, twins: dict[Backing | None, Backing]) -> VMA:
    """The mapping, of the new memory if it shows shared anonymous memory."""
    twin = twins.get(vma.backing.shared_memory)
    if twin is None:
        return vma
    return evolve(vma, backing=twin if vma.shared else twin.private())


def fork(mm: MemoryMap, state: State) -> None:
    """Make an empty map what a forked child's is: shared memory is the parent's, advice about forks is followed.

    Raises as :func:`spawn`.
    """
    tables = inherited(state.tables)
    extents = state.extents
    for vma in state.tables.vmas:
        if vma.advice_flags & VM_WIPEONFORK:
            extents = extents.replace(vma.start, vma.end, [])
    mm.change(lambda change: _begin(change, tables, tables.vmas, extents))


def _begin(change: Change, tables: Tables, vmas: VMASet, extents: ExtentSet) -> None:
    """Have some tables, with these mappings, and show images where they are mapped."""
    change.vmas, change.guards = vmas, tables.guards
    change.brk_start, change.brk, change.mlock_future = tables.brk_start, tables.brk, tables.mlock_future
    covers: dict[Overlay, list[Extent]] = {}
    may_fault = any(extent.image.may_fault for extent in extents)
    for whole in extents:
        for vma in vmas.overlapping(whole.start, whole.end):
            if vma.shared:
                continue
            part = whole.cut(max(whole.start, vma.start), min(whole.end, vma.end))
            while True:
                pma = change.pmas.find(part.start) or _place(change, vma, part, may_fault)
                stop = min(part.end, pma.end)
                overlay = pma.run.keeper.overlay
                if overlay is None:
                    raise MemoryError(f"the host has no private memory for the mapping at {part.start:#x}")
                shown = part.cut(part.start, stop).moved(pma.run.address - pma.start)
                covers.setdefault(overlay, []).append(shown)
                if stop == part.end:
                    break
                part = part.cut(stop, part.end)
    for overlay, shown_there in covers.items():
        overlay.cover(shown_there)


def _place(change: Change, vma: VMA, part: Extent, may_fault: bool) -> PMA:
    """Memory for the first address of an image's part, as if it were touched there."""
    at, distance = part.start, part.start - vma.offset_at(part.start)
    low, high = (at, part.end) if vma.backing.is_read_ahead else room(change, vma, at)
    offset, run = vma.backing.unread(at - distance, low - distance, high - distance)
    if may_fault and run.keeper.overlay is not None and run.keeper.overlay.maps:
        run = run.that_may_fault()
    placed = PMA(offset + distance, run)
    pma = placed.cut(max(low, placed.start), min(high, placed.end))
    change.place(pma)
    return pma
