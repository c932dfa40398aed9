"""Processes and threads: fork, clone, execve, exit."""

from __future__ import annotations

import errno
from contextlib import ExitStack, suppress
from typing import Final

from simulator import signals
from simulator.calls.names import AT_EMPTY_PATH, AT_FDCWD, path_at
from simulator.cpu import CPU
from simulator.execute import execute
from simulator.process import Memory, Process, Task
from simulator.table import Int, Result, syscall
from simulator.waits import Wait, Waiting
from usermem import (
    copy_in_vector,
    copy_string_in,
    copy_struct_from_user,
    copy_struct_out,
    copy_uint32_out,
    copy_uint64_out,
    strncpy_from_user,
)

_CLONE_VM: Final = 0x100
_CLONE_FS: Final = 0x200
_CLONE_FILES: Final = 0x400
_CLONE_SIGHAND: Final = 0x800
_CLONE_VFORK: Final = 0x4000
_CLONE_PARENT: Final = 0x8000
_CLONE_THREAD: Final = 0x10000
_CLONE_SETTLS: Final = 0x80000
_CLONE_PARENT_SETTID: Final = 0x100000
_CLONE_CHILD_CLEARTID: Final = 0x200000
_CLONE_CHILD_SETTID: Final = 0x1000000
_CLONE_NEW: Final = 0x7E02_0000  # namespaces, of which there is one each
_CLONE_CLEAR_SIGHAND: Final = 1 << 32
_NEEDS: Final = {_CLONE_THREAD: _CLONE_SIGHAND, _CLONE_SIGHAND: _CLONE_VM}

_MOST_TASKS: Final = 512  # of 2 MiB each
_ARG_MAX: Final = 6 << 20
_LONGEST: Final = 32 * 4096  # MAX_ARG_STRLEN


@syscall(57)
def sys_fork(task: Task) -> Result:
    return _clone(task, 17, 0, (0, 0), 0)


@syscall(58)
def sys_vfork(task: Task) -> Result:
    return _clone(task, _CLONE_VM | _CLONE_VFORK | 17, 0, (0, 0), 0)


@syscall(56)
def sys_clone(task: Task, flags: int, stack: int, parent_tid: int, child_tid: int, tls: int) -> Result:
    return _clone(task, flags & 0xFFFF_FFFF, stack, (parent_tid, child_tid), tls)


@syscall(435)
def sys_clone3(task: Task, addr: int, size: int) -> Result:
    if size < 64:
        return -errno.EINVAL
    found = copy_struct_from_user(task.memory, addr, size, "11Q")
    flags, _, child_tid, parent_tid, exit_signal, stack, stack_size, tls, *_ = found
    return _clone(task, flags | exit_signal, stack + stack_size if stack else 0, (parent_tid, child_tid), tls)


def _clone(task: Task, flags: int, stack: int, tids: tuple[int, int], tls: int) -> Result:
    """A thread, or a process whose memory is the same or a copy."""
    if flags & _CLONE_NEW or any(flags & flag and not flags & needed for flag, needed in _NEEDS.items()):
        return -errno.EINVAL
    if flags & _CLONE_SIGHAND and flags & _CLONE_CLEAR_SIGHAND:
        return -errno.EINVAL
    kernel, parent_tid, child_tid = task.kernel, *tids
    if len(kernel.tasks) >= _MOST_TASKS:
        return -errno.EAGAIN
    tid = kernel.new_pid()
    with ExitStack() as undo:
        process = task.process if flags & _CLONE_THREAD else _child(task.process, tid, flags, undo)
        cpu = CPU(process.memory.space, task.cpu)
        undo.pop_all()
    cpu.set_result(0)
    if stack:
        cpu.jump(cpu.rip, stack)
    if flags & _CLONE_SETTLS:
        cpu.fs_base = tls
    child = Task(tid, process, cpu, task.mask)
    if not flags & _CLONE_VM or flags & _CLONE_VFORK:
        child.altstack = task.altstack
    with suppress(OSError):  # as in Linux
        if flags & _CLONE_PARENT_SETTID:
            copy_uint32_out(task.memory, parent_tid, tid)
        if flags & _CLONE_CHILD_SETTID:
            copy_uint32_out(child.memory, child_tid, tid)
    if flags & _CLONE_CHILD_CLEARTID:
        child.clear_child_tid = child_tid
    kernel.add(child)
    return _until_it_has_its_own_memory(child) if flags & _CLONE_VFORK else tid


def _child(parent: Process, pid: int, flags: int, undo: ExitStack) -> Process:
    """A new process. Raises OSError, MemoryError; what has been done by then, ``undo`` undoes."""
    kernel = parent.kernel
    memory = parent.memory.get() if flags & _CLONE_VM else Memory(parent.memory.space.fork(), kernel.wrap)
    undo.callback(memory.put)
    files = parent.files.get() if flags & _CLONE_FILES else parent.files.copy()
    undo.callback(files.put)
    owner = parent.parent if flags & _CLONE_PARENT else parent
    directory = parent.directory.get() if flags & _CLONE_FS else parent.directory.copy()
    undo.callback(directory.put)
    child = Process(kernel, pid, owner, memory, files, directory, parent.pgid, parent.sid)
    child.exe, child.name, child.limits = parent.exe, parent.name, dict(parent.limits)
    if flags & _CLONE_SIGHAND:
        child.actions = parent.actions
    else:
        child.actions = signals.ignored(parent) if flags & _CLONE_CLEAR_SIGHAND else dict(parent.actions)
    child.exit_signal = flags & 0xFF
    if owner is not None:
        owner.children.append(child)
        undo.callback(owner.children.remove, child)
    return child


def _until_it_has_its_own_memory(child: Task) -> Waiting:
    """CLONE_VFORK: the parent waits until the child has called execve, or ended."""
    process, memory = child.process, child.process.memory

    def done() -> bool:
        return process.status is not None or process.memory is not memory

    while not done():
        with suppress(InterruptedError):
            yield Wait(done=done)
    return child.tid


@syscall(59)
def sys_execve(task: Task, path: int, argv: int, envp: int) -> Result:
    return sys_execveat(task, AT_FDCWD, path, argv, envp, 0)


@syscall(322)
def sys_execveat(task: Task, dirfd: Int, path: int, argv: int, envp: int, flags: Int) -> Result:
    process, io = task.process, task.memory
    where = path_at(task, dirfd, path, may_be_empty=bool(flags & AT_EMPTY_PATH))
    name = where.name or b"/proc/self/fd/%d" % where.at
    arguments, environment = (copy_in_vector(io, at, _LONGEST, _ARG_MAX) if at else [] for at in (argv, envp))
    image = execute(process, name, arguments, environment, where.at)
    for other in list(process.tasks):
        if other is not task:
            task.kernel.end_task(other)
    if task.clear_child_tid and process.memory.users > 1:
        with suppress(OSError):
            copy_uint32_out(io, task.clear_child_tid, 0)
    task.cpu.close()
    task.cpu = image.take_over(process)
    task.tid, task.clear_child_tid, task.altstack = process.pid, 0, (0, 2, 0)
    process.actions = signals.ignored(process)
    process.unshare_files()
    process.files.close_on_exec()
    return None


@syscall(60)
def sys_exit(task: Task, code: Int) -> Result:
    if len(task.process.tasks) > 1:
        task.kernel.end_task(task)
    else:
        task.kernel.end(task.process, (code & 0xFF) << 8)
    return None


@syscall(231)
def sys_exit_group(task: Task, code: Int) -> Result:
    task.kernel.end(task.process, (code & 0xFF) << 8)
    return None


@syscall(218)
def sys_set_tid_address(task: Task, addr: int) -> Result:
    task.clear_child_tid = addr
    return task.tid


@syscall(273)
def sys_set_robust_list(task: Task, addr: int, size: int) -> Result:
    return 0 if size == 24 else -errno.EINVAL


@syscall(158)
def sys_arch_prctl(task: Task, code: Int, addr: int) -> Result:
    if code == 0x1002:  # ARCH_SET_FS
        task.cpu.fs_base = addr
    elif code == 0x1003:
        copy_uint64_out(task.memory, addr, task.cpu.fs_base)
    elif code == 0x1001:
        task.cpu.gs_base = addr
    elif code == 0x1004:
        copy_uint64_out(task.memory, addr, task.cpu.gs_base)
    else:
        return -errno.EINVAL
    return 0


@syscall(157)
def sys_prctl(task: Task, option: Int, one: int, two: int, three: int, four: int) -> Result:
    if option == 15:  # PR_SET_NAME
        task.process.name = strncpy_from_user(task.memory, one, 15)
        return 0
    if option == 16:
        copy_struct_out(task.memory, one, "16s", task.process.name)
        return 0
    if option == 0x53564D41 and one == 0:  # PR_SET_VMA, PR_SET_VMA_ANON_NAME
        name = copy_string_in(task.memory, four, 80).decode("latin-1") if four else None
        return task.space.set_name(two, three, name)
    return -errno.EINVAL


@syscall(24)
def sys_sched_yield(task: Task) -> Result:
    return _yield()


def _yield() -> Waiting:
    yield Wait(done=lambda: True)
    return 0


@syscall(204)
def sys_sched_getaffinity(task: Task, pid: Int, size: int, addr: int) -> Result:
    if size < 8 or size % 8:
        return -errno.EINVAL
    copy_uint64_out(task.memory, addr, 1)
    return 8


@syscall(309)
def sys_getcpu(task: Task, cpu: int, node: int) -> Result:
    for addr in (cpu, node):
        if addr:
            copy_uint32_out(task.memory, addr, 0)
    return 0
