"""Who is told of changes of a map: the order of events, and that each call waits for its own.

A change is noted under the map's lock, when it is published. Then, without a lock, whoever made a change tells all that
were noted before it and not told yet, and its own. So events begin in the order of the changes; a listener may map, and
wait for other threads that map; and no call returns before its own events were told, by itself or by another thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum


class ChangeKind(StrEnum):
    """What a listener is told about a range of addresses."""

    MAP = "map"
    """Something is mapped there now; whatever was mapped there before is not."""
    UNMAP = "unmap"
    """Nothing is mapped there now."""
    PROTECT = "protect"
    """The rights are others."""
    MOVE = "move"
    """mremap(2) has put there what was mapped elsewhere."""
    MEMORY = "memory"
    """The same is mapped, and the host memory behind it is another, or has other bytes."""


Told = tuple[int, int, ChangeKind]
Listener = Callable[[int, int, ChangeKind], object]


class Event:
    """A change that the listener is told, and whether it was."""

    __slots__ = ("done", "told")

    def __init__(self, told: Told) -> None:
        self.told = told
        self.done = threading.Event()


class Listeners:
    """The listener of one map, and what it has not been told yet."""

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self._events: deque[Event] = deque()

    def note(self, told: list[Told]) -> list[Event]:
        """Note changes in their order. Call it under the map's lock."""
        events = [Event(each) for each in told]
        self._events += events
        return events

    def withdraw(self, events: list[Event]) -> None:
        """Forget changes that were noted and not published. Call it under the map's lock."""
        for event in events:
            with suppress(ValueError):  # told already, by a handler that ran in between
                self._events.remove(event)

    def tell(self, own: list[Event]) -> None:
        """Tell all that is noted, and return when ``own`` was told. What the listener raises passes through."""
        while own and self._events:
            try:
                event = self._events.popleft()
            except IndexError:  # another thread has taken it
                break
            try:
                if self.listener is not None:
                    self.listener(*event.told)
            finally:
                event.done.set()
        for event in own:
            event.done.wait()
