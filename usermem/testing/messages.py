"""The message form of check_reader and check_writer: one message a call, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle

from safemem import HostFaultError, Reader, Writer
from safemem.protocols import is_message_oriented
from usermem.testing.driven import GUARD, LARGE, Call, Memory, Run, can_fault

# The calls of a Reader's run, one after the other and from the start again. What faults comes again, into the next.
_ROOMS = {
    "one large block": (LARGE,),
    "many blocks, some of them empty, and a large one": (Call((0, 3, 0, 1, 7, 64, 0, 1 << 17)),),
    "less room than some messages need": (Call((1,)), Call((2, 0, 3)), LARGE),
}
_FAULTY_ROOMS = {
    "a block that faults at once, then a large one": (Call((16,), 0), LARGE),
    "a good block and one that faults after 5 bytes, then a large one": (Call((3, 16), 5), LARGE),
}


def _cuts(n: int) -> dict[str, tuple[Call, ...]]:
    """The calls that a Writer gets with a message of n bytes: those whose memory faults send nothing."""
    some = min(n, 64)
    cuts: dict[str, tuple[Call, ...]] = {
        "one block": (Call((n,)),),
        "a block of one byte first": (Call((min(n, 1), max(n - 1, 0))),),
        "many blocks, some of them empty": (Call((0, n // 3, 0, n // 3, n - 2 * (n // 3), 0)),),
    }
    if can_fault():
        cuts["a block that faults half way, then one that does not"] = (
            *([Call((n - some, some), some // 2)] if n else []),
            Call((n,)),
        )
    return cuts


class _MessageRun(Run):
    """Messages that are driven in one shape; ``done`` counts them."""

    unit = "messages"

    def message(self, memory: Memory, message: bytes) -> int | None:
        """One call for this message: how many bytes it moved. None if memory faulted, as it must where it is reached.

        Sets ``ended`` at the error that was announced.
        """
        self.calls += 1
        reaches_fault = memory.fault_address is not None and len(message) > memory.accessible
        try:
            n = self.ask(memory)
        except AssertionError:
            raise
        except Exception as exc:
            if not isinstance(exc, HostFaultError) or exc.address != memory.fault_address:
                self.check("a message goes whole or not at all", self.end_with(exc), 0, exc)
                return None
            self.check("memory that a message does not reach is no fault", reaches_fault, True, exc)
            self.check("a fault counts the bytes before it", exc.transferred, memory.accessible, exc)
            return None
        self.check("a message that reaches memory which faults is a fault", reaches_fault, False)
        self.check("one message a call, as much of it as there is room for", n, min(len(message), memory.accessible))
        return n

    def check_no_more(self) -> None:
        """Behind the last message there is none, which is not an empty one."""
        expected = self.error or BlockingIOError
        for _ in range(2):
            memory = Memory(LARGE)
            try:
                found: object = self.move(memory.blocks)
            except Exception as exc:
                found = exc
            if not isinstance(found, expected):
                raise self.failure("no message is would-block, or what was announced", found, expected.__name__)
            self.check("nothing behind the count is touched", memory.content().strip(GUARD), b"")


def check_message_reader(make: Callable[[], Reader], messages: Sequence[bytes], error: type[Exception] | None) -> None:
    """As check_reader, with ``messages``."""
    for shape, calls in (_ROOMS | (_FAULTY_ROOMS if can_fault() else {})).items():
        reader = make()
        _require_messages(reader, "make: the Reader")
        run = _MessageRun(shape, reader.read_to_blocks, error)
        following = cycle(calls)
        for message in messages:
            n = None
            while n is None:
                memory = Memory(next(following))
                n = run.message(memory, message)
                run.check("all messages before the error", run.ended, False)
                arrived = memory.accessible if n is None else n
                found = memory.content()
                run.check("each message once, in order", found[:arrived], message[:arrived])
                run.check("nothing behind the count is touched", found[arrived:].strip(GUARD), b"")
            run.done += 1
        run.check_no_more()


def check_message_writer(
    make: Callable[[], tuple[Writer, Callable[[], object]]], messages: Sequence[bytes], error: type[Exception] | None
) -> None:
    """As check_writer, with ``messages``."""
    for shape in _cuts(0):
        writer, arrived = make()
        _require_messages(writer, "make: the Writer")
        run = _MessageRun(shape, writer.write_from_blocks, error)
        for message in messages:
            for call in _cuts(len(message))[shape]:
                memory = Memory(call, message)
                before = memory.content()
                if not run.ended:
                    run.done += run.message(memory, message) is not None
                run.check("the blocks of a Writer are not changed", memory.content(), before)
                memory.reuse()
                run.check("each message has arrived, whole and once", arrived(), list(messages[: run.done]))
        run.check_error_came()


def _require_messages(stream: object, name: str) -> None:
    if not is_message_oriented(stream):
        raise ValueError(f"{name} must be message-oriented, and is a byte stream: give stream, not messages")
