"""The host's own memory calls that the standard library lacks, by ctypes: on host addresses and whole host pages.

Source: mmap(2), madvise(2), msync(2), mincore(2), fallocate(2).
"""

from __future__ import annotations

import mmap as host_mmap
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import repeat
from operator import and_
from typing import Any, Final

from hostarch import mman
from safemem.errors import error
from usermem.mm.holes import next_data
from usermem.mm.host_limits import host_limits

# Not in the mmap module before Python 3.13. Other systems reserve nothing by default, or refuse what is too much.
MAP_NORESERVE: Final = (
    0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64", "riscv64") else 0
)
"""MAP_NORESERVE of this host: reserve no swap for untouched pages; 0 where that is the default."""

READ_WRITE: Final = mman.PROT_READ | mman.PROT_WRITE

FAILED: Final = 2 * sys.maxsize + 1  # MAP_FAILED, as an unsigned pointer
_SYS_PROCESS_MADVISE: Final = 440  # on all machines
_PUNCH_HOLE: Final = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

_LOWEST_BIT: Final = bytes(byte & 1 for byte in range(256))

PAGES_ASKED: Final = 1 << 16
"""How many pages the host is asked for at a time."""

_live: set[int] = set()


_images: dict[int, int] = {}


def count_images(owner: object, count: int = 0) -> None:
    """Note how many images are mapped over the memory of an owner, by its identity: each takes up to two mappings."""
    if count:
        _images[id(owner)] = count
    else:
        _images.pop(id(owner), None)


def check_mappings(more: int = 1) -> None:
    """Raise MemoryError if guests may not hold so many ``more`` mappings of the host's."""
    held = len(_live) + 2 * sum(_images.values())
    if held + more > host_limits.max_map_count:
        raise MemoryError(f"guests hold {held} mappings of the host's; it has to keep some for itself")


def reserve(size: int) -> host_mmap.mmap:
    """``size`` bytes of private host memory, none of it set aside. Raises OSError if the host refuses."""
    if hasattr(host_mmap, "MAP_PRIVATE"):
        return host_mmap.mmap(-1, size, flags=host_mmap.MAP_PRIVATE | host_mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    return host_mmap.mmap(-1, size)


class Unmapping:
    """What counts a mapping of the host's for as long as it is there, and unmaps its pages when it goes.

    It is there before they are. ``(x,) = map(call, ...)`` makes the call and stores what it returns without a point in
    between at which a signal handler could run, whose exception would leave the pages mapped.

    Nothing refers to it weakly: Python runs ``__del__`` before it clears weak references, so whoever looked the object
    up in between would have one whose pages are gone.
    """

    __slots__ = ("address", "length")

    def __init__(self, length: int = 0) -> None:
        """``length`` is how many bytes will be mapped; 0 if an mmap object does it, and unmaps them."""
        self.address: int | None = None
        self.length: int = length
        _live.add(id(self))

    def map_file(self, fd: int, offset: int, prot: int, flags: int) -> int:
        """mmap(2) of a file, none of it reserved. Raises OSError."""
        flags |= MAP_NORESERVE if flags & mman.MAP_PRIVATE else 0
        (self.address,) = map(_libc().mmap, [None], [self.length], [prot], [flags], [fd], [offset])
        return self._checked(f"mmap of {self.length:#x} bytes at {offset:#x} of a file")

    def map_again(self, address: int, offset: int) -> int:
        """mremap(2): map a part of a file of which a shared mapping of its start is at ``address``. Raises OSError."""
        whole = Unmapping(offset + self.length)
        (whole.address,) = map(_libc().mremap, [address], [0], [whole.length], [mman.MREMAP_MAYMOVE])
        start = whole._checked(f"mremap to {self.length:#x} bytes at {offset:#x} of a file") + offset
        whole.length, self.address = offset, start  # without a call: all pages have one owner at any time
        return start

    def unmap(self) -> None:
        """Unmap the pages now. Raises OSError."""
        (failed,), self.address = map(_libc().munmap, [self.address], [self.length]), None
        if failed:
            raise _error(f"munmap of {self.length:#x} bytes")

    def _checked(self, what: str) -> int:
        if self.address is None or self.address == FAILED:
            self.address = None
            raise _error(what)
        return self.address

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if ended():  # modules are empty, and the process gives all back by itself
            return
        _live.discard(id(self))
        if getattr(self, "address", None) is not None and self.length:
            _libc().munmap(self.address, self.length)


def map_over(address: int, fd: int, offset: int, length: int, prot: int, flags: int) -> None:
    """Put a file, none of it reserved, in the place of host pages that are ours. Raises OSError."""
    flags |= mman.MAP_FIXED | (MAP_NORESERVE if flags & mman.MAP_PRIVATE else 0)
    if _libc().mmap(address, length, prot, flags, fd, offset) == FAILED:
        raise _error(f"mmap of {length:#x} bytes at {offset:#x} of a file")


def try_map(fd: int, offset: int, prot: int, flags: int) -> None:
    """Map a page of a file for a moment. Raises OSError if the host refuses.

    C code makes both calls: in between no signal handler can run, whose exception would leave the page mapped.
    """
    libc, arguments = _libc(), ([None], [host_mmap.PAGESIZE], [prot], [flags], [fd], [offset])
    if any(map(libc.munmap, map(libc.mmap, *arguments), [host_mmap.PAGESIZE])):
        pages = Unmapping(host_mmap.PAGESIZE)
        pages.map_file(fd, offset, prot, flags)  # which says why
        pages.unmap()


def map_zeros(address: int, length: int, prot: int) -> None:
    """Put private zeros in the place of host pages that are ours. Raises OSError."""
    flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED | MAP_NORESERVE
    if _libc().mmap(address, length, prot, flags, -1, 0) == FAILED:
        raise _error(f"mmap of {length:#x} bytes of zeros")


def mappings_to_be(
    places: list[tuple[int, int]], lengths: Iterable[int], files: list[tuple[int, int]]
) -> Iterator[int]:
    """mmap(2) of private pages of files, each a descriptor and an offset, over our own host pages from each start on.

    A descriptor of -1 is for zeros. The calls are made when the iterator is asked: it gives where each is, or FAILED,
    as with a length below a page. It is C code: ``list`` asks without a point in between at which a signal handler
    could run.
    """
    kinds = [mman.MAP_PRIVATE | mman.MAP_FIXED | MAP_NORESERVE | mman.MAP_ANONYMOUS * (fd < 0) for fd, _ in files]
    whole = map(and_, lengths, repeat(-host_mmap.PAGESIZE))
    fds, offsets = [fd for fd, _ in files], [offset for _, offset in files]
    return map(_libc().mmap, [start for start, _ in places], whole, repeat(READ_WRITE), kinds, fds, offsets)


def copies_to_be(places: list[tuple[int, int]], files: list[tuple[int, int]]) -> Iterator[int]:
    """pwrite(2) of host memory into files, each as in :func:`mappings_to_be`: how many bytes of each, or -1."""
    starts, lengths = [start for start, _ in places], [end - start for start, end in places]
    return map(_libc().pwrite, [fd for fd, _ in files], starts, lengths, [offset for _, offset in files])


def drop(addresses: list[int], lengths: list[int]) -> None:
    """MADV_DONTNEED of each of some ranges. Raises OSError."""
    if any(map(_libc().madvise, addresses, lengths, repeat(mman.MADV_DONTNEED))):
        raise _error("MADV_DONTNEED")


def process_madvise(pidfd: int, table: bytes, count: int) -> int:
    """process_madvise(2), MADV_DONTNEED, of the ranges in an iovec table, and how many bytes it did; -1 if none."""
    done: int = _libc().syscall(_SYS_PROCESS_MADVISE, pidfd, table, count, mman.MADV_DONTNEED, 0)
    return done


def advise(address: int, length: int, advice: int) -> None:
    """madvise(2). Raises OSError."""
    if _libc().madvise(address, length, advice):
        raise _error(f"madvise {advice}")


def can_advise(address: int, length: int, advice: int) -> bool:
    """madvise(2), and whether the host followed it."""
    try:
        advise(address, length, advice)
    except OSError:
        return False
    return True


def sync(address: int, length: int, flags: int) -> None:
    """msync(2). Raises OSError."""
    if _libc().msync(address, length, flags):
        raise _error("msync")


def punch_hole(fd: int, start: int, end: int) -> None:
    """Make [start, end) of a file zero and give its blocks back. Raises OSError.

    Where a sandbox refuses fallocate(2), by madvise(2) on a mapping that is there for a moment.
    """
    if not _libc().fallocate(fd, _PUNCH_HOLE, start, end - start):
        return
    refused = _error("MADV_REMOVE in a file")
    try:
        pages = Unmapping(end - start)
        address = pages.map_file(fd, start, READ_WRITE, mman.MAP_SHARED)
        done = not _libc().madvise(address, end - start, mman.MADV_REMOVE)
        pages.unmap()
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
    bits = vector.raw.translate(_LOWEST_BIT)
    if page == size and low == address:
        return bits
    ends = range(address + page, address + length + page, page)
    return bytes(any(bits[(at - page - low) // size : -(-(at - low) // size)]) for at in ends)


def swaps() -> bool:
    """Whether the host has swap space, and so may have pages of ours there (sysinfo(2))."""
    import ctypes

    words = (ctypes.c_ulong * 64)()
    try:
        return _libc().sysinfo(words) != 0 or words[8] > 0
    except AttributeError:
        return True


def file_resident(fd: int, start: int, end: int, page: int, sparse: bool = False) -> bytes:
    """As :func:`resident`, of pages of a file, which are mapped for a moment; 0 for all if the host cannot tell.

    ``sparse`` is for a memory file: where it has holes, nothing is in memory, and they cost nothing.
    """
    found: list[bytes] = []
    at = start
    while at < end:
        data = at + (next_data(fd, at, end) - at) // page * page if sparse else at
        found.append(bytes((data - at) // page))
        length = min(PAGES_ASKED * page, end - data)
        at = data + length
        if length:
            pages = Unmapping(length)
            address = pages.map_file(fd, data, mman.PROT_READ, mman.MAP_SHARED)
            found.append(resident(address, length, page) or bytes(length // page))
            pages.unmap()
    return b"".join(found)


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
    libc.pwrite.restype = ctypes.c_ssize_t
    libc.pwrite.argtypes = (ctypes.c_int, pointer, size, ctypes.c_int64)
    libc.munmap.argtypes = (pointer, size)
    libc.mremap.restype = pointer
    libc.mremap.argtypes = (pointer, size, size, ctypes.c_int)
    libc.madvise.argtypes = libc.msync.argtypes = (pointer, size, ctypes.c_int)
    libc.syscall.restype = ctypes.c_long
    libc.syscall.argtypes = (ctypes.c_long, ctypes.c_long, pointer, size, ctypes.c_long, ctypes.c_long)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return libc
