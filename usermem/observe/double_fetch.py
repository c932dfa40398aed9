"""DoubleFetchDetector: what a handler of a system call does to user memory that it should not do.

Between two fetches of a byte another thread of the guest may change it: a handler that checks what it fetched first
and uses what it fetched then has a time-of-check-to-time-of-use bug (Linux: CVE-2016-6480, CVE-2016-6516).

Source: Jurczyk and Coldwind, "Identifying and Exploiting Windows Kernel Race Conditions via Memory Access Patterns"
(2013), which found such bugs by the same rule: one system call, one byte, two fetches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from attrs import Factory, define, frozen

from hostarch import AddrRange, AddrRangeSeq
from hostarch.listed_enum import ListedEnumType
from safemem.buffers import check_count, check_positive, writable_view
from usermem.errors import FaultError
from usermem.memory_io import IO
from usermem.observe.access import FETCHES, Access
from usermem.observe.fetched import Fetched, Interval, fetched_spans
from usermem.observe.observed import ObservedIO, memory_of, unseen
from usermem.observe.place import Callers, Place, here
from usermem.observe.poison import Short, find_poison, poisoned
from usermem.observe.system_call import SystemCall, checked_ranges, current
from usermem.scan import SCAN

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE: Final = 1 << 20


class FindingKind(StrEnum, metaclass=ListedEnumType):
    """What a handler did."""

    DOUBLE_FETCH = "double fetch"
    LATE_FETCH = "fetch after the visible effect"
    REPEATED_EFFECT = "visible effect again"
    LOST_UPDATE = "word fetched, and swapped whatever it is by then"
    STRAY_FETCH = "fetch of what was not asked for"
    STRAY_WRITE = "write to what was not asked for"
    LEAK = "uninitialised bytes written to the guest"


@frozen
class Finding:
    """What was found, in which system call, about which bytes, where in the handler's code.

    ``first`` is the place of the first fetch, or of the effect that a late fetch came after; None for the other kinds.
    The range of an effect is empty.
    It can be pickled.
    """

    kind: FindingKind
    call: str
    range: AddrRange
    place: Place
    first: Place | None = None

    def __str__(self) -> str:
        where = f", {self.range.length} bytes at {self.range.start:#x}" if self.range.length else ""
        lines = [f"{self.call}: {self.kind.value}{where}"]
        if self.first is not None:
            lines.append(f"  first  {self.first}")
        return "\n".join([*lines, f"  {'then' if self.first is not None else 'at  '}   {self.place}"])


@define(eq=False)
class _State:
    """What is known of one system call."""

    fetched: Fetched
    effect: Callers | None = None
    allowed: AddrRangeSeq | None = None
    any_allowed: bool = False
    turns: set[int] = Factory(set)


class DoubleFetchDetector(ObservedIO):
    """An IO over another one that looks for seven kinds of bugs while a system call runs; see :class:`FindingKind`.

    ``with detector.call("readv"):`` bounds a call; what is accessed outside of any is not looked at. Each bug counts
    once, by its kind, its call and its places: ``findings`` are the first ``limit``, and ``on_finding`` gets each as it
    is found; what that raises comes out of the access.

    - A byte is **fetched** when copy_in or copy_in_to has moved it; one access that has a byte twice fetches it once.
      What copy_string_in and its kin read behind the end of a string, or of a table of pointers, is not.
      Atomics are no fetches: a futex word is there to be read again, since it is compared and changed at once.
    - An **update is lost** if a word that was fetched is swapped without a comparison (swap_uint32): the swap undoes
      what another thread has stored between.
    - The **visible effect** is the first write to the guest's memory (a compare-and-swap counts, stored or not), or
      :meth:`effect`. A handler that fetches after it can no longer fail as if nothing had happened; one that comes to
      the same :meth:`effect` again, as on a retry after a fault, **repeats** it. Calls with ``late_fetches`` may.
    - Fetches are **stray** outside the ``reads`` of the call, and writes outside its ``writes``, if it has them.
    - A **leak** is bytes of :meth:`buffer`, or :meth:`poison`, that were never stored, and are written to the guest.
      Four or more are found at once, as the padding of a struct two or three at the second call and one at the fourth,
      if the buffer is made in the call and written from its beginning.

    At most 4,096 separate intervals of a call are remembered.
    """

    def __init__(self, io: IO, *, limit: int = 100, on_finding: Callable[[Finding], object] | None = None) -> None:
        """Raises ValueError if limit < 1."""
        super().__init__(io)
        self._limit = check_positive(limit, "limit")
        self._found: dict[tuple[object, ...], Finding] = {}
        self._on_finding = on_finding
        self._poisons = itertools.count()
        self._poisoned = False
        self._short = Short()

    @property
    def findings(self) -> list[Finding]:
        """What was found, the first first."""
        return list(self._found.values())

    @contextmanager
    def allow_refetch(self, ranges: AddrRangeSeq | None = None) -> Iterator[None]:
        """Let the current call fetch again, inside the ``with``, what lies in ranges (None: anything).

        For a handler that compares, or does not trust, what it fetches then. Nothing happens outside of any call.
        """
        call = current()
        if call is None:
            yield
            return
        state: _State = self._state(call)
        before = state.allowed, state.any_allowed
        state.allowed, state.any_allowed = checked_ranges(ranges, "ranges"), ranges is None
        try:
            yield
        finally:
            state.allowed, state.any_allowed = before

    def effect(self) -> None:
        """Note that the current call has a visible effect now: a message is sent, a file written, a task made."""
        call = current()
        if call is not None:
            state: _State = self._state(call)
            place = here(1)
            if state.effect == place and not call.late_fetches:
                self._find(call, FindingKind.REPEATED_EFFECT, [(0, 0)], place)
            state.effect = state.effect or place

    def buffer(self, n: int) -> bytearray:
        """A buffer of n bytes for a handler to fill and write to the guest. What it does not fill is found then.

        Raises ValueError if n < 0.
        """
        buffer = bytearray(check_count(n, "n"))
        self.poison(buffer)
        return buffer

    def poison(self, buffer: WriteableBuffer) -> None:
        """Fill a buffer of the handler's own that it uses again, so that what an earlier call left is found as well.

        Raises TypeError if it is no writable buffer.
        """
        call = current()
        turn = hash((next(self._poisons),)) >> 8 & 7
        if call is not None:
            state: _State = self._state(call)
            state.turns.add(turn)
        with writable_view(buffer, "buffer") as view:
            view[:] = poisoned(len(view), turn)
        self._poisoned = True

    def _new_state(self) -> _State:
        return _State(Fetched())

    def _after(self, access: Access) -> None:
        call = current()
        if call is None or access.moved <= 0:
            return
        state: _State = self._state(call)
        place = here(3)
        spans = access.spans(self.arch, access.moved)
        if access.call in FETCHES:
            if SCAN.get() is not None:
                spans = fetched_spans(self, access, access.moved)
            if state.effect is not None and not call.late_fetches:
                self._find(call, FindingKind.LATE_FETCH, spans, place, state.effect)
            if call.reads is not None:
                self._find(call, FindingKind.STRAY_FETCH, self._outside(spans, [call.reads]), place)
            again = state.fetched.add_all(spans, place)
            if again:
                self._refetched(call, FindingKind.DOUBLE_FETCH, again, place)
        elif access.access.write:
            if call.writes is not None:
                self._find(call, FindingKind.STRAY_WRITE, self._outside(spans, [call.writes]), place)
            if access.call == "swap_uint32":
                again = state.fetched.overlaps(*spans[0])
                self._refetched(call, FindingKind.LOST_UPDATE, again, place)
            elif self._poisoned and access.call.startswith("copy_out"):
                self._find(call, FindingKind.LEAK, self._leaks(spans, state.turns, place[:2]), place)
            state.effect = state.effect or place

    def _refetched(self, call: SystemCall, kind: FindingKind, again: list[Interval], place: Callers) -> None:
        """Look whether bytes that were fetched before may be fetched, or swapped, again."""
        state: _State = self._state(call)
        if not state.any_allowed and call.refetches is not True:
            allowed = [ars for ars in (call.refetches, state.allowed) if ars]
            for start, end, first in again:
                self._find(call, kind, self._outside([(start, end)], allowed), place, first)

    def _outside(self, spans: list[tuple[int, int]], allowed: list[AddrRangeSeq]) -> list[tuple[int, int]]:
        """The parts of [start, end) spans, without pointer tags, that lie in none of the ranges."""
        if not allowed:
            return spans
        pairs = [(self.arch.untagged(addr), length) for ars in allowed for addr, length in ars.pairs()]
        holes = sorted((start, start + length) for start, length in pairs)
        found = []
        for start, end in spans:
            for first, last in holes:
                if start < first:
                    found.append((start, min(end, first)))
                start = max(start, last)
                if start >= end:
                    break
            if start < end:
                found.append((start, end))
        return found

    def _leaks(self, spans: list[tuple[int, int]], turns: set[int], place: Callers) -> list[tuple[int, int]]:
        """The first poison in each piece of what was written, read back from the memory beneath all observers."""
        memory = memory_of(self.io)
        found = []
        for start, end in spans:
            for at in range(start, end, _PIECE):
                data = bytearray(min(end - at, _PIECE))
                try:
                    memory.copy_in(at, data, ignore_permissions=True)
                except FaultError as fault:
                    del data[fault.transferred :]  # another thread has unmapped the rest
                run = find_poison(data) or (self._short.find(place, data, turns) if turns and len(spans) == 1 else None)
                if run is not None:
                    found.append((at + run[0], at + run[1]))
        return found

    def _find(
        self,
        call: SystemCall,
        kind: FindingKind,
        spans: list[tuple[int, int]],
        callers: Callers,
        first: Callers | None = None,
    ) -> None:
        """Note a finding about the first of some spans, if there is any, and if it is new."""
        if not spans:
            return
        key = (kind, call.name, callers, first)
        if key in self._found or len(self._found) >= self._limit:
            return
        places = Place.of(callers), None if first is None else Place.of(first)
        finding = self._found[key] = Finding(kind, call.name, AddrRange(*spans[0]), *places)
        if self._on_finding is not None:
            unseen(self._on_finding, finding)
