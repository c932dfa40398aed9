"""wait(2) and kin: a child has ended, has stopped, or goes on."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Final

from attrs import frozen

from simulator import signals
from simulator.process import Process, Task
from simulator.siginfo import CLD_CONTINUED, CLD_EXITED, CLD_KILLED, CLD_STOPPED, Siginfo
from simulator.table import Int, Result, syscall
from simulator.waits import Wait, Waiting
from usermem import copy_int32_out, write_bytes

_WNOHANG, _WSTOPPED, _WEXITED, _WCONTINUED, _WNOWAIT = 1, 2, 4, 8, 0x0100_0000
_WNOTHREAD, _WALL, _WCLONE = 1 << 29, 1 << 30, 1 << 31
_EVENTS: Final = _WSTOPPED | _WEXITED | _WCONTINUED
_OPTIONS: Final = _WNOHANG | _WNOTHREAD | _WALL | _WCLONE | _WSTOPPED | _WCONTINUED
_P_ALL, _P_PID, _P_PGID = 0, 1, 2


@frozen
class Wanted:
    """Which children a task waits for, and what is to have become of them."""

    task: Task
    fits: Callable[[Process], bool]
    options: int

    def children(self) -> list[Process]:
        """Those that are meant; a clone child is one whose end is told by another signal than SIGCHLD."""
        every, clones = self.options & _WALL, bool(self.options & _WCLONE)
        return [
            child
            for child in self.task.process.children
            if self.fits(child) and (every or (child.exit_signal != signal.SIGCHLD) == clones)
        ]

    def status(self, child: Process) -> int | None:
        """What has become of a child, as wait(2) gives it; None if nothing that is waited for."""
        if child.status is not None:
            return child.status if self.options & _WEXITED else None
        event = _WCONTINUED if child.report == signals.CONTINUED else _WSTOPPED
        return child.report if self.options & event else None

    def take(self) -> tuple[Process, int] | None:
        """A child and its status, which nobody else gets then. Raises OSError (ECHILD) if there is none to wait for."""
        children = self.children()
        if not children:
            raise ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD))
        for child in children:
            status = self.status(child)
            if status is not None:
                if not self.options & _WNOWAIT:
                    child.report = None
                    if child.status is not None:
                        self.task.kernel.reap(child)
                return child, status
        return None

    def is_over(self) -> bool:
        """Whether there is something to take, or nobody to wait for."""
        children = self.children()
        return not children or any(self.status(child) is not None for child in children)


def _chosen(task: Task, pid: int) -> Callable[[Process], bool]:
    """Which children a number of wait4 means."""
    if pid < -1:
        return lambda child: child.pgid == -pid
    if pid == -1:
        return lambda child: True
    if pid == 0:
        return lambda child: child.pgid == task.process.pgid
    return lambda child: child.pid == pid


def _wait(wanted: Wanted, found: Callable[[Process | None, int], int]) -> Result:
    """Wait for a child, and then call a function that stores what there is to know; no child if it shall not wait."""
    taken = wanted.take()
    if taken is not None:
        return found(*taken)
    return found(None, 0) if wanted.options & _WNOHANG else _wait_on(wanted, found)


def _wait_on(wanted: Wanted, found: Callable[[Process | None, int], int]) -> Waiting:
    while True:
        yield Wait(done=wanted.is_over)
        taken = wanted.take()
        if taken is not None:
            return found(*taken)


@syscall(61)
def sys_wait4(task: Task, pid: Int, status: int, options: Int, usage: int) -> Result:
    options &= 0xFFFF_FFFF
    if options & ~_OPTIONS:
        return -errno.EINVAL
    if pid == -1 << 31:
        return -errno.ESRCH

    def found(child: Process | None, value: int) -> int:
        if child is None:
            return 0
        if status:
            copy_int32_out(task.memory, status, value)
        if usage:
            write_bytes(task.memory, usage, bytes(144))
        return child.pid

    return _wait(Wanted(task, _chosen(task, pid), options | _WEXITED), found)


@syscall(247)
def sys_waitid(task: Task, kind: Int, which: Int, addr: int, options: Int, usage: int) -> Result:
    options &= 0xFFFF_FFFF
    if options & ~(_OPTIONS | _WEXITED | _WNOWAIT) or not options & _EVENTS:
        return -errno.EINVAL
    if kind not in (_P_ALL, _P_PID, _P_PGID) or (kind == _P_PID and which <= 0) or (kind == _P_PGID and which < 0):
        return -errno.EINVAL

    def found(child: Process | None, value: int) -> int:
        if addr:
            write_bytes(task.memory, addr, _info(child, value).pack() if child is not None else bytes(128))
        return 0

    if kind == _P_PGID:
        group = which or task.process.pgid
        return _wait(Wanted(task, lambda child: child.pgid == group, options), found)
    return _wait(Wanted(task, _chosen(task, which if kind == _P_PID else -1), options), found)


def _info(child: Process, status: int) -> Siginfo:
    """What is told of a child."""
    if status == signals.CONTINUED:
        code, value = CLD_CONTINUED, int(signal.SIGCONT)
    elif status & 0xFF == 0x7F:
        code, value = CLD_STOPPED, status >> 8
    elif status & 0x7F:
        code, value = CLD_KILLED, status & 0x7F
    else:
        code, value = CLD_EXITED, status >> 8
    return Siginfo(signal.SIGCHLD, code, child.pid, os.getuid(), value)
