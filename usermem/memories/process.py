"""ProcessIO: the memory of another process, by process_vm_readv and process_vm_writev.

The kernel does the copy, honours the rights of each page, and says exactly how far it got; all ranges of an access go
in one call. ``ignore_permissions`` goes by /proc/PID/mem, which ignores them as ptrace does. Why an address faults, and
what can be written, is asked of /proc/PID/maps.

The process may end at any moment, and its number be given to another. A pidfd tells: while it can be signalled the
number is still the process's. That is looked at after each read and before each write.

Source: process_vm_readv(2), proc_pid_mem(5), pidfd_open(2); Linux mm/process_vm_access.c, mm/gup.c (check_vma_flags).
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Self, TypeVar

from attrs import evolve

import hostarch
from hostarch import READ, AccessType, Arch
from safemem import safecopy
from safemem.buffers import check_positive
from safemem.errors import error
from usermem.errors import FaultReason
from usermem.memories.elf import arch_of_elf, read_elf
from usermem.memories.mapping import MappedRange
from usermem.memories.process_maps import Maps, is_guard
from usermem.memories.ranges import Ranges
from usermem.memories.remote import RemoteIO

_PID_MAX: Final = 1 << 22
_T = TypeVar("_T")


class ProcessIO(RemoteIO):
    """User memory of the process ``pid``, which may run meanwhile. A context manager; closing it ends no process.

    After an execve it is the new program's. To Linux a process has ended when its main thread has.

    Reading and writing need the right to ptrace it (PTRACE_MODE_ATTACH_REALCREDS): without it PermissionError is
    raised, and ProcessLookupError if the process is gone, with what was moved before in ``transferred``.
    """

    _pidfd = -1

    def __init__(self, pid: int, *, arch: Arch | None = None) -> None:
        """``arch`` is by default the machine of the program that runs there, with this host's page size.

        Raises ProcessLookupError if there is no such process, OSError (EINVAL) if it is the number of a thread,
        ValueError if pid is not positive.
        """
        self.pid: int = check_positive(pid, "pid")
        if self.pid > _PID_MAX:
            raise self._gone()
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            raise self._gone() from None
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOENT):  # ENOENT since Linux 6.15
                raise
            raise error(errno.EINVAL, f"{pid} is a thread; Tgid in /proc/{pid}/status is its process") from None
        arch = _arch_of(self.pid) if arch is None else arch
        super().__init__(evolve(arch, page_shift=mmap.PAGESIZE.bit_length() - 1))

    # --- the process

    def mappings(self) -> list[MappedRange]:
        """Its mappings now, in order. Raises OSError as an access."""
        return self._asked(Maps.all)

    def fileno(self) -> int:
        """Its pidfd, for select and poll: readable once the process has ended. Raises ValueError if this is closed."""
        if self._pidfd < 0:
            raise self._closed()
        return self._pidfd

    def close(self) -> None:
        """Give the pidfd up."""
        fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ended():
            self.close()

    # --- RemoteIO

    def read(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        ranges = ((addr, len(buffer)),)
        n = self.readv(ranges, buffer, ignore_permissions=ignore_permissions)
        if n or ignore_permissions:
            return n
        mapping = self._asked(lambda maps: maps.at(addr))
        if mapping is None or mapping.prot & 3 != 2:
            return 0
        # What can be written can be read, by the processor; to the kernel's call it is not readable.
        with buffer[: mapping.end - addr] as part:
            return self._by_file(((addr, len(part)),), part, False)

    def write(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        return self.writev(((addr, len(buffer)),), buffer, ignore_permissions=ignore_permissions)

    def readv(self, ranges: Ranges, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        if ignore_permissions:
            return self._by_file(ranges, buffer, False)
        n = self._by_call("process_vm_readv", ranges, buffer)
        self._check()
        return n

    def writev(self, ranges: Ranges, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
        if ignore_permissions:
            return self._by_file(ranges, buffer, True)
        self._check()
        return self._by_call("process_vm_writev", ranges, buffer)

    def writable(self, addr: int, length: int, *, ignore_permissions: bool = False) -> int:
        return self.writablev(((addr, length),), ignore_permissions=ignore_permissions)

    def writablev(self, ranges: Ranges, *, ignore_permissions: bool = False) -> int:
        """By the rights of the mappings, and by reading a byte of each page: one beyond a file's end has none."""
        pages = self._asked(lambda maps: self._allowed(maps, ranges, ignore_permissions))
        buffer = memoryview(bytearray(len(pages)))
        n, _ = self._move([(start, 1) for start, _ in pages], buffer, READ, ignore_permissions)
        return sum(length for _, length in pages[:n])

    def reason(self, addr: int, access: AccessType, *, ignore_permissions: bool = False) -> FaultReason:
        mapping = self._asked(lambda maps: maps.at(addr))
        if mapping is None:
            return FaultReason.UNMAPPED
        allowed = _may_write(mapping, ignore_permissions) if access.write else mapping.prot & 3 or ignore_permissions
        if not allowed:
            return FaultReason.PERMISSION
        if is_guard(self.pid, addr):
            return FaultReason.GUARD
        return FaultReason.BEYOND_FILE if mapping.inode else FaultReason.PERMISSION

    # --- how

    def _check(self) -> None:
        """Raise ProcessLookupError if the number is no longer the process's, ValueError if this is closed."""
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            raise self._gone() from None
        except PermissionError:
            pass  # it is there, and is another user's
        except OSError:
            if self._pidfd < 0:
                raise self._closed() from None
            raise

    def _closed(self) -> ValueError:
        return ValueError(f"the ProcessIO of process {self.pid} is closed")

    def _gone(self) -> ProcessLookupError:
        return ProcessLookupError(errno.ESRCH, f"{os.strerror(errno.ESRCH)}: {self.pid} does not exist, or has ended")

    def _failed(self, code: int, what: str) -> OSError:
        """What is raised where the kernel refuses an access for another reason than the address."""
        if code == errno.ESRCH:  # also of one that was not waited for, which has a pidfd and no memory
            return self._gone()
        self._check()  # it may be another process that does not allow it
        if code in (errno.EPERM, errno.EACCES):
            return error(
                errno.EPERM,
                f"{what} needs the right to ptrace process {self.pid}: run as its user (and it must be dumpable, not"
                " setuid) or with CAP_SYS_PTRACE; under Yama (/proc/sys/kernel/yama/ptrace_scope) be its parent,"
                " or have it call prctl(PR_SET_PTRACER)",
            )
        return error(code, f"{what} of process {self.pid}")

    def _asked(self, ask: Callable[[Maps], _T]) -> _T:
        """What /proc/PID/maps tells. Raises as an access."""
        try:
            with Maps(self.pid) as maps:
                found = ask(maps)
        except OSError as exc:
            raise self._failed(exc.errno or errno.EIO, f"/proc/{self.pid}/maps") from None
        self._check()
        return found

    def _allowed(self, maps: Maps, ranges: Ranges, ignore_permissions: bool) -> list[tuple[int, int]]:
        """The ranges, page by page, up to one that its mapping does not allow to be written."""
        page = self.arch.page_size
        found: list[tuple[int, int]] = []
        for addr, length in ranges:
            at, end = addr, addr + length
            while at < end:
                mapping = maps.at(at)
                if mapping is None or not _may_write(mapping, ignore_permissions):
                    return found
                for start in range(at - at % page, min(mapping.end, end), page):
                    at = max(at, start)
                    found.append((at, min(start + page, end) - at))
                at = mapping.end
        return found

    def _by_call(self, name: str, ranges: Ranges, buffer: memoryview) -> int:
        moved = _process_vm(name)(self.pid, buffer, ranges)
        if moved >= 0:
            return moved
        if moved == -errno.EFAULT:
            return 0
        raise self._failed(-moved, name)

    def _by_file(self, ranges: Ranges, buffer: memoryview, writing: bool) -> int:
        """Move bytes by /proc/PID/mem. It stays the process's that had the number when it was opened."""
        what = f"/proc/{self.pid}/mem"
        done = 0
        try:
            with open(what, "rb+" if writing else "rb", buffering=0) as file:  # noqa: PTH123 - pathlib takes 3.5 ms
                self._check()
                for addr, length in ranges:
                    with buffer[done : done + length] as part:
                        n = os.pwrite(file.fileno(), part, addr) if writing else os.preadv(file.fileno(), [part], addr)
                    done += n
                    if n < length:
                        break
        except OSError as exc:
            if exc.errno not in (errno.EIO, errno.EFAULT):
                raise self._failed(exc.errno or errno.EIO, what) from None
        return done


def _may_write(mapping: MappedRange, ignore_permissions: bool) -> bool:
    """Whether the mapping can be written; without its right only private memory can (check_vma_flags)."""
    return bool(mapping.prot & 2) or (ignore_permissions and not mapping.shared)


@cache
def _process_vm(name: str) -> Callable[[int, memoryview, Ranges], int]:
    """A system call as ``call(pid, local buffer, remote ranges) -> bytes moved``, or -errno. iovecs are bytes."""
    import ctypes

    try:
        function: Any = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        raise error(errno.ENOSYS, f"this host has no {name}(2)") from None
    function.restype = ctypes.c_ssize_t
    vector = (ctypes.c_char_p, ctypes.c_ulong)
    function.argtypes = (ctypes.c_int, *vector, *vector, ctypes.c_ulong)
    pack, address_of, get_errno = struct.pack, safecopy.address_of, ctypes.get_errno

    def call(pid: int, buffer: memoryview, ranges: Ranges) -> int:
        local = pack("PN", address_of(buffer), len(buffer))
        if len(ranges) == 1:
            moved: int = function(pid, local, 1, pack("PN", *ranges[0]), 1, 0)
        else:
            remote = pack("PN" * len(ranges), *[x for each in ranges for x in each])
            moved = function(pid, local, 1, remote, len(ranges), 0)
        return moved if moved >= 0 else -get_errno()

    return call


def _arch_of(pid: int) -> Arch:
    """The machine of the program that a process runs; the host's if that cannot be read."""
    try:
        with open(f"/proc/{pid}/exe", "rb", buffering=0) as file:  # noqa: PTH123
            return arch_of_elf(read_elf(file.fileno()))
    except OSError:
        return _HOST_MACHINES.get(os.uname().machine, hostarch.AMD64)


_HOST_MACHINES: Final = {
    "aarch64": hostarch.ARM64,
    "armv7l": hostarch.ARM,
    "i686": hostarch.I386,
    "ppc64": hostarch.PPC64,
    "ppc64le": evolve(hostarch.PPC64, byte_order="little"),
    "riscv64": hostarch.RISCV64,
    "s390x": hostarch.S390X,
    "x86_64": hostarch.AMD64,
}
