"""PageCache and PagedIO: remember where pages are, so that a short copy costs one dict lookup and one slice.

Pages that may be read and pages that may be written have a dict each, from the page number (4 KiB pages, whatever the
machine's are) to a *stretch*; so the permission check is the lookup. A stretch is the longest run of addresses around
a page that lies in one mapping and in one piece of host memory: a list of

    [memory, base, limit, run]    the mmap object; what to subtract from an address to get an offset in it; the offset
                                  where the stretch ends; the HostRun that keeps the memory alive

All cached pages of a stretch share the one list. So a change of the map forgets them all by one store, which makes the
list ``[None, 0, -1, None]``: nothing fits into it any more. The next access to one of the pages finds out what is there
now, and if that stretch begins where the old one did, in the same host memory, fills the list again: for all of them.
The list of a stretch is found by ``PMA.cached``, from its first address (plus 1 for writing), and is never replaced.

Coherence: a stretch is remembered under the lock that changes hold. A change (``MemoryMap._forget``) drops the
stretches that it makes wrong before it publishes its tables, and while it is at it nothing is remembered. A thread that
already holds a stretch counts as having run before the change. Each lookup loads one list, so this needs no lock, with
a GIL or without. Words, and the rests of many ranges, are remembered without the lock, so a change puts a new dict in
the place of theirs.

Every method of PagedIO does what ResolvedIO's does, and calls it whenever it cannot be quick. Figures, as ratios to a
raw slice of the same mmap: ``python tests/benchmarks copy``.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any

from hostarch import HOST_BYTE_ORDER, READ, WRITE, AccessType, AddrRangeSeq, Arch
from hostarch.integers import PAGE_SHIFT
from safemem import BlockSeq, atomics
from safemem.block import Piece
from safemem.buffers import check_int
from safemem.errors import short_count
from usermem.errors import FaultError, NameTooLongError
from usermem.iovec import MAX_RW_COUNT, UIO_MAXIOV
from usermem.mm.range_views import MANY, Rests, rest_of, views
from usermem.resolver import Found, ResolvedIO, checked_count, moved
from usermem.strings import copy_string_in_chunks
from usermem.vec import copy_in_ranges

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

Stretch = list[Any]
"""``[memory, base, limit, run]``, see above."""

GONE: Stretch = [None, 0, -1, None]
"""A stretch that nothing fits into."""

# Not cached, no int, or a NumPy count that overflows. One that wraps makes stop < start. Nothing has been moved then.
_NOT_QUICK = (KeyError, TypeError, OverflowError, RuntimeWarning)
_MAX_ENTRIES = 1 << 16
_ZEROS = bytes(1 << 16)
# Up to this size, joining the slices of many ranges beats filling a view range by range.
_JOIN_MAX = 1 << 14
# Where in a page of 32-bit words an address is, by its last 12 bits; out of it for an address that is not aligned.
# A lookup here and one in a cast view take 2.1x of Struct.unpack_from, an entry and unpack_from 3.3x.
_WORD_INDEX = tuple(offset >> 2 if offset & 3 == 0 else 1 << 12 for offset in range(1 << 12))


class PageCache:
    """The pages that an address space remembers. Its owner is the MemoryMap; a PagedIO reads it."""

    __slots__ = ("frozen", "readable", "rests", "words", "writable")

    def __init__(self) -> None:
        self.readable: dict[int, Stretch] = {}
        self.writable: dict[int, Stretch] = {}
        self.words: dict[int, memoryview] = {}
        self.rests: Rests = {}
        self.frozen: bool = False
        """Whether a change is between dropping what it makes wrong and publishing: then nothing is remembered."""

    def stretch(self, cached: dict[int, Stretch], first: int, fresh: Stretch, writable: bool) -> Stretch:
        """The list of the stretch that begins at ``first``, filled from ``fresh`` if it is gone.

        Changes find it from now on, in a PMA's ``cached``. Call it under the map's lock.
        """
        stretch = cached.get(first + writable)
        if stretch is None:  # a signal handler may have been quicker
            stretch = cached.setdefault(first + writable, fresh.copy())
        elif stretch[2] < 0:
            stretch[:] = fresh
        return stretch

    def remember(self, addr: int, stretch: Stretch, writable: bool) -> None:
        """Let addr's page find a stretch. Call it under the map's lock."""
        if len(self.readable) + len(self.writable) >= _MAX_ENTRIES:
            self.readable.clear()
            self.writable.clear()
            self.words = {}
        (self.writable if writable else self.readable)[addr >> 12] = stretch

    def prune(self, cached: dict[int, Stretch]) -> int:
        """Take the stretches that are gone out of a PMA's ``cached``, and return how many are left."""
        for key in tuple(cached):
            if cached[key][2] < 0:
                cached.pop(key)[:] = GONE  # again: a signal handler may have filled it
        return len(cached)

    def forget(self, cached: dict[int, Stretch], firsts: list[int]) -> None:
        """Drop the stretches that begin at some addresses, of a PMA's ``cached``: they stay there, gone."""
        for first in firsts:
            if first in cached:
                cached[first][:] = GONE
            if first + 1 in cached:
                cached[first + 1][:] = GONE

    def forget_all(self) -> None:
        """Drop every stretch by which a page is found, and all else. Call it under the map's lock, ``frozen``."""
        for stretch in (*self.readable.values(), *self.writable.values()):  # 40 ns a page
            stretch[:] = GONE
        self.words = {}
        self.rests = {}


class PagedIO(ResolvedIO):
    """ResolvedIO with quick ways for the common calls: permissions count, one run of host memory.

    The option is a keyword here too, but the quick methods do not enforce it: CPython 3.11 specialises no call
    of a function with keyword-only parameters, which costs 15 to 20 ns of 130 to 280.
    """

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self._cache = PageCache()
        # The dicts are the cache's for good, and one load nearer here.
        self._readable = self._cache.readable
        self._writable = self._cache.writable
        self._in_host_order = arch.byte_order == HOST_BYTE_ORDER
        self._uint32 = Struct("<I" if arch.byte_order == "little" else ">I")

    def _load(self, addr: int, n: int, access: AccessType) -> Stretch | FaultError | None:
        """Where addr is, now cached if it can be, in an mmap object; or why none of n > 0 bytes can be accessed.

        None says nothing: then ResolvedIO finds out.
        """
        return None

    def read_bytes(self, addr: int, n: int, ignore_permissions: bool = False) -> bytes:
        try:
            memory, base, limit, _ = self._readable[addr >> PAGE_SHIFT]
            start = addr - base
            if start <= (stop := start + n) <= limit and not ignore_permissions:
                return memory[start:stop]  # type: ignore[no-any-return]
        except _NOT_QUICK:
            pass
        if type(n) is int and n > 0 and not ignore_permissions:
            loaded = self._load(addr, n, READ)
            if isinstance(loaded, FaultError):
                loaded.partial = b""
                try:
                    raise loaded
                finally:
                    del loaded
            if loaded is not None:
                memory, base, limit, _ = loaded
                if addr - base + n <= limit:
                    return bytes(memory[addr - base : addr - base + n])
        return super().read_bytes(addr, n, ignore_permissions=ignore_permissions)

    def copy_out(self, addr: int, src: ReadableBuffer, ignore_permissions: bool = False) -> int:
        try:
            memory, base, limit, _ = self._writable[addr >> PAGE_SHIFT]
            start = addr - base
            n = len(src)  # type: ignore[arg-type]
            if (stop := start + n) <= limit and not ignore_permissions:
                memory[start:stop] = src
                return n
        except (KeyError, TypeError, ValueError, IndexError, BufferError):
            pass  # not cached, or no buffer of len(src) bytes: nothing was written, and the error is made below
        if type(src) is bytes and src and not ignore_permissions:
            loaded = self._load(addr, len(src), WRITE)
            if isinstance(loaded, FaultError):
                try:
                    raise loaded
                finally:
                    del loaded
            if loaded is not None:
                memory, base, limit, _ = loaded
                if addr - base + len(src) <= limit:
                    memory[addr - base : addr - base + len(src)] = src
                    return len(src)
        return super().copy_out(addr, src, ignore_permissions=ignore_permissions)

    def copy_in(self, addr: int, dst: WriteableBuffer, ignore_permissions: bool = False) -> int:
        # Of all buffers only these two can be trusted to take a slice assignment byte for byte.
        if (type(dst) is memoryview and dst.c_contiguous) or type(dst) is bytearray:
            try:
                memory, base, limit, run = self._readable[addr >> PAGE_SHIFT]
                start = addr - base
                n = len(dst)
                if (stop := start + n) <= limit and not ignore_permissions:
                    if n <= 2048:
                        dst[:] = memory[start:stop]
                    else:  # a copy between views makes no bytes object on the way
                        start -= run.start
                        memoryview(dst)[:] = run.view()[start : start + n]
                    return n
            except (KeyError, TypeError, ValueError, NotImplementedError):
                pass  # not cached, read-only or of another format: nothing was written
        return super().copy_in(addr, dst, ignore_permissions=ignore_permissions)

    def zero_out(self, addr: int, n: int, ignore_permissions: bool = False) -> int:
        try:
            memory, base, limit, _ = self._writable[addr >> PAGE_SHIFT]
            start = addr - base
            if start <= (stop := start + n) <= limit and not ignore_permissions:
                memory[start:stop] = _ZEROS[:n]
                return n
        except (*_NOT_QUICK, IndexError):
            pass  # not cached, or more than there are zeros: nothing was written
        return super().zero_out(addr, n, ignore_permissions=ignore_permissions)

    def cached_view(self, addr: int, n: int, writable: bool) -> memoryview | None:
        """The host memory behind [addr, addr + n), if a page that is cached tells it; None says nothing.

        The view keeps the memory alive.
        """
        try:
            _, base, limit, run = (self._writable if writable else self._readable)[addr >> PAGE_SHIFT]
            start = addr - base
            if start <= start + n <= limit:
                start -= run.start
                view: memoryview = run.view()[start : start + n]
                return view
        except _NOT_QUICK:
            pass
        return None

    def cached_views(self, addr: int, n: int, writable: bool) -> list[Piece] | None:
        """The host memory behind the n ranges of the iovec table at addr, if cached pages tell it; None says nothing.

        Ranges that touch are one view: the kernel takes that in less time.
        """
        entry = self.arch.iovec
        if type(n) is not int or n > UIO_MAXIOV or (table := self.cached_view(addr, n * entry.size, False)) is None:
            return None
        found = views(entry.iter_unpack(table), self._writable if writable else self._readable, True)
        return found[0] if found is not None and found[1] <= MAX_RW_COUNT else None

    def _stream(
        self, ars: AddrRangeSeq, access: AccessType, move: Callable[[BlockSeq], int], ignore_permissions: bool
    ) -> int:
        seq = None
        if not ignore_permissions:
            pages = self._writable if access is WRITE else self._readable
            if len(ars.flat) == 2 and ars.window is None:  # as of read(2): half the time of any number of ranges
                addr, n = ars.flat
                try:
                    _, base, limit, run = pages[addr >> 12]
                    start = addr - base
                    if n > 0 and start + n <= limit:
                        start -= run.start
                        seq = BlockSeq.unchecked([run.view()[start : start + n]], n)
                except KeyError:
                    pass
            else:
                seq = self._cached_seq(ars, pages)
        if not seq:
            return moved(move, super()._resolve_seq(ars, access, ignore_permissions), ars.pairs(), access)
        try:
            done = move(seq)
        except BlockingIOError as exc:
            done = short_count(exc, 0)
        return done if type(done) is int and 0 <= done <= seq.num_bytes else checked_count(done, seq.num_bytes)

    def _resolve_seq(self, ars: AddrRangeSeq, access: AccessType, ignore_permissions: bool) -> Found:
        seq = None
        if access in (READ, WRITE) and not ignore_permissions:
            seq = self._cached_seq(ars, self._writable if access == WRITE else self._readable)
        return (seq, None) if seq is not None else super()._resolve_seq(ars, access, ignore_permissions)

    def _cached_seq(self, ars: AddrRangeSeq, pages: dict[int, Stretch]) -> BlockSeq | None:
        """The memory of all ranges, if cached pages tell it; None says nothing."""
        if len(ars.flat) < MANY:
            found = views(ars.pairs(), pages, False)
            return found and BlockSeq.unchecked(*found)
        return rest_of(ars, pages, self._cache.rests)  # taken before the pages are, as words are

    def _atomic(
        self,
        operation: atomics.Operation,
        addr: int,
        size: atomics.Size,
        access: AccessType,
        ignore_permissions: bool,
        *values: int,
    ) -> int:
        native = atomics.native()
        if native is not None and self._in_host_order and not ignore_permissions:
            try:
                _, base, limit, run = (self._readable if access is READ else self._writable)[addr >> PAGE_SHIFT]
                start = addr - base
                if limit - size >= start >= run.start and not addr & size - 1:
                    for value in values:
                        if type(value) is not int or value >> 8 * size:
                            break
                    else:
                        found: int = getattr(native, operation)(run.base + start, size, *values)
                        return found
            except (KeyError, TypeError):
                pass
        return super()._atomic(operation, addr, size, access, ignore_permissions, *values)

    def copy_uint32_in(self, addr: int, ignore_permissions: bool = False) -> int:
        """The uint32 at addr in the guest's byte order, at any alignment; not atomic. Raises FaultError."""
        words = self._cache.words
        if not ignore_permissions:
            try:
                return words[addr >> PAGE_SHIFT][_WORD_INDEX[addr & 0xFFF]]
            except (KeyError, IndexError, TypeError):
                addr = check_int(addr, "addr")
        # After words was taken: a change in between leaves what is stored here in a dict that nobody asks any more.
        stretch = self._readable.get(addr >> 12)
        if stretch is not None and not ignore_permissions:
            memory, base, limit, run = stretch
            if addr - base + 4 <= limit:
                if addr >> 12 not in words and self._in_host_order:
                    start = (addr & -4096) - base - run.start
                    words[addr >> 12] = run.view()[start : start + 4096].cast("I")
                return int(self._uint32.unpack_from(memory, addr - base)[0])
        return int(self.copy_struct_in(addr, self._uint32, ignore_permissions)[0])

    def copy_struct_in(self, addr: int, layout: Struct, ignore_permissions: bool = False) -> tuple[Any, ...]:
        try:
            memory, base, limit, _ = self._readable[addr >> PAGE_SHIFT]
            start = addr - base
            if start + layout.size <= limit and not ignore_permissions:
                return layout.unpack_from(memory, start)
        except _NOT_QUICK:
            pass
        return super().copy_struct_in(addr, layout, ignore_permissions=ignore_permissions)

    def copy_string_in(self, addr: int, maxlen: int, ignore_permissions: bool = False) -> bytes:
        """The bytes before the NUL at addr, at most maxlen of them. Raises as :func:`usermem.copy_string_in`."""
        try:
            memory, base, limit, _ = self._readable[addr >> PAGE_SHIFT]
            start = addr - base
            stop = start + maxlen
            if start <= stop and not ignore_permissions:
                nul = memory.find(b"\0", start, stop if stop <= limit else limit)
                # Another thread may write meanwhile: what was copied counts, not what was seen before.
                if nul >= 0:
                    string: bytes = memory[start:nul]
                    return string if 0 not in string else string[: string.find(0)]
                if stop <= limit:
                    string = memory[start:stop]
                    if (end := string.find(0)) >= 0:
                        return string[:end]
                    raise NameTooLongError(string)
        except (*_NOT_QUICK, AttributeError):
            pass  # not cached, or no longer
        return copy_string_in_chunks(self, addr, maxlen, ignore_permissions=ignore_permissions)

    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, ignore_permissions: bool = False) -> int:
        """Fill dst with the bytes at ars, and return how many. Raises FaultError."""
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
                    if memory is None:
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
