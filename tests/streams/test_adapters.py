"""Readers and Writers made of files and functions: counts, errors, and no byte lost or touched behind a fault."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Sequence

import pytest

from safemem import (
    Block,
    BlockSeq,
    BlockSeqReader,
    BlockSeqWriter,
    EndOfBlockSeqError,
    FromIOReader,
    FromIOWriter,
    FromVecReaderFunc,
    FromVecWriterFunc,
    HostFaultError,
    Reader,
    ReaderFunc,
    WriterFunc,
    read_full_to_blocks,
    write_full_from_blocks,
)
from sample_blocks import blocks, room
from scripted_files import GivesParts, TakesParts
from usermem.testing.faulty_memory import Fault, FaultyMemory

FAULTS: list[Fault] = ["segv", "bus"]


@pytest.mark.parametrize(
    ("parts", "sizes", "n", "filled", "calls"),
    [
        pytest.param([b"foobar"], [3, 3], 6, b"foobar", [3, 3], id="full"),
        pytest.param([b"foob"], [3, 3], 4, b"foob\xee\xee", [3, 3], id="partial"),
        pytest.param([b"f", b"o"], [3, 3], 1, b"f" + b"\xee" * 5, [3], id="a single byte"),
        pytest.param([], [3, 3], 0, b"\xee" * 6, [3], id="end"),
        pytest.param([b"foo"], [3, 3], 3, b"foo\xee\xee\xee", [3, 3], id="end after a full block"),
        pytest.param([b"foo", None, b"bar"], [3, 3], 3, b"foo\xee\xee\xee", [3, 3], id="would block after progress"),
        pytest.param([b"foo", BlockingIOError(), b"bar"], [3, 3], 3, b"foo\xee\xee\xee", [3, 3], id="raised"),
        pytest.param([b"foo"], [], 0, b"", [], id="no blocks"),
    ],
)
def test_from_io_reader(
    parts: list[bytes | BaseException | None], sizes: list[int], n: int, filled: bytes, calls: list[int]
) -> None:
    """One readinto a block, in order, up to the first that is short."""
    file = GivesParts(*parts)
    dsts = room(*sizes)
    assert FromIOReader(file).read_to_blocks(dsts) == n
    assert (dsts.tobytes(), file.calls) == (filled, calls)


@pytest.mark.parametrize(
    ("counts", "parts", "n", "calls"),
    [
        pytest.param([], [b"foo", b"bar"], 6, [3, 3], id="full"),
        pytest.param([3, 1], [b"foo", b"bar"], 4, [3, 3], id="partial"),
        pytest.param([1], [b"foo", b"bar"], 1, [3], id="a single byte"),
        pytest.param([0], [b"foo", b"bar"], 0, [3], id="takes nothing"),
        pytest.param([3, None], [b"foo", b"bar"], 3, [3, 3], id="would block after progress"),
        pytest.param([3, BlockingIOError()], [b"foo", b"bar"], 3, [3, 3], id="raised after progress"),
        pytest.param([], [], 0, [], id="no blocks"),
    ],
)
def test_from_io_writer(counts: list[int | BaseException | None], parts: list[bytes], n: int, calls: list[int]) -> None:
    """One write a block, in order, up to the first that is short."""
    file = TakesParts(*counts)
    assert FromIOWriter(file).write_from_blocks(blocks(*parts)) == n
    assert (file.got, file.calls) == (b"".join(parts)[:n], calls)


def test_read_full_and_write_full_go_on_after_short_counts() -> None:
    """One byte at a time still fills, and drains, everything; the end of the stream is a short count."""
    dsts = room(3, 3)
    assert read_full_to_blocks(FromIOReader(GivesParts(*(bytes([c]) for c in b"foobar"))), dsts) == 6
    assert dsts.tobytes() == b"foobar"
    assert read_full_to_blocks(FromIOReader(GivesParts(b"f", b"oob")), room(3, 3)) == 4
    file = TakesParts(1, 1, 1, 1, 1, 1)
    assert write_full_from_blocks(FromIOWriter(file), blocks(b"foo", b"bar")) == 6
    assert file.got == b"foobar"
    assert write_full_from_blocks(FromIOWriter(TakesParts(1, 2, 0, 0)), blocks(b"foo", b"bar")) == 3


def test_full_loops_do_not_call_for_no_bytes() -> None:
    """An empty sequence is full, and written."""
    file = GivesParts(b"x")
    assert read_full_to_blocks(FromIOReader(file), BlockSeq()) == 0
    assert file.calls == []


def test_functions_as_reader_and_writer() -> None:
    """ReaderFunc and WriterFunc hand the very sequence to the function, and its answer back."""
    seen: list[BlockSeq] = []

    def function(seq: BlockSeq) -> int:
        seen.append(seq)
        return 2

    seq = room(3)
    assert ReaderFunc(function).read_to_blocks(seq) == 2
    assert WriterFunc(function).write_from_blocks(seq) == 2
    assert seen[0] is seq and seen[1] is seq


class OneMessage:
    """A datagram socket, to an adapter that must not touch it."""

    message_oriented = True

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Never to be called."""
        raise AssertionError("called")

    write_from_blocks = read_to_blocks


def test_loops_refuse_messages() -> None:
    """An empty message is no end, so what loops until the end refuses messages before it calls anything."""
    with pytest.raises(ValueError, match="reader is message-oriented"):
        read_full_to_blocks(OneMessage(), room(3))
    with pytest.raises(ValueError, match="writer is message-oriented"):
        write_full_from_blocks(OneMessage(), blocks(b"foo"))


@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("raised", [False, True])
def test_would_block_at_once(raised: bool, unsafe: bool) -> None:
    """With nothing moved, would-block is BlockingIOError with EAGAIN, and nothing is written."""
    nothing = BlockingIOError(errno.EAGAIN, "later") if raised else None
    memory = FaultyMemory("segv")
    dsts = BlockSeq.of(memory.block(3, 3, b"\xee" * 3)) if unsafe else room(3)
    reader: Reader = FromIOReader(GivesParts(nothing))
    with pytest.raises(BlockingIOError) as caught:
        reader.read_to_blocks(dsts)
    assert caught.value.errno == errno.EAGAIN
    assert dsts.tobytes() == b"\xee" * 3
    with pytest.raises(BlockingIOError):
        FromIOWriter(TakesParts(nothing)).write_from_blocks(dsts)
    with pytest.raises(BlockingIOError):
        read_full_to_blocks(FromIOReader(GivesParts(nothing)), dsts)
    assert read_full_to_blocks(FromIOReader(GivesParts(b"f", nothing)), dsts) == 1


def test_characters_written_of_a_buffered_file_count() -> None:
    """What a BufferedWriter over a full pipe kept in its buffer was taken from us: a short count."""
    outlet, inlet = os.pipe()
    with os.fdopen(outlet, "rb", buffering=0) as pipe:
        os.set_blocking(inlet, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(inlet, bytes(1 << 16))
        raw = io.FileIO(inlet, "w")
        with io.BufferedWriter(raw, buffer_size=8) as buffered:
            writer = FromIOWriter(buffered)
            assert writer.write_from_blocks(blocks(b"0123456789abcdef")) == 8
            with pytest.raises(BlockingIOError):
                writer.write_from_blocks(blocks(b"89abcdef"))
            os.set_blocking(outlet, False)
            while pipe.read(1 << 16):
                pass
            buffered.flush()
            assert pipe.read(100) == b"01234567"


class Boom(Exception):
    """An error of the stream's own."""


def _raise_after(n: int, error: BaseException) -> Callable[[Sequence[memoryview]], int]:
    def function(buffers: Sequence[memoryview]) -> int:
        error.transferred = n  # type: ignore[attr-defined]
        raise error

    return function


@pytest.mark.parametrize("error", [Boom(), OSError(errno.EIO, "disk"), KeyboardInterrupt()], ids=repr)
def test_own_errors_pass_as_the_same_object(error: BaseException) -> None:
    """An error after progress says how much was moved, whichever adapter it passes; one before says nothing."""
    steps: list[tuple[int | None, Callable[[], int]]] = [
        (None, lambda: FromIOReader(GivesParts(error)).read_to_blocks(room(3))),
        (3, lambda: FromIOReader(GivesParts(b"foo", error)).read_to_blocks(room(3, 3))),
        (4, lambda: read_full_to_blocks(FromIOReader(GivesParts(b"f", b"oob", error)), room(3, 3))),
        (None, lambda: FromIOWriter(TakesParts(error)).write_from_blocks(blocks(b"foo"))),
        (3, lambda: FromIOWriter(TakesParts(3, error)).write_from_blocks(blocks(b"foo", b"bar"))),
        (5, lambda: write_full_from_blocks(FromIOWriter(TakesParts(2, 3, error)), blocks(b"foobar"))),
        (2, lambda: FromVecReaderFunc(_raise_after(2, error)).read_to_blocks(room(3, 3))),
        (2, lambda: FromVecWriterFunc(_raise_after(2, error)).write_from_blocks(blocks(b"foo", b"bar"))),
    ]
    for expected, step in steps:
        vars(error).pop("transferred", None)
        with pytest.raises(type(error)) as caught:
            step()
        assert caught.value is error
        assert getattr(error, "transferred", None) == expected


def test_the_block_reader_and_writer_at_their_ends() -> None:
    """A reader at its end gives 0; a writer raises ENOSPC with what still fitted. Both shrink."""
    reader = BlockSeqReader(blocks(b"foo", b"bar"))
    dsts = room(2, 2)
    assert reader.read_to_blocks(dsts) == 4
    assert (dsts.tobytes(), reader.blocks.tobytes()) == (b"foob", b"ar")
    assert [reader.read_to_blocks(dsts), reader.read_to_blocks(dsts)] == [2, 0]
    dsts = room(2, 3)
    writer = BlockSeqWriter(dsts)
    assert writer.write_from_blocks(blocks(b"f", b"oo")) == 3
    for expected in (2, 0):
        with pytest.raises(EndOfBlockSeqError) as caught:
            writer.write_from_blocks(blocks(b"ba", b"r"))
        assert (caught.value.errno, caught.value.transferred) == (errno.ENOSPC, expected)
    assert writer.write_from_blocks(BlockSeq()) == 0
    assert dsts.tobytes() == b"fooba"


def test_vector_functions_see_all_blocks_at_once() -> None:
    """One call with a buffer a block, none for an empty sequence; a claim of too much counts as all."""
    calls: list[list[int]] = []

    def claim(buffers: Sequence[memoryview]) -> int:
        calls.append([len(buffer) for buffer in buffers])
        return 1 << 40

    memory = FaultyMemory("segv")
    seq = BlockSeq([Block(bytearray(2)), memory.block(3, 3), Block(bytearray(4))])
    assert FromVecReaderFunc(claim).read_to_blocks(seq) == 9
    assert FromVecWriterFunc(claim).write_from_blocks(seq) == 9
    assert FromVecReaderFunc(claim).read_to_blocks(BlockSeq()) == 0
    assert FromVecWriterFunc(claim).write_from_blocks(BlockSeq()) == 0
    with pytest.raises(HostFaultError):
        FromVecWriterFunc(claim).write_from_blocks(BlockSeq.of(memory.block(3, 0)))
    assert calls == [[2, 3, 4], [2, 3, 4]]
    assert FromVecReaderFunc(lambda buffers: 0).read_to_blocks(seq) == 0


def test_vector_functions_that_claim_too_much_and_fail() -> None:
    """The count that an error carries is no more than there was room for."""
    boom = Boom()
    with pytest.raises(Boom):
        FromVecReaderFunc(_raise_after(100, boom)).read_to_blocks(room(3, 3))
    assert vars(boom)["transferred"] == 6


def test_vector_functions_that_write_more_than_they_say() -> None:
    """Bytes beyond the count are where the function put them, behind a block that needs safecopy too."""

    def fill(buffers: Sequence[memoryview]) -> int:
        for buffer in buffers:
            buffer[:] = b"x" * len(buffer)
        return 3

    before, behind = bytearray(2), bytearray(2)
    seq = BlockSeq([Block(before), FaultyMemory("segv").block(2, 2), Block(behind)])
    assert FromVecReaderFunc(fill).read_to_blocks(seq) == 3
    assert before + behind == b"xxxx"


def test_vector_functions_that_would_block() -> None:
    """Nothing moved is BlockingIOError; some moved, as the error says, is a short count."""
    later = BlockingIOError(errno.EAGAIN, "later")
    assert FromVecReaderFunc(_raise_after(2, later)).read_to_blocks(room(3)) == 2
    assert FromVecWriterFunc(_raise_after(2, later)).write_from_blocks(blocks(b"foo")) == 2
    steps: list[Callable[[], int]] = [
        lambda: FromVecReaderFunc(_raise_after(0, later)).read_to_blocks(room(3)),
        lambda: FromVecWriterFunc(_raise_after(0, later)).write_from_blocks(blocks(b"foo")),
    ]
    for step in steps:
        with pytest.raises(BlockingIOError):
            step()


@pytest.mark.parametrize("count", [-1, -(1 << 40)])
def test_negative_counts_are_errors(count: int) -> None:
    """Nobody moves fewer than no bytes: ValueError, from functions and from files."""

    class File:
        def readinto(self, buffer: memoryview, /) -> int:
            return count

        def write(self, data: memoryview, /) -> int:
            return count

    steps: list[Callable[[], int]] = [
        lambda: FromVecReaderFunc(lambda buffers: count).read_to_blocks(room(3)),
        lambda: FromVecWriterFunc(lambda buffers: count).write_from_blocks(blocks(b"foo")),
        lambda: FromIOReader(File()).read_to_blocks(room(3)),
        lambda: FromIOWriter(File()).write_from_blocks(blocks(b"foo")),
        lambda: read_full_to_blocks(ReaderFunc(lambda dsts: count), room(3)),
        lambda: write_full_from_blocks(WriterFunc(lambda srcs: count), blocks(b"foo")),
    ]
    for step in steps:
        with pytest.raises(ValueError):
            step()


def test_files_that_claim_too_much() -> None:
    """A file's count beyond the buffer is a bug of the file's, not memory: ValueError."""

    class File:
        def readinto(self, buffer: memoryview, /) -> int:
            return len(buffer) + 1

        def write(self, data: memoryview, /) -> int:
            return len(data) + 1

    with pytest.raises(ValueError, match="readinto"):
        FromIOReader(File()).read_to_blocks(room(3))
    with pytest.raises(ValueError, match="write"):
        FromIOWriter(File()).write_from_blocks(blocks(b"foo"))


@pytest.mark.parametrize("make", [FromIOReader, FromIOWriter])
@pytest.mark.parametrize(
    "file", [io.StringIO(), io.TextIOWrapper(io.BytesIO()), "a path", b"bytes", 3, None], ids=lambda f: type(f).__name__
)
def test_text_files_and_other_things_are_refused(make: Callable[[object], object], file: object) -> None:
    """What is no binary file is a TypeError that names the argument, when the adapter is made."""
    with pytest.raises(TypeError, match="file must be a binary file object"):
        make(file)
