"""poll, select and kin."""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Final

from simulator import signals
from simulator.calls.clocks import deadline_of
from simulator.files import READABLE, WRITABLE, kept
from simulator.process import Task
from simulator.table import Int, Result, syscall
from simulator.waits import Wait, Waiting, poll_now
from usermem import abi, copy_struct_in, copy_struct_out, copy_uint64_in

_MOST: Final = 1024
_SETS: Final = (READABLE, WRITABLE, select.POLLPRI)


@syscall(7)
def sys_poll(task: Task, fds: int, n: int, timeout: Int) -> Result:
    return _poll(task, fds, n & 0xFFFF_FFFF, time.monotonic() + timeout / 1000 if timeout >= 0 else None)


@syscall(271)
def sys_ppoll(task: Task, fds: int, n: int, timeout: int, mask: int) -> Result:
    deadline = deadline_of(abi.TIMESPEC.copy_in(task.memory, timeout)) if timeout else None
    if mask:
        set_mask_for_call(task, copy_uint64_in(task.memory, mask))
    return _timed(_poll(task, fds, n & 0xFFFF_FFFF, deadline), task, timeout, deadline, 1_000_000_000)


def set_mask_for_call(task: Task, mask: int) -> None:
    """Block other signals until the system call has ended."""
    task.saved_mask = task.mask
    task.mask = signals.mask_of(mask)


def _poll(task: Task, fds: int, n: int, deadline: float | None) -> Waiting:
    if n > _MOST:
        raise OSError(errno.EINVAL, "")
    entries = list(zip(*[iter(copy_struct_in(task.memory, fds, f"{n * 2}i") if n else ())] * 2, strict=True))
    table = task.files.table
    hosts: dict[int, int] = {}
    for fd, events in entries:
        if fd in table:
            host = table[fd].file.host
            hosts[host] = hosts.get(host, 0) | events & 0xFFFF
    invalid = any(fd >= 0 and fd not in table for fd, _ in entries)
    with kept([table[fd].file for fd, _ in entries if fd in table]):
        ready = yield from _wait(hosts, deadline, lambda: invalid)
    found = []
    for fd, events in entries:
        host = table[fd].file.host if fd in table else -1
        result = ready.get(host, 0) & (events & 0xFFFF | select.POLLERR | select.POLLHUP) if host >= 0 else 0
        found.append(select.POLLNVAL if fd >= 0 and host < 0 else result)
    for at, result in enumerate(found):
        copy_struct_out(task.memory, fds + 8 * at + 6, "H", result)
    return sum(map(bool, found))


def _wait(
    hosts: dict[int, int], deadline: float | None, done: Callable[[], bool]
) -> Generator[Wait, None, dict[int, int]]:
    """Which of the host's descriptors are ready, once one is, or it is time."""
    while True:
        ready = poll_now(hosts)
        if ready or done() or (deadline is not None and time.monotonic() >= deadline):
            return ready
        yield Wait(hosts, deadline)


@syscall(23)
def sys_select(task: Task, n: Int, reads: int, writes: int, others: int, timeout: int) -> Result:
    deadline = None
    if timeout:
        found = abi.TIMEVAL.copy_in(task.memory, timeout)
        deadline = deadline_of(abi.Timespec(found.tv_sec, found.tv_usec * 1000))
    return _timed(_select(task, n, (reads, writes, others), deadline), task, timeout, deadline, 1_000_000)


@syscall(270)
def sys_pselect6(task: Task, n: Int, reads: int, writes: int, others: int, timeout: int, mask: int) -> Result:
    deadline = deadline_of(abi.TIMESPEC.copy_in(task.memory, timeout)) if timeout else None
    if mask:
        pointer, _ = copy_struct_in(task.memory, mask, "PL")
        if pointer:
            set_mask_for_call(task, copy_uint64_in(task.memory, pointer))
    return _timed(_select(task, n, (reads, writes, others), deadline), task, timeout, deadline, 1_000_000_000)


def _timed(call: Waiting, task: Task, addr: int, deadline: float | None, unit: int) -> Waiting:
    """Store what is left of the time, if that can be, in a struct timeval or timespec: poll_select_finish()."""
    try:
        return (yield from call)
    finally:
        if deadline is not None:
            left = max(0, int((deadline - time.monotonic()) * unit))
            with suppress(OSError):
                copy_struct_out(task.memory, addr, "2q", *divmod(left, unit))


def _select(task: Task, n: int, sets: tuple[int, int, int], deadline: float | None) -> Waiting:
    if not 0 <= n <= _MOST:
        raise OSError(errno.EINVAL, "")
    words = -(-n // 64)
    hosts: dict[int, int] = {}
    asked: list[list[int]] = []
    for addr, mask in zip(sets, _SETS, strict=True):
        bits = int.from_bytes(b"".join(copy_struct_in(task.memory, addr, f"{8 * words}s")), "little") if addr else 0
        asked.append([fd for fd in range(n) if bits >> fd & 1])
        for fd in asked[-1]:
            host = task.files[fd].host
            hosts[host] = hosts.get(host, 0) | mask
    with kept([task.files[fd] for fd in set().union(*asked)]):
        ready = yield from _wait(hosts, deadline, lambda: False)
    count = 0
    for addr, mask, fds in zip(sets, _SETS, asked, strict=True):
        found = [fd for fd in fds if ready.get(task.files[fd].host, 0) & mask]
        count += len(found)
        if addr and words:
            bits = sum(1 << fd for fd in found)
            copy_struct_out(task.memory, addr, f"{8 * words}s", bits.to_bytes(8 * words, "little"))
    return count
