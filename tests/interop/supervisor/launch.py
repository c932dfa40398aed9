"""``launch.py SOCKET WAIT_KILLABLE NUMBERS PROGRAM ARGS...``: start a program whose calls are notified, and wait.

A process of its own does this, so that no threads are copied by the fork, and so that it can be the subreaper: whatever
the program leaves behind becomes a child here. The listener goes through the socket (SCM_RIGHTS), in the end the
program's wait status. When the supervisor's end of the socket is closed, all children are killed.

Source: seccomp(2), unix(7), PR_SET_CHILD_SUBREAPER(2const); linux/filter.h, linux/audit.h.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_SYS_SECCOMP, _SYS_SENDMSG = 317, 46
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE_RECV = 1, 1 << 3, 1 << 5
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NR, _ARCH, _LAST_ARG = 0, 4, 56  # offsets in struct seccomp_data
_AUDIT_ARCH_X86_64 = 0xC000_003E
_USER_NOTIF, _ALLOW = 0x7FC0_0000, 0x7FFF_0000


def notify(numbers: Iterable[int], cookie: int) -> bytes:
    """A BPF program that notifies of these system calls of x86-64, but not of one whose sixth argument is the cookie.

    No call that is made here takes six arguments: so the one that sends the listener passes, whatever is watched.
    """
    lines = [
        (_LOAD, 0, 0, _ARCH),
        (_IF_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _LAST_ARG),
        (_IF_EQUAL, 0, 3, cookie & 0xFFFF_FFFF),
        (_LOAD, 0, 0, _LAST_ARG + 4),
        (_IF_EQUAL, 0, 1, cookie >> 32),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _NR),
    ]
    for number in numbers:
        lines += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _USER_NOTIF)]
    return b"".join(struct.pack("HBBI", *line) for line in [*lines, (_RETURN, 0, 0, _ALLOW)])


def send_listener(fd: int, wait_killable: bool, numbers: Iterable[int]) -> None:
    """Put this process under the filter, for good, and send the listener through the socket ``fd``.

    Raises OSError. All is made ready before: between the two calls a notification could not be answered yet.
    """
    call = ctypes.CDLL(None, use_errno=True).syscall
    number = ctypes.c_ulong
    cookie = int.from_bytes(os.urandom(8), "little")
    code = notify(numbers, cookie)
    program = ctypes.create_string_buffer(code)
    filter_ = ctypes.create_string_buffer(struct.pack("H6xQ", len(code) // 8, ctypes.addressof(program)))
    byte = ctypes.create_string_buffer(b"l")
    iovec = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(byte), 1))
    control = ctypes.create_string_buffer(struct.pack("QiiI4x", 20, socket.SOL_SOCKET, socket.SCM_RIGHTS, 0))
    fields = (0, 0, ctypes.addressof(iovec), 1, ctypes.addressof(control), 24, 0)
    message = ctypes.create_string_buffer(struct.pack("QQQQQQQ", *fields))
    arguments = number(fd), message, number(0), number(0), number(0), number(cookie)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, number(1), number(0), number(0), number(0)):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    listener = -1
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE_RECV, _NEW_LISTENER)[not wait_killable :]:  # older kernels: EINVAL
        if listener < 0:
            listener = call(_SYS_SECCOMP, number(_SET_MODE_FILTER), number(flags), filter_)
    if listener < 0:
        why = ctypes.get_errno()
        raise OSError(why, f"seccomp user notification: {os.strerror(why)}")
    struct.pack_into("I", control, 16, listener)
    if call(_SYS_SENDMSG, *arguments) != 1:
        raise OSError(ctypes.get_errno(), "sendmsg of the listener")


def become(fd: int, wait_killable: bool, numbers: Iterable[int], argv: list[str]) -> None:
    """Run the program in this process, under the filter. It has the environment and signals that this one got."""
    inherited = Path("/proc/self/environ").read_bytes()  # Python changes LC_CTYPE in its own
    environment = dict(entry.split(b"=", 1) for entry in inherited.split(b"\0") if b"=" in entry)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    try:
        send_listener(fd, wait_killable, numbers)
    except OSError as error:
        os.write(fd, f"{error.errno} {error.strerror}".encode())
        os._exit(1)
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def wait_for_all(pid: int, channel: socket.socket) -> int:
    """Reap children until none is left, and return the wait status of ``pid``; kill all if the channel is closed."""
    status = 0
    wakeup, wakeup_out = os.pipe()
    os.set_blocking(wakeup_out, False)
    signal.set_wakeup_fd(wakeup_out, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        try:
            reaped, what = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if reaped == pid:
            status = what
        if reaped:
            continue
        ready, _, _ = select.select([wakeup, channel.fileno()], [], [])
        if wakeup in ready:
            os.read(wakeup, 512)
        if channel.fileno() in ready:
            for child in children.read_text().split():  # whose numbers are theirs until they are reaped here
                with suppress(PermissionError):
                    os.kill(int(child), signal.SIGKILL)
            select.select([wakeup], [], [], 0.1)  # what they leave behind is a child here by then


def main(fd: int, wait_killable: bool, numbers: list[int], argv: list[str]) -> None:
    """Start the program and wait for all that comes of it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    os.set_inheritable(fd, False)
    pid = os.fork()
    if not pid:
        become(fd, wait_killable, numbers, argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is the program's
    with socket.socket(fileno=fd) as channel:
        status = wait_for_all(pid, channel)
        with suppress(BrokenPipeError):
            channel.send(struct.pack("i", status))


if __name__ == "__main__":
    watched = [int(number) for number in sys.argv[3].split(",") if number]
    main(int(sys.argv[1]), sys.argv[2] == "1", watched, sys.argv[4:])
