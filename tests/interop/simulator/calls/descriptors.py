"""Descriptors: open, close, dup, fcntl, ioctl, pipes."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import re
import stat
import time
from collections.abc import Callable
from typing import Final

from simulator.calls.names import Path, path_at
from simulator.files import OpenFile, kept
from simulator.process import Task
from simulator.table import Int, Result, syscall
from simulator.waits import Wait, Waiting
from usermem import copy_int32_in, copy_int32_out, copy_string_in, copy_struct_out, read_bytes, write_bytes

_AT_FDCWD: Final = -100
_HOST_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_POLL: Final = 0.005
_PROC: Final = pathlib.Path("/proc").stat().st_dev
_F_DUPFD_CLOEXEC: Final = 1030
_NUMBERS: Final = {1031, 1032, 1033, 1034}
"""Commands of fcntl whose argument is a number: pipes' sizes, and seals. Of others the host takes a pointer."""
_LOCKS: Final = {
    fcntl.F_GETLK: (fcntl.F_GETLK, False),
    fcntl.F_SETLK: (fcntl.F_SETLK, False),
    fcntl.F_SETLKW: (fcntl.F_SETLK, True),
    fcntl.F_OFD_GETLK: (fcntl.F_OFD_GETLK, False),
    fcntl.F_OFD_SETLK: (fcntl.F_OFD_SETLK, False),
    fcntl.F_OFD_SETLKW: (fcntl.F_OFD_SETLK, True),
}
"""Commands with a struct flock: what the host is asked, and whether the caller waits."""
_TESTS: Final = {fcntl.F_GETLK, fcntl.F_OFD_GETLK}
_IN, _OUT = True, False
_IOCTLS: Final = {
    0x5401: (_OUT, 36),  # TCGETS
    0x5402: (_IN, 36),  # TCSETS
    0x5403: (_IN, 36),
    0x5404: (_IN, 36),
    0x5413: (_OUT, 8),  # TIOCGWINSZ
    0x541B: (_OUT, 4),  # FIONREAD
}
"""Requests that the host is asked, with the size of their argument."""


@syscall(2)
def sys_open(task: Task, path: int, flags: Int, mode: Int) -> Result:
    return sys_openat(task, _AT_FDCWD, path, flags, mode)


@syscall(85)
def sys_creat(task: Task, path: int, mode: Int) -> Result:
    return sys_openat(task, _AT_FDCWD, path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)


@syscall(257)
def sys_openat(task: Task, dirfd: Int, path: int, flags: Int, mode: Int) -> Result:
    where = path_at(task, dirfd, path)
    if where.name == b"/proc/self/maps":
        return task.files.open_host(_maps(task), flags)
    mode &= 0o7777 & ~task.process.directory.umask
    try:
        host = os.open(where.name, flags | _HOST_FLAGS, mode, dir_fd=where.at)
    except OSError as error:
        if error.errno == errno.ENXIO and not flags & os.O_NONBLOCK and _is_fifo(where):
            return _open_fifo(task, where, flags)
        raise
    if _is_of_the_simulator(host, flags):
        os.close(host)
        return -errno.EACCES
    return task.files.open_host(host, flags)


def _is_of_the_simulator(host: int, flags: int) -> bool:
    """Whether a file of /proc is the simulator's own memory, or would change what it is."""
    if os.fstat(host).st_dev != _PROC:
        return False
    found = re.match(rf"/proc/{os.getpid()}/(.*/)?(\w+)$", str(pathlib.Path(f"/proc/self/fd/{host}").readlink()))
    return found is not None and (found[2] == "mem" or flags & os.O_ACCMODE != os.O_RDONLY)


def _is_fifo(path: Path) -> bool:
    return stat.S_ISFIFO(os.stat(path.name, dir_fd=path.at).st_mode)


def _open_fifo(task: Task, path: Path, flags: int) -> Waiting:
    """Open a FIFO for writing when somebody reads it."""
    while True:
        yield Wait(deadline=time.monotonic() + _POLL)
        try:
            host = os.open(path.name, flags | _HOST_FLAGS, dir_fd=path.at)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        else:
            return task.files.open_host(host, flags)


def _maps(task: Task) -> int:
    """A file that says what is mapped."""
    host = os.memfd_create("maps")
    os.write(host, task.space.maps().encode())
    os.lseek(host, 0, os.SEEK_SET)
    return host


@syscall(319)
def sys_memfd_create(task: Task, name: int, flags: int) -> Result:
    host = os.memfd_create(os.fsdecode(copy_string_in(task.memory, name, 250)), flags & 0xFFFF_FFFF | os.MFD_CLOEXEC)
    return task.files.open_host(host, os.O_CLOEXEC if flags & os.MFD_CLOEXEC else 0)


@syscall(3)
def sys_close(task: Task, fd: Int) -> Result:
    task.files.close(fd)
    return 0


@syscall(436)
def sys_close_range(task: Task, first: int, last: int, flags: Int) -> Result:
    for fd in [fd for fd in task.files.table if first & 0xFFFF_FFFF <= fd <= last & 0xFFFF_FFFF]:
        if flags & 4:  # CLOSE_RANGE_CLOEXEC
            task.files.entry(fd).cloexec = True
        else:
            task.files.close(fd)
    return 0


@syscall(32)
def sys_dup(task: Task, fd: Int) -> Result:
    return task.files.install(task.files[fd])


@syscall(33)
def sys_dup2(task: Task, old: Int, new: Int) -> Result:
    file = task.files[old]
    return new if old == new else task.files.install_at(new, file)


@syscall(292)
def sys_dup3(task: Task, old: Int, new: Int, flags: Int) -> Result:
    if old == new or flags & ~os.O_CLOEXEC:
        return -errno.EINVAL
    return task.files.install_at(new, task.files[old], cloexec=bool(flags & os.O_CLOEXEC))


@syscall(22)
def sys_pipe(task: Task, fds: int) -> Result:
    return sys_pipe2(task, fds, 0)


@syscall(293)
def sys_pipe2(task: Task, fds: int, flags: Int) -> Result:
    if flags & ~(os.O_CLOEXEC | os.O_NONBLOCK | os.O_DIRECT):
        return -errno.EINVAL
    hosts = os.pipe2(flags & os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK)
    files = [OpenFile(host, nonblocking=bool(flags & os.O_NONBLOCK)) for host in hosts]
    opened: list[int] = []
    with kept(files):
        try:
            for file in files:
                opened.append(task.files.install(file, cloexec=bool(flags & os.O_CLOEXEC)))
            copy_struct_out(task.memory, fds, "ii", *opened)
        except OSError:
            for fd in opened:
                task.files.close(fd)
            raise
    return 0


@syscall(72)
def sys_fcntl(task: Task, fd: Int, command: Int, argument: int) -> Result:
    entry = task.files.entry(fd)
    if command in (fcntl.F_DUPFD, _F_DUPFD_CLOEXEC):
        if argument >= task.files.limit:
            return -errno.EINVAL
        return task.files.install(entry.file, cloexec=command == _F_DUPFD_CLOEXEC, lowest=argument)
    if command == fcntl.F_GETFD:
        return int(entry.cloexec)
    if command == fcntl.F_SETFD:
        entry.cloexec = bool(argument & fcntl.FD_CLOEXEC)
        return 0
    if command == fcntl.F_GETFL:
        return entry.file.flags()
    if command == fcntl.F_SETFL:
        entry.file.set_flags(argument & 0xFFFF_FFFF)
        return 0
    if command in _LOCKS:
        return _lock(task, entry.file, command, argument)
    if command in _NUMBERS:
        return fcntl.fcntl(entry.file.host, command, argument & 0x7FFF_FFFF)
    return -errno.EINVAL


def _lock(task: Task, file: OpenFile, command: int, addr: int) -> Result:
    """Record locks: they are the simulator's, so the processes in it do not exclude each other."""
    lock = read_bytes(task.memory, addr, 32)
    command, waits = _LOCKS[command]
    if waits:
        return _when_free(file, lambda: fcntl.fcntl(file.host, command, lock))
    found = fcntl.fcntl(file.host, command, lock)
    if command in _TESTS:
        write_bytes(task.memory, addr, found)
    return 0


def _when_free(file: OpenFile, lock: Callable[[], object]) -> Waiting:
    """Take a lock as soon as it can be had."""
    with kept([file]):
        while True:
            try:
                lock()
                return 0
            except (BlockingIOError, PermissionError):
                yield Wait(deadline=time.monotonic() + _POLL)


@syscall(73)
def sys_flock(task: Task, fd: Int, operation: Int) -> Result:
    file = task.files[fd]
    if not operation & fcntl.LOCK_NB:
        return _when_free(file, lambda: fcntl.flock(file.host, operation | fcntl.LOCK_NB))
    fcntl.flock(file.host, operation)
    return 0


@syscall(16)
def sys_ioctl(task: Task, fd: Int, request: int, argument: int) -> Result:
    entry, request = task.files.entry(fd), request & 0xFFFF_FFFF
    if request in (0x5450, 0x5451):  # FIONCLEX, FIOCLEX
        entry.cloexec = request == 0x5451
        return 0
    if request == 0x5421:  # FIONBIO
        entry.file.nonblocking = bool(copy_int32_in(task.memory, argument))
        return 0
    host = entry.file.host
    if request in (0x540F, 0x5410) and os.isatty(host):  # TIOCGPGRP, TIOCSPGRP: all in the simulator is in front
        if request == 0x540F:
            copy_int32_out(task.memory, argument, task.process.pgid)
        return 0
    if request not in _IOCTLS:
        return -errno.ENOTTY
    goes_in, size = _IOCTLS[request]
    found = fcntl.ioctl(host, request, read_bytes(task.memory, argument, size) if goes_in else bytes(size))
    if not goes_in:
        write_bytes(task.memory, argument, found)
    return 0
