"""Handlers of system calls with a bug each, as they are found in simulators and kernels, and the right twin of each.

``memory`` is the guest's. A handler returns its result or raises OSError; ``run`` makes that what the guest sees.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from safemem import FromIOReader, FromIOWriter
from usermem import (
    IO,
    FaultError,
    copy_in_iovecs,
    copy_string_in,
    copy_struct_in,
    copy_struct_out,
    copy_uint32_in,
    copy_uint32_out,
    copy_uint64_in,
    copy_uint64_out,
    iovecs_io_sequence,
    linux_result,
    single_io_sequence,
    strnlen_user,
)
from usermem.observe import DoubleFetchDetector

MSGHDR = "PIPPPPi"  # name, namelen, iov, iovlen, control, controllen, flags
NAMELEN = 8  # where it is in it
PEER = b"\x02\x00\x00\x50\x7f\x00\x00\x01" + bytes(8)
SECRET = b"kernel secret ..." * 20
PATH_MAX = 4096


def run(handler: Callable[..., int], *args: Any) -> int:
    """What the guest sees of a system call."""
    try:
        return handler(*args)
    except OSError as exc:
        return linux_result(exc)


def invalid() -> OSError:
    """EINVAL."""
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))


# --- a length is checked in the first copy of a header and used from the second


def recvmsg_header_fetched_twice(memory: IO, msg: int, data: bytes) -> int:
    if copy_uint32_in(memory, msg + NAMELEN) > len(PEER):
        raise invalid()
    name, namelen, iov, iovlen, *_ = copy_struct_in(memory, msg, MSGHDR)
    return received(memory, (name, namelen), iovecs_io_sequence(memory, iov, iovlen), data)


def recvmsg(memory: IO, msg: int, data: bytes) -> int:
    name, namelen, iov, iovlen, *_ = copy_struct_in(memory, msg, MSGHDR)
    if namelen > len(PEER):
        raise invalid()
    return received(memory, (name, namelen), iovecs_io_sequence(memory, iov, iovlen), data)


def received(memory: IO, name: tuple[int, int], seq: Any, data: bytes) -> int:
    """The rest of recvmsg: the name lies before a secret in the kernel's memory."""
    addr, length = name
    memory.copy_out(addr, (PEER + SECRET)[:length])
    done: int = seq.copy_out(data)
    return done


# --- a length that is a pointer's is checked, and fetched again to be used


def getsockname_length_checked_twice(memory: IO, addr: int, addrlen: int) -> int:
    if copy_uint32_in(memory, addrlen) > 1 << 31:
        raise invalid()
    n = min(copy_uint32_in(memory, addrlen), len(PEER))
    memory.copy_out(addr, PEER[:n])
    copy_uint32_out(memory, addrlen, len(PEER))
    return 0


def getsockname(memory: IO, addr: int, addrlen: int) -> int:
    n = copy_uint32_in(memory, addrlen)
    if n > 1 << 31:
        raise invalid()
    memory.copy_out(addr, PEER[: min(n, len(PEER))])
    copy_uint32_out(memory, addrlen, len(PEER))
    return 0


# --- a string is measured, and then read


def access_string_read_twice(memory: IO, path: int) -> int:
    n = strnlen_user(memory, path, PATH_MAX)
    if n > PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, "")
    name = bytearray(n - 1)
    memory.copy_in(path, name)
    return 0 if name.startswith(b"/") else -errno.ENOENT


def access(memory: IO, path: int) -> int:
    return 0 if copy_string_in(memory, path, PATH_MAX).startswith(b"/") else -errno.ENOENT


# --- a table of iovecs is checked, and read again to be used


def writev_table_read_twice(memory: IO, file: io.BytesIO, iov: int, n: int) -> int:
    if copy_in_iovecs(memory, iov, n).num_bytes > 1 << 20:
        raise invalid()
    return iovecs_io_sequence(memory, iov, n).copy_in_to(FromIOWriter(file))


def writev(memory: IO, file: io.BytesIO, iov: int, n: int) -> int:
    seq = iovecs_io_sequence(memory, iov, n)
    if seq.num_bytes > 1 << 20:
        raise invalid()
    return seq.copy_in_to(FromIOWriter(file))


# --- the new mask is fetched after the old one was stored: they may be the same memory


def sigprocmask_fetches_late(memory: IO, new: int, old: int) -> int:
    copy_uint64_out(memory, old, 0xFF)
    copy_uint64_in(memory, new)
    return 0


def sigprocmask(memory: IO, new: int, old: int) -> int:
    copy_uint64_in(memory, new)
    copy_uint64_out(memory, old, 0xFF)
    return 0


# --- a message is sent before its address was fetched


def sendto_sends_first(memory: DoubleFetchDetector, sent: list[bytes], addr: int) -> int:
    sent.append(b"message")
    memory.effect()
    memory.copy_in(addr, bytearray(16))
    return 7


def sendto(memory: DoubleFetchDetector, sent: list[bytes], addr: int) -> int:
    memory.copy_in(addr, bytearray(16))
    sent.append(b"message")
    memory.effect()
    return 7


# --- a struct is stored whole, though not all of it was filled


def uname_leaks(memory: DoubleFetchDetector, addr: int) -> int:
    buffer = memory.buffer(390)
    for i, text in enumerate((b"Linux", b"guest", b"6.1.0", b"#1", b"x86_64", b"(none)")):
        buffer[65 * i : 65 * i + len(text) + 1] = text + b"\0"
    memory.copy_out(addr, buffer)
    return 0


def uname(memory: DoubleFetchDetector, addr: int) -> int:
    buffer = memory.buffer(390)
    for i, text in enumerate((b"Linux", b"guest", b"6.1.0", b"#1", b"x86_64", b"(none)")):
        buffer[65 * i : 65 * i + 65] = text.ljust(65, b"\0")
    memory.copy_out(addr, buffer)
    return 0


# --- more is written than there is room for


def getcwd_writes_past(memory: IO, addr: int, size: int) -> int:
    name = b"/home/guest\0"
    memory.copy_out(addr, name)
    return len(name) if len(name) <= size else -errno.ERANGE


def getcwd(memory: IO, addr: int, size: int) -> int:
    name = b"/home/guest\0"
    if len(name) > size:
        return -errno.ERANGE
    return memory.copy_out(addr, name)


# --- arguments are checked after the guest's memory was changed


def getrandom_copies_before_check(memory: IO, addr: int, n: int, flags: int) -> int:
    done = memory.copy_out(addr, b"r" * n)
    if flags & ~3:
        raise invalid()
    return done


def getrandom(memory: IO, addr: int, n: int, flags: int) -> int:
    if flags & ~3:
        raise invalid()
    return memory.copy_out(addr, b"r" * n)


# --- reads by a file, under faults


def readv_forgets_the_count(memory: IO, file: io.BytesIO, iov: int, n: int) -> int:
    done = 0
    for addr, length in copy_in_iovecs(memory, iov, n).pairs():
        done += single_io_sequence(memory, addr, length).copy_out_from(FromIOReader(file))
    return done


def readv_swallows_the_fault(memory: IO, file: io.BytesIO, iov: int, n: int) -> int:
    seq = iovecs_io_sequence(memory, iov, n)
    size = min(seq.num_bytes, len(file.getvalue()) - file.tell())
    with suppress(FaultError):
        seq.copy_out_from(FromIOReader(file))
    return size


def readv_loses_bytes(memory: IO, file: io.BytesIO, iov: int, n: int) -> int:
    seq = iovecs_io_sequence(memory, iov, n)
    return seq.copy_out(file.read(seq.num_bytes))


def readv_starts_again(memory: IO, file: io.BytesIO, iov: int, n: int) -> int:
    seq = iovecs_io_sequence(memory, iov, n)
    try:
        return seq.copy_out_from(FromIOReader(file))
    except FaultError:  # it was a page that is there now
        return seq.copy_out_from(FromIOReader(file))


def readv(memory: IO, file: io.BytesIO, iov: int, n: int) -> int:
    return iovecs_io_sequence(memory, iov, n).copy_out_from(FromIOReader(file))


# --- writes to a file, under faults


def writev_loses_the_count(memory: IO, file: io.BytesIO, iov: int, n: int) -> int:
    seq = iovecs_io_sequence(memory, iov, n)
    try:
        return seq.copy_in_to(FromIOWriter(file))
    except FaultError:
        return -errno.EFAULT


def put_msghdr(memory: IO, msg: int, *fields: int) -> None:
    """A struct msghdr: name, namelen, iov, iovlen."""
    copy_struct_out(memory, msg, MSGHDR, *fields, 0, 0, 0)
