"""RemoteIO and FunctionIO: exact faults from calls that say little."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

import pytest

from hostarch import AMD64, WRITE, AddrRange, AddrRangeSeq, mman
from safemem import BlockSeq, ReaderFunc, WriterFunc
from usermem import (
    AddressSpace,
    FaultError,
    FaultReason,
    copy_in_vec,
    copy_out_vec,
    copy_string_in,
    copy_struct_in,
    linux_result,
)
from usermem.memories import FunctionIO, RemoteIO, remote
from usermem.memories.ranges import Ranges

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
    assert len({*debugger.calls}) == len(debugger.calls)


def seconds(call: Callable[[], object]) -> float:
    """What a call takes of this processor, at best."""
    times = []
    for _ in range(5):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def test_time_is_linear_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """That are read at once, in pieces."""
    monkeypatch.setattr(remote, "_PIECE", 1 << 10)
    io = FunctionIO(lambda addr, n: bytes(n))
    assert seconds(lambda: io.read_bytes(0, 8 << 20)) < 10 * seconds(lambda: io.read_bytes(0, 2 << 20))


def test_time_is_linear_in_ranges() -> None:
    """Of which each takes several calls."""
    io = FunctionIO(lambda addr, n: bytes(min(n, 4)), lambda addr, data: 4)

    def copies(n: int) -> float:
        ars = AddrRangeSeq.from_pairs([x for i in range(n) for x in (8 * i, 8)])
        buffer = bytearray(8 * n)
        return seconds(lambda: copy_in_vec(io, ars, buffer) + copy_out_vec(io, ars, buffer))

    assert copies(8000) < 10 * copies(2000)


def test_many_short_calls_get_few_ranges() -> None:
    """As many as can be moved, about: what a memory makes of all that it gets may cost more than the copy."""

    class Counted(FunctionIO):
        given = 0

        def readv(self, ranges: Ranges, buffer: memoryview, *, ignore_permissions: bool = False) -> int:
            self.given += len(ranges)
            return super().readv(ranges, buffer, ignore_permissions=ignore_permissions)

    io = Counted(lambda addr, n: bytes(min(n, 4)))
    assert copy_in_vec(io, seq(*((8 * i, 8) for i in range(3000))), bytearray(24000)) == 24000
    assert io.given < 6000


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
        return bytes(min(n, 1 << 20))

    io, size = FunctionIO(read), (1 << 20) + 7
    calls: tuple[Callable[[], object], ...] = (
        lambda: io.copy_in(BASE, bytearray(size)),
        lambda: io.read_bytes(BASE, size),
        lambda: copy_in_vec(io, seq((BASE, 1 << 20), (BASE + PAGE, 7)), bytearray(size)),
        lambda: copy_in_vec(io, seq((BASE, size - 7), (BASE, size)), bytearray(2 * size)),
    )
    for call in calls:
        vars(error).clear()
        with pytest.raises(LibraryError) as caught:
            call()
        assert caught.value is error
        assert vars(error)["transferred"] == (2 << 20 if call is calls[-1] else 1 << 20)

    space = AddressSpace()
    space.mmap(BASE, PAGE, mman.PROT_NONE, FIXED)
    with pytest.raises(FaultError) as fault:
        FunctionIO(space.read_bytes).read_bytes(BASE, 1)
    assert fault.value.reason is FaultReason.PERMISSION


def test_an_error_says_what_was_stored_before_it() -> None:
    """In whichever call it comes: after a short count, and in a later piece of zeros."""
    error = LibraryError("the target is gone")

    def write(addr: int, data: bytes) -> int:
        if addr >= BASE + (1 << 20):
            raise error
        return min(len(data), (1 << 20) - 4) if addr == BASE else len(data)

    io = FunctionIO(lambda addr, n: bytes(n), write)
    calls: tuple[Callable[[], object], ...] = (
        lambda: io.copy_out(BASE, bytes(2 << 20)),
        lambda: io.zero_out(BASE, 2 << 20),
    )
    for call in calls:
        vars(error).clear()
        with pytest.raises(LibraryError):
            call()
        assert vars(error)["transferred"] == 1 << 20


def test_bytes_before_a_fault_and_outside() -> None:
    """read_bytes reads in pieces: all before the fault are its partial result, and none if user space ends."""
    debugger = Debugger(300)
    with pytest.raises(FaultError) as caught:
        debugger.io().read_bytes(BASE, 400 * PAGE)
    assert caught.value.partial == debugger.memory
    assert caught.value.transferred == 300 * PAGE
    debugger.calls.clear()
    with pytest.raises(FaultError) as caught:
        debugger.io().read_bytes(BASE, AMD64.max_addr)
    assert (caught.value.partial, caught.value.reason) == (b"", FaultReason.OUTSIDE_RANGE)
    assert not debugger.calls


def test_room_is_found_by_writing_back() -> None:
    """A Reader is asked for what can be written, which is less than what can be read."""
    debugger = Debugger(3)

    def write(addr: int, data: bytes) -> None:
        if addr + len(data) > BASE + PAGE:
            raise LibraryError
        debugger.write(addr, data)

    asked: list[int] = []

    def read(dsts: BlockSeq) -> int:
        asked.append(dsts.num_bytes)
        return dsts.num_bytes

    with pytest.raises(FaultError) as caught:
        FunctionIO(debugger.read, write, faults=LibraryError).copy_out_from(
            seq((BASE + PAGE - 3, 2 * PAGE)), ReaderFunc(read)
        )
    assert (caught.value.address, caught.value.reason) == (BASE + PAGE, FaultReason.PERMISSION)
    assert asked == [3]


def test_a_fault_of_the_function_has_no_bytes() -> None:
    """A read function that raises a FaultError with a count has returned nothing: the bytes are asked for again."""
    space = AddressSpace()
    space.mmap(BASE, 2 * PAGE, RW, FIXED)
    space.copy_out(BASE, b"data" * (PAGE // 2))
    buffer = bytearray(4 * PAGE)
    with pytest.raises(FaultError) as caught:
        FunctionIO(space.read_bytes).copy_in(BASE, buffer)
    assert (caught.value.transferred, caught.value.address) == (2 * PAGE, BASE + 2 * PAGE)
    assert buffer == b"data" * (PAGE // 2) + bytes(2 * PAGE)


def test_what_a_fault_says_was_stored_is_not_stored_again() -> None:
    """A write function that raises a FaultError with a count is called from there on."""
    called: list[tuple[int, bytes]] = []

    def write(addr: int, data: bytes) -> int:
        called.append((addr, data))
        if addr == BASE:
            raise FaultError(addr + 3, WRITE, FaultReason.UNMAPPED, 3)
        return len(data)

    assert FunctionIO(lambda addr, n: bytes(n), write).copy_out(BASE, b"abcdefgh") == 8
    assert called == [(BASE, b"abcdefgh"), (BASE + 3, b"defgh")]


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


@pytest.mark.parametrize("room", [-1, 5])
def test_room_that_cannot_be_is_named(room: int) -> None:
    """And the Reader is not called."""
    io = FunctionIO(lambda addr, n: bytes(n), lambda addr, data: None, writable=lambda addr, n: room)
    with pytest.raises(ValueError, match=r"writable\(\) returned"):
        io.copy_out_from(seq((BASE, 4)), ReaderFunc(lambda _: pytest.fail("the reader was called")))


def test_no_write_function_is_no_permission() -> None:
    """Every way to write is a fault (permission), and a Reader is not called; where there is nothing it is unmapped."""
    io = FunctionIO(Debugger(1).read, faults=LibraryError)
    reader = ReaderFunc(lambda _: pytest.fail("the reader was called"))
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
    assert debugger.io().copy_in(BASE, bytearray()) == debugger.io().copy_out(BASE, b"") == 0  # by none
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
