"""HostFile: a file of the host's behind guest mappings, coherent with it, and safe from whoever truncates it.

The host maps the file too, a window at a time when it is touched, and copies go by safecopy: a page beyond the file's
end is a fault with an exact count, and no signal. All shared mappings of a file have its windows in common; a private
one has windows of its own, in which the host's copy-on-write keeps what it writes.

One descriptor serves all mappings of one file (device and inode, and whether it may be written). Closing any descriptor
of a file drops the POSIX record locks that the process holds on it (fcntl(2)), and mmap(2) must not: so a descriptor is
closed only when nobody has a lock on the file, and waits otherwise.

Source: mmap(2); Linux mm/filemap.c.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from hostarch import ANY_ACCESS, mman
from safemem import HostFaultError, safecopy
from safemem.errors import error
from safemem.fork import fork_safe_lock
from usermem.mm import host_calls
from usermem.mm.backing.backing import Backing, identity
from usermem.mm.faulting import can_map
from usermem.mm.host_calls import READ_WRITE
from usermem.mm.host_mapping import Held, HostMapping
from usermem.mm.host_run import HostRun

_WINDOW: Final = 1 << 26

LARGEST_FILE: Final = (1 << 63) - 1
"""Where a file of the host's ends at most: MAX_LFS_FILESIZE."""

_FLOCK: Final = "hhqqi4x"  # struct flock: type, whence, start, length, pid

_NOEXEC: Final = getattr(os, "ST_NOEXEC", 0)
_F_GET_SEALS: Final = 1034
_F_SEAL_SEAL: Final = 1
_F_SEAL_WRITE: Final = 8
_F_SEAL_FUTURE_WRITE: Final = 16

_FIRST_PAGE: Final = -1, 0  # among the windows

_Key = tuple[int, int, bool]


class _Closing:
    """What has a descriptor, and closes it when it goes. See host_calls.Unmapping, also for how it gets it."""

    __slots__ = ("fd", "key")

    def __init__(self, key: _Key, fd: int, copied: bool = True) -> None:
        """Raises OSError if ``fd`` is to be ``copied``, and the host has no descriptor left."""
        self.key: _Key = key
        self.fd: int = -1
        (self.fd,) = map(os.dup if copied else int, [fd])

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.fd >= 0 and not ended():
            _unused.append((self.key, self.fd))
            _close_unused()


class _OpenFile:
    """A descriptor that all mappings of one file share, and the windows of it that are mapped now.

    What is no regular file has one for each mapping: an inode does not name its memory (/dev/zero, devices).
    """

    def __init__(self, closing: _Closing, regular: bool = True) -> None:
        self._closing = closing
        self.key: _Key = closing.key
        self.fd: int = closing.fd
        self.regular = regular
        self.lock: threading.RLock = fork_safe_lock()
        self.tail: tuple[int, int] = 0, 0
        """Where zeros are put behind the file's end, for guests whose pages are larger than the host's."""
        self.settled: tuple[int, int] = self.tail
        """The tail that was put into each mapping."""
        self.windows: WeakValueDictionary[tuple[int, int], HostMapping] = WeakValueDictionary()
        self.tails: WeakKeyDictionary[HostMapping, tuple[int, int]] = WeakKeyDictionary()
        """Of the mappings for such guests, the zeros that were put into each."""

    @property
    def host_prot(self) -> int:
        """The rights of shared host mappings."""
        return READ_WRITE if self.key[2] else mman.PROT_READ

    def hold(self) -> HostMapping:
        """The file's first page, mapped writable for as long as somebody holds it.

        So a memory file cannot be sealed against writing then, as Linux has it (EBUSY), and what is mapped later may be
        written though the file is sealed against new mappings that may. Raises MemoryError as HostMapping.
        """
        page = self.windows.get(_FIRST_PAGE)
        if page is None:
            page = HostMapping(self.fd, 0, mmap.PAGESIZE, self.host_prot, mman.MAP_SHARED)
            page = self.windows.setdefault(_FIRST_PAGE, page)
        return page


_open_files: WeakValueDictionary[_Key, _OpenFile] = WeakValueDictionary()
_unused: deque[tuple[_Key, int]] = deque()


def _open_file(fd: int, status: os.stat_result, writable: bool) -> _OpenFile:
    """The open file that a descriptor's mappings share. Raises OSError if the host has no descriptor left."""
    key = (status.st_dev, status.st_ino, writable)
    if not stat.S_ISREG(status.st_mode):
        return _OpenFile(_Closing(key, fd), regular=False)
    file = _open_files.get(key)
    if file is not None:
        return file
    for found in tuple(_unused):
        if found[0] == key:
            with suppress(ValueError):  # another thread was first
                _unused.remove(found)
                return _open_files.setdefault(key, _OpenFile(_Closing(*found, copied=False)))
    _close_unused()
    return _open_files.setdefault(key, _OpenFile(_Closing(key, fd)))


def _close_unused() -> None:
    """Close descriptors that serve no mapping, of files that nobody has locked: two at most, lest many make it slow."""
    for _ in range(min(2, len(_unused))):
        try:
            key, fd = _unused.popleft()
        except IndexError:
            return
        if _is_locked(fd):
            _unused.append((key, fd))
        else:
            with suppress(OSError):  # a sandbox that refuses even that; this may be in a destructor
                os.close(fd)


def _is_locked(fd: int) -> bool:
    """Whether a process has a record lock on the file, this one included: to an open file description all are others.

    Asked of the host (F_OFD_GETLK); where it cannot tell, the answer is yes.
    """
    try:
        import fcntl

        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # what a lock on all of the file would meet
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    except (ImportError, AttributeError, OSError):
        return True
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


class HostFile(Backing):
    """A mapping of a file, shared with it or private."""

    is_synced = True

    def __init__(
        self, file: _OpenFile, shared: bool, max_prot: int, page: int, first_page: HostMapping | None = None
    ) -> None:
        """Use :func:`host_file`. ``page`` is the guest's page size, ``first_page`` what _OpenFile.hold returned."""
        self._file = file
        self._shared = shared
        self._first_page = first_page
        self.max_prot = max_prot
        self.device: int = file.key[0]
        self.inode: int = file.key[1]
        self._page = page if page > mmap.PAGESIZE else 0  # 0 where the host's pages do

    @property
    def key(self) -> object:
        """Linux merges neighbours of one file that have the same rights."""
        return self if not self._file.regular else self._file.key, self._shared, self.max_prot

    @property
    def identity(self) -> object:
        """The inode, however it was opened. What is no regular file has memory of each mapping's own."""
        return (type(self), *self._file.key[:2]) if self._file.regular else identity(self._file)

    @property
    def label(self) -> str:  # type: ignore[override]
        """What the host calls the file now, as in /proc/PID/maps."""
        try:
            return os.readlink(f"/proc/self/fd/{self._file.fd}")  # noqa: PTH115 - pathlib takes 3.5 ms at import
        except OSError:
            return ""

    def run(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        start = offset & -_WINDOW
        if self._shared and self._file.regular:
            mapping = self._file.windows.get((start, self._page))
            if mapping is None:
                length = min(_WINDOW, LARGEST_FILE - start + 1)
                try:
                    mapping = HostMapping(self._file.fd, start, length, self._file.host_prot, mman.MAP_SHARED)
                except MemoryError:
                    if self._first_page is None:
                        raise
                    mapping = HostMapping(self._first_page, start, length, self._file.host_prot, mman.MAP_SHARED)
                mapping = self._file.windows.setdefault((start, self._page), mapping)
        else:
            start, end = max(start, low), min(start + _WINDOW, high)
            prot, flags = READ_WRITE, mman.MAP_PRIVATE
            if self._shared:
                prot, flags = self._file.host_prot, mman.MAP_SHARED
            mapping = HostMapping(self._file.fd, start, end - start, prot, flags)
        if self._page:
            if mapping.overlay is not None:
                mapping.overlay.copies = True  # what is behind the file's end is not always the file's
            with self._file.lock:
                self._file.tails.setdefault(mapping, (0, 0))
                self._move_zeros(mapping, self._file.tail)
        return start, mapping.run(0, mapping.length, Held(self._file, mapping))

    def resident(self, start: int, end: int, page: int) -> bytes:
        # mincore needs a mapping: file_resident makes one of the file for a moment.
        size = os.fstat(self._file.fd).st_size
        return host_calls.file_resident(self._file.fd, start, min(end, -(-size // page) * page), page).ljust(
            (end - start) // page, b"\0"
        )

    def private(self) -> HostFile:
        return HostFile(self._file, False, self.max_prot, self._page)

    def discard(self, run: HostRun) -> bool:
        """Forget what private pages hold: the file's bytes are back (MADV_DONTNEED), anew if the host refuses it."""
        if not run.may_fault:  # a copy, for an emulator
            return False
        return not run.is_imaged and host_calls.can_advise(run.address, len(run), mman.MADV_DONTNEED)

    def punch(self, start: int, end: int) -> None:
        """Make a hole in the file (MADV_REMOVE). Raises OSError if it cannot have any."""
        host_calls.punch_hole(self._file.fd, start, end)

    def populate(self, run: HostRun, advice: int) -> bool:
        try:
            host_calls.advise(run.address, len(run), advice)
        except OSError as exc:
            return exc.errno != errno.EFAULT
        return True

    def sync(self, run: HostRun, flags: int) -> None:
        """msync(2). Raises what the host raises."""
        host_calls.sync(run.address, len(run), flags)

    def accessible(self, page: int) -> int | None:
        """None where pages are the host's: it finds the file's end, to the byte, when it is touched.

        Larger pages of the guest's are whole behind the file's end, and zero there, as on a host that has such pages.
        """
        if page <= mmap.PAGESIZE:
            return None
        size = os.fstat(self._file.fd).st_size
        end = -(-size // page) * page
        tail = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, end
        if tail != self._file.settled:
            with self._file.lock:
                self._file.tail = tail
                for mapping in list(self._file.tails):
                    self._move_zeros(mapping, tail)
                self._file.settled = tail  # not before: what stops the loop leaves the rest to the next access
        return end

    def reach(self, page: int) -> int:
        end = self.accessible(page)  # which puts zeros behind the file's end
        return -(-os.fstat(self._file.fd).st_size // page) * page if end is None else end

    def _move_zeros(self, mapping: HostMapping, new: tuple[int, int]) -> None:
        """Show the file again where zeros were behind its end, and put them where they belong now.

        A private page keeps what was written to it. Raises MemoryError if the host refuses.
        """
        old = self._file.tails[mapping]
        low, high = mapping.offset, mapping.offset + mapping.length
        try:
            for start, end in _without(old, new):
                if low <= start < end <= high:
                    self._show_file(mapping, mapping.address + start - low, start, end)
            for start, end in _without(new, old):
                if low <= start < end <= high:
                    host_calls.map_zeros(mapping.address + start - low, end - start, mapping.prot)
        except OSError as exc:
            raise MemoryError(f"the host does not map zeros behind a file's end: {exc}") from exc
        self._file.tails[mapping] = new

    def _show_file(self, mapping: HostMapping, address: int, start: int, end: int) -> None:
        import ctypes  # 2 ms at import

        written = ctypes.string_at(address, end - start) if mapping.flags == mman.MAP_PRIVATE else b""
        host_calls.map_over(address, self._file.fd, start, end - start, mapping.prot, mapping.flags)
        for at in range(0, len(written), mmap.PAGESIZE):
            page = written[at : at + mmap.PAGESIZE]
            if any(page):
                with suppress(HostFaultError):  # the file has gone again
                    safecopy.copy_out(address + at, memoryview(page))


def _without(part: tuple[int, int], other: tuple[int, int]) -> list[tuple[int, int]]:
    """What of one range does not lie in another."""
    return [(part[0], min(part[1], max(other[0], part[0]))), (max(part[0], min(other[1], part[1])), part[1])]


def host_file(fd: int, flags: int, prot: int, offset: int, page: int) -> HostFile:
    """What a mapping of a descriptor shows; ``flags`` are the host's, ``page`` is the guest's page size.

    Raises OSError: EBADF, EACCES, EPERM, ENODEV, EOPNOTSUPP as Linux; ENODEV too where the host cannot copy memory that
    may fault; EMFILE if no descriptor is left for a file that is not mapped yet.
    """
    kind, rare = flags & mman.MAP_TYPE, flags & (mman.MAP_SYNC | mman.MAP_GROWSDOWN)
    shared = kind != mman.MAP_PRIVATE
    offset &= -mmap.PAGESIZE
    if rare:  # which the host refuses in its turn, between what is checked below
        host_calls.try_map(fd, offset, prot & ANY_ACCESS, kind | rare)
        if kind == mman.MAP_SHARED_VALIDATE and rare & mman.MAP_SYNC:
            raise error(errno.EOPNOTSUPP, "MAP_SYNC: files are mapped as if none were persistent memory")
    status = os.fstat(fd)
    mode = _status_flags(fd) & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
    stores = mode == os.O_RDWR  # whether what shared mappings write may reach the file
    if mode == os.O_WRONLY or (shared and prot & mman.PROT_WRITE and not stores):
        raise error(errno.EACCES, f"fd {fd} is not open for that")
    executable = not _is_noexec(fd)
    if prot & mman.PROT_EXEC and not executable:
        raise error(errno.EPERM, f"fd {fd} is of a filesystem that is mounted noexec")
    seals = _seals(fd)
    stores = stores and not seals & (_F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE)
    writable = stores or not shared
    if prot & mman.PROT_WRITE and not writable:
        raise error(errno.EPERM, f"fd {fd} is sealed against writing")
    if not can_map():
        raise error(errno.ENODEV, "this host cannot copy memory that may fault")
    # A page is mapped for a moment: what the host refuses, it refuses now and not when the guest touches it.
    flags = mman.MAP_SHARED if shared else mman.MAP_PRIVATE
    host_prot = READ_WRITE if writable else mman.PROT_READ
    try:
        host_calls.try_map(fd, offset, host_prot, flags)
    except OSError:
        if prot & mman.PROT_EXEC:  # for what has no mappings may forbid this first
            host_calls.try_map(fd, offset, host_prot | mman.PROT_EXEC, flags)
        raise
    file = _open_file(fd, status, stores)
    max_prot = mman.PROT_READ | mman.PROT_EXEC * executable | mman.PROT_WRITE * writable
    first_page = None
    if shared and stores and not seals & _F_SEAL_SEAL:
        try:
            first_page = file.hold()
        except MemoryError as exc:
            raise error(errno.ENOMEM, str(exc)) from None
    return HostFile(file, shared, max_prot, page, first_page)


def file_limit(fd: int) -> int:
    """Where a descriptor's mappings must end at the latest, as an offset: file_mmap_size_max, mm/mmap.c.

    Raises OSError (EBADF) if it is none, or one that only names a file (O_PATH).
    """
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if _status_flags(fd) & getattr(os, "O_PATH", 0):
        raise error(errno.EBADF, f"fd {fd} only names a file")
    return LARGEST_FILE if kind in (stat.S_IFREG, stat.S_IFBLK, stat.S_IFSOCK) else (1 << 64) - 1


def _status_flags(fd: int) -> int:
    try:
        import fcntl
    except ImportError:
        return os.O_RDONLY
    return fcntl.fcntl(fd, fcntl.F_GETFL)


def _seals(fd: int) -> int:
    """The seals of a memory file (fcntl(2), F_ADD_SEALS). Of any other file: that it can have none."""
    try:
        import fcntl

        return fcntl.fcntl(fd, _F_GET_SEALS)
    except (ImportError, OSError):
        return _F_SEAL_SEAL


def _is_noexec(fd: int) -> bool:
    """Whether the descriptor's filesystem is mounted noexec. A host that refuses to tell is asked for such a page."""
    try:
        return bool(os.fstatvfs(fd).f_flag & _NOEXEC)
    except OSError:
        pass
    try:
        host_calls.try_map(fd, 0, mman.PROT_READ | mman.PROT_EXEC, mman.MAP_PRIVATE)
    except OSError as exc:
        return exc.errno == errno.EPERM
    return False
