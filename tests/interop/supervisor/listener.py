"""Listener: the descriptor by which the kernel notifies of system calls, and takes the answers.

Source: seccomp_unotify(2), linux/seccomp.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from attrs import define, frozen

_NOTIF = struct.Struct("=QIIiIQ6Q")  # id, pid, flags; struct seccomp_data: nr, arch, instruction_pointer, args
_RESPONSE = struct.Struct("=QqiI")  # id, val, error, flags
_ADDFD = struct.Struct("=QIIII")  # id, flags, srcfd, newfd, newfd_flags
_CONTINUE = 1
_ADDFD_SEND = 2
_READ, _WRITE = 2, 1


def _ioctl(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("!") << 8 | number


_RECV = _ioctl(_READ | _WRITE, 0, _NOTIF.size)
_SEND = _ioctl(_READ | _WRITE, 1, _RESPONSE.size)
_ID_VALID = _ioctl(_WRITE, 2, 8)
_ADD_FD = _ioctl(_WRITE, 3, _ADDFD.size)


class CallGone(Exception):
    """Nobody waits for the answer any more: a signal interrupted the call, or its thread has ended."""


@frozen
class Notification:
    """A thread waits in a system call. ``tid`` is the thread's number, not its process's."""

    id: int
    tid: int
    number: int
    args: tuple[int, ...]


@define
class Listener:
    """The notifications of one filter. Each method raises CallGone where the call that it is about is gone."""

    fd: int

    def receive(self) -> Notification:
        """The next notification; waits for it, so poll(2) first."""
        buffer = bytearray(_NOTIF.size)
        self._ask(_RECV, buffer)
        id_, tid, _, number, _, _, *args = _NOTIF.unpack(buffer)
        return Notification(id_, tid, number, tuple(args))

    def check(self, id_: int) -> None:
        """Raise CallGone if the call is gone. What was read of its process before may then be another one's."""
        self._ask(_ID_VALID, bytearray(struct.pack("=Q", id_)))

    def answer(self, id_: int, result: int) -> None:
        """Have the call return a result, or -errno, and not be made."""
        value, code = (result, 0) if result >= 0 else (0, result)
        self._ask(_SEND, bytearray(_RESPONSE.pack(id_, value, code, 0)))

    def pass_on(self, id_: int) -> None:
        """Have the kernel make the call, with whatever its memory then has."""
        self._ask(_SEND, bytearray(_RESPONSE.pack(id_, 0, 0, _CONTINUE)))

    def give(self, id_: int, fd: int, cloexec: bool) -> int:
        """Have the call return a copy of this process's descriptor, and return its number there.

        Raises OSError (EMFILE) if the process may not have another one; the call waits on then.
        """
        request = _ADDFD.pack(id_, _ADDFD_SEND, fd, 0, os.O_CLOEXEC if cloexec else 0)
        return self._ask(_ADD_FD, bytearray(request))

    def close(self) -> None:
        """Have all calls that wait or come return -ENOSYS."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _ask(self, request: int, buffer: bytearray) -> int:
        try:
            result: int = fcntl.ioctl(self.fd, request, buffer, True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS):
                raise CallGone from None
            raise
        return result
