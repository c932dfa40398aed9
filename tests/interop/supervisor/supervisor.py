"""Supervisor: runs a program, and answers some of its system calls in its place.

The kernel stops a thread of the program in a system call and notifies us. Its arguments are read in its memory
(:class:`usermem.memories.ProcessIO`), and a handler says what the call returns, or that the kernel shall make it.

It is no sandbox: the kernel reads the arguments again when it makes a call, and another thread may have changed them.

Source: seccomp_unotify(2).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from attrs import frozen

from supervisor.arguments import SIGNATURES
from supervisor.listener import CallGone, Listener, Notification
from usermem import linux_result
from usermem.memories import ProcessIO

_LAUNCH = Path(__file__).with_name("launch.py")


class Continue:
    """The answer that has the kernel make the call."""


CONTINUE = Continue()


@frozen
class Give:
    """The answer that returns a copy of a descriptor to the program. The supervisor closes its own then."""

    fd: int
    cloexec: bool


Answer = int | Continue | Give


@frozen
class Call:
    """A system call that waits for its answer.

    ``check()`` raises CallGone if it does not wait any more. Handlers call it after they have read memory themselves,
    before they act on it.
    """

    name: str
    tid: int
    memory: ProcessIO
    check: Callable[[], None]


Handler = Callable[..., Answer]
"""``handler(call, *values)``, with the values of the parameters in :data:`SIGNATURES`.

Returns an :data:`Answer`, or raises OSError: the call returns what ``linux_result`` makes of it. It must not wait, for
all calls wait meanwhile.
"""


class Supervisor:
    """A program whose calls of the names in ``handlers`` are answered by them; those without one (None) are logged.

    A context manager. When it is left, the program and all that came of it are killed.
    """

    def __init__(
        self,
        argv: Sequence[str],
        handlers: Mapping[str, Handler | None],
        *,
        log: Callable[[str], None] | None = None,
        wait_killable: bool = True,
        **popen: Any,
    ) -> None:
        """Start the program, with options of subprocess.Popen (cwd, env, stdin, stdout, stderr).

        ``wait_killable``: a signal that does not kill waits until a call that was received is answered (Linux 5.19);
        else it interrupts the call. Raises OSError if the host has no seccomp user notification, or refuses it.
        """
        self._handlers = {SIGNATURES[name].number: (name, handler) for name, handler in handlers.items()}
        self._log = log
        self._memories: dict[int, ProcessIO] = {}
        self._poll = select.poll()
        self._closed = False
        numbers = ",".join(map(str, self._handlers))
        with ExitStack() as stack:
            self._channel, theirs = map(stack.enter_context, socket.socketpair(type=socket.SOCK_SEQPACKET))
            fd = theirs.fileno()
            command = [sys.executable, "-I", "-S", str(_LAUNCH), str(fd), str(int(wait_killable)), numbers, *argv]
            self.launcher = stack.enter_context(subprocess.Popen(command, pass_fds=[fd], **popen))
            stack.callback(self._channel.close)  # which has the launcher kill all, before it is waited for
            theirs.close()
            self._launcher_fd = os.pidfd_open(self.launcher.pid)
            stack.callback(os.close, self._launcher_fd)
            self.listener = Listener(self._receive_listener())
            stack.callback(self.listener.close)
            self._owned = stack.pop_all()

    def run(self) -> int:
        """Answer calls until the program and all its descendants have ended. Returns its status as Popen.returncode."""
        self._poll.register(self.listener.fd, select.POLLIN)
        self._poll.register(self._launcher_fd, select.POLLIN)
        while True:
            for fd, event in reversed(self._poll.poll()):  # the listener last: who has ended is forgotten before
                if fd == self._launcher_fd:
                    return self._receive_status()
                if fd != self.listener.fd:
                    self._forget(fd)
                elif event & select.POLLIN:
                    self._serve()
                else:  # POLLHUP: no process is under the filter any more
                    self._poll.unregister(fd)
                    _send(self._launcher_fd, signal.SIGCONT)  # which the program may have stopped

    def close(self) -> None:
        """Kill what is left of the program, and give up all descriptors.

        The launcher kills all; if the program has killed the launcher, those processes that have made a call.
        """
        while self._memories:
            memory = self._memories.popitem()[1]
            _send(memory.fileno(), signal.SIGKILL)
            memory.close()
        if not self._closed:
            _send(self._launcher_fd, signal.SIGCONT)
        self._closed = True
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- one call

    def _serve(self) -> None:
        """Receive a notification, have it answered, and log it."""
        try:
            notification = self.listener.receive()
        except (CallGone, InterruptedError):
            return
        name, handler = self._handlers[notification.number]
        values: list[Any] = []
        outcome = "? (interrupted, or its thread has ended)"
        try:
            call, values = self._read(name, notification)
            outcome = self._answer(notification.id, handler, call, values)
        except CallGone:
            pass
        if self._log is not None:
            shown = SIGNATURES[name].show(values, notification.args)
            self._log(f"[{notification.tid}] {name}({shown}) = {outcome}")

    def _read(self, name: str, notification: Notification, *, again: bool = True) -> tuple[Call, list[Any]]:
        """The call and its arguments. Raises CallGone.

        The thread may have been killed, and its number be another one's by now, whose memory was read. Only if the
        call still waits after the read, what was read is its own.
        """
        try:
            memory = self._memory(notification.tid)
        except ProcessLookupError:
            raise CallGone from None
        values = SIGNATURES[name].read(memory, notification.args)
        self.listener.check(notification.id)
        if again and any(isinstance(value, ProcessLookupError) for value in values):
            self._forget(memory.fileno())  # the memory of an earlier process of that number
            return self._read(name, notification, again=False)
        return Call(name, notification.tid, memory, lambda: self.listener.check(notification.id)), values

    def _answer(self, id_: int, handler: Handler | None, call: Call, values: list[Any]) -> str:
        """Answer a call, and return how the log has it. Raises CallGone."""
        why = ""
        try:
            answer = _ask(handler, call, values)
            if isinstance(answer, Give):
                try:
                    return str(self.listener.give(id_, answer.fd, answer.cloexec))
                finally:
                    os.close(answer.fd)
        except OSError as error:
            answer, why = linux_result(error), str(error.strerror)
        if isinstance(answer, Continue):
            self.listener.pass_on(id_)
            return "continued"
        self.listener.answer(id_, answer)
        return str(answer) if answer >= 0 else f"-1 {errno.errorcode[-answer]} ({why or os.strerror(-answer)})"

    # --- processes

    def _memory(self, tid: int) -> ProcessIO:
        """The memory of a thread's process, which is opened once. Raises ProcessLookupError."""
        memory = self._memories.get(tid)
        if memory is None:
            pid = _process_of(tid)
            memory = self._memories.get(pid)
            if memory is None:
                memory = self._memories[pid] = ProcessIO(pid)
                self._poll.register(memory.fileno(), select.POLLIN)  # readable when it ends
        return memory

    def _forget(self, fd: int) -> None:
        """Close the memory that has this descriptor: the process has ended."""
        for pid in [pid for pid, memory in self._memories.items() if memory.fileno() == fd]:
            self._poll.unregister(fd)
            self._memories.pop(pid).close()

    # --- the launcher

    def _receive_listener(self) -> int:
        text, fds, _, _ = socket.recv_fds(self._channel, 256, 1, socket.MSG_CMSG_CLOEXEC)
        if fds:
            return fds[0]
        code, _, why = text.decode().partition(" ")
        raise OSError(int(code or errno.ECHILD), why or "the launcher was killed")

    def _receive_status(self) -> int:
        status = self._channel.recv(4)
        if not status:
            raise ChildProcessError(errno.ECHILD, "the launcher was killed")
        return os.waitstatus_to_exitcode(struct.unpack("i", status)[0])


def _send(pidfd: int, signo: int) -> None:
    """Send a signal to a process, if it has not ended."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signo)


def _ask(handler: Handler | None, call: Call, values: list[Any]) -> Answer:
    """What a handler answers. Raises OSError, also of an argument that cannot be read, which no handler sees."""
    if handler is None:
        return CONTINUE
    for value in values:
        if isinstance(value, OSError):
            try:
                raise value
            finally:
                del value
    return handler(call, *values)


def _process_of(tid: int) -> int:
    """The number of the process that a thread belongs to. Raises ProcessLookupError."""
    try:
        status = Path(f"/proc/{tid}/status").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"thread {tid} has ended") from None
    return int(status.partition("\nTgid:")[2].split(maxsplit=1)[0])
