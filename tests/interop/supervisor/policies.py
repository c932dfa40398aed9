"""Ready-made handlers: files, the network, the host's name, random numbers."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from attrs import frozen

from supervisor.arguments import AT_FDCWD
from supervisor.supervisor import CONTINUE, Answer, Call, Give, Handler
from usermem import abi

_GRND_FLAGS, _GRND_RANDOM_INSECURE = 7, 6
_RANDOM_MOST = 1 << 16


@frozen
class Files:
    """Refuse to open files by patterns of their paths (EACCES), or open others in their place."""

    deny: Sequence[str] = ()
    replace: Mapping[str, str] = {}

    def handlers(self) -> dict[str, Handler]:
        """By the names of system calls."""
        return {"open": self.open, "openat": self.openat, "openat2": self.openat2}

    def open(self, call: Call, path: bytes, flags: int, mode: int) -> Answer:
        """open(2)"""
        return self.openat(call, AT_FDCWD, path, flags, mode)

    def openat2(self, call: Call, dirfd: int, path: bytes, how: tuple[int, int, int], size: int) -> Answer:
        """openat2(2)"""
        return self.openat(call, dirfd, path, how[0], how[1])

    def openat(self, call: Call, dirfd: int, path: bytes, flags: int, mode: int) -> Answer:
        """openat(2)"""
        real = real_path(call.tid, dirfd, path)
        call.check()  # before the thread's number counts for anything
        if any(fnmatch(real, pattern) for pattern in self.deny):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if real not in self.replace:
            return CONTINUE
        return Give(os.open(self.replace[real], flags | os.O_CLOEXEC, mode & 0o7777), bool(flags & os.O_CLOEXEC))


def real_path(tid: int, dirfd: int, path: bytes) -> str:
    """The path that a thread means, without links. A root directory of its own is not looked at; /proc/self is ours.

    Raises OSError (EBADF) if the directory is no descriptor of the thread's.
    """
    folder = f"/proc/{tid}/cwd" if dirfd == AT_FDCWD else f"/proc/{tid}/fd/{dirfd}"
    try:
        start = Path("/") if path.startswith(b"/") else Path(folder).readlink()
    except FileNotFoundError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
    return os.path.realpath(start / os.fsdecode(path))


@frozen
class Network:
    """Refuse (EACCES) to connect and to send to addresses: 127.0.0.1:80, [::1]:80, unix:/path, unix:@abstract."""

    deny: Sequence[str]

    def handlers(self) -> dict[str, Handler]:
        """By the names of system calls."""
        return {
            "connect": lambda call, fd, address, size: self.judge(address),
            "sendto": lambda call, fd, data, size, flags, address, length: self.judge(address),
            "sendmsg": lambda call, fd, message, flags: self.judge(message[0]),
            "sendmmsg": lambda call, fd, messages, count, flags: self.judge(*[address for address, _ in messages]),
        }

    def judge(self, *addresses: str | None) -> Answer:
        """Refuse if one of the addresses is to be refused."""
        if any(fnmatch(address, pattern) for address in addresses if address for pattern in self.deny):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return CONTINUE


def host_named(name: str) -> Handler:
    """A handler for uname(2): the host's own answer, under another name."""
    host = os.uname()
    fields = (host.sysname, name, host.release, host.version, host.machine, "(none)")
    value = abi.Utsname(*[field.encode() for field in fields])

    def uname(call: Call, addr: int) -> Answer:
        abi.UTSNAME.copy_out(call.memory, addr, value)
        return 0

    return uname


def random_from(seed: int) -> Handler:
    """A handler for getrandom(2): bytes that are the same in each run. A long request is cut short, as it may be."""
    numbers = random.Random(seed)

    def getrandom(call: Call, addr: int, count: int, flags: int) -> Answer:
        if flags & ~_GRND_FLAGS or flags & _GRND_RANDOM_INSECURE == _GRND_RANDOM_INSECURE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return call.memory.copy_out(addr, numbers.randbytes(min(count, _RANDOM_MOST)))

    return getrandom
