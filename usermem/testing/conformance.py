"""check_io: does an IO keep the contract of user memory? Asked of the reference model, call by call.

Whoever writes an IO of their own (over a debugger, a hypervisor, a network) gets the proof in three lines::

    def make():
        return MyIO(layout), layout.model()

    check_io(make)

Plain Python: needs neither hypothesis nor pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from attrs import frozen

from hostarch import AddrRange, AddrRangeSeq
from usermem.errors import FaultError
from usermem.memory_io import DEFAULT_OPTS, IO, IOOpts
from usermem.testing.model import ModelMemory
from usermem.testing.operations import (
    ALL,
    CompareAndSwapUint32,
    CopyIn,
    CopyInTo,
    CopyInVec,
    CopyOut,
    CopyOutFrom,
    CopyOutVec,
    CopyStringIn,
    LoadUint32,
    Operation,
    StreamError,
    SwapUint32,
    Temper,
    ZeroOut,
    ZeroOutVec,
    describe,
    outcome,
    pattern,
)

Make = Callable[[], tuple[IO, ModelMemory]]
"""Makes an IO, and a model with the same mappings. All their bytes are zero, or the same."""

_NEAR = 24
_BEFORE = (0, 1, 3, 7, 8)  # how far before an edge a call begins, and how long it is: it ends before, at or behind it
_LENGTHS = (0, 1, 7, 16)
_IGNORE = IOOpts(ignore_permissions=True)


@frozen
class _Case:
    """Calls, one after the other, which must give the same on the IO and on the model, and leave the same bytes."""

    rule: str
    calls: tuple[Operation, ...]


def check_io(make: Make) -> None:
    """Run the whole contract over what ``make`` makes, a fresh pair for each call.

    Raises AssertionError at the first call whose answer differs: it tells the rule, the call and both answers.
    """
    _, model = make()
    edges = model.edges()
    if not edges:
        raise ValueError("make: the model has nothing mapped, so there is nothing to check")
    for case in _cases(edges, model.arch.max_addr):
        io, model = make()
        # The edge the call is about, and a far one that it must leave alone.
        at = case.calls[0].at
        near = {min(edges, key=lambda edge: abs(edge - at)), max(edges, key=lambda edge: abs(edge - at))}
        for edge in near:
            _fill(io, model, edge)
        for call in case.calls:
            theirs, expected = outcome(call, io), outcome(call, model)
            if theirs != expected:
                raise AssertionError(f"{case.rule}\n  call      {call}\n  the IO    {theirs}\n  must give {expected}")
        for edge in near:
            seen, known = _bytes_near(io, edge), _bytes_near(model, edge)
            if seen != known:
                raise AssertionError(
                    f"{case.rule}\n  call      {case.calls[-1]}\n"
                    f"  left near {edge:#x} in the IO {seen}\n  must leave {known}"
                )


def _sides(at: int) -> list[tuple[int, int]]:
    """The bytes just before and from an edge on: on each side all or none can be accessed."""
    before = min(at, _NEAR)
    return [(at - before, before), (at, _NEAR)]


def _fill(io: IO, model: ModelMemory, at: int) -> None:
    """Put a pattern into the bytes around an edge that can be written, whatever the guest forbade."""
    for addr, n in _sides(at):
        for memory in (io, model):
            with suppress(FaultError):
                memory.copy_out(addr, bytes((addr + i) * 7 % 251 + 1 for i in range(n)), _IGNORE)


def _bytes_near(io: IO, at: int) -> str:
    """The bytes around an edge in hex, ``--`` for what cannot be read."""
    found = ""
    for addr, n in _sides(at):
        buffer = bytearray(n)
        try:
            there = io.copy_in(addr, buffer, _IGNORE)
        except FaultError as fault:
            there = fault.transferred
        found += buffer[:there].hex() + "--" * (n - there)
    return found


def _cases(edges: list[int], top: int) -> Iterator[_Case]:
    for edge in edges:
        yield _Case("a negative count is a ValueError", (ZeroOut(edge, -1),))
    for addr in (edge + k for edge in edges for k in range(-8, 5) if edge + k >= 0):
        yield from _atomics(addr)
    limits = [(addr, n) for addr in (0, top - 4, top, top + 1, 1 << 63, (1 << 64) - 1, 1 << 64, -1) for n in (0, 8)]
    for addr, n in [*limits, *((edge - k, n) for edge in edges for k in _BEFORE for n in _LENGTHS if edge >= k)]:
        for opts in (DEFAULT_OPTS, _IGNORE):
            yield from _copies(addr, n, opts)
        yield from _strings(addr, n)
        if 0 <= addr <= (1 << 64) - n:
            for ars in _ranges(addr, n):
                yield from _streams(ars)
                yield from _vectors(ars)


@frozen(repr=False)
class _ResumedCopyOut(CopyOut):
    """A copy out and, where it faults, another of the rest from there."""

    def run(self, io: IO) -> Any:
        try:
            return super().run(io)
        except FaultError as fault:
            moved = fault.transferred
            rest = CopyOut(self.addr + moved, self.src[moved:], self.opts)
            return describe(fault), "again from there", outcome(rest, io)


def _copies(addr: int, n: int, opts: IOOpts) -> Iterator[_Case]:
    rule = "a copy moves all, or says how far it got and why, and touches nothing behind"
    for call in (CopyIn(addr, n, opts), _ResumedCopyOut(addr, pattern(n), opts), ZeroOut(addr, n, opts)):
        yield _Case(rule, (call,))


def _strings(addr: int, n: int) -> Iterator[_Case]:
    """A string of n bytes whose NUL just fits or is missing, and limits around its end."""
    rule = "a string ends at its NUL, however near a fault, and is never read past its limit"
    for content in (pattern(n) + b"\0", pattern(n)):
        for maxlen in {n, n + 1, n + _NEAR}:
            yield _Case(rule, (CopyOut(addr, content, _IGNORE), CopyStringIn(addr, maxlen)))


def _ranges(addr: int, n: int) -> list[AddrRangeSeq]:
    """The span alone, in two halves, and behind a range of no bytes."""
    spans = [[(addr, n)], [(addr, n // 2), (addr + n // 2, n - n // 2)], [(addr, 0), (addr, n)]]
    return [AddrRangeSeq([AddrRange(start, start + length) for start, length in span]) for span in spans]


_TEMPERS = {
    "called at most once, with exactly the accessible prefix, and not for no bytes": ALL,
    "a stream that stops before the hole is no fault": Temper(5),
    "its own error passes through, the same object, with the count of what moved before": Temper(3, StreamError),
    "an error before any byte passes through without a count": Temper(0, StreamError),
    "nothing to give now is BlockingIOError": Temper(0, BlockingIOError),
    "would-block after progress is a short count": Temper(3, BlockingIOError),
}


def _streams(ars: AddrRangeSeq) -> Iterator[_Case]:
    for rule, temper in _TEMPERS.items():
        yield _Case(f"a reader: {rule}", (CopyOutFrom(ars, temper),))
        yield _Case(f"a writer: {rule}", (CopyInTo(ars, temper),))


def _vectors(ars: AddrRangeSeq) -> Iterator[_Case]:
    rule = "a vector moves the lesser of both sizes, range by range, each checked when it is reached"
    for n in {ars.num_bytes, ars.num_bytes + 1, ars.num_bytes // 2}:
        for call in (CopyInVec(ars, n), CopyOutVec(ars, pattern(n)), ZeroOutVec(ars, n)):
            yield _Case(rule, (call,))


def _atomics(addr: int) -> Iterator[_Case]:
    rule = "an atomic has its word whole, aligned where it must be, or faults at its address with nothing moved"
    yield _Case(rule, (LoadUint32(addr),))
    yield _Case(rule, (SwapUint32(addr, 7), LoadUint32(addr)))
    yield _Case(rule, (CompareAndSwapUint32(addr, 1, 2), LoadUint32(addr)))
    yield _Case(rule, (CompareAndSwapUint32(addr, None, 0xDEADBEEF), LoadUint32(addr)))
