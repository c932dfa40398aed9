"""The memory of this process, in a window that nothing else uses, with the calls and results of a guest's.

:class:`KernelMemory` makes real system calls, :class:`GuestMemory` asks an AddressSpace as a simulator's handlers
would. Both take the same calls, and answer with what the system call returns: a number, or the name of an errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from attrs import frozen

from hostarch import AddrRange, AddrRangeSeq, mman
from safemem import Reader, Writer
from safemem.fd import FDReader, FDWriter
from usermem import AddressSpace, FaultError, IOSequence, linux_result
from usermem.mm import vma

PAGE = 4096
BELOW = 640
"""Pages at the start of the window that only a growing stack reaches."""
WINDOW = 1 << 37, (1 << 37) + (BELOW + 64) * PAGE
"""Addresses that the kernel gives nobody who does not ask for them: its own choices are near the top."""
BASE = WINDOW[0] + BELOW * PAGE
DATA = bytes(1 + 7 * i % 251 for i in range(1 << 16))
"""What is in the file that is read from."""
FILE = bytes(1 + 11 * i % 241 for i in range(5 * PAGE + 300))
"""What is at first in the file that is mapped."""

MEMLOCK_LIMIT = 12 * PAGE
"""How much of the window may be locked."""
DATA_LIMIT = 24 * PAGE
"""How much of the window may be private and writable."""

_CAPABILITY_VERSION = 0x20080522
_CAP_IPC_LOCK = 14

Ranges = Sequence[tuple[int, int]]
Result = int | str


@frozen
class Row:
    """A mapping as both sides can tell it: of shared memory the offset too."""

    start: int
    end: int
    rights: str
    offset: int
    what: object

    def joined(self, right: Row) -> Row | None:
        """Both as one, if they differ in nothing."""
        if self.end != right.start or (self.rights, self.what) != (right.rights, right.what):
            return None
        if self.what is not None and self.offset + self.end - self.start != right.offset:
            return None
        return Row(self.start, right.end, self.rights, self.offset, self.what)


def join(rows: Sequence[Row]) -> list[Row]:
    """The rows with neighbours joined that differ in nothing."""
    found: list[Row] = []
    for row in rows:
        both = found[-1].joined(row) if found else None
        if both is None:
            found.append(row)
        else:
            found[-1] = both
    return found


class Memory(Protocol):
    """What both sides have."""

    def mmap(self, addr: int, length: int, prot: int, flags: int) -> Result: ...
    def mmap_file(self, addr: int, length: int, prot: int, flags: int, offset: int) -> Result: ...
    def munmap(self, addr: int, length: int) -> Result: ...
    def mprotect(self, addr: int, length: int, prot: int) -> Result: ...
    def mremap(self, addr: int, old: int, new: int, flags: int, to: int) -> Result: ...
    def madvise(self, addr: int, length: int, advice: int) -> Result: ...
    def msync(self, addr: int, length: int, flags: int) -> Result: ...
    def mincore(self, addr: int, length: int) -> Result: ...
    def mlock(self, addr: int, length: int, flags: int) -> Result: ...
    def munlock(self, addr: int, length: int) -> Result: ...
    def mlockall(self, flags: int) -> Result: ...
    def munlockall(self) -> Result: ...
    def locked_bytes(self) -> int: ...
    def locked_pages(self, start: int, end: int) -> list[int]: ...
    def read(self, fd: int, ranges: Ranges, offset: int | None) -> Result: ...
    def write(self, fd: int, ranges: Ranges, offset: int | None) -> Result: ...
    def rows(self) -> list[Row]: ...
    def content(self, start: int, end: int) -> bytes: ...


@contextmanager
def without_privileges() -> Iterator[None]:
    """This thread may lock no more than MEMLOCK_LIMIT meanwhile: it has no CAP_IPC_LOCK."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    found, fewer = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, found) == 0
    ctypes.memmove(fewer, found, ctypes.sizeof(found))
    fewer[0] &= ~(1 << _CAP_IPC_LOCK)  # the effective ones
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (MEMLOCK_LIMIT, before[1]))
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, found) == 0
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


class _IOVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_size_t), ("len", ctypes.c_size_t))


class KernelMemory:
    """System calls on the window, which is empty when this is made and after :meth:`close`."""

    def __init__(self) -> None:
        self.file = new_file(FILE)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._memory = os.open("/proc/self/mem", os.O_RDONLY)
        self.close_window()

    def close_window(self) -> None:
        """Unmap the window."""
        assert self.munmap(WINDOW[0], WINDOW[1] - WINDOW[0]) == 0

    def close(self) -> None:
        """Unmap the window and let go of this process's memory."""
        self.close_window()
        os.close(self._memory)
        os.close(self.file)

    def reopen(self) -> None:
        """In a forked child: look at the child's memory from now on, not the parent's."""
        os.close(self._memory)
        self._memory = os.open("/proc/self/mem", os.O_RDONLY)

    def _call(self, name: str, *args: int) -> Result:
        function = getattr(self._libc, name)
        function.restype = ctypes.c_size_t
        result = int(function(*(ctypes.c_size_t(arg % (1 << 64)) for arg in args)))
        if result % (1 << 32) == (1 << 32) - 1:  # -1, of a function that returns an int or a long
            return errno.errorcode[ctypes.get_errno()]
        return result

    def mmap(self, addr: int, length: int, prot: int, flags: int) -> Result:
        return self._call("mmap", addr, length, prot, flags, -1, 0)

    def mmap_file(self, addr: int, length: int, prot: int, flags: int, offset: int) -> Result:
        return self._call("mmap", addr, length, prot, flags, self.file, offset)

    def munmap(self, addr: int, length: int) -> Result:
        return self._call("munmap", addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> Result:
        return self._call("mprotect", addr, length, prot)

    def mremap(self, addr: int, old: int, new: int, flags: int, to: int) -> Result:
        return self._call("mremap", addr, old, new, flags, to)

    def madvise(self, addr: int, length: int, advice: int) -> Result:
        return self._call("madvise", addr, length, advice)

    def msync(self, addr: int, length: int, flags: int) -> Result:
        return self._call("msync", addr, length, flags)

    def mincore(self, addr: int, length: int) -> Result:
        vector = ctypes.create_string_buffer(1 << 12)
        return self._call("mincore", addr, length, ctypes.addressof(vector))

    def mlock(self, addr: int, length: int, flags: int) -> Result:
        return self._call("mlock2", addr, length, flags)

    def munlock(self, addr: int, length: int) -> Result:
        return self._call("munlock", addr, length)

    def mlockall(self, flags: int) -> Result:
        return self._call("mlockall", flags)

    def munlockall(self) -> Result:
        return self._call("munlockall")

    def locked_bytes(self) -> int:
        """How much of this process is locked."""
        return self._status("VmLck")

    def data_bytes(self) -> int:
        """How much of this process counts against RLIMIT_DATA."""
        return self._status("VmData")

    def _status(self, name: str) -> int:
        found = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert found
        return int(found[1]) << 10

    def locked_pages(self, start: int, end: int) -> list[int]:
        """The pages that are locked."""
        return [at for at in range(start, end, PAGE) if self.msync(at, PAGE, mman.MS_INVALIDATE) == "EBUSY"]

    def read(self, fd: int, ranges: Ranges, offset: int | None) -> Result:
        return self._transfer("read", fd, ranges, offset)

    def write(self, fd: int, ranges: Ranges, offset: int | None) -> Result:
        return self._transfer("write", fd, ranges, offset)

    def _transfer(self, name: str, fd: int, ranges: Ranges, offset: int | None) -> Result:
        prefix, last = ("", ()) if offset is None else ("p", (offset,))
        if len(ranges) == 1:
            return self._call(prefix + name, fd, *ranges[0], *last)
        vector = (_IOVec * len(ranges))(*(_IOVec(*both) for both in ranges))
        return self._call(prefix + name + "v", fd, ctypes.addressof(vector), len(ranges), *last)

    def raw_rows(self) -> list[Row]:
        """The lines of /proc/self/maps in the window."""
        text = Path("/proc/self/maps").read_text()
        found = []
        # Of all addresses only the window's begin like this.
        for line in re.findall(rf"^{WINDOW[0] >> 24:x}[0-9a-f]{{6}}-.*$", text, re.MULTILINE):
            bounds, rights, offset, _, inode, *_ = line.split()
            start, end = (int(x, 16) for x in bounds.split("-"))
            what = inode if inode != "0" else None
            found.append(Row(start, end, rights, int(offset, 16) if what else 0, what))
        return found

    def rows(self) -> list[Row]:
        return join(self.raw_rows())

    def content(self, start: int, end: int) -> bytes:
        """The bytes up to the first that cannot be had, whatever the rights."""
        try:
            return os.pread(self._memory, end - start, start)
        except OSError:
            return b""


class GuestMemory:
    """An AddressSpace, called as a simulator's handlers would call it."""

    def __init__(self) -> None:
        self.file = new_file(FILE)
        limit = resource.getrlimit(resource.RLIMIT_STACK)[0]
        self.space = AddressSpace(
            stack_limit=limit if limit >= 0 else 1 << 62, memlock_limit=MEMLOCK_LIMIT, data_limit=DATA_LIMIT
        )

    def close(self) -> None:
        """Close the space and its file."""
        self.space.close()
        os.close(self.file)

    def answer(self, call: Callable[[], object]) -> Result:
        try:
            result = call()
        except OSError as exc:
            result = linux_result(exc)
        if isinstance(result, bytes):
            return 0
        assert isinstance(result, int)
        return errno.errorcode[-result] if result < 0 else result

    def mmap(self, addr: int, length: int, prot: int, flags: int) -> Result:
        return self.answer(lambda: self.space.mmap(addr, length, prot, flags))

    def mmap_file(self, addr: int, length: int, prot: int, flags: int, offset: int) -> Result:
        return self.answer(lambda: self.space.mmap(addr, length, prot, flags, self.file, offset))

    def munmap(self, addr: int, length: int) -> Result:
        return self.answer(lambda: self.space.munmap(addr, length))

    def mprotect(self, addr: int, length: int, prot: int) -> Result:
        return self.answer(lambda: self.space.mprotect(addr, length, prot))

    def mremap(self, addr: int, old: int, new: int, flags: int, to: int) -> Result:
        return self.answer(lambda: self.space.mremap(addr, old, new, flags, to))

    def madvise(self, addr: int, length: int, advice: int) -> Result:
        return self.answer(lambda: self.space.madvise(addr, length, advice))

    def msync(self, addr: int, length: int, flags: int) -> Result:
        return self.answer(lambda: self.space.msync(addr, length, flags))

    def mincore(self, addr: int, length: int) -> Result:
        return self.answer(lambda: self.space.mincore(addr, length))

    def mlock(self, addr: int, length: int, flags: int) -> Result:
        return self.answer(lambda: self.space.mlock(addr, length, flags))

    def munlock(self, addr: int, length: int) -> Result:
        return self.answer(lambda: self.space.munlock(addr, length))

    def mlockall(self, flags: int) -> Result:
        return self.answer(lambda: self.space.mlockall(flags))

    def munlockall(self) -> Result:
        return self.answer(lambda: self.space.munlockall())

    def locked_bytes(self) -> int:
        """How much is locked."""
        return sum(map(vma.locked_bytes, self.space.mappings()))

    def data_bytes(self) -> int:
        """How much counts against RLIMIT_DATA."""
        return sum(map(vma.data_bytes, self.space.mappings()))

    def locked_pages(self, start: int, end: int) -> list[int]:
        """The pages that are locked."""
        return [at for at in range(start, end, PAGE) if self.msync(at, PAGE, mman.MS_INVALIDATE) == "EBUSY"]

    def read(self, fd: int, ranges: Ranges, offset: int | None) -> Result:
        reader: Reader = FDReader(fd, offset)
        if len(ranges) == 1:
            return self.answer(lambda: self.space.copy_out_from(_addrs(ranges), reader))
        return self.answer(lambda: IOSequence(self.space, _addrs(ranges)).copy_out_from(reader))

    def write(self, fd: int, ranges: Ranges, offset: int | None) -> Result:
        writer: Writer = FDWriter(fd, offset)
        if len(ranges) == 1:
            return self.answer(lambda: self.space.copy_in_to(_addrs(ranges), writer))
        return self.answer(lambda: IOSequence(self.space, _addrs(ranges)).copy_in_to(writer))

    def rows(self) -> list[Row]:
        rows = []
        for each, line in zip(self.space.mappings(), self.space.maps().splitlines(), strict=True):
            bounds, rights, offset = line.split()[:3]
            start, end = (int(x, 16) for x in bounds.split("-"))
            assert (start, end) == (each.start, each.end)
            what: object = each.backing.inode or (id(each.backing) if each.shared else None)
            rows.append(Row(start, end, rights, int(offset, 16) if what else 0, what))
        return join(rows)

    def content(self, start: int, end: int) -> bytes:
        """The bytes up to the first that cannot be had, whatever the rights."""
        try:
            return self.space.read_bytes(start, end - start, ignore_permissions=True)
        except FaultError as exc:
            assert isinstance(exc.partial, bytes)
            return exc.partial


def _addrs(ranges: Ranges) -> AddrRangeSeq:
    return AddrRangeSeq([AddrRange(addr, addr + n) for addr, n in ranges])


def new_file(content: bytes = b"") -> int:
    """A file in memory, at its start."""
    fd = os.memfd_create("file")
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def new_pipe() -> tuple[int, int]:
    """The reading and the writing end of a pipe, which do not block."""
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    return ends


def new_sockets() -> tuple[int, int]:
    """Two connected stream sockets, which do not block."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    return ends[0].detach(), ends[1].detach()
