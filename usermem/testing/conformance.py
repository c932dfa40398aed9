"""check_io: does an IO keep the contract of user memory? Asked of the reference model, call by call.

Whoever writes an IO of their own (over a debugger, a hypervisor, a network) gets the proof in three lines::

    layout = conformance_layout()
    check_io(lambda: (MyIO(layout), layout.model()))

Plain Python: needs neither hypothesis nor pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from attrs import evolve, frozen

from hostarch import AddrRange, AddrRangeSeq
from usermem.errors import FaultError
from usermem.memory_io import IO
from usermem.testing.model import ModelMemory
from usermem.testing.operations import (
    ALL,
    KINDS,
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
    Refused,
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
from usermem.testing.spans import NEAR, Span, all_spans, fills, spans_around

Make = Callable[[], tuple[IO, ModelMemory]]
"""Makes an IO, and a model with the same mappings. All their bytes are zero, or the same."""

_BEFORE = (0, 1, 3, 8)  # how far before an edge a call begins, and how long it is: it ends before, at or behind it
_LENGTHS = (0, 1, 8, 16)
_PIECE = 2 * NEAR
_EACH = 40  # after every so many calls on one memory, all of it is compared
_BLOCK = 500  # so many cases are made, and the plainest rule that one of them breaks is told
_APART = 20  # of a block, cases that are so far apart share a pair: neighbours are about one place


@frozen
class _Case:
    """Calls, one after the other, which must give the same on the IO and on the model, and leave the same bytes."""

    rule: str
    calls: tuple[Operation, ...]
    filled: bool = True


@frozen
class _Step:
    """One call, the rule that it must keep, and the spans that are compared after it."""

    rule: str
    call: Operation
    look: Sequence[Span] = ()


def check_io(make: Make, *, atomics: bool = True) -> None:
    """Run the whole contract over what ``make`` makes: some thousand calls for each edge.

    With ``atomics`` False the IO has none: it must refuse each with OSError (EOPNOTSUPP), and change nothing.

    What a layout does not have, cannot be asked: :func:`conformance_layout` has everything. Memory is compared page by
    page, so map few. An IO that has ``close`` is closed.

    Raises AssertionError at the first call whose answer differs or that leaves other bytes than it should: it names
    the rule, the call and both answers. Some calls share a fresh pair. Where one of them does wrong, each is made on a
    fresh pair of its own, the plainest first; if all are right there, those that share a pair are made again, and
    memory is compared after each.
    """
    _, model = make()
    edges = _edges(model)
    if not edges:
        raise ValueError("make: the model has nothing mapped, so there is nothing to check")
    spans = all_spans(model)
    around = {edge: spans_around(model, edge) for edge in edges}
    rule = "what was written is what is read, whatever the guest forbade"
    filled = {edge: [_Step(rule, call) for call in fills(around[edge])] for edge in edges}
    everywhere = [step for edge in edges for step in filled[edge]]
    if everywhere:  # something can be written
        _run(make, everywhere, spans)

    def alone(case: _Case) -> None:
        """Make a case's calls on a fresh pair, filled or not as the case says."""
        _run(make, [*(everywhere if case.filled else []), *(_Step(case.rule, call) for call in case.calls)], spans)

    def together(block: list[_Case]) -> None:
        """Make the calls of many cases on one fresh pair. What is around their edge is filled before each case."""
        steps = [*everywhere]
        for case in block:
            at = case.calls[0].at
            near = min(edges, key=lambda edge: abs(edge - at))
            steps += [*filled[near], *_later(case, around[near])]
        _run(make, steps, spans)

    cases = [case if atomics else _without_atomics(case) for case in _cases(edges, model)]
    for block in (cases[start : start + _BLOCK] for start in range(0, len(cases), _BLOCK)):
        try:
            for first in range(min(_APART, len(block))):
                shared = block[first::_APART]
                turn = first % len(shared)
                together(shared[turn:] + shared[:turn])  # each has its turn at memory that no other call has used
        except AssertionError:
            for case in block:
                alone(case)
            raise
        for case in block:
            if not case.filled:
                alone(case)
    # And many of them on one memory, which is filled by nothing else: nothing may depend on what was done before.
    steps = [step for case in cases[::7] for step in _later(case)]
    _run(make, [evolve(step, look=() if i % _EACH else spans) for i, step in enumerate(steps, 1)], spans)


def _later(case: _Case, look: Sequence[Span] = ()) -> list[_Step]:
    """A case's calls, made after others; the spans are compared after the last."""
    steps = [_Step(f"{case.rule} (after other calls)", call) for call in case.calls]
    return [*steps[:-1], evolve(steps[-1], look=look)]


def _run(make: Make, steps: list[_Step], spans: list[Span]) -> None:
    """Make the calls on a fresh pair, and compare the spans in the end.

    Raises AssertionError for the first call that did wrong, though it may be a later one that shows it.
    """
    io, model = make()
    made: list[_Step] = []
    try:
        for step in steps:
            made.append(step)
            _check_same(step, "the IO   ", outcome(step.call, io), outcome(step.call, model))
            _look_at(step.look, io, model, step)
        _look_at(spans, io, model, step)
    except AssertionError:
        _blame(make, made, spans)
        raise
    finally:
        _close(io)


def _blame(make: Make, steps: list[_Step], spans: list[Span]) -> None:
    """Make the calls again, and raise AssertionError at the first one that leaves other bytes than it should."""
    io, model = make()
    try:
        for step in steps:
            for memory in (io, model):
                outcome(step.call, memory)
            _look_at(spans, io, model, step)
    finally:
        _close(io)


def _check_same(step: _Step, what: str, found: object, expected: object) -> None:
    """Raise AssertionError if the answers differ, with both: of long ones what is around the first difference."""
    if found == expected:
        return
    texts = str(found), str(expected)
    at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    theirs, right = (f"…{text[at - 40 : at + 80]}…" if len(text) > 400 and at > 40 else text[:400] for text in texts)
    cause = found.error if isinstance(found, Raised) else None
    raise AssertionError(f"{step.rule}\n  call      {step.call}\n  {what} {theirs}\n  must give {right}") from cause


def _look_at(spans: Sequence[Span], io: IO, model: ModelMemory, step: _Step) -> None:
    """Compare the spans that can be read."""
    for span in spans:
        if not span.readable:
            continue
        call = CopyIn(span.addr, span.length, ignore_permissions=True)
        found, expected = outcome(call, io), (span.length, "read", model.content(span.addr, span.length).hex())
        if found != expected and span.length > _PIECE:
            end = span.addr + span.length
            pieces = [evolve(span, addr=at, length=min(_PIECE, end - at)) for at in range(span.addr, end, _PIECE)]
            _look_at(pieces, io, model, step)
            step = evolve(step, call=call)  # each piece is right, so it is the call that looks which is wrong
        _check_same(step, f"from {span.addr:#x} on the IO gives", found, expected)


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


def _without_atomics(case: _Case) -> _Case:
    """The case for an IO that refuses atomic calls."""
    if not any(isinstance(call, KINDS["atomics"]) for call in case.calls):
        return case
    return evolve(case, rule="an IO without atomics refuses them", calls=tuple(map(Refused, case.calls)))


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
        for maxlen in (n, n + 1, n + NEAR):
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
