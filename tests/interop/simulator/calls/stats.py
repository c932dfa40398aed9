"""What is known of a file: the stat family, access, links, directories' entries."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any, Final

from simulator import host
from simulator.calls.names import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, path_at
from simulator.process import Task
from simulator.table import Int, Result, syscall
from usermem import abi, write_bytes

_NANO: Final = 1_000_000_000
_LARGEST_LISTING: Final = 1 << 20


def stat_of(found: os.stat_result) -> abi.Stat:
    """The host's answer as struct stat."""
    fields: Any = found  # all of which are ints, whatever typeshed has
    mode, ino, dev, nlink, uid, gid, size, atime, mtime, ctime = fields
    first = dev, ino, nlink, mode, uid, gid, found.st_rdev, size, found.st_blksize, found.st_blocks
    times = atime, found.st_atime_ns % _NANO, mtime, found.st_mtime_ns % _NANO, ctime, found.st_ctime_ns % _NANO
    return abi.Stat._make(first + times)  # in three quarters of the time of abi.Stat(...)


@syscall(4)
def sys_stat(task: Task, path: int, addr: int) -> Result:
    return sys_newfstatat(task, AT_FDCWD, path, addr, 0)


@syscall(6)
def sys_lstat(task: Task, path: int, addr: int) -> Result:
    return sys_newfstatat(task, AT_FDCWD, path, addr, AT_SYMLINK_NOFOLLOW)


@syscall(5)
def sys_fstat(task: Task, fd: Int, addr: int) -> Result:
    abi.STAT.copy_out(task.memory, addr, stat_of(os.fstat(task.files[fd].host)))
    return 0


@syscall(262)
def sys_newfstatat(task: Task, dirfd: Int, path: int, addr: int, flags: Int) -> Result:
    where = path_at(task, dirfd, path, may_be_empty=bool(flags & AT_EMPTY_PATH))
    if where.name:
        found = os.stat(where.name, dir_fd=where.at, follow_symlinks=not flags & AT_SYMLINK_NOFOLLOW)
    else:
        found = os.fstat(where.at)
    abi.STAT.copy_out(task.memory, addr, stat_of(found))
    return 0


@syscall(332)
def sys_statx(task: Task, dirfd: Int, path: int, flags: Int, mask: Int, addr: int) -> Result:
    where = path_at(task, dirfd, path, may_be_empty=bool(flags & AT_EMPTY_PATH))
    write_bytes(task.memory, addr, host.system_call_for_struct(256, 332, where.at, where.name, flags, mask))
    return 0


@syscall(137)
def sys_statfs(task: Task, path: int, addr: int) -> Result:
    where = path_at(task, AT_FDCWD, path)
    file = os.open(where.name, os.O_PATH | os.O_CLOEXEC, dir_fd=where.at)
    try:
        found = host.system_call_for_struct(120, 138, file)
    finally:
        os.close(file)
    write_bytes(task.memory, addr, found)
    return 0


@syscall(138)
def sys_fstatfs(task: Task, fd: Int, addr: int) -> Result:
    write_bytes(task.memory, addr, host.system_call_for_struct(120, 138, task.files[fd].host))
    return 0


@syscall(21)
def sys_access(task: Task, path: int, mode: Int) -> Result:
    return sys_faccessat2(task, AT_FDCWD, path, mode, 0)


@syscall(269)
def sys_faccessat(task: Task, dirfd: Int, path: int, mode: Int) -> Result:
    return sys_faccessat2(task, dirfd, path, mode, 0)


@syscall(439)
def sys_faccessat2(task: Task, dirfd: Int, path: int, mode: Int, flags: Int) -> Result:
    where = path_at(task, dirfd, path, may_be_empty=bool(flags & AT_EMPTY_PATH))
    return host.system_call(439, where.at, where.name, mode, flags)


@syscall(89)
def sys_readlink(task: Task, path: int, addr: int, size: Int) -> Result:
    return sys_readlinkat(task, AT_FDCWD, path, addr, size)


@syscall(267)
def sys_readlinkat(task: Task, dirfd: Int, path: int, addr: int, size: Int) -> Result:
    if size <= 0:
        return -errno.EINVAL
    where = path_at(task, dirfd, path, may_be_empty=True)
    target = where.link if where.link is not None else os.readlink(where.name, dir_fd=where.at)
    return write_bytes(task.memory, addr, target[:size])


@syscall(79)
def sys_getcwd(task: Task, addr: int, size: int) -> Result:
    found = Path(f"/proc/self/fd/{task.process.directory.cwd}").readlink()
    if found.name.endswith(" (deleted)") and not found.exists():
        return -errno.ENOENT
    path = os.fsencode(found) + b"\0"
    return write_bytes(task.memory, addr, path) if len(path) <= size else -errno.ERANGE


@syscall(217)
def sys_getdents64(task: Task, fd: Int, addr: int, size: int) -> Result:
    file = task.files[fd].host
    entries = ctypes.create_string_buffer(min(size & 0xFFFF_FFFF, _LARGEST_LISTING))
    position = os.lseek(file, 0, os.SEEK_CUR)
    found = host.system_call(217, file, entries, len(entries))
    try:
        return write_bytes(task.memory, addr, entries.raw[:found])
    except OSError:
        os.lseek(file, position, os.SEEK_SET)
        raise


def sys_xattr(task: Task) -> Result:
    """Extended attributes are not passed on."""
    return -errno.EOPNOTSUPP


for _number in range(188, 200):
    syscall(_number)(sys_xattr)
