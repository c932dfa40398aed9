"""Memory that faults under a Reader or Writer: exact counts, nothing lost, nothing behind the fault touched."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import (
    Block,
    BlockSeq,
    BlockSeqReader,
    BlockSeqWriter,
    FromIOReader,
    FromIOWriter,
    FromVecReaderFunc,
    FromVecWriterFunc,
    HostFaultError,
    Reader,
    ToIOReader,
    TransferError,
    Writer,
    adapters,
    read_full_to_blocks,
    write_full_from_blocks,
)
from sample_blocks import blocks
from scripted_files import GivesParts, TakesParts
from usermem.testing.faulty_memory import Fault, FaultyMemory

FAULTS: list[Fault] = ["segv", "bus"]


class Boom(Exception):
    """An error of the stream's own."""


def _file_reader(data: bytes) -> Reader:
    return FromIOReader(io.BytesIO(data))


def _vec_reader(data: bytes) -> Reader:
    file = io.BytesIO(data)
    return FromVecReaderFunc(lambda buffers: sum(file.readinto(buffer) for buffer in buffers))


def _block_reader(data: bytes) -> Reader:
    return BlockSeqReader(blocks(data[:5], data[5:]))


READERS = [_file_reader, _vec_reader, _block_reader]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("make", READERS)
@pytest.mark.parametrize("k", range(7))
def test_a_fault_of_the_destination_loses_nothing(make: Callable[[bytes], Reader], fault: Fault, k: int) -> None:
    """For every k: 2 + k bytes arrive, the blocks behind are not touched, and the next call goes on from there."""
    source = bytes(range(16))
    memory = FaultyMemory(fault)
    before, behind = bytearray(2), bytearray(b"\xee" * 4)
    reader = make(source)
    dsts = BlockSeq([Block(before), memory.block(7, k), Block(behind)])
    with pytest.raises(HostFaultError) as caught:
        reader.read_to_blocks(dsts)
    assert caught.value.transferred == 2 + k
    assert caught.value.address == memory.edge
    assert before + memory.before_edge(k) == source[: 2 + k]
    assert behind == b"\xee" * 4
    with pytest.raises(HostFaultError) as again:
        reader.read_to_blocks(dsts.drop_first(2 + k))
    assert again.value.transferred == 0
    small, rest = bytearray(1), bytearray(b"\xee" * 20)
    assert reader.read_to_blocks(blocks()) == 0
    assert reader.read_to_blocks(BlockSeq.of(Block(small))) == 1
    n = read_full_to_blocks(reader, BlockSeq.of(Block(rest)))
    assert small + rest[:n] == source[2 + k :]
    assert rest[n:] == b"\xee" * (20 - n)


class _Fails:
    """A file that gives b"abc" and fails with that, once, and then gives b"next"."""

    def __init__(self, error: BaseException) -> None:
        self._error: BaseException | None = error

    def readinto(self, buffer: memoryview, /) -> int:
        """As in io.RawIOBase, but that the error says what came before it."""
        buffer[:4] = b"next" if self._error is None else b"abc."
        if self._error is not None:
            error, self._error = self._error, None
            error.transferred = 3  # type: ignore[attr-defined]
            raise error
        return 4


FAILING: list[Any] = [
    pytest.param(FromIOReader, id="file"),
    pytest.param(lambda file: FromVecReaderFunc(lambda buffers: file.readinto(buffers[0])), id="function"),
]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), MemoryError()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("make", FAILING)
def test_an_interrupt_does_not_wait(make: Callable[[_Fails], Reader], error: BaseException) -> None:
    """Behind a fault, or behind bytes: it comes out of this call, says what was delivered, and loses none of them."""
    reader = make(_Fails(error))
    with pytest.raises(type(error)) as caught:
        reader.read_to_blocks(BlockSeq.of(FaultyMemory("segv").block(4, 1)))
    assert caught.value is error
    assert error.transferred == 1  # type: ignore[attr-defined]
    dst = bytearray(4)
    assert (reader.read_to_blocks(BlockSeq.of(Block(dst))), bytes(dst)) == (2, b"bc\0\0")
    assert (reader.read_to_blocks(BlockSeq.of(Block(dst))), bytes(dst)) == (4, b"next")
    file = ToIOReader(make(_Fails(error)))
    with pytest.raises(type(error)) as raised:
        file.readinto(bytearray(4))
    assert raised.value is error
    assert file.read(4) == b"next"


@pytest.mark.parametrize("error", [Boom("lost"), TransferError(errno.EIO, "disk", 3)], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("make", FAILING)
def test_an_error_of_the_source_is_not_lost_in_a_fault(make: Callable[[_Fails], Reader], error: Exception) -> None:
    """Bytes and an error come at once, and the destination faults among the bytes: first all bytes, then the error."""
    reader = make(_Fails(error))
    dst = bytearray(4)
    with pytest.raises(HostFaultError) as caught:
        reader.read_to_blocks(BlockSeq.of(FaultyMemory("segv").block(4, 1)))
    assert caught.value.transferred == 1
    assert reader.read_to_blocks(BlockSeq()) == 0
    assert (reader.read_to_blocks(BlockSeq.of(Block(dst))), bytes(dst)) == (2, b"bc\0\0")
    assert reader.read_to_blocks(BlockSeq()) == 0
    with pytest.raises(type(error)) as own:
        reader.read_to_blocks(BlockSeq.of(Block(dst)))
    assert own.value is error
    assert not getattr(error, "transferred", 0)
    assert "lost" in str(error) or "disk" in str(error)
    assert (reader.read_to_blocks(BlockSeq.of(Block(dst))), bytes(dst)) == (4, b"next")


@pytest.mark.parametrize("make", FAILING)
def test_would_block_does_not_outlive_its_call(make: Callable[[_Fails], Reader]) -> None:
    """That nothing more was there then says nothing of now: after the pending bytes the source is asked again."""
    reader = make(_Fails(BlockingIOError(errno.EAGAIN, "later")))
    dst = bytearray(4)
    with pytest.raises(HostFaultError):
        reader.read_to_blocks(BlockSeq.of(FaultyMemory("segv").block(4, 1)))
    assert (reader.read_to_blocks(BlockSeq.of(Block(dst))), bytes(dst)) == (2, b"bc\0\0")
    assert (reader.read_to_blocks(BlockSeq.of(Block(dst))), bytes(dst)) == (4, b"next")


def _file_writer(got: bytearray) -> Writer:
    class File:
        def write(self, data: memoryview, /) -> int:
            assert len(data), "called with nothing"
            got.extend(data)
            return len(data)

    return FromIOWriter(File())


def _vec_writer(got: bytearray) -> Writer:
    def write(buffers: Sequence[memoryview]) -> int:
        assert all(buffers), "called with nothing"
        got.extend(b"".join(buffers))
        return sum(map(len, buffers))

    return FromVecWriterFunc(write)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("make", [_file_writer, _vec_writer])
@pytest.mark.parametrize("k", range(7))
def test_a_fault_of_the_source_gives_what_came_before(
    make: Callable[[bytearray], Writer], fault: Fault, k: int
) -> None:
    """For every k: the bytes before the fault are written, nothing behind it, and nobody is called with nothing."""
    memory = FaultyMemory(fault)
    got = bytearray()
    writer = make(got)
    srcs = BlockSeq([Block(b"ab"), memory.block(7, k, b"cdefghi"), Block(b"behind")])
    with pytest.raises(HostFaultError) as caught:
        writer.write_from_blocks(srcs)
    assert got == b"abcdefghi"[: 2 + k]
    assert (caught.value.transferred, caught.value.address) == (2 + k, memory.edge)
    with pytest.raises(HostFaultError) as again:
        writer.write_from_blocks(srcs.drop_first(2 + k))
    assert (len(got), again.value.transferred) == (2 + k, 0)


@pytest.mark.parametrize("make", [FromIOWriter, lambda file: FromVecWriterFunc(lambda views: file.write(views[0]))])
def test_a_short_write_before_the_fault_is_no_fault(make: Callable[[TakesParts], Writer]) -> None:
    """A writer that stops before the memory does gives its count; its own error comes before the fault too."""
    memory = FaultyMemory("segv")
    srcs = BlockSeq.of(memory.block(8, 4, b"good"))
    file = TakesParts(3)
    assert make(file).write_from_blocks(srcs) == 3
    assert (file.got, file.calls) == (b"goo", [4])
    with pytest.raises(Boom):
        make(TakesParts(Boom())).write_from_blocks(srcs)


def test_the_block_writer_keeps_what_is_behind_a_fault() -> None:
    """BlockSeqWriter's blocks shrink by exactly what was copied, whichever side faults."""
    memory = FaultyMemory("bus")
    writer = BlockSeqWriter(BlockSeq([Block(bytearray(2)), memory.block(6, 4)]))
    with pytest.raises(HostFaultError) as caught:
        writer.write_from_blocks(blocks(b"abcdefgh"))
    assert (caught.value.transferred, writer.blocks.num_bytes) == (6, 2)
    target = bytearray(9)
    writer = BlockSeqWriter(BlockSeq.of(Block(target)))
    with pytest.raises(HostFaultError):
        writer.write_from_blocks(BlockSeq([Block(b"ab"), memory.block(3, 1, b"d")]))
    assert (bytes(target), writer.blocks.num_bytes) == (b"abd".ljust(9, b"\0"), 6)


SIZES = st.lists(st.integers(1, 9), max_size=8)


def _mixed(sizes: list[int], unsafe: list[bool], memory: FaultyMemory) -> BlockSeq:
    """Blocks of these sizes, some of them in memory that needs safecopy (and does not fault)."""
    made = []
    place = 1000
    for size, is_unsafe in zip(sizes, unsafe, strict=False):
        made.append(memory.block(size, place) if is_unsafe else Block(bytearray(size)))
        place -= size
    return BlockSeq(made)


@given(source=st.binary(max_size=60), parts=SIZES, sizes=SIZES, unsafe=st.lists(st.booleans(), min_size=8, max_size=8))
def test_any_chunks_into_any_blocks(source: bytes, parts: list[int], sizes: list[int], unsafe: list[bool]) -> None:
    """However the source comes and whatever the blocks are: the same bytes, none lost, none left out."""
    cut = list[bytes | BaseException | None]()
    left = source
    for n in parts:
        cut.append(left[:n])
        left = left[n:]
    file = GivesParts(*(part for part in [*cut, left] if part))
    memory = FaultyMemory("segv")
    dsts = _mixed(sizes, unsafe, memory)
    n = read_full_to_blocks(FromIOReader(file), dsts)
    assert n == min(len(source), dsts.num_bytes)
    assert dsts.tobytes()[:n] == source[:n]
    taker = TakesParts(*parts, *[100] * 60)
    assert write_full_from_blocks(FromIOWriter(taker), dsts.take_first(n)) == n
    assert taker.got == source[:n]
    got = bytearray()
    assert write_full_from_blocks(_vec_writer(got), dsts.take_first(n)) == n
    assert got == source[:n]
    again = _mixed(sizes, unsafe, memory)
    assert read_full_to_blocks(_vec_reader(source), again) == n
    assert again.tobytes()[:n] == source[:n]


class Long:
    """A file object that takes and gives all it is asked for, and notes how much that is."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def readinto(self, buffer: memoryview) -> int:
        """As io.RawIOBase: all of it."""
        self.asked.append(len(buffer))
        return len(buffer)

    def write(self, data: memoryview) -> int:
        """As io.RawIOBase: all of it."""
        self.asked.append(len(data))
        return len(data)

    def vector(self, buffers: Sequence[memoryview]) -> int:
        """A function over a list of buffers: all of them."""
        self.asked.append(sum(map(len, buffers)))
        return self.asked[-1]


def test_staging_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of memory that needs safecopy foreign code gets a copy in pieces; a function, which is called once, the first."""
    monkeypatch.setattr(adapters, "_PIECE", 1000)
    monkeypatch.setattr(adapters, "_STAGED", 1500)
    memory = FaultyMemory("segv")
    unsafe = memory.block(3500, 3500)
    blocks = BlockSeq([Block(bytearray(700)), unsafe, Block(bytearray(40))])
    pieces = [700, 1000, 1000, 1000, 500, 40]
    moves: list[tuple[Callable[[Long], int], list[int]]] = [
        (lambda file: FromIOReader(file).read_to_blocks(blocks), pieces),
        (lambda file: FromIOWriter(file).write_from_blocks(blocks), pieces),
        (lambda file: FromVecReaderFunc(file.vector).read_to_blocks(blocks), [2200]),
        (lambda file: FromVecWriterFunc(file.vector).write_from_blocks(blocks), [2200]),
    ]
    for move, asked in moves:
        file = Long()
        assert move(file) == sum(asked)
        assert file.asked == asked
    data = bytes(range(250)) * 14
    assert FromIOReader(io.BytesIO(data)).read_to_blocks(BlockSeq.of(unsafe)) == 3500
    assert unsafe.tobytes() == data
