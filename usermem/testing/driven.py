"""A Reader or Writer that is driven call by call: the memory of a call, and who judges what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate

from attrs import frozen

from safemem import Block, BlockSeq, HostFaultError, copy
from usermem.testing.faulty_memory import FaultyMemory

GUARD = b"\xee"
_PATIENCE = 2.0  # seconds to wait for a stream that would block


@frozen
class Call:
    """The blocks of one call, by their sizes; with ``faulty`` the last one faults after that many bytes."""

    sizes: tuple[int, ...]
    faulty: int | None = None

    def up_to(self, left: int) -> Call:
        """The same call for a stream of which ``left`` bytes are left; one that ends before the fault has none."""
        if left >= sum(self.sizes[:-1]) + (self.sizes[-1] if self.faulty is None else self.faulty):
            return self
        starts = accumulate(self.sizes, initial=0)
        return Call(tuple(max(0, min(size, left - start)) for size, start in zip(self.sizes, starts, strict=False)))


LARGE = Call((1 << 17,))


class Memory:
    """The host memory of one call: blocks with a byte of guard on each side, filled with ``content``, then with guard.

    ``accessible`` bytes come before the fault, if one of the blocks has one.
    """

    def __init__(self, call: Call, content: bytes = b"") -> None:
        good = call.sizes if call.faulty is None else call.sizes[:-1]
        self._buffers = [bytearray(GUARD * (size + 2)) for size in good]
        self._faulty: FaultyMemory | None = None
        self.fault_address: int | None = None
        self.accessible: int = sum(good) + (call.faulty or 0)
        content = content.ljust(self.accessible, GUARD)
        blocks = []
        for buffer in self._buffers:
            inside = memoryview(buffer)[1:-1]
            inside[:], content = content[: len(inside)], content[len(inside) :]
            blocks.append(Block(inside))
        if call.faulty is not None:
            self._faulty = FaultyMemory("bus")
            self.fault_address = self._faulty.edge
            blocks.append(self._faulty.block(call.sizes[-1], call.faulty, content))
        self.blocks: BlockSeq = BlockSeq(blocks)

    def reuse(self) -> None:
        """Write something else into the blocks that do not fault."""
        for buffer in self._buffers:
            buffer[1:-1] = bytes(len(buffer) - 2)

    def content(self) -> bytes:
        """All that is accessible. Raises AssertionError if something was written around the blocks."""
        if any(buffer[:1] != GUARD or buffer[-1:] != GUARD for buffer in self._buffers):
            raise AssertionError("bytes around the blocks were changed")
        found = b"".join(buffer[1:-1] for buffer in self._buffers)
        return found if self._faulty is None else found + self._faulty.before_edge(self.accessible - len(found))


class Run:
    """A stream that is driven in one shape: makes its calls and judges their counts and errors."""

    unit = "bytes"

    def __init__(self, shape: str, move: Callable[[BlockSeq], int], error: type[BaseException] | None) -> None:
        self._shape = shape
        self.move = move
        self.error = error
        self.calls: int = 0
        self.done = 0
        self.ended: bool = False

    def check(self, rule: str, found: object, expected: object, cause: Exception | None = None) -> None:
        """Raise AssertionError unless found is what was expected."""
        if found != expected:
            raise self.failure(rule, found, repr(expected)) from cause

    def failure(self, rule: str, found: object, expected: str) -> AssertionError:
        """What to raise where a rule is broken."""
        return AssertionError(
            f"{rule}\n  shape     {self._shape}; call {self.calls}, after {self.done} {self.unit}\n"
            f"  it gave   {found!r}\n  must give {expected}"
        )

    def call(self, memory: Memory) -> int:
        """One call, again while it would block: how many bytes it moved. Sets ``ended`` at the end of the stream."""
        self.calls += 1
        try:
            n = self.ask(memory)
        except AssertionError:
            raise
        except Exception as exc:
            if isinstance(exc, HostFaultError) and exc.address == memory.fault_address:
                n = exc.transferred
                self.check("a fault counts the bytes before it", n, memory.accessible, exc)
            else:
                n = self.end_with(exc)
        else:
            if n == 0 and memory.blocks.num_bytes:
                self._end_with_0(memory)
        if not isinstance(n, int) or not 0 <= n <= memory.accessible:
            raise self.failure("a count is an int that there is room for", n, f"0 to {memory.accessible}")
        return n

    def ask(self, memory: Memory) -> int:
        """Make the call, again while it would block."""
        before = memory.content()
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                return self.move(memory.blocks)
            except BlockingIOError as exc:
                n: int = getattr(exc, "transferred", 0)
                if n:
                    return n
                self.check("would-block without a count has moved nothing", memory.content(), before, exc)
            time.sleep(0.0005)
        raise self.failure("would-block comes to an end", f"would-block for {_PATIENCE} s", "bytes or the end")

    def end_with(self, error: Exception) -> int:
        """The stream ended with an error: how many bytes were moved before it."""
        if self.error is None or not isinstance(error, self.error):
            expected = self.error.__name__ if self.error else "none"
            raise self.failure("no error but the one that was announced", error, expected) from error
        self.ended = True
        n: int = getattr(error, "transferred", 0)
        return n

    def _end_with_0(self, memory: Memory) -> None:
        """The stream ended, and says so again."""
        if self.error is not None:
            raise self.failure("the error that was announced, and not the end", 0, self.error.__name__)
        self.ended = True
        for _ in range(2):
            self.check("the end of the stream stays its end", self.ask(memory), 0)

    def check_error_came(self) -> None:
        """The error that was announced has come."""
        if self.error is not None and not self.ended:
            raise self.failure("the error that was announced comes", "no error", self.error.__name__)

    def check_empty(self) -> None:
        """An empty sequence moves nothing and raises nothing, whatever waits."""
        for empty in (BlockSeq(), BlockSeq([Block(bytearray())])):
            try:
                n: object = self.move(empty)
            except Exception as exc:
                n = exc
            self.check("an empty sequence gives 0 and no error", n, 0)


def can_fault() -> bool:
    """Whether this host makes memory that faults and can copy it."""
    try:
        copy(Block(bytearray(1)), FaultyMemory("bus").block(1, 0))
    except HostFaultError:
        return True
    except OSError:
        return False
    return False
