"""Who is told of changes of a map: the order of events, and that each call waits for its own.

A change is noted under the map's lock, just before its tables are published. Then, without a lock, each thread tells
its own, once those before them were told. So the listener is called in the order of the changes, for one at a time, and
no call returns before its own events were told. The listener may map. It may even wait for another thread that maps, or
for a lock that such a thread holds: a thread waits for another one only a moment, and then goes on.

A signal handler may come in at any line, with changes of its own. So whether a noted change was published is not kept
beside the tables but follows from them: they are the current ones, or were when the next change began.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Final

from hostarch.listed_enum import ListedEnumType


class ChangeKind(StrEnum, metaclass=ListedEnumType):
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
    """The same is mapped, and the host memory behind it is another, or has other bytes, or is none: a guard."""


Told = tuple[int, int, ChangeKind]
Listener = Callable[[int, int, ChangeKind], object]


# How long a thread waits for another one that is at an event, in seconds.
_PATIENCE: Final = 0.1


def _is_alive(thread: int) -> bool:
    return any(each.ident == thread for each in threading.enumerate())


def _nobody(start: int, end: int, kind: ChangeKind) -> None:
    pass


class Event:
    """A change that the listener is told: with the tables that have it, and how far it has come."""

    __slots__ = ("done", "owner", "published", "tables", "teller", "told")

    def __init__(self, told: Told, tables: object) -> None:
        self.told: Told = told
        self.tables: object = tables
        self.published: bool = False
        self.owner: int = threading.get_ident()  # the thread whose call it is
        self.teller: int | None = None  # the thread that calls, or called, the listener for it
        # Held until it was told; an Event has a lock inside that a fork may leave held.
        self.done: threading.Lock = threading.Lock()
        self.done.acquire()

    def wait(self) -> bool:
        """Whether it was told, now or in a moment."""
        told = self.done.acquire(timeout=_PATIENCE)
        if told:
            self.done.release()
        return told


class Listeners:
    """The listener of one map, and what it has not been told yet."""

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self._events: deque[Event] = deque()

    def note(self, told: list[Told], tables: object, events: list[Event]) -> None:
        """Note changes, in their order, that are to be published as ``tables``. Call it under the map's lock.

        ``events`` has each before it is noted, so that an interrupt leaves none that cannot be withdrawn.
        """
        events += [Event(each, tables) for each in told]
        self._events += events

    def withdraw(self, events: list[Event]) -> None:
        """Forget changes that were noted and not published."""
        for event in events:
            if not event.published:
                self._drop(event)

    def _drop(self, event: Event) -> None:
        with suppress(ValueError):
            self._events.remove(event)

    def see(self, tables: object) -> None:
        """Note that these tables were published."""
        for event in tuple(self._events):
            if event.tables is tables:
                event.published = True

    def tell(self, own: list[Event], tables: object) -> None:
        """Tell ``own``, some events of this thread, when all before them were told; ``tables`` are the current ones.

        The first error that the listener raises is raised at the end.
        """
        self.see(tables)
        failed: BaseException | None = None
        me = threading.get_ident()
        for event in tuple(self._events):
            mine = None
            listener = self.listener or _nobody
            gone = event.owner != me and not event.wait() and not _is_alive(event.owner)
            if gone:
                event.owner = me  # its thread has ended in the middle of a call, or is not in this child of a fork
            if event.teller is not None and (gone or not event.done.locked()):
                self._drop(event)  # its teller did not, for an interrupt
            try:
                # One line without a call before the listener's: no other event can be told in between.
                if event.owner == me and event.published and event.teller is None: event.teller = me; mine = event; listener(*event.told)  # fmt: skip # noqa: E501, E701, E702
            except BaseException as exc:
                failed = failed or exc
            finally:
                if mine is not None:
                    event.done.release()
                    self._drop(event)
            if event is own[-1]:
                break
        self.withdraw(own)
        if failed is not None:
            try:
                raise failed
            finally:
                del failed
