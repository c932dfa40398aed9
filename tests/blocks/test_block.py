"""Block: a window on host memory that always means the same bytes; copy, zero, and BlockCursor's disjoint views.

Python's slices of bytes are the model. Every law holds for plain memory and for memory that is copied by safecopy.
"""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import Block, BlockCursor, copy, zero

Maker = Callable[[bytearray, int, int], Block]


def safe(memory: bytearray, start: int, length: int) -> Block:
    """A block over part of a buffer."""
    return Block(memoryview(memory)[start : start + length])


def unsafe(memory: bytearray, start: int, length: int) -> Block:
    """The same part by its host address, as memory that may fault."""
    first = ctypes.c_char.from_buffer(memory)
    return Block.from_address(ctypes.addressof(first) + start, length, first)


every_kind = pytest.mark.parametrize("make", [safe, unsafe])
every_dst = pytest.mark.parametrize("make_dst", [safe, unsafe])
every_src = pytest.mark.parametrize("make_src", [safe, unsafe])


@every_kind
@given(st.binary(min_size=1, max_size=40), st.integers(0, 50), st.integers(0, 50))
def test_windows(make: Maker, data: bytes, n: int, m: int) -> None:
    """drop_first and take_first are slices, also past the end, and leave the block as it was."""
    memory = bytearray(data)
    block = make(memory, 0, len(data))
    for window, expected in (
        (block.drop_first(n), data[n:]),
        (block.take_first(n), data[:n]),
        (block.drop_first(n).take_first(m), data[n : n + m]),
        (block.take_first(n).drop_first(m), data[m:n]),
        (block, data),
    ):
        assert window.tobytes() == expected
        assert len(window) == len(expected) and bool(window) == bool(expected)
        assert window.need_safecopy is block.need_safecopy


@every_kind
def test_address(make: Maker) -> None:
    """address is where the first byte is in this process, of windows too."""
    memory = bytearray(b"0123456789")
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    block = make(memory, 2, 6)
    assert block.address == start + 2
    assert block.drop_first(3).address == start + 5
    assert block.drop_first(6).address == block.drop_first(99).address == start + 8
    assert ctypes.string_at(block.drop_first(3).address, 3) == b"567"


def test_address_of_readonly() -> None:
    """The address of read-only memory is known as well."""
    data = bytes(bytearray(b"abcdef"))
    assert ctypes.string_at(Block(data).drop_first(2).address, 4) == b"cdef"


def test_is_the_memory() -> None:
    """A safe block's view is the memory itself, not a copy; an empty block has an empty view."""
    memory = bytearray(b"abcdef")
    block = Block(memory).drop_first(1).take_first(3)
    block.view()[:] = b"XYZ"
    assert memory == b"aXYZef"
    memory[1] = ord("b")
    assert block.tobytes() == b"bYZ"
    assert bytes(Block(b"").view()) == b"" == Block(b"").tobytes()


@pytest.mark.parametrize(
    "buffer",
    [
        b"abcdefgh",
        bytearray(b"abcdefgh"),
        memoryview(b"abcdefgh"),
        array.array("I", [0x64636261, 0x68676665] if array.array("I", [1]).tobytes()[0] else [0x61626364, 0x65666768]),
        memoryview(b"abcdefgh").cast("B", (2, 4)),
        ctypes.create_string_buffer(b"abcdefgh", 8),
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_any_buffer(buffer: bytes) -> None:
    """Any contiguous buffer is a block of its bytes, whatever its items and shape."""
    assert Block(buffer).tobytes() == b"abcdefgh"
    assert len(Block(buffer)) == 8


def test_no_items() -> None:
    """A buffer without items, even of another format, is an empty block."""
    assert len(Block(array.array("Q"))) == 0
    assert len(Block(memoryview(b"").cast("c"))) == 0


@pytest.mark.parametrize("buffer", ["text", 5, None, [1, 2]], ids=str)
def test_no_buffer(buffer: object) -> None:
    """What is no buffer is a TypeError that names the argument."""
    with pytest.raises(TypeError, match="buffer"):
        Block(buffer)  # type: ignore[arg-type]


def test_not_contiguous() -> None:
    """A buffer with gaps is a ValueError that names the argument."""
    with pytest.raises(ValueError, match="buffer"):
        Block(memoryview(b"abcdef")[::2])


@every_kind
@pytest.mark.parametrize("n", [-1, -(2**70)])
def test_negative_count(make: Maker, n: int) -> None:
    """A negative count is a ValueError that names the argument."""
    block = make(bytearray(4), 0, 4)
    with pytest.raises(ValueError, match="n must not be negative"):
        block.drop_first(n)
    with pytest.raises(ValueError, match="n must not be negative"):
        block.take_first(n)


@pytest.mark.parametrize(
    ("address", "length"), [(-1, 1), (0, -1), (0, 2**64 + 1), (2**64, 1), (2**64 - 1, 2), (2**65, 0)]
)
def test_from_address_outside(address: int, length: int) -> None:
    """Bytes that leave the address space, or a negative number of them, are a ValueError."""
    with pytest.raises(ValueError, match=r"address|length"):
        Block.from_address(address, length)


def test_from_address_at_the_end() -> None:
    """The last byte of the address space can be said, and so can no byte at either end."""
    assert len(Block.from_address(2**64 - 1, 1)) == 1
    for address in (0, 2**64):
        block = Block.from_address(address, 0)
        assert (len(block), block.tobytes(), copy(block, Block(b"x")), zero(block)) == (0, b"", 0, 0)


def test_no_view_of_what_may_fault() -> None:
    """Memory that needs safecopy hands out no view: touching it could kill the process."""
    block = unsafe(bytearray(4), 0, 4)
    assert block.need_safecopy and not block.readonly
    with pytest.raises(BufferError, match="view"):
        block.view()


def test_readonly() -> None:
    """Whether memory can be written is known beforehand, of windows too."""
    assert Block(b"abc").readonly and Block(b"abc").drop_first(1).readonly
    assert not Block(bytearray(3)).readonly


def test_keeps_memory_alive() -> None:
    """A window keeps the owner of its memory alive, and a mapping under it cannot be closed."""
    memory = ctypes.create_string_buffer(b"abcdefgh", 8)
    gone = weakref.ref(memory)
    window = Block.from_address(ctypes.addressof(memory), 8, memory).drop_first(2).take_first(3)
    del memory
    gc.collect()
    assert gone() is not None and window.tobytes() == b"cde"
    del window
    gc.collect()
    assert gone() is None
    with mmap.mmap(-1, mmap.PAGESIZE) as mapping:
        block = Block(mapping).take_first(1)
        with pytest.raises(BufferError):
            mapping.close()
        del block


@every_kind
def test_repr(make: Maker) -> None:
    """repr shows the addresses, and a star where safecopy is needed."""
    block = make(bytearray(4), 0, 4)
    assert f"[{block.address:#x}-{block.address + 4:#x})" in repr(block)
    assert ("*" in repr(block)) is block.need_safecopy


@every_dst
@every_src
@given(st.binary(max_size=30), st.binary(max_size=30))
def test_copy(make_dst: Maker, make_src: Maker, before: bytes, data: bytes) -> None:
    """copy moves as many bytes as both have, returns how many, and touches nothing else."""
    n = min(len(before), len(data))
    memory, source = bytearray(b"<" + before + b">"), bytearray(data or b"?")
    assert copy(make_dst(memory, 1, len(before)), make_src(source, 0, len(data))) == n
    assert memory == b"<" + data[:n] + before[n:] + b">"
    assert source == (data or b"?")


@every_dst
@every_src
@pytest.mark.parametrize("length", [50, 5000, 70_000, 200_000])
@pytest.mark.parametrize("shift", [1, -1, 100, -100, 4096, -4096, 69_999, -69_999])
def test_copy_overlapping(make_dst: Maker, make_src: Maker, shift: int, length: int) -> None:
    """Blocks that overlap, in either direction and by any distance, are copied as by memmove."""
    before = (bytes(range(251)) * 1200)[: length + abs(shift)]
    memory = bytearray(before)
    src, dst = (0, shift) if shift > 0 else (-shift, 0)
    assert copy(make_dst(memory, dst, length), make_src(memory, src, length)) == length
    expected = bytearray(before)
    expected[dst : dst + length] = before[src : src + length]
    assert memory == expected


@every_src
@pytest.mark.parametrize("length", [1, 6])
def test_copy_to_readonly(make_src: Maker, length: int) -> None:
    """Read-only memory is never a destination: a TypeError, and not a bit of it changes."""
    data = bytes(bytearray(b"frozen"))
    with pytest.raises(TypeError):
        copy(Block(data), make_src(bytearray(b"melted"), 0, length))
    assert data == bytes([102, 114, 111, 122, 101, 110])


@every_src
def test_copy_to_readonly_says_which(make_src: Maker) -> None:
    """The error names the argument."""
    with pytest.raises(TypeError, match="dst"):
        copy(Block(bytes(bytearray(b"frozen"))), make_src(bytearray(b"melted"), 0, 6))


@every_kind
@pytest.mark.parametrize("length", [0, 1, 100, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 200_000])
def test_zero(make: Maker, length: int) -> None:
    """zero sets the block's bytes to 0, however many, returns how many, and touches nothing else."""
    memory = bytearray(b"\xee") * (length + 2)
    assert zero(make(memory, 1, length)) == length
    assert memory == b"\xee" + bytes(length) + b"\xee"


def test_zero_readonly() -> None:
    """Read-only memory is not zeroed: a TypeError that names the argument."""
    data = bytes(bytearray(b"frozen"))
    with pytest.raises(TypeError, match="dst"):
        zero(Block(data))
    assert data == bytes([102, 114, 111, 122, 101, 110])


def test_cursor() -> None:
    """Views taken one after another are disjoint, live together and write in place."""
    memory = bytearray(b"HHHHHpppppppTT")
    cursor = BlockCursor(Block(memory))
    header, payload, tag = cursor.take(5), cursor.take(7), cursor.take(2)
    assert header is not None and payload is not None and tag is not None
    tag[:] = b"33"
    header[:] = b"11111"
    payload[:] = b"2222222"
    assert memory == b"11111222222233"
    assert (cursor.used, cursor.left) == (14, 0)
    empty = cursor.take(0)
    assert empty is not None and len(empty) == 0
    assert cursor.take(1) is None


@given(st.binary(max_size=20), st.lists(st.integers(0, 25), max_size=8))
def test_cursor_takes(data: bytes, counts: list[int]) -> None:
    """A take gives the next bytes; one that asks for too many gives None and leaves the cursor where it was."""
    memory = bytearray(data)
    cursor = BlockCursor(Block(memory))
    used = 0
    views: list[tuple[memoryview, bytes]] = []
    for n in counts:
        view = cursor.take(n)
        if n > len(data) - used:
            assert view is None
        else:
            assert view is not None
            views.append((view, data[used : used + n]))
            used += n
        assert (cursor.used, cursor.left) == (used, len(data) - used)
    assert all(view.tobytes() == expected for view, expected in views)


def test_cursor_over_a_window() -> None:
    """A cursor over a window never leaves it."""
    memory = bytearray(b"abcdef")
    cursor = BlockCursor(Block(memory).drop_first(2).take_first(2))
    view = cursor.take(2)
    assert view is not None and view.tobytes() == b"cd"
    view[:] = b"CD"
    assert cursor.take(1) is None
    assert memory == b"abCDef"


def test_cursor_refuses() -> None:
    """No cursor over memory that may fault or is read-only; no negative take."""
    with pytest.raises(BufferError):
        BlockCursor(unsafe(bytearray(4), 0, 4))
    with pytest.raises(TypeError, match="block"):
        BlockCursor(Block(b"abcd"))
    cursor = BlockCursor(Block(bytearray(4)))
    with pytest.raises(ValueError, match="n must not be negative"):
        cursor.take(-1)
    assert cursor.used == 0


def test_counts_are_ints() -> None:
    """A count that is no int is a TypeError that names the argument."""
    with pytest.raises(TypeError, match="n must be an int"):
        Block(b"abc").drop_first(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="length must be an int"):
        Block.from_address(0, "1")  # type: ignore[arg-type]
