"""mprotect(2), and the names that prctl(2) gives to mappings.

Source: Linux mm/mprotect.c; mm/madvise.c (madvise_set_anon_name), kernel/sys.c (prctl_set_vma).
"""

from __future__ import annotations

import errno

from hostarch import mman
from safemem.buffers import check_int
from safemem.errors import error
from usermem.mm.change import Change
from usermem.mm.memory_map import MemoryMap
from usermem.mm.mmap import RIGHTS
from usermem.mm.vma import VMASet

_NAME_MAX = 80  # ANON_VMA_NAME_MAX_LEN, with the NUL
_GROWS = mman.PROT_GROWSDOWN | mman.PROT_GROWSUP
_KNOWN = RIGHTS | mman.PROT_SEM | _GROWS


def mprotect(mm: MemoryMap, addr: int, length: int, prot: int) -> int:
    """See AddressSpace.mprotect."""
    arch = mm.arch
    addr, length, prot = check_int(addr, "addr"), check_int(length, "length"), check_int(prot, "prot")
    if arch.ignores_top_byte:
        addr = arch.untagged(addr)
    if prot & _GROWS == _GROWS or addr & (arch.page_size - 1):
        raise error(errno.EINVAL, f"mprotect of {addr:#x} to {prot:#x}")
    if not length:
        return 0
    end = (addr + length + arch.page_size - 1) & -arch.page_size
    if end > arch.addr_mask or addr < 0 or end <= addr:
        raise error(errno.ENOMEM, f"mprotect of {length:#x} bytes at {addr:#x}")
    if prot & ~_KNOWN:
        raise error(errno.EINVAL, f"mprotect to {prot:#x}")

    def build(change: Change) -> tuple[int, int]:
        start = _growing_start(change.vmas, addr, end, prot) if prot & _GROWS else addr
        stop, code, data, before = start, errno.ENOMEM, 0, change.vmas.count
        around = change.vmas.overlapping(start - 1, end + 1)
        for vma in around:
            if vma.end <= start:
                continue
            if vma.start > stop or stop == end:
                break
            if prot & RIGHTS & ~vma.max_prot:
                code = errno.EACCES
                break
            if prot & mman.PROT_WRITE and mm.limits.data_limit is not None and vma.may_become_data:
                data += min(vma.end, end) - max(vma.start, start)
                if not mm.limits.may_have_data(change.vmas, data):
                    break
            stop = vma.end if vma.end < end else end
        if stop == end:
            change.protect(start, end, prot & RIGHTS, around)
        elif stop > start:
            change.protect(start, stop, prot & RIGHTS)
        mm.check_splits(change, before)
        return stop, code

    stop, code = mm.change(build)
    if stop < end:
        raise error(code, f"mprotect stopped at {stop:#x}")
    return 0


def _growing_start(vmas: VMASet, addr: int, end: int, prot: int) -> int:
    """Where mprotect begins with PROT_GROWSDOWN: at the start of the growing mapping that addr lies in."""
    vma = vmas.first_from(addr)
    if vma is None or vma.start >= (end if prot & mman.PROT_GROWSDOWN else addr + 1):
        raise error(errno.ENOMEM, f"nothing is mapped at {addr:#x}")
    if prot & mman.PROT_GROWSUP or not vma.growsdown:
        raise error(errno.EINVAL, f"the mapping at {addr:#x} does not grow that way")
    return vma.start


def set_name(mm: MemoryMap, addr: int, length: int, name: str | None) -> int:
    """See AddressSpace.set_name."""
    addr = mm.arch.untagged(check_int(addr, "addr"))
    length = check_int(length, "length")
    if name is not None:
        printable = all(" " <= char <= "~" and char not in "\\`$[]" for char in name)
        if not printable or len(name) >= _NAME_MAX:
            raise error(errno.EINVAL, f"the name {name!r}: at most 79 printable characters, none of \\ ` $ [ ]")
    end = mm.arch.checked_page_round_up(addr + length)
    if not mm.arch.is_page_aligned(addr) or addr < 0 or length < 0 or end is None:
        raise error(errno.EINVAL, f"naming {length:#x} bytes at {addr:#x}")

    def build(change: Change) -> tuple[int, int]:
        at, missing, before = addr, False, change.vmas.count
        for vma in change.vmas.within(addr, end):
            missing |= vma.start > at
            form = vma.backing.name_format
            if form is None:  # what came before it has its name
                return errno.EBADF, vma.start
            change.rename(vma.start, vma.end, form.format(name) if name is not None else "")
            mm.check_splits(change, before)
            at = vma.end
        return errno.ENOMEM * (missing or at < end), at

    code, stop = mm.change(build)
    if code:
        raise error(code, f"naming stopped at {stop:#x}: " + ("a file" if code == errno.EBADF else "not all is mapped"))
    return 0
