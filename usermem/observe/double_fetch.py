"""DoubleFetchDetector: what a handler of a system call does to user memory that it should not do.

Between two fetches of a byte another thread of the guest may change it: a handler that checks what it fetched first
and uses what it fetched then has a time-of-check-to-time-of-use bug (Linux: CVE-2016-6480, CVE-2016-6516).

Source: Jurczyk and Coldwind, "Identifying and Exploiting Windows Kernel Race Conditions via Memory Access Patterns"
(2013), which found such bugs by the same rule: one system call, one byte, two fetches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

from attrs import define, frozen

from hostarch import AddrRange, AddrRangeSeq
from safemem.buffers import check_count, check_positive
from usermem.errors import FaultError
from usermem.memory_io import IO
from usermem.observe.access import FETCHES, Access
from usermem.observe.fetched import Fetched, Interval, fetched_spans
from usermem.observe.observed import ObservedIO, memory_of, unseen
from usermem.observe.place import Callers, Place, here
from usermem.observe.poison import find_poison, poisoned
from usermem.observe.system_call import CURRENT, SystemCall
from usermem.scan import SCAN

_PIECE: Final = 1 << 20


class FindingKind(StrEnum):
    """What a handler did."""

    DOUBLE_FETCH = "double fetch"
    LATE_FETCH = "fetch after the visible effect"
    STRAY_WRITE = "write to what was not asked for"
    LEAK = "uninitialised bytes written to the guest"


@frozen
class Finding:
    """What was found, in which system call, about which bytes, where in the handler's code.

    ``first`` is the place of the first fetch, or of the effect that a late fetch came after; None for the other kinds.
    """

    kind: FindingKind
    call: str
    range: AddrRange
    place: Place
    first: Place | None = None

    def __str__(self) -> str:
        lines = [f"{self.call}: {self.kind.value}, {self.range.length} bytes at {self.range.start:#x}"]
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


class DoubleFetchDetector(ObservedIO):
    """An IO over another one that looks for four kinds of bugs while a system call runs; see :class:`FindingKind`.

    ``with detector.call("readv"):`` bounds a call; what is accessed outside of any is not looked at. Each bug counts
    once, by its kind, its call and its places: ``findings`` are the first ``limit``, and ``on_finding`` gets each as it
    is found; what that raises comes out of the access.

    - A byte is **fetched** when copy_in or copy_in_to has moved it; one access that has a byte twice fetches it once.
      What copy_string_in and its kin read behind the end of a string, or of a table of pointers, is not.
      Atomics are no fetches: a futex word is there to be read again, since it is compared and changed at once.
    - The **visible effect** is the first write to the guest's memory (a compare-and-swap counts, stored or not), or
      :meth:`effect`. A handler that fetches after it can no longer fail as if nothing had happened.
    - Writes are **stray** outside the ``writes`` of the call, if it has them.
    - A **leak** is four bytes or more of :meth:`buffer` that were never stored, and are written to the guest.

    At most 4,096 separate intervals of a call are remembered.
    """

    def __init__(self, io: IO, *, limit: int = 100, on_finding: Callable[[Finding], object] | None = None) -> None:
        """Raises ValueError if limit < 1."""
        super().__init__(io)
        self._limit = check_positive(limit, "limit")
        self._found: dict[tuple[object, ...], Finding] = {}
        self._on_finding = on_finding
        self._poisoned = False

    @property
    def findings(self) -> list[Finding]:
        """What was found, the first first."""
        return list(self._found.values())

    @contextmanager
    def allow_refetch(self, ranges: AddrRangeSeq | None = None) -> Iterator[None]:
        """Let the current call fetch again, inside the ``with``, what lies in ranges (None: anything).

        For a handler that compares, or does not trust, what it fetches then. Nothing happens outside of any call.
        """
        call = CURRENT.get()
        if call is None:
            yield
            return
        state: _State = self._state(call)
        before = state.allowed, state.any_allowed
        state.allowed, state.any_allowed = ranges, ranges is None
        try:
            yield
        finally:
            state.allowed, state.any_allowed = before

    def effect(self) -> None:
        """Note that the current call has a visible effect now: a message is sent, a file written, a task made."""
        call = CURRENT.get()
        if call is not None:
            state: _State = self._state(call)
            state.effect = state.effect or here(1)

    def buffer(self, n: int) -> bytearray:
        """A buffer of n bytes for a handler to fill and write to the guest. What it does not fill is found then.

        Raises ValueError if n < 0.
        """
        self._poisoned = True
        return poisoned(check_count(n, "n"))

    def _new_state(self) -> _State:
        return _State(Fetched())

    def _after(self, access: Access) -> None:
        call = CURRENT.get()
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
            again = state.fetched.add_all(spans, place)
            if again:
                self._refetched(call, state, again, place)
        elif access.access.write:
            if call.writes is not None:
                self._find(call, FindingKind.STRAY_WRITE, _outside(spans, [call.writes]), place)
            if self._poisoned and access.call.startswith("copy_out"):
                self._find(call, FindingKind.LEAK, self._leaks(spans), place)
            state.effect = state.effect or place

    def _refetched(self, call: SystemCall, state: _State, again: list[Interval], place: Callers) -> None:
        """Look whether bytes that were fetched before may be fetched again."""
        if not state.any_allowed and call.refetches is not True:
            allowed = [ars for ars in (call.refetches, state.allowed) if ars]
            for start, end, first in again:
                self._find(call, FindingKind.DOUBLE_FETCH, _outside([(start, end)], allowed), place, first)

    def _leaks(self, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
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
                if (run := find_poison(data)) is not None:
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
        key = (kind, call.name, callers, first)
        if not spans or key in self._found or len(self._found) >= self._limit:
            return
        places = Place(callers), None if first is None else Place(first)
        finding = self._found[key] = Finding(kind, call.name, AddrRange(*spans[0]), *places)
        if self._on_finding is not None:
            unseen(self._on_finding, finding)


def _outside(spans: list[tuple[int, int]], allowed: list[AddrRangeSeq]) -> list[tuple[int, int]]:
    """The parts of [start, end) spans that lie in none of the ranges."""
    holes = sorted(pair for ars in allowed for pair in ars.pairs())
    found = []
    for start, end in spans:
        for addr, length in holes:
            if start < addr:
                found.append((start, min(end, addr)))
            start = max(start, addr + length)
            if start >= end:
                break
        if start < end:
            found.append((start, end))
    return found
