"""check_reader and check_writer: does a Reader or Writer keep its contract (:mod:`safemem.protocols`)?

They drive it with sequences of every shape and look at each byte. Plain Python, no pytest. Where the host can copy
memory that faults (Linux), some blocks fault too: what a fault kept from its place must not be lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import accumulate, chain, cycle, islice, repeat

from attrs import frozen

from safemem import Block, BlockSeq, HostFaultError, Reader, Writer, copy
from safemem.protocols import refuse_messages
from usermem.testing.faulty_memory import FaultyMemory
from usermem.testing.operations import pattern

_GUARD = b"\xee"
_PATIENCE = 2.0  # seconds to wait for a stream that would block
_SMALL_CALLS = 300  # then large ones, so that a long stream does not take for ever


@frozen
class _Call:
    """The blocks of one call, by their sizes; with ``faulty`` the last one faults after that many bytes."""

    sizes: tuple[int, ...]
    faulty: int | None = None

    def up_to(self, left: int) -> _Call:
        """The same call for a stream of which ``left`` bytes are left; one that ends before the fault has none."""
        if left >= sum(self.sizes[:-1]) + (self.sizes[-1] if self.faulty is None else self.faulty):
            return self
        starts = accumulate(self.sizes, initial=0)
        return _Call(tuple(max(0, min(size, left - start)) for size, start in zip(self.sizes, starts, strict=False)))


_LARGE = _Call((1 << 17,))

# The calls of a run, one after the other and from the start again.
_SHAPES = {
    "one large block": (_Call((1 << 17,)),),
    "a byte a call": (_Call((1,)),),
    "blocks of one byte": (_Call((1,) * 16),),
    "many blocks, some of them empty": (_Call((0, 3, 0, 1, 7, 64, 0)), _Call((5,)), _Call((2, 2))),
    "calls that grow": tuple(_Call((1 << n,)) for n in range(12)),
}
_FAULTY_SHAPES = {
    "a block that faults at once, then one that does not": (_Call((16,), 0), _Call((64,))),
    "a good block and one that faults after 5 bytes, then a good one": (_Call((3, 16), 5), _Call((64,))),
    "a block that faults after 100 bytes, then small ones": (_Call((1000,), 100), _Call((7,)), _Call((1,))),
}


class _Memory:
    """The host memory of one call: blocks with a byte of guard on each side, filled with ``content``, then with guard.

    ``accessible`` bytes come before the fault, if one of the blocks has one.
    """

    def __init__(self, call: _Call, content: bytes = b"") -> None:
        good = call.sizes if call.faulty is None else call.sizes[:-1]
        self._buffers = [bytearray(_GUARD * (size + 2)) for size in good]
        self._faulty: FaultyMemory | None = None
        self.fault_address: int | None = None
        self.accessible = sum(good) + (call.faulty or 0)
        content = content.ljust(self.accessible, _GUARD)
        blocks = []
        for buffer in self._buffers:
            inside = memoryview(buffer)[1:-1]
            inside[:], content = content[: len(inside)], content[len(inside) :]
            blocks.append(Block(inside))
        if call.faulty is not None:
            self._faulty = FaultyMemory("bus")
            self.fault_address = self._faulty.edge
            blocks.append(self._faulty.block(call.sizes[-1], call.faulty, content))
        self.blocks = BlockSeq(blocks)

    def reuse(self) -> None:
        """Write something else into the blocks that do not fault."""
        for buffer in self._buffers:
            buffer[1:-1] = bytes(len(buffer) - 2)

    def content(self) -> bytes:
        """All that is accessible. Raises AssertionError if something was written around the blocks."""
        if any(buffer[:1] != _GUARD or buffer[-1:] != _GUARD for buffer in self._buffers):
            raise AssertionError("bytes around the blocks were changed")
        found = b"".join(buffer[1:-1] for buffer in self._buffers)
        return found if self._faulty is None else found + self._faulty.before_edge(self.accessible - len(found))


class _Run:
    """A stream that is driven in one shape: makes its calls and judges their counts and errors."""

    def __init__(self, shape: str, move: Callable[[BlockSeq], int], error: type[BaseException] | None) -> None:
        self._shape = shape
        self._move = move
        self._error = error
        self._calls = 0
        self.done = 0
        self.ended = False

    def check(self, rule: str, found: object, expected: object, cause: Exception | None = None) -> None:
        """Raise AssertionError unless found is what was expected."""
        if found != expected:
            raise self._failure(rule, found, repr(expected)) from cause

    def _failure(self, rule: str, found: object, expected: str) -> AssertionError:
        return AssertionError(
            f"{rule}\n  shape     {self._shape}; call {self._calls}, after {self.done} bytes\n"
            f"  it gave   {found!r}\n  must give {expected}"
        )

    def call(self, memory: _Memory) -> int:
        """One call, again while it would block: how many bytes it moved. Sets ``ended`` at the end of the stream."""
        self._calls += 1
        try:
            n = self._ask(memory)
        except AssertionError:
            raise
        except Exception as exc:
            if isinstance(exc, HostFaultError) and exc.address == memory.fault_address:
                n = exc.transferred
                self.check("a fault counts the bytes before it", n, memory.accessible, exc)
            else:
                n = self._end_with(exc)
        else:
            if n == 0 and memory.blocks.num_bytes:
                self._end_with_0(memory)
        if not isinstance(n, int) or not 0 <= n <= memory.accessible:
            raise self._failure("a count is an int that there is room for", n, f"0 to {memory.accessible}")
        return n

    def _ask(self, memory: _Memory) -> int:
        """Make the call, again while it would block."""
        before = memory.content()
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                return self._move(memory.blocks)
            except BlockingIOError as exc:
                n: int = getattr(exc, "transferred", 0)
                if n:
                    return n
                self.check("would-block without a count has moved nothing", memory.content(), before, exc)
            time.sleep(0.0005)
        raise self._failure("would-block comes to an end", f"would-block for {_PATIENCE} s", "bytes or the end")

    def _end_with(self, error: Exception) -> int:
        """The stream ended with an error: how many bytes were moved before it."""
        if self._error is None or not isinstance(error, self._error):
            expected = self._error.__name__ if self._error else "none"
            raise self._failure("no error but the one that was announced", error, expected) from error
        self.ended = True
        n: int = getattr(error, "transferred", 0)
        return n

    def _end_with_0(self, memory: _Memory) -> None:
        """The stream ended, and says so again."""
        if self._error is not None:
            raise self._failure("the error that was announced, and not the end", 0, self._error.__name__)
        self.ended = True
        for _ in range(2):
            self.check("the end of the stream stays its end", self._ask(memory), 0)

    def check_error_came(self) -> None:
        """The error that was announced has come."""
        if self._error is not None and not self.ended:
            raise self._failure("the error that was announced comes", "no error", self._error.__name__)

    def check_empty(self) -> None:
        """An empty sequence moves nothing and raises nothing, whatever waits."""
        for empty in (BlockSeq(), BlockSeq([Block(bytearray())])):
            try:
                n: object = self._move(empty)
            except Exception as exc:
                n = exc
            self.check("an empty sequence gives 0 and no error", n, 0)


def check_reader(make: Callable[[], Reader], stream: bytes, error: type[Exception] | None = None) -> None:
    """``make()`` gives a new Reader of exactly these bytes; then comes its end or, if given, an ``error``.

    However it is asked, the same bytes come, each once and in order, and nothing behind them is touched; an empty
    sequence gives 0 and changes nothing; the end stays the end; an error counts the bytes before it; bytes that a
    fault kept back come next. A Reader that would block is asked again, for two seconds.

    Raises AssertionError that tells the rule, the shape and the call; ValueError for a message-oriented Reader.
    """
    for shape, calls in _shapes():
        reader = make()
        refuse_messages(reader, "make: the Reader")
        run = _Run(shape, reader.read_to_blocks, error)
        for call in chain(islice(cycle(calls), _SMALL_CALLS), repeat(_LARGE)):
            run.check_empty()
            memory = _Memory(call)
            n = run.call(memory)
            found = memory.content()
            run.check("each byte of the stream once, in order", found[:n], stream[run.done : run.done + n])
            run.check("nothing behind the count is touched", found[n:].strip(_GUARD), b"")
            run.done += n
            if run.ended:
                break
        run.check("all of the stream before its end", run.done, len(stream))


def check_writer(
    make: Callable[[], tuple[Writer, Callable[[], bytes]]],
    stream: bytes = pattern(5000),
    error: type[Exception] | None = None,
) -> None:
    """``make()`` gives a new Writer and a function that tells all bytes that have arrived where it writes to.

    However ``stream`` is cut, what has arrived is what the Writer counted, and the blocks are as they were; after the
    call their memory is used for something else. The Writer may take less than all: then comes its end or, if given,
    an ``error``, which must come. The other rules are those of check_reader.

    Raises AssertionError that tells the rule, the shape and the call; ValueError for a message-oriented Writer.
    """
    for shape, calls in _shapes():
        writer, arrived = make()
        refuse_messages(writer, "make: the Writer")
        run = _Run(shape, writer.write_from_blocks, error)
        for call in chain(islice(cycle(calls), _SMALL_CALLS), repeat(_LARGE)):
            run.check_empty()
            memory = _Memory(call.up_to(len(stream) - run.done), stream[run.done :])
            before = memory.content()
            n = run.call(memory)
            run.check("the blocks of a Writer are not changed", memory.content(), before)
            memory.reuse()
            run.done += n
            run.check("what was counted has arrived, once, and no more", arrived(), stream[: run.done])
            if run.ended or run.done == len(stream):
                break
        run.check_error_came()


def _shapes() -> Iterator[tuple[str, tuple[_Call, ...]]]:
    yield from _SHAPES.items()
    if _can_fault():
        yield from _FAULTY_SHAPES.items()


def _can_fault() -> bool:
    """Whether this host makes memory that faults and can copy it."""
    try:
        copy(Block(bytearray(1)), FaultyMemory("bus").block(1, 0))
    except HostFaultError:
        return True
    except OSError:
        return False
    return False
