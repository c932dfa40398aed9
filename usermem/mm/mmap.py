"""mmap(2) and munmap(2), with Linux's arguments, order of checks and errnos.

Source: gVisor pkg/sentry/mm/syscalls.go; Linux mm/mmap.c (do_mmap), mm/vma.c.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import Final

from hostarch import mman
from safemem.buffers import check_int
from safemem.errors import error
from safemem.fd import FD_MAX
from usermem.mm.backing import object_backing
from usermem.mm.backing.backing import Backing
from usermem.mm.backing.host_file import LARGEST_FILE, file_limit, host_file
from usermem.mm.backing.mapped_object import MappedObject
from usermem.mm.backing.shared_memory import SharedMemory
from usermem.mm.change import Change, Tables
from usermem.mm.madvise import fault_in
from usermem.mm.memory_map import MemoryMap
from usermem.mm.vma import MLOCK_EAGER, VM_NOHUGEPAGE, VMA, VMASet

_ANONYMOUS_KINDS: Final = (mman.MAP_SHARED, mman.MAP_PRIVATE)
_FILE_KINDS: Final = (*_ANONYMOUS_KINDS, mman.MAP_SHARED_VALIDATE)

RIGHTS: Final = mman.PROT_READ | mman.PROT_WRITE | mman.PROT_EXEC
"""The rights that a mapping can have."""

# MAP_HUGE_2MB | MAP_HUGE_1GB, which MAP_SHARED_VALIDATE knows on all machines.
_HUGE_PAGE_SIZES: Final = (21 | 30) << mman.MAP_HUGE_SHIFT

# Where MAP_32BIT maps: find_start_end(), arch/x86/kernel/sys_x86_64.c.
_LOW_START: Final = 0x4000_0000
_LOW_END: Final = 0x8000_0000


def mmap(mm: MemoryMap, addr: int, length: int, prot: int, flags: int, file: tuple[int, int]) -> int:
    """See AddressSpace.mmap. ``file`` is the descriptor and the offset."""
    fd, offset = file
    if not type(addr) is type(length) is type(prot) is type(flags) is type(fd) is type(offset) is int:
        addr, length, prot = check_int(addr, "addr"), check_int(length, "length"), check_int(prot, "prot")
        flags, fd, offset = check_int(flags, "flags"), check_int(fd, "fd"), check_int(offset, "offset")
    names = mm.arch.map_flags
    if offset:
        check_offset(mm, offset)
    kind = flags & mman.MAP_TYPE
    anonymous = bool(flags & names.anonymous)
    if not anonymous and not 0 <= fd <= FD_MAX:
        raise error(errno.EBADF, f"fd {fd} of a mapping that is not MAP_ANONYMOUS")
    limit = 0 if anonymous else file_limit(fd)  # EBADF comes before all else
    if flags & names.hugetlb:
        _refuse_huge_pages(mm, addr, length, flags, None if not anonymous else offset)
    known = kind in (_ANONYMOUS_KINDS if anonymous else _FILE_KINDS)
    if not known or not anonymous:  # these errors come first
        start, end = find_place(mm, mm.tables.vmas, addr, length, flags, offset)
        _mlock_mode(mm, mm.tables, flags, end - start)
        if limit and offset + end - start > limit:
            raise error(errno.EOVERFLOW, f"mmap at offset {offset:#x} of a file")
    if not known:
        raise error(errno.EINVAL, f"flags {flags:#x} are neither MAP_SHARED nor MAP_PRIVATE")
    shared = kind != mman.MAP_PRIVATE
    backing: Backing
    if not anonymous:
        _check_validated(mm, flags & ~mman.MAP_SYNC)
        grows = mman.MAP_GROWSDOWN if flags & names.growsdown else 0
        backing = host_file(fd, flags & ~mman.MAP_GROWSDOWN | grows, prot, offset, mm.arch.page_size)
    else:
        backing = _anonymous(mm, shared, length)
    vma = VMA(0, 0, prot & RIGHTS, backing.max_prot, shared, backing, 0 if anonymous else offset)
    return map_backing(mm, addr, length, flags, vma, offset)


def map_object(
    mm: MemoryMap, addr: int, length: int, flags: int, mapped: MappedObject | Backing | None, template: VMA
) -> int:
    """See AddressSpace.map_object: ``template`` has its rights, offset and name."""
    addr, length, flags = check_int(addr, "addr"), check_int(length, "length"), check_int(flags, "flags")
    shared = flags & mman.MAP_TYPE != mman.MAP_PRIVATE
    if flags & mm.arch.map_flags.hugetlb:
        _refuse_huge_pages(mm, addr, length, flags, template.offset if mapped is None else None)
    _check_validated(mm, flags)
    template.shared = shared
    offset = template.offset
    if mapped is None:
        template.backing, template.offset = _anonymous(mm, shared, length), 0
    else:
        template.backing = object_backing(mapped, shared)
    return map_backing(mm, addr, length, flags, template, offset)


def _anonymous(mm: MemoryMap, shared: bool, length: int) -> Backing:
    if not shared or length <= 0:
        return mm.anonymous
    try:
        return SharedMemory(mm.arch.checked_page_round_up(length) or length)
    except (MemoryError, OverflowError):
        raise error(errno.ENOMEM, f"the host has no {length:#x} bytes of shared memory") from None


def map_backing(mm: MemoryMap, addr: int, length: int, flags: int, vma: VMA, offset: int) -> int:
    """Map what ``vma`` says where ``addr`` and ``flags`` say, and return the address. It becomes the mapping."""
    names, limits = mm.arch.map_flags, mm.limits
    vma.guard = mm.guard if flags & names.growsdown else 0
    if flags & names.stack:
        vma.advice_flags |= VM_NOHUGEPAGE  # since Linux 6.7: calc_vm_flag_bits(), include/linux/mman.h

    def build(change: Change) -> int:
        start, end = find_place(mm, change.vmas, addr, length, flags, offset)
        if change.mlock_future or flags & names.locked:
            vma.mlock_mode = _mlock_mode(mm, change, flags, end - start)
        if vma.guard and not vma.backing.anonymous:
            raise error(errno.EINVAL, "only private anonymous memory grows down")
        if vma.prot & ~vma.max_prot:
            raise error(errno.EACCES, f"prot {vma.prot:#x} is more than max_prot {vma.max_prot:#x}")
        if limits.address_limit is not None or limits.data_limit is not None:
            vma.start, vma.end = start, end
            there = sum([part.end - part.start for part in change.vmas.within(start, end)])
            if not limits.may_expand(change.vmas, vma, end - start - there):
                raise error(errno.ENOMEM, f"the address space may not grow by {end - start:#x} bytes")
        if change.vmas.count >= limits.max_map_count:
            mm.check_cut(change.vmas, start, end)
        vma.start, vma.end = start, end
        change.add(vma)
        return start

    start = mm.change(build)
    if vma.mlock_mode == MLOCK_EAGER or (flags & names.populate and not flags & names.nonblock):
        with suppress(OSError):  # of an object's: the mapping is made, and what cannot be had now may be later
            fault_in(mm, start, start + mm.arch.page_round_up(length))
    return start


def _mlock_mode(mm: MemoryMap, tables: Tables, flags: int, size: int) -> int:
    """How a new mapping of ``size`` bytes is locked. Raises OSError: EPERM, EAGAIN if it may not be."""
    mode = tables.mlock_future
    if flags & mm.arch.map_flags.locked:
        if mm.limits.memlock_limit == 0:
            raise error(errno.EPERM, "memory may not be locked")
        mode = max(mode, MLOCK_EAGER)
    if mode and not mm.limits.may_lock(tables.vmas, size):
        raise error(errno.EAGAIN, f"{size:#x} more bytes may not be locked")
    return mode


def _check_validated(mm: MemoryMap, flags: int) -> None:
    """Raise EOPNOTSUPP for flags that MAP_SHARED_VALIDATE does not know: LEGACY_MAP_MASK, include/linux/mman.h.

    MAP_SYNC is one of them, for no object is persistent memory.
    """
    if flags & mman.MAP_TYPE != mman.MAP_SHARED_VALIDATE:
        return
    names = mm.arch.map_flags
    known = mman.MAP_TYPE | names.fixed | names.anonymous | names.denywrite | names.executable | names.growsdown
    known |= names.locked | names.noreserve | names.populate | names.nonblock | names.stack | names.hugetlb
    known |= _HUGE_PAGE_SIZES | (names.map_32bit and names.map_32bit | mman.MAP_ABOVE4G)
    if flags & ~known:
        raise error(errno.EOPNOTSUPP, f"flags {flags & ~known:#x} with MAP_SHARED_VALIDATE")


def _refuse_huge_pages(mm: MemoryMap, addr: int, length: int, flags: int, offset: int | None) -> None:
    """Raise ENOMEM for MAP_HUGETLB, as a host does that has set no huge pages aside (vm.nr_hugepages).

    ``offset`` is None for a file. Raises EINVAL before it, as Linux, for a file, for an unknown size, and for a place
    or an offset that is not at a huge page. To Linux such memory is a file of its own: MAP_SHARED_VALIDATE is known.
    """
    arch, names = mm.arch, mm.arch.map_flags
    size = arch.huge_page_size
    if offset is None or flags >> mman.MAP_HUGE_SHIFT & mman.MAP_HUGE_MASK not in (0, arch.huge_page_shift):
        raise error(errno.EINVAL, f"flags {flags:#x}: a file has no huge pages, and the machine has {size:#x} bytes")
    length = (length + size - 1) & -size & arch.addr_mask
    fixed = flags & (names.fixed | names.fixed_noreplace)
    if fixed and addr & (size - 1) and length <= arch.max_addr:
        raise error(errno.EINVAL, f"address {addr:#x} is not at a huge page")
    start, end = find_place(mm, mm.tables.vmas, addr, length, flags, 0)
    _mlock_mode(mm, mm.tables, flags, end - start)
    if offset + end - start > LARGEST_FILE:
        raise error(errno.EOVERFLOW, f"mmap at offset {offset:#x} of huge pages")
    _check_validated(mm, flags)
    if flags & names.growsdown or flags & mman.MAP_TYPE not in _FILE_KINDS or offset & (size - 1):
        raise error(errno.EINVAL, f"flags {flags:#x} with MAP_HUGETLB at {start:#x}, offset {offset:#x}")
    raise error(errno.ENOMEM, f"there are no huge pages for {end - start:#x} bytes")


def munmap(mm: MemoryMap, addr: int, length: int) -> int:
    """See AddressSpace.munmap."""
    arch = mm.arch
    addr, length = check_int(addr, "addr"), check_int(length, "length")
    if arch.ignores_top_byte:
        addr = arch.untagged(addr)
    page = arch.page_size
    end = (addr + length + page - 1) & -page
    if addr & (page - 1) or length <= 0 or addr < 0 or end > arch.max_addr:
        raise error(errno.EINVAL, f"munmap of {length:#x} bytes at {addr:#x}")

    def build(change: Change) -> int:
        if change.vmas.count >= mm.limits.max_map_count:
            mm.check_cut(change.vmas, addr, end)
        change.unmap(addr, end)
        return 0

    return mm.change(build)


def check_offset(mm: MemoryMap, offset: int) -> None:
    """Raise EINVAL if an offset into a file is not page-aligned."""
    if not mm.arch.is_page_aligned(offset):
        raise error(errno.EINVAL, f"offset {offset:#x} is not page-aligned")


def find_place(mm: MemoryMap, vmas: VMASet, addr: int, length: int, flags: int, offset: int) -> tuple[int, int]:
    """Where a new mapping goes, with the checks of Linux's do_mmap in its order."""
    arch, names = mm.arch, mm.arch.map_flags
    if not length:
        raise error(errno.EINVAL, "mmap of length 0")
    size = (length + arch.page_size - 1) & -arch.page_size
    if size > arch.addr_mask or length < 0:
        raise error(errno.ENOMEM, f"mmap of {length:#x} bytes")
    if offset and (offset < 0 or (offset + size) >> arch.page_shift > arch.addr_mask):
        raise error(errno.EOVERFLOW, f"mmap at offset {offset:#x}")
    fixed = flags & (names.fixed | names.fixed_noreplace)
    if vmas.count > mm.limits.max_map_count:
        raise error(errno.ENOMEM, f"there are {len(vmas)} mappings")
    if size > arch.max_addr or (fixed and not 0 <= addr <= arch.max_addr - size):
        raise error(errno.ENOMEM, f"mmap of {length:#x} bytes at {addr:#x}")
    if not fixed:
        start = free_place(mm, vmas, addr, size, bool(flags & names.map_32bit))
        return start, start + size
    if not arch.is_page_aligned(addr):
        raise error(errno.EINVAL, f"address {addr:#x} is not page-aligned")
    if addr < arch.min_addr:
        raise error(errno.EPERM, f"address {addr:#x} is below {arch.min_addr:#x}")
    if flags & names.fixed_noreplace and not vmas.is_free(addr, addr + size):
        raise error(errno.EEXIST, f"something is mapped in {size:#x} bytes at {addr:#x}")
    return addr, addr + size


def free_place(mm: MemoryMap, vmas: VMASet, hint: int, size: int, low_only: bool = False) -> int:
    """Where ``size`` free bytes are: at the hint if they are there, else as high as can be, below the stack.

    ``low_only`` is for MAP_32BIT: in the first 2 GiB, and as low as can be in the second of them.
    """
    arch = mm.arch
    end = _LOW_END if low_only else arch.max_addr
    low = mm.lowest
    if hint >= arch.page_size:
        hint = max(arch.page_round_down(hint), low)
        if hint + size <= min(end, vmas.limit_from(hint)):
            return hint
    if low_only:
        start = vmas.lowest_gap(size, _LOW_START, _LOW_END)
    else:
        start = vmas.highest_gap(size, low, mm.base)
        if start is None:
            start = vmas.highest_gap(size, low, arch.max_addr)
    if start is None:
        raise error(errno.ENOMEM, f"no {size:#x} bytes are free")
    return start
