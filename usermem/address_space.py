"""AddressSpace: guest memory that system calls map, and everything else copies.

Mapping calls take the arguments, constants and errnos of Linux's, so that a simulator's handler is one line. Two
tables hold the state: what the guest asked for (:mod:`usermem.vma`) and where its bytes are (:mod:`usermem.pma`).

Threads: map changes and the lookup of a page that is not cached hold a lock; copies do not. A copy sees each range
once, and may still land after a change that overtook it; the memory it lands in is not reused before it ends.

Source: gVisor pkg/sentry/mm (syscalls.go, io.go); Linux mm/mmap.c, mm/mprotect.c.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

from hostarch import AMD64, ANY_ACCESS, READ, READ_WRITE, WRITE, AccessType, AddrRangeSeq, Arch, mman
from safemem import Block, BlockSeq
from safemem.buffers import check_int
from usermem.errors import FaultError, FaultReason
from usermem.memory_io import DEFAULT_OPTS, IOOpts, check_io_range
from usermem.page_cache import Entry, PagedIO
from usermem.pma import WINDOW, PMASet
from usermem.vma import VMA, MappedObject, VMASet, format_maps

_RIGHTS: Final = mman.PROT_READ | mman.PROT_WRITE | mman.PROT_EXEC
# The page cache knows what can be read and what can be written, which implies reading.
_CACHED: Final = (READ, WRITE, READ_WRITE)
# Linux leaves room for the stack between the mappings and the end of user space: MIN_GAP, arch/x86/mm/mmap.c.
_STACK_GAP: Final = 128 << 20


class AddressSpace(PagedIO):
    """The memory of one guest. Starts empty; nothing it maps costs host memory until it is touched.

    Use it as a context manager, or close it: then it is empty for good, and what would map, unmap or look at memory
    raises ValueError.
    """

    def __init__(self, arch: Arch = AMD64) -> None:
        super().__init__(arch)
        self._lock = threading.RLock()
        self._vmas = VMASet()
        self._pmas = PMASet()
        self._closed = False

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap everything. Blocks and views that were handed out stay valid. A second close does nothing."""
        with self._lock:
            self._closed = True
            self._vmas = VMASet()
            self._pmas = PMASet()
            self._forget_pages()

    def mmap(self, addr: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        """mmap(2): map anonymous memory and return its address.

        ``addr`` is a hint, or the place with MAP_FIXED or MAP_FIXED_NOREPLACE. Raises OSError: EINVAL, ENOMEM, EEXIST,
        EPERM, EOVERFLOW as Linux, EBADF for a file mapping without a file, ENODEV for one with (files cannot be mapped
        by descriptor yet; see :meth:`map_object`).
        """
        self._check_open()
        self._check_offset(offset)
        if not check_int(flags, "flags") & self.arch.map_flags.anonymous:
            if fd < 0:
                raise _error(errno.EBADF, f"fd {fd} of a mapping that is not MAP_ANONYMOUS")
            raise _error(errno.ENODEV, f"fd {fd}: files cannot be mapped by descriptor")
        if flags & mman.MAP_TYPE not in (mman.MAP_SHARED, mman.MAP_PRIVATE):
            # Linux looks at the type after the place; the order shows only in which errno wins.
            self._place(addr, length, flags, offset)
            raise _error(errno.EINVAL, f"flags {flags:#x} are neither MAP_SHARED nor MAP_PRIVATE")
        return self.map_object(addr, length, prot, flags, None, offset)

    def map_object(
        self,
        addr: int,
        length: int,
        prot: int,
        flags: int,
        mapped: MappedObject | None,
        offset: int = 0,
        max_prot: int = ANY_ACCESS,
        name: str = "",
    ) -> int:
        """Map what a system call cannot say: an object of the simulator's, a limit to mprotect, a name for ``maps``.

        ``mapped`` None is anonymous memory. An object's pages are read when first touched, and written pages are not
        written back: a shared mapping is private to this space. Raises OSError as :meth:`mmap`,
        and EACCES if ``prot`` is more than ``max_prot``.
        """
        self._check_open()
        self._check_offset(offset)
        prot = check_int(prot, "prot")
        max_prot = check_int(max_prot, "max_prot")
        shared = check_int(flags, "flags") & mman.MAP_TYPE != mman.MAP_PRIVATE
        with self._lock:
            start, end = self._place(addr, length, flags, offset)
            growsdown = bool(flags & self.arch.map_flags.growsdown)
            if growsdown and (shared or mapped is not None):
                raise _error(errno.EINVAL, "only private anonymous memory grows down")
            if prot & _RIGHTS & ~max_prot:
                raise _error(errno.EACCES, f"prot {prot:#x} is more than max_prot {max_prot:#x}")
            vma = VMA(
                start,
                end,
                prot & _RIGHTS,
                max_prot,
                shared,
                growsdown,
                mapped,
                offset if mapped is not None else 0,
                name,
                object() if shared else None,
            )
            if self._vmas.overlapping(start, end):
                self._remove(start, end)
            before = self._vmas.find(start - 1)
            self._vmas.add(vma)
            self._pmas.reserve(vma)
            if before is not None and self._vmas.find(start - 1) is not before:
                # It goes on where its neighbour ended, whose cached pages end too early now.
                self._forget_pages(max(before.start, (start - 1) & -WINDOW), start)
            return start

    def munmap(self, addr: int, length: int) -> int:
        """munmap(2): unmap all pages in the range, mapped or not, and return 0. Raises OSError: EINVAL as Linux."""
        self._check_open()
        addr = self.arch.untagged(check_int(addr, "addr"))
        length = check_int(length, "length")
        end = self.arch.checked_page_round_up(addr + length)
        if not self.arch.is_page_aligned(addr) or length <= 0 or addr < 0 or end is None or end > self.arch.max_addr:
            raise _error(errno.EINVAL, f"munmap of {length:#x} bytes at {addr:#x}")
        with self._lock:
            self._remove(addr, end)
        return 0

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        """mprotect(2): change the rights of all pages in the range and return 0.

        Raises OSError as Linux: EINVAL; ENOMEM if a page is not mapped and EACCES if a right cannot be granted, each
        after the pages before it were changed.
        """
        self._check_open()
        addr = self.arch.untagged(check_int(addr, "addr"))
        length = check_int(length, "length")
        prot = check_int(prot, "prot")
        grows = mman.PROT_GROWSDOWN | mman.PROT_GROWSUP
        if prot & grows == grows or not self.arch.is_page_aligned(addr):
            raise _error(errno.EINVAL, f"mprotect of {addr:#x} to {prot:#x}")
        if not length:
            return 0
        end = self.arch.checked_page_round_up(addr + length)
        if end is None or addr < 0 or end <= addr:
            raise _error(errno.ENOMEM, f"mprotect of {length:#x} bytes at {addr:#x}")
        if prot & ~(_RIGHTS | mman.PROT_SEM | grows):
            raise _error(errno.EINVAL, f"mprotect to {prot:#x}")
        with self._lock:
            if prot & grows:
                addr = self._growing_start(addr, end, prot)
            stop = self._vmas.mapped_up_to(addr, end)
            code = errno.ENOMEM
            for vma in self._vmas.overlapping(addr, stop):
                if prot & _RIGHTS & ~vma.max_prot:
                    stop, code = max(vma.start, addr), errno.EACCES
                    break
            if stop > addr:
                first = self._vmas.find(addr)
                self._vmas.protect(addr, stop, prot & _RIGHTS)
                # Before them, too, are pages from which a run reaches into the change; no run is longer than a window.
                self._forget_pages(max(first.start if first is not None else 0, addr & -WINDOW), stop)
        if stop < end:
            raise _error(code, f"mprotect stopped at {stop:#x}")
        return 0

    def _growing_start(self, addr: int, end: int, prot: int) -> int:
        """Where mprotect begins with PROT_GROWSDOWN: at the start of the growing mapping that addr lies in."""
        vma = self._vmas.first_from(addr)
        if vma is None or vma.start >= (end if prot & mman.PROT_GROWSDOWN else addr + 1):
            raise _error(errno.ENOMEM, f"nothing is mapped at {addr:#x}")
        if prot & mman.PROT_GROWSUP or not vma.growsdown:
            raise _error(errno.EINVAL, f"the mapping at {addr:#x} does not grow that way")
        return vma.start

    def maps(self) -> str:
        """The mappings as the text of /proc/PID/maps."""
        with self._lock:
            return format_maps(self._vmas, self.arch.pointer_size)

    @contextmanager
    def blocks(self, ars: AddrRangeSeq, access: AccessType = READ, opts: IOOpts = DEFAULT_OPTS) -> Iterator[BlockSeq]:
        """The host memory behind all of ars, for hashing, NumPy, an emulator. Raises FaultError if a byte is missing.

        Inside the ``with`` the memory stays where it is. What is unmapped meanwhile stays readable through the blocks,
        and is reused only when the last block, view or array made from them is gone.
        """
        self._check_open()
        found, fault = self._resolve_seq(ars, access, opts)
        if fault is not None:
            raise fault
        yield BlockSeq(found)

    def range_fault(self, addr: int, length: int, access: AccessType) -> FaultError | None:
        """See ResolvedIO.range_fault."""
        if 0 <= addr <= addr + length <= self.arch.max_addr:
            return None
        self._check_open()
        try:
            check_io_range(addr, length, self.arch)
        except FaultError as exc:
            return FaultError(addr, access, exc.reason)
        return None

    def resolve(
        self, addr: int, length: int, access: AccessType, opts: IOOpts = DEFAULT_OPTS
    ) -> tuple[list[Block], FaultError | None]:
        """See ResolvedIO.resolve. Fills the page cache."""
        self._check_open()
        tag = addr - self.arch.untagged(addr) if self.arch.ignores_top_byte else 0
        addr -= tag
        end = addr + length
        cached: dict[int, Entry] = {}
        if access in _CACHED and not opts.ignore_permissions:
            cached = self._writable if access & WRITE else self._readable
        blocks: list[Block] = []
        while addr < end:
            entry = cached.get(addr >> 12)
            if entry is None:
                found = self._find(addr, access, opts.ignore_permissions)
                if isinstance(found, FaultReason):
                    return blocks, FaultError(addr + tag, access, found)
                entry = found
            stop = min(entry[1] + entry[2], end)
            blocks.append(entry[3].block(addr, stop - addr))
            addr = stop
        return blocks, None

    def _find(self, addr: int, access: int, ignore_permissions: bool) -> Entry | FaultReason:
        """Where addr's bytes are and how far the run goes, or why it cannot be accessed."""
        while True:
            with self._lock:
                vma = self._vmas.find(addr)
                if vma is None:
                    return FaultReason.UNMAPPED
                rights = vma.max_prot if ignore_permissions else vma.prot
                if rights & (mman.PROT_WRITE | mman.PROT_EXEC):
                    rights |= mman.PROT_READ
                if access & ~rights:
                    return FaultReason.PERMISSION
                end = vma.end
                if vma.mapped is not None:
                    end = min(end, vma.start + self.arch.page_round_up(vma.mapped.size()) - vma.offset)
                    if addr >= end:
                        return FaultReason.BEYOND_FILE
                try:
                    pma = self._pmas.find(addr) or self._pmas.place(addr, self.arch.max_addr)
                    if pma.host is not None:
                        base = pma.start - pma.host.start
                        entry = (pma.host.memory, base, min(end, pma.end) - base, pma)
                        # An object may shrink at any moment, so its pages are looked up each time.
                        if access in _CACHED and vma.mapped is None and not ignore_permissions:
                            self._remember_page(addr, entry, bool(access & WRITE))
                        return entry
                    filled = self._pmas.draft(pma, addr, end)
                except MemoryError:
                    return FaultReason.NO_MEMORY
            # The object is read without the lock: it is the simulator's code, may be slow, and may map and unmap.
            if vma.mapped is not None:
                vma.mapped.read_at(vma.offset + filled.start - vma.start, filled.view())
            with self._lock:
                if self._pmas.find(addr) is pma and self._vmas.find(addr) is vma:
                    self._pmas.replace(filled)

    def _check_offset(self, offset: int) -> None:
        if not self.arch.is_page_aligned(check_int(offset, "offset")):
            raise _error(errno.EINVAL, f"offset {offset:#x} is not page-aligned")

    def _place(self, addr: int, length: int, flags: int, offset: int) -> tuple[int, int]:
        """Where a new mapping goes, with the checks of Linux's do_mmap in its order."""
        arch, names = self.arch, self.arch.map_flags
        addr = check_int(addr, "addr")
        length = check_int(length, "length")
        if not length:
            raise _error(errno.EINVAL, "mmap of length 0")
        size = arch.checked_page_round_up(length)
        if size is None or length < 0:
            raise _error(errno.ENOMEM, f"mmap of {length:#x} bytes")
        if offset < 0 or (offset + size) >> arch.page_shift > arch.addr_mask:
            raise _error(errno.EOVERFLOW, f"mmap at offset {offset:#x}")
        fixed = flags & (names.fixed | names.fixed_noreplace)
        if size > arch.max_addr or (fixed and not 0 <= addr <= arch.max_addr - size):
            raise _error(errno.ENOMEM, f"mmap of {length:#x} bytes at {addr:#x}")
        with self._lock:
            if fixed:
                if not arch.is_page_aligned(addr):
                    raise _error(errno.EINVAL, f"address {addr:#x} is not page-aligned")
                if addr < arch.min_addr:
                    raise _error(errno.EPERM, f"address {addr:#x} is below {arch.min_addr:#x}")
                if flags & names.fixed_noreplace and self._vmas.overlapping(addr, addr + size):
                    raise _error(errno.EEXIST, f"something is mapped in {size:#x} bytes at {addr:#x}")
                return addr, addr + size
            low = arch.page_round_up(arch.min_addr)
            hint = arch.page_round_down(addr)
            if hint > 0:
                hint = max(hint, low)
                if hint + size <= arch.max_addr and not self._vmas.overlapping(hint, hint + size):
                    return hint, hint + size
            base = arch.page_round_down(arch.max_addr - min(_STACK_GAP, arch.max_addr // 6))
            start = self._vmas.find_gap(size, low, base)
            if start is None:
                start = self._vmas.find_gap(size, low, arch.max_addr)
            if start is None:
                raise _error(errno.ENOMEM, f"no {size:#x} bytes are free")
            return start, start + size

    def _remove(self, start: int, end: int) -> None:
        """Unmap, and give up the memory too, with what was placed ahead in the free space around."""
        self._vmas.remove(start, end)
        low, _ = self._vmas.gap(start, 0, self.arch.max_addr)
        _, high = self._vmas.gap(end - 1, 0, self.arch.max_addr)
        # All pages of the places that are cut: their entries would keep what is given up, too.
        cut = self._pmas.overlapping(low, high)
        self._pmas.remove(*self._vmas.gap(start, 0, self.arch.max_addr))
        self._pmas.remove(*self._vmas.gap(end - 1, 0, self.arch.max_addr))
        if cut:
            self._forget_pages(cut[0].start, cut[-1].end)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the address space is closed")

    def _check(self) -> None:
        """Raise AssertionError if the tables contradict each other: for stress tests."""
        with self._lock:
            self._vmas._check()
            self._pmas._check()


def _error(code: int, what: str) -> OSError:
    return OSError(code, f"{os.strerror(code)}: {what}")
