"""Signals: who gets one, and what it does. Source: Linux kernel/signal.c; signal(7)."""

from __future__ import annotations

import errno
import os
import signal
from typing import Final

from simulator import frame
from simulator.process import Pending, Process, Task
from simulator.siginfo import CLD_CONTINUED, CLD_STOPPED, SI_KERNEL, Siginfo
from usermem import FaultError, abi

SIG_DFL: Final = 0
SIG_IGN: Final = 1
SA_NOCLDSTOP: Final = 1
SA_NOCLDWAIT: Final = 2
SA_RESTART: Final = 0x1000_0000
SA_NODEFER: Final = 0x4000_0000
SA_RESETHAND: Final = 0x8000_0000

_IGNORED: Final = {signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT}
_STOPS: Final = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_UNBLOCKABLE: Final = 1 << signal.SIGKILL - 1 | 1 << signal.SIGSTOP - 1
_REAL_TIME: Final = 32
CONTINUED: Final = 0xFFFF
"""As wait(2) tells of a process that goes on."""
DEFAULT: Final = abi.Sigaction()

# Ended by any handler, SA_RESTART or not: poll, select, pause, nanosleep, the sigsuspends, epoll; signal(7).
_NOT_RESTARTED: Final = {7, 23, 34, 35, 128, 130, 230, 232, 270, 271, 281, 441}


def mask_of(value: int) -> int:
    """A mask that a guest gives: two signals cannot be blocked."""
    return value & ~_UNBLOCKABLE


def action_of(process: Process, signo: int) -> abi.Sigaction:
    """What a process has said of a signal."""
    return process.actions.get(signo, DEFAULT)


def is_ignored(process: Process, signo: int) -> bool:
    """Whether a signal does nothing."""
    handler = action_of(process, signo).sa_handler
    return handler == SIG_IGN or (handler == SIG_DFL and signo in _IGNORED)


def ignored(process: Process) -> dict[int, abi.Sigaction]:
    """The actions that outlive execve(2): what is ignored. flush_signal_handlers()."""
    return {signo: action for signo, action in process.actions.items() if action.sa_handler == SIG_IGN}


def send(process: Process, info: Siginfo, task: Task | None = None) -> None:
    """Send a signal to a process, or to one of its tasks."""
    signo = info.signo
    if signo in (signal.SIGCONT, signal.SIGKILL):
        if process.stopped and signo == signal.SIGCONT:
            _report(process, CONTINUED, CLD_CONTINUED, signo)
        process.stopped = False
    if signo == signal.SIGCONT or signo in _STOPS:  # each makes the other's wait void: prepare_signal()
        for other in _STOPS if signo == signal.SIGCONT else (signal.SIGCONT,):
            discard(process, other)
    blocked = all(each.mask >> signo - 1 & 1 for each in ([task] if task else process.tasks))
    if process.status is not None or (is_ignored(process, signo) and not blocked):
        return
    queue = (task.pending if task else process.pending).setdefault(signo, [])
    if not queue or signo >= _REAL_TIME:
        queue.append(info)


def discard(process: Process, signo: int) -> None:
    """Forget a signal that waits."""
    for pending in (process.pending, *(task.pending for task in process.tasks)):
        pending.pop(signo, None)


def force(task: Task, info: Siginfo) -> None:
    """Send a task what its own instruction did: blocked or ignored, it ends the process."""
    action = action_of(task.process, info.signo)
    if task.mask >> info.signo - 1 & 1 or action.sa_handler == SIG_IGN:
        task.process.actions.pop(info.signo, None)
        task.mask &= ~(1 << info.signo - 1)
    send(task.process, info, task)


def has_pending(task: Task) -> bool:
    """Whether a signal waits for a task that it does not block."""
    return bool(_first(task.pending, task.mask) or _first(task.process.pending, task.mask))


def is_there(task: Task, wanted: int) -> bool:
    """Whether one of a set of signals waits for a task."""
    return bool(_first(task.pending, ~wanted) or _first(task.process.pending, ~wanted))


def _first(pending: Pending, mask: int) -> int:
    """The next signal, 0 if there is none: what an instruction did comes first."""
    if not pending:
        return 0
    allowed = [signo for signo in pending if not mask >> signo - 1 & 1]
    return min(allowed, key=lambda signo: (signo not in (4, 5, 7, 8, 11, 31), signo), default=0)


def take(task: Task, mask: int) -> Siginfo | None:
    """Remove the next signal that is not in the mask."""
    for pending in (task.pending, task.process.pending):
        signo = _first(pending, mask)
        if signo:
            info = pending[signo].pop(0)
            if not pending[signo]:
                del pending[signo]
            return info
    return None


def deliver(task: Task) -> None:
    """Act on all signals that wait for a task, before it runs again."""
    while task.alive and (info := take(task, task.mask)) is not None:
        action = action_of(task.process, info.signo)
        if action.sa_handler == SIG_DFL:
            _default(task, info.signo)
        elif action.sa_handler != SIG_IGN:
            _end_call(task, restart=bool(action.sa_flags & SA_RESTART) and task.number not in _NOT_RESTARTED)
            _handle(task, info, action)
    if task.alive:
        _end_call(task, restart=True)
        if task.saved_mask is not None:
            task.mask, task.saved_mask = task.saved_mask, None


def _end_call(task: Task, *, restart: bool) -> None:
    """What becomes of a system call that a signal has ended: it is made again, or fails."""
    if task.interrupted:
        task.interrupted = False
        if restart:
            task.cpu.set_result(task.number)
            task.cpu.jump(task.cpu.rip - 2, task.cpu.rsp)
        else:
            task.cpu.set_result(-errno.EINTR)


def _default(task: Task, signo: int) -> None:
    if signo in _STOPS:
        task.process.stopped = True
        _report(task.process, signo << 8 | 0x7F, CLD_STOPPED, signo)
    elif signo not in _IGNORED:
        task.kernel.end(task.process, signo)


def _report(process: Process, status: int, code: int, signo: int) -> None:
    """Tell a parent that a child has stopped or goes on: do_notify_parent_cldstop()."""
    process.report = status
    parent = process.parent
    if parent is not None and not action_of(parent, signal.SIGCHLD).sa_flags & SA_NOCLDSTOP:
        send(parent, Siginfo(signal.SIGCHLD, code, process.pid, os.getuid(), signo))


def _handle(task: Task, info: Siginfo, action: abi.Sigaction) -> None:
    """Begin a handler. Without a stack for it the process ends: force_sigsegv()."""
    mask = task.mask if task.saved_mask is None else task.saved_mask
    task.saved_mask = None
    try:
        frame.push(task, info, action, mask)
    except FaultError:
        if info.signo == signal.SIGSEGV:
            task.process.actions.pop(info.signo, None)
        force(task, Siginfo(signal.SIGSEGV, SI_KERNEL))
        return
    task.mask |= mask_of(action.sa_mask)
    if not action.sa_flags & SA_NODEFER:
        task.mask |= 1 << info.signo - 1
    if action.sa_flags & SA_RESETHAND:
        task.process.actions[info.signo] = action._replace(sa_handler=SIG_DFL)
