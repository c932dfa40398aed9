"""RemoteIO and FunctionIO: exact faults from calls that say little, and no byte that a Reader gave is lost."""

from __future__ import annotations

import errno
import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from hostarch import AMD64, AddrRange, AddrRangeSeq, mman
from safemem import BlockSeq, ReaderFunc, WriterFunc
from usermem import AddressSpace, FaultError, FaultReason, copy_in_vec, copy_string_in, copy_struct_in, linux_result
from usermem.memories import FunctionIO, RemoteIO

PAGE = AMD64.page_size
BASE = 0x10000
RW = mman.PROT_READ | mman.PROT_WRITE
FIXED = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED


class LibraryError(Exception):
    """An error of a debugger's: the memory is not accessible."""


class Debugger:
    """``pages`` bytes of memory from BASE on. Reads and writes do all or nothing, and at most ``most`` bytes a call."""

    def __init__(self, pages: int, most: int = 1 << 30) -> None:
        self.memory = bytearray(bytes(range(1, 251)) * (pages * PAGE // 250 + 1))[: pages * PAGE]
        self.most = most
        self.calls: list[tuple[int, int]] = []

    def _check(self, addr: int, n: int) -> None:
        self.calls.append((addr, n))
        if addr < BASE or addr + n > BASE + len(self.memory) or n > self.most:
            raise LibraryError

    def read(self, addr: int, n: int) -> bytes:
        """All or nothing."""
        self._check(addr, n)
        return bytes(self.memory[addr - BASE : addr - BASE + n])

    def write(self, addr: int, data: bytes) -> None:
        """All or nothing."""
        self._check(addr, len(data))
        self.memory[addr - BASE : addr - BASE + len(data)] = data

    def io(self) -> FunctionIO:
        """It as user memory."""
        return FunctionIO(self.read, self.write, faults=LibraryError)


def seq(*pairs: tuple[int, int]) -> AddrRangeSeq:
    """Ranges."""
    return AddrRangeSeq([AddrRange(start, start + length) for start, length in pairs])


@pytest.mark.parametrize("before", [0, 1, 100, PAGE - 1, PAGE, 3 * PAGE + 5, 100 * PAGE])
def test_all_or_nothing_calls_find_the_exact_byte(before: int) -> None:
    """A long access moves every byte before the fault, in few calls, and reads nothing twice."""
    debugger = Debugger(100)
    end = BASE + len(debugger.memory)
    buffer = bytearray(before + 9 * PAGE)
    with pytest.raises(FaultError) as caught:
        debugger.io().copy_in(end - before, buffer)
    assert (caught.value.transferred, caught.value.address) == (before, end)
    assert bytes(buffer) == bytes(debugger.memory[len(debugger.memory) - before :]) + bytes(9 * PAGE)
    assert len(debugger.calls) <= 40


def test_small_packets_are_found() -> None:
    """Calls that fail because they ask for too much are made smaller, not taken for faults."""
    debugger = Debugger(64, most=2 * PAGE)
    io = debugger.io()
    assert io.read_bytes(BASE + 7, 60 * PAGE) == bytes(debugger.memory[7 : 7 + 60 * PAGE])
    assert io.copy_out(BASE + 9, b"x" * 10 * PAGE) == 10 * PAGE
    assert debugger.memory[9 : 9 + 10 * PAGE] == b"x" * 10 * PAGE


def test_short_counts_go_on() -> None:
    """Short results and short writes are progress, whatever their length."""
    memory = bytearray(range(200))
    taken: list[int] = []

    def write(addr: int, data: bytes) -> int:
        taken.append(len(data))
        n = min(3, len(data))
        memory[addr - BASE : addr - BASE + n] = data[:n]
        return n

    io = FunctionIO(lambda addr, n: memory[addr - BASE : addr - BASE + min(n, 7)], write)
    assert io.read_bytes(BASE, 100) == bytes(range(100))
    assert io.copy_out(BASE, b"abcdefgh") == 8
    assert memory[:10] == b"abcdefgh\x08\x09"
    with pytest.raises(FaultError) as caught:
        io.read_bytes(BASE + 190, 20)
    assert caught.value.partial == bytes(range(190, 200))


def test_errors_of_the_functions_pass_through() -> None:
    """The same object, with how many bytes came before it; a FaultError gives its reason."""
    error = LibraryError("the target is gone")

    def read(addr: int, n: int) -> bytes:
        if addr > BASE:
            raise error
        return b"abc"

    with pytest.raises(LibraryError) as caught:
        FunctionIO(read).copy_in(BASE, bytearray(10))
    assert caught.value is error
    assert vars(error)["transferred"] == 3

    space = AddressSpace()
    space.mmap(BASE, PAGE, mman.PROT_NONE, FIXED)
    with pytest.raises(FaultError) as fault:
        FunctionIO(space.read_bytes).read_bytes(BASE, 1)
    assert fault.value.reason is FaultReason.PERMISSION


def test_a_fault_of_the_function_has_no_bytes(space: AddressSpace) -> None:
    """A read function that raises a FaultError with a count has returned nothing: the bytes are asked for again."""
    space.copy_out(BASE, b"data" * (PAGE // 2))
    buffer = bytearray(4 * PAGE)
    with pytest.raises(FaultError) as caught:
        FunctionIO(space.read_bytes).copy_in(BASE, buffer)
    assert (caught.value.transferred, caught.value.address) == (2 * PAGE, BASE + 2 * PAGE)
    assert buffer == b"data" * (PAGE // 2) + bytes(2 * PAGE)


@pytest.mark.parametrize(
    ("read", "write", "raised"),
    [
        (lambda addr, n: b"x" * (n + 1), None, ValueError),
        (lambda addr, n: 7, None, TypeError),
        (lambda addr, n: b"", lambda addr, data: len(data) + 1, ValueError),
        (lambda addr, n: b"", lambda addr, data: -1, ValueError),
        (lambda addr, n: b"", lambda addr, data: "all", TypeError),
    ],
)
def test_impossible_answers_are_named(
    read: Callable[[int, int], bytes], write: Callable[[int, bytes], int] | None, raised: type[Exception]
) -> None:
    """More bytes than were asked for, negative counts and no numbers are the function's mistake."""
    io = FunctionIO(read, write)
    with pytest.raises(raised, match=r"read\(\)|write\(\)"):
        io.copy_in(BASE, bytearray(4)) if write is None else io.copy_out(BASE, b"data")


def test_no_write_function_is_no_permission() -> None:
    """Every way to write is a fault (permission), and a Reader is not called; where there is nothing it is unmapped."""
    io = FunctionIO(Debugger(1).read, faults=LibraryError)
    reader = Source(b"data", lambda: pytest.fail("the reader was called"))
    calls: tuple[Callable[[], object], ...] = (
        lambda: io.copy_out(BASE, b"x"),
        lambda: io.zero_out(BASE, 1),
        lambda: io.copy_out_from(seq((BASE, 4)), reader),
    )
    for call in calls:
        with pytest.raises(FaultError) as caught:
            call()
        assert caught.value.reason is FaultReason.PERMISSION
    with pytest.raises(FaultError) as caught:
        io.copy_out(BASE - 1, b"x")
    assert caught.value.reason is FaultReason.UNMAPPED


def test_atomics_are_refused_and_say_why() -> None:
    """EOPNOTSUPP, which a system call can return."""
    io = Debugger(1).io()
    calls: tuple[Callable[[], object], ...] = (
        lambda: io.load_uint32(BASE),
        lambda: io.swap_uint32(BASE, 1),
        lambda: io.compare_and_swap_uint32(BASE, 0, 1),
    )
    for call in calls:
        with pytest.raises(OSError, match="nothing in it is atomic") as caught:
            call()
        assert linux_result(caught.value) == -95


class Source:
    """A Reader of ``data`` that unmaps what it is to fill, once, and may raise an error along with its bytes."""

    def __init__(self, data: bytes, unmap: Callable[[], object], error: BaseException | None = None) -> None:
        self.data, self.unmap, self.error = data, unmap, error

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Fill dsts."""
        n = min(len(self.data), dsts.num_bytes)
        dsts.fill(self.data[:n])
        self.data = self.data[n:]
        self.unmap()
        self.unmap = lambda: None
        error, self.error = self.error, None
        if error is None:
            return n
        error.transferred = n  # type: ignore[attr-defined]
        try:
            raise error
        finally:
            del error


class SlottedSource:
    """The same, in an object that cannot be referred to weakly."""

    __slots__ = ("data", "error", "unmap")
    __init__ = Source.__init__
    read_to_blocks = Source.read_to_blocks


@pytest.fixture
def space() -> AddressSpace:
    """Two pages that can be written."""
    space = AddressSpace()
    space.mmap(BASE, 2 * PAGE, RW, FIXED)
    return space


def over(space: AddressSpace) -> FunctionIO:
    """A space behind functions."""
    return FunctionIO(space.read_bytes, space.copy_out)


def test_bytes_that_a_fault_keeps_are_not_lost(space: AddressSpace) -> None:
    """What a Reader gave for memory that goes away under it comes first in its next call, in order."""
    io = over(space)
    source = Source(b"abcdefghijkl", lambda: space.munmap(BASE + PAGE, PAGE))
    with pytest.raises(FaultError) as caught:
        io.copy_out_from(seq((BASE + PAGE - 4, 8)), source)
    assert (caught.value.transferred, caught.value.address) == (4, BASE + PAGE)
    assert space.read_bytes(BASE + PAGE - 4, 4) == b"abcd"
    other = Source(b"other", lambda: None)
    assert io.copy_out_from(seq((BASE, 5)), other) == 5
    assert space.read_bytes(BASE, 5) == b"other"
    assert io.copy_out_from(seq((BASE, 3)), source) == 3
    assert io.copy_out_from(seq((BASE + 3, 100)), source) == 1
    assert io.copy_out_from(seq((BASE + 4, 100)), source) == 4
    assert space.read_bytes(BASE, 8) == b"efghijkl"
    assert io.copy_out_from(seq((BASE, 9)), source) == 0


def test_an_error_comes_after_the_bytes_before_it(space: AddressSpace) -> None:
    """An error that a Reader raised along with bytes that could not be stored waits for them."""
    io = over(space)
    error = OSError(5, "broken")
    source = Source(b"abcd", lambda: space.munmap(BASE, PAGE), error)
    with pytest.raises(FaultError):
        io.copy_out_from(seq((BASE, 4)), source)
    with pytest.raises(OSError, match="broken") as caught:
        io.copy_out_from(seq((BASE + PAGE, 8)), source)
    assert caught.value is error
    assert vars(error)["transferred"] == 4
    assert space.read_bytes(BASE + PAGE, 4) == b"abcd"
    assert io.copy_out_from(seq((BASE + PAGE, 8)), source) == 0


def test_an_interrupt_does_not_wait(space: AddressSpace) -> None:
    """KeyboardInterrupt comes at once; the bytes that came with it stay."""
    io = over(space)
    source = Source(b"abcdef", lambda: space.munmap(BASE + PAGE, PAGE), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as caught:
        io.copy_out_from(seq((BASE + PAGE - 2, 6)), source)
    assert vars(caught.value)["transferred"] == 2
    assert io.copy_out_from(seq((BASE, 6)), source) == 4
    assert space.read_bytes(BASE, 4) == b"cdef"


def test_a_reader_that_is_gone_takes_its_bytes_along(space: AddressSpace) -> None:
    """Nothing is held for it, and no other Reader gets its bytes."""
    io = over(space)
    source = Source(b"abcd", lambda: space.munmap(BASE, PAGE))
    gone = weakref.ref(source)
    gc.disable()  # neither fault nor error is a cycle
    try:
        with suppress(FaultError):
            io.copy_out_from(seq((BASE, 4)), source)
        assert len(io._undelivered._given) == 1
        del source
        assert gone() is None
        assert not io._undelivered._given
    finally:
        gc.enable()


def test_more_than_16_mib_is_a_short_count() -> None:
    """A Reader or Writer gets 16 MiB at most, which are held meanwhile; no fault is made of it."""
    size = 20 << 20
    space = AddressSpace()
    space.mmap(BASE, size, RW, FIXED)
    io = FunctionIO(space.read_bytes, space.copy_out, writable=lambda addr, n: n)
    asked: list[int] = []

    def take(blocks: BlockSeq) -> int:
        asked.append(blocks.num_bytes)
        return blocks.num_bytes

    assert io.copy_in_to(seq((BASE, size)), WriterFunc(take)) == 16 << 20
    assert io.copy_out_from(seq((BASE, size)), ReaderFunc(take)) == 16 << 20
    assert asked == [16 << 20] * 2
    assert io.zero_out(BASE, size) == size


def test_strings_take_one_call_and_stop_at_the_page() -> None:
    """A string of 300 bytes is one call; its page's end is not passed."""
    debugger = Debugger(2)
    debugger.memory[300] = debugger.memory[2 * PAGE - 1] = 0
    assert copy_string_in(debugger.io(), BASE, 4096) == bytes(debugger.memory[:300])
    assert len(debugger.calls) == 1
    start = 2 * PAGE - 10
    assert copy_string_in(debugger.io(), BASE + start, 4096) == bytes(debugger.memory[start:-1])
    assert debugger.calls[1:] == [(BASE + start, 10)]


def test_a_vector_stops_at_the_last_byte() -> None:
    """Ranges behind the last byte that is asked for are not looked at."""
    debugger = Debugger(1)
    buffer = bytearray(4)
    assert copy_in_vec(debugger.io(), seq((BASE, 2), (BASE + 9, 2), (1 << 60, 0)), buffer) == 4
    assert buffer == debugger.memory[:2] + debugger.memory[9:11]
    with pytest.raises(FaultError):
        copy_in_vec(debugger.io(), seq((BASE, 2), (1 << 60, 0), (BASE, 2)), buffer)


@pytest.mark.parametrize("kind", [Source, SlottedSource])
def test_nothing_keeps_a_callers_buffer(space: AddressSpace, kind: Any) -> None:
    """After an error the caller's buffer can be resized, without the garbage collector."""
    io = over(space)
    buffer = bytearray(3 * PAGE)
    gc.disable()
    try:
        calls: tuple[Callable[[], object], ...] = (
            lambda: io.copy_in(BASE, buffer),
            lambda: io.copy_out(BASE, buffer),
        )
        for call in calls:
            with pytest.raises(FaultError):
                call()
            buffer.append(1)
        source = kind(b"abcd", lambda: space.munmap(BASE, PAGE))
        with pytest.raises(FaultError):
            io.copy_out_from(seq((BASE, 4)), source)
        assert io.copy_out_from(seq((BASE + PAGE, 4)), source) == 4
    finally:
        gc.enable()


def test_a_process_that_ends_while_its_struct_is_read_gives_its_errno() -> None:
    """The bytes before are no result, though they were moved."""

    class Ends(RemoteIO):
        def read(self, addr: int, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
            if addr:
                raise ProcessLookupError(errno.ESRCH, "No such process")
            return len(buffer)

        def write(self, addr: int, data: memoryview, *, ignore_permissions: bool = False) -> int:
            raise NotImplementedError

    with pytest.raises(ProcessLookupError) as caught:
        copy_struct_in(Ends(AMD64), 0, f"{(1 << 20) + 8}s")
    error: Any = caught.value
    assert (error.transferred, len(error.partial)) == (1 << 20, 1 << 20)
    assert linux_result(error) == -errno.ESRCH
