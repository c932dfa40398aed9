"""Calls about the bytes of mappings: madvise, msync, mincore.

Source: Linux mm/madvise.c, mm/msync.c, mm/mincore.c.
"""

from __future__ import annotations

import errno
from typing import Final

from hostarch import READ, WRITE, mman
from safemem.buffers import check_int
from usermem.host_file import FaultyPiece, HostFile
from usermem.mapping import Mappings, error
from usermem.residency import resident_pages
from usermem.shared_memory import SharedMemory
from usermem.vma import VMA

_HINTS: Final = frozenset(
    {
        mman.MADV_NORMAL,
        mman.MADV_RANDOM,
        mman.MADV_SEQUENTIAL,
        mman.MADV_WILLNEED,
        mman.MADV_DONTFORK,
        mman.MADV_DOFORK,
        mman.MADV_MERGEABLE,
        mman.MADV_UNMERGEABLE,
        mman.MADV_HUGEPAGE,
        mman.MADV_NOHUGEPAGE,
        mman.MADV_DONTDUMP,
        mman.MADV_DODUMP,
        mman.MADV_WIPEONFORK,
        mman.MADV_KEEPONFORK,
        mman.MADV_COLD,
        mman.MADV_PAGEOUT,
    }
)
"""Advice that changes no byte: it is checked and not followed."""

_POPULATING: Final = {mman.MADV_POPULATE_READ: READ, mman.MADV_POPULATE_WRITE: WRITE}

_DROPPING: Final = (mman.MADV_DONTNEED, mman.MADV_DONTNEED_LOCKED)


class AdviceCalls(Mappings):
    """The calls that leave the mappings as they are."""

    def madvise(self, addr: int, length: int, advice: int) -> int:
        """madvise(2): returns 0. MADV_DONTNEED makes private memory what it was when it was mapped.

        MADV_FREE may do so at any time, and does nothing here. MADV_REMOVE makes shared anonymous memory zero, for all
        who share it. Raises OSError as Linux: EINVAL; EACCES and EOPNOTSUPP of MADV_REMOVE; ENOMEM if a page is not
        mapped, after the rest was done, but EFAULT or ENOMEM at once of what places memory.
        """
        self._check_open()
        advice = check_int(advice, "advice")
        if advice not in _HINTS and advice not in (*_DROPPING, *_POPULATING, mman.MADV_FREE, mman.MADV_REMOVE):
            raise error(errno.EINVAL, f"madvise {advice}")
        addr, end = self._range(addr, length, "madvise", errno.EINVAL)
        if advice in _POPULATING:
            self._populate(addr, end, advice)
            return 0
        with self._lock:
            at = addr
            missing = False
            for vma in self._vmas.overlapping(addr, end):
                missing |= vma.start > at
                self._advise(vma, max(vma.start, addr), min(vma.end, end), advice)
                at = vma.end
            missing |= at < end
        if missing:
            raise error(errno.ENOMEM, f"madvise {advice}: not all of {end - addr:#x} bytes at {addr:#x} are mapped")
        return 0

    def _populate(self, start: int, end: int, advice: int) -> None:
        """Touch every page, as the guest would, in mappings with that very right; none grows by it."""
        access = _POPULATING[advice]
        with self._lock:
            stop = self._vmas.mapped_up_to(start, end)
            # The machine may grant reading with writing, populating does not.
            denied = next((vma for vma in self._vmas.overlapping(start, stop) if access & ~vma.prot), None)
        allowed = max(denied.start, start) if denied else stop
        fault = self._touch(start, allowed - start, access)
        if fault is not None:
            raise error(errno.EFAULT, f"the page at {fault.address:#x} cannot be placed")
        with self._lock:
            placed = all(piece.populate(advice) for piece in self._file_pieces(start, allowed))
        if not placed:
            raise error(errno.EFAULT, f"not all pages from {start:#x} on are in their file")
        if denied is not None:
            raise error(errno.EINVAL, f"the mapping at {denied.start:#x} does not allow {access}")
        if stop < end:
            raise error(errno.ENOMEM, f"nothing is mapped at {stop:#x}")

    def _file_pieces(self, start: int, end: int) -> list[FaultyPiece]:
        """What of [start, end) lies in files of the host's. Call it under the lock."""
        found = []
        for pma in self._pmas.overlapping(start, end):
            if isinstance(pma.host, FaultyPiece):
                at = pma.host.start - pma.start
                found.append(pma.host.part(max(start, pma.start) + at, min(end, pma.end) + at))
        return found

    def _advise(self, vma: VMA, start: int, end: int, advice: int) -> None:
        """Do it for [start, end) of one mapping."""
        if advice == mman.MADV_FREE and vma.mapped is not None:
            raise error(errno.EINVAL, "MADV_FREE is for private anonymous memory")
        if advice == mman.MADV_WIPEONFORK and vma.mapped is not None:
            raise error(errno.EINVAL, "MADV_WIPEONFORK is for private anonymous memory")
        if advice == mman.MADV_REMOVE:
            self._make_holes(vma, start, end)
        if advice in _DROPPING and isinstance(vma.mapped, HostFile) and not vma.shared:
            for piece in self._file_pieces(start, end):
                piece.drop()
        elif advice in _DROPPING and not vma.shared:
            # All pages of the places that are cut: their entries would keep what is given up.
            cut = self._pmas.overlapping(start, end)
            self._pmas.remove(start, end)
            self._pmas.reserve_part(vma, start, end)
            self._forget_places(cut)

    def _make_holes(self, vma: VMA, start: int, end: int) -> None:
        if vma.mapped is None:
            raise error(errno.EINVAL, "MADV_REMOVE is for shared memory that can have holes")
        if not vma.shared or not vma.max_prot & mman.PROT_WRITE:
            raise error(errno.EACCES, "MADV_REMOVE is for memory that may be written and is shared")
        if isinstance(vma.mapped, HostFile):
            for piece in self._file_pieces(start, end):
                piece.remove()
            return
        if not isinstance(vma.mapped, SharedMemory):
            raise error(errno.EOPNOTSUPP, "the object behind the mapping cannot have holes")
        offset = vma.offset - vma.start
        vma.mapped.zero(start + offset, end + offset)

    def msync(self, addr: int, length: int, flags: int) -> int:
        """msync(2): returns 0. Raises OSError as Linux: EINVAL; ENOMEM if a page is not mapped."""
        self._check_open()
        flags = check_int(flags, "flags")
        both = mman.MS_ASYNC | mman.MS_SYNC
        if flags & ~(both | mman.MS_INVALIDATE) or flags & both == both:
            raise error(errno.EINVAL, f"msync with flags {flags:#x}")
        if self.arch.addr_mask - self.arch.page_size < check_int(length, "length") - 1 < self.arch.addr_mask:
            length = 0  # in whole pages: it wraps, and the kernel does not look
        addr, end = self._range(addr, length, "msync", errno.ENOMEM)
        with self._lock:
            if self._vmas.mapped_up_to(addr, end) < end:
                raise error(errno.ENOMEM, f"msync: not all of {end - addr:#x} bytes at {addr:#x} are mapped")
            for piece in self._file_pieces(addr, end):
                piece.sync(flags)
        self._write_back(addr, end)
        return 0

    def mincore(self, addr: int, length: int) -> bytes:
        """mincore(2): a byte for each page, 1 if the host holds it in memory.

        Where the host cannot tell, it is 1 if the page has a place, and places are as large as windows.

        Raises OSError as Linux: EINVAL; ENOMEM if a page is not mapped.
        """
        self._check_open()
        addr, end = self._range(addr, length, "mincore", errno.ENOMEM)
        if end > self.arch.max_addr:
            raise error(errno.ENOMEM, f"mincore of {length:#x} bytes at {addr:#x}: beyond user space")
        size = self.arch.page_size
        with self._lock:
            if self._vmas.mapped_up_to(addr, end) < end:
                raise error(errno.ENOMEM, f"mincore: not all of {end - addr:#x} bytes at {addr:#x} are mapped")
            resident = bytearray((end - addr) // size)
            for pma in self._pmas.overlapping(addr, end):
                if pma.host is not None:
                    first, last = max(pma.start, addr), min(pma.end, end)
                    pages = resident_pages(pma, first, last, size)
                    resident[(first - addr) // size : (last - addr) // size] = pages
        return bytes(resident)

    def _range(self, addr: int, length: int, name: str, overflow: int) -> tuple[int, int]:
        """[addr, end) of whole pages. Raises OSError: EINVAL if addr is in a page, ``overflow`` for too much."""
        addr = self.arch.untagged(check_int(addr, "addr"))
        length = check_int(length, "length")
        if not self.arch.is_page_aligned(addr):
            raise error(errno.EINVAL, f"{name} at {addr:#x}")
        end = self.arch.checked_page_round_up(addr + length)
        if addr < 0 or length < 0 or end is None:
            raise error(overflow, f"{name} of {length:#x} bytes at {addr:#x}")
        return addr, end
