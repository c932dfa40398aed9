"""The running kernel's futex(2), and FutexTable, driven by the same steps.

A step is a line of plain values; each side answers it with a count or an errno's name, and at the end says in which
order its waiters were woken. On the kernel's side a waiter is a thread: /proc says when it
sleeps.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from hostarch import mman
from usermem import AddressSpace, Futex, FutexTable, FutexWaiter, linux_result

SYS_FUTEX = 202
WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET = 0, 1, 3, 4, 5, 9, 10
PRIVATE = 128
PAGE = 4096
RW, ANON = mman.PROT_READ | mman.PROT_WRITE, mman.MAP_ANONYMOUS
HOLE = 0x20000
"""Nothing is mapped there: programs begin higher up."""
PLACES = (
    "private",
    "shared",
    "file",
    "alias",
    "private_file",
    "read_file",
    "read_private",
    "anon_read",
    "none",
    "hole",
)
"""What is mapped, a page each: anonymous private and shared memory; a file shared, a second time, and private; the file
read-only, shared and private; private anonymous memory that was written and may only be read; a page of no rights; a
hole."""
OUTSIDE = ((1 << 64) - 4096, 0x7FFF_FFFF_F004, 2)
"""Addresses outside of user space, or of nothing. (x86-64 lets the very first one outside pass until it is used.)"""

Result = int | str


class Side(Protocol):
    """What both sides can do."""

    def wait(self, name: str, addr: int, val: int, bitset: int, private: bool) -> Result:
        """Begin to wait, under a name; 0 if so."""
        ...

    def call(self, op: int, addr: int, val: int, val2: int, other: int, val3: int, private: bool) -> Result:
        """Any call that does not wait."""
        ...


def named(result: int) -> Result:
    """A system call's result, errnos by name."""
    return result if result >= 0 else errno.errorcode[-result]


class KernelFutex:
    """The kernel's side, in this process."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.syscall.restype = ctypes.c_long
        self._threads: dict[str, threading.Thread] = {}
        self.woken: dict[str, Result] = {}
        with tempfile.TemporaryFile() as file:
            file.truncate(PAGE)
            self.places = {name: self._map(name, file.fileno()) for name in PLACES}

    def _map(self, name: str, fd: int) -> int:
        return HOLE if name == "hole" else int(self._libc.mmap(None, PAGE, *arguments(name, fd), 0))

    def prepare(self) -> None:
        """Write and protect what is to be read-only private memory."""
        ctypes.memset(self.places["anon_read"], 0, PAGE)
        self._libc.mprotect(ctypes.c_void_p(self.places["anon_read"]), PAGE, mman.PROT_READ)

    def futex(self, addr: int, op: int, val: int, val2: Any, other: int, val3: int) -> Result:
        """The system call."""
        done = self._libc.syscall(
            SYS_FUTEX,
            ctypes.c_void_p(addr),
            op,
            ctypes.c_uint32(val & 0xFFFF_FFFF),
            val2,
            ctypes.c_void_p(other),
            ctypes.c_uint32(val3 & 0xFFFF_FFFF),
        )
        return done if done >= 0 else errno.errorcode[ctypes.get_errno()]

    def store(self, addr: int, value: int) -> None:
        """Set a word."""
        ctypes.c_uint32.from_address(addr).value = value

    def load(self, addr: int) -> int:
        """The word."""
        return ctypes.c_uint32.from_address(addr).value

    def wait(self, name: str, addr: int, val: int, bitset: int, private: bool) -> Result:
        """See Side. The thread gives up after a minute."""
        started: list[int] = []
        result: list[Result] = []

        def run() -> None:
            started.append(threading.get_native_id())
            limit = (ctypes.c_long * 2)(int(time.monotonic()) + 60, 0)
            result.append(self.futex(addr, WAIT_BITSET | PRIVATE * private, val, limit, 0, bitset))
            if result[0] == 0:
                self.woken[name] = 0

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while not result:
            if started and sleeps_in_futex(started[0], addr):
                self._threads[name] = thread
                return 0
            time.sleep(0.0005)
        thread.join()
        return result[0]

    def call(self, op: int, addr: int, val: int, val2: int, other: int, val3: int, private: bool) -> Result:
        """See Side."""
        before = len(self.woken)
        result = self.futex(addr, op | PRIVATE * private, val, ctypes.c_long(val2), other, val3)
        if isinstance(result, int):
            # Those who were requeued are counted, after those who were woken, and do not come.
            come = min(result, val) if op in (REQUEUE, CMP_REQUEUE) else result
            limit = time.monotonic() + 30
            while len(self.woken) - before < come:
                assert time.monotonic() < limit, f"{come} were woken, {len(self.woken) - before} have come"
                time.sleep(0.0005)
        return result

    def finish(self) -> list[str]:
        """Wake all who still wait, and say who was woken before."""
        found = sorted(self.woken)
        for _ in range(2):
            for addr in self.places.values():
                for private in (False, True):
                    self.futex(addr, WAKE | PRIVATE * private, 1 << 30, None, 0, 0)
                    self.futex(addr + 4, WAKE | PRIVATE * private, 1 << 30, None, 0, 0)
        for thread in self._threads.values():
            thread.join(30)
            assert not thread.is_alive()
        self._threads.clear()
        self.woken.clear()
        return found


def arguments(name: str, fd: int) -> tuple[int, int, int]:
    """prot, flags and descriptor of a place."""
    shared = mman.MAP_SHARED
    return {
        "private": (RW, mman.MAP_PRIVATE | ANON, -1),
        "shared": (RW, shared | ANON, -1),
        "file": (RW, shared, fd),
        "alias": (RW, shared, fd),
        "private_file": (RW, mman.MAP_PRIVATE, fd),
        "read_file": (mman.PROT_READ, shared, fd),
        "read_private": (mman.PROT_READ, mman.MAP_PRIVATE, fd),
        "anon_read": (RW, mman.MAP_PRIVATE | ANON, -1),
        "none": (mman.PROT_NONE, mman.MAP_PRIVATE | ANON, -1),
    }[name]


def sleeps_in_futex(thread: int, addr: int) -> bool:
    """Whether a thread of this process sleeps in futex(2) for the word at addr, and not for the GIL's."""
    task = Path(f"/proc/self/task/{thread}")
    try:
        sleeps = (task / "stat").read_text().rpartition(")")[2].split()[0] == "S"
        return sleeps and (task / "syscall").read_text().split()[:2] == [str(SYS_FUTEX), hex(addr)]
    except OSError:  # a sandbox that does not tell the call, or the thread has ended
        return False


class OurFutex:
    """FutexTable's side, over an AddressSpace."""

    def __init__(self) -> None:
        self.space = AddressSpace()
        self.table = FutexTable()
        self.waiters: dict[str, FutexWaiter] = {}
        self._woken: list[str] = []
        with tempfile.TemporaryFile() as file:
            file.truncate(PAGE)
            fd = file.fileno()
            self.places = {
                name: self.space.mmap(0x100000 + 0x2000 * at, PAGE, *self._arguments(name, fd), 0)
                for at, name in enumerate(PLACES[:-1])
            }
        self.places["hole"] = HOLE

    @staticmethod
    def _arguments(name: str, fd: int) -> tuple[int, int, int]:
        prot, flags, descriptor = arguments(name, fd)
        return prot, flags | mman.MAP_FIXED, descriptor

    def prepare(self) -> None:
        """See KernelFutex."""
        self.space.zero_out(self.places["anon_read"], PAGE)
        self.space.mprotect(self.places["anon_read"], PAGE, mman.PROT_READ)

    def store(self, addr: int, value: int) -> None:
        """Set a word."""
        self.space.copy_out(addr, value.to_bytes(4, "little"))

    def load(self, addr: int) -> int:
        """The word."""
        return self.space.load_uint32(addr)

    def wait(self, name: str, addr: int, val: int, bitset: int, private: bool) -> Result:
        """See Side."""
        futex = Futex(self.space, addr, private=private)
        try:
            self.waiters[name] = self.table.wait(futex, val, lambda: self._woken.append(name), bitset=bitset)
        except OSError as exc:
            return named(linux_result(exc))
        return 0

    def call(self, op: int, addr: int, val: int, val2: int, other: int, val3: int, private: bool) -> Result:
        """See Side."""
        futex, second = Futex(self.space, addr, private=private), Futex(self.space, other, private=private)
        try:
            if op == WAKE:
                return self.table.wake(futex, val)
            if op == WAKE_BITSET:
                return self.table.wake(futex, val, bitset=val3)
            if op == WAKE_OP:
                return self.table.wake_op(futex, second, val, val2, val3)
            return self.table.requeue(futex, second, val, val2, val=val3 if op == CMP_REQUEUE else None)
        except OSError as exc:
            return named(linux_result(exc))

    def finish(self) -> list[str]:
        """See KernelFutex."""
        found = sorted(self._woken)
        for waiter in self.waiters.values():
            waiter.cancel()
        self.waiters.clear()
        self._woken.clear()
        return found


def page_of_the_host() -> bool:
    """Whether the host's pages are the guest's, so that both sides map the same."""
    return mmap.PAGESIZE == PAGE and os.uname().machine == "x86_64"
