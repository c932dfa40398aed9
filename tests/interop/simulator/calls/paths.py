"""What changes names: directories, links, modes, owners, times."""

from __future__ import annotations

import errno
import os

from simulator import host
from simulator.calls.names import AT_EMPTY_PATH, AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_NOFOLLOW, path_at
from simulator.process import Task
from simulator.table import Int, Long, Result, syscall
from usermem import copy_string_in, read_bytes


@syscall(80)
def sys_chdir(task: Task, path: int) -> Result:
    where = path_at(task, AT_FDCWD, path)
    file = os.open(where.name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=where.at)
    return _change(task, file)


@syscall(81)
def sys_fchdir(task: Task, fd: Int) -> Result:
    file = os.open(f"/proc/self/fd/{task.files[fd].host}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return _change(task, file)


def _change(task: Task, file: int) -> int:
    try:
        host.system_call(439, file, b".", os.X_OK, 0)
    except OSError:
        os.close(file)
        raise
    task.process.directory.move(file)
    return 0


@syscall(95)
def sys_umask(task: Task, mask: Int) -> Result:
    directory = task.process.directory
    old, directory.umask = directory.umask, mask & 0o777
    return old


@syscall(83)
def sys_mkdir(task: Task, path: int, mode: Int) -> Result:
    return sys_mkdirat(task, AT_FDCWD, path, mode)


@syscall(258)
def sys_mkdirat(task: Task, dirfd: Int, path: int, mode: Int) -> Result:
    where = path_at(task, dirfd, path)
    os.mkdir(where.name, mode & ~task.process.directory.umask, dir_fd=where.at)
    return 0


@syscall(133)
def sys_mknod(task: Task, path: int, mode: Int, device: int) -> Result:
    return sys_mknodat(task, AT_FDCWD, path, mode, device)


@syscall(259)
def sys_mknodat(task: Task, dirfd: Int, path: int, mode: Int, device: int) -> Result:
    where = path_at(task, dirfd, path)
    os.mknod(where.name, mode & ~task.process.directory.umask, device & 0xFFFF_FFFF, dir_fd=where.at)
    return 0


@syscall(84)
def sys_rmdir(task: Task, path: int) -> Result:
    return sys_unlinkat(task, AT_FDCWD, path, AT_REMOVEDIR)


@syscall(87)
def sys_unlink(task: Task, path: int) -> Result:
    return sys_unlinkat(task, AT_FDCWD, path, 0)


@syscall(263)
def sys_unlinkat(task: Task, dirfd: Int, path: int, flags: Int) -> Result:
    where = path_at(task, dirfd, path)
    return host.system_call(263, where.at, where.name, flags)


@syscall(82)
def sys_rename(task: Task, old: int, new: int) -> Result:
    return sys_renameat2(task, AT_FDCWD, old, AT_FDCWD, new, 0)


@syscall(264)
def sys_renameat(task: Task, old_dirfd: Int, old: int, new_dirfd: Int, new: int) -> Result:
    return sys_renameat2(task, old_dirfd, old, new_dirfd, new, 0)


@syscall(316)
def sys_renameat2(task: Task, old_dirfd: Int, old: int, new_dirfd: Int, new: int, flags: Int) -> Result:
    source, target = path_at(task, old_dirfd, old), path_at(task, new_dirfd, new)
    return host.system_call(316, source.at, source.name, target.at, target.name, flags)


@syscall(86)
def sys_link(task: Task, old: int, new: int) -> Result:
    return sys_linkat(task, AT_FDCWD, old, AT_FDCWD, new, 0)


@syscall(265)
def sys_linkat(task: Task, old_dirfd: Int, old: int, new_dirfd: Int, new: int, flags: Int) -> Result:
    source = path_at(task, old_dirfd, old, may_be_empty=bool(flags & AT_EMPTY_PATH))
    target = path_at(task, new_dirfd, new)
    return host.system_call(265, source.at, source.name, target.at, target.name, flags)


@syscall(88)
def sys_symlink(task: Task, target: int, path: int) -> Result:
    return sys_symlinkat(task, target, AT_FDCWD, path)


@syscall(266)
def sys_symlinkat(task: Task, target: int, dirfd: Int, path: int) -> Result:
    text = copy_string_in(task.memory, target, 4096)
    where = path_at(task, dirfd, path)
    os.symlink(text, where.name, dir_fd=where.at)
    return 0


@syscall(90)
def sys_chmod(task: Task, path: int, mode: Int) -> Result:
    return sys_fchmodat(task, AT_FDCWD, path, mode)


@syscall(91)
def sys_fchmod(task: Task, fd: Int, mode: Int) -> Result:
    os.fchmod(task.files[fd].host, mode & 0o7777)
    return 0


@syscall(268)
def sys_fchmodat(task: Task, dirfd: Int, path: int, mode: Int) -> Result:
    where = path_at(task, dirfd, path)
    os.chmod(where.name, mode & 0o7777, dir_fd=where.at)
    return 0


@syscall(92)
def sys_chown(task: Task, path: int, user: Int, group: Int) -> Result:
    return sys_fchownat(task, AT_FDCWD, path, user, group, 0)


@syscall(94)
def sys_lchown(task: Task, path: int, user: Int, group: Int) -> Result:
    return sys_fchownat(task, AT_FDCWD, path, user, group, AT_SYMLINK_NOFOLLOW)


@syscall(93)
def sys_fchown(task: Task, fd: Int, user: Int, group: Int) -> Result:
    os.fchown(task.files[fd].host, user, group)
    return 0


@syscall(260)
def sys_fchownat(task: Task, dirfd: Int, path: int, user: Int, group: Int, flags: Int) -> Result:
    where = path_at(task, dirfd, path, may_be_empty=bool(flags & AT_EMPTY_PATH))
    return host.system_call(260, where.at, where.name, user, group, flags)


@syscall(76)
def sys_truncate(task: Task, path: int, length: Long) -> Result:
    where = path_at(task, AT_FDCWD, path)
    file = os.open(where.name, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=where.at)
    try:
        os.ftruncate(file, length)
    finally:
        os.close(file)
    return 0


@syscall(280)
def sys_utimensat(task: Task, dirfd: Int, path: int, times: int, flags: Int) -> Result:
    data: bytes | int = read_bytes(task.memory, times, 32) if times else 0
    if path:
        where = path_at(task, dirfd, path, may_be_empty=bool(flags & AT_EMPTY_PATH))
        return host.system_call(280, where.at, where.name, data, flags)
    if dirfd == AT_FDCWD:
        return -errno.EFAULT
    return host.system_call(280, task.files[dirfd].host, 0, data, flags)


@syscall(162)
def sys_sync(task: Task) -> Result:
    os.sync()
    return 0
