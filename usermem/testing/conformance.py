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

from attrs import evolve, frozen

from hostarch import READ, WRITE, AddrRange, AddrRangeSeq
from usermem.errors import FaultError
from usermem.memory_io import IO, IOOpts
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
_BEFORE = (0, 1, 3, 8)  # how far before an edge a call begins, and how long it is: it ends before, at or behind it
_LENGTHS = (0, 1, 8, 16)
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
    around = {edge: _spans_around(model, edge) for edge in edges}
    io, model = make()
    for edge in edges:
        _fill(io, model, around[edge])
        _check_bytes(io, model, around[edge], "what was written is what is read, whatever the guest forbade", "copy_in")
    for case in _cases(edges, model.arch.max_addr):
        io, model = make()
        # The bytes around the edge that the call is about, and around a far one that it must leave alone.
        at = case.calls[0].at
        near = around[min(edges, key=lambda edge: abs(edge - at))] + around[max(edges, key=lambda edge: abs(edge - at))]
        _fill(io, model, near)
        for call in case.calls:
            theirs, expected = outcome(call, io), outcome(call, model)
            if theirs != expected:
                raise AssertionError(f"{case.rule}\n  call      {call}\n  the IO    {theirs}\n  must give {expected}")
        _check_bytes(io, model, near, case.rule, case.calls[-1])


@frozen
class _Span:
    """Bytes of which all can be read or none, and written or not, whatever the guest forbade."""

    addr: int
    length: int
    readable: bool
    writable: bool


def _spans_around(model: ModelMemory, edge: int) -> list[_Span]:
    """The bytes shortly before and behind an edge."""
    spans: list[_Span] = []
    for addr in range(max(edge - _NEAR, 0), edge + _NEAR):
        readable, writable = (model.reason(addr, access, _IGNORE) is None for access in (READ, WRITE))
        if spans and (spans[-1].readable, spans[-1].writable) == (readable, writable):
            spans[-1] = evolve(spans[-1], length=spans[-1].length + 1)
        else:
            spans.append(_Span(addr, 1, readable, writable))
    return spans


def _fill(io: IO, model: ModelMemory, spans: list[_Span]) -> None:
    """Put a pattern without a 0 into all that can be written."""
    for span in spans:
        if span.writable:
            addrs = range(span.addr, span.addr + span.length)
            data = bytes(addr * 7 % 251 + 1 for addr in addrs)
            model.bytes.update(zip(addrs, data, strict=True))
            with suppress(FaultError):  # if it cannot be written, it will be missing when it is read
                io.copy_out(span.addr, data, _IGNORE)


def _check_bytes(io: IO, model: ModelMemory, spans: list[_Span], rule: str, call: object) -> None:
    """Raise AssertionError if bytes that can be read differ from the model's."""
    for span in spans:
        if not span.readable:
            continue
        found = bytearray(span.length)
        try:
            n = io.copy_in(span.addr, found, _IGNORE)
        except FaultError as fault:
            n = fault.transferred
        known = model.content(span.addr, span.length)
        if found[:n] != known:
            raise AssertionError(
                f"{rule}\n  call      {call}\n  from {span.addr:#x} on the IO holds {found[:n].hex()}\n"
                f"  and must hold {known.hex()}"
            )


def _cases(edges: list[int], top: int) -> Iterator[_Case]:
    """From the plain to the involved, so that the rule which is told is the one that is broken."""
    limits = [(addr, n) for addr in (0, top - 4, top, top + 1, 1 << 63, (1 << 64) - 1, 1 << 64, -1) for n in (0, 8)]
    places = [*((edge - k, n) for edge in edges for k in _BEFORE for n in _LENGTHS if edge >= k), *limits]
    spans = [ars for addr, n in places if 0 <= addr <= (1 << 64) - n for ars in _ranges(addr, n)]
    for addr, n in places:
        yield from _copies(addr, n)
    for addr, n in places:
        yield from _copies_ignoring_permissions(addr, n)
    for edge in edges:
        yield _Case("a negative count is a ValueError", (ZeroOut(edge, -1),))
    for ars in spans:
        yield from _streams(ars)
    for addr in (edge + k for edge in edges for k in range(-8, 5) if edge + k >= 0):
        yield from _atomics(addr)
    for addr, n in places:
        yield from _strings(addr, n)
    for ars in spans:
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


def _copies(addr: int, n: int) -> Iterator[_Case]:
    for name, call in {
        "copy_in": CopyIn(addr, n),
        "copy_out": _ResumedCopyOut(addr, pattern(n)),
        "zero_out": ZeroOut(addr, n),
    }.items():
        if n:
            yield _Case(f"{name} moves all, or says how much, where and why it stopped; no more changes", (call,))
        else:
            yield _Case(f"{name} of no bytes needs no mapping, and faults outside user space", (call,))


def _copies_ignoring_permissions(addr: int, n: int) -> Iterator[_Case]:
    for call in (CopyIn(addr, n, _IGNORE), CopyOut(addr, pattern(n), _IGNORE), ZeroOut(addr, n, _IGNORE)):
        yield _Case("ignore_permissions ignores what the guest forbade, and nothing else", (call,))


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
    """Each needs its word whole, aligned where it must be, with the rights it uses, or faults at its address."""
    load = LoadUint32(addr)
    yield _Case("load_uint32 reads a whole, aligned word, and needs no right to write", (load,))
    yield _Case("swap_uint32 stores the new value and returns the old", (SwapUint32(addr, 7), load))
    for old, new in ((1, 2), (None, 0xDEADBEEF)):
        yield _Case(
            "compare_and_swap_uint32 stores iff the old value is there, and returns what was there",
            (CompareAndSwapUint32(addr, old, new), load),
        )
