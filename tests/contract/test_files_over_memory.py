"""Files over user memory beside real ones: holes under buffered files, writes nobody counts, seek and tell."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import AddrRange, AddrRangeSeq, mman
from safemem import TransferError
from usermem import AddressSpace, BytesIO, FaultError, IOReadWriter, IOSequence, bytes_io_sequence, single_io_sequence

PAGE = 4096
START = 0x400000
FLAGS = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
Make = Callable[[AddressSpace, int], Any]


@pytest.fixture
def space() -> Iterator[AddressSpace]:
    """Four pages at START, and nothing behind them."""
    with AddressSpace() as space:
        space.mmap(START, 4 * PAGE, mman.PROT_READ | mman.PROT_WRITE, FLAGS)
        yield space


FILES: dict[str, Make] = {
    "addresses": lambda space, addr: IOReadWriter(space, addr),
    "sequence": lambda space, addr: single_io_sequence(space, addr, 10 * PAGE).reader(),
    "ranges": lambda space, addr: IOSequence(
        space, AddrRangeSeq([AddrRange(addr, addr + 1), AddrRange(addr + 1, addr + 7 * PAGE)])
    ).reader(),
}


def into(file: Any, n: int) -> bytes:
    """readinto() as a read."""
    buffer = bytearray(n)
    return bytes(buffer[: file.readinto(buffer)])


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
@pytest.mark.parametrize("wrap", [io.BufferedReader, io.BufferedRandom])
class TestAHoleUnderBufferedFiles:
    """All bytes before a hole come out, whatever reads they are read by, and then the fault, at each call."""

    @given(data=st.data())
    def test_every_byte_then_the_fault(self, make: Make, wrap: Any, data: Any) -> None:
        """A program of reads: bytes until there are none, then FaultError. Filled up, the file goes on."""
        size = data.draw(st.sampled_from([1, 7, 100, 4096, 8192]), "size of the buffer")
        before = data.draw(st.sampled_from([1, 2, 99, 100, 4095, 4096, 8191, 8192, 8193, 3 * PAGE]), "bytes before")
        reads = st.tuples(st.sampled_from(["read", "readline", "into", "read1"]), st.sampled_from([1, 2, 3, 50, 9000]))
        program = data.draw(st.lists(reads, min_size=1, max_size=5), "reads")
        content = (b"0123456789\n" * 2000)[:before]
        with AddressSpace() as space:
            space.mmap(START, 4 * PAGE, mman.PROT_READ | mman.PROT_WRITE, FLAGS)
            first = START + 4 * PAGE - before
            space.copy_out(first, content)
            file = wrap(make(space, first), size)
            found = b""
            for name, n in program * (before + 1):
                try:
                    part = into(file, n) if name == "into" else getattr(file, name)(n)
                except FaultError as fault:
                    assert (fault.address, found) == (START + 4 * PAGE, content)
                    break
                assert part, f"{name}({n}) gave {part!r} for the fault after {len(found)} of {before} bytes"
                found += part
                assert len(found) <= before
            else:
                raise AssertionError("no fault")
            with pytest.raises(FaultError):
                file.read(1)
            space.mmap(START + 4 * PAGE, PAGE, mman.PROT_READ | mman.PROT_WRITE, FLAGS)
            assert file.read(3) == b"\0\0\0"

    def test_lines_and_the_rest(self, space: AddressSpace, make: Make, wrap: Any) -> None:
        """Iteration gives the unfinished line before it raises; read() gives the rest, and raises when asked again."""
        first = START + 4 * PAGE - 8
        space.copy_out(first, b"one\ntwo.")
        for size in (1, 3, 4, 8, 8192):
            file = wrap(make(space, first), size)
            lines: list[bytes] = []
            with pytest.raises(FaultError):
                for line in file:
                    lines.append(line)
            assert lines == [b"one\n", b"two."]
            file = wrap(make(space, first), size)
            assert (file.read(3), file.read()) == (b"one", b"\ntwo.")
            with pytest.raises(FaultError):
                file.read()

    def test_the_position_after_the_fault(self, space: AddressSpace, make: Make, wrap: Any) -> None:
        """It is that of the hole, and what lies before it can be read again."""
        first = START + 4 * PAGE - 100
        space.copy_out(first, bytes(range(100)))
        file = wrap(make(space, first))
        begin = file.tell()
        assert len(file.read(4096)) == 100
        with pytest.raises(FaultError):
            file.read(1)
        assert file.tell() == begin + 100
        assert file.seek(-3, os.SEEK_CUR) == begin + 97
        assert file.read(9) == bytes([97, 98, 99])


@pytest.mark.parametrize("closed", [True, False])
def test_a_direct_reader_always_meets_the_fault(space: AddressSpace, closed: bool) -> None:
    """Who calls readinto() itself, with whatever view, and looks at ``closed`` or not: the count, then the fault."""
    file = IOReadWriter(space, START + 4 * PAGE - 5)
    for buffer in (bytearray(9), memoryview(bytearray(9)), memoryview(bytearray(9))[1:]):
        file.seek(START + 4 * PAGE - 5)
        assert file.readinto(buffer) == 5
        for _ in range(2):
            assert not (closed and file.closed)
            with pytest.raises(FaultError):
                file.readinto(buffer)
    sink = io.BytesIO()
    file.seek(START + 4 * PAGE - 5)
    with pytest.raises(FaultError):
        shutil.copyfileobj(file, sink)
    assert sink.getvalue() == bytes(5)


WRITERS: dict[str, Callable[[Any], object]] = {
    "copyfileobj": lambda file: shutil.copyfileobj(io.BytesIO(b"q" * 100), file),
    "copyfileobj in pieces": lambda file: shutil.copyfileobj(io.BytesIO(b"q" * 100), file, 30),
    "pickle": lambda file: pickle.dump(b"q" * 100, file),
    "writelines": lambda file: file.writelines([b"q" * 50, b"q" * 50]),
    "view": lambda file: file.write(memoryview(b"q" * 100)),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_who_ignores_counts_loses_nothing_silently(space: AddressSpace, write: Callable[[Any], object]) -> None:
    """64 bytes fit: the rest is an error with the count of that call, and the position is where it stopped."""
    end = START + 4 * PAGE
    for file, code in (
        (IOReadWriter(space, end - 64), errno.EFAULT),
        (single_io_sequence(space, START, 64).writer(), errno.ENOSPC),
        (bytes_io_sequence(bytearray(64)).writer(), errno.ENOSPC),
    ):
        begin = file.tell()
        with pytest.raises(TransferError) as caught:
            write(file)
        assert (caught.value.errno, file.tell() - begin) == (code, 64)
        assert 0 < caught.value.transferred <= 64
        file.seek(begin)
        assert file.read(64).count(b"q") >= 40


def test_zip_files(space: AddressSpace) -> None:
    """zipfile writes to, reads and appends nothing to user memory: it needs seek, tell and SEEK_END."""
    with zipfile.ZipFile(single_io_sequence(space, START, 2 * PAGE).writer(), "w") as archive:
        archive.writestr("a.txt", "hello")
        size = archive.start_dir + 100
    data = space.read_bytes(START, 2 * PAGE)
    size = data.rindex(b"PK\5\6") + 22
    for sequence in (single_io_sequence(space, START, size), bytes_io_sequence(data[:size])):
        for file in (sequence.reader(), io.BufferedReader(sequence.reader(), 16)):
            assert zipfile.is_zipfile(file)
            assert zipfile.ZipFile(file).read("a.txt") == b"hello"
    assert not zipfile.is_zipfile(bytes_io_sequence(b"short").reader())


def test_seek_and_tell_of_addresses(space: AddressSpace) -> None:
    """IOReadWriter's positions are addresses. It has no end, and no negative position."""
    file = IOReadWriter(space, START)
    assert (file.seekable(), file.tell(), file.seek(START + 10), file.addr) == (True, START, START + 10, START + 10)
    assert (file.write(b"abc"), file.seek(-2, os.SEEK_CUR), file.read(2)) == (3, START + 11, b"bc")
    assert file.seek(1 << 64) == file.tell() == 1 << 64
    with pytest.raises(io.UnsupportedOperation):
        file.seek(0, os.SEEK_END)
    for offset, whence in ((-1, os.SEEK_SET), (-(1 << 65), os.SEEK_CUR)):
        with pytest.raises(OSError) as caught:
            file.seek(offset, whence)
        assert caught.value.errno == errno.EINVAL
    bad: Any
    for bad, error in ((5, ValueError), ("0", TypeError)):
        with pytest.raises(error):
            file.seek(0, bad)
    for bad in (1.0, "1", None):
        with pytest.raises(TypeError):
            file.seek(bad)
    assert file.tell() == 1 << 64
    file.close()
    for step in (file.tell, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            step()


def test_seek_past_the_end_of_a_sequence() -> None:
    """As in a file: nothing is read there. Memory does not grow, so that writing is ENOSPC, and truncate() refused."""
    file = bytes_io_sequence(bytearray(b"abcd")).reader()
    assert (file.seek(9), file.tell(), file.read(1), file.readall(), file.num_bytes) == (9, 9, b"", b"", 0)
    with pytest.raises(TransferError) as caught:
        file.write(b"x")
    assert (caught.value.errno, file.tell()) == (errno.ENOSPC, 9)
    assert (file.seek(-6, os.SEEK_CUR), file.read()) == (3, b"d")
    assert (file.seek(-4, os.SEEK_END), file.read(), file.num_bytes) == (0, b"abcd", 0)
    with pytest.raises(io.UnsupportedOperation):
        file.truncate(2)


SIZE = 40
CONTENT = (b"0123456789\nabc" * 3)[:SIZE]
WHENCE = st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
COUNT = st.integers(-1, SIZE + 9)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["read", "readline", "read1", "peek"]), COUNT),
    st.tuples(st.just("into"), st.integers(0, SIZE)),
    st.tuples(st.just("seek"), st.integers(-SIZE - 3, SIZE + 9), WHENCE),
    st.tuples(st.just("write"), st.binary(max_size=12)),
    st.tuples(st.sampled_from(["tell", "flush", "truncate"])),
)


def step_of(file: Any, name: str, *args: Any) -> Any:
    """What a step of the program gives; what it raises in words."""
    try:
        if name == "into":
            return into(file, args[0])
        if name == "peek":
            return file.peek(1)[:1]
        return getattr(file, name)(*args)
    except OSError as exc:
        return "raises", exc.errno


@given(
    program=st.lists(STEPS, max_size=30),
    buffer_size=st.sampled_from([1, 5, 16, 8192]),
    cuts=st.lists(st.integers(0, SIZE), max_size=3),
    random=st.booleans(),
)
def test_the_same_as_files(program: list[Any], buffer_size: int, cuts: list[int], random: bool) -> None:
    """A random program of io's buffered file over a sequence, over a real file, and over io.BytesIO where that agrees.

    Nothing is written past the end, where memory does not grow and files do, and truncate() is refused.
    """
    bounds = [0, *sorted(cuts), SIZE]
    memory = bytearray(CONTENT)
    ars = AddrRangeSeq(AddrRange(a, b) for a, b in pairwise(bounds))
    wrap: Any = io.BufferedRandom if random else io.BufferedReader
    ours = wrap(IOSequence(BytesIO(memory), ars).reader(), buffer_size)
    plain = io.BytesIO(CONTENT)
    with tempfile.TemporaryFile(buffering=0) as raw:
        raw.write(CONTENT)
        raw.seek(0)
        real, model = wrap(raw, buffer_size), wrap(plain, buffer_size)
        for name, *args in program:
            if name == "write":
                args = [args[0][: max(SIZE - real.tell(), 0)] if random else b""]
            if name in ("write", "flush") and not random:
                continue
            if name == "truncate":
                position = ours.tell()
                with pytest.raises(io.UnsupportedOperation):
                    ours.truncate()
                assert ours.tell() == position
                continue
            if name == "read1":  # before CPython 3.13 it reads before it writes what was buffered
                for each in (ours, real, model):
                    each.flush()
            found, expected = step_of(ours, name, *args), step_of(real, name, *args)
            assert (name, args, found, ours.tell()) == (name, args, expected, real.tell())
            # A negative position is EINVAL of a file, and ValueError or 0 of io.BytesIO. How much read1 gives depends
            # on what is buffered, and so on how one came where one is.
            if name not in ("seek", "read1"):
                assert found == step_of(model, name, *args)
            model.seek(real.tell())
        for file in (ours, real, model):
            if random:
                file.flush()
        raw.seek(0)
        assert bytes(memory) == raw.read() == plain.getvalue()
        real.detach()
