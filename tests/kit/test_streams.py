"""check_reader and check_writer pass our adapters, and catch every stream that is broken in one way."""

from __future__ import annotations

import io
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from safemem import (
    Block,
    BlockSeq,
    BlockSeqReader,
    BlockSeqWriter,
    EndOfBlockSeqError,
    FDReader,
    FDWriter,
    FromIOReader,
    FromIOWriter,
    FromVecReaderFunc,
    FromVecWriterFunc,
    Reader,
    Writer,
)
from stream_mutants import FAILING_READER_MUTANTS, READER_MUTANTS, STREAM, WRITER_MUTANTS, FirstBlockOnly, Sink, Source
from usermem.testing import check_reader, check_writer
from usermem.testing.operations import pattern


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """What closes all files and sockets of a test."""
    with ExitStack() as stack:
        yield stack


def new_file(opened: ExitStack, content: bytes = b"") -> int:
    """The descriptor of a file, at its start."""
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the stack closes it
    opened.callback(file.close)
    file.write(content)
    file.seek(0)
    return file.fileno()


def file_reader(opened: ExitStack) -> Reader:
    """A file, read from its own position."""
    return FDReader(new_file(opened, STREAM))


def file_reader_at(opened: ExitStack) -> Reader:
    """A file, read from an offset of the reader's own."""
    return FDReader(new_file(opened, b"skipped" + STREAM), 7)


def socket_pair(opened: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two ends, neither of which waits."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        opened.enter_context(end)
        end.setblocking(False)
    return ours, theirs


def socket_reader(opened: ExitStack) -> Reader:
    """A socket whose peer has sent all and closed."""
    ours, theirs = socket_pair(opened)
    theirs.sendall(STREAM)
    theirs.close()
    return FDReader(ours.fileno())


def vec_reader(opened: ExitStack) -> Reader:
    """A function over a list of buffers."""
    stream = io.BytesIO(STREAM)
    return FromVecReaderFunc(lambda buffers: sum(stream.readinto(buffer) for buffer in buffers))


class Hesitant(Source):
    """A Reader with nothing to give every other time."""

    ready = False

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        if dsts:
            self.ready = not self.ready
            if not self.ready:
                raise BlockingIOError
        return super().read_to_blocks(dsts)


READERS: list[Callable[[ExitStack], Reader]] = [
    lambda opened: Source(),
    lambda opened: FirstBlockOnly(),
    lambda opened: Hesitant(),
    lambda opened: BlockSeqReader(BlockSeq([Block(STREAM[:99]), Block(STREAM[99:])])),
    lambda opened: FromIOReader(io.BytesIO(STREAM)),
    lambda opened: FromIOReader(io.BufferedReader(io.BytesIO(STREAM), 50)),
    vec_reader,
    file_reader,
    file_reader_at,
    socket_reader,
]


@pytest.mark.parametrize("make", READERS)
def test_readers_conform(make: Callable[[ExitStack], Reader], opened: ExitStack) -> None:
    """All our adapters give the stream, however they are asked."""
    check_reader(lambda: make(opened), STREAM)


def test_an_empty_stream() -> None:
    """It ends at once."""
    check_reader(lambda: FromIOReader(io.BytesIO()), b"")
    with pytest.raises(AssertionError, match="each byte of the stream once"):
        check_reader(Source, b"")


def test_a_failing_reader_conforms() -> None:
    """An error that was announced comes after the last byte, which it counts."""
    check_reader(lambda: Source(ConnectionResetError), STREAM, ConnectionResetError)


# Which check catches which mutant: the rule that the error names.
CAUGHT_BY = {
    "each byte of the stream once, in order": [
        "LosesWhatAFaultKept",
        "GivesAgainWhatCameBeforeAFault",
        "CountsOneMore",
        "CountsWhatItWasAsked",
        "RepeatsAByte",
        "BlocksFilledBackToFront",
        "SecondBlockFromTheStart",
        "EmptySequenceTakesAByte",
    ],
    "a fault counts the bytes before it": ["FaultCountsNothing"],
    "nothing behind the count is touched": ["CountsOneLess", "WritesBehindItsCount", "ErrorWithoutItsCount"],
    "a count is an int that there is room for": ["CountIsNegative"],
    "an empty sequence gives 0 and no error": ["EmptySequenceRaises", "SinkEmptySequenceRaises"],
    "all of the stream before its end": ["SmallSequenceIsTheEnd", "EndsEarly", "ErrorBeforeTheBytes"],
    "no error but the one that was announced": ["EndIsAnError", "FaultSomewhereElse", "AnotherError"],
    "the end of the stream stays its end": ["StartsAgainAfterTheEnd", "EndDoesNotStay"],
    "would-block comes to an end": ["WouldBlockForEver"],
    "would-block without a count has moved nothing": ["TouchesAndWouldBlock"],
    "the error that was announced, and not the end": ["ErrorIsTheEnd"],
    "what was counted has arrived, once, and no more": [
        "TakesAgainAfterAFault",
        "LosesWhatCameBeforeAFault",
        "SinkCountsOneMore",
        "SinkCountsOneLess",
        "SkipsSmallBlocks",
        "KeepsTheBlocks",
    ],
    "the blocks of a Writer are not changed": ["WipesItsSource"],
}
RULE_OF = {name: rule for rule, names in CAUGHT_BY.items() for name in names}


def test_every_stream_mutant_is_in_the_table() -> None:
    """Once."""
    mutants = [*READER_MUTANTS, *FAILING_READER_MUTANTS, *WRITER_MUTANTS]
    assert sorted(mutant.__name__ for mutant in mutants) == sorted(
        name for names in CAUGHT_BY.values() for name in names
    )


@contextmanager
def caught(mutant: type) -> Iterator[None]:
    """By the check that is meant for it; the error names the rule, the shape and both answers."""
    with pytest.raises(AssertionError, match=r"(?s)\n  shape .*it gave .*must give ") as error:
        yield
    assert str(error.value).splitlines()[0] == RULE_OF[mutant.__name__]


@pytest.mark.parametrize("mutant", READER_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_broken_reader_is_caught(mutant: type[Source]) -> None:
    """By the rule in the table."""
    with caught(mutant):
        check_reader(mutant, STREAM)


@pytest.mark.parametrize("mutant", FAILING_READER_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_broken_failing_reader_is_caught(mutant: type[Source]) -> None:
    """Errors without their count, at the wrong place, of the wrong kind, or none."""
    with caught(mutant):
        check_reader(lambda: mutant(ConnectionResetError), STREAM, ConnectionResetError)


Sunk = tuple[Writer, Callable[[], bytes]]


def sink(room: int = 1 << 20, error: type[Exception] | None = None) -> Sunk:
    """A Writer that is right."""
    writer = Sink(room, error)
    return writer, lambda: writer.arrived


def file_writer(opened: ExitStack, offset: int | None) -> Sunk:
    """A file."""
    fd = new_file(opened)
    return FDWriter(fd, offset), lambda: os.pread(fd, 1 << 20, 0)


def io_writer(opened: ExitStack) -> Sunk:
    """A file object."""
    file = io.BytesIO()
    return FromIOWriter(file), file.getvalue


def vec_writer(opened: ExitStack) -> Sunk:
    """A function over a list of buffers."""
    file = io.BytesIO()
    return FromVecWriterFunc(lambda buffers: sum(map(file.write, buffers))), file.getvalue


def socket_writer(opened: ExitStack) -> Sunk:
    """A socket with little room, whose peer takes all when it is asked what has arrived."""
    ours, theirs = socket_pair(opened)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    found = bytearray()

    def arrived() -> bytes:
        with suppress(BlockingIOError):
            while True:
                found.extend(theirs.recv(1 << 20))
        return bytes(found)

    return FDWriter(ours.fileno()), arrived


WRITERS: list[Callable[[ExitStack], Sunk]] = [
    lambda opened: sink(),
    lambda opened: sink(room=77),
    lambda opened: file_writer(opened, None),
    lambda opened: file_writer(opened, 0),
    io_writer,
    vec_writer,
    socket_writer,
]


@pytest.mark.parametrize("make", WRITERS)
def test_writers_conform(make: Callable[[ExitStack], Sunk], opened: ExitStack) -> None:
    """All our adapters take the stream, however it is cut; one takes less than all."""
    check_writer(lambda: make(opened))


def block_writer() -> Sunk:
    """Blocks with room for 1000 bytes."""
    room = bytearray(1000)
    writer = BlockSeqWriter(BlockSeq.of(Block(room)))
    return writer, lambda: bytes(room[: len(room) - writer.blocks.num_bytes])


def test_writers_with_an_end_conform() -> None:
    """A fixed destination raises when it is full, with what still fitted."""
    check_writer(block_writer, error=EndOfBlockSeqError)
    check_writer(lambda: sink(500, BrokenPipeError), error=BrokenPipeError)
    with pytest.raises(AssertionError, match="no error but the one that was announced"):
        check_writer(block_writer)


@pytest.mark.parametrize("mutant", WRITER_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_broken_writer_is_caught(mutant: type[Sink]) -> None:
    """By the rule in the table."""

    def make() -> Sunk:
        writer = mutant(room=4000)
        return writer, lambda: writer.arrived

    with caught(mutant):
        check_writer(make, pattern(5000))


def test_messages_are_refused() -> None:
    """A message-oriented stream has no byte stream's rules."""

    class Datagrams(Source):
        message_oriented = True

    with pytest.raises(ValueError, match="message-oriented"):
        check_reader(Datagrams, STREAM)
