"""C strings of unknown length: found wherever their NUL is, never read past its page, and exact at every fault."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import mman
from patchy_io import PatchyIO
from safemem import TransferError
from usermem import (
    IO,
    AddressSpace,
    BytesIO,
    FaultError,
    FaultReason,
    NameTooLongError,
    copy_string_in,
    linux_result,
)
from watched_io import WatchedIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PAGE = 4096
TOP = 1 << 64


def naive(io: IO, addr: int, maxlen: int) -> bytes:
    """The same, a byte at a time, raising the same errors."""
    got = b""
    for i in range(maxlen):
        byte = bytearray(1)
        try:
            io.copy_in(addr + i, byte)
        except FaultError as exc:
            exc.partial = got
            exc.transferred = i
            raise
        if not byte[0]:
            return got
        got += byte
    raise NameTooLongError(got)


def outcome(call: object, io: IO, addr: int, maxlen: int) -> tuple[object, ...]:
    """What copy_string_in or its model answers, comparable."""
    assert callable(call)
    try:
        return ("string", call(io, addr, maxlen))
    except FaultError as exc:
        return ("fault", exc.partial, exc.transferred, exc.address, exc.reason, str(exc.access))
    except NameTooLongError as exc:
        return ("too long", exc.partial)


def text(n: int) -> bytes:
    """n bytes, none of them NUL, in no short period."""
    return bytes(1 + i * 7 % 251 for i in range(n))


@pytest.fixture(scope="module")
def space() -> Iterator[AddressSpace]:
    """Two pages at 0x10000 that can be read and written, and nothing behind them."""
    with AddressSpace() as made:
        flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
        made.mmap(0x10000, 2 * PAGE, mman.PROT_READ | mman.PROT_WRITE, flags)
        yield made


@pytest.mark.parametrize(
    "length", [0, 1, 5, 62, 63, 64, 65, 127, 128, 191, 192, 255, 256, 257, 448, 4031, 4095, 4096, 4097, 9000]
)
def test_short_and_long_strings(length: int) -> None:
    """Any length, around each size in which memory may be read in pieces; what is behind the NUL does not matter."""
    string = text(length)
    io = BytesIO(b"??" + string + b"\0rest\0")
    assert copy_string_in(io, 2, length + 1) == string
    assert copy_string_in(io, 2, 1 << 40) == string
    assert copy_string_in(WatchedIO(io), 2, length + 3) == string


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200, 256, 300, 4096, 5000])
def test_the_limit(length: int) -> None:
    """The NUL counts: maxlen bytes without one are too long, and those bytes are in ``partial``."""
    string = text(length)
    io = BytesIO(string + b"\0")
    with pytest.raises(NameTooLongError) as caught:
        copy_string_in(io, 0, length)
    assert (caught.value.partial, linux_result(caught.value)) == (string, -36)
    assert copy_string_in(io, 0, length + 1) == string


@pytest.mark.parametrize("length", [0, 1, 64, 300, 5000])
def test_no_nul_before_the_end_of_memory(length: int) -> None:
    """Without a NUL the fault comes with what was read: its address is where the string would have gone on."""
    string = text(length)
    with pytest.raises(FaultError) as caught:
        copy_string_in(BytesIO(string), 0, length + 1)
    fault = caught.value
    assert (fault.partial, fault.transferred, fault.address) == (string, length, length)
    assert linux_result(fault) == -14


def test_limits_that_touch_nothing(space: AddressSpace) -> None:
    """With maxlen 0 no byte is read, wherever it would have been; a negative one is the caller's ValueError."""
    for io in (space, WatchedIO(space), BytesIO(b"")):
        for addr in (0x10000, 0, -1, TOP, 1 << 70):
            with pytest.raises(NameTooLongError) as caught:
                copy_string_in(io, addr, 0)
            assert caught.value.partial == b""
            with pytest.raises(ValueError, match="maxlen"):
                copy_string_in(io, addr, -1)
    watched = WatchedIO(space)
    with pytest.raises(NameTooLongError):
        copy_string_in(watched, 0x10000, 0)
    assert watched.accesses == []


@pytest.mark.parametrize("watched", [False, True])
def test_every_place_around_a_page_end(space: AddressSpace, watched: bool) -> None:
    """Start and NUL each on either side of a page boundary, and at the last byte before unmapped memory."""
    io: IO = WatchedIO(space) if watched else space
    for edge in (0x11000, 0x12000):
        for start in [edge - d for d in (1, 2, 63, 64, 65, 130)] + [0x10FFF]:
            for nul in range(max(start, edge - 66), min(edge + 66, 0x12000)):
                space.copy_out(0x10000, b"\xff" * 2 * PAGE)
                space.copy_out(nul, b"\0")
                expected = b"\xff" * (nul - start)
                assert copy_string_in(io, start, 2 * PAGE) == expected
                assert copy_string_in(io, start, nul - start + 1) == expected
                with pytest.raises(NameTooLongError) as caught:
                    copy_string_in(io, start, nul - start)
                assert caught.value.partial == expected


@pytest.mark.parametrize("watched", [False, True])
def test_every_length_into_a_hole(space: AddressSpace, watched: bool) -> None:
    """k bytes before the hole: with a NUL the string, without one the fault; a limit of k is too long, no fault."""
    io: IO = WatchedIO(space) if watched else space
    space.copy_out(0x10000, b"\xff" * 2 * PAGE)
    for k in [*range(131), 4095, 4096, 4097]:
        start = 0x12000 - k
        with pytest.raises(FaultError) as caught:
            copy_string_in(io, start, k + 1)
        fault = caught.value
        assert (fault.partial, fault.transferred, fault.address) == (b"\xff" * k, k, 0x12000)
        assert fault.reason is FaultReason.UNMAPPED
        with pytest.raises(NameTooLongError):
            copy_string_in(io, start, k)
    space.copy_out(0x11FFF, b"\0")
    for k in [*range(1, 131), 4095, 4096, 4097]:
        assert copy_string_in(io, 0x12000 - k, 1 << 30) == b"\xff" * (k - 1)


@pytest.mark.parametrize("start", [0, 1, 63, 64, 4000, 4095, 4096])
@pytest.mark.parametrize("length", [0, 10, 100, 1000, 5000])
def test_no_page_is_touched_behind_the_nul(start: int, length: int) -> None:
    """No read leaves the page of the NUL, none crosses a page boundary or maxlen, and they are few."""
    io = WatchedIO(BytesIO(bytes(start) + text(length) + bytes(3 * PAGE)))
    assert copy_string_in(io, start, length + 3) == text(length)
    last_page = (start + length) // PAGE
    end = start
    for method, addr, n in io.accesses:
        assert (method, addr) == ("copy_in", end)
        assert n > 0
        end = addr + n
        assert addr // PAGE == (end - 1) // PAGE <= last_page
    assert end <= start + length + 3
    assert len(io.accesses) <= 9 + length // PAGE


def test_reads_begin_small_and_double() -> None:
    """The first read asks for 64 bytes, and none for more than twice the one before: most strings are short."""
    io = WatchedIO(BytesIO(text(PAGE - 100) + b"\0"))
    assert copy_string_in(io, 0, 1 << 20) == text(PAGE - 100)
    sizes = [n for _, _, n in io.accesses]
    assert sizes[0] == 64
    assert all(before <= after <= 2 * before for before, after in pairwise(sizes))


def test_the_very_top_of_the_address_space() -> None:
    """A string may end with the last address there is; without a NUL the fault is just past it."""
    io = PatchyIO({TOP - 100: text(99) + b"\0"})
    for k in (1, 2, 64, 65, 100):
        assert copy_string_in(io, TOP - k, 4096) == text(99)[100 - k :]
    with pytest.raises(FaultError) as caught:
        copy_string_in(PatchyIO({TOP - 100: text(100)}), TOP - 70, 4096)
    assert (caught.value.partial, caught.value.address) == (text(100)[30:], TOP)
    with pytest.raises(NameTooLongError):
        copy_string_in(PatchyIO({TOP - 100: text(100)}), TOP - 70, 70)


@pytest.mark.parametrize("addr", [-1, -PAGE, TOP - 1, TOP, 1 << 70, 0x7FFF_FFFF_F000, 0])
def test_any_int_is_an_address(space: AddressSpace, addr: int) -> None:
    """The worst a guest's address does is a FaultError with nothing in ``partial``."""
    for io in (space, WatchedIO(space), PatchyIO({})):
        with pytest.raises(FaultError) as caught:
            copy_string_in(io, addr, 100)
        assert (caught.value.partial, caught.value.transferred, caught.value.address) == (b"", 0, addr)


def test_permissions_and_options() -> None:
    """A page that may not be read is a hole with a reason of its own, and none with permissions ignored."""
    flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
    with AddressSpace() as io:
        io.mmap(0x10000, 2 * PAGE, mman.PROT_READ | mman.PROT_WRITE, flags)
        io.copy_out(0x10FFE, b"path\0")
        assert copy_string_in(io, 0x10FFE, 9) == b"path"
        io.mprotect(0x11000, PAGE, mman.PROT_NONE)
        for watched in (io, WatchedIO(io)):
            with pytest.raises(FaultError) as caught:
                copy_string_in(watched, 0x10FFE, 9)
            assert (caught.value.partial, caught.value.reason) == (b"pa", FaultReason.PERMISSION)
            assert copy_string_in(watched, 0x10FFE, 9, ignore_permissions=True) == b"path"


def test_an_error_that_is_no_fault_passes() -> None:
    """What an IO raises of its own is not swallowed, nor taken for the absence of a quick way."""

    class Broken(BytesIO):
        def copy_string_in(self, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
            raise AttributeError("a bug of its own")

    with pytest.raises(AttributeError, match="of its own"):
        copy_string_in(Broken(b"abc\0"), 0, 9)
    error = TransferError(errno.EIO, "Input/output error", 2)

    class Failing(BytesIO):
        def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
            memoryview(dst)[:2] = b"ab"
            raise error

    with pytest.raises(TransferError) as caught:
        copy_string_in(Failing(b"abc\0"), 0, 9)
    assert caught.value is error
    assert (error.transferred, error.partial) == (2, b"ab")  # type: ignore[attr-defined]
    assert linux_result(error) == -errno.EIO


PIECE = st.tuples(st.integers(0, 300), st.integers(0, 90), st.sampled_from([b"", b"\0"]))


@given(
    pieces=st.lists(PIECE, max_size=6),
    near=st.sampled_from([0, PAGE - 150, TOP - 391]),
    start=st.integers(0, 390),
    maxlen=st.integers(0, 200),
)
def test_against_a_byte_at_a_time(pieces: list[tuple[int, int, bytes]], near: int, start: int, maxlen: int) -> None:
    """Any memory with holes, any start and limit: the answer of a loop over single bytes."""
    flat: dict[int, bytes] = {}
    for place, n, nul in pieces:
        data = text(n) + nul
        flat |= {near + place + i: data[i : i + 1] for i in range(len(data))}
    io = PatchyIO(flat)
    assert outcome(copy_string_in, io, near + start, maxlen) == outcome(naive, io, near + start, maxlen)


@given(
    strings=st.lists(st.binary(max_size=120), max_size=5),
    before_hole=st.integers(0, 200),
    start=st.integers(0, 400),
    maxlen=st.integers(0, 300),
    cached=st.booleans(),
)
def test_address_space_against_a_byte_at_a_time(
    space: AddressSpace, strings: list[bytes], before_hole: int, start: int, maxlen: int, cached: bool
) -> None:
    """The same over pages, before they were touched and after, by the quick way and the plain one."""
    data = b"\0".join(strings).rjust(200, b"x")[:1000]
    space.copy_out(0x12000 - before_hole, data[:before_hole])
    addr = 0x12000 - before_hole - 200 + start
    if not cached:
        space.mprotect(0x10000, PAGE, mman.PROT_READ | mman.PROT_WRITE)
    expected = outcome(naive, space, addr, maxlen)
    if not cached:
        space.mprotect(0x10000, PAGE, mman.PROT_READ | mman.PROT_WRITE)
    assert outcome(copy_string_in, space, addr, maxlen) == expected
    assert outcome(copy_string_in, WatchedIO(space), addr, maxlen) == expected
