"""Calls that move and resize what is mapped: mremap and brk.

Source: Linux mm/mremap.c, mm/mmap.c (brk).
"""

from __future__ import annotations

import errno
from typing import Final

from attrs import evolve

from hostarch import ANY_ACCESS, mman
from safemem.buffers import check_int
from usermem.mapping import Mappings, error
from usermem.shared_memory import SharedMemory
from usermem.vma import VMA

_FLAGS: Final = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED | mman.MREMAP_DONTUNMAP


class Remappings(Mappings):
    """The calls that move and resize mappings, and the heap."""

    _brk_start = 0
    _brk = 0

    def set_brk(self, start: int) -> None:
        """Have the heap begin at ``start``, empty, as a program's loader does. What was heap before stays mapped."""
        self._check_open()
        self._brk_start = self._brk = check_int(start, "start")

    def brk(self, addr: int) -> int:
        """brk(2), the system call: have the heap end at addr if that can be, and return where it ends now.

        A page stays free between the heap and what is mapped above it.
        """
        self._check_open()
        addr = check_int(addr, "addr")
        with self._lock:
            old, new = (self.arch.checked_page_round_up(end) for end in (self._brk, addr))
            if addr < self._brk_start or old is None or new is None or new > self.arch.max_addr:
                return self._brk
            if new < old:
                if not self._vmas.overlapping(new, old) or not self._can_cut(new, old):
                    return self._brk
                self._remove(new, old)
            elif new > old:
                room = self._vmas.limit_from(old) - self.arch.page_size
                if new > room or not self._may_expand(new - old) or len(self._vmas) > self.max_map_count:
                    return self._brk
                self._add(VMA(old, new, mman.PROT_READ | mman.PROT_WRITE, ANY_ACCESS, False, name="[heap]"))
            self._brk = addr
            return addr

    def mremap(self, old_addr: int, old_size: int, new_size: int, flags: int = 0, new_addr: int = 0) -> int:
        """mremap(2): resize or move what is mapped, and return where it is now.

        ``old_size`` 0 maps shared memory a second time. With MREMAP_FIXED and no change of size there may be several
        mappings in the range, with holes between them, as since Linux 6.17. Raises OSError as Linux: EINVAL; EFAULT if
        nothing is mapped at ``old_addr``, or the range is not one mapping; ENOMEM if it cannot grow where it is and may
        not move, nothing is free, or a limit is reached.
        """
        self._check_open()
        flags = check_int(flags, "flags")
        old_addr = self.arch.untagged(check_int(old_addr, "old_addr"))
        new_addr = check_int(new_addr, "new_addr")
        fixed, keeps = bool(flags & mman.MREMAP_FIXED), bool(flags & mman.MREMAP_DONTUNMAP)
        old_len, new_len = self._rounded(old_size, "old_size"), self._rounded(new_size, "new_size")
        self._check_arguments(old_addr, old_len, new_len, flags, new_addr)
        if new_len < old_len:
            self._write_back(old_addr + new_len, old_addr + old_len)
        if fixed:
            self._write_back(new_addr, new_addr + new_len)
        with self._lock:
            if (fixed or keeps) and len(self._vmas) + 2 >= self.max_map_count - 3:
                raise error(errno.ENOMEM, f"there are {len(self._vmas)} mappings")
            if fixed and old_len == new_len:
                return self._move_all(old_addr, old_len, new_addr, keeps)
            vma = self._vmas.find(old_addr)
            if vma is None:
                raise error(errno.EFAULT, f"nothing is mapped at {old_addr:#x}")
            if fixed or keeps or new_len > old_len:
                self._check_range(vma, old_addr, old_len, new_len)
            if fixed or keeps:
                return self._move_to(vma, old_addr, old_len, new_len, new_addr, fixed, keeps)
            return self._resize(vma, old_addr, old_len, new_len, bool(flags & mman.MREMAP_MAYMOVE))

    def _rounded(self, size: int, name: str) -> int:
        """A size in whole pages; as in the kernel, what wraps is 0."""
        return (check_int(size, name) + self.arch.page_size - 1) & self.arch.addr_mask & -self.arch.page_size

    def _check_arguments(self, old_addr: int, old_len: int, new_len: int, flags: int, new_addr: int) -> None:
        arch = self.arch
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

    def _check_range(self, vma: VMA, addr: int, old_len: int, new_len: int) -> None:
        """Linux's check_prep_vma: what must be so where a mapping moves or grows."""
        if not old_len and not vma.shared:
            raise error(errno.EINVAL, "only shared memory can be mapped a second time")
        if min(old_len, new_len) > vma.end - addr:
            raise error(errno.EFAULT, f"{old_len:#x} bytes at {addr:#x} are not one mapping")
        if new_len > old_len and not self._may_expand(new_len - old_len):
            raise error(errno.ENOMEM, "the address space may not grow so much")

    def _move_all(self, addr: int, length: int, to: int, keep: bool) -> int:
        """Move the mappings in a range, each to where it is as far from the others as before."""
        vmas = self._vmas.overlapping(addr, addr + length)
        if not vmas or vmas[0].start > addr:
            raise error(errno.EFAULT, f"nothing is mapped at {addr:#x}")
        for vma in vmas:
            start, end = max(vma.start, addr), min(vma.end, addr + length)
            self._move_to(vma, start, end - start, end - start, to + start - addr, True, keep)
        return to

    def _move_to(self, vma: VMA, addr: int, old_len: int, new_len: int, to: int, fixed: bool, keep: bool) -> int:
        if fixed:
            self._check_cut(to, to + new_len)
            self._remove(to, to + new_len)
            found = self._vmas.find(addr)  # what was unmapped may have been next to it, or, if it has no length, itself
            if found is None:
                raise error(errno.EFAULT, f"nothing is mapped at {addr:#x}")
            vma = found
        if old_len > new_len:
            if addr + old_len > self.arch.max_addr:  # the target is gone by now, in Linux too
                raise error(errno.EINVAL, f"{old_len:#x} bytes at {addr:#x} reach beyond user space")
            self._remove(addr + new_len, addr + old_len)
            old_len = new_len
            vma = self._vmas.find(addr) or vma
        if keep and not self._may_expand(old_len):
            raise error(errno.ENOMEM, "the address space may not grow so much")
        return self._move(vma, addr, old_len, new_len, to if fixed else self._free_place(to, new_len), keep)

    def _resize(self, vma: VMA, addr: int, old_len: int, new_len: int, may_move: bool) -> int:
        if old_len >= new_len:
            if addr + old_len > self.arch.max_addr:
                raise error(errno.EINVAL, f"{old_len:#x} bytes at {addr:#x} reach beyond user space")
            if old_len > new_len:
                self._check_cut(addr + new_len, addr + old_len)
                self._remove(addr + new_len, addr + old_len)
            return addr
        end = addr + new_len
        if vma.end == addr + old_len and end <= self.arch.max_addr and not self._vmas.overlapping(vma.end, end):
            more = evolve(vma, start=vma.end, end=end)
            if vma.mapped is not None:
                more = evolve(more, offset=vma.offset + vma.end - vma.start)
            self._add(more)
            return addr
        if not may_move:
            raise error(errno.ENOMEM, f"no room to grow to {new_len:#x} bytes at {addr:#x}")
        return self._move(vma, addr, old_len, new_len, self._free_place(0, new_len), keep=False)

    def _move(self, vma: VMA, addr: int, old_len: int, new_len: int, to: int, keep: bool) -> int:
        """Map at ``to`` what is mapped at addr, with its bytes; what was there goes, unless it is to be kept, empty."""
        if len(self._vmas) >= self.max_map_count - 3:
            raise error(errno.ENOMEM, f"there are {len(self._vmas)} mappings")
        offset = vma.offset + addr - vma.start if vma.mapped is not None else 0
        moved = []
        if old_len and not isinstance(vma.mapped, SharedMemory):
            cut = self._pmas.overlapping(addr, addr + old_len)
            moved = self._pmas.remove(addr, addr + old_len)
            self._forget_places(cut)
        if old_len and not keep:
            self._remove(addr, addr + old_len)
        elif old_len:
            self._pmas.reserve_part(vma, addr, addr + old_len)
        self._add(evolve(vma, start=to, end=to + new_len, offset=offset))
        self._pmas.move(moved, to - addr)
        return to
