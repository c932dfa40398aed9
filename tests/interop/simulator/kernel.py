"""Kernel: all processes, whose turn it is, and how a system call is made, waits and goes on.

One host thread runs all tasks by turns, in their order. A task runs until a system call of its waits, or its slice
ends, which is so many instructions or system calls; it has none while nobody else could run. So the same program does
the same each time, as far as the host's files do. A system call is made when the engine has stopped, so that it may
change anything: the registers, the engine, the memory.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

import simulator.calls  # noqa: F401 - fills the table
from simulator import signals
from simulator.cpu import CPU, Stop
from simulator.execute import execute
from simulator.files import Files, OpenFile
from simulator.process import Directory, Memory, Process, Task, Wrap, new_space
from simulator.siginfo import CLD_EXITED, CLD_KILLED, Siginfo
from simulator.table import CALLS, Result
from simulator.waits import poll_now
from usermem import Futex, FutexTable, copy_uint32_out, linux_result

_LONGEST: Final = 60.0  # of one poll of the host's, in seconds
_CALLS: Final = 1000  # of a slice

Trace: TypeAlias = Callable[[Task, int | None], None]
"""Is called when a system call of a task ends, with what it returns."""


class Kernel:
    """One simulated machine."""

    def __init__(
        self, *, wrap: Wrap = lambda space: space, trace: Trace | None = None, limit: float | None = None
    ) -> None:
        """After ``limit`` seconds all processes are killed."""
        self.wrap = wrap
        self.futexes = FutexTable()
        self.processes: dict[int, Process] = {}
        self.tasks: list[Task] = []
        self._trace = trace
        self._next_pid = os.getpid()
        self._limit = limit
        self._over = False
        self._running: CPU | None = None

    def new_pid(self) -> int:
        """A number for a process or a task; the first is the simulator's own."""
        self._next_pid += 1
        return self._next_pid - 1

    def start(
        self,
        path: str,
        argv: Sequence[str],
        envp: Mapping[str, str],
        *,
        streams: Sequence[int] = (0, 1, 2),
        cwd: str = ".",
    ) -> Process:
        """Start a program with these descriptors of the host's as its first. Raises OSError, MemoryError as execve."""
        directory = Directory(os.open(cwd, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), os.umask(0))
        os.umask(directory.umask)
        files = Files()
        for fd, stream in enumerate(streams):
            with suppress(OSError):  # one that the caller has closed is closed here
                files.install_at(fd, OpenFile(os.dup(stream)))
        memory = Memory(new_space({}), self.wrap)
        process = Process(self, self.new_pid(), None, memory, files, directory, os.getpgrp(), os.getsid(0))
        variables = [f"{name}={value}" for name, value in envp.items()]
        try:
            cpu = execute(process, os.fsencode(path), argv, variables).take_over(process)
        except BaseException:
            files.put()
            directory.put()
            raise
        self.add(Task(process.pid, process, cpu))
        return process

    def add(self, task: Task) -> None:
        """Let a new task run, and its process if that is new."""
        self.processes[task.process.pid] = task.process
        task.process.tasks.append(task)
        self.tasks.append(task)

    def run(self) -> None:
        """Run until no process is left."""
        umask = os.umask(0)
        ended = threading.Event()
        timer = threading.Thread(target=self._time, args=(ended,), daemon=True)
        try:
            timer.start()
            while self.tasks and not self._over:
                self._turn()
        finally:
            os.umask(umask)
            ended.set()
            timer.join()
            for each in list(self.processes.values()):
                self.end(each, signal.SIGKILL)

    def _time(self, ended: threading.Event) -> None:
        """Stop what runs when the time is up, in another thread, until it has noticed."""
        wait = self._limit
        while not ended.wait(wait):
            self._over, wait = True, 0.05
            if self._running is not None:
                self._running.stop()

    # --- whose turn it is

    def _turn(self) -> None:
        """Let each task run that can; if none can, wait until one can."""
        self._send_alarms()
        events: dict[int, int] = {}
        for task in self.tasks:
            for fd, mask in task.wait.events.items() if task.wait is not None else ():
                events[fd] = events.get(fd, 0) | mask
        idle = not any(self._can_run(task, {}) for task in self.tasks)
        ready = poll_now(events, self._idle_time() if idle else 0) if events or idle else {}
        for task in list(self.tasks):
            if self._can_run(task, ready):
                self._step(task, ready)

    def _can_run(self, task: Task, ready: dict[int, int]) -> bool:
        if not task.alive or task.process.stopped:
            return False
        return task.wait is None or task.wait.is_over(ready) or signals.has_pending(task)

    def _idle_time(self) -> float:
        """How long nobody can run but for descriptors, in seconds."""
        times = [task.wait.deadline for task in self.tasks if task.wait is not None and task.wait.deadline is not None]
        times += [process.alarm for process in self.processes.values() if process.alarm is not None]
        soon = 0.1 if self._limit is not None else _LONGEST
        return min(max(0.0, min(times) - time.monotonic()), soon) if times else soon

    def _send_alarms(self) -> None:
        for process in self.processes.values():
            if process.alarm is not None and time.monotonic() >= process.alarm:
                process.alarm = process.alarm + process.interval if process.interval else None
                signals.send(process, Siginfo(signal.SIGALRM))

    def _step(self, task: Task, ready: dict[int, int]) -> None:
        """Let a task run until it waits, or its slice ends."""
        if task.wait is not None:
            self.go_on(task, interrupted=not task.wait.is_over(ready) and signals.has_pending(task))
        for _ in range(_CALLS):
            signals.deliver(task)
            if not task.alive or task.process.stopped or self._over:
                break
            self._running = cpu = task.cpu
            stop = cpu.run(preempt=self._others_can_run(task))
            if stop is Stop.SYSTEM_CALL:
                self.system_call(task)
            elif stop is Stop.TRAP:
                signals.force(task, cpu.trap)
            if stop is Stop.SLICE or task.wait is not None:
                break

    def _others_can_run(self, task: Task) -> bool:
        """Whether anybody could run before this task does something about it, or a timer go off."""
        if len(self.tasks) == 1 and task.process.alarm is None:
            return False
        waits = [each.wait for each in self.tasks if each is not task]
        timers = any(process.alarm is not None for process in self.processes.values())
        return timers or any(wait is None or wait.events or wait.deadline is not None or wait.done() for wait in waits)

    # --- system calls

    def system_call(self, task: Task) -> None:
        """Make the one that the program counter is behind."""
        task.number, *task.registers = task.cpu.arguments.read()
        call = CALLS.get(task.number)
        result: Result = -errno.ENOSYS
        if call is not None:
            try:
                result = call.handler(task, *call.arguments(task.registers))
            except (OSError, OverflowError, MemoryError) as error:
                result = _failed(error)
        if result is None or isinstance(result, int):
            self._finish(task, result)
        else:
            task.call = result
            self.go_on(task)

    def go_on(self, task: Task, *, interrupted: bool = False) -> None:
        """Go on with a system call whose wait is over, or that a signal ends."""
        call, result = task.call, None
        assert call is not None
        try:
            task.wait = call.throw(InterruptedError(errno.EINTR, "")) if interrupted else next(call)
            return
        except StopIteration as end:
            result = end.value
        except InterruptedError:
            task.interrupted = True
        except (OSError, OverflowError, MemoryError) as error:
            result = _failed(error)
        task.call = task.wait = None
        self._finish(task, result)

    def _finish(self, task: Task, result: int | None) -> None:
        if self._trace is not None:
            self._trace(task, result)
        if result is not None and task.alive:
            task.cpu.set_result(result & (1 << 64) - 1)

    # --- ends

    def end(self, process: Process, status: int) -> None:
        """End a process: exit_group(2), a signal. Its parent is told, and may wait for it."""
        if process.status is not None:
            return
        process.status = status
        for task in list(process.tasks):
            self.end_task(task)
        process.files.put()
        process.memory.put()
        process.directory.put()
        for child in list(process.children):
            child.parent = None
            if child.status is not None:
                self.reap(child)
        process.children.clear()
        parent = process.parent
        if parent is None:
            self.reap(process)
            return
        code, value = (CLD_KILLED, status & 0x7F) if status & 0x7F else (CLD_EXITED, status >> 8)
        action = signals.action_of(parent, signal.SIGCHLD)
        if action.sa_handler == signals.SIG_IGN or action.sa_flags & signals.SA_NOCLDWAIT:
            self.reap(process)
        if process.exit_signal:
            signals.send(parent, Siginfo(process.exit_signal, code, process.pid, os.getuid(), value))

    def reap(self, process: Process) -> None:
        """Forget a process that has ended."""
        del self.processes[process.pid]
        if process.parent is not None:
            process.parent.children.remove(process)

    def end_task(self, task: Task) -> None:
        """End a thread, and tell who joins it: CLONE_CHILD_CLEARTID."""
        task.alive = False
        if task.call is not None:
            task.call.close()
        task.call = task.wait = None
        self.tasks.remove(task)
        task.process.tasks.remove(task)
        if task.clear_child_tid and (task.process.memory.users > 1 or task.process.tasks):
            with suppress(OSError):  # nobody is told where there is no memory
                copy_uint32_out(task.memory, task.clear_child_tid, 0)
                self.futexes.wake(Futex(task.memory, task.clear_child_tid))
        task.cpu.close()


def _failed(error: OSError | OverflowError | MemoryError) -> int:
    """What a system call returns for an error; a number that is too large for the host's call is EINVAL."""
    if isinstance(error, OSError):
        return linux_result(error)
    return -errno.EINVAL if isinstance(error, OverflowError) else -errno.ENOMEM
