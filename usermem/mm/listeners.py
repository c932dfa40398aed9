"""Who is told of changes of a map: the order of events, and that each call waits for its own.

A change is noted under the map's lock, when it is published. Then, without a lock, whoever made a change tells all that
were noted before it and not told yet, and its own. So events begin in the order of the changes; a listener may map, and
wait for other threads that map; and no call returns before its own events were told, by itself or by another thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from usermem.mm.change import ChangeKind

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
