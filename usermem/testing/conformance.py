"""check_io: does an IO keep the contract of user memory? Asked of the reference model, call by call.

Whoever writes an IO of their own (over a debugger, a hypervisor, a network) gets the proof in three lines::

    layout = conformance_layout()
    check_io(lambda: (MyIO(layout), layout.model()))

Plain Python: needs neither hypothesis nor pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from attrs import evolve, frozen

from hostarch import READ, WRITE, AddrRange, AddrRangeSeq
from usermem.errors import FaultError
from usermem.memory_io import IO
from usermem.testing.compare import check_memory
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
    Raised,
    StreamError,
    StreamOSError,
    SwapUint32,
    Temper,
    ZeroOut,
    ZeroOutVec,
    outcome,
    pattern,
    stream_fault,
    stream_host_fault,
)

Make = Callable[[], tuple[IO, ModelMemory]]
"""Makes an IO, and a model with the same mappings. All their bytes are zero, or the same."""

_NEAR = 24
_BEFORE = (0, 1, 3, 8)  # how far before an edge a call begins, and how long it is: it ends before, at or behind it
_LENGTHS = (0, 1, 8, 16)
_EACH = 40  # after every so many calls all memory is compared


@frozen
class _Case:
    """Calls, one after the other, which must give the same on the IO and on the model, and leave the same bytes."""

    rule: str
    calls: tuple[Operation, ...]
    filled: bool = True


def check_io(make: Make) -> None:
    """Run the whole contract over what ``make`` makes: a fresh pair for each rule and place, some ten thousand.

    What a layout does not have, cannot be asked: :func:`conformance_layout` has everything. Memory is compared page by
    page, so map few. An IO that has ``close`` is closed.

    Raises AssertionError at the first call whose answer differs: it tells the rule, the call and both answers.
    """
    _, model = make()
    edges = _edges(model)
    if not edges:
        raise ValueError("make: the model has nothing mapped, so there is nothing to check")
    around = {edge: _spans_around(model, edge) for edge in edges}
    everywhere = [span for edge in edges for span in around[edge]]
    io, model = make()
    _fill(io, model, everywhere)
    _check_bytes(io, model, everywhere, "what was written is what is read, whatever the guest forbade", "copy_in")
    _close(io)
    cases = list(_cases(edges, model))
    for number, case in enumerate(cases):
        io, model = make()
        # The bytes around the edge that the call is about, and around a far one that it must leave alone.
        at = case.calls[0].at
        near = around[min(edges, key=lambda edge: abs(edge - at))] + around[max(edges, key=lambda edge: abs(edge - at))]
        if case.filled:
            _fill(io, model, near)
        _run(case, io, model)
        _check_bytes(io, model, near, case.rule, case.calls[-1])
        if number % _EACH == _EACH - 1:
            _check_all(case, io, model)
        _close(io)
    # And many of them on one memory: nothing may depend on what was done before.
    io, model = make()
    for number, case in enumerate(cases[::7]):
        _run(evolve(case, rule=f"{case.rule} (after other calls)"), io, model)
        if number % _EACH == _EACH - 1:
            _check_all(case, io, model)
    _close(io)


def _run(case: _Case, io: IO, model: ModelMemory) -> None:
    for call in case.calls:
        _check_same(case.rule, call, "the IO   ", outcome(call, io), outcome(call, model))


def _check_same(rule: str, call: object, what: str, found: object, expected: object) -> None:
    """Raise AssertionError if the answers differ, with both: of long ones what is around the first difference."""
    if found == expected:
        return
    texts = str(found), str(expected)
    at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    theirs, right = (f"…{text[at - 40 : at + 80]}…" if len(text) > 400 and at > 40 else text[:400] for text in texts)
    cause = found.error if isinstance(found, Raised) else None
    raise AssertionError(f"{rule}\n  call      {call}\n  {what} {theirs}\n  must give {right}") from cause


def _check_all(case: _Case, io: IO, model: ModelMemory) -> None:
    try:
        check_memory(io, model)
    except AssertionError as exc:
        _, _, found, expected = str(exc).splitlines()
        raise AssertionError(f"{case.rule}\n  call      {case.calls[-1]}\n{found}\n{expected}") from exc


def _close(io: IO) -> None:
    close = getattr(io, "close", None)
    if close is not None:
        close()


def _edges(model: ModelMemory) -> list[int]:
    """Where rights change, and the first and last page end inside what is mapped."""
    edges = model.edges()
    page = model.arch.page_size
    inner = [end for start, length in model.spans() if (end := start + length) not in edges and length == page]
    return sorted({*edges, *inner[:1], *inner[-1:]})


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
        readable, writable = (model.reason(addr, access, ignore_permissions=True) is None for access in (READ, WRITE))
        if spans and (spans[-1].readable, spans[-1].writable) == (readable, writable):
            spans[-1] = evolve(spans[-1], length=spans[-1].length + 1)
        else:
            spans.append(_Span(addr, 1, readable, writable))
    return spans


def _fill(io: IO, model: ModelMemory, spans: list[_Span]) -> None:
    """Put a pattern without a 0 into all that can be written. If that fails, it is missing when it is read."""
    for span in spans:
        if span.writable:
            addrs = range(span.addr, span.addr + span.length)
            data = bytes(addr * 7 % 251 + 1 for addr in addrs)
            model.bytes.update(zip(addrs, data, strict=True))
            outcome(CopyOut(span.addr, data, ignore_permissions=True), io)


def _check_bytes(io: IO, model: ModelMemory, spans: list[_Span], rule: str, call: object) -> None:
    """Raise AssertionError if bytes that can be read differ from the model's."""
    for span in spans:
        if span.readable:
            known = model.content(span.addr, span.length)
            found = outcome(CopyIn(span.addr, span.length, ignore_permissions=True), io)
            _check_same(rule, call, f"from {span.addr:#x} on the IO gives", found, (span.length, "read", known.hex()))


def _cases(edges: list[int], model: ModelMemory) -> Iterator[_Case]:
    """From the plain to the involved, so that the rule which is told is the one that is broken."""
    top = model.arch.max_addr
    limits = [(addr, n) for addr in (0, top - 4, top, top + 1, 1 << 63, (1 << 64) - 1, 1 << 64, -1) for n in (0, 8)]
    if model.arch.ignores_top_byte:
        limits += [(edge - 4 | 0x5A << 56, 8) for edge in edges]
    places = [*((edge - k, n) for edge in edges for k in _BEFORE for n in _LENGTHS if edge >= k), *limits]
    spans = [ars for addr, n in places if 0 <= addr <= (1 << 64) - n for ars in _ranges(addr, n)]
    spans += [AddrRangeSeq(), *_ranges_apart(edges)]
    for addr, n in places:
        for name, call in _copies(addr, n).items():
            if n:
                rule = f"{name} moves all, or says how much, where and why it stopped; no more changes"
                yield _Case(rule, (call, _Resumed(call)))
            else:
                yield _Case(f"{name} of no bytes needs no mapping, and faults outside user space", (call,))
    for edge in edges:
        yield _Case("zero_out moves all, or says how much, whatever it is asked for", (ZeroOut(edge, 1 << 62),))
    for addr, n in places:
        for call in _copies(addr, n).values():
            yield _Case("ignore_permissions ignores what the guest forbade, and nothing else", (_ignoring(call),))
    for edge in edges:
        yield _Case("a negative count is a ValueError", (ZeroOut(edge, -1), CopyStringIn(edge, -1)))
    for ars in spans:
        yield from _streams(ars)
    for ars in spans:
        for who, stream in ("reader", CopyOutFrom(ars)), ("writer", CopyInTo(ars)):
            yield _Case(f"a {who}: permissions are ignored if that is asked for", (_ignoring(stream),))
    for edge in edges:
        yield from _long_copies(max(edge - 8, 0), 2 * model.arch.page_size + 16)
    words = [edge + k for edge in edges for k in range(-8, 5) if edge + k >= 0]
    for addr in [*words, *(addr for addr, n in limits if n)]:
        yield from _atomics(addr)
    for edge in edges:
        for call in (SwapUint32(edge, 7), CopyInTo(_ranges(edge, 8)[0]), CopyStringIn(edge, 8)):
            yield _Case("a page may be used for the first time by any call", (call,), filled=False)
    for addr, n in places:
        yield from _strings(addr, n)
    for edge in edges:
        yield from _long_strings(max(edge - 8, 0), model.arch.page_size + 100)
    for ars in spans:
        yield from _vectors(ars)


@frozen(repr=False)
class _Resumed(Operation):
    """A call and, where it faults, the rest of it from there."""

    call: Operation

    def run(self, io: IO) -> Any:
        try:
            return self.call.run(io)
        except FaultError as fault:
            rest = _after(self.call, fault.transferred)
            return outcome(self.call, io), "again from there", outcome(rest, io)

    @property
    def at(self) -> int:
        return self.call.at

    def __repr__(self) -> str:
        return f"{self.call}, again, and then from where it stopped"


def _after(call: Operation, moved: int) -> Operation:
    """What is left of a copy."""
    if isinstance(call, CopyOut):
        return evolve(call, addr=call.addr + moved, src=call.src[moved:])
    if isinstance(call, CopyIn | ZeroOut):
        return evolve(call, addr=call.addr + moved, n=call.n - moved)
    raise TypeError(f"{call} cannot be resumed")


def _copies(addr: int, n: int) -> dict[str, Operation]:
    return {"copy_in": CopyIn(addr, n), "copy_out": CopyOut(addr, pattern(n)), "zero_out": ZeroOut(addr, n)}


def _ignoring(call: Operation) -> Operation:
    return evolve(call, ignore_permissions=True)


def _long_copies(addr: int, n: int) -> Iterator[_Case]:
    """Over page ends inside a mapping. The copy in shows what was left in all of it."""
    whole = _ranges(addr, n)[0]
    for call in (CopyOut(addr, pattern(n)), CopyIn(addr, n), CopyOutFrom(whole), CopyInTo(whole), ZeroOut(addr, n)):
        name = type(call).__name__
        yield _Case(f"long calls go over page ends: {name}", (call, CopyIn(addr, n, ignore_permissions=True)))


def _strings(addr: int, n: int) -> Iterator[_Case]:
    """A string of n bytes whose NUL just fits or is missing, and limits around its end."""
    rule = "a string ends at its NUL, however near a fault, and is never read past its limit"
    for content in (pattern(n) + b"\0", pattern(n)):
        stored = CopyOut(addr, content, ignore_permissions=True)
        for maxlen in (n, n + 1, n + _NEAR):
            yield _Case(rule, (stored, CopyStringIn(addr, maxlen)))
        yield _Case(f"{rule} (permissions ignored)", (stored, CopyStringIn(addr, n + 1, ignore_permissions=True)))


def _long_strings(addr: int, n: int) -> Iterator[_Case]:
    calls = CopyOut(addr, pattern(n) + b"\0"), CopyStringIn(addr, n + 9)
    yield _Case("a string may be longer than a page", tuple(map(_ignoring, calls)))


def _ranges(addr: int, n: int) -> list[AddrRangeSeq]:
    """The span alone, in two halves, and behind a range of no bytes."""
    spans = [[(addr, n)], [(addr, n // 2), (addr + n // 2, n - n // 2)], [(addr, 0), (addr, n)]]
    return [_seq(*span) for span in spans]


def _seq(*pairs: tuple[int, int]) -> AddrRangeSeq:
    return AddrRangeSeq([AddrRange(start, start + length) for start, length in pairs])


def _ranges_apart(edges: list[int]) -> Iterator[AddrRangeSeq]:
    """Ranges at two edges: the far one first, a bad one between good ones, overlapping, many, cut."""
    neighbours = list(pairwise(edges))
    for a, b in [*neighbours, *((b, a) for a, b in neighbours)]:
        if min(a, b) < 8:
            continue
        yield _seq((b - 8, 8), (a - 8, 8))
        yield _seq((a, 4), (b, 4), (a + 4, 4))
        yield _seq((a - 8, 8), (a - 4, 4), (b - 8, 4), (b - 4, 2), (b - 2, 2))
        yield _seq((a - 8, 6), (b - 8, 6), (a, 8)).take_first(13).drop_first(3)


_TEMPERS = {
    "called at most once, with exactly the accessible prefix, and not for no bytes": (ALL, Temper(message=True)),
    "a stream that stops before the hole is no fault": (Temper(5), Temper(0)),
    "its own error passes through, the same object, with the count of what moved before": (
        Temper(3, StreamError),
        Temper(3, StreamOSError),
        Temper(3, stream_fault),
        Temper(2, stream_host_fault),
        Temper(0, KeyboardInterrupt),
    ),
    "an error before any byte passes through without a count": (Temper(0, StreamError), Temper(0, stream_fault)),
    "nothing to give now is BlockingIOError": (Temper(0, BlockingIOError),),
    "would-block after progress is a short count": (Temper(3, BlockingIOError),),
}


def _streams(ars: AddrRangeSeq) -> Iterator[_Case]:
    for rule, tempers in _TEMPERS.items():
        for temper in tempers:
            yield _Case(f"a reader: {rule}", (CopyOutFrom(ars, temper),))
            yield _Case(f"a writer: {rule}", (CopyInTo(ars, temper),))


def _vectors(ars: AddrRangeSeq) -> Iterator[_Case]:
    rule = "a vector moves the lesser of both sizes, range by range, each checked when it is reached"
    total = ars.num_bytes
    for n in {total, total + 1, total // 2}:
        for call in (CopyInVec(ars, n), CopyOutVec(ars, pattern(n)), ZeroOutVec(ars, n)):
            yield _Case(rule, (call,))
    for call in CopyInVec(ars, total), CopyOutVec(ars, pattern(total)):
        yield _Case(f"{rule} (permissions ignored)", (_ignoring(call),))


def _atomics(addr: int) -> Iterator[_Case]:
    """Each needs its word whole, aligned where it must be, with the rights it uses, or faults at its address."""
    load, swap = LoadUint32(addr), SwapUint32(addr, 0xFEDCBA98)
    cases = [
        _Case("load_uint32 reads a whole, aligned word, and needs no right to write", (load,)),
        _Case("swap_uint32 stores the new value and returns the old", (swap, load)),
    ]
    for compare in CompareAndSwapUint32(addr, 1, 2), CompareAndSwapUint32(addr, None, 0xDEADBEEF):
        rule = "compare_and_swap_uint32 stores iff the old value is there, and returns what was there"
        cases.append(_Case(rule, (compare, load)))
    yield from cases
    for case in cases:
        yield _Case(f"{case.rule} (permissions ignored)", tuple(map(_ignoring, case.calls)))
