"""Calls that move and resize what is mapped: mremap and brk.

Source: Linux mm/mremap.c, mm/mmap.c (brk).
"""

from __future__ import annotations

import errno
from typing import Final

from attrs import evolve

from hostarch import mman
from safemem.buffers import check_int
from usermem.mapping import Mappings, error
from usermem.pma import WINDOW
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
        """brk(2), the system call: have the heap end at addr if that can be, and return where it ends now."""
        self._check_open()
        addr = check_int(addr, "addr")
        with self._lock:
            old, new = (self.arch.checked_page_round_up(end) for end in (self._brk, addr))
            if addr < self._brk_start or old is None or new is None or new > self.arch.max_addr:
                return self._brk
            if new < old:
                self._remove(new, old)
            elif new > old:
                if self._vmas.overlapping(old, new) or not self._has_room(1, new - old):
                    return self._brk
                self._add(VMA(old, new, mman.PROT_READ | mman.PROT_WRITE, 7, False, name="[heap]"))
            self._brk = addr
            return addr

    def mremap(self, old_addr: int, old_size: int, new_size: int, flags: int = 0, new_addr: int = 0) -> int:
        """mremap(2): resize or move what is mapped, and return where it is now.

        ``old_size`` 0 maps shared memory a second time. Raises OSError as Linux: EINVAL; EFAULT if the range is not one
        mapping; ENOMEM if it cannot grow where it is and may not move, or nothing is free.
        """
        self._check_open()
        arch = self.arch
        flags = check_int(flags, "flags")
        old_addr, new_addr = arch.untagged(check_int(old_addr, "old_addr")), check_int(new_addr, "new_addr")
        fixed, keeps = bool(flags & mman.MREMAP_FIXED), bool(flags & mman.MREMAP_DONTUNMAP)
        old_len, new_len = (
            arch.checked_page_round_up(check_int(size, name))
            for size, name in ((old_size, "old_size"), (new_size, "new_size"))
        )
        if (
            flags & ~_FLAGS
            or ((fixed or keeps) and not flags & mman.MREMAP_MAYMOVE)
            or not arch.is_page_aligned(old_addr)
            or old_len is None
            or not new_len
            or (keeps and old_len != new_len)
        ):
            raise error(errno.EINVAL, f"mremap of {old_size:#x} bytes at {old_addr:#x} to {new_size:#x}, {flags:#x}")
        if (fixed or keeps) and (
            not arch.is_page_aligned(new_addr)
            or not 0 <= new_addr <= arch.max_addr - new_len
            or (fixed and old_addr + old_len > new_addr and new_addr + new_len > old_addr)
        ):
            raise error(errno.EINVAL, f"mremap to {new_addr:#x}")
        with self._lock:
            vma = self._vmas.find(old_addr)
            if vma is None:
                raise error(errno.EFAULT, f"nothing is mapped at {old_addr:#x}")
            if not (fixed or keeps):
                return self._resize(vma, old_addr, old_len, new_len, bool(flags & mman.MREMAP_MAYMOVE))
            if fixed:
                self._remove(new_addr, new_addr + new_len)
                if old_len > new_len:
                    self._remove(old_addr + new_len, old_addr + old_len)
                    old_len = new_len
                vma = self._vmas.find(old_addr)
                if vma is None:
                    raise error(errno.EFAULT, f"nothing is mapped at {old_addr:#x}")
            self._check_growth(vma, old_addr, old_len, new_len)
            to = new_addr if fixed else self._free_place(new_addr, new_len)
            return self._move(vma, old_addr, old_len, new_len, to, keeps)

    def _resize(self, vma: VMA, addr: int, old_len: int, new_len: int, may_move: bool) -> int:
        if old_len >= new_len:
            if old_len > new_len:
                self._remove(addr + new_len, addr + old_len)
            return addr
        self._check_growth(vma, addr, old_len, new_len)
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

    def _check_growth(self, vma: VMA, addr: int, old_len: int, new_len: int) -> None:
        if not old_len and not vma.shared:
            raise error(errno.EINVAL, "only shared memory can be mapped a second time")
        if old_len > vma.end - addr:
            raise error(errno.EFAULT, f"{old_len:#x} bytes at {addr:#x} are not one mapping")
        if new_len > old_len and not self._has_room(1, new_len - old_len):
            raise error(errno.ENOMEM, "the address space may not grow so much")

    def _move(self, vma: VMA, addr: int, old_len: int, new_len: int, to: int, keep: bool) -> int:
        """Map at ``to`` what is mapped at addr, with its bytes; what was there goes, unless it is to be kept, empty."""
        offset = vma.offset + addr - vma.start if vma.mapped is not None else 0
        moved = []
        if old_len and not isinstance(vma.mapped, SharedMemory):
            moved = self._pmas.remove(addr, addr + old_len)
            self._forget_pages(addr & -WINDOW, -(-(addr + old_len) // WINDOW) * WINDOW)
        if old_len and not keep:
            self._remove(addr, addr + old_len)
        elif old_len:
            self._pmas.reserve_part(vma, addr, addr + old_len)
        self._add(evolve(vma, start=to, end=to + new_len, offset=offset))
        self._pmas.move(moved, to - addr)
        return to
