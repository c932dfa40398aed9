"""RemoteIO: no byte that a Reader gave is lost, though memory goes away under it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from hostarch import AMD64, ARM64, AddrRange, AddrRangeSeq, mman
from safemem import BlockSeq, ReaderFunc
from usermem import AddressSpace, FaultError
from usermem.memories import FunctionIO

PAGE = AMD64.page_size
BASE = 0x10000
RW = mman.PROT_READ | mman.PROT_WRITE
FIXED = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED


def seq(*pairs: tuple[int, int]) -> AddrRangeSeq:
    """Ranges."""
    return AddrRangeSeq([AddrRange(start, start + length) for start, length in pairs])


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
    kept = io._undelivered._given[id(source)][1].data.obj
    assert io.copy_out_from(seq((BASE, 3)), source) == 3
    assert io._undelivered._given[id(source)][1].data.obj is kept  # it is not copied once more
    assert io.copy_out_from(seq((BASE + 3, 100)), source) == 1
    assert io.copy_out_from(seq((BASE + 4, 100)), source) == 4
    assert space.read_bytes(BASE, 8) == b"efghijkl"
    assert io.copy_out_from(seq((BASE, 9)), source) == 0


def test_an_error_of_the_memory_keeps_the_rest(space: AddressSpace) -> None:
    """It says how many bytes were stored, and the others come next; a fault has the tag of the address."""
    error = OSError(5, "the target is gone")

    def write(addr: int, data: bytes) -> int:
        if addr == BASE + 4:
            raise error
        return space.copy_out(addr, data[:4])

    io = FunctionIO(space.read_bytes, write, arch=ARM64, writable=lambda addr, n: n)
    source = Source(b"abcdefgh", lambda: None)
    with pytest.raises(OSError, match="the target is gone") as caught:
        io.copy_out_from(seq((BASE, 8)), source)
    assert caught.value is error
    assert vars(error)["transferred"] == 4
    with pytest.raises(FaultError) as fault:
        io.copy_out_from(seq((BASE + 2 * PAGE - 2 | 0x5A << 56, 4)), source)
    assert (fault.value.transferred, fault.value.address) == (2, BASE + 2 * PAGE | 0x5A << 56)
    assert io.copy_out_from(seq((BASE + 8, 8)), source) == 2
    assert space.read_bytes(BASE, 10) == b"abcd\0\0\0\0gh"


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


def test_would_block_does_not_wait(space: AddressSpace) -> None:
    """It tells what was so when the Reader gave the bytes that a fault kept."""
    io = over(space)
    source = Source(b"abcd", lambda: space.munmap(BASE, PAGE), BlockingIOError())
    with pytest.raises(FaultError):
        io.copy_out_from(seq((BASE, 4)), source)
    assert io.copy_out_from(seq((BASE + PAGE, 4)), source) == 4


def test_what_is_kept_is_no_buffer_of_the_readers(space: AddressSpace) -> None:
    """A Reader that writes to its blocks after its call changes nothing."""
    io = over(space)
    given: list[BlockSeq] = []

    def read(dsts: BlockSeq) -> int:
        if not given:
            given.append(dsts)
            space.munmap(BASE, PAGE)
        dsts.fill(b"abcd")
        return 4

    reader = ReaderFunc(read)
    with pytest.raises(FaultError):
        io.copy_out_from(seq((BASE, 4)), reader)
    given[0].fill(b"xxxx")
    assert io.copy_out_from(seq((BASE + PAGE, 4)), reader) == 4
    assert space.read_bytes(BASE + PAGE, 4) == b"abcd"


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
        source = Source(b"abcd", lambda: space.munmap(BASE + PAGE, PAGE))
        with suppress(FaultError):
            io.copy_out_from(seq((BASE + PAGE, 4)), source)
        held = weakref.ref(io._undelivered)
        del io
        assert held() is None
    finally:
        gc.enable()


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
