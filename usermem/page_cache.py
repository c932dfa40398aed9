"""PagedIO: an IO that remembers where pages are, so that a short copy costs one dict lookup and one slice.

The cache maps a page number (4 KiB pages, whatever the machine's are) to an entry: the host memory, what to subtract
from an address to get an offset in it, the first address past the run, and what keeps the memory alive. Pages that
may be read and pages that may be written have a dict each, so that the permission check is the lookup.

Coherence: ``resolve`` fills the dicts under the lock that map changes hold. A change puts new dicts in place before it
gives up the lock. Who still holds an old dict or entry overtook the change; after the change has returned, a lookup
finds only what was filled since. Each lookup loads one dict and one entry, so this needs no lock, with a GIL or
without.

Every method here does what ResolvedIO's does, and calls it whenever it cannot be quick. Figures, as ratios to a raw
slice of the same mmap: ``python tests/benchmarks copy``.
"""

from __future__ import annotations

import mmap
from struct import Struct
from typing import TYPE_CHECKING

from hostarch import AddrRangeSeq, Arch
from usermem.cstruct import copy_struct_in
from usermem.errors import NameTooLongError
from usermem.memory_io import DEFAULT_OPTS, IOOpts
from usermem.pma import PMA
from usermem.resolver import ResolvedIO
from usermem.strings import copy_string_in_chunks
from usermem.vec import copy_in_ranges

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

Entry = tuple[mmap.mmap, int, int, PMA]

_MAX_ENTRIES = 1 << 16
# From this size on, a copy between two views beats a slice of the mmap, which makes a bytes object on the way.
_SLICE_MAX = 2048


class PagedIO(ResolvedIO):
    """ResolvedIO with quick ways for the common calls: default options, one run of host memory."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self._readable: dict[int, Entry] = {}
        self._writable: dict[int, Entry] = {}
        self._uint32 = Struct("<I" if arch.byte_order == "little" else ">I")
        self._unpack_uint32 = self._uint32.unpack_from

    def _forget_pages(self) -> None:
        """Called by a map change, under its lock, after the tables have changed."""
        self._readable = {}
        self._writable = {}

    def _remember_page(self, addr: int, entry: Entry, writable: bool) -> None:
        """Called by resolve, under the lock."""
        pages = self._writable if writable else self._readable
        if len(pages) >= _MAX_ENTRIES:
            pages = {}
            if writable:
                self._writable = pages
            else:
                self._readable = pages
        pages[addr >> 12] = entry

    def read_bytes(self, addr: int, n: int, opts: IOOpts = DEFAULT_OPTS) -> bytes:
        """See ResolvedIO.read_bytes."""
        try:
            memory, base, end, _ = self._readable[addr >> 12]
        except KeyError:
            return super().read_bytes(addr, n, opts)
        stop = addr + n
        if addr <= stop <= end and opts is DEFAULT_OPTS:
            return memory[addr - base : stop - base]
        return super().read_bytes(addr, n, opts)

    def copy_out(self, addr: int, src: ReadableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.copy_out."""
        kind = type(src)
        if (kind is bytes or kind is bytearray) and opts is DEFAULT_OPTS:
            try:
                memory, base, end, _ = self._writable[addr >> 12]
            except KeyError:
                return super().copy_out(addr, src, opts)
            n = len(src)  # type: ignore[arg-type]
            stop = addr + n
            if stop <= end:
                memory[addr - base : stop - base] = src  # type: ignore[assignment]
                return n
        return super().copy_out(addr, src, opts)

    write_bytes = copy_out

    def copy_in(self, addr: int, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.copy_in."""
        kind = type(dst)
        if (kind is bytearray or (kind is memoryview and dst.c_contiguous)) and opts is DEFAULT_OPTS:  # type: ignore[union-attr]
            try:
                memory, base, end, _ = self._readable[addr >> 12]
            except KeyError:
                return super().copy_in(addr, dst, opts)
            n = len(dst)  # type: ignore[arg-type]
            stop = addr + n
            if stop <= end and n <= _SLICE_MAX:
                try:
                    dst[:] = memory[addr - base : stop - base]  # type: ignore[index]
                except (ValueError, TypeError, NotImplementedError):
                    pass  # a memoryview of another format or read-only: nothing was written
                else:
                    return n
        return super().copy_in(addr, dst, opts)

    def copy_uint32_in(self, addr: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        """The uint32 at addr in the guest's byte order, at any alignment; not atomic. Raises FaultError."""
        try:
            memory, base, end, _ = self._readable[addr >> 12]
        except KeyError:
            pass
        else:
            if addr + 4 <= end and opts is DEFAULT_OPTS:
                value: int = self._unpack_uint32(memory, addr - base)[0]
                return value
        value = copy_struct_in(self, addr, self._uint32, opts)[0]
        return value

    def copy_string_in(self, addr: int, maxlen: int, opts: IOOpts = DEFAULT_OPTS) -> bytes:
        """See usermem.copy_string_in."""
        try:
            memory, base, end, _ = self._readable[addr >> 12]
        except KeyError:
            return copy_string_in_chunks(self, addr, maxlen, opts)
        if opts is DEFAULT_OPTS:
            start = addr - base
            stop = min(start + maxlen, end - base)
            nul = memory.find(b"\0", start, stop)
            if nul >= 0:
                return memory[start:nul]
            if stop == start + maxlen and maxlen >= 0:
                raise NameTooLongError(memory[start:stop])
        return copy_string_in_chunks(self, addr, maxlen, opts)

    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See usermem.copy_in_vec."""
        kind = type(dst)
        if opts is DEFAULT_OPTS and kind is bytearray and len(dst) == ars.num_bytes <= _SLICE_MAX * 8:  # type: ignore[arg-type]
            pages = self._readable
            parts = []
            for addr, length in ars.pairs():
                try:
                    memory, base, end, _ = pages[addr >> 12]
                except KeyError:
                    break
                if addr + length > end:
                    break
                parts.append(memory[addr - base : addr - base + length])
            else:
                dst[:] = b"".join(parts)  # type: ignore[index]
                return len(dst)  # type: ignore[arg-type]
        return copy_in_ranges(self, ars, dst, opts)
