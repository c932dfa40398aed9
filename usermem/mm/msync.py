"""msync(2).

Source: Linux mm/msync.c.
"""

from __future__ import annotations

import errno

from hostarch import mman
from safemem.buffers import check_int
from safemem.errors import error
from usermem.mm.change import Tables
from usermem.mm.memory_map import MemoryMap
from usermem.mm.page_range import page_range
from usermem.mm.vma import VMA


def msync(mm: MemoryMap, addr: int, length: int, flags: int) -> int:
    """See AddressSpace.msync."""
    flags = check_int(flags, "flags")
    both = mman.MS_ASYNC | mman.MS_SYNC
    if flags & ~(both | mman.MS_INVALIDATE) or flags & both == both:
        raise error(errno.EINVAL, f"msync with flags {flags:#x}")
    if mm.arch.addr_mask - mm.arch.page_size < check_int(length, "length") - 1 < mm.arch.addr_mask:
        length = 0  # in whole pages it wraps, and the kernel does not look
    addr, end = page_range(mm.arch, addr, length, "msync", errno.ENOMEM)
    tables = mm.tables
    at, missing = addr, False
    for vma in tables.vmas.overlapping(addr, end):
        missing |= vma.start > at
        if missing and flags == mman.MS_ASYNC:
            break
        if flags & mman.MS_INVALIDATE and vma.mlock_mode:
            raise error(errno.EBUSY, f"msync: the memory at {vma.start:#x} is locked")
        if vma.shared:
            _sync(mm, tables, vma, (max(vma.start, addr), min(vma.end, end)), flags)
        at = vma.end
    if mm.failed_write_back is not None:
        mm.raise_failed_write_back()
    if missing or at < end:
        raise error(errno.ENOMEM, f"msync: not all of {end - addr:#x} bytes at {addr:#x} are mapped")
    return 0


def _sync(mm: MemoryMap, tables: Tables, vma: VMA, part: tuple[int, int], flags: int) -> None:
    """Have the backing of a shared mapping take what was written to a part of it, [start, end)."""
    start, end = part
    if vma.backing.is_synced:
        for _, run in mm.runs(tables, start, end):
            vma.backing.sync(run, flags)
    vma.backing.write_back(vma.offset_at(start), vma.offset_at(end))
