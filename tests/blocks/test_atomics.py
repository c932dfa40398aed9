"""Atomic words of blocks: values, bounds, byte orders, faults, and threads that lose no update."""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomics_tier import forced
from hostarch import AMD64, S390X, Arch, ByteOrder
from patchy_io import PatchyIO
from safemem import AlignmentError, Block, HostFaultError, atomics
from safemem.atomics import Size
from usermem import BytesIO, FaultError, linux_result
from usermem.testing.faulty_memory import Fault, FaultyMemory

ORDERS: list[ByteOrder] = ["little", "big"]
SIZES: list[Size] = [4, 8]

SWAP = {4: atomics.swap_uint32, 8: atomics.swap_uint64}
CAS = {4: atomics.compare_and_swap_uint32, 8: atomics.compare_and_swap_uint64}
LOAD = {4: atomics.load_uint32, 8: atomics.load_uint64}

Operation = Callable[..., Any]


@pytest.fixture(autouse=True, scope="module", params=["native", "lock"])
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything here holds in both tiers."""
    with forced(request.param):
        yield request.param


def operations(size: Size) -> list[Operation]:
    """Operations on words of this size, as functions of a block and options."""
    return [
        lambda block, **options: SWAP[size](block, 1, **options),
        lambda block, **options: CAS[size](block, 0, 1, **options),
        lambda block, **options: LOAD[size](block, **options),
        lambda block, **options: atomics.fetch_add(size, block, 1, **options),
    ]


def aligned_words(content: bytes) -> bytearray:
    """A buffer of these bytes whose address is a multiple of 8."""
    buffer = bytearray(content)
    assert Block(buffer).address % 8 == 0, "bytearrays of CPython start at multiples of 8"
    return buffer


@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", SIZES)
def test_each_operation(size: Size, order: ByteOrder, unsafe: bool) -> None:
    """Each answers what was there, stores what it should, in the order asked for, and touches no byte beside it."""
    words = aligned_words(bytes(range(1, 25)))
    memory = FaultyMemory("segv")
    whole = memory.block(24, 24, bytes(words)) if unsafe else Block(words)
    word = whole.drop_first(8)
    old = int.from_bytes(words[8 : 8 + size], order)
    new = (1 << 8 * size) - 2

    def check(value: int) -> None:
        expected = bytes(range(1, 9)) + value.to_bytes(size, order) + bytes(range(9 + size, 25))
        assert whole.tobytes() == expected

    assert LOAD[size](word, order) == old
    check(old)
    assert SWAP[size](word, new, order) == old
    check(new)
    assert CAS[size](word, old, 7, order) == new
    check(new)
    assert CAS[size](word, new, 7, order) == new
    check(7)
    assert atomics.fetch_add(size, word, -7, order) == 7
    check(0)


def test_the_default_order_is_the_hosts() -> None:
    """Without an order, words are as the host's own, as ``struct`` unpacks them."""
    buffer = aligned_words(b"\1\2\3\4\5\6\7\x08")
    assert atomics.load_uint32(Block(buffer)) == struct.unpack_from("=I", buffer)[0]
    assert atomics.swap_uint64(Block(buffer), 9) == struct.unpack("=Q", bytes(range(1, 9)))[0]
    assert int.from_bytes(buffer, sys.byteorder) == 9


@given(st.lists(st.tuples(st.sampled_from(["swap", "cas", "add"]), st.integers(0, 3), st.integers(0, 3))))
def test_any_operations_are_those_of_a_variable(steps: list[tuple[str, int, int]]) -> None:
    """A word behaves as a plain variable, whatever is done to it."""
    block = Block(aligned_words(bytes(8)))
    value = 0
    for name, a, b in steps:
        if name == "swap":
            assert atomics.swap_uint32(block, a) == value
            value = a
        elif name == "cas":
            assert atomics.compare_and_swap_uint32(block, a, b) == value
            value = b if value == a else value
        else:
            assert atomics.fetch_add(4, block, a) == value
            value += a
        assert atomics.load_uint32(block) == value


@pytest.mark.parametrize("size", SIZES)
def test_values_out_of_bounds(size: Size) -> None:
    """What is no unsigned word is a ValueError that names the argument; nothing is stored. The bounds fit."""
    words = aligned_words(b"\xaa" * 8)
    block = Block(words)
    most = (1 << 8 * size) - 1
    for bad in (-1, most + 1, -most, 1 << 100):
        with pytest.raises(ValueError, match="new"):
            SWAP[size](block, bad)
        with pytest.raises(ValueError, match="new"):
            CAS[size](block, 0, bad)
        with pytest.raises(ValueError, match="old"):
            CAS[size](block, bad, 0)
    assert words == b"\xaa" * 8
    assert SWAP[size](block, 0) == most // 0xFF * 0xAA
    assert SWAP[size](block, most) == 0
    assert LOAD[size](block) == most


@pytest.mark.parametrize("size", SIZES)
def test_blocks_that_are_too_short(size: Size) -> None:
    """A block of fewer bytes than the word is a ValueError; one of as many will do."""
    words = aligned_words(bytes(8))
    for operation in operations(size):
        for length in range(size):
            with pytest.raises(ValueError, match=f"at least {size} bytes"):
                operation(Block(words).take_first(length))
        operation(Block(words).take_first(size))


@pytest.mark.parametrize("size", SIZES)
def test_read_only_blocks(size: Size) -> None:
    """What could write refuses a read-only block, even if it would not; a load takes it."""
    buffer = aligned_words(bytes(8))
    block = Block(memoryview(buffer).toreadonly())
    for operation in operations(size)[:2] + operations(size)[3:]:
        with pytest.raises(TypeError, match="writable"):
            operation(block)
    assert LOAD[size](block) == 0
    assert buffer == bytes(8)


@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_alignment(size: Size, unsafe: bool) -> None:
    """The host address must be a multiple of the size, safe block or not, unless aligned=False lifts the rule."""
    memory = FaultyMemory("segv")
    whole = memory.block(24, 24, bytes(24)) if unsafe else Block(aligned_words(bytes(24)))
    for shift in range(9):
        block = whole.drop_first(shift)
        for operation in operations(size):
            if shift % size:
                with pytest.raises(AlignmentError) as caught:
                    operation(block)
                assert (caught.value.address, caught.value.alignment) == (block.address, size)
                assert (caught.value.transferred, linux_result(caught.value)) == (0, -14)
            else:
                operation(block)
        SWAP[size](whole, 0)
        SWAP[size](block, 0, aligned=False)
        assert whole.tobytes() == bytes(24)
        CAS[size](block, 0, 0x0102, "big", aligned=False)
        assert whole.tobytes() == bytes(shift + size - 2) + b"\1\2" + bytes(24 - shift - size)
        assert LOAD[size](block, "big", aligned=False) == 0x0102
        SWAP[size](block, 0, aligned=False)


@pytest.mark.parametrize("fault", ["segv", "bus"])
@pytest.mark.parametrize(("size", "valid"), [(size, valid) for size in SIZES for valid in range(size)])
def test_memory_that_faults(size: Size, valid: int, fault: Fault) -> None:
    """A word is there or not: with any byte of it missing, no operation changes one."""
    memory = FaultyMemory(fault)
    block = memory.block(size, valid, b"\xaa" * valid)
    for operation in operations(size):
        with pytest.raises(HostFaultError) as caught:
            operation(block, aligned=False)
        assert caught.value.address == memory.edge
        assert memory.before_edge(valid) == b"\xaa" * valid


def test_a_fault_moves_no_part_of_a_word() -> None:
    """Half a word is not progress: no count for a system call to return, but EFAULT."""
    for operation in operations(4):
        with pytest.raises(HostFaultError) as caught:
            operation(FaultyMemory("segv").block(4, 2), aligned=False)
        assert (caught.value.transferred, linux_result(caught.value)) == (0, -14)


@pytest.mark.parametrize(("size", "inside"), [(4, 4), (4, 2), (4, 1), (8, 8), (8, 4), (8, 1)])
def test_memory_that_can_only_be_read(size: Size, inside: int) -> None:
    """Host memory without the right to be written: a load works, nothing else does, and no byte changes.

    Not even where only the last ``inside`` bytes of the word lie in it.
    """
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    edge = Block(memory).address + mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(edge), mmap.PAGESIZE, 1) == 0
    block = Block.from_address(edge + inside - size, size, memory)
    before = block.tobytes()
    for operation in operations(size)[:2] + operations(size)[3:]:
        with pytest.raises(HostFaultError) as caught:
            operation(block, aligned=False)
        assert (caught.value.address, caught.value.transferred) == (edge, 0)
        assert block.tobytes() == before
    assert LOAD[size](block, aligned=False) == 0


class Hesitant(Block):
    """A block whose reader lets other threads go first before it goes on."""

    def tobytes(self) -> bytes:
        data = super().tobytes()
        time.sleep(0)
        return data


@pytest.mark.parametrize("size", SIZES)
def test_threads_lose_no_increment(size: Size) -> None:
    """Threads that add by compare-and-swap, and a thread that only looks: every addition counts, none goes back."""
    block = Hesitant(aligned_words(bytes(size)))
    turns = 300
    seen: list[int] = []
    start = threading.Barrier(5)

    def add() -> None:
        start.wait()
        for _ in range(turns):
            value = LOAD[size](block)
            while (found := CAS[size](block, value, value + 1)) != value:
                value = found

    def look() -> None:
        start.wait()
        seen.extend(LOAD[size](block) for _ in range(turns))

    threads = [threading.Thread(target=add) for _ in range(4)] + [threading.Thread(target=look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert LOAD[size](block) == 4 * turns
    assert seen == sorted(seen)


def test_threads_swap_without_losing_a_token() -> None:
    """Each thread swaps in its tokens and keeps what comes out: in the end every token is somewhere, once."""
    block = Hesitant(aligned_words(bytes(8)))
    kept: list[list[int]] = [[] for _ in range(4)]

    def run(i: int) -> None:
        for n in range(300):
            kept[i].append(atomics.swap_uint64(block, 1 + 4 * n + i))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tokens = [token for one in kept for token in one]
    assert sorted([*tokens, atomics.load_uint64(block)]) == list(range(1201))


@pytest.mark.parametrize("arch", [AMD64, S390X], ids=lambda arch: arch.name)
def test_words_of_user_memory_have_the_guests_order(arch: Arch) -> None:
    """The atomics of an IO read and store words as the guest does."""
    buffer = bytearray(b"\0\1\2\3\4\5")
    io = BytesIO(buffer, arch)
    assert io.load_uint32(1) == int.from_bytes(b"\1\2\3\4", arch.byte_order)
    assert io.swap_uint32(0, 0x01020304) == int.from_bytes(b"\0\1\2\3", arch.byte_order)
    assert buffer == (0x01020304).to_bytes(4, arch.byte_order) + b"\4\5"
    assert io.compare_and_swap_uint32(0, 0x01020304, 5) == 0x01020304
    assert io.compare_and_swap_uint32(0, 0x01020304, 6) == 5


def io_operations(io: BytesIO | PatchyIO) -> list[Callable[[int], int]]:
    """The atomics of an IO, as functions of an address."""
    return [
        lambda addr: io.load_uint32(addr),
        lambda addr: io.swap_uint32(addr, 1),
        lambda addr: io.compare_and_swap_uint32(addr, 0, 1),
    ]


def test_user_memory_that_really_faults() -> None:
    """An IO's atomics report every fault as the guest's, also one that only the host's memory knows of."""
    memory = FaultyMemory("bus")
    io = PatchyIO({0x1000: memory.block(8, 4, b"good")})
    for operation in io_operations(io):
        with pytest.raises(FaultError) as caught:
            operation(0x1004)
        assert (caught.value.address, caught.value.transferred) == (0x1004, 0)
    assert memory.before_edge(4) == b"good"


def test_a_word_in_two_pieces_of_host_memory() -> None:
    """No atomic can span two pieces, so such a word is a fault, and neither piece changes."""
    left, right = bytearray(b"ab"), bytearray(b"cd")
    io = PatchyIO({0x1000: left, 0x1002: right})
    for operation in io_operations(io):
        with pytest.raises(FaultError):
            operation(0x1000)
    assert left + right == b"abcd"
