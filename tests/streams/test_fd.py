"""FDReader and FDWriter against the running kernel: files, pipes, sockets, offsets, memory that faults."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import (
    Block,
    BlockSeq,
    FDReader,
    FDWriter,
    HostFaultError,
    read_full_to_blocks,
    write_full_from_blocks,
)
from sample_blocks import blocks, room
from usermem.testing.faulty_memory import Fault, FaultyMemory

FAULTS: list[Fault] = ["segv", "bus"]
DATA = bytes(range(1, 201))

Fds = Callable[[], tuple[int, int]]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A regular file that holds DATA, open for reading and writing."""
    (tmp_path / "data").write_bytes(DATA)
    fd = os.open(tmp_path / "data", os.O_RDWR)
    yield fd
    os.close(fd)


def _socketpair() -> tuple[int, int]:
    one, two = socket.socketpair()
    return one.detach(), two.detach()


@pytest.fixture(params=[os.pipe, _socketpair], ids=["pipe", "socketpair"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """(reading end, writing end) of a pipe or of a stream socket, with a little room."""
    outlet, inlet = request.param()
    yield outlet, inlet
    for fd in (outlet, inlet):
        os.close(fd)


def position(fd: int) -> int:
    """The file's own offset."""
    return os.lseek(fd, 0, os.SEEK_CUR)


def test_a_file_is_read_to_its_end(file: int) -> None:
    """All blocks in one call, in order; a short count at the end, then 0 for ever."""
    dsts = room(3, 5, 7)
    reader = FDReader(file)
    assert reader.read_to_blocks(dsts) == 15
    assert (dsts.tobytes(), position(file)) == (DATA[:15], 15)
    rest = room(1000, 10)
    assert [reader.read_to_blocks(rest) for _ in range(3)] == [185, 0, 0]
    assert rest.tobytes() == DATA[15:] + b"\xee" * 825


def test_a_file_is_written(file: int) -> None:
    """All blocks in one call, in order, over what was there."""
    assert FDWriter(file).write_from_blocks(blocks(b"one", b"two")) == 6
    assert position(file) == 6
    assert os.pread(file, 9, 0) == b"onetwo" + DATA[6:9]


def test_an_offset_of_ones_own(file: int) -> None:
    """With ``offset`` the file's own stays where it is, and ours moves on by what was moved; past the end it is 0."""
    reader, writer = FDReader(file, 190), FDWriter(file, 198)
    dsts = room(4, 4)
    assert (reader.read_to_blocks(dsts), reader.offset) == (8, 198)
    assert dsts.tobytes() == DATA[190:198]
    assert (writer.write_from_blocks(blocks(b"ab", b"cd")), writer.offset) == (4, 202)
    assert (reader.read_to_blocks(dsts), reader.offset) == (4, 202)
    assert dsts.tobytes() == b"abcd" + DATA[194:198]
    assert (reader.read_to_blocks(dsts), reader.offset) == (0, 202)
    assert position(file) == 0
    assert FDReader(file, 1 << 40).read_to_blocks(dsts) == 0


def test_an_empty_sequence_makes_no_call(ends: tuple[int, int]) -> None:
    """Nothing is asked of a pipe that would wait, nor of a descriptor that is none."""
    for fd in (*ends, 1 << 20):
        for offset in (None, 0):
            assert FDReader(fd, offset).read_to_blocks(BlockSeq()) == 0
            assert FDWriter(fd, offset).write_from_blocks(BlockSeq()) == 0


@pytest.mark.parametrize("make", [os.pipe, _socketpair])
def test_the_end_of_a_pipe(make: Fds) -> None:
    """What is there comes at once, short; when the other end is closed it is 0."""
    outlet, inlet = make()
    assert FDWriter(inlet).write_from_blocks(blocks(b"ab", b"cde")) == 5
    os.close(inlet)
    dsts = room(3, 100)
    reader = FDReader(outlet)
    assert [reader.read_to_blocks(dsts) for _ in range(3)] == [5, 0, 0]
    assert dsts.tobytes()[:6] == b"abcde\xee"
    os.close(outlet)


def test_would_block(ends: tuple[int, int]) -> None:
    """Nothing to give, or no room, is BlockingIOError; a little room is a short count; then all comes out in order."""
    outlet, inlet = ends
    for fd in ends:
        os.set_blocking(fd, False)
    with pytest.raises(BlockingIOError) as caught:
        FDReader(outlet).read_to_blocks(room(3))
    assert caught.value.errno == errno.EAGAIN
    writer = FDWriter(inlet)
    sent = 0
    with pytest.raises(BlockingIOError) as caught:
        while sent < 1 << 26:
            sent += writer.write_from_blocks(blocks(bytes(1 << 15), b"\x01" * (1 << 15)))
    assert caught.value.errno == errno.EAGAIN
    got = bytearray()
    reader = FDReader(outlet)
    buffer = bytearray(1 << 16)
    while len(got) < sent:
        got += buffer[: reader.read_to_blocks(BlockSeq.of(Block(buffer)))]
    assert len(got) == sent
    assert not any(got[: 1 << 15])
    with pytest.raises(BlockingIOError):
        read_full_to_blocks(reader, room(3))
    writer.write_from_blocks(blocks(b"xy"))
    assert read_full_to_blocks(reader, room(3)) == 2


@pytest.mark.parametrize("unsafe", [False, True])
def test_more_blocks_than_the_kernel_takes(file: int, unsafe: bool) -> None:
    """readv(2) and writev(2) refuse more than 1024 buffers: taking the first is a short count, not an error."""
    many = [Block(bytearray(1)) for _ in range(3000)]
    if unsafe:
        many[1500] = FaultyMemory("segv").block(1, 1)
    seq = BlockSeq(many)
    os.ftruncate(file, 0)
    data = os.urandom(3000)
    assert os.pwrite(file, data, 0) == 3000
    n = FDReader(file).read_to_blocks(seq)
    assert 0 < n <= 3000
    assert seq.tobytes() == data[:n] + bytes(3000 - n)
    assert read_full_to_blocks(FDReader(file, 0), seq) == 3000
    assert seq.tobytes() == data
    os.ftruncate(file, 0)
    assert 0 < FDWriter(file, 0).write_from_blocks(seq) <= 3000
    assert write_full_from_blocks(FDWriter(file, 0), seq) == 3000
    assert os.pread(file, 4000, 0) == data


@pytest.mark.parametrize("offset", [None, 10])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("k", range(7))
def test_a_faulting_destination_loses_nothing(file: int, fault: Fault, k: int, offset: int | None) -> None:
    """For every k: 2 + k bytes arrive, what lies behind is not touched, and the next call goes on from there."""
    source = DATA[offset or 0 :]
    memory = FaultyMemory(fault)
    before, behind = bytearray(2), bytearray(b"\xee" * 4)
    reader = FDReader(file, offset)
    dsts = BlockSeq([Block(before), memory.block(7, k), Block(behind)])
    with pytest.raises(HostFaultError) as caught:
        reader.read_to_blocks(dsts)
    assert (caught.value.transferred, caught.value.address) == (2 + k, memory.edge)
    assert before + memory.before_edge(k) == source[: 2 + k]
    assert behind == b"\xee" * 4
    with pytest.raises(HostFaultError) as again:
        reader.read_to_blocks(dsts.drop_first(2 + k))
    assert again.value.transferred == 0
    assert reader.offset == (None if offset is None else offset + 2 + k)
    assert reader.read_to_blocks(BlockSeq()) == 0
    one, rest = room(1), room(300)
    assert reader.read_to_blocks(one) == 1
    n = read_full_to_blocks(reader, rest)
    assert one.tobytes() + rest.tobytes()[:n] == source[2 + k :]
    assert rest.tobytes()[n:] == b"\xee" * (300 - n)


def test_what_memory_cannot_take_stays_in_the_pipe(ends: tuple[int, int]) -> None:
    """A pipe cannot be read again: what lies behind a fault is not taken out of it, whoever reads it next."""
    outlet, inlet = ends
    memory = FaultyMemory("bus")
    os.write(inlet, b"abcdefgh")
    with pytest.raises(HostFaultError) as caught:
        FDReader(outlet).read_to_blocks(BlockSeq.of(memory.block(8, 3)))
    assert (caught.value.transferred, memory.before_edge(3)) == (3, b"abc")
    with pytest.raises(HostFaultError) as again:
        FDReader(outlet).read_to_blocks(BlockSeq.of(memory.block(5, 0)))
    assert again.value.transferred == 0
    os.write(inlet, b"ijk")
    dsts = room(2, 20)
    assert FDReader(outlet).read_to_blocks(dsts) == 8
    assert dsts.tobytes()[:9] == b"defghijk\xee"


@pytest.mark.parametrize("offset", [None, 10])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("k", range(7))
def test_a_faulting_source_gives_what_came_before(file: int, fault: Fault, k: int, offset: int | None) -> None:
    """For every k: 2 + k bytes are written and no more, and trying again from there moves nothing."""
    memory = FaultyMemory(fault)
    writer = FDWriter(file, offset)
    srcs = BlockSeq([Block(b"ab"), memory.block(7, k, b"cdefghi"), Block(b"behind")])
    with pytest.raises(HostFaultError) as caught:
        writer.write_from_blocks(srcs)
    assert (caught.value.transferred, caught.value.address) == (2 + k, memory.edge)
    with pytest.raises(HostFaultError) as again:
        writer.write_from_blocks(srcs.drop_first(2 + k))
    assert again.value.transferred == 0
    start = offset or 0
    assert os.pread(file, 300, 0) == DATA[:start] + b"abcdefghi"[: 2 + k] + DATA[start + 2 + k :]
    assert (position(file), writer.offset) == ((2 + k, None) if offset is None else (0, 12 + k))


def test_a_source_that_faults_at_once_makes_no_call() -> None:
    """With nothing to write the kernel is not asked, so the fault comes before what it would say of the descriptor."""
    with pytest.raises(HostFaultError):
        FDWriter(1 << 20).write_from_blocks(BlockSeq.of(FaultyMemory("segv").block(3, 0)))


def test_a_short_write_before_a_fault_is_no_fault() -> None:
    """A pipe that takes less than what lies before the fault: its count, no error; the fault comes when it is met."""
    outlet, inlet = os.pipe()
    os.set_blocking(inlet, False)
    memory = FaultyMemory("segv", good_pages=64)
    size = 1 << 17
    srcs = BlockSeq.of(memory.block(size + 10, size))
    writer = FDWriter(inlet)
    n = writer.write_from_blocks(srcs)
    assert 0 < n < size
    assert len(os.read(outlet, 1 << 18)) == n
    with pytest.raises(HostFaultError) as caught:
        write_full_from_blocks(writer, srcs.drop_first(size - 5))
    assert (caught.value.transferred, len(os.read(outlet, 100))) == (5, 5)
    os.close(outlet)
    os.close(inlet)


@pytest.mark.parametrize("offset", [None, 0])
def test_descriptors_that_cannot(tmp_path: Path, offset: int | None) -> None:
    """The kernel's errors pass: EBADF for what is not open that way, ESPIPE for a pipe's offset, EPIPE, EISDIR."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    read_only, write_only = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    directory = os.open(tmp_path, os.O_RDONLY)
    outlet, inlet = os.pipe()
    unsafe = BlockSeq.of(FaultyMemory("segv").block(3, 3))
    expected: list[tuple[int, Callable[[BlockSeq], int]]] = [
        (errno.EBADF, FDReader(write_only, offset).read_to_blocks),
        (errno.EBADF, FDWriter(read_only, offset).write_from_blocks),
        (errno.EISDIR, FDReader(directory, offset).read_to_blocks),
    ]
    if offset is not None:
        expected += [
            (errno.ESPIPE, FDReader(outlet, offset).read_to_blocks),
            (errno.ESPIPE, FDWriter(inlet, offset).write_from_blocks),
        ]
    else:
        os.close(outlet)
        expected += [(errno.EPIPE, FDWriter(inlet).write_from_blocks), (errno.EBADF, FDReader(outlet).read_to_blocks)]
    for code, step in expected:
        for seq in (room(2), unsafe):
            with pytest.raises(OSError) as caught:
                step(seq)
            assert caught.value.errno == code
            assert not getattr(caught.value, "transferred", 0)
    for fd in (read_only, write_only, directory, inlet, *([] if offset is None else [outlet])):
        os.close(fd)
    assert path.read_bytes() == b"x"


def test_arguments_that_are_none() -> None:
    """A negative offset is the caller's ValueError, and something else than an int a TypeError."""
    for make in (FDReader, FDWriter):
        with pytest.raises(ValueError, match="offset"):
            make(0, -1)
        with pytest.raises(TypeError, match="fd"):
            make("0")  # type: ignore[arg-type]


@pytest.mark.parametrize("fd", [-1, -(1 << 40), (1 << 31), (1 << 32) - 1, 1 << 63, (1 << 64) - 1, 1 << 70])
def test_any_int_is_a_descriptor(fd: int) -> None:
    """What a guest has in its register and is no descriptor is EBADF, at the call."""
    for offset in (None, 0):
        with pytest.raises(OSError, match="descriptor") as read:
            FDReader(fd, offset).read_to_blocks(room(8))
        with pytest.raises(OSError, match="descriptor") as written:
            FDWriter(fd, offset).write_from_blocks(room(8))
        assert read.value.errno == written.value.errno == errno.EBADF


@given(data=st.binary(max_size=60), sizes=st.lists(st.integers(1, 9), max_size=9), unsafe=st.booleans())
def test_any_blocks_through_a_pipe(data: bytes, sizes: list[int], unsafe: bool) -> None:
    """Whatever the blocks: what went in comes out, in order, and the rest of the room stays as it was."""
    memory = FaultyMemory("segv")
    outlet, inlet = os.pipe()
    dsts = BlockSeq([*room(*sizes), memory.block(9, 9, b"\xee" * 9)] if unsafe else room(*sizes))
    with os.fdopen(outlet, "rb"), os.fdopen(inlet, "wb", buffering=0) as pipe:
        assert write_full_from_blocks(FDWriter(inlet), blocks(data[:7], data[7:20], data[20:])) == len(data)
        pipe.close()
        n = read_full_to_blocks(FDReader(outlet), dsts)
    assert n == min(len(data), dsts.num_bytes)
    assert dsts.tobytes() == data[:n] + b"\xee" * (dsts.num_bytes - n)
