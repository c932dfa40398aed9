"""Mappings: the address space's own calls."""

from __future__ import annotations

import errno

from hostarch import mman
from simulator.process import Task
from simulator.table import Int, Long, Result, syscall
from usermem import write_bytes


@syscall(9)
def sys_mmap(task: Task, addr: int, length: int, prot: int, flags: int, fd: Int, offset: Long) -> Result:
    host = -1 if flags & mman.MAP_ANONYMOUS else task.files[fd].host
    return task.space.mmap(addr, length, prot, flags, host, offset)


@syscall(10)
def sys_mprotect(task: Task, addr: int, length: int, prot: int) -> Result:
    return task.space.mprotect(addr, length, prot)


@syscall(11)
def sys_munmap(task: Task, addr: int, length: int) -> Result:
    return task.space.munmap(addr, length)


@syscall(12)
def sys_brk(task: Task, addr: int) -> Result:
    return task.space.brk(addr)


@syscall(25)
def sys_mremap(task: Task, addr: int, old_size: int, new_size: int, flags: int, new_addr: int) -> Result:
    return task.space.mremap(addr, old_size, new_size, flags, new_addr)


@syscall(26)
def sys_msync(task: Task, addr: int, length: int, flags: Int) -> Result:
    return task.space.msync(addr, length, flags)


@syscall(27)
def sys_mincore(task: Task, addr: int, length: int, vector: int) -> Result:
    write_bytes(task.memory, vector, task.space.mincore(addr, length))
    return 0


@syscall(28)
def sys_madvise(task: Task, addr: int, length: int, advice: Int) -> Result:
    return task.space.madvise(addr, length, advice)


@syscall(149)
def sys_mlock(task: Task, addr: int, length: int) -> Result:
    return task.space.mlock(addr, length)


@syscall(150)
def sys_munlock(task: Task, addr: int, length: int) -> Result:
    return task.space.munlock(addr, length)


@syscall(151)
def sys_mlockall(task: Task, flags: Int) -> Result:
    return task.space.mlockall(flags)


@syscall(152)
def sys_munlockall(task: Task) -> Result:
    return task.space.munlockall()


@syscall(325)
def sys_mlock2(task: Task, addr: int, length: int, flags: Int) -> Result:
    return task.space.mlock(addr, length, flags) if not flags & ~1 else -errno.EINVAL
