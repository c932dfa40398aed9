"""mlock(2), mlock2(2), munlock(2), mlockall(2) and munlockall(2).

The host's memory is not locked. What a guest sees is: the limit counts, msync and madvise refuse what Linux refuses of
locked memory, and its pages are touched at once.

Source: Linux mm/mlock.c; gVisor pkg/sentry/mm/syscalls.go (MLock, MLockAll).
"""

from __future__ import annotations

import errno

from hostarch import mman
from safemem.buffers import check_int
from safemem.errors import error
from usermem.mm.change import Change
from usermem.mm.madvise import fault_in
from usermem.mm.memory_map import MemoryMap
from usermem.mm.vma import MLOCK_EAGER, MLOCK_LAZY, MLOCK_NONE, locked_bytes


def mlock(mm: MemoryMap, addr: int, length: int, flags: int) -> int:
    """See AddressSpace.mlock."""
    flags = check_int(flags, "flags")
    if flags & ~mman.MLOCK_ONFAULT:
        raise error(errno.EINVAL, f"mlock with flags {flags:#x}")
    addr, length = _page_range(mm, addr, length)
    _check_allowed(mm)
    mode = MLOCK_LAZY if flags else MLOCK_EAGER

    def build(change: Change) -> int:
        again = sum(map(locked_bytes, change.vmas.within(addr, addr + length)))
        if not mm.limits.may_lock(change.vmas, length - again):
            raise error(errno.ENOMEM, f"{length:#x} more bytes may not be locked")
        return _lock(mm, change, addr, length, mode)

    _check_end(addr + length, mm.change(build))
    if mode == MLOCK_EAGER:
        missing = fault_in(mm, addr, addr + length)
        if missing is not None:  # what is locked stays locked
            raise error(errno.ENOMEM, f"not all pages at {missing:#x} can be had")
    return 0


def munlock(mm: MemoryMap, addr: int, length: int) -> int:
    """See AddressSpace.munlock."""
    addr, length = _page_range(mm, addr, length)
    _check_end(addr + length, mm.change(lambda change: _lock(mm, change, addr, length, MLOCK_NONE)))
    return 0


def mlockall(mm: MemoryMap, flags: int) -> int:
    """See AddressSpace.mlockall."""
    names = mm.arch.map_flags
    current, future, lazy = names.mcl_current, names.mcl_future, names.mcl_onfault
    flags = check_int(flags, "flags")
    if flags & ~(current | future | lazy) or not flags & (current | future):
        raise error(errno.EINVAL, f"mlockall with flags {flags:#x}")
    _check_allowed(mm)
    mode = MLOCK_LAZY if flags & lazy else MLOCK_EAGER

    def build(change: Change) -> None:
        limit = mm.limits.memlock_limit
        if flags & current and limit is not None and change.vmas.num_bytes > limit:
            raise error(errno.ENOMEM, f"{change.vmas.num_bytes:#x} bytes may not be locked")
        change.mlock_future = mode if flags & future else MLOCK_NONE
        if flags & current:
            change.lock(0, 1 << 64, mode)

    mm.change(build)
    if flags & current and mode == MLOCK_EAGER:
        for vma in mm.tables.vmas:
            if vma.backing.steady:  # best effort: no object's code is run, which may raise
                fault_in(mm, vma.start, vma.end)
    return 0


def munlockall(mm: MemoryMap) -> int:
    """See AddressSpace.munlockall."""

    def build(change: Change) -> int:
        change.mlock_future = MLOCK_NONE
        change.lock(0, 1 << 64, MLOCK_NONE)
        return 0

    return mm.change(build)


def _page_range(mm: MemoryMap, addr: int, length: int) -> tuple[int, int]:
    """The address of the first page and the length in whole pages, which may wrap to 0 as in the kernel."""
    arch = mm.arch
    addr, length = arch.untagged(check_int(addr, "addr")), check_int(length, "length")
    first = arch.page_round_down(addr)
    return first, (length + addr - first + arch.page_size - 1) & -arch.page_size & arch.addr_mask


def _check_allowed(mm: MemoryMap) -> None:
    if mm.limits.memlock_limit == 0:
        raise error(errno.EPERM, "memory may not be locked")


def _check_end(end: int, stop: int) -> None:
    if stop < end:
        raise error(errno.ENOMEM, f"nothing is mapped at {stop:#x}")


def _lock(mm: MemoryMap, change: Change, addr: int, length: int, mode: int) -> int:
    """Lock or unlock what is mapped from addr on up to a hole, and return where that is (apply_vma_lock_flags)."""
    end = addr + length
    if not 0 <= addr <= end <= mm.arch.addr_mask:
        raise error(errno.EINVAL, f"{length:#x} bytes at {addr:#x} wrap")
    stop = change.vmas.covered_up_to(addr, end)
    before = change.vmas.count
    change.lock(addr, stop, mode)
    mm.check_splits(change, before)
    return stop
