"""A caller's mistake is a TypeError or ValueError that names the argument, and a guest's at worst a FaultError.

Counts and buffers are the caller's; addresses, whatever they are, the guest's. Nothing is written in either case.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_layouts import BASE, FIXED, PAGE, RW, Crumbs, one, pattern, sink, source, views
from hostarch import AMD64, ARM64, AddrRange, AddrRangeSeq
from safemem import Block, BlockSeq, ReaderFunc
from usermem import (
    AddressSpace,
    BytesIO,
    FaultError,
    InvalidIntegerError,
    IOReadWriter,
    IOSequence,
    NameTooLongError,
    ResolvedIO,
    bytes_io_sequence,
    check_io_range,
    copy_between,
    copy_in_iovecs,
    copy_in_vec,
    copy_in_vector,
    copy_int32_string_in_vec,
    copy_int32_strings_in_vec,
    copy_out_iovecs,
    copy_out_vec,
    copy_pointer_in,
    copy_pointer_out,
    copy_string_in,
    copy_struct_from_user,
    copy_struct_in,
    copy_struct_out,
    copy_uint8_in,
    copy_uint16_out,
    copy_uint32_in,
    copy_uint64_in,
    copy_uint64_out,
    hexdump,
    iovecs_io_sequence,
    single_io_sequence,
    zero_out_vec,
)

SIZE = 2 * PAGE


def _space(warm: bool) -> tuple[ResolvedIO, memoryview]:
    space = AddressSpace()
    space.mmap(BASE, SIZE, RW, FIXED)
    space.copy_out(BASE, pattern(SIZE))
    (memory,) = views(space, BASE, SIZE)
    space.mprotect(BASE, SIZE, RW)  # forgets its pages
    if warm:
        space.copy_out(BASE, space.read_bytes(BASE, 4))
        copy_uint32_in(space, BASE)
    return space, memory


def _bytes_io() -> tuple[ResolvedIO, memoryview]:
    memory = memoryview(bytearray(BASE + SIZE))
    memory[BASE:] = pattern(SIZE)
    return BytesIO(memory), memory[BASE:]


def _crumbs() -> tuple[ResolvedIO, memoryview]:
    io = Crumbs(BASE, bytearray(pattern(SIZE)), BASE + SIZE)
    return io, io.view


IOS: dict[str, Callable[[], tuple[ResolvedIO, memoryview]]] = {
    "AddressSpace": lambda: _space(False),
    "AddressSpace, remembered": lambda: _space(True),
    "BytesIO": _bytes_io,
    "ResolvedIO": _crumbs,
}
with_ios = pytest.mark.parametrize("kind", IOS)
RANGES = one(BASE, 64)

Call = Callable[[ResolvedIO, Any], object]
COUNTS: list[tuple[str, str, Call]] = [
    ("zero_out", "n", lambda io, n: io.zero_out(BASE, n)),
    ("read_bytes", "n", lambda io, n: io.read_bytes(BASE, n)),
    ("zero_out_vec", "n", lambda io, n: zero_out_vec(io, RANGES, n)),
    ("copy_string_in", "maxlen", lambda io, n: copy_string_in(io, BASE, n)),
    ("copy_int32_strings_in_vec", "count", lambda io, n: copy_int32_strings_in_vec(io, RANGES, n)),
    ("copy_in_iovecs", "n", lambda io, n: copy_in_iovecs(io, BASE, n)),
    ("copy_in_vector element", "max_elem_size", lambda io, n: copy_in_vector(io, BASE, n, 9)),
    ("copy_in_vector total", "max_total_size", lambda io, n: copy_in_vector(io, BASE, 9, n)),
    ("hexdump", "n", lambda io, n: hexdump(io, BASE, n)),
    ("IOSequence.zero_out", "n", lambda io, n: IOSequence(io, RANGES).zero_out(n)),
    ("IOSequence.drop_first", "n", lambda io, n: IOSequence(io, RANGES).drop_first(n)),
    ("IOSequence.take_first", "n", lambda io, n: IOSequence(io, RANGES).take_first(n)),
    ("BlockSeq.drop_first", "n", lambda io, n: BlockSeq().drop_first(n)),
    ("Block.take_first", "n", lambda io, n: Block(b"").take_first(n)),
]


@with_ios
@pytest.mark.parametrize(("name", "call"), [row[1:] for row in COUNTS], ids=[row[0] for row in COUNTS])
def test_negative_counts(kind: str, name: str, call: Call) -> None:
    """ValueError with the argument's name, for any negative number, and nothing is written."""
    for n in (-1, -PAGE, -(1 << 70)):
        io, memory = IOS[kind]()
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            call(io, n)
        assert memory == pattern(SIZE)


@with_ios
@pytest.mark.parametrize(("name", "call"), [row[1:] for row in COUNTS[:9]], ids=[row[0] for row in COUNTS[:9]])
def test_counts_that_are_none(kind: str, name: str, call: Call) -> None:
    """TypeError with the argument's name for what is no int, and nothing is written."""
    for n in (1.0, "1", None, b"1"):
        io, memory = IOS[kind]()
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            call(io, n)
        assert memory == pattern(SIZE)


SOURCES: list[tuple[str, str, Call]] = [
    ("copy_out", "src", lambda io, src: io.copy_out(BASE, src)),
    ("copy_out ignoring rights", "src", lambda io, src: io.copy_out(BASE, src, ignore_permissions=True)),
    ("write_bytes", "(src|data)", lambda io, src: io.write_bytes(BASE, src)),
    ("copy_out_vec", "src", lambda io, src: copy_out_vec(io, RANGES, src)),
    ("IOSequence.copy_out", "src", lambda io, src: IOSequence(io, RANGES).copy_out(src)),
    ("IOSequenceReadWriter.write", "data", lambda io, src: IOSequence(io, RANGES).writer().write(src)),
    ("IOReadWriter.write", "data", lambda io, src: IOReadWriter(io, BASE).write(src)),
    ("BytesIO", "buffer", lambda io, src: BytesIO(src)),
    ("bytes_io_sequence", "buffer", lambda io, src: bytes_io_sequence(src)),
    ("Block", "buffer", lambda io, src: Block(src)),
]
DESTINATIONS: list[tuple[str, str, Call]] = [
    ("copy_in", "dst", lambda io, dst: io.copy_in(BASE, dst)),
    ("copy_in ignoring rights", "dst", lambda io, dst: io.copy_in(BASE, dst, ignore_permissions=True)),
    ("copy_in_vec", "dst", lambda io, dst: copy_in_vec(io, RANGES, dst)),
    ("IOSequence.copy_in", "dst", lambda io, dst: IOSequence(io, RANGES).copy_in(dst)),
    ("IOSequenceReadWriter.readinto", "buffer", lambda io, dst: IOSequence(io, RANGES).reader().readinto(dst)),
    ("IOReadWriter.readinto", "buffer", lambda io, dst: IOReadWriter(io, BASE).readinto(dst)),
]
with_buffers = pytest.mark.parametrize(
    ("name", "call"),
    [row[1:] for row in SOURCES + DESTINATIONS],
    ids=[row[0] for row in SOURCES + DESTINATIONS],
)
with_destinations = pytest.mark.parametrize(
    ("name", "call"), [row[1:] for row in DESTINATIONS], ids=[row[0] for row in DESTINATIONS]
)


@with_ios
@with_buffers
def test_no_buffer(kind: str, name: str, call: Call) -> None:
    """TypeError with the argument's name for text, lists, numbers and nothing, and nothing is written."""
    for buffer in ("text", "", [1, 2], 5, None, object(), Struct("I")):
        io, memory = IOS[kind]()
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            call(io, buffer)
        assert memory == pattern(SIZE)


@with_ios
@with_buffers
def test_buffers_with_gaps(kind: str, name: str, call: Call) -> None:
    """ValueError with the argument's name for bytes that do not lie side by side, and nothing is moved."""
    table = memoryview(bytearray(b"\xee" * 24)).cast("B", (4, 6))
    for view in (memoryview(bytearray(b"\xee" * 9))[::2], memoryview(bytearray(b"\xee" * 9))[::-1], table[::2]):
        io, memory = IOS[kind]()
        with pytest.raises(ValueError, match=rf"\b{name}\b.*contiguous"):
            call(io, view)
        assert view.tobytes() == b"\xee" * view.nbytes
        assert memory == pattern(SIZE)


@with_ios
@with_destinations
def test_read_only_destinations(kind: str, name: str, call: Call) -> None:
    """TypeError with the argument's name, and the bytes that were to be overwritten are as they were."""
    kept = bytes(b"\xee" * 8)
    for buffer in (kept, memoryview(kept), memoryview(bytearray(kept)).toreadonly(), b""):
        io, _ = IOS[kind]()
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            call(io, buffer)
    assert kept == b"\xee" * 8


@with_ios
def test_buffers_of_any_format_are_bytes(kind: str) -> None:
    """Words, signed bytes, floats and tables are moved as the bytes they are, and counted in bytes."""
    data = pattern(24)
    for buffer in (
        array("I", bytes(24)),
        array("d", bytes(24)),
        array("b", bytes(24)),
        memoryview(bytearray(24)).cast("H"),
        memoryview(bytearray(24)).cast("c"),
        memoryview(bytearray(24)).cast("B", (2, 3, 4)),
        memoryview(bytearray(24)).cast("?"),
    ):
        io, memory = IOS[kind]()
        assert io.copy_in(BASE, buffer) == copy_in_vec(io, RANGES, buffer) == 24
        assert memoryview(buffer).tobytes() == data
        io.zero_out(BASE, 24)
        assert io.copy_out(BASE, buffer) == copy_out_vec(io, RANGES, buffer) == 24
        assert memory == pattern(SIZE)


ADDRESS_CALLS: dict[str, Call] = {
    "copy_in": lambda io, addr: io.copy_in(addr, bytearray(4)),
    "copy_in many": lambda io, addr: io.copy_in(addr, bytearray(3 * PAGE)),
    "copy_out": lambda io, addr: io.copy_out(addr, b"four"),
    "zero_out": lambda io, addr: io.zero_out(addr, 4),
    "zero_out much": lambda io, addr: io.zero_out(addr, 1 << 70),
    "read_bytes": lambda io, addr: io.read_bytes(addr, 4),
    "read_bytes none": lambda io, addr: io.read_bytes(addr, 0),
    "read_bytes much": lambda io, addr: io.read_bytes(addr, 1 << 63),
    "write_bytes": lambda io, addr: io.write_bytes(addr, b"four"),
    "swap_uint32": lambda io, addr: io.swap_uint32(addr, 1),
    "compare_and_swap_uint32": lambda io, addr: io.compare_and_swap_uint32(addr, 0, 1),
    "load_uint32": lambda io, addr: io.load_uint32(addr),
    "copy_string_in": lambda io, addr: copy_string_in(io, addr, 300),
    "copy_in_iovecs": lambda io, addr: copy_in_iovecs(io, addr, 2),
    "copy_in_iovecs many": lambda io, addr: copy_in_iovecs(io, addr, 1 << 70),
    "copy_out_iovecs": lambda io, addr: copy_out_iovecs(io, addr, one(1, 2)),
    "copy_in_vector": lambda io, addr: copy_in_vector(io, addr, 100, 1000),
    "iovecs_io_sequence": lambda io, addr: iovecs_io_sequence(io, addr, 2),
    "copy_struct_from_user": lambda io, addr: copy_struct_from_user(io, addr, 9, Struct("<IH")),
    "copy_struct_in": lambda io, addr: copy_struct_in(io, addr, Struct("<IH")),
    "copy_struct_out": lambda io, addr: copy_struct_out(io, addr, Struct("<IH"), 1, 2),
    "copy_uint8_in": lambda io, addr: copy_uint8_in(io, addr),
    "copy_uint32_in": lambda io, addr: copy_uint32_in(io, addr),
    "copy_uint64_in": lambda io, addr: copy_uint64_in(io, addr),
    "copy_pointer_in": lambda io, addr: copy_pointer_in(io, addr),
    "copy_uint16_out": lambda io, addr: copy_uint16_out(io, addr, 1),
    "copy_uint64_out": lambda io, addr: copy_uint64_out(io, addr, 1),
    "copy_pointer_out": lambda io, addr: copy_pointer_out(io, addr, 1),
}
MORE_CALLS: dict[str, Call] = {
    "hexdump": lambda io, addr: hexdump(io, addr, 40),
    "IOReadWriter.read": lambda io, addr: IOReadWriter(io, addr).read(9),
    "IOReadWriter.write": lambda io, addr: IOReadWriter(io, addr).write(b"nine"),
    "single_io_sequence": lambda io, addr: single_io_sequence(io, addr, 9),
    "single_io_sequence negative": lambda io, addr: single_io_sequence(io, addr, -9),
    "check_io_range": lambda io, addr: check_io_range(addr, 9),
    "check_io_range of ARM64": lambda io, addr: check_io_range(addr, 9, ARM64),
}
RANGE_CALLS: dict[str, Callable[[ResolvedIO, AddrRangeSeq], object]] = {
    "copy_out_from": lambda io, ars: io.copy_out_from(ars, source(bytes(64))),
    "copy_out_from nothing": lambda io, ars: io.copy_out_from(ars, ReaderFunc(lambda dsts: 0)),
    "copy_in_to": lambda io, ars: io.copy_in_to(ars, sink(memoryview(bytearray(1 << 14)))),
    "copy_in_vec": lambda io, ars: copy_in_vec(io, ars, bytearray(64)),
    "copy_out_vec": lambda io, ars: copy_out_vec(io, ars, bytes(64)),
    "zero_out_vec": lambda io, ars: zero_out_vec(io, ars, 64),
    "copy_int32_strings_in_vec": lambda io, ars: copy_int32_strings_in_vec(io, ars, 2),
    "copy_int32_string_in_vec": lambda io, ars: copy_int32_string_in_vec(io, ars),
    "copy_between to": lambda io, ars: copy_between(io, ars, BytesIO(bytes(64)), one(0, 64)),
    "copy_between from": lambda io, ars: copy_between(BytesIO(bytearray(64)), one(0, 64), io, ars),
    "IOSequence.read": lambda io, ars: IOSequence(io, ars).reader().read(64),
    "IOSequence.copy_out": lambda io, ars: IOSequence(io, ars).copy_out(bytes(64)),
}
# What a guest's bytes may be, beside its addresses.
OTHER_ERRORS = (NameTooLongError, InvalidIntegerError)
any_address = st.one_of(
    st.integers(),
    st.integers(-(1 << 201), 1 << 201),
    st.sampled_from([0, BASE, AMD64.max_addr, 1 << 32, 1 << 63, 1 << 64, 1 << 200, -1, -(1 << 63), 0xFF << 56]).flatmap(
        lambda at: st.integers(at - 9, at + 9)
    ),
)


def worst_is_a_fault(call: Callable[[], object]) -> None:
    """Whatever the address is, the call returns or raises one of the errors a guest can cause."""
    try:
        call()
    except (FaultError, *OTHER_ERRORS) as error:
        assert error.errno
        assert str(error)
        assert not isinstance(error, FaultError) or isinstance(error.address, int)
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.E2BIG)  # of iovecs and of argument vectors, which are a guest's too


@with_ios
@given(any_address)
def test_any_int_is_an_address(kind: str, addr: int) -> None:
    """Every IO method and every helper that takes an address does no worse than a FaultError, for any int."""
    io, _ = IOS[kind]()
    for call in (ADDRESS_CALLS | MORE_CALLS).values():
        worst_is_a_fault(partial(call, io, addr))


@with_ios
@given(any_address, st.one_of(st.integers(0, 64), st.integers(0, 1 << 14)))
def test_any_ints_are_ranges(kind: str, start: int, length: int) -> None:
    """So does everything that takes ranges."""
    io, _ = IOS[kind]()
    for call in RANGE_CALLS.values():
        worst_is_a_fault(partial(call, io, one(start, length)))


ILL_FORMED = [(BASE + 9, BASE), (5, 3), (1 << 63, 0), (AMD64.max_addr, 0), (-1, -2), ((1 << 64) + 5, 1 << 64)]


@with_ios
@pytest.mark.parametrize("name", RANGE_CALLS)
def test_ranges_that_end_before_they_start(kind: str, name: str) -> None:
    """So does everything that takes ranges, for one that is ill-formed, as a guest's sum that wrapped is."""
    io, _ = IOS[kind]()
    for start, end in ILL_FORMED:
        worst_is_a_fault(partial(RANGE_CALLS[name], io, AddrRangeSeq.of(AddrRange(start, end))))


@pytest.mark.parametrize("kind", ["AddressSpace", "AddressSpace, remembered", "BytesIO"])
def test_ill_formed_ranges_are_checked_first(kind: str) -> None:
    """copy_out_from and copy_in_to of a range that is ill-formed fault at its start before anything moves."""
    for start, end in ILL_FORMED:
        io, memory = IOS[kind]()
        ars = AddrRangeSeq.of(AddrRange(start, end))
        for call in (
            partial(io.copy_out_from, ars, source(bytes(64))),
            partial(io.copy_in_to, ars, sink(memoryview(bytearray(64)))),
        ):
            with pytest.raises(FaultError) as caught:
                call()
            assert (caught.value.address, caught.value.transferred) == (start, 0)
        assert memory == pattern(SIZE)


@with_ios
@pytest.mark.parametrize("name", ADDRESS_CALLS)
def test_addresses_that_are_none(kind: str, name: str) -> None:
    """What is no int is a TypeError that names the argument, and nothing is written."""
    for addr in (float(BASE), str(BASE), None, b"addr"):
        io, memory = IOS[kind]()
        with pytest.raises(TypeError, match=r"\baddr\b"):
            ADDRESS_CALLS[name](io, addr)
        assert memory == pattern(SIZE)
