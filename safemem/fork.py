"""Locks that a forked child finds free.

os.fork() copies a lock as it is: one that another thread holds stays locked in the child, for ever. What our locks
guard is published by single stores, so the child's copy is consistent, and its locks may begin anew.

Source: os.register_at_fork(); CPython's logging and threading do the same.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from _thread import RLock
else:
    RLock = type(threading.RLock())

_locks: WeakSet[RLock] = WeakSet()


def fork_safe_lock() -> RLock:
    """A new RLock that is free in every child process that is forked while it exists."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


class InUse(RLock):  # type: ignore[misc]  # which CPython lets one do
    """A lock that nobody waits for: who finds it taken, by another thread or by itself, gets a RuntimeError.

    An interrupt at any point leaves it free: it is an RLock, which knows its owner, and its ``__exit__`` is in C. (A
    generator would take 1 us more.)
    """

    message = "it is in use"
    waits = False
    """Whether another thread that finds it taken waits after all."""

    def __enter__(self) -> None:  # type: ignore[override]
        if self.mine():  # it belongs to a call that this one has come in the middle of
            raise RuntimeError(self.message)
        try:
            if not self.acquire(blocking=self.waits):
                raise RuntimeError(self.message)
        except BaseException:
            if self.mine():
                self.release()
            raise

    def mine(self) -> bool:
        """Whether this thread has it."""
        return bool(self._is_owned())  # type: ignore[attr-defined]


def in_use_lock(message: str, *, waits: bool = False) -> InUse:
    """A new one, free in every child process, whose error has this message. With ``waits`` other threads wait."""
    lock = InUse()
    lock.message = message
    lock.waits = waits
    _locks.add(lock)
    return lock


def _free_locks() -> None:
    for lock in list(_locks):
        if not lock._is_owned():  # type: ignore[attr-defined]  # one that the forking thread holds, it will release
            lock._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)
