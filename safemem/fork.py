"""Locks that a forked child finds free.

os.fork() copies a lock as it is: one that another thread holds stays locked in the child, for ever. What our locks
guard is published by single stores, so the child's copy is consistent, and its locks may begin anew.

Source: os.register_at_fork(); CPython's logging and threading do the same.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from _thread import RLock

_Lock = TypeVar("_Lock", bound="RLock")
_locks: WeakSet[RLock] = WeakSet()


def fork_safe_lock() -> RLock:
    """A new RLock that is free in every child process that is forked while it exists."""
    return fork_safe(threading.RLock())


def fork_safe(lock: _Lock) -> _Lock:
    """The same lock, which from now on is free in every child process that is forked while it exists."""
    _locks.add(lock)
    return lock


def _free_locks() -> None:
    for lock in list(_locks):
        if not lock._is_owned():  # type: ignore[attr-defined]  # one that the forking thread holds, it will release
            lock._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)
