"""The host's own memory calls that the standard library lacks, by ctypes: on host addresses and whole host pages.

Source: mmap(2), madvise(2), msync(2), mincore(2), fallocate(2).
"""

from __future__ import annotations

import errno
import mmap as host_mmap
import os
import sys
from functools import cache
from typing import Any, Final

from hostarch import mman
from safemem.errors import error
from usermem.mm.arena import MAP_NORESERVE, reserve
from usermem.mm.host_run import HostRun, Whole, mmap_address
from usermem.mm.limits import host_limits

READ_WRITE: Final = mman.PROT_READ | mman.PROT_WRITE

_FAILED: Final = 2 * sys.maxsize + 1  # MAP_FAILED, as an unsigned pointer
_PUNCH_HOLE: Final = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

PAGES_ASKED: Final = 1 << 16
"""How many pages the host is asked for at a time."""

_live: set[int] = set()


def check_mappings() -> None:
    """Raise MemoryError if guests hold all mappings of the host's that they may."""
    if len(_live) >= host_limits.max_map_count:
        raise MemoryError(f"guests hold {len(_live)} mappings of the host's; it has to keep some for itself")


class Unmapping:
    """What counts a mapping of the host's for as long as it is there, and unmaps its pages when it goes.

    Nothing refers to it weakly: Python runs ``__del__`` before it clears weak references, so whoever looked the object
    up in between would have one whose pages are gone.
    """

    __slots__ = ("address", "length")

    def __init__(self, address: int, length: int) -> None:
        self.address = address
        self.length = length
        _live.add(id(self))

    def __del__(self) -> None:
        _live.discard(id(self))
        if getattr(self, "length", 0):  # 0 if an mmap object unmaps the pages
            _libc().munmap(self.address, self.length)


class HostMapping(Whole):
    """Part of a file, mapped in this process: unmapped when the last reference to it is gone.

    ``memory`` is an mmap object over it if it was asked for, for memory that nobody can truncate; else None.
    """

    __slots__ = ("_unmapping", "address", "flags", "length", "memory", "offset", "prot")

    def __init__(
        self, file: int | HostMapping, offset: int, length: int, prot: int, flags: int, plain: bool = False
    ) -> None:
        """Map ``length`` bytes at ``offset``, both in host pages; ``flags`` is MAP_SHARED or MAP_PRIVATE.

        ``file`` is a descriptor, or a shared mapping of the file's start with the same rights, whatever seals it since.
        Raises MemoryError if the host refuses, or has no mapping left for guests.
        """
        self.memory: host_mmap.mmap | None = None
        self.offset = offset
        self.length = length
        self.prot = prot
        self.flags = flags
        self.address = 0
        check_mappings()
        try:
            if isinstance(file, HostMapping):
                self.address = _map_again(file.address, offset, length)
            elif plain:  # an mmap object that the module makes of a file keeps a descriptor each
                memory = reserve(length)
                map_file(file, offset, length, prot, flags | mman.MAP_FIXED, mmap_address(memory))
                self.memory = memory
                self.address = mmap_address(memory)
            else:
                self.address = map_file(file, offset, length, prot, flags)
        except OSError as exc:
            raise MemoryError(f"the host does not map {length:#x} bytes at {offset:#x} of a file: {exc}") from exc
        self._unmapping = Unmapping(self.address, 0 if plain else length)

    def run(self, start: int, end: int, keeper: Whole | None = None) -> HostRun:
        """Bytes [start, end) of it, counted from its first. ``keeper`` keeps the mapping, if it is not the keeper."""
        if self.memory is not None:
            return HostRun(self.memory, self.address, start, end, keeper or self)
        return HostRun(None, self.address, start, end, keeper or self)


class Held(Whole):
    """A keeper that keeps several things alive."""

    __slots__ = ("things",)

    def __init__(self, *things: object) -> None:
        self.things = things


def map_file(fd: int, offset: int, length: int, prot: int, flags: int, address: int | None = None) -> int:
    """mmap(2) of a file, none of it reserved; ``address`` is for MAP_FIXED. Raises OSError."""
    if flags & mman.MAP_PRIVATE:
        flags |= MAP_NORESERVE
    found: int | None = _libc().mmap(address, length, prot, flags, fd, offset)
    if found is None or found == _FAILED:
        raise _error(f"mmap of {length:#x} bytes at {offset:#x} of a file")
    return found


def _map_again(address: int, offset: int, length: int) -> int:
    """Map a part of a file of which a shared mapping of its start is at ``address``. Raises OSError. (mremap(2).)"""
    found: int | None = _libc().mremap(address, 0, offset + length, mman.MREMAP_MAYMOVE)
    if found is None or found == _FAILED:
        raise _error(f"mremap to {length:#x} bytes at {offset:#x} of a file")
    if offset:
        unmap(found, offset)
    return found + offset


def try_map(fd: int, offset: int, prot: int, flags: int) -> None:
    """Map a page of a file for a moment. Raises OSError if the host refuses.

    C code makes both calls: in between no signal handler can run, whose exception would leave the page mapped.
    """
    libc, arguments = _libc(), ([None], [host_mmap.PAGESIZE], [prot], [flags], [fd], [offset])
    if any(map(libc.munmap, map(libc.mmap, *arguments), [host_mmap.PAGESIZE])):
        unmap(map_file(fd, offset, host_mmap.PAGESIZE, prot, flags), host_mmap.PAGESIZE)  # which says why


def map_zeros(address: int, length: int, prot: int) -> None:
    """Put private zeros in the place of host pages that are ours. Raises OSError."""
    flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED | MAP_NORESERVE
    if _libc().mmap(address, length, prot, flags, -1, 0) == _FAILED:
        raise _error(f"mmap of {length:#x} bytes of zeros")


def unmap(address: int, length: int) -> None:
    """munmap(2) of host pages that are ours. Raises OSError."""
    if _libc().munmap(address, length):
        raise _error(f"munmap of {length:#x} bytes")


def advise(run: HostRun, advice: int) -> None:
    """madvise(2). Raises OSError."""
    if _libc().madvise(run.address, len(run), advice):
        raise _error(f"madvise {advice}")


def can_advise(run: HostRun, advice: int) -> bool:
    """madvise(2), and whether the host followed it."""
    try:
        advise(run, advice)
    except OSError:
        return False
    return True


def sync(run: HostRun, flags: int) -> None:
    """msync(2). Raises OSError."""
    if _libc().msync(run.address, len(run), flags):
        raise _error("msync")


def punch_hole(fd: int, start: int, end: int) -> None:
    """Make [start, end) of a file zero and give its blocks back. Raises OSError.

    Where a sandbox refuses fallocate(2), by madvise(2) on a mapping that is there for a moment.
    """
    if not _libc().fallocate(fd, _PUNCH_HOLE, start, end - start):
        return
    refused = _error("MADV_REMOVE in a file")
    try:
        address = map_file(fd, start, end - start, READ_WRITE, mman.MAP_SHARED)
        done = not _libc().madvise(address, end - start, mman.MADV_REMOVE)
        unmap(address, end - start)
    except OSError:
        done = False
    if not done:
        try:
            raise refused
        finally:
            del refused


def resident(address: int, length: int, page: int) -> bytes | None:
    """A byte for each guest page of ``page`` bytes, from a host address on: 1 if one of its host pages is in memory.

    None if the host cannot tell.
    """
    import ctypes  # 2 ms at import

    size = host_mmap.PAGESIZE
    low = address & -size
    vector = ctypes.create_string_buffer(-(-(address + length - low) // size))
    mincore = _mincore()
    if mincore is None or mincore(low, address + length - low, vector):
        return None
    bits = bytes(byte & 1 for byte in vector.raw)
    if page == size and low == address:
        return bits
    ends = range(address + page, address + length + page, page)
    return bytes(any(bits[(at - page - low) // size : -(-(at - low) // size)]) for at in ends)


def file_resident(fd: int, start: int, end: int, page: int, sparse: bool = False) -> bytes:
    """As :func:`resident`, of pages of a file, which are mapped for a moment; 0 for all if the host cannot tell.

    ``sparse`` is for a memory file: where it has holes, nothing is in memory, and they cost nothing.
    """
    found: list[bytes] = []
    at = start
    while at < end:
        data = _next_data(fd, at, end, page) if sparse else at
        found.append(bytes((data - at) // page))
        length = min(PAGES_ASKED * page, end - data)
        at = data + length
        if length:
            address = map_file(fd, data, length, mman.PROT_READ, mman.MAP_SHARED)
            try:
                found.append(resident(address, length, page) or bytes(length // page))
            finally:
                unmap(address, length)
    return b"".join(found)


def _next_data(fd: int, at: int, end: int, page: int) -> int:
    """Where the first page from ``at`` on that is no hole begins; ``end`` if there is none before it."""
    try:
        data = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as exc:
        return end if exc.errno == errno.ENXIO else at
    return min(at + (data - at) // page * page, end)


def _error(what: str) -> OSError:
    import ctypes

    return error(ctypes.get_errno(), what)


@cache
def _mincore() -> Any:
    import ctypes

    try:
        function: Any = ctypes.CDLL(None).mincore
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    return function


@cache
def _libc() -> Any:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.restype = pointer
    libc.mmap.argtypes = (pointer, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
    libc.munmap.argtypes = (pointer, size)
    libc.mremap.restype = pointer
    libc.mremap.argtypes = (pointer, size, size, ctypes.c_int)
    libc.madvise.argtypes = libc.msync.argtypes = (pointer, size, ctypes.c_int)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return libc
