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
from safemem import BlockSeq, ReaderFunc, WriterFunc
from usermem.errors import FaultError
from usermem.memory_io import DEFAULT_OPTS, IO, IOOpts
from usermem.testing.model import ModelMemory

Make = Callable[[], tuple[IO, ModelMemory]]
"""Makes an IO, and a model with the same mappings. All their bytes are zero, or the same."""

_NEAR = 24
_LENGTHS = (0, 1, 7, 16)
_IGNORE = IOOpts(ignore_permissions=True)
_DATA = bytes(range(65, 65 + 26)) * 4


class OwnError(Exception):
    """What a reader or writer of the suite raises."""


@frozen
class _Case:
    """One call, which must give the same on the IO and on the model, and leave the same bytes in both."""

    rule: str
    call: str
    do: Callable[[IO], Any]
    addr: int


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
        near = {min(edges, key=lambda at: abs(at - case.addr)), max(edges, key=lambda at: abs(at - case.addr))}
        for at in near:
            _fill(io, model, at)
        theirs, expected = _outcome(case, io), _outcome(case, model)
        if theirs != expected:
            raise AssertionError(f"{case.rule}\n  call      {case.call}\n  the IO    {theirs}\n  must give {expected}")
        for at in near:
            seen, known = _bytes_near(io, at), _bytes_near(model, at)
            if seen != known:
                raise AssertionError(
                    f"{case.rule}\n  call      {case.call}\n  left near {at:#x} in the IO {seen}\n  must leave {known}"
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


def _outcome(case: _Case, io: IO) -> Any:
    """What a call gave, so that it can be compared and read."""
    try:
        return case.do(io)
    except FaultError as fault:
        return _fault(fault)
    except (ValueError, TypeError) as exc:
        return type(exc).__name__
    except Exception as exc:  # whatever else an IO raises is an answer too, and a wrong one
        return f"{type(exc).__name__}: {exc}"


def _fault(fault: FaultError) -> str:
    return f"FaultError at {fault.address:#x} after {fault.transferred} bytes ({fault.access}, {fault.reason.value})"


def _cases(edges: list[int], top: int) -> Iterator[_Case]:
    for edge in edges:
        yield _negative_count(edge)
    for addr in (edge + k for edge in edges for k in range(-8, 5) if edge + k >= 0):
        yield from _atomics(addr)
    limits = [(addr, n) for addr in (0, top - 4, top, top + 1, 1 << 63, (1 << 64) - 1, 1 << 64, -1) for n in (0, 8)]
    for addr, n in [*limits, *((edge - k, n) for edge in edges for k in range(9) for n in _LENGTHS if edge >= k)]:
        for opts in (DEFAULT_OPTS, _IGNORE):
            yield from _copies(addr, n, opts)
        yield from _streams(addr, n)


def _negative_count(addr: int) -> _Case:
    def do(io: IO) -> Any:
        return io.zero_out(addr, -1)

    return _Case("a negative count is a ValueError", f"zero_out({addr:#x}, -1)", do, addr)


def _copies(addr: int, n: int, opts: IOOpts) -> Iterator[_Case]:
    how = ", ignoring permissions" if opts.ignore_permissions else ""
    rule = "a copy moves all, or says how far it got and why, and touches nothing behind"
    data = _DATA[:n]

    def copy_in(io: IO) -> Any:
        dst = bytearray(b"\xee" * n)
        try:
            result: Any = io.copy_in(addr, dst, opts)
        except FaultError as fault:
            result = _fault(fault)
        return result, dst.hex()

    def resumed(io: IO) -> Any:
        try:
            return io.copy_out(addr, data, opts)
        except FaultError as fault:
            moved = fault.transferred
            try:
                again: Any = io.copy_out(addr + moved, data[moved:], opts)
            except FaultError as second:
                again = _fault(second)
            return _fault(fault), "again from there", again

    def zero_out(io: IO) -> Any:
        return io.zero_out(addr, n, opts)

    yield _Case(rule, f"copy_in({addr:#x}, {n} bytes{how})", copy_in, addr)
    yield _Case(rule, f"copy_out({addr:#x}, {n} bytes{how}), then again from where it stopped", resumed, addr)
    yield _Case(rule, f"zero_out({addr:#x}, {n}{how})", zero_out, addr)


def _streams(addr: int, n: int) -> Iterator[_Case]:
    """Readers and writers of every temper, over the span alone and after a range of no bytes."""
    for ranges in ([(addr, n)], [(addr, n // 2), (addr + n // 2, n - n // 2)], [(addr, 0), (addr, n)]):
        if any(not 0 <= start <= (1 << 64) - n for start, _ in ranges):
            continue
        ars = AddrRangeSeq([AddrRange(start, start + length) for start, length in ranges])
        for temper, rule in _TEMPERS.items():
            yield _Case(rule, f"copy_out_from({ars}, a reader that {temper})", _reading(ars, temper), addr)
            yield _Case(rule, f"copy_in_to({ars}, a writer that {temper})", _writing(ars, temper), addr)


_TEMPERS = {
    "takes all": "called at most once, with exactly the accessible prefix, and not for no bytes",
    "stops short": "a stream that stops before the hole is no fault",
    "fails after 3 bytes": "its own error passes through, the same object, with the count of what moved before",
    "would block": "nothing to give now is BlockingIOError",
    "would block after 3 bytes": "would-block after progress is a short count",
}


def _temper(temper: str, total: int) -> tuple[int, BaseException | None]:
    """How many bytes to move, and what to raise then."""
    if temper == "takes all":
        return total, None
    if temper == "stops short":
        return total // 2, None
    error: BaseException = OwnError() if temper.startswith("fails") else BlockingIOError()
    moved = min(3, total) if temper.endswith("3 bytes") else 0
    if moved:
        error.transferred = moved  # type: ignore[attr-defined]
    return moved, error


def _streaming(call: Callable[[], int], raised: list[BaseException], seen: list[Any]) -> Any:
    try:
        result: Any = call()
    except FaultError as fault:
        result = _fault(fault)
    except (OwnError, BlockingIOError) as exc:
        same = "the same" if raised and exc is raised[-1] else "another"
        result = f"{same} {type(exc).__name__} after {getattr(exc, 'transferred', 0)} bytes"
    return result, "given", seen


def _reading(ars: AddrRangeSeq, temper: str) -> Callable[[IO], Any]:
    def do(io: IO) -> Any:
        raised: list[BaseException] = []
        seen: list[Any] = []

        def read(dsts: BlockSeq) -> int:
            n, error = _temper(temper, dsts.num_bytes)
            seen.append(dsts.num_bytes)
            left = memoryview(_DATA)[:n]
            for block in dsts:
                part = left[: len(block)]
                block.view()[: len(part)] = part
                left = left[len(part) :]
            if error is not None:
                raised.append(error)
                raise error
            return n

        return _streaming(lambda: io.copy_out_from(ars, ReaderFunc(read)), raised, seen)

    return do


def _writing(ars: AddrRangeSeq, temper: str) -> Callable[[IO], Any]:
    def do(io: IO) -> Any:
        raised: list[BaseException] = []
        seen: list[Any] = []

        def write(srcs: BlockSeq) -> int:
            n, error = _temper(temper, srcs.num_bytes)
            seen.append((srcs.num_bytes, srcs.tobytes().hex()))
            if error is not None:
                raised.append(error)
                raise error
            return n

        return _streaming(lambda: io.copy_in_to(ars, WriterFunc(write)), raised, seen)

    return do


def _atomics(addr: int) -> Iterator[_Case]:
    rule = "an atomic has its word whole, aligned where it must be, or faults at its address with nothing moved"
    here = f"{addr:#x}"

    def found(io: IO) -> Any:
        try:
            value = io.load_uint32(addr)
        except FaultError as fault:
            return _fault(fault)
        return value, io.compare_and_swap_uint32(addr, value, 0xDEADBEEF), io.load_uint32(addr)

    yield _Case(rule, f"load_uint32({here})", lambda io: io.load_uint32(addr), addr)
    yield _Case(rule, f"swap_uint32({here}, 7)", lambda io: io.swap_uint32(addr, 7), addr)
    yield _Case(
        rule, f"compare_and_swap_uint32({here}, another value)", lambda io: io.compare_and_swap_uint32(addr, 1, 2), addr
    )
    yield _Case(rule, f"compare_and_swap_uint32({here}, what is there)", found, addr)
