"""Who a process is, what the machine is, and limits."""

from __future__ import annotations

import errno
import os
from typing import Final

from simulator import host
from simulator.process import RLIM_INFINITY, Process, Task
from simulator.table import Int, Result, syscall
from usermem import abi, copy_struct_out, write_bytes

_LIMITS: Final = 16
_DATA, _STACK, _FILES, _SPACE = 2, 3, 7, 9


@syscall(39)
def sys_getpid(task: Task) -> Result:
    return task.process.pid


@syscall(186)
def sys_gettid(task: Task) -> Result:
    return task.tid


@syscall(110)
def sys_getppid(task: Task) -> Result:
    return task.process.parent.pid if task.process.parent is not None else os.getppid()


@syscall(102)
def sys_getuid(task: Task) -> Result:
    return os.getuid()


@syscall(104)
def sys_getgid(task: Task) -> Result:
    return os.getgid()


@syscall(107)
def sys_geteuid(task: Task) -> Result:
    return os.geteuid()


@syscall(108)
def sys_getegid(task: Task) -> Result:
    return os.getegid()


@syscall(118)
def sys_getresuid(task: Task, real: int, effective: int, saved: int) -> Result:
    return _three(task, (real, effective, saved), os.getresuid())


@syscall(120)
def sys_getresgid(task: Task, real: int, effective: int, saved: int) -> Result:
    return _three(task, (real, effective, saved), os.getresgid())


def _three(task: Task, where: tuple[int, int, int], values: tuple[int, int, int]) -> int:
    for addr, value in zip(where, values, strict=True):
        copy_struct_out(task.memory, addr, "I", value)
    return 0


@syscall(115)
def sys_getgroups(task: Task, size: Int, addr: int) -> Result:
    groups = os.getgroups()
    if size < 0 or 0 < size < len(groups):
        return -errno.EINVAL
    if size:
        copy_struct_out(task.memory, addr, f"{len(groups)}I", *groups)
    return len(groups)


def sys_setid(task: Task, one: Int, two: Int, three: Int) -> Result:
    """setuid(2) and kin: a process stays who the simulator is."""
    return 0 if os.getuid() in (one, two, three) or os.getgid() in (one, two, three) else -errno.EPERM


for _number in (105, 106, 113, 114, 117, 119):
    syscall(_number)(sys_setid)


def find(task: Task, pid: int) -> Process:
    """The process of a number; 0 is the caller's. Raises OSError (ESRCH)."""
    found = task.kernel.processes.get(pid) if pid else task.process
    if found is None:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return found


@syscall(109)
def sys_setpgid(task: Task, pid: Int, pgid: Int) -> Result:
    process = find(task, pid)
    if pgid < 0:
        return -errno.EINVAL
    if pgid not in (0, process.pid) and all(each.pgid != pgid for each in task.kernel.processes.values()):
        return -errno.EPERM
    process.pgid = pgid or process.pid
    return 0


@syscall(121)
def sys_getpgid(task: Task, pid: Int) -> Result:
    return find(task, pid).pgid


@syscall(111)
def sys_getpgrp(task: Task) -> Result:
    return task.process.pgid


@syscall(112)
def sys_setsid(task: Task) -> Result:
    process = task.process
    if any(each.pgid == process.pid for each in task.kernel.processes.values()):
        return -errno.EPERM
    process.pgid = process.sid = process.pid
    return process.sid


@syscall(124)
def sys_getsid(task: Task, pid: Int) -> Result:
    return find(task, pid).sid


@syscall(63)
def sys_uname(task: Task, addr: int) -> Result:
    found = abi.Utsname(*map(os.fsencode, os.uname()))
    abi.UTSNAME.copy_out(task.memory, addr, found._replace(domainname=b"(none)"))
    return 0


@syscall(99)
def sys_sysinfo(task: Task, addr: int) -> Result:
    write_bytes(task.memory, addr, host.system_call_for_struct(112, 99))
    return 0


@syscall(318)
def sys_getrandom(task: Task, addr: int, n: int, flags: Int) -> Result:
    return task.memory.copy_out(addr, os.getrandom(min(n, 1 << 20), flags & 3))


@syscall(97)
def sys_getrlimit(task: Task, resource: Int, addr: int) -> Result:
    return sys_prlimit64(task, 0, resource, 0, addr)


@syscall(160)
def sys_setrlimit(task: Task, resource: Int, addr: int) -> Result:
    return sys_prlimit64(task, 0, resource, addr, 0)


@syscall(302)
def sys_prlimit64(task: Task, pid: Int, resource: Int, new: int, old: int) -> Result:
    process = find(task, pid)
    if not 0 <= resource < _LIMITS:
        return -errno.EINVAL
    before = process.limits.get(resource, (RLIM_INFINITY, RLIM_INFINITY))
    if new:
        wanted = abi.RLIMIT64.copy_in(task.memory, new)
        if wanted.rlim_cur > wanted.rlim_max:
            return -errno.EINVAL
        if wanted.rlim_max > before[1]:
            return -errno.EPERM
        process.limits[resource] = (wanted.rlim_cur, wanted.rlim_max)
        if resource == _STACK:
            process.memory.space.limits.stack_limit = wanted.rlim_cur
        elif resource in (_DATA, _SPACE):
            limit = None if wanted.rlim_cur == RLIM_INFINITY else wanted.rlim_cur
            setattr(process.memory.space.limits, "data_limit" if resource == _DATA else "address_limit", limit)
        elif resource == _FILES:
            process.files.limit = min(wanted.rlim_cur, 1 << 16)
    if old:
        abi.RLIMIT64.copy_out(task.memory, old, abi.Rlimit(*before))
    return 0


@syscall(140)
def sys_getpriority(task: Task, which: Int, who: Int) -> Result:
    return 20
