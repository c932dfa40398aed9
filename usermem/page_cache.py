"""PagedIO: an IO that remembers where pages are, so that a short copy costs one dict lookup and one slice.

The cache maps a page number (4 KiB pages, whatever the machine's are) to an entry: the host memory, what to subtract
from an address to get an offset in it, the offset where the run of pages ends, and what keeps the memory alive. Pages
that may be read and pages that may be written have a dict each, so that the permission check is the lookup.

Coherence: ``resolve`` fills the dicts under the lock that map changes hold. A change takes out what it makes wrong
before it gives up the lock. Who still holds an entry overtook the change; after the change has returned, a lookup finds
only what is right. Each lookup loads one dict and one entry, so this needs no lock, with a GIL or without. Words are
stored without the lock, so a change puts a new dict in the place of theirs.

Every method here does what ResolvedIO's does, and calls it whenever it cannot be quick. Figures, as ratios to a raw
slice of the same mmap: ``python tests/benchmarks copy``.
"""

from __future__ import annotations

import mmap
from struct import Struct
from typing import TYPE_CHECKING

from hostarch import HOST_BYTE_ORDER, READ, WRITE, AccessType, AddrRangeSeq, Arch
from safemem import Block
from safemem.buffers import check_int
from usermem.cstruct import copy_struct_in
from usermem.errors import FaultError, NameTooLongError
from usermem.pma import PMA
from usermem.resolver import ResolvedIO
from usermem.strings import copy_string_in_chunks
from usermem.vec import copy_in_ranges

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

Entry = tuple[mmap.mmap, int, int, PMA]

_MAX_ENTRIES = 1 << 16
# Up to this size, joining the slices of many ranges beats filling a view range by range.
_JOIN_MAX = 1 << 14
# Where in a page of 32-bit words an address is, by its last 12 bits; out of it for an address that is not aligned.
# A lookup here and one in a cast view take 2.1x of Struct.unpack_from, an entry and unpack_from 3.3x.
_WORD_INDEX = tuple(offset >> 2 if offset & 3 == 0 else 1 << 12 for offset in range(1 << 12))


class PagedIO(ResolvedIO):
    """ResolvedIO with quick ways for the common calls: permissions count, one run of host memory.

    The option is a keyword here too, but the quick methods do not enforce it: CPython 3.11 specialises no call
    of a function with keyword-only parameters, which costs 15 to 20 ns of 130 to 280.
    """

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self._readable: dict[int, Entry] = {}
        self._writable: dict[int, Entry] = {}
        self._words: dict[int, memoryview] = {}
        self._uint32 = Struct("<I" if arch.byte_order == "little" else ">I")

    def _forget_pages(self, start: int = 0, end: int | None = None) -> None:
        """Forget the pages that begin in [start, end), all if there is no end.

        Called by a map change, under its lock, after the tables have changed. Words last: see copy_uint32_in.
        """
        if end is None:
            self._readable = {}
            self._writable = {}
        else:
            first, last = start >> 12, -(-end >> 12)
            for pages in (self._readable, self._writable):
                few = range(first, last) if last - first < len(pages) else list(pages)
                for page in few:
                    if first <= page < last:
                        pages.pop(page, None)
        self._words = {}

    def _remember_page(self, addr: int, entry: Entry, writable: bool) -> None:
        """Called by resolve, under the lock."""
        if len(self._readable) + len(self._writable) >= _MAX_ENTRIES:
            self._forget_pages()
        (self._writable if writable else self._readable)[addr >> 12] = entry

    def read_bytes(self, addr: int, n: int, ignore_permissions: bool = False) -> bytes:
        """See ResolvedIO.read_bytes."""
        try:
            memory, base, limit, _ = self._readable[addr >> 12]
            start = addr - base
            if n >= 0 and (stop := start + n) <= limit and not ignore_permissions:
                return memory[start:stop]
        except (KeyError, TypeError):
            pass
        return super().read_bytes(addr, n, ignore_permissions=ignore_permissions)

    def copy_out(self, addr: int, src: ReadableBuffer, ignore_permissions: bool = False) -> int:
        """See IO.copy_out."""
        try:
            memory, base, limit, _ = self._writable[addr >> 12]
            start = addr - base
            n = len(src)  # type: ignore[arg-type]
            if (stop := start + n) <= limit and not ignore_permissions:
                memory[start:stop] = src
                return n
        except (KeyError, TypeError, ValueError, IndexError, BufferError):
            pass  # not cached, or no buffer of len(src) bytes: nothing was written, and the error is made below
        return super().copy_out(addr, src, ignore_permissions=ignore_permissions)

    def copy_in(self, addr: int, dst: WriteableBuffer, ignore_permissions: bool = False) -> int:
        """See IO.copy_in."""
        # Of all buffers only these two can be trusted to take a slice assignment byte for byte.
        if (type(dst) is memoryview and dst.c_contiguous) or type(dst) is bytearray:
            try:
                memory, base, limit, pma = self._readable[addr >> 12]
                start = addr - base
                n = len(dst)
                if (stop := start + n) <= limit and not ignore_permissions:
                    if n <= 2048:
                        dst[:] = memory[start:stop]
                    else:  # a copy between views makes no bytes object on the way
                        start = addr - pma.start
                        memoryview(dst)[:] = pma.view()[start : start + n]
                    return n
            except (KeyError, TypeError, ValueError, NotImplementedError):
                pass  # not cached, read-only or of another format: nothing was written
        return super().copy_in(addr, dst, ignore_permissions=ignore_permissions)

    def _resolve_seq(
        self, ars: AddrRangeSeq, access: AccessType, ignore_permissions: bool
    ) -> tuple[list[Block], FaultError | None]:
        # 0.35 us a range, instead of 1.1 by resolve.
        if access in (READ, WRITE) and not ignore_permissions:
            pages = self._writable if access == WRITE else self._readable
            blocks = []
            low, limit, first = 1, 0, 0  # ranges in the run of the one before need no lookup: low to limit
            try:
                for addr, n in ars.pairs():
                    if addr < low or addr + n > limit:
                        _, base, stop, pma = pages[addr >> 12]
                        low, limit, first, view = addr, base + stop, pma.start, pma.view()
                        if addr + n > limit:
                            break
                    blocks.append(Block.from_view(view, addr - first, n))
                else:
                    return blocks, None
            except KeyError:
                pass
        return super()._resolve_seq(ars, access, ignore_permissions)

    def copy_uint32_in(self, addr: int, ignore_permissions: bool = False) -> int:
        """The uint32 at addr in the guest's byte order, at any alignment; not atomic. Raises FaultError."""
        words = self._words
        if not ignore_permissions:
            try:
                return words[addr >> 12][_WORD_INDEX[addr & 0xFFF]]
            except (KeyError, IndexError, TypeError):
                addr = check_int(addr, "addr")
        # After words was taken: a change in between leaves what is stored here in a dict that nobody asks any more.
        entry = self._readable.get(addr >> 12)
        if entry is not None and not ignore_permissions:
            memory, base, limit, pma = entry
            if addr >> 12 not in words and self.arch.byte_order == HOST_BYTE_ORDER:
                start = (addr & -4096) - pma.start
                words[addr >> 12] = pma.view()[start : start + 4096].cast("I")
            if addr - base + 4 <= limit:
                return int(self._uint32.unpack_from(memory, addr - base)[0])
        return int(copy_struct_in(self, addr, self._uint32, ignore_permissions=ignore_permissions)[0])

    def copy_string_in(self, addr: int, maxlen: int, ignore_permissions: bool = False) -> bytes:
        """See usermem.copy_string_in."""
        try:
            memory, base, limit, _ = self._readable[addr >> 12]
            start = addr - base
            stop = start + maxlen
            if maxlen >= 0 and not ignore_permissions:
                nul = memory.find(b"\0", start, stop if stop <= limit else limit)
                # Another thread may write meanwhile: what was copied counts, not what was seen before.
                if nul >= 0:
                    string = memory[start:nul]
                    return string if 0 not in string else string[: string.find(0)]
                if stop <= limit:
                    string = memory[start:stop]
                    if (end := string.find(0)) >= 0:
                        return string[:end]
                    raise NameTooLongError(string)
        except (KeyError, TypeError):
            pass
        return copy_string_in_chunks(self, addr, maxlen, ignore_permissions=ignore_permissions)

    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, ignore_permissions: bool = False) -> int:
        """See usermem.copy_in_vec."""
        if type(dst) is bytearray and len(dst) == ars.num_bytes <= _JOIN_MAX and not ignore_permissions:
            pages = self._readable
            parts = []
            base, low, limit = 0, 1, 0  # ranges in the run of the one before need no lookup: low to limit
            for addr, n in ars.pairs():
                start = addr - base
                stop = start + n
                if start < low or stop > limit:
                    try:
                        memory, base, limit, _ = pages[addr >> 12]
                    except KeyError:
                        break
                    start = low = addr - base
                    stop = start + n
                    if stop > limit:
                        break
                parts.append(memory[start:stop])
            else:
                dst[:] = b"".join(parts)
                return len(dst)
        return copy_in_ranges(self, ars, dst, ignore_permissions=ignore_permissions)
