"""A new map that begins as another one was: a forked child's, or one that a snapshot starts.

Private memory is shared copy-on-write: the new map shows the images at host addresses of its own.

Source: fork(2); Linux mm/mmap.c (dup_mmap), mm/memory.c (copy_page_range).
"""

from __future__ import annotations

from attrs import evolve

from usermem.mm.backing.backing import Backing
from usermem.mm.change import Change, Tables
from usermem.mm.fork import inherited
from usermem.mm.memory_map import MemoryMap
from usermem.mm.overlay import Extent, Overlay
from usermem.mm.pma import PMA, PMASet
from usermem.mm.state import State
from usermem.mm.vma import VMA, VMASet


def spawn(mm: MemoryMap, state: State) -> None:
    """Make an empty map what a state is, on its own: shared anonymous memory is new, with the bytes of then.

    Raises MemoryError, or OSError if the host refuses.
    """
    twins: dict[Backing | None, Backing] = {memory: copy.twin() for memory, copy in state.copies.items()}

    def build(change: Change) -> None:
        _begin_as(mm, change, state, state.tables)
        if twins:
            vmas = [_over(vma, twins) for vma in change.vmas]
            change.vmas = VMASet().exchange([], vmas)

    mm.change(build)


def _over(vma: VMA, twins: dict[Backing | None, Backing]) -> VMA:
    twin = twins.get(vma.backing.shared_memory)
    if twin is None:
        return vma
    return evolve(vma, backing=twin if vma.shared else twin.private())


def fork(mm: MemoryMap, state: State) -> None:
    """Make an empty map what a forked child's is: shared memory is the parent's, advice about forks is followed.

    Raises as :func:`spawn`.
    """
    mm.change(lambda change: _begin_as(mm, change, state, inherited(state.tables)))


def _begin_as(mm: MemoryMap, change: Change, state: State, tables: Tables) -> None:
    """Have some tables, and the private memory of a state where they map what it maps."""
    change.vmas, change.guards = tables.vmas, tables.guards
    change.brk_start, change.brk, change.mlock_future = tables.brk_start, tables.brk, tables.mlock_future
    pmas = state.tables.pmas
    if tables is not state.tables:
        for vma in state.tables.vmas:
            if vma.fork_flags:
                pmas = pmas.replace(vma.start, vma.end, [])
    covers: dict[Overlay, list[Extent]] = {}
    twins = [pma for old in pmas if (pma := _twin(mm, old, state, covers)) is not None]
    for overlay, extents in covers.items():
        overlay.cover(extents)
    change.pmas = PMASet().exchange([], twins)


def _twin(mm: MemoryMap, old: PMA, state: State, covers: dict[Overlay, list[Extent]]) -> PMA | None:
    """Memory of its own that will show the same images, by ``covers``; None if it has none: it is had when touched."""
    extents = state.extents_of(old)
    if not extents:
        return None
    vmas = state.tables.vmas.overlapping(old.start, old.end)
    backing, offset = (vmas[0].backing, vmas[0].offset_at(old.start)) if vmas else (mm.anonymous, old.start)
    run = backing.fresh(offset, old.end - old.start)
    overlay = run.keeper.overlay
    if overlay is None or len(run) != old.end - old.start:
        raise MemoryError(f"the host has no memory like that at {old.start:#x}")
    covers.setdefault(overlay, []).extend(extent.moved(run.address - old.start) for extent in extents)
    return PMA(old.start, run)
