"""Clocks, and to sleep by them."""

from __future__ import annotations

import errno
import os
import time
from typing import Final

from simulator import host
from simulator.process import Task
from simulator.table import Int, Result, syscall
from simulator.waits import Wait, Waiting
from usermem import abi, copy_int64_out, copy_struct_out, write_bytes

_NANO: Final = 1_000_000_000
_TIMER_ABSTIME: Final = 1


def seconds_of(found: abi.Timespec) -> float:
    """A struct timespec in seconds. Raises OSError (EINVAL)."""
    if found.tv_sec < 0 or not 0 <= found.tv_nsec < _NANO:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return found.tv_sec + found.tv_nsec / _NANO


def deadline_of(found: abi.Timespec, clock: int | None = None) -> float:
    """The monotonic time, in seconds, that is a while from now, or that time of a clock. Raises OSError (EINVAL)."""
    passed = seconds_of(found) - (time.clock_gettime(clock) if clock is not None else 0)
    return time.monotonic() + passed


@syscall(35)
def sys_nanosleep(task: Task, request: int, remaining: int) -> Result:
    return _sleep(task, deadline_of(abi.TIMESPEC.copy_in(task.memory, request)), remaining)


@syscall(230)
def sys_clock_nanosleep(task: Task, clock: Int, flags: Int, request: int, remaining: int) -> Result:
    absolute = flags & _TIMER_ABSTIME
    deadline = deadline_of(abi.TIMESPEC.copy_in(task.memory, request), clock if absolute else None)
    return _sleep(task, deadline, 0 if absolute else remaining)


def _sleep(task: Task, deadline: float, remaining: int) -> Waiting:
    try:
        yield Wait(deadline=deadline)
    except InterruptedError:
        if remaining:
            left = max(0, int((deadline - time.monotonic()) * _NANO))
            abi.TIMESPEC.copy_out(task.memory, remaining, abi.Timespec(*divmod(left, _NANO)))
        raise
    return 0


@syscall(228)
def sys_clock_gettime(task: Task, clock: Int, addr: int) -> Result:
    abi.TIMESPEC.copy_out(task.memory, addr, abi.Timespec(*divmod(time.clock_gettime_ns(clock), _NANO)))
    return 0


@syscall(229)
def sys_clock_getres(task: Task, clock: Int, addr: int) -> Result:
    resolution = int(time.clock_getres(clock) * _NANO)
    if addr:
        abi.TIMESPEC.copy_out(task.memory, addr, abi.Timespec(*divmod(resolution, _NANO)))
    return 0


@syscall(96)
def sys_gettimeofday(task: Task, addr: int, zone: int) -> Result:
    if addr:
        abi.TIMEVAL.copy_out(task.memory, addr, abi.Timeval(*divmod(time.time_ns() // 1000, 1_000_000)))
    if zone:
        copy_struct_out(task.memory, zone, "ii", 0, 0)
    return 0


@syscall(201)
def sys_time(task: Task, addr: int) -> Result:
    now = int(time.time())
    if addr:
        copy_int64_out(task.memory, addr, now)
    return now


@syscall(100)
def sys_times(task: Task, addr: int) -> Result:
    used = os.times()
    if addr:
        ticks = [int(each * 100) for each in (used.user, used.system, used.children_user, used.children_system)]
        copy_struct_out(task.memory, addr, "4q", *ticks)
    return int(time.monotonic() * 100)


@syscall(98)
def sys_getrusage(task: Task, who: Int, addr: int) -> Result:
    write_bytes(task.memory, addr, host.system_call_for_struct(144, 98, who))
    return 0
