"""mremap(2): resize and move mappings.

Source: Linux mm/mremap.c.
"""

from __future__ import annotations

import errno
from typing import Final

from hostarch import mman
from safemem.buffers import check_int
from safemem.errors import error
from usermem.mm.change import Change
from usermem.mm.madvise import fault_in
from usermem.mm.memory_map import MemoryMap
from usermem.mm.mmap import free_place
from usermem.mm.vma import MLOCK_EAGER, VMA

_FLAGS: Final = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED | mman.MREMAP_DONTUNMAP


def mremap(mm: MemoryMap, old_addr: int, old_size: int, new_size: int, flags: int, new_addr: int) -> int:
    """See AddressSpace.mremap."""
    flags = check_int(flags, "flags")
    old_addr = mm.arch.untagged(check_int(old_addr, "old_addr"))
    new_addr = check_int(new_addr, "new_addr")
    old_len, new_len = _rounded(mm, old_size, "old_size"), _rounded(mm, new_size, "new_size")
    _check_arguments(mm, old_addr, old_len, new_len, flags, new_addr)
    call = _Call(mm, old_addr, old_len, new_len, flags, new_addr)
    addr = mm.change(call.run)
    vma = mm.tables.vmas.find(addr) if new_len > old_len else None
    if vma is not None and vma.mlock_mode == MLOCK_EAGER and vma.backing.steady:
        fault_in(mm, addr + old_len, addr + new_len)  # best effort
    return addr


def _rounded(mm: MemoryMap, size: int, name: str) -> int:
    """A size in whole pages; as in the kernel, one that wraps is 0."""
    return (check_int(size, name) + mm.arch.page_size - 1) & mm.arch.addr_mask & -mm.arch.page_size


def _check_arguments(mm: MemoryMap, old_addr: int, old_len: int, new_len: int, flags: int, new_addr: int) -> None:
    arch = mm.arch
    fixed, keeps = flags & mman.MREMAP_FIXED, flags & mman.MREMAP_DONTUNMAP
    if flags & ~_FLAGS or not arch.is_page_aligned(old_addr) or not 0 < new_len <= arch.max_addr:
        raise error(errno.EINVAL, f"mremap of {old_addr:#x} to {new_len:#x} bytes, flags {flags:#x}")
    if not fixed and not keeps:
        return
    if (
        not flags & mman.MREMAP_MAYMOVE
        or (keeps and old_len != new_len)
        or not arch.is_page_aligned(new_addr)
        or not 0 <= new_addr <= arch.max_addr - new_len
        or ((old_addr + old_len) & arch.addr_mask > new_addr and new_addr + new_len > old_addr)
    ):
        raise error(errno.EINVAL, f"mremap of {old_len:#x} bytes at {old_addr:#x} to {new_addr:#x}, {flags:#x}")


class _Call:
    """One call, its arguments checked; lengths in whole pages."""

    def __init__(self, mm: MemoryMap, addr: int, old_len: int, new_len: int, flags: int, to: int) -> None:
        self.mm = mm
        self.addr = addr
        self.old_len = old_len
        self.new_len = new_len
        self.may_move = bool(flags & mman.MREMAP_MAYMOVE)
        self.keeps = bool(flags & mman.MREMAP_DONTUNMAP)
        self.to = to if flags & mman.MREMAP_FIXED else None
        self.hint = to if self.keeps else 0

    def run(self, change: Change) -> int:
        """Make the change, and return where the memory is then."""
        goes = self.to is not None or self.keeps
        if goes and len(change.vmas) + 2 >= self.mm.limits.max_map_count - 3:
            raise error(errno.ENOMEM, f"there are {len(change.vmas)} mappings")
        if self.to is not None and self.old_len == self.new_len:
            return self._move_all(change, self.to)
        vma = change.vmas.find(self.addr)
        if vma is None:
            raise error(errno.EFAULT, f"nothing is mapped at {self.addr:#x}")
        if goes or self.new_len > self.old_len:
            self._check_range(change, vma)
        if goes:
            return self._move_to(change, vma, (self.addr, self.old_len, self.new_len), self.to)
        return self._resize(change, vma)

    def _check_range(self, change: Change, vma: VMA) -> None:
        """Linux's check_prep_vma: what must be so where a mapping moves or grows."""
        if not self.old_len and not vma.shared:
            raise error(errno.EINVAL, "only shared memory can be mapped a second time")
        if min(self.old_len, self.new_len) > vma.end - self.addr:
            raise error(errno.EFAULT, f"{self.old_len:#x} bytes at {self.addr:#x} are not one mapping")
        more = self.new_len - self.old_len
        if more > 0 and vma.mlock_mode and not self.mm.limits.may_lock(change.vmas, more):
            raise error(errno.EAGAIN, f"{more:#x} more bytes may not be locked")
        if more > 0 and not self.mm.limits.may_expand(change.vmas, vma, more):
            raise error(errno.ENOMEM, "the address space may not grow so much")

    def _move_all(self, change: Change, to: int) -> int:
        """Move the mappings in a range, each to where it is as far from the others as before."""
        end = self.addr + self.old_len
        vmas = change.vmas.overlapping(self.addr, end)
        if not vmas or vmas[0].start > self.addr:
            raise error(errno.EFAULT, f"nothing is mapped at {self.addr:#x}")
        for vma in vmas:
            start, length = max(vma.start, self.addr), min(vma.end, end) - max(vma.start, self.addr)
            self._move_to(change, vma, (start, length, length), to + start - self.addr)
        return to

    def _move_to(self, change: Change, vma: VMA, part: tuple[int, int, int], to: int | None) -> int:
        """Move (address, old length, new length) of a mapping to ``to``, or to where there is room."""
        addr, old_len, new_len = part
        if to is not None:
            if to < self.mm.arch.min_addr:
                raise error(errno.EPERM, f"address {to:#x} is below {self.mm.arch.min_addr:#x}")
            self.mm.check_cut(change.vmas, to, to + new_len)
            change.unmap(to, to + new_len)
            found = change.vmas.find(addr)  # the target may have been next to it or, if it has no length, itself
            if found is None:
                raise error(errno.EFAULT, f"nothing is mapped at {addr:#x}")
            vma = found
        if old_len > new_len:
            self._check_end(addr + old_len)
            change.unmap(addr + new_len, addr + old_len)
            old_len = new_len
            vma = change.vmas.find(addr) or vma
        if self.keeps and not self.mm.limits.may_expand(change.vmas, vma, old_len):
            raise error(errno.ENOMEM, "the address space may not grow so much")
        return self._move(change, vma, (addr, old_len, new_len), to)

    def _resize(self, change: Change, vma: VMA) -> int:
        addr, old_end, end = self.addr, self.addr + self.old_len, self.addr + self.new_len
        if self.old_len >= self.new_len:
            self._check_end(old_end)
            if old_end > end:
                self.mm.check_cut(change.vmas, end, old_end)
                change.unmap(end, old_end)
            return addr
        free = end <= self.mm.arch.max_addr and change.vmas.is_free(vma.end, end)
        if vma.end == old_end and free:
            change.add(vma.over(vma.end, end, vma.prot))
            return addr
        if not self.may_move:
            raise error(errno.ENOMEM, f"no room to grow to {self.new_len:#x} bytes at {addr:#x}")
        return self._move(change, vma, (addr, self.old_len, self.new_len), None)

    def _check_end(self, end: int) -> None:
        if end > self.mm.arch.max_addr:
            raise error(errno.EINVAL, f"the {self.old_len:#x} bytes at {self.addr:#x} reach beyond user space")

    def _move(self, change: Change, vma: VMA, part: tuple[int, int, int], to: int | None) -> int:
        addr, old_len, new_len = part
        if to is None:
            to = free_place(self.mm, change.vmas, self.hint, new_len)
        if len(change.vmas) >= self.mm.limits.max_map_count - 3:
            raise error(errno.ENOMEM, f"there are {len(change.vmas)} mappings")
        change.move(vma, (addr, addr + old_len), (to, to + new_len), self.keeps)
        return to
