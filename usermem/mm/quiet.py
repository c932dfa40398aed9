"""quietly: run a function while no other thread is in the middle of an access to a space, and none can begin one.

Copies take no lock, so a lock alone keeps nobody out. Instead:

1. Take the map's lock, and drop all cached pages. From now on nothing is cached, so every access comes to
   ``MemoryMap.locate``, and waits there at the lock before it moves a byte. (The quick ways of the page cache pay
   nothing for this.)
2. Look for the threads that began before: who is in the middle of an access has a frame of our modules that has the
   space or its map as a local. One that merely waits at the lock, with nothing found and nothing moved, is in none.
3. Look for pins (:mod:`usermem.mm.pins`): through them bytes move without a frame of ours.

The order matters: an access that the look comes too late to see had begun, and ended, before; a pin is made by a call
that has such a frame. With a timeout the door stays shut a moment for the others to come out, then it is opened for
those who are on their way through the lock or wait for the world outside.

This needs the GIL: a frame is looked at while its thread stands still. Without one (``sys._is_gil_enabled()``) a copy
that is about to end may be missed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from threading import enumerate as threads
from threading import get_ident
from time import monotonic, sleep
from types import FrameType
from typing import Final, TypeVar

from usermem.errors import BusyError
from usermem.mm.mapped_io import MappedIO
from usermem.mm.memory_map import MemoryMap, Quiet

T = TypeVar("T")

_CALLERS: Final = (
    "usermem.__main__",
    "usermem.address_space",
    "usermem.doctor",
    "usermem.mm.quiet",
    "usermem.mm.saved_state",
    "usermem.testing",
    "usermem.tour",
)
"""Modules that know spaces and only call what accesses them."""

_ONE_STEP: Final = (
    "usermem.cstruct",
    "usermem.memory_io",
    "usermem.mm.mapped_io",
    "usermem.mm.memory_map",
    "usermem.mm.mmap",
    "usermem.mm.page_cache",
    "usermem.mm.pins",
    "usermem.resolver",
)
"""Modules whose functions are at their first step when they come to the lock, unless a local says otherwise."""

# Seconds: how long the door stays shut for others to come out, between two looks, and open, at first and at most.
_SHUT: Final = 0.01
_LOOK: Final = 0.0005
_OPEN: Final = 0.001
_MOST_OPEN: Final = 0.05


def quietly(mm: MemoryMap, act: Callable[[], T], *, timeout: float | None = 0) -> T:
    """Call ``act`` with the lock held while no other thread is in the middle of an access, and return what it returned.

    ``act`` may let go of the GIL, and may change the map; listeners are told afterwards, without the lock. Code that
    comes in the middle of it in this very thread (signal handlers, destructors) is let in, as with MemoryMap.change.

    Waits ``timeout`` seconds, None for ever, for accesses to end and pins to go; then raises BusyError. Raises that at
    once if this thread itself is in the middle of an access or a change: the call comes from a hook, a Reader, a
    listener, a signal handler. Calls in several threads take turns. Raises ValueError for a negative timeout.
    """
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout: {timeout} is neither None nor a number of seconds from 0 on")
    own = _access(sys._getframe(), mm)
    if own is not None or mm._lock._is_owned():  # type: ignore[attr-defined]
        reason = f"this very thread is in the middle of {own or 'a change'}: call again when that has returned"
        raise BusyError(reason, get_ident())
    until = float("inf") if timeout is None else monotonic() + timeout
    shut, pause = _SHUT if timeout is None else min(timeout, _SHUT), _OPEN
    done: list[T] = []
    while True:
        busy = _hold(mm, partial(_attempt, mm, act, done, shut))
        if busy is None:
            return done.pop()
        left = until - monotonic()
        if left <= 0:
            try:
                raise busy
            finally:
                del busy
        sleep(min(pause, left))
        pause = min(2 * pause, _MOST_OPEN)


def _attempt(mm: MemoryMap, act: Callable[[], T], done: list[T], shut: float) -> BusyError | None:
    """Call ``act`` if nobody is in the middle of an access, or no longer after at most ``shut`` seconds; else say who.

    Call it while the map is held.
    """
    end = monotonic() + shut
    while True:
        busy = _others(mm)
        if busy is None or busy.thread is None or monotonic() >= end:
            break
        sleep(_LOOK)
    if busy is None:
        done.append(act())
    return busy


def _hold(mm: MemoryMap, act: Callable[[], T]) -> T:
    """Call ``act`` with the lock held and no page cached, so that whoever begins an access waits."""
    held: Quiet = os.getpid(), [], []
    try:
        # In one line, as in MemoryMap.change.
        with mm._lock: result = _frozen(mm, act, held)  # fmt: skip # noqa: E701
    finally:
        if held[1] or held[2]:
            mm._finish(held[1], held[2])
    return result


def _frozen(mm: MemoryMap, act: Callable[[], T], held: Quiet) -> T:
    """See _hold. Call it under the lock."""
    cache = mm._cache
    try:
        mm.held = held
        if not _is_alone():
            cache.frozen = True
            cache.forget_all()
        return act()
    finally:
        mm.held, cache.frozen = None, False  # in one line: no handler comes between


def _is_alone() -> bool:
    """Whether the process has no other thread, with a frame or without one so far: then nothing need be dropped."""
    if len(sys._current_frames()) > 1:
        return False
    try:
        # 2 of a directory, and the threads: proc_task_getattr(), fs/proc/base.c.
        return os.stat("/proc/self/task").st_nlink == 3  # noqa: PTH116 - half the time
    except OSError:
        return False


def _others(mm: MemoryMap) -> BusyError | None:
    """Who, of the other threads, is in the middle of an access, or may write without one."""
    frames = sys._current_frames()
    frames.pop(get_ident())  # a frame with itself as a local is a cycle
    for thread, frame in frames.items():
        if (access := _access(frame, mm)) is not None:
            name = next((repr(each.name) for each in threads() if each.ident == thread), thread)
            return BusyError(f"thread {name} is in the middle of {access}: call again later, or with a timeout", thread)
    if mm.pins:
        return BusyError("blocks that can be written, or views or arrays made from them, are still referred to")
    return None


def _access(top: FrameType, mm: MemoryMap) -> str | None:
    """The function by which a thread is in the middle of an access to a map; None if it is in none, or only waits."""
    waits = top.f_code in _AT_THE_LOCK and top.f_locals.get("self", mm) is mm
    access = None
    frame: FrameType | None = top
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("usermem.") and not module.startswith(_CALLERS):
            values = frame.f_locals
            # Bytes of other ranges were found, or something was moved or changed.
            began = values.get("blocks") or values.get("current") or values.get("rest") or "result" in values
            waits = waits and module in _ONE_STEP and not began
            if any(_means(value, mm) for value in tuple(values.values())):
                access = None if waits else f"{frame.f_code.co_name} ({module})"
        else:
            waits = False
        frame = frame.f_back
    return access


def _means(value: object, mm: MemoryMap) -> bool:
    """Whether a local is the map, or a space over it."""
    return value is mm or (issubclass(type(value), MappedIO) and getattr(value, "_map", None) is mm)


# Where threads wait for the lock: until they have it, they have moved nothing.
_AT_THE_LOCK: Final = (MemoryMap.locate.__code__, MemoryMap.change.__code__)
