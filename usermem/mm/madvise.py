"""madvise(2).

Source: Linux mm/madvise.c.
"""

from __future__ import annotations

import errno
import mmap as host_mmap
from typing import Final

from hostarch import READ, WRITE, AccessType, mman
from safemem.buffers import check_int
from safemem.errors import error
from usermem.errors import FaultReason
from usermem.mm.change import Change
from usermem.mm.memory_map import MemoryMap
from usermem.mm.mincore import mincore
from usermem.mm.page_range import page_range
from usermem.mm.vma import (
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_HUGEPAGE,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_WIPEONFORK,
    VMA,
)

_HINTS: Final = frozenset(
    {
        mman.MADV_WILLNEED,
        mman.MADV_MERGEABLE,
        mman.MADV_UNMERGEABLE,
        mman.MADV_COLD,
        mman.MADV_PAGEOUT,
    }
)
"""Advice that changes no byte: it is checked and not followed."""

_LASTING: Final = {
    mman.MADV_DONTFORK: (VM_DONTCOPY, 0),
    mman.MADV_DOFORK: (0, VM_DONTCOPY),
    mman.MADV_WIPEONFORK: (VM_WIPEONFORK, 0),
    mman.MADV_KEEPONFORK: (0, VM_WIPEONFORK),
    mman.MADV_NORMAL: (0, VM_SEQ_READ | VM_RAND_READ),
    mman.MADV_SEQUENTIAL: (VM_SEQ_READ, VM_RAND_READ),
    mman.MADV_RANDOM: (VM_RAND_READ, VM_SEQ_READ),
    mman.MADV_DONTDUMP: (VM_DONTDUMP, 0),
    mman.MADV_DODUMP: (0, VM_DONTDUMP),
    mman.MADV_HUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE),
    mman.MADV_NOHUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
}
"""Advice that changes a mapping's advice_flags: those it sets, and those it clears."""

_POPULATING: Final = {mman.MADV_POPULATE_READ: READ, mman.MADV_POPULATE_WRITE: WRITE}

_DROPPING: Final = (mman.MADV_DONTNEED, mman.MADV_DONTNEED_LOCKED)

_KNOWN: Final = _HINTS | {
    *_DROPPING,
    *_POPULATING,
    *_LASTING,
    mman.MADV_FREE,
    mman.MADV_REMOVE,
    mman.MADV_COLLAPSE,
    mman.MADV_GUARD_INSTALL,
    mman.MADV_GUARD_REMOVE,
}

_NOT_LOCKED: Final = (
    mman.MADV_DONTNEED,
    mman.MADV_FREE,
    mman.MADV_REMOVE,
    mman.MADV_COLD,
    mman.MADV_PAGEOUT,
    mman.MADV_GUARD_INSTALL,
)
"""Advice that locked memory refuses."""


def madvise(mm: MemoryMap, addr: int, length: int, advice: int) -> int:
    """See AddressSpace.madvise."""
    advice = check_int(advice, "advice")
    if advice not in _KNOWN:
        raise error(errno.EINVAL, f"madvise {advice}")
    addr, end = page_range(mm.arch, addr, length, "madvise", errno.EINVAL)
    if advice in _POPULATING:
        _populate(mm, addr, end, advice)
        return 0
    at = addr
    missing = False
    for vma in mm.tables.vmas.overlapping(addr, end):
        missing |= vma.start > at
        _advise(mm, vma, (max(vma.start, addr), min(vma.end, end)), advice)
        at = vma.end
    if missing or at < end:
        raise error(errno.ENOMEM, f"madvise {advice}: not all of {end - addr:#x} bytes at {addr:#x} are mapped")
    return 0


def _advise(mm: MemoryMap, vma: VMA, part: tuple[int, int], advice: int) -> None:
    """Follow the advice in a part, [start, end), of one mapping."""
    start, end = part
    if vma.mlock_mode and advice in _NOT_LOCKED:
        raise error(errno.EINVAL, f"madvise {advice}: the memory at {vma.start:#x} is locked")
    if advice == mman.MADV_GUARD_INSTALL:
        mm.change(lambda change: _guard(change, vma, start, end))
    if advice == mman.MADV_GUARD_REMOVE:
        mm.change(lambda change: change.unguard(start, end))
    if advice == mman.MADV_COLLAPSE:
        _check_collapse(mm, vma, start, end)
    if advice in (mman.MADV_FREE, mman.MADV_WIPEONFORK) and not vma.backing.anonymous:
        raise error(errno.EINVAL, f"madvise {advice} is for private anonymous memory")
    if advice in _LASTING:
        mm.change(lambda change: _set_advice(mm, change, vma, part, advice))
    if advice == mman.MADV_REMOVE:
        if vma.backing.anonymous:
            raise error(errno.EINVAL, "MADV_REMOVE is for shared memory that can have holes")
        if not vma.shared or not vma.max_prot & mman.PROT_WRITE:
            raise error(errno.EACCES, "MADV_REMOVE is for memory that may be written and is shared")
        vma.backing.punch(vma.offset_at(start), vma.offset_at(end))
        mm.change(lambda change: change.rewrite(start, end))
    if advice in _DROPPING and not vma.shared:
        _discard(mm, vma, start, end)


def _set_advice(mm: MemoryMap, change: Change, vma: VMA, part: tuple[int, int], advice: int) -> None:
    """Set and clear flags in a part, where that mapping is still there.

    Raises EAGAIN where the other calls that split mappings raise ENOMEM, as madvise_vma_behavior does.
    """
    before = change.vmas.count
    sets, clears = _LASTING[advice]
    for now in change.vmas.within(*part):
        flags = (now.advice_flags | sets) & ~clears
        if now.backing is vma.backing and flags != now.advice_flags:
            change.set_advice(now.start, now.end, flags)
    mm.check_splits(change, before, errno.EAGAIN)


def _guard(change: Change, vma: VMA, start: int, end: int) -> None:
    """Guard [start, end) where that mapping is still there."""
    for now in change.vmas.within(start, end):
        if now.backing is vma.backing:
            change.guard(now.start, now.end)


def _check_collapse(mm: MemoryMap, vma: VMA, start: int, end: int) -> None:
    """MADV_COLLAPSE changes no byte. Raises EINVAL where Linux finds no huge pages to make.

    It makes them of memory that is anonymous, private or shared, and lies around a whole one; each that is asked for
    must have a page that was touched.
    """
    size = mm.arch.huge_page_size
    first, last = -(-start // size) * size, end // size * size
    there = vma.start + -vma.start % size + size <= vma.end and vma.backing.name_format is not None
    touched = bool(mm.runs(mm.tables, vma.start, vma.end))
    if first < last:
        touched = all(any(mincore(mm, at, size)) for at in range(first, last, size))
    if not there or first > last or not touched:
        raise error(errno.EINVAL, f"no huge page can be made of {end - start:#x} bytes at {start:#x}")


def _discard(mm: MemoryMap, vma: VMA, start: int, end: int) -> None:
    """Make private memory what it was when it was mapped: where it is, or by forgetting where it is."""
    tables = mm.tables  # in which others may have put something else there meanwhile
    done = [
        vma.backing.discard(run)
        for now in tables.vmas.within(start, end)
        if now.backing is vma.backing and not now.shared
        for _, run in mm.runs(tables, now.start, now.end)
    ]

    def build(change: Change) -> None:
        if all(done):
            change.rewrite(start, end)
        else:
            for now in change.vmas.overlapping(start, end):
                if now.backing is vma.backing:
                    change.refill(max(now.start, start), min(now.end, end))

    mm.change(build)


def populate(mm: MemoryMap, start: int, end: int, access: AccessType) -> int | None:
    """Have the host hold the pages of [start, end), up to the limit, and return where an access would fault, if so."""
    end = min(end, start + mm.limits.populate_limit)
    while start < end:
        stretch = mm.locate(start, access, ignore_permissions=False)
        if isinstance(stretch, FaultReason):
            return start
        _, base, limit, run = stretch
        stop = min(base + limit, end)
        if not run.may_fault:
            offset = start - base - run.start
            run.view()[offset : offset + stop - start : host_mmap.PAGESIZE].tobytes()
        start = stop
    return None


def hold(mm: MemoryMap, start: int, end: int, access: AccessType, advice: int) -> bool:
    """As :func:`populate`, also of files of the host's. Returns whether all of it can be had."""
    if populate(mm, start, end, access) is not None:
        return False
    tables = mm.tables
    parts = tables.vmas.within(start, min(end, start + mm.limits.populate_limit))
    return all(vma.backing.populate(run, advice) for vma in parts for _, run in mm.runs(tables, vma.start, vma.end))


def fault_in(mm: MemoryMap, start: int, end: int) -> int | None:
    """Have the host hold what is mapped in [start, end), for locked memory and MAP_POPULATE. (Linux's __mm_populate.)

    Private pages of a file that may be written are copied at once, and so survive when the file shrinks. Returns the
    start of a mapping of which not all can be had, and ends there.
    """
    for vma in mm.tables.vmas.within(start, end):
        copied = vma.prot & mman.PROT_WRITE and not vma.shared
        if not hold(mm, vma.start, vma.end, READ, mman.MADV_POPULATE_WRITE if copied else mman.MADV_POPULATE_READ):
            return vma.start
    return None


def _populate(mm: MemoryMap, start: int, end: int, advice: int) -> None:
    """Touch every page, as the guest would, in mappings with that very right; none grows by it."""
    access = _POPULATING[advice]
    vmas = mm.tables.vmas
    stop = vmas.covered_up_to(start, end)
    # The machine may grant reading with writing; populating does not.
    denied = next((vma for vma in vmas.overlapping(start, stop) if access & ~vma.prot), None)
    allowed = max(denied.start, start) if denied else stop
    if not hold(mm, start, allowed, access, advice):
        raise error(errno.EFAULT, f"not all pages of {allowed - start:#x} bytes at {start:#x} can be populated")
    if denied is not None:
        raise error(errno.EINVAL, f"the mapping at {denied.start:#x} does not allow {access}")
    if stop < end:
        raise error(errno.ENOMEM, f"nothing is mapped at {stop:#x}")
