"""The running kernel's recvmsg, recvmmsg, sendmsg and sendmmsg over real memory, and an AddressSpace that is its twin.

Both have the same bytes and the same rights at the same addresses, so that pointers in them mean the same. The kernel
answers EFAULT where memory has no right; nothing here touches such memory itself.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import struct
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
from attrs import frozen

from hostarch import AMD64, mman
from usermem import AddressSpace

PAGE = 4096
needs_linux = pytest.mark.skipif(
    sys.platform != "linux" or mmap.PAGESIZE != PAGE or struct.calcsize("P") != 8,
    reason="needs a 64-bit Linux kernel with 4 KiB pages to compare with",
)
RW = mman.PROT_READ | mman.PROT_WRITE
_ENTRY = struct.Struct("=QiIQQQQIIII")
_IOVEC = struct.Struct("=QQ")


@cache
def libc() -> Any:
    """The C library, with the types of what is used."""
    library = ctypes.CDLL(None, use_errno=True)
    size, number = ctypes.c_size_t, ctypes.c_int
    library.mmap.restype = size
    library.mmap.argtypes = (size, size, number, number, number, size)
    library.mprotect.argtypes = (size, size, number)
    library.recvmsg.argtypes = library.sendmsg.argtypes = (number, size, number)
    library.sendmmsg.argtypes = (number, size, ctypes.c_uint, number)
    library.recvmmsg.argtypes = (number, size, ctypes.c_uint, number, size)
    return library


@frozen
class Header:
    """What goes into a struct msghdr, as numbers; ``iov`` are (address, length)."""

    name: int = 0
    namelen: int = 0
    iov: tuple[tuple[int, int], ...] = ()
    control: int = 0
    controllen: int = 0
    flags: int = 0x5555_5555
    iovlen: int | None = None


class Twins:
    """``pages`` pages of memory twice: the kernel's at ``base``, and ``space``, at the same address."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.size = pages * PAGE
        self.base: int = libc().mmap(0, self.size, RW, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self.reset()

    def reset(self) -> None:
        """All pages can be read and written again, and are full of 0xa5."""
        libc().mprotect(self.base, self.size, RW)
        self.space = AddressSpace(AMD64)
        self.space.mmap(self.base, self.size, RW, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED)
        self.write(self.base, b"\xa5" * self.size)

    def page(self, i: int) -> int:
        """The address of a page."""
        return self.base + i * PAGE

    def write(self, addr: int, data: bytes) -> None:
        """Store in both. All of it must be writable."""
        self.space.copy_out(addr, data)
        ctypes.memmove(addr, data, len(data))

    def protect(self, i: int, prot: int) -> None:
        """Set the rights of a page in both."""
        self.space.mprotect(self.page(i), PAGE, prot)
        assert not libc().mprotect(self.page(i), PAGE, prot)

    def put(self, addr: int, table: int, headers: Iterable[Header]) -> None:
        """Structs mmsghdr at addr, with their iovecs from ``table`` on."""
        for header in headers:
            iovlen = len(header.iov) if header.iovlen is None else header.iovlen
            packed = (header.name, header.namelen, 0xAAAA_AAAA, table, iovlen, header.control, header.controllen)
            self.write(addr, _ENTRY.pack(*packed, header.flags, 0xBBBB_BBBB, 0xCCCC_CCCC, 0xDDDD_DDDD))
            for start, length in header.iov:
                self.write(table, _IOVEC.pack(start, length))
                table += _IOVEC.size
            addr += _ENTRY.size

    def differences(self) -> list[tuple[int, bytes, bytes]]:
        """(page, the kernel's bytes, ours) where they are not the same; lifts the kernel's rights for good."""
        libc().mprotect(self.base, self.size, RW)
        found = []
        for i in range(self.pages):
            theirs = ctypes.string_at(self.page(i), PAGE)
            ours = self.space.read_bytes(self.page(i), PAGE, ignore_permissions=True)
            if theirs != ours:
                at = next(k for k in range(PAGE) if theirs[k] != ours[k]) & ~7
                found.append((i * PAGE + at, theirs[at : at + 24], ours[at : at + 24]))
        return found


def kernel(name: str, sock: socket.socket, *args: int) -> int:
    """The result of a system call: a count, or minus an errno."""
    ctypes.set_errno(0)
    result: int = getattr(libc(), name)(sock.fileno(), *args)
    return result if result >= 0 else -ctypes.get_errno()


def drain(sock: socket.socket) -> list[bytes]:
    """All that can be received now. Errors that the socket keeps are passed over."""
    found = []
    while True:
        try:
            found.append(sock.recv(1 << 17))
        except BlockingIOError:
            return found
        except OSError as exc:
            assert exc.errno in (errno.EFAULT, errno.EINVAL, errno.EMSGSIZE, errno.ECONNREFUSED), exc
