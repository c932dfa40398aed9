"""System calls of the simulator as a user of Unicorn writes them by hand: over uc.mem_read, uc.mem_write and struct.

Each is the handler of a system call of Linux's, :data:`BY_HAND` higher: the kernel calls both in the same way. They are
written to be quick, and right where all memory is there: one call of Unicorn's where one will do, and what was moved
before a fault where that is simple. Nothing is atomic, no other process's futex is found, and a fault loses data.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

import unicorn

from simulator import signals
from simulator.process import Memory, Task
from simulator.table import Int, Result, syscall
from usermem import abi

BY_HAND: Final = 1000
UcError: Final[type[Exception]] = unicorn.UcError  # type: ignore[attr-defined]
_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_PATH_MAX: Final = 4096
_PAGE: Final = 4096
_CHUNK: Final = 64
_NANO: Final = 1_000_000_000
_HOST_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_TIMESPEC: Final = Struct("<qq")
_STAT: Final = Struct("<QQQIII4xQqqq6Q24x")
_SIGACTION: Final = Struct("<QQQQ")
_IOVEC: Final = Struct("<QQ")


# --- user memory


def read_string(uc: Any, addr: int, maxlen: int) -> bytes:
    """A string, 64 bytes at a time and never past the page that its end is in. Raises UcError, OSError."""
    found = b""
    while len(found) < maxlen:
        chunk = uc.mem_read(addr, min(_CHUNK, _PAGE - addr % _PAGE))
        end = chunk.find(0)
        if end >= 0:
            text: bytes = found + chunk[:end]
            return text
        found += chunk
        addr += len(chunk)
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def read_timespec(uc: Any, addr: int) -> tuple[int, int]:
    """Seconds and nanoseconds."""
    found: tuple[int, int] = _TIMESPEC.unpack(uc.mem_read(addr, 16))
    return found


def write_stat(uc: Any, addr: int, found: os.stat_result) -> None:
    """The host's answer as struct stat."""
    atime, mtime, ctime = found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns
    data = _STAT.pack(
        *(found.st_dev, found.st_ino, found.st_nlink, found.st_mode, found.st_uid, found.st_gid, found.st_rdev),
        *(found.st_size, found.st_blksize, found.st_blocks),
        *(atime // _NANO, atime % _NANO, mtime // _NANO, mtime % _NANO, ctime // _NANO, ctime % _NANO),
    )
    uc.mem_write(addr, data)


def read_sigaction(uc: Any, addr: int) -> abi.Sigaction:
    """The kernel's struct sigaction."""
    return abi.Sigaction(*_SIGACTION.unpack(uc.mem_read(addr, 32)))


def write_sigaction(uc: Any, addr: int, action: abi.Sigaction) -> None:
    """The other way."""
    uc.mem_write(addr, _SIGACTION.pack(*action))


def read_iovecs(uc: Any, addr: int, count: int) -> list[tuple[int, int]]:
    """A table of addresses and lengths."""
    return list(_IOVEC.iter_unpack(uc.mem_read(addr, 16 * count)))


# --- system calls


@syscall(BY_HAND + 0)
def sys_read(task: Task, fd: Int, addr: int, n: int) -> Result:
    data = os.read(task.files[fd].host, n)
    try:
        task.cpu.uc.mem_write(addr, data)
    except UcError:
        return -errno.EFAULT
    return len(data)


@syscall(BY_HAND + 1)
def sys_write(task: Task, fd: Int, addr: int, n: int) -> Result:
    host = task.files[fd].host
    try:
        data = task.cpu.uc.mem_read(addr, n)
    except UcError:
        return -errno.EFAULT
    return os.write(host, data)


@syscall(BY_HAND + 19)
def sys_readv(task: Task, fd: Int, iov: int, iovcnt: int) -> Result:
    uc, host = task.cpu.uc, task.files[fd].host
    if not 0 <= iovcnt <= 1024:
        return -errno.EINVAL
    done = 0
    try:
        table = read_iovecs(uc, iov, iovcnt)
        data = os.read(host, sum([n for _, n in table]))
        for addr, n in table:
            part = data[done : done + n]
            uc.mem_write(addr, part)
            done += len(part)
    except UcError:
        return done or -errno.EFAULT
    return done


@syscall(BY_HAND + 20)
def sys_writev(task: Task, fd: Int, iov: int, iovcnt: int) -> Result:
    uc, host = task.cpu.uc, task.files[fd].host
    if not 0 <= iovcnt <= 1024:
        return -errno.EINVAL
    try:
        parts = [uc.mem_read(addr, n) for addr, n in read_iovecs(uc, iov, iovcnt)]
    except UcError:
        return -errno.EFAULT
    return os.writev(host, parts)


@syscall(BY_HAND + 4)
def sys_stat(task: Task, path: int, addr: int) -> Result:
    return sys_newfstatat(task, _AT_FDCWD, path, addr, 0)


@syscall(BY_HAND + 5)
def sys_fstat(task: Task, fd: Int, addr: int) -> Result:
    try:
        write_stat(task.cpu.uc, addr, os.fstat(task.files[fd].host))
    except UcError:
        return -errno.EFAULT
    return 0


@syscall(BY_HAND + 262)
def sys_newfstatat(task: Task, dirfd: Int, path: int, addr: int, flags: Int) -> Result:
    uc = task.cpu.uc
    try:
        name = read_string(uc, path, _PATH_MAX)
        at = _directory(task, dirfd, name)
        write_stat(uc, addr, os.stat(name, dir_fd=at, follow_symlinks=not flags & _AT_SYMLINK_NOFOLLOW))
    except UcError:
        return -errno.EFAULT
    return 0


@syscall(BY_HAND + 2)
def sys_open(task: Task, path: int, flags: Int, mode: Int) -> Result:
    return sys_openat(task, _AT_FDCWD, path, flags, mode)


@syscall(BY_HAND + 257)
def sys_openat(task: Task, dirfd: Int, path: int, flags: Int, mode: Int) -> Result:
    try:
        name = read_string(task.cpu.uc, path, _PATH_MAX)
    except UcError:
        return -errno.EFAULT
    at, mode = _directory(task, dirfd, name), mode & 0o7777 & ~task.process.directory.umask
    return task.files.open_host(os.open(name, flags | _HOST_FLAGS, mode, dir_fd=at), flags)


def _directory(task: Task, dirfd: int, name: bytes) -> int:
    """What a name is relative to on the host. Raises OSError."""
    return task.process.directory.cwd if dirfd == _AT_FDCWD or name[:1] == b"/" else task.files[dirfd].host


@syscall(BY_HAND + 13)
def sys_rt_sigaction(task: Task, signo: Int, new: int, old: int, size: int) -> Result:
    uc, process = task.cpu.uc, task.process
    if not 1 <= signo <= 64 or size != 8:
        return -errno.EINVAL
    before = signals.action_of(process, signo)
    try:
        if new:
            action = read_sigaction(uc, new)
            process.actions[signo] = action._replace(sa_mask=signals.mask_of(action.sa_mask))
            if signals.is_ignored(process, signo):
                process.pending.pop(signo, None)
                for each in process.tasks:
                    each.pending.pop(signo, None)
        if old:
            write_sigaction(uc, old, before)
    except UcError:
        return -errno.EFAULT
    return 0


Sleepers = dict[tuple[Memory, int], list[Callable[[], None]]]
_sleepers: Final[Sleepers] = {}
"""How to wake who waits for a word."""


@syscall(BY_HAND + 202)
def sys_futex(task: Task, addr: int, operation: Int, val: int, timeout: int, addr2: int, val3: int) -> Result:
    command = operation & 127
    if addr & 3:
        return -errno.EINVAL
    if command == 1:  # FUTEX_WAKE
        waiting = _sleepers.get((task.process.memory, addr))
        return _wake(waiting, val) if waiting else 0
    if command == 0:  # FUTEX_WAIT
        try:
            found = int.from_bytes(task.cpu.uc.mem_read(addr, 4), "little")
        except UcError:
            return -errno.EFAULT
        if found != val & 0xFFFF_FFFF:
            return -errno.EAGAIN
    return -errno.ENOSYS  # nothing is timed that sleeps


def _wake(waiting: list[Callable[[], None]], most: int) -> int:
    woken = waiting[:most]
    del waiting[:most]
    for wake in woken:
        wake()
    return len(woken)
