"""brk(2): the heap.

Source: Linux mm/mmap.c (brk), mm/vma.c (do_brk_flags).
"""

from __future__ import annotations

from typing import Final

from hostarch import ANY_ACCESS, mman
from safemem.buffers import check_int
from usermem.mm.change import Change
from usermem.mm.madvise import fault_in
from usermem.mm.memory_map import MemoryMap
from usermem.mm.vma import MLOCK_EAGER, VMA

_RIGHTS: Final = mman.PROT_READ | mman.PROT_WRITE


def set_brk(mm: MemoryMap, start: int) -> None:
    """See AddressSpace.set_brk."""
    start = check_int(start, "start")
    if not mm.arch.min_addr <= start <= mm.arch.max_addr:
        low, high = mm.arch.min_addr, mm.arch.max_addr
        raise ValueError(f"start must be an address from min_addr {low:#x} to max_addr {high:#x}, not {start:#x}")

    def build(change: Change) -> None:
        change.brk_start = change.brk = start

    mm.change(build)


def brk(mm: MemoryMap, addr: int) -> int:
    """See AddressSpace.brk."""
    addr = check_int(addr, "addr")

    arch = mm.arch
    page = arch.page_size
    limits = mm.limits

    def build(change: Change) -> int:
        first, last = change.brk_start, change.brk
        old, new = (last + page - 1) & -page, (addr + page - 1) & -page
        if not first or addr < first or new > arch.max_addr:
            return last
        if limits.data_limit is not None and addr - first > limits.data_limit:
            return last
        vmas = change.vmas
        if new < old:
            if vmas.is_free(new, old) or not mm.can_cut(vmas, new, old):
                return last
            change.unmap(new, old)
        elif new > old:
            room = vmas.limit_from(old) - page  # a page stays free between the heap and what is above
            heap = VMA(old, new, _RIGHTS, ANY_ACCESS, False, mm.anonymous, mlock_mode=change.mlock_future)
            if new > room or not limits.may_grow(vmas, heap, new - old) or vmas.count > limits.max_map_count:
                return last
            change.add(heap)
        change.brk = addr
        return addr

    old = mm.tables
    end = mm.change(build)
    if old.mlock_future == MLOCK_EAGER and end > old.brk:
        fault_in(mm, old.brk, end)  # best effort
    return end
