"""RacingIO: another thread of the guest, which changes a byte between two fetches of it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from typing import Any

from attrs import frozen

from safemem.buffers import check_count
from usermem.errors import FaultError
from usermem.memory_io import IO
from usermem.observe.access import ATOMICS, FETCHES, Access
from usermem.observe.fetched import Fetched, fetched_spans
from usermem.observe.observed import ObservedIO, memory_of
from usermem.observe.shown import checked, shown
from usermem.observe.system_call import current


@frozen(repr=False)
class Race:
    """A byte changed: before the refetch number ``refetch`` the byte ``byte`` of it becomes ``value``.

    A refetch is an access that fetches bytes which its system call has fetched before, or swaps such a word; those are
    what ``byte`` counts, from 0 and beginning again at their end. Raises ValueError for a number that is negative, or
    no byte.
    """

    refetch: int = checked(check_count, "refetch", 0)
    byte: int = checked(check_count, "byte", 0)
    value: int = checked(check_count, "value", 0)

    def __attrs_post_init__(self) -> None:
        if self.value > 255:
            raise ValueError(f"value must be a byte: {self.value}")

    def __repr__(self) -> str:
        return shown(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


class RacingIO(ObservedIO):
    """An IO over another one that proves double fetches: it changes bytes between the fetches, as ``races`` say.

    Only what a system call (:class:`SystemCall`) fetches again is changed, so that a handler which fetches each byte
    once, and swaps no word that it has fetched, gives the same results as without. Bytes are changed in the memory
    beneath all observers, whatever the guest forbade. ``raced`` are the last 1,000 changes, (address, old value, new
    value).
    """

    def __init__(self, io: IO, races: Iterable[Race]) -> None:
        """Raises TypeError if races are no Races."""
        super().__init__(io)
        self.raced: deque[tuple[int, int, int]] = deque(maxlen=1000)
        self._races = tuple(races)
        if not all(isinstance(race, Race) for race in self._races):
            raise TypeError(f"races must be Races: {self._races}")
        self._refetches = itertools.count()

    def _new_state(self) -> Fetched:
        return Fetched()

    def _make(self, access: Access, args: tuple[Any, ...]) -> int:
        call = current()
        if call is not None and (access.call in FETCHES or (access.call in ATOMICS and access.access.write)):
            fetched: Fetched = self._state(call)
            again = [part[:2] for span in fetched_spans(self, access) for part in fetched.overlaps(*span)]
            if again:
                number = next(self._refetches)
                for race in self._races:
                    if race.refetch == number:
                        self._change(again, race)
        return super()._make(access, args)

    def _after(self, access: Access) -> None:
        call = current()
        if call is not None and access.call in FETCHES:
            self._state(call).add_all(fetched_spans(self, access, access.moved), None)

    def _change(self, spans: list[tuple[int, int]], race: Race) -> None:
        """Change the byte that a race says, of some spans; nothing where the mapped object cannot be written."""
        offset = race.byte % sum(end - start for start, end in spans)
        for start, end in spans:
            if offset < end - start:
                break
            offset -= end - start
        memory = memory_of(self.io)
        old = bytearray(1)
        try:
            memory.copy_in(start + offset, old, ignore_permissions=True)
            memory.copy_out(start + offset, bytes([race.value]), ignore_permissions=True)
        except FaultError:  # no thread of the guest could have changed it
            return
        self.raced.append((start + offset, old[0], race.value))
