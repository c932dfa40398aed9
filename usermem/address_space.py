"""AddressSpace: guest memory that system calls map, and everything else copies.

Mapping calls take the arguments, constants and errnos of Linux's, so that a simulator's handler is one line. Two
tables hold the state: what the guest asked for (:mod:`usermem.vma`) and where its bytes are (:mod:`usermem.pma`).

Threads: map changes and the lookup of a page that is not cached hold a lock; copies do not. A copy sees each range
once, and may still land after a change that overtook it; the memory it lands in is not reused before it ends.

Source: gVisor pkg/sentry/mm (syscalls.go, io.go); Linux mm/mmap.c, mm/mprotect.c.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from hostarch import READ, READ_WRITE, WRITE, AccessType, AddrRangeSeq, mman
from safemem import Block, BlockSeq
from safemem.buffers import check_int
from usermem.advice import AdviceCalls
from usermem.errors import FaultError, FaultReason
from usermem.growth import Growth
from usermem.host_file import HostFile
from usermem.memory_io import check_io_range
from usermem.object_pages import ObjectPages
from usermem.page_cache import Entry
from usermem.pma import PMA
from usermem.remapping import Remappings
from usermem.shared_memory import HostPiece
from usermem.vma import VMA, format_maps

# The page cache knows what can be read and what can be written, which implies reading.
_CACHED: Final = (READ, WRITE, READ_WRITE)


# Of which spaces this thread runs a hook now.
_hooks = threading.local()


class AddressSpace(Remappings, AdviceCalls, Growth):
    """The memory of one guest. Starts empty; nothing it maps costs host memory until it is touched.

    Use it as a context manager, or close it: then it is empty for good, and what would map, unmap or look at memory
    raises ValueError.
    """

    on_fault: Callable[[int, AccessType], bool] | None = None
    """Called without a lock for the first byte that cannot be accessed, with its address and the access. It may map,
    protect, or fill what is missing, and returns whether to try again, which is done once."""

    def maps(self) -> str:
        """The mappings as the text of /proc/PID/maps."""
        with self._lock:
            return format_maps(self._vmas, self.arch.pointer_size)

    def mappings(self) -> list[VMA]:
        """The mappings as they are now, in the order of their addresses."""
        with self._lock:
            return list(self._vmas)

    def blocks(self, ars: AddrRangeSeq, access: AccessType = READ, *, ignore_permissions: bool = False) -> BlockSeq:
        """The host memory behind all of ars, for hashing, NumPy, an emulator. Raises FaultError if a byte is missing.

        Memory that is unmapped meanwhile stays readable through the blocks, and is reused only when the last block,
        view or array made from them is gone.
        """
        self._check_open()
        found, fault = self._resolve_seq(ars, access, ignore_permissions)
        if fault is not None:
            raise fault
        return BlockSeq(found)

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
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[list[Block], FaultError | None]:
        """See ResolvedIO.resolve. Fills the page cache."""
        self._check_open()
        tag = addr - self.arch.untagged(addr) if self.arch.ignores_top_byte else 0
        addr -= tag
        end = addr + length
        cached: dict[int, Entry] = {}
        if access in _CACHED and not ignore_permissions:
            cached = self._writable if access & WRITE else self._readable
        blocks: list[Block] = []
        hooked = -1
        while addr < end:
            entry = cached.get(addr >> 12)
            if entry is None:
                found = self._find(addr, access, ignore_permissions)
                if isinstance(found, FaultReason):
                    if addr != hooked and self._handled(addr + tag, access):
                        hooked = addr  # once: what faults again there is a fault
                        cached = self._writable if access & WRITE else self._readable
                        continue
                    return blocks, FaultError(addr + tag, access, found)
                entry = found
            stop = min(entry[1] + entry[2], end)
            blocks.append(entry[3].block(addr, stop - addr))
            addr = stop
        return blocks, None

    def _handled(self, addr: int, access: AccessType) -> bool:
        """Whether the simulator's hook has done something about a fault. What it itself touches is no hook's."""
        running: set[int] = _hooks.__dict__.setdefault("running", set())
        if self.on_fault is None or id(self) in running:
            return False
        running.add(id(self))
        try:
            return self.on_fault(addr, access)
        finally:
            running.remove(id(self))

    def _find(self, addr: int, access: int, ignore_permissions: bool) -> Entry | FaultReason:
        """Where addr's bytes are and how far the run goes, or why it cannot be accessed."""
        while True:
            with self._lock:
                vma = self._vmas.find(addr) or self._grow_down(addr)
                if vma is None:
                    return FaultReason.UNMAPPED
                rights = vma.max_prot if ignore_permissions else vma.prot
                if rights & (mman.PROT_WRITE | mman.PROT_EXEC):
                    rights |= mman.PROT_READ
                if access & ~rights:
                    return FaultReason.PERMISSION
            end = self._accessible_end(vma)
            if addr >= end:
                return FaultReason.BEYOND_FILE
            with self._lock:
                if self._vmas.find(addr) is not vma:
                    continue
                try:
                    pma = self._pmas.find(addr) or self._pmas.place(addr, self.arch.max_addr)
                    if pma.host is not None:
                        base = pma.start - pma.host.start
                        memory: Any = pma.host.memory  # None where nothing is cached
                        entry = (memory, base, min(end, pma.end) - base, pma)
                        # An object may shrink at any moment, so its pages are looked up each time.
                        if access in _CACHED and vma.is_steady and memory and not ignore_permissions:
                            self._remember_page(addr, entry, bool(access & WRITE))
                        return entry
                    if not isinstance(vma.mapped, ObjectPages):
                        filled = self._pmas.draft(pma, addr, end)
                except MemoryError:
                    return FaultReason.NO_MEMORY
            # The object is read without the lock, too.
            if isinstance(vma.mapped, ObjectPages):
                filled = _shared_window(vma.mapped, vma, pma, addr)
            elif vma.mapped is not None:
                vma.mapped.read_at(vma.offset + filled.start - vma.start, filled.view())
            with self._lock:
                if self._pmas.find(addr) is pma and self._vmas.find(addr) is vma:
                    self._pmas.replace(filled)

    def _accessible_end(self, vma: VMA) -> int:
        """Where the pages of a mapping end that its object has.

        Call it without the lock: an object is the simulator's code, may be slow, and may map and unmap.
        """
        if vma.mapped is None or isinstance(vma.mapped, HostFile):
            return vma.end
        size = check_int(vma.mapped.size(), "what size() returned") - vma.offset
        page = self.arch.page_size
        return min(vma.end, vma.start + -(-size // page) * page)


def _shared_window(pages: ObjectPages, vma: VMA, unread: PMA, addr: int) -> PMA:
    """The part of an unread PMA that lies in one window of an object's shared pages, with them."""
    offset = vma.offset + addr - vma.start
    piece = pages.piece(offset)
    first = addr - offset + pages.window_start(offset)  # where the window begins, in the guest
    start, end = max(unread.start, first, vma.start), min(unread.end, first + piece.end, vma.end)
    return PMA(start, end, HostPiece(piece.memory, start - first, end - first))
