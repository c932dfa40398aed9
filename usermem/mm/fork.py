"""What a forked child has of its parent's mappings.

Source: fork(2), madvise(2), mlock(2); Linux mm/mmap.c (dup_mmap), mm/memory.c (vma_needs_copy, copy_pte_marker).
"""

from __future__ import annotations

from attrs import evolve

from usermem.mm.change import Tables
from usermem.mm.pma import PMASet
from usermem.mm.vma import MLOCK_NONE, VM_DONTCOPY, VM_WIPEONFORK, VMASet


def inherited(parent: Tables) -> Tables:
    """Return the tables that a forked child begins with: the mappings, the guards and the heap, but no memory.

    Mappings with VM_DONTCOPY are not there. Nothing is locked, nor will be. Guards stay, but in what VM_WIPEONFORK
    makes zero. The backings are the parent's own. The caller gives the child the parent's bytes of private mappings
    without VM_WIPEONFORK.
    """
    vmas = list(parent.vmas)
    kept = [
        evolve(vma, mlock_mode=MLOCK_NONE) if vma.mlock_mode else vma
        for vma in vmas
        if not vma.advice_flags & VM_DONTCOPY
    ]
    child = Tables(parent.vmas if kept == vmas else VMASet().put(0, 1 << 64, kept, []), PMASet())
    child.brk_start, child.brk = parent.brk_start, parent.brk
    child.guards = parent.guards
    for vma in vmas:
        if vma.advice_flags & (VM_DONTCOPY | VM_WIPEONFORK):
            child.guards = child.guards.without(vma.start, vma.end)
    return child
