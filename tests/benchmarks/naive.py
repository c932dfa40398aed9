"""What a user writes by hand over ``read_bytes`` and ``copy_out``: one try, no partial results, no checks, no limits.

Each ``naive_*`` works on anything that has these two calls, so Unicorn runs them too.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

_MSGHDR = struct.Struct("<Qi4xQQQQi4x")


def naive_readv(s: Any, fd: int, iov: int, count: int) -> int:
    """readv(2)."""
    done = 0
    for at, length in struct.iter_unpack("<QQ", s.read_bytes(iov, 16 * count)):
        data = os.read(fd, length)
        s.copy_out(at, data)
        done += len(data)
        if len(data) < length:
            break
    return done


def naive_writev(s: Any, fd: int, iov: int, count: int) -> int:
    """writev(2)."""
    done = 0
    for at, length in struct.iter_unpack("<QQ", s.read_bytes(iov, 16 * count)):
        done += os.write(fd, s.read_bytes(at, length))
    return done


def naive_string(s: Any, at: int) -> bytes:
    """A string that ends in a zero byte, 64 bytes at a time."""
    text = b""
    while True:
        chunk: bytes = s.read_bytes(at, 64)
        end = chunk.find(0)
        if end >= 0:
            return text + chunk[:end]
        text += chunk
        at += 64


def naive_argv(s: Any, at: int) -> list[bytes]:
    """The strings of an array of pointers that ends in a null pointer."""
    found: list[bytes] = []
    while True:
        pointer = int.from_bytes(s.read_bytes(at, 8), "little")
        if not pointer:
            return found
        found.append(naive_string(s, pointer))
        at += 8


def naive_cas(s: Any, at: int, old: int, new: int) -> int:
    """Compare and swap, not atomically."""
    found = int.from_bytes(s.read_bytes(at, 4), "little")
    if found == old:
        s.copy_out(at, new.to_bytes(4, "little"))
    return found


def naive_recvmsg(s: Any, sock: socket.socket, msg: int) -> int:
    """recvmsg(2) without control messages, for IPv4."""
    name, _, iov, count, _, _, _ = _MSGHDR.unpack(s.read_bytes(msg, 56))
    table = list(struct.iter_unpack("<QQ", s.read_bytes(iov, 16 * count)))
    data, _, flags, peer = sock.recvmsg(sum(length for _, length in table), 0, 0)
    done = 0
    for at, length in table:
        s.copy_out(at, data[done : done + length])
        done += length
    if name:
        s.copy_out(name, struct.pack("=HH4s8x", 2, socket.htons(peer[1]), socket.inet_aton(peer[0])))
        s.copy_out(msg + 8, (16).to_bytes(4, "little"))
    s.copy_out(msg + 48, flags.to_bytes(4, "little"))
    return len(data)


def naive_sendmsg(s: Any, sock: socket.socket, msg: int) -> int:
    """sendmsg(2) on a connected socket, without control messages."""
    _, _, iov, count, _, _, _ = _MSGHDR.unpack(s.read_bytes(msg, 56))
    parts = [s.read_bytes(at, length) for at, length in struct.iter_unpack("<QQ", s.read_bytes(iov, 16 * count))]
    return sock.send(b"".join(parts))


def naive_scatter(s: Any, pairs: list[tuple[int, int]], data: memoryview) -> int:
    """What was received in a buffer, to pairs of address and length."""
    done = 0
    for at, length in pairs:
        s.copy_out(at, data[done : done + length])
        done += length
    return done
