"""Mappings: the system calls that say what is mapped where, with Linux's arguments, order of checks and errnos.

Two tables hold the state: what the guest asked for (:mod:`usermem.vma`) and where its bytes are (:mod:`usermem.pma`).

Source: gVisor pkg/sentry/mm/syscalls.go; Linux mm/mmap.c, mm/vma.c, mm/mprotect.c.
"""

from __future__ import annotations

import errno
import os
import threading
from random import Random
from typing import TYPE_CHECKING, Final, NoReturn, Self

from hostarch import AMD64, ANY_ACCESS, READ, AccessType, Arch, mman
from safemem import BlockSeq
from safemem.buffers import check_int
from usermem.attached import Attached
from usermem.errors import FaultError
from usermem.host_file import HostFile
from usermem.object_pages import ObjectPages, shared_pages
from usermem.page_cache import PagedIO
from usermem.pma import PMA, WINDOW, PMASet
from usermem.residency import touch
from usermem.shared_memory import SharedMemory
from usermem.vma import VMA, MappedObject, VMASet

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

RIGHTS: Final = mman.PROT_READ | mman.PROT_WRITE | mman.PROT_EXEC
"""The rights a mapping can have."""

MAX_MAP_COUNT: Final = 65_530
"""How many mappings Linux allows by default: vm.max_map_count."""

STACK_LIMIT: Final = 8 << 20
"""How long Linux lets a stack grow by default, in bytes: RLIMIT_STACK."""

GUARD_PAGES: Final = 256
"""How many pages stay free below what grows down: stack_guard_gap, mm/mmap.c."""

# Linux leaves room for the stack between the mappings and the end of user space: MIN_GAP, arch/x86/mm/mmap.c.
_STACK_GAP: Final = 128 << 20

# Where MAP_32BIT maps: find_start_end(), arch/x86/kernel/sys_x86_64.c.
_LOW_START: Final = 0x4000_0000
_LOW_END: Final = 0x8000_0000


# How much is touched at most to populate a mapping: a guest that asks for more does not cost the host more.
_TOUCHED: Final = 1 << 30

# Where a file of the host's ends at most: MAX_LFS_FILESIZE.
_LARGEST_FILE: Final = (1 << 63) - 1

# What has its bytes in memory of its own, which all mappings of it share without help.
_OWN_MEMORY: Final = (SharedMemory, HostFile, Attached, ObjectPages)


class Mappings(PagedIO):
    """What an address space has mapped, and the calls that change it."""

    def __init__(
        self,
        arch: Arch = AMD64,
        *,
        max_map_count: int = MAX_MAP_COUNT,
        address_limit: int | None = None,
        stack_limit: int = STACK_LIMIT,
        seed: int | None = None,
    ) -> None:
        """``max_map_count`` is how many mappings there may be, ``address_limit`` how many bytes (RLIMIT_AS).

        ``stack_limit`` is how long a MAP_GROWSDOWN mapping may grow, in bytes (RLIMIT_STACK).

        With a ``seed`` mappings begin at an address that follows from it, as with address space layout randomisation.
        """
        super().__init__(arch)
        self.max_map_count = max_map_count
        self.address_limit = address_limit
        self.stack_limit = stack_limit
        self._base = arch.page_round_down(arch.max_addr - min(_STACK_GAP, arch.max_addr // 6))
        if seed is not None:
            self._base -= Random(seed).getrandbits(28 if arch.pointer_size == 8 else 8) << arch.page_shift
        self._lock = threading.RLock()
        self._vmas = VMASet(GUARD_PAGES << arch.page_shift)
        self._pmas = PMASet()
        self._closed = False

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: its memory is this process's")

    def close(self) -> None:
        """Unmap everything. Blocks and views that were handed out stay valid. A second close does nothing."""
        self._write_back(0, self.arch.max_addr)
        with self._lock:
            self._closed = True
            self._vmas = VMASet()
            self._pmas = PMASet()
            self._forget_pages()

    def mmap(self, addr: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        """mmap(2): map anonymous memory, or a file by its descriptor, and return its address.

        ``addr`` is a hint, or the place with MAP_FIXED or MAP_FIXED_NOREPLACE. Raises OSError: EINVAL, ENOMEM, EEXIST,
        EPERM, EACCES, EBADF, ENODEV, EOVERFLOW as Linux. A file of the host's may grow, shrink and
        be written by others meanwhile; where the host cannot copy memory that may fault it is ENODEV.
        """
        self._check_open()
        self._check_offset(offset)
        if not check_int(flags, "flags") & self.arch.map_flags.anonymous:
            return self._map_file(addr, length, prot, flags, check_int(fd, "fd"), offset)
        if flags & mman.MAP_TYPE not in (mman.MAP_SHARED, mman.MAP_PRIVATE):
            # Linux looks at the type after the place; the order shows only in which errno wins.
            self._place(addr, length, flags, offset)
            raise error(errno.EINVAL, f"flags {flags:#x} are neither MAP_SHARED nor MAP_PRIVATE")
        addr = self.map_object(addr, length, prot, flags, None, offset)
        if flags & self.arch.map_flags.populate:
            self._touch(addr, length, READ)  # a fault is nobody's: what cannot be accessed is not placed
        return addr

    def _touch(self, addr: int, length: int, access: AccessType) -> FaultError | None:
        """Place what can be accessed from addr on, have the host hold the first of it, and return what stopped it."""
        blocks, fault = self.resolve(addr, length, access)
        for block in BlockSeq(blocks).take_first(_TOUCHED):
            if not block.need_safecopy:
                touch(block.view())
        return fault

    def _map_file(self, addr: int, length: int, prot: int, flags: int, fd: int, offset: int) -> int:
        if fd < 0:
            raise error(errno.EBADF, f"fd {fd} of a mapping that is not MAP_ANONYMOUS")
        kind = flags & mman.MAP_TYPE
        os.fstat(fd)  # EBADF comes before all else
        self._place(addr, length, flags, offset)
        if kind not in (mman.MAP_SHARED, mman.MAP_PRIVATE, mman.MAP_SHARED_VALIDATE):
            raise error(errno.EINVAL, f"flags {flags:#x} are neither MAP_SHARED nor MAP_PRIVATE")
        if offset + length > _LARGEST_FILE:
            raise error(errno.EOVERFLOW, f"mmap at offset {offset:#x} of a file")
        file = HostFile(fd, kind != mman.MAP_PRIVATE, check_int(prot, "prot"))
        size = self.arch.page_round_up(length)
        file.prepare(offset, offset + size)  # before anything is unmapped: the host may refuse
        return self.map_object(addr, length, prot, flags, file, offset, file.max_prot)

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

        ``mapped`` None is anonymous memory. An object's pages are read when first touched. Shared mappings of one
        object have them in common, in all address spaces of this process; what is written there goes back into the
        object by msync, and when they are unmapped, if it has ``write_at``. A SharedMemory is mapped as it is. Raises
        OSError as :meth:`mmap`, and EACCES if ``prot`` is more than ``max_prot``.
        """
        self._check_open()
        self._check_offset(offset)
        prot = check_int(prot, "prot")
        max_prot = check_int(max_prot, "max_prot")
        shared = check_int(flags, "flags") & mman.MAP_TYPE != mman.MAP_PRIVATE
        if flags & self.arch.map_flags.fixed:
            self._write_back(*self._place(addr, length, flags, offset))  # it may take an object's place
        with self._lock:
            start, end = self._place(addr, length, flags, offset)
            growsdown = bool(flags & self.arch.map_flags.growsdown)
            if growsdown and (shared or mapped is not None):
                raise error(errno.EINVAL, "only private anonymous memory grows down")
            if prot & RIGHTS & ~max_prot:
                raise error(errno.EACCES, f"prot {prot:#x} is more than max_prot {max_prot:#x}")
            if mapped is None and shared:
                mapped, offset = SharedMemory(end - start), 0
            elif mapped is not None and shared and not isinstance(mapped, _OWN_MEMORY):
                mapped = shared_pages(mapped)
            offset = offset if mapped is not None else 0
            replaced = self._vmas.overlapping(start, end)
            there = sum(min(vma.end, end) - max(vma.start, start) for vma in replaced)
            if not self._may_expand(end - start - there):
                raise error(errno.ENOMEM, f"the address space may not grow by {end - start:#x} bytes")
            if replaced:
                self._check_cut(start, end)
                self._remove(start, end)
            self._add(VMA(start, end, prot & RIGHTS, max_prot, shared, growsdown, mapped, offset, name))
            return start

    def _add(self, vma: VMA) -> None:
        """Add a mapping where there is none."""
        before = self._vmas.find(vma.start - 1)
        self._vmas.add(vma)
        self._pmas.reserve(vma)
        if before is not None and self._vmas.find(vma.start - 1) is not before:
            # It goes on where its neighbour ended, whose cached pages end too early now.
            self._forget_pages(max(before.start, (vma.start - 1) & -WINDOW), vma.start)

    def _forget_places(self, places: list[PMA]) -> None:
        """Forget all pages of some places, neighbours in order: a run that is cached may reach as far as its place."""
        if places:
            self._forget_pages(places[0].start, places[-1].end)

    def _may_expand(self, length: int) -> bool:
        """Whether the limit allows so many more bytes."""
        return self.address_limit is None or length <= self.address_limit - sum(v.end - v.start for v in self._vmas)

    def _can_cut(self, start: int, end: int) -> bool:
        """Whether unmapping [start, end) leaves no more mappings than there may be."""
        vma = self._vmas.find(start)
        return len(self._vmas) < self.max_map_count or vma is None or vma.start == start or vma.end <= end

    def _check_cut(self, start: int, end: int) -> None:
        if not self._can_cut(start, end):
            raise error(errno.ENOMEM, f"there are {len(self._vmas)} mappings")

    def munmap(self, addr: int, length: int) -> int:
        """munmap(2): unmap all pages in the range, mapped or not, and return 0. Raises OSError: EINVAL as Linux."""
        self._check_open()
        addr = self.arch.untagged(check_int(addr, "addr"))
        length = check_int(length, "length")
        end = self.arch.checked_page_round_up(addr + length)
        if not self.arch.is_page_aligned(addr) or length <= 0 or addr < 0 or end is None or end > self.arch.max_addr:
            raise error(errno.EINVAL, f"munmap of {length:#x} bytes at {addr:#x}")
        self._write_back(addr, end)
        with self._lock:
            self._check_cut(addr, end)
            self._remove(addr, end)
        return 0

    def attach(self, addr: int, buffer: ReadableBuffer, prot: int = RIGHTS, flags: int = 0, name: str = "") -> int:
        """Map a buffer of the caller's, without a copy, and return where: both see what either writes.

        Its length must be a multiple of the page size. ``addr`` and ``flags`` are as for mmap; a read-only buffer never
        becomes writable. It is kept, and cannot be resized or closed, as long as something refers to its pages. Raises
        OSError as mmap, TypeError if it is no buffer, ValueError for its length.
        """
        attached = Attached(buffer)
        if not attached.size() or not self.arch.is_page_aligned(attached.size()):
            raise ValueError(f"buffer must be whole pages of {self.arch.page_size} bytes, not {attached.size()}")
        flags = flags & ~mman.MAP_TYPE | mman.MAP_SHARED
        prot &= attached.max_prot
        return self.map_object(addr, attached.size(), prot, flags, attached, 0, attached.max_prot, name)

    def _write_back(self, start: int, end: int) -> None:
        """Have the simulator's objects behind shared mappings of [start, end) get what was written there.

        Without the lock: it is their code.
        """
        with self._lock:
            found = [vma for vma in self._vmas.overlapping(start, end) if isinstance(vma.mapped, ObjectPages)]
        for vma in found:
            if isinstance(vma.mapped, ObjectPages):
                first, last = max(start, vma.start), min(end, vma.end)
                vma.mapped.sync(vma.offset + first - vma.start, vma.offset + last - vma.start)

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
            raise error(errno.EINVAL, f"mprotect of {addr:#x} to {prot:#x}")
        if not length:
            return 0
        end = self.arch.checked_page_round_up(addr + length)
        if end is None or addr < 0 or end <= addr:
            raise error(errno.ENOMEM, f"mprotect of {length:#x} bytes at {addr:#x}")
        if prot & ~(RIGHTS | mman.PROT_SEM | grows):
            raise error(errno.EINVAL, f"mprotect to {prot:#x}")
        with self._lock:
            if prot & grows:
                addr = self._growing_start(addr, end, prot)
            stop = self._vmas.mapped_up_to(addr, end)
            code = errno.ENOMEM
            for vma in self._vmas.overlapping(addr, stop):
                if prot & RIGHTS & ~vma.max_prot:
                    stop, code = max(vma.start, addr), errno.EACCES
                    break
            if stop > addr:
                first = self._vmas.find(addr)
                self._vmas.protect(addr, stop, prot & RIGHTS)
                # Before them, too, are pages from which a run reaches into the change, as far as its place goes.
                place = self._pmas.find(addr)
                begin = max(first.start, place.start) if first is not None and place is not None else addr
                self._forget_pages(begin, stop)
        if stop < end:
            raise error(code, f"mprotect stopped at {stop:#x}")
        return 0

    def _growing_start(self, addr: int, end: int, prot: int) -> int:
        """Where mprotect begins with PROT_GROWSDOWN: at the start of the growing mapping that addr lies in."""
        vma = self._vmas.first_from(addr)
        if vma is None or vma.start >= (end if prot & mman.PROT_GROWSDOWN else addr + 1):
            raise error(errno.ENOMEM, f"nothing is mapped at {addr:#x}")
        if prot & mman.PROT_GROWSUP or not vma.growsdown:
            raise error(errno.EINVAL, f"the mapping at {addr:#x} does not grow that way")
        return vma.start

    def _check_offset(self, offset: int) -> None:
        if not self.arch.is_page_aligned(check_int(offset, "offset")):
            raise error(errno.EINVAL, f"offset {offset:#x} is not page-aligned")

    def _place(self, addr: int, length: int, flags: int, offset: int) -> tuple[int, int]:
        """Where a new mapping goes, with the checks of Linux's do_mmap in its order."""
        arch, names = self.arch, self.arch.map_flags
        addr = check_int(addr, "addr")
        length = check_int(length, "length")
        if not length:
            raise error(errno.EINVAL, "mmap of length 0")
        size = arch.checked_page_round_up(length)
        if size is None or length < 0:
            raise error(errno.ENOMEM, f"mmap of {length:#x} bytes")
        if offset < 0 or (offset + size) >> arch.page_shift > arch.addr_mask:
            raise error(errno.EOVERFLOW, f"mmap at offset {offset:#x}")
        fixed = flags & (names.fixed | names.fixed_noreplace)
        if len(self._vmas) > self.max_map_count:
            raise error(errno.ENOMEM, f"there are {len(self._vmas)} mappings")
        if size > arch.max_addr or (fixed and not 0 <= addr <= arch.max_addr - size):
            raise error(errno.ENOMEM, f"mmap of {length:#x} bytes at {addr:#x}")
        with self._lock:
            if fixed:
                if not arch.is_page_aligned(addr):
                    raise error(errno.EINVAL, f"address {addr:#x} is not page-aligned")
                if addr < arch.min_addr:
                    raise error(errno.EPERM, f"address {addr:#x} is below {arch.min_addr:#x}")
                if flags & names.fixed_noreplace and self._vmas.overlapping(addr, addr + size):
                    raise error(errno.EEXIST, f"something is mapped in {size:#x} bytes at {addr:#x}")
                return addr, addr + size
            start = self._free_place(addr, size, bool(flags & names.map_32bit))
            return start, start + size

    def _free_place(self, hint: int, size: int, low_only: bool = False) -> int:
        """Where ``size`` free bytes are: at the hint if they are there, else as high as can be, below the stack.

        ``low_only`` is for MAP_32BIT: in the first 2 GiB, and as low as can be in the second of them.
        """
        arch = self.arch
        end = _LOW_END if low_only else arch.max_addr
        low = arch.page_round_up(arch.min_addr)
        hint = arch.page_round_down(hint)
        if hint > 0:
            hint = max(hint, low)
            if hint + size <= min(end, self._vmas.limit_from(hint)):
                return hint
        if low_only:
            start = self._vmas.find_low_gap(size, _LOW_START, _LOW_END)
        else:
            start = self._vmas.find_gap(size, low, self._base)
        if start is None and not low_only:
            start = self._vmas.find_gap(size, low, arch.max_addr)
        if start is None:
            raise error(errno.ENOMEM, f"no {size:#x} bytes are free")
        return start

    def _remove(self, start: int, end: int) -> None:
        """Unmap, and give up the memory too, with what was placed ahead in the free space around."""
        self._vmas.remove(start, end)
        low, _ = self._vmas.gap(start, 0, self.arch.max_addr)
        _, high = self._vmas.gap(end - 1, 0, self.arch.max_addr)
        # All pages of the places that are cut: their entries would keep what is given up, too.
        cut = self._pmas.overlapping(low, high)
        self._pmas.remove(*self._vmas.gap(start, 0, self.arch.max_addr))
        self._pmas.remove(*self._vmas.gap(end - 1, 0, self.arch.max_addr))
        self._forget_places(cut)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the address space is closed")

    def _check(self) -> None:
        """Raise AssertionError if the tables contradict each other: for stress tests."""
        with self._lock:
            self._vmas._check()
            self._pmas._check()


def error(code: int, what: str) -> OSError:
    """The OSError of a system call."""
    return OSError(code, f"{os.strerror(code)}: {what}")
