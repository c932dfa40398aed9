"""The system calls that can be watched: their numbers on x86-64, and how their arguments are read and printed.

Source: arch/x86/entry/syscalls/syscall_64.tbl; connect(2), sendmsg(2), openat2(2), execve(2).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from attrs import frozen

from usermem import (
    IO,
    UIO_MAXIOV,
    abi,
    copy_in_iovecs,
    copy_in_vector,
    copy_string_in,
    copy_struct_from_user,
    copy_struct_in,
    copy_uint16_in,
)

AT_FDCWD = -100
_PATH_MAX, _ARG_MAX, _STRING_MAX = 4096, 2 << 20, 32 << 12
_MSGHDR, _MMSGHDR_SIZE = "PIPLPLI", 64


def read_int(_: IO, args: Sequence[int]) -> int:
    """An int: half of the register."""
    return (args[0] & 0xFFFF_FFFF ^ 0x8000_0000) - 0x8000_0000


def read_word(_: IO, args: Sequence[int]) -> int:
    """A size, or an address whose memory the handler writes."""
    return args[0]


def read_path(memory: IO, args: Sequence[int]) -> bytes:
    """A file's name."""
    return copy_string_in(memory, args[0], _PATH_MAX)


def read_vector(memory: IO, args: Sequence[int]) -> list[bytes]:
    """argv; Linux takes NULL for an empty one."""
    return copy_in_vector(memory, args[0], _STRING_MAX, _ARG_MAX) if args[0] else []


def read_how(memory: IO, args: Sequence[int]) -> tuple[int, ...]:
    """A struct open_how of a size: flags, mode, resolve."""
    return copy_struct_from_user(memory, args[0], args[1], "QQQ")


def read_address(memory: IO, args: Sequence[int]) -> str | None:
    """A socket address of a size; None if there is none."""
    addr, size = args[0], read_int(memory, args[1:])
    if not addr or size < 2:
        return None
    family = copy_uint16_in(memory, addr)
    if family == socket.AF_INET:
        inet = abi.SOCKADDR_IN.copy_in(memory, addr, size=size)
        return f"{ip_address(inet.sin_addr)}:{inet.sin_port}"
    if family == socket.AF_INET6:
        inet6 = abi.SOCKADDR_IN6.copy_in(memory, addr, size=size)
        return f"[{ip_address(inet6.sin6_addr)}]:{inet6.sin6_port}"
    if family == socket.AF_UNIX:
        path = abi.SOCKADDR_UN.copy_in(memory, addr, size=size).sun_path[: size - 2]
        return "unix:" + os.fsdecode(b"@" + path[1:] if path[:1] == b"\0" else path.partition(b"\0")[0])
    return f"family {family}"


def read_message(memory: IO, args: Sequence[int]) -> tuple[str | None, int]:
    """A struct msghdr: where the message goes, and how many bytes it has."""
    name, size, iov, count, *_ = copy_struct_in(memory, args[0], _MSGHDR)
    if count > UIO_MAXIOV:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return read_address(memory, (name, size)), copy_in_iovecs(memory, iov, count).num_bytes


def read_messages(memory: IO, args: Sequence[int]) -> list[tuple[str | None, int]]:
    """So many struct mmsghdr."""
    count = min(args[1] & 0xFFFF_FFFF, UIO_MAXIOV)
    return [read_message(memory, (args[0] + at * _MMSGHDR_SIZE,)) for at in range(count)]


_FLAGS = {getattr(os, name): name for name in dir(os) if name.startswith("O_") and getattr(os, name) > 2}


def show_open_flags(flags: int) -> str:
    """The flags of open(2) by their names, as strace does."""
    names = [("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[flags & 3]]
    return "|".join(names + [name for bit, name in _FLAGS.items() if flags & bit == bit])


def show(value: Any) -> str:
    """A value in a line of the log."""
    if isinstance(value, bytes):
        return repr(value)[1:]
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    return "NULL" if value is None else str(value)


@frozen
class Parameter:
    """How an argument is read, from its register and those behind it, and how its value is shown."""

    read: Callable[[IO, Sequence[int]], Any]
    show: Callable[[Any], str] = show


INT, SIZE = Parameter(read_int), Parameter(read_word)
POINTER = Parameter(read_word, hex)
FLAGS, MODE = Parameter(read_int, hex), Parameter(read_int, oct)
DIR_FD = Parameter(read_int, lambda fd: "AT_FDCWD" if fd == AT_FDCWD else str(fd))
PATH, OPEN_FLAGS, HOW = Parameter(read_path), Parameter(read_int, show_open_flags), Parameter(read_how)
VECTOR, ADDRESS = Parameter(read_vector), Parameter(read_address)
MESSAGE, MESSAGES = Parameter(read_message), Parameter(read_messages)


@frozen
class Signature:
    """A system call's number and parameters."""

    number: int
    parameters: tuple[Parameter, ...]

    def read(self, memory: IO, args: Sequence[int]) -> list[Any]:
        """The values of the arguments. Instead of one that cannot be read there is the OSError that says why."""
        values = []
        for at, parameter in enumerate(self.parameters):
            try:
                values.append(parameter.read(memory, args[at:]))
            except OSError as error:
                values.append(error.with_traceback(None))
        return values

    def show(self, values: Sequence[Any], args: Sequence[int]) -> str:
        """The arguments as in the log; those that could not be read are addresses."""
        return ", ".join(
            hex(arg) if isinstance(value, OSError) else parameter.show(value)
            for parameter, value, arg in zip(self.parameters, values, args, strict=False)
        )


SIGNATURES = {
    "open": Signature(2, (PATH, OPEN_FLAGS, MODE)),
    "connect": Signature(42, (INT, ADDRESS, INT)),
    "sendto": Signature(44, (INT, POINTER, SIZE, FLAGS, ADDRESS, INT)),
    "sendmsg": Signature(46, (INT, MESSAGE, FLAGS)),
    "execve": Signature(59, (PATH, VECTOR)),
    "uname": Signature(63, (POINTER,)),
    "openat": Signature(257, (DIR_FD, PATH, OPEN_FLAGS, MODE)),
    "sendmmsg": Signature(307, (INT, MESSAGES, INT, FLAGS)),
    "getrandom": Signature(318, (POINTER, SIZE, FLAGS)),
    "execveat": Signature(322, (DIR_FD, PATH, VECTOR)),
    "openat2": Signature(437, (DIR_FD, PATH, HOW, SIZE)),
}
