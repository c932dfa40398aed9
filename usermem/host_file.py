"""HostFile: a file of the host's behind a guest mapping, coherent with it, and safe from whoever truncates it.

The host maps the file too, and copies go by safecopy: a page beyond the file's end is a fault with an exact count, and
no signal. What private mappings write stays theirs, as the host's copy-on-write has it.

Source: mmap(2); Linux mm/filemap.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

from hostarch import mman
from safemem import Block, HostFaultError, safecopy

_FAILED: Final = ctypes.c_void_p(-1).value
_READ_WRITE: Final = mman.PROT_READ | mman.PROT_WRITE


class HostFile:
    """The pages of a file, shared with it or private. What is mapped stays mapped as long as somebody refers to it."""

    def __init__(self, fd: int, shared: bool, prot: int) -> None:
        """Takes a duplicate of ``fd``. ``prot`` is what the mapping is to have at first.

        Raises OSError: EBADF, EACCES as Linux; ENODEV where the host cannot copy memory that may fault.
        """
        status = os.fstat(fd)
        mode = _access_mode(fd)
        writable = not shared or mode == os.O_RDWR
        if mode == os.O_WRONLY or (prot & mman.PROT_WRITE and not writable):
            raise OSError(errno.EACCES, f"{os.strerror(errno.EACCES)}: fd {fd} is not open for that")
        if not can_map():
            raise OSError(errno.ENODEV, f"{os.strerror(errno.ENODEV)}: this host cannot copy memory that may fault")
        self.shared = shared
        self.max_prot = mman.PROT_READ | mman.PROT_EXEC | mman.PROT_WRITE * writable
        self.device, self.inode = status.st_dev, status.st_ino
        self._host_prot = _READ_WRITE if writable else mman.PROT_READ
        self._fd = os.dup(fd)
        self._prepared: HostMapping | None = None

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            os.close(fd)

    @property
    def key(self) -> tuple[object, ...]:
        """What mappings of one file have in common that may be one: Linux joins those, too."""
        return self.device, self.inode, self.shared, self.max_prot

    @property
    def path(self) -> str:
        """What the host calls the file now, as in /proc/PID/maps."""
        try:
            return str(Path(f"/proc/self/fd/{self._fd}").readlink())
        except OSError:
            return ""

    def size(self) -> int:
        """How many bytes the file has now."""
        return os.fstat(self._fd).st_size

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        return os.preadv(self._fd, [dst], offset)

    def prepare(self, start: int, end: int) -> None:
        """Map bytes [start, end) of the file for the next :meth:`piece`. Raises OSError if the host refuses."""
        self._prepared = HostMapping(self._fd, start, end - start, self._host_prot, self.shared)

    def piece(self, start: int, end: int) -> FaultyPiece:
        """Host memory of bytes [start, end) of the file, page-aligned; private pages are as the file has them.

        Raises OSError if the host refuses.
        """
        mapping, self._prepared = self._prepared, None
        if mapping is None or (mapping.offset, mapping.length) != (start, end - start):
            mapping = HostMapping(self._fd, start, end - start, self._host_prot, self.shared)
        return FaultyPiece(mapping, mapping.address, mapping.address + end - start)


class HostMapping:
    """Part of a file, mapped in this process: unmapped with the last reference to it."""

    def __init__(self, fd: int, offset: int, length: int, prot: int, shared: bool) -> None:
        self.offset = offset
        self.length = length
        self.address = 0
        flags = mman.MAP_SHARED if shared else mman.MAP_PRIVATE | mman.MAP_NORESERVE
        address = _libc().mmap(None, length, prot, flags, fd, offset)
        if address is None or address == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, f"{os.strerror(code)}: mmap of {length:#x} bytes at {offset:#x} of a file")
        self.address = address

    def __del__(self) -> None:
        if self.address:
            _libc().munmap(self.address, self.length)


class FaultyPiece:
    """``[start, end)``, host addresses in a mapping of a file."""

    __slots__ = ("_mapping", "end", "start")

    memory: Any = None  # there is none to slice

    def __init__(self, mapping: HostMapping, start: int, end: int) -> None:
        self._mapping = mapping
        self.start = start
        self.end = end

    def split(self, at: int) -> tuple[FaultyPiece, FaultyPiece]:
        """The parts before and from a host address strictly inside."""
        return FaultyPiece(self._mapping, self.start, at), FaultyPiece(self._mapping, at, self.end)

    def part(self, start: int, end: int) -> FaultyPiece:
        """[start, end) of it, host addresses."""
        return FaultyPiece(self._mapping, start, end)

    def block(self, offset: int, length: int) -> Block:
        """A block of it, which keeps the mapping."""
        return Block.from_address(self.start + offset, length, self._mapping)

    def drop(self) -> None:
        """Forget what private pages hold: the file's bytes are back (MADV_DONTNEED)."""
        _libc().madvise(self.start, self.end - self.start, mman.MADV_DONTNEED)

    def remove(self) -> None:
        """Make a hole in the file (MADV_REMOVE). Raises OSError if it cannot have any."""
        if _libc().madvise(self.start, self.end - self.start, mman.MADV_REMOVE):
            code = ctypes.get_errno()
            raise OSError(code, f"{os.strerror(code)}: MADV_REMOVE in a file")

    def populate(self, advice: int) -> bool:
        """Have the host place its pages (MADV_POPULATE_*); False if one lies beyond the end of the file."""
        return _libc().madvise(self.start, self.end - self.start, advice) == 0 or ctypes.get_errno() != errno.EFAULT

    def sync(self, flags: int) -> None:
        """msync(2)."""
        _libc().msync(self.start, self.end - self.start, flags)


def _access_mode(fd: int) -> int:
    try:
        import fcntl
    except ImportError:
        return os.O_RDONLY
    return fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)


@cache
def can_map() -> bool:
    """Whether this host can copy memory that may fault, which is what file mappings are."""
    if sys.platform != "linux":
        return False
    try:
        safecopy.copy_in(memoryview(bytearray(1)), 0)
    except HostFaultError:
        return True
    except OSError:
        pass
    return False


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.restype = pointer
    libc.mmap.argtypes = (pointer, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
    libc.munmap.argtypes = (pointer, size)
    libc.madvise.argtypes = libc.msync.argtypes = (pointer, size, ctypes.c_int)
    return libc
