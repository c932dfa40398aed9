"""Readers and Writers as binary file objects: what the standard library's io, shutil and struct expect of one."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import (
    BlockSeq,
    BlockSeqReader,
    BlockSeqWriter,
    EndOfBlockSeqError,
    FromIOReader,
    FromIOWriter,
    HostFaultError,
    ReaderFunc,
    ToIOReader,
    ToIOWriter,
    WriterFunc,
)
from sample_blocks import blocks, room
from scripted_files import GivesParts, TakesParts
from usermem.testing.faulty_memory import FaultyMemory


class Boom(Exception):
    """An error of the stream's own."""


def _moves(*results: int | BaseException) -> Callable[[BlockSeq], int]:
    """A function of a Reader or Writer that returns, or raises, one result a call."""
    left = list(results)

    def step(seq: BlockSeq) -> int:
        result = left.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result

    return step


def _boom(transferred: int) -> Boom:
    boom = Boom()
    boom.transferred = transferred  # type: ignore[attr-defined]
    return boom


def test_a_reader_as_a_raw_file() -> None:
    """read(), readinto(), readall() and the flags of io.RawIOBase; at the end 0 and b''."""
    file = ToIOReader(BlockSeqReader(blocks(b"\x01\x02\x03\x04", b"ab", b"the rest")))
    assert (file.readable(), file.writable(), file.seekable()) == (True, False, False)
    assert struct.unpack(">I", file.read(4)) == (0x01020304,)
    buffer = bytearray(5)
    assert file.readinto(memoryview(buffer)[1:3]) == 2
    assert buffer == b"\0ab\0\0"
    assert file.read() == b"the rest"
    assert (file.read(1), file.readall(), file.readinto(buffer)) == (b"", b"", 0)


def test_the_other_direction_is_an_oserror() -> None:
    """io.IOBase: where readable() is false read() raises OSError, where writable() is false write() does."""
    with pytest.raises(OSError):
        ToIOReader(BlockSeqReader(blocks(b"abc"))).write(b"x")
    with pytest.raises(OSError):
        ToIOWriter(BlockSeqWriter(room(3))).read(1)


@pytest.mark.parametrize("size", [1, 3, 8192])
def test_a_reader_under_io_buffered_reader(size: int) -> None:
    """Any buffer size gives the same lines; peek() and read1() work."""
    text = b"one\ntwo\n\nfour"
    raw = ToIOReader(FromIOReader(GivesParts(text[:5], text[5:6], text[6:])))
    with io.BufferedReader(raw, buffer_size=size) as file:
        assert file.peek(1)[:1] == b"o"
        assert file.read1(1) == b"o"
        assert list(file) == io.BytesIO(text[1:]).readlines()
    assert raw.closed


def test_a_reader_under_copyfileobj_and_into_a_writer() -> None:
    """shutil.copyfileobj copies from a Reader to a Writer, through their file objects."""
    data = os.urandom(10_000)
    dst = room(1, 9_000, 999)
    shutil.copyfileobj(ToIOReader(BlockSeqReader(blocks(data[:7], data[7:]))), ToIOWriter(BlockSeqWriter(dst)), 333)
    assert dst.tobytes() == data


def test_a_writer_as_a_raw_file() -> None:
    """write() and the flags of io.RawIOBase; any buffer is taken byte for byte."""
    dst = room(4, 8)
    file = ToIOWriter(BlockSeqWriter(dst))
    assert (file.readable(), file.writable(), file.seekable()) == (False, True, False)
    assert file.write(memoryview(struct.pack("<2H", 1, 2)).cast("H")) == 4
    assert file.write(b"") == 0
    assert file.write(bytearray(b"12345678")) == 8
    assert dst.tobytes() == b"\1\0\2\x0012345678"


@pytest.mark.parametrize("size", [1, 5, 8192])
def test_a_writer_under_io_buffered_writer(size: int) -> None:
    """BufferedWriter writes on after short counts, and closes what is below."""
    sink = TakesParts(1, 2, 3, 1, 1)
    raw = ToIOWriter(FromIOWriter(sink))
    with io.BufferedWriter(raw, buffer_size=size) as file:
        for word in (b"now ", b"is ", b"the ", b"time"):
            assert file.write(word) == len(word)
    assert sink.got == b"now is the time"
    assert raw.closed


def test_the_end_of_a_destination_does_not_spin() -> None:
    """Under BufferedWriter a full destination is ENOSPC, with the bytes that fitted in place."""
    dst = room(5)
    raw = ToIOWriter(BlockSeqWriter(dst))
    file = io.BufferedWriter(raw)
    file.write(b"too much")
    with pytest.raises(EndOfBlockSeqError) as caught:
        file.flush()
    assert caught.value.errno == errno.ENOSPC
    assert dst.tobytes() == b"too m"
    with pytest.raises(EndOfBlockSeqError):
        file.close()


def test_a_writer_that_takes_nothing_has_ended() -> None:
    """A count of 0 for some bytes would make BufferedWriter call for ever, so it is ENOSPC; for no bytes it is 0."""
    file = ToIOWriter(WriterFunc(_moves(0)))
    assert file.write(b"") == 0
    with pytest.raises(OSError) as caught:
        file.write(b"x")
    assert caught.value.errno == errno.ENOSPC


def test_an_error_of_a_reader_after_progress() -> None:
    """A short count now, the very object at the next call, for it no byte moved, and the call after that goes on."""
    boom = _boom(4)
    file = ToIOReader(ReaderFunc(_moves(boom, 3)))
    assert file.readinto(bytearray(9)) == 4
    with pytest.raises(Boom) as caught:
        file.readinto(bytearray(9))
    assert caught.value is boom
    assert not getattr(boom, "transferred", 0)
    assert file.readinto(bytearray(9)) == 3


def test_an_error_of_a_writer_after_progress() -> None:
    """It comes at once with the whole count, since who writes mostly ignores a short one; the next call goes on."""
    boom = _boom(4)
    file = ToIOWriter(WriterFunc(_moves(2, boom, 3, 6)))
    with pytest.raises(Boom) as caught:
        file.write(bytes(9))
    assert (caught.value, boom.transferred) == (boom, 6)  # type: ignore[attr-defined]
    assert file.write(bytes(9)) == 9


def test_a_writer_that_fails_under_a_buffered_writer() -> None:
    """BufferedWriter is given the count first: what it keeps and writes again is what was not taken."""
    got = bytearray()
    steps: list[int | OSError] = [2, OSError(errno.EIO, "after three more"), 100]
    steps[1].transferred = 3  # type: ignore[union-attr]

    def take(srcs: BlockSeq) -> int:
        step = steps.pop(0)
        n = min(step if isinstance(step, int) else 3, srcs.num_bytes)
        got.extend(srcs.take_first(n).tobytes())
        if not isinstance(step, int):
            raise step
        return n

    file = io.BufferedWriter(ToIOWriter(WriterFunc(take)))
    file.write(b"0123456789")
    with pytest.raises(OSError) as caught:
        file.flush()
    assert (caught.value.errno, got, getattr(caught.value, "transferred", 0)) == (errno.EIO, bytearray(b"01234"), 0)
    file.close()
    assert got == b"0123456789"


@pytest.mark.parametrize("dump", [shutil.copyfileobj, lambda source, file: pickle.dump(source.read(), file)])
def test_who_ignores_counts_loses_nothing_silently(dump: Callable[[Any, Any], None]) -> None:
    """shutil.copyfileobj and pickle.dump do not look at what write() returns: a full destination is an error."""
    dst = room(30, 34)
    with pytest.raises(EndOfBlockSeqError) as caught:
        dump(io.BytesIO(b"q" * 100), ToIOWriter(BlockSeqWriter(dst)))
    assert caught.value.transferred == 64
    sink = TakesParts(*[10] * 20)  # short counts are progress
    dump(io.BytesIO(b"q" * 100), ToIOWriter(FromIOWriter(sink)))
    assert sink.got.count(b"q") == 100


def test_the_bytes_before_an_error_under_a_buffered_reader() -> None:
    """read(), readline() and readinto() give what came before the error, and their next call raises it."""
    reads: list[Callable[[Any], bytes | None]] = [
        lambda file: file.read(10),
        lambda file: file.readline(),
        lambda file: _into(file, 10),
        lambda file: file.read(),
    ]
    for read in reads:
        boom = Boom()
        file = io.BufferedReader(ToIOReader(FromIOReader(GivesParts(b"fir", b"st", boom, b"more"))))
        assert read(file) == b"first"
        with pytest.raises(Boom) as caught:
            read(file)
        assert caught.value is boom
        assert read(file) == b"more"
        # Where the reader says how far it got, calls may read in pieces before: the last byte is given alone.
        memory = FaultyMemory("segv")
        file = io.BufferedReader(ToIOReader(BlockSeqReader(BlockSeq.of(memory.block(9, 5, b"abcde")))))
        assert (file.read(2), read(file)) == (b"ab", b"cde")
        with pytest.raises(HostFaultError):
            read(file)


def _into(file: io.BufferedReader, n: int) -> bytes:
    buffer = bytearray(n)
    return bytes(buffer[: file.readinto(buffer)])


@pytest.mark.parametrize(
    ("make", "call"),
    [
        pytest.param(lambda step: ToIOReader(ReaderFunc(step)), lambda f: f.readinto(bytearray(9)), id="reader"),
        pytest.param(lambda step: ToIOWriter(WriterFunc(step)), lambda f: f.write(bytes(9)), id="writer"),
    ],
)
class TestBothFiles:
    """What files over a Reader and over a Writer have in common."""

    def test_error_at_once(self, make: Callable[[Any], Any], call: Callable[[Any], int | None]) -> None:
        """With nothing moved there is no count to give: the error comes at once, and once."""
        boom = Boom()
        file = make(_moves(boom, 9))
        with pytest.raises(Boom) as caught:
            call(file)
        assert caught.value is boom
        assert call(file) == 9

    def test_would_block(self, make: Callable[[Any], Any], call: Callable[[Any], int | None]) -> None:
        """Would-block is None, as io.RawIOBase has it; after progress it is a short count and no error later."""
        later = BlockingIOError(errno.EAGAIN, "later")
        later.transferred = 2  # type: ignore[attr-defined]
        file = make(_moves(BlockingIOError(errno.EAGAIN, "later"), later, 9))
        assert [call(file), call(file), call(file)] == [None, 2, 9]

    def test_closed(self, make: Callable[[Any], Any], call: Callable[[Any], int | None]) -> None:
        """A closed file calls nobody and raises ValueError; closing twice is fine."""
        file = make(_moves())
        file.close()
        file.close()
        assert file.closed
        with pytest.raises(ValueError, match="closed"):
            call(file)


def test_a_fault_after_progress_comes_at_the_next_call() -> None:
    """Source memory that faults half-way: first the bytes before it, then the fault, for as long as it is there."""
    memory = FaultyMemory("segv")
    file = io.BufferedReader(ToIOReader(BlockSeqReader(BlockSeq.of(memory.block(9, 5, b"abcde")))))
    assert (file.read1(), file.read1()) == (b"abcd", b"e")
    for _ in range(2):
        with pytest.raises(HostFaultError) as caught:
            file.read1()
        assert (caught.value.address, caught.value.transferred) == (memory.edge, 0)


def test_would_block_under_buffered_files() -> None:
    """BufferedReader and BufferedWriter know a raw file that has nothing, or no room, now."""
    reader = io.BufferedReader(ToIOReader(FromIOReader(GivesParts(b"ab", None, None, b"c"))))
    assert reader.read(9) == b"ab"
    assert reader.read(9) is None
    assert reader.read(9) == b"c"
    sink = TakesParts(2, None)
    writer = io.BufferedWriter(ToIOWriter(FromIOWriter(sink)), buffer_size=2)
    writer.write(b"ab")
    with pytest.raises(BlockingIOError) as caught:
        writer.write(b"cdef")
    assert caught.value.characters_written == 2
    writer.close()
    assert sink.got == b"abcd"


class OneMessage:
    """A datagram socket, to an adapter that must not touch it."""

    message_oriented = True

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Never to be called."""
        raise AssertionError("called")

    write_from_blocks = read_to_blocks


def test_messages_are_refused() -> None:
    """A file object is read in a loop, and 0 is its end: no place for messages."""
    with pytest.raises(ValueError, match="reader is message-oriented"):
        ToIOReader(OneMessage())
    with pytest.raises(ValueError, match="writer is message-oriented"):
        ToIOWriter(OneMessage())


def test_buffers_that_are_none() -> None:
    """A read-only destination, or no buffer at all, is a TypeError before anyone is called."""
    reader, writer = ToIOReader(ReaderFunc(_moves())), ToIOWriter(WriterFunc(_moves()))
    bad: Any
    for bad in (b"read-only", "text", 3):
        with pytest.raises(TypeError, match="buffer"):
            reader.readinto(bad)
    for bad in ("text", 3, None):
        with pytest.raises(TypeError, match="data"):
            writer.write(bad)
    with pytest.raises(ValueError, match="contiguous"):
        reader.readinto(memoryview(bytearray(8))[::2])
    with pytest.raises(ValueError, match="contiguous"):
        writer.write(memoryview(bytes(8))[::2])


@given(source=st.binary(max_size=80), parts=st.lists(st.integers(1, 20), max_size=9), size=st.integers(1, 30))
def test_any_chunks_through_files(source: bytes, parts: list[int], size: int) -> None:
    """file -> Reader -> file, under a BufferedReader: however it comes, the same bytes."""
    cut: list[bytes] = []
    left = source
    for n in parts:
        cut.append(left[:n])
        left = left[n:]
    chunks = [part for part in [*cut, left] if part]
    file = io.BufferedReader(ToIOReader(FromIOReader(GivesParts(*chunks))), buffer_size=size)
    assert b"".join(iter(lambda: file.read(7), b"")) == source
    assert ToIOReader(FromIOReader(GivesParts(*chunks))).readall() == source
    sink = TakesParts(*parts)
    with io.BufferedWriter(ToIOWriter(FromIOWriter(sink)), buffer_size=size) as writer:
        for chunk in chunks:
            writer.write(chunk)
    assert sink.got == source
