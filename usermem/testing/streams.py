"""check_reader and check_writer: does a Reader or Writer keep its contract (:mod:`safemem.protocols`)?

They drive it with sequences of every shape and look at each byte. Plain Python, no pytest. Where the host can copy
memory that faults (Linux), some blocks fault too: what a fault kept from its place must not be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle, islice, repeat

from safemem import Reader, Writer
from safemem.protocols import refuse_messages
from usermem.testing.driven import GUARD, LARGE, Call, Memory, Run, can_fault
from usermem.testing.messages import check_message_reader, check_message_writer
from usermem.testing.operations import pattern

_SMALL_CALLS = 300  # then large ones, so that a long stream does not take for ever

# The calls of a run, one after the other and from the start again.
_SHAPES = {
    "one large block": (Call((1 << 17,)),),
    "a byte a call": (Call((1,)),),
    "blocks of one byte": (Call((1,) * 16),),
    "many blocks, some of them empty": (Call((0, 3, 0, 1, 7, 64, 0)), Call((5,)), Call((2, 2))),
    "calls that grow": tuple(Call((1 << n,)) for n in range(12)),
}
_FAULTY_SHAPES = {
    "a block that faults at once, then one that does not": (Call((16,), 0), Call((64,))),
    "a good block and one that faults after 5 bytes, then a good one": (Call((3, 16), 5), Call((64,))),
    "a block that faults after 100 bytes, then small ones": (Call((1000,), 100), Call((7,)), Call((1,))),
}


def check_reader(
    make: Callable[[], Reader],
    stream: bytes | None = None,
    error: type[Exception] | None = None,
    *,
    messages: Sequence[bytes] | None = None,
) -> None:
    """``make()`` gives a new Reader of exactly these bytes; then comes its end or, if given, an ``error``.

    However it is asked, the same bytes come, each once and in order, and nothing behind them is touched; an empty
    sequence gives 0 and changes nothing; the end stays the end; an error counts the bytes before it; bytes that a
    fault kept back come next. A Reader that would block is asked again, for two seconds.

    ``messages``, instead of ``stream``, are what a message-oriented Reader gives, one a call. What finds no room is
    gone; a message that meets a fault comes again, whole. Behind the last comes BlockingIOError or, if given, an
    ``error``. What an empty sequence does to a message is left open.

    Raises AssertionError that tells the rule, the shape and the call; ValueError for a Reader of the other kind.
    """
    if messages is not None:
        check_message_reader(make, messages, error)
        return
    if stream is None:
        raise ValueError("stream or messages must be given")
    for shape, calls in _shapes():
        reader = make()
        refuse_messages(reader, "make: the Reader")
        run = Run(shape, reader.read_to_blocks, error)
        for call in chain(islice(cycle(calls), _SMALL_CALLS), repeat(LARGE)):
            run.check_empty()
            memory = Memory(call)
            n = run.call(memory)
            found = memory.content()
            run.check("each byte of the stream once, in order", found[:n], stream[run.done : run.done + n])
            run.check("nothing behind the count is touched", found[n:].strip(GUARD), b"")
            run.done += n
            if run.ended:
                break
        run.check("all of the stream before its end", run.done, len(stream))


def check_writer(
    make: Callable[[], tuple[Writer, Callable[[], object]]],
    stream: bytes = pattern(5000),
    error: type[Exception] | None = None,
    *,
    messages: Sequence[bytes] | None = None,
) -> None:
    """``make()`` gives a new Writer and a function that tells all bytes that have arrived where it writes to.

    However ``stream`` is cut, what has arrived is what the Writer counted, and the blocks are as they were; after the
    call their memory is used for something else. The Writer may take less than all: then comes its end or, if given,
    an ``error``, which must come. The other rules are those of check_reader.

    ``messages``, instead of ``stream``, are what a message-oriented Writer gets, one a call; the function returns a
    list of those that have arrived. Each goes whole or, where its memory faults, not at all.

    Raises AssertionError that tells the rule, the shape and the call; ValueError for a Writer of the other kind.
    """
    if messages is not None:
        check_message_writer(make, messages, error)
        return
    for shape, calls in _shapes():
        writer, arrived = make()
        refuse_messages(writer, "make: the Writer")
        run = Run(shape, writer.write_from_blocks, error)
        for call in chain(islice(cycle(calls), _SMALL_CALLS), repeat(LARGE)):
            run.check_empty()
            memory = Memory(call.up_to(len(stream) - run.done), stream[run.done :])
            before = memory.content()
            n = run.call(memory)
            run.check("the blocks of a Writer are not changed", memory.content(), before)
            memory.reuse()
            run.done += n
            run.check("what was counted has arrived, once, and no more", arrived(), stream[: run.done])
            if run.ended or run.done == len(stream):
                break
        run.check_error_came()


def _shapes() -> Iterator[tuple[str, tuple[Call, ...]]]:
    yield from _SHAPES.items()
    if can_fault():
        yield from _FAULTY_SHAPES.items()
