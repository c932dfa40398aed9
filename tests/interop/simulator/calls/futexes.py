"""futex(2): the library's table; how a task sleeps is the kernel's."""

from __future__ import annotations

import errno
import os
from typing import Final

from simulator.calls.clocks import deadline_of
from simulator.process import Task
from simulator.table import Int, Result, syscall
from simulator.waits import Wait, Waiting
from usermem import FUTEX_BITSET_MATCH_ANY, Futex, FutexWaiter, abi

_PRIVATE: Final = 128
_CLOCK_REALTIME: Final = 256
_WAIT, _WAKE, _REQUEUE, _CMP_REQUEUE, _WAKE_OP, _WAIT_BITSET, _WAKE_BITSET = 0, 1, 3, 4, 5, 9, 10


@syscall(202)
def sys_futex(task: Task, addr: int, operation: Int, val: int, timeout: int, addr2: int, val3: int) -> Result:
    command, private = operation & ~(_PRIVATE | _CLOCK_REALTIME), operation & _PRIVATE != 0
    futex, table = Futex(task.memory, addr, private=private), task.kernel.futexes
    if command == _WAKE:
        return table.wake(futex, val)
    if command == _WAKE_BITSET:
        return table.wake(futex, val, bitset=val3)
    if command in (_WAIT, _WAIT_BITSET):
        deadline = None
        if timeout:
            clock = (0 if operation & _CLOCK_REALTIME else 1) if command == _WAIT_BITSET else None
            deadline = deadline_of(abi.TIMESPEC.copy_in(task.memory, timeout), clock)
        bitset = val3 if command == _WAIT_BITSET else FUTEX_BITSET_MATCH_ANY
        return _wait(table.wait(futex, val, lambda: None, bitset=bitset), deadline)
    other = Futex(task.memory, addr2, private=private)
    if command in (_REQUEUE, _CMP_REQUEUE):
        return table.requeue(futex, other, val, timeout, val=val3 if command == _CMP_REQUEUE else None)
    if command == _WAKE_OP:
        return table.wake_op(futex, other, val, timeout, val3)
    return -errno.ENOSYS


def _wait(waiter: FutexWaiter, deadline: float | None) -> Waiting:
    try:
        yield Wait(deadline=deadline, done=lambda: not waiter.waiting)
        if waiter.cancel():
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    except InterruptedError:
        if waiter.cancel():
            raise
    finally:
        waiter.cancel()  # the task may end while it waits
    return 0
