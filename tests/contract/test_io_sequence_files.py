"""User memory as file objects that the standard library's io, shutil and struct can use."""

from __future__ import annotations

import errno
import io
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hostarch import AddrRange, AddrRangeSeq, mman
from patchy_io import PatchyIO
from safemem import FromIOReader, ToIOReader, TransferError
from usermem import (
    AddressSpace,
    BytesIO,
    FaultError,
    FaultReason,
    IOReadWriter,
    IOSequence,
    IOSequenceReadWriter,
    bytes_io_sequence,
    copy_in_vec,
    copy_out_vec,
)
from watched_io import WatchedIO

TOP = 1 << 64
PAGE = 4096


def ranges(*pairs: tuple[int, int]) -> AddrRangeSeq:
    """A sequence of [start, end) ranges."""
    return AddrRangeSeq(AddrRange(start, end) for start, end in pairs)


def letters(*pairs: tuple[int, int]) -> tuple[bytearray, IOSequence]:
    """Twelve letters, and a sequence of ranges in them; what is behind them is a hole."""
    buffer = bytearray(b"abcdefghijkl")
    return buffer, IOSequence(BytesIO(buffer), ranges(*pairs))


@pytest.fixture
def hole() -> Iterator[tuple[AddressSpace, int]]:
    """A space, and an address with two readable and writable pages before it and nothing behind it."""
    with AddressSpace() as space:
        flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
        space.mmap(0x10000, 2 * PAGE, mman.PROT_READ | mman.PROT_WRITE, flags)
        yield space, 0x12000


def fill(space: AddressSpace, addr: int) -> None:
    """Map the page at addr, as the guest's fault handler would."""
    flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED_NOREPLACE
    space.mmap(addr, PAGE, mman.PROT_READ | mman.PROT_WRITE, flags)


def test_a_reader_is_a_raw_file() -> None:
    """read(), readinto(), readall(), struct and the flags of io.RawIOBase; at the end b'' and 0."""
    file = letters((4, 8), (3, 3), (0, 4), (11, 12))[1].reader()
    assert isinstance(file, io.RawIOBase)
    assert (file.readable(), file.writable(), file.seekable(), file.isatty()) == (True, True, True, False)
    assert struct.unpack("<IH", file.read(6)) == (0x68676665, 0x6261)
    assert file.num_bytes == 3
    buffer = bytearray(b"......")
    assert file.readinto(memoryview(buffer)[1:3]) == 2
    assert buffer == b".cd..."
    assert [file.read(), file.read(), file.read(1), file.readinto(buffer)] == [b"l", b"", b"", 0]
    assert file.num_bytes == 0


def test_a_writer_is_a_raw_file() -> None:
    """write() fills the ranges in order; what does not fit is ENOSPC with the count of what did."""
    buffer, seq = letters((8, 12), (0, 2))
    file = seq.writer()
    assert file.write(memoryview(struct.pack(">2H", 0x3132, 0x3334)).cast("H")) == 4
    assert (file.write(b""), file.num_bytes) == (0, 2)
    for fits in (2, 0):
        with pytest.raises(TransferError) as caught:
            file.write(b"ABCD")
        assert (caught.value.errno, caught.value.transferred, file.tell()) == (errno.ENOSPC, fits, 6)
    assert file.write(b"") == 0
    assert buffer == b"ABcdefgh1234"


@pytest.mark.parametrize("size", [1, 3, 8192])
def test_under_buffered_files(size: int) -> None:
    """BufferedReader, BufferedWriter, BufferedRWPair and TextIOWrapper, with any size of buffer."""
    text = b"one\ntwo\n\nfour"
    with io.BufferedReader(bytes_io_sequence(text).reader(), buffer_size=size) as file:
        assert file.peek(1)[:1] == b"o"
        assert list(file) == io.BytesIO(text).readlines()
    buffer, seq = letters((6, 12), (0, 6))
    with io.BufferedWriter(seq.writer(), buffer_size=size) as writer:
        for word in (b"now ", b"is", b" the ", b"1"):
            assert writer.write(word) == len(word)
    assert buffer == b" the 1now is"
    target = bytearray(8)
    pair = io.BufferedRWPair(bytes_io_sequence(b"question").reader(), bytes_io_sequence(target).writer(), size)
    assert (pair.write(b"answer"), pair.read(5), pair.read()) == (6, b"quest", b"ion")
    pair.close()
    assert target == b"answer\0\0"
    lines = io.TextIOWrapper(io.BufferedReader(bytes_io_sequence("é\nß".encode()).reader(), size), encoding="utf-8")
    assert lines.readlines() == ["é\n", "ß"]


def test_copyfileobj() -> None:
    """shutil.copyfileobj copies guest to guest, and stops with ENOSPC when the destination is full."""
    data = os.urandom(10_000)
    target = bytearray(10_000)
    shutil.copyfileobj(bytes_io_sequence(data).reader(), bytes_io_sequence(target).writer(), 333)
    assert target == data
    small = bytearray(5000)
    with pytest.raises(OSError) as caught:
        shutil.copyfileobj(bytes_io_sequence(data).reader(), bytes_io_sequence(small).writer(), 100)
    assert (caught.value.errno, bytes(small)) == (errno.ENOSPC, data[:5000])


def test_a_full_destination_does_not_spin() -> None:
    """BufferedWriter over too little room: ENOSPC from flush() and close(), with what fitted in place."""
    target = bytearray(5)
    file = io.BufferedWriter(bytes_io_sequence(target).writer())
    file.write(b"too much")
    for step in (file.flush, file.close):
        with pytest.raises(OSError) as caught:
            step()
        assert caught.value.errno == errno.ENOSPC
    assert target == b"too m"


def _sequence_file(space: AddressSpace, start: int) -> IOSequenceReadWriter | IOReadWriter:
    return IOSequence(space, ranges((start, start + 100))).reader()


def _address_file(space: AddressSpace, start: int) -> IOSequenceReadWriter | IOReadWriter:
    return IOReadWriter(space, start)


@pytest.mark.parametrize("make", [_sequence_file, _address_file])
class TestFaultsOfFiles:
    """Both kinds of file at a hole, which the guest then fills."""

    def test_short_count_then_error(
        self, hole: tuple[AddressSpace, int], make: Callable[[AddressSpace, int], Any]
    ) -> None:
        """Bytes before the hole are a short read, or a fault with their count; then the fault until it is filled."""
        space, edge = hole
        space.copy_out(edge - 6, b"abcdef")
        for name, argument in (("readinto", bytearray(9)), ("write", b"ABCDEFGHI"), ("write", bytearray(b"ABCDEFGHI"))):
            move = getattr(make(space, edge - 6), name)
            if name == "readinto":
                assert move(argument) == 6
            for moved in (6, 0) if name == "write" else (0, 0):
                with pytest.raises(FaultError) as caught:
                    move(argument)
                assert (caught.value.address, caught.value.transferred) == (edge, moved)
                assert caught.value.reason is FaultReason.UNMAPPED
            fill(space, edge)
            assert move(argument) == 9
            space.munmap(edge, PAGE)
        assert space.read_bytes(edge - 6, 6) == b"ABCDEF"

    def test_under_a_buffered_reader(
        self, hole: tuple[AddressSpace, int], make: Callable[[AddressSpace, int], Any]
    ) -> None:
        """No byte is lost: what came before the hole is given out, then the fault, and then it goes on."""
        space, edge = hole
        space.copy_out(edge - 6, b"abcdef")
        file = io.BufferedReader(make(space, edge - 6))
        assert (file.read(2), file.read1(), file.read1()) == (b"ab", b"cde", b"f")
        with pytest.raises(FaultError):
            file.read1()
        fill(space, edge)
        space.copy_out(edge, b"ghi")
        assert file.read(3) == b"ghi"

    def test_under_a_buffered_writer(
        self, hole: tuple[AddressSpace, int], make: Callable[[AddressSpace, int], Any]
    ) -> None:
        """What could not be written stays in the buffer, and is written once the hole is filled."""
        space, edge = hole
        file = io.BufferedWriter(make(space, edge - 6))
        file.write(b"abcdefghi")
        with pytest.raises(FaultError) as caught:
            file.flush()
        assert (caught.value.address, space.read_bytes(edge - 6, 6)) == (edge, b"abcdef")
        fill(space, edge)
        file.close()
        assert space.read_bytes(edge - 6, 9) == b"abcdefghi"

    def test_closing(self, hole: tuple[AddressSpace, int], make: Callable[[AddressSpace, int], Any]) -> None:
        """Closed once or twice, the file is closed: ValueError, and nothing is read or written; the memory stays."""
        space, edge = hole
        with make(space, edge - 6) as file:
            assert file.write(b"abc") == 3
        file.close()
        steps: list[Callable[[], object]] = [
            lambda: file.read(1),
            lambda: file.readinto(bytearray(1)),
            lambda: file.write(b"x"),
        ]
        for step in steps:
            with pytest.raises(ValueError, match="closed"):
                step()
        assert space.read_bytes(edge - 6, 6) == b"abc\0\0\0"

    def test_arguments_that_are_none(
        self, hole: tuple[AddressSpace, int], make: Callable[[AddressSpace, int], Any]
    ) -> None:
        """No buffer, or one that cannot be written: TypeError with the argument's name, and the position stays."""
        space, edge = hole
        file = make(space, edge - 6)
        bad: Any
        for bad in (b"read-only", "text", 3):
            with pytest.raises(TypeError, match="buffer"):
                file.readinto(bad)
        for bad in ("text", 3, None):
            with pytest.raises(TypeError, match="data"):
                file.write(bad)
        assert (file.write(b"abcdef"), space.read_bytes(edge - 6, 6)) == (6, b"abcdef")


def test_an_error_of_the_ios_own() -> None:
    """What is no fault is treated alike: the short count first, then the error, for as long as it is there."""

    class Broken(WatchedIO):
        def copy_in(self, addr: int, dst: Any, *, ignore_permissions: bool = False) -> int:
            if addr >= 4:
                raise OSError(errno.EIO, "a memory that broke")
            return super().copy_in(addr, dst, ignore_permissions=ignore_permissions)

    file = IOSequence(Broken(BytesIO(b"abcdefgh")), ranges((0, 4), (4, 8))).reader()
    assert (file.read(8), file.num_bytes) == (b"abcd", 4)
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            file.read(8)
        assert caught.value.errno == errno.EIO


def test_the_position_of_an_address_file(hole: tuple[AddressSpace, int]) -> None:
    """``addr`` moves with each read and write, by what was moved, and may be set."""
    space, edge = hole
    file = IOReadWriter(space, edge - 8)
    assert (file.write(b"abcdefgh"), file.addr) == (8, edge)
    file.addr = edge - 4
    assert (file.read(2), file.addr) == (b"ef", edge - 2)
    assert (file.readinto(bytearray(50)), file.addr) == (2, edge)
    assert (file.readinto(bytearray()), file.write(b""), file.addr) == (0, 0, edge)
    file.addr = -5
    with pytest.raises(FaultError):
        file.read(1)
    assert file.addr == -5


def test_options_of_an_address_file() -> None:
    """Each access is made with the options of the file."""
    watched = WatchedIO(BytesIO(bytearray(8)))
    file = IOReadWriter(watched, 1, ignore_permissions=True)
    assert (file.read(2), file.write(b"ab")) == (b"\0\0", 2)
    assert watched.accesses == [("copy_in", 1, 2), ("copy_out", 3, 2)]
    assert watched.ignored == [True, True]


def test_an_address_file_at_the_top() -> None:
    """The last byte there is can be read and written; past it is a fault, never that byte again."""
    memory = bytearray(b"01234567")
    file = IOReadWriter(PatchyIO({TOP - 8: memory}), TOP - 5)
    assert (file.read(2), file.read(9), file.addr) == (b"34", b"567", TOP)
    steps: list[Callable[[], object]] = [lambda: file.read(1), lambda: file.write(b"x")]
    for step in steps:
        with pytest.raises(FaultError) as caught:
            step()
        assert (caught.value.address, caught.value.reason) == (TOP, FaultReason.OUTSIDE_RANGE)
    file.addr = TOP - 2
    with pytest.raises(FaultError) as caught:
        file.write(b"abcd")
    assert (caught.value.transferred, file.addr, bytes(memory)) == (2, TOP, b"012345ab")
    file.addr = TOP - 5
    buffered = io.BufferedReader(file)
    assert (buffered.read(1), buffered.read(9)) == (b"3", b"45ab")
    with pytest.raises(FaultError):
        buffered.read(1)


def test_read_to_the_end_of_what_is_there() -> None:
    """read() without a size gives all bytes before the hole, and faults when asked again."""
    file = IOReadWriter(BytesIO(b"0123456789"), 4)
    assert file.read() == b"456789"
    assert file.addr == 10
    with pytest.raises(FaultError) as caught:
        file.read()
    assert caught.value.address == 10


def test_a_buffer_can_be_resized_while_its_error_is_held() -> None:
    """Nothing of ours holds on to a caller's buffer, not even the traceback of what it raised."""
    memory = BytesIO(b"0123")
    ars = AddrRangeSeq([AddrRange(0, 2), AddrRange(2, 8)])
    calls: list[Callable[[bytearray], int | None]] = [
        lambda buffer: memory.copy_in(0, buffer),
        lambda buffer: memory.copy_out(2, buffer),
        lambda buffer: copy_in_vec(memory, ars, buffer),
        lambda buffer: copy_out_vec(memory, ars, buffer),
        lambda buffer: IOReadWriter(memory, 4).readinto(buffer),
        lambda buffer: IOReadWriter(memory, 4).write(buffer),
        lambda buffer: IOSequence(memory, ars.drop_first(4)).reader().readinto(buffer),
    ]
    for call in calls:
        buffer = bytearray(8)
        try:
            call(buffer)
        except FaultError as fault:
            del buffer[fault.transferred :]
        else:
            raise AssertionError("no fault")
    reader = ToIOReader(FromIOReader(Failing()))
    buffer = bytearray(8)
    assert reader.readinto(buffer) == 4
    del buffer[4:]
    with pytest.raises(RuntimeError, match="after four"):
        reader.readinto(buffer)


class Failing:
    """A file that fails in the midst of a read."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Four bytes, and an error."""
        buffer[:4] = b"four"
        error = RuntimeError("after four")
        error.transferred = 4  # type: ignore[attr-defined]
        raise error
