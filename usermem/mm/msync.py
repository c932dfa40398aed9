"""msync(2).

Source: Linux mm/msync.c.
"""

from __future__ import annotations

import errno

from hostarch import mman
from safemem.buffers import check_int
from safemem.errors import error
from usermem.mm.memory_map import MemoryMap, page_range


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
    if tables.vmas.covered_up_to(addr, end) < end:
        raise error(errno.ENOMEM, f"msync: not all of {end - addr:#x} bytes at {addr:#x} are mapped")
    for vma in tables.vmas.overlapping(addr, end):
        if vma.shared:
            start, stop = max(vma.start, addr), min(vma.end, end)
            if vma.backing.is_synced:
                for _, run in mm.runs(tables, start, stop):
                    vma.backing.sync(run, flags)
            vma.backing.write_back(vma.offset_at(start), vma.offset_at(stop))
    if mm.failed_write_back is not None:
        mm.raise_failed_write_back()
    return 0
