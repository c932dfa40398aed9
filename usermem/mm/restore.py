"""Putting an address space back to a state, at a cost that follows what was written and changed since.

Host addresses stay what they are where the same memory is mapped then and now; what was written through them is undone.
"""

from __future__ import annotations

from usermem.mm.change import Change, Tables
from usermem.mm.dirty import dirty, shows_same
from usermem.mm.extent import ExtentSet
from usermem.mm.listeners import ChangeKind
from usermem.mm.memory_map import MemoryMap
from usermem.mm.overlay import Part, become
from usermem.mm.pma import PMA, private_spans
from usermem.mm.ranges import Ranges, joined
from usermem.mm.segment_diff import changed, differences
from usermem.mm.state import State
from usermem.mm.vma import VMA


def restore(mm: MemoryMap, state: State) -> None:
    """Make a map what it was, where nobody is in the middle of an access.

    Raises MemoryError or OSError if the host refuses: the mappings are as before then, and the contents partly those of
    then. So it is after an interrupt. To restore once more puts everything right.
    """

    def build(change: Change) -> None:
        # If a handler comes in between and maps, this runs again, which does no harm.
        written = dirty(change, state) if mm.listeners.listener is not None else []
        later = _placed_later(change, state.tables)
        parts = list(state.parts.values())
        if later:
            parts += [Part(overlay, ExtentSet(), spans) for overlay, spans in private_spans(later).items()]
        become(parts)
        for copy in state.copies.values():
            copy.put_back()
        _return_to(change, state.tables, later, written)

    mm.change(build)


def _placed_later(now: Tables, then: Tables) -> list[PMA]:
    """The memory of mappings that had none yet, and are as they were: it stays where it is, and becomes clean."""
    if now.pmas is then.pmas:
        return []
    found = []
    for pma in changed(now.pmas, then.pmas)[0]:
        vmas = now.vmas.overlapping(pma.start, pma.end)
        if (
            then.pmas.is_free(pma.start, pma.end)
            and then.guards.is_free(pma.start, pma.end)
            and vmas == then.vmas.overlapping(pma.start, pma.end)  # by identity
            and not any(vma.backing.is_read_ahead for vma in vmas)
        ):
            found.append(pma)
    return found


def _return_to(change: Change, then: Tables, later: list[PMA], written: Ranges) -> None:
    """Have a change bring old tables back, with the memory that was placed ``later``.

    ``written`` is what listeners are told to have other bytes.
    """
    pmas, other = then.pmas, written
    for pma in later:
        pmas = pmas.exchange([], [pma])
    if change.vmas is not then.vmas:
        for start, end, old, new in differences(*changed(change.vmas, then.vmas)):
            kind = _kind(start, old, new)
            if kind is not None:
                change.told.append((start, end, kind))
            if old is not None and old.shared and kind in (ChangeKind.UNMAP, ChangeKind.MAP):
                change.dropped.append((old.backing, old.offset_at(start), old.offset_at(end)))
            change.gone += change.pmas.overlapping(start, end)  # which may stay, but what is cached of it is wrong
    if change.pmas is not pmas:
        gone, back = changed(change.pmas, pmas)
        change.gone += gone
        for pma in back:
            pma.run.keeper.forget_used()
        other = [*other, *((pma.start, pma.end) for pma in [*gone, *back])]
    if change.guards is not then.guards:
        other = [*other, *((start, end) for start, end, *_ in differences(*changed(change.guards, then.guards)))]
    for start, end in joined(other):
        vmas = then.vmas.overlapping(start, end)
        if vmas:
            change.told.append((max(start, vmas[0].start), min(end, vmas[-1].end), ChangeKind.MEMORY))
    change.vmas, change.pmas, change.guards = then.vmas, pmas, then.guards
    change.brk_start, change.brk, change.mlock_future = then.brk_start, then.brk, then.mlock_future


def _kind(start: int, old: VMA | None, new: VMA | None) -> ChangeKind | None:
    """What a listener is told of a range that begins at ``start``, by the mapping there before and now."""
    if new is None:
        return ChangeKind.UNMAP
    if old is None or not shows_same(start, old, new):
        return ChangeKind.MAP
    return ChangeKind.PROTECT if old.prot != new.prot else None
