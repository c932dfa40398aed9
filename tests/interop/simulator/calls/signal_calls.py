"""Signals: actions, masks, stacks; to send one and to wait for one."""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from typing import Final

from simulator import frame, signals
from simulator.calls.clocks import deadline_of, seconds_of
from simulator.calls.identity import find
from simulator.calls.polls import set_mask_for_call
from simulator.process import Process, Task
from simulator.siginfo import SI_KERNEL, SI_TKILL, SIZE, Siginfo
from simulator.table import Int, Result, syscall
from simulator.waits import Wait, Waiting
from usermem import (
    FaultError,
    abi,
    copy_struct_in,
    copy_struct_out,
    copy_uint64_in,
    copy_uint64_out,
    read_bytes,
    write_bytes,
)

_MOST: Final = 64
_MIN_STACK: Final = 2048


def _checked(signo: int, lowest: int = 1) -> int:
    if not lowest <= signo <= _MOST:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return signo


@syscall(13)
def sys_rt_sigaction(task: Task, signo: Int, new: int, old: int, size: int) -> Result:
    process, before = task.process, signals.action_of(task.process, _checked(signo))
    if size != 8:
        return -errno.EINVAL
    if new:
        action = abi.SIGACTION.copy_in(task.memory, new)
        if signo in (signal.SIGKILL, signal.SIGSTOP):
            return -errno.EINVAL
        process.actions[signo] = action._replace(sa_mask=signals.mask_of(action.sa_mask))
        if signals.is_ignored(process, signo):
            signals.discard(process, signo)
    if old:
        abi.SIGACTION.copy_out(task.memory, old, before)
    return 0


@syscall(14)
def sys_rt_sigprocmask(task: Task, how: Int, new: int, old: int, size: int) -> Result:
    before = task.mask
    if size != 8:
        return -errno.EINVAL
    if new:
        mask = signals.mask_of(copy_uint64_in(task.memory, new))
        if how not in (0, 1, 2):  # SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK
            return -errno.EINVAL
        task.mask = (before | mask, before & ~mask, mask)[how]
    if old:
        copy_uint64_out(task.memory, old, before)
    return 0


@syscall(15)
def sys_rt_sigreturn(task: Task) -> Result:
    try:
        frame.pop(task)
        task.mask = signals.mask_of(task.mask)
    except FaultError:
        signals.force(task, Siginfo(signal.SIGSEGV, SI_KERNEL))
    return None


@syscall(131)
def sys_sigaltstack(task: Task, new: int, old: int) -> Result:
    inside = frame.on_altstack(task, task.cpu.rsp)
    start, flags, size = task.altstack
    before = start, frame.SS_ONSTACK if inside else flags, size
    if new:
        start, flags, size = copy_struct_in(task.memory, new, "PiL")
        if inside:
            return -errno.EPERM
        if flags & ~(frame.SS_DISABLE | frame.SS_ONSTACK):
            return -errno.EINVAL
        if flags & frame.SS_DISABLE:
            start = size = 0
        elif size < _MIN_STACK:
            return -errno.ENOMEM
        task.altstack = start, flags & frame.SS_DISABLE, size
    if old:
        copy_struct_out(task.memory, old, "PiL", *before)
    return 0


def _targets(task: Task, pid: int) -> list[Process]:
    """Whom kill(2) means. Raises OSError (ESRCH)."""
    if pid > 0:
        return [find(task, pid)]
    everybody = list(task.kernel.processes.values())
    if pid == -1:
        return [each for each in everybody if each is not task.process]
    group = -pid if pid else task.process.pgid
    found = [each for each in everybody if each.pgid == group]
    if not found:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return found


@syscall(62)
def sys_kill(task: Task, pid: Int, signo: Int) -> Result:
    _checked(signo, 0)
    for process in _targets(task, pid):
        if signo:
            signals.send(process, Siginfo(signo, pid=task.process.pid, uid=os.getuid()))
    return 0


@syscall(200)
def sys_tkill(task: Task, tid: Int, signo: Int) -> Result:
    _checked(signo, 0)
    if tid <= 0:
        return -errno.EINVAL
    for each in task.kernel.tasks:
        if each.tid == tid:
            if signo:
                signals.send(each.process, Siginfo(signo, SI_TKILL, task.process.pid, os.getuid()), each)
            return 0
    return -errno.ESRCH


@syscall(234)
def sys_tgkill(task: Task, tgid: Int, tid: Int, signo: Int) -> Result:
    if tgid <= 0:
        return -errno.EINVAL
    if tid not in [each.tid for each in find(task, tgid).tasks]:
        return -errno.ESRCH
    return sys_tkill(task, tid, signo)


@syscall(129)
def sys_rt_sigqueueinfo(task: Task, tgid: Int, signo: Int, info: int) -> Result:
    signals.send(find(task, tgid), Siginfo.unpack(read_bytes(task.memory, info, SIZE))._replace(signo=_checked(signo)))
    return 0


@syscall(127)
def sys_rt_sigpending(task: Task, addr: int, size: int) -> Result:
    pending = {*task.pending, *task.process.pending}
    copy_uint64_out(task.memory, addr, sum(1 << signo - 1 for signo in pending) & task.mask)
    return 0


@syscall(34)
def sys_pause(task: Task) -> Result:
    return _until_a_signal()


@syscall(130)
def sys_rt_sigsuspend(task: Task, mask: int, size: int) -> Result:
    set_mask_for_call(task, copy_uint64_in(task.memory, mask))
    return _until_a_signal()


def _until_a_signal() -> Waiting:
    while True:
        yield Wait()


@syscall(128)
def sys_rt_sigtimedwait(task: Task, mask: int, info: int, timeout: int, size: int) -> Result:
    wanted = signals.mask_of(copy_uint64_in(task.memory, mask))
    deadline = deadline_of(abi.TIMESPEC.copy_in(task.memory, timeout)) if timeout else None
    return _wait_for(task, wanted, info, deadline)


def _wait_for(task: Task, wanted: int, addr: int, deadline: float | None) -> Waiting:
    """Take a signal of a set, which is blocked."""
    while True:
        info = signals.take(task, ~wanted)
        if info is not None:
            if addr:
                write_bytes(task.memory, addr, info.pack())
            return info.signo
        if deadline is not None and time.monotonic() >= deadline:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        yield Wait(deadline=deadline, done=lambda: signals.is_there(task, wanted))


@syscall(37)
def sys_alarm(task: Task, seconds: int) -> Result:
    left, _ = _set_alarm(task.process, seconds & 0xFFFF_FFFF, 0)
    return min(math.ceil(left), 0x7FFF_FFFF)


def _set_alarm(process: Process, seconds: float, interval: float) -> tuple[float, float]:
    """Set the timer, and return what was left of it and its interval."""
    before = _timer(process)
    process.alarm = time.monotonic() + seconds if seconds else None
    process.interval = interval
    return before


def _timer(process: Process) -> tuple[float, float]:
    """What is left of the timer, and its interval."""
    left = max(process.alarm - time.monotonic(), 1e-6) if process.alarm is not None else 0.0
    return left, process.interval


def _store_timer(task: Task, addr: int, left: float, interval: float) -> None:
    copy_struct_out(task.memory, addr, "4q", *divmod(int(interval * 1e6), 10**6), *divmod(int(left * 1e6), 10**6))


def _seconds(task: Task, addr: int) -> float:
    found = abi.TIMEVAL.copy_in(task.memory, addr)
    return seconds_of(abi.Timespec(found.tv_sec, found.tv_usec * 1000))


@syscall(36)
def sys_getitimer(task: Task, which: Int, addr: int) -> Result:
    if which:  # ITIMER_REAL
        return -errno.EINVAL
    _store_timer(task, addr, *_timer(task.process))
    return 0


@syscall(38)
def sys_setitimer(task: Task, which: Int, new: int, old: int) -> Result:
    if which:  # ITIMER_REAL
        return -errno.EINVAL
    interval, seconds = (_seconds(task, addr) for addr in (new, new + 16))
    left, interval = _set_alarm(task.process, seconds, interval)
    if old:
        _store_timer(task, old, left, interval)
    return 0
