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
from usermem.mm.memory_map import MemoryMap, page_range
from usermem.mm.vma import VMA

_HINTS: Final = frozenset(
    {
        mman.MADV_NORMAL,
        mman.MADV_RANDOM,
        mman.MADV_SEQUENTIAL,
        mman.MADV_WILLNEED,
        mman.MADV_DONTFORK,
        mman.MADV_DOFORK,
        mman.MADV_MERGEABLE,
        mman.MADV_UNMERGEABLE,
        mman.MADV_HUGEPAGE,
        mman.MADV_NOHUGEPAGE,
        mman.MADV_DONTDUMP,
        mman.MADV_DODUMP,
        mman.MADV_WIPEONFORK,
        mman.MADV_KEEPONFORK,
        mman.MADV_COLD,
        mman.MADV_PAGEOUT,
    }
)
"""Advice that changes no byte: it is checked and not followed."""

_POPULATING: Final = {mman.MADV_POPULATE_READ: READ, mman.MADV_POPULATE_WRITE: WRITE}

_DROPPING: Final = (mman.MADV_DONTNEED, mman.MADV_DONTNEED_LOCKED)


def madvise(mm: MemoryMap, addr: int, length: int, advice: int) -> int:
    """See AddressSpace.madvise."""
    advice = check_int(advice, "advice")
    if advice not in _HINTS and advice not in (*_DROPPING, *_POPULATING, mman.MADV_FREE, mman.MADV_REMOVE):
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
    if advice in (mman.MADV_FREE, mman.MADV_WIPEONFORK) and not vma.backing.anonymous:
        raise error(errno.EINVAL, f"madvise {advice} is for private anonymous memory")
    if advice == mman.MADV_REMOVE:
        if vma.backing.anonymous:
            raise error(errno.EINVAL, "MADV_REMOVE is for shared memory that can have holes")
        if not vma.shared or not vma.max_prot & mman.PROT_WRITE:
            raise error(errno.EACCES, "MADV_REMOVE is for memory that may be written and is shared")
        vma.backing.punch(vma.offset_at(start), vma.offset_at(end))
        mm.change(lambda change: change.rewrite(start, end))
    if advice in _DROPPING and not vma.shared:
        _discard(mm, vma, start, end)


def _discard(mm: MemoryMap, vma: VMA, start: int, end: int) -> None:
    """Make private memory what it was when it was mapped: where it is, or by forgetting where it is."""
    done = [vma.backing.discard(run) for _, run in mm.runs(mm.tables, start, end)]

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


def _populate(mm: MemoryMap, start: int, end: int, advice: int) -> None:
    """Touch every page, as the guest would, in mappings with that very right; none grows by it."""
    access = _POPULATING[advice]
    vmas = mm.tables.vmas
    stop = vmas.covered_up_to(start, end)
    # The machine may grant reading with writing; populating does not.
    denied = next((vma for vma in vmas.overlapping(start, stop) if access & ~vma.prot), None)
    allowed = max(denied.start, start) if denied else stop
    missing = populate(mm, start, allowed, access)
    if missing is not None:
        raise error(errno.EFAULT, f"the page at {missing:#x} cannot be populated")
    tables = mm.tables
    last = min(allowed, start + mm.limits.populate_limit)
    for vma in tables.vmas.overlapping(start, last):
        for first, run in mm.runs(tables, max(vma.start, start), min(vma.end, last)):
            if not vma.backing.populate(run, advice):
                raise error(errno.EFAULT, f"not all pages from {first:#x} on are in their file")
    if denied is not None:
        raise error(errno.EINVAL, f"the mapping at {denied.start:#x} does not allow {access}")
    if stop < end:
        raise error(errno.ENOMEM, f"nothing is mapped at {stop:#x}")
