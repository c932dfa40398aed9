"""Copies between one buffer and many ranges: as far as both reach, in order, and never further than needed."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import READ, WRITE, AddrRange, AddrRangeSeq, mman
from patchy_io import PatchyIO
from usermem import (
    AddressSpace,
    BytesIO,
    FaultError,
    FaultReason,
    ResolvedIO,
    copy_in_vec,
    copy_out_vec,
    zero_out_vec,
)
from watched_io import WatchedIO

PAGE = 4096
TEXT = b"abcdefghij"


def ranges(*pairs: tuple[int, int]) -> AddrRangeSeq:
    """A sequence of [start, end) ranges."""
    return AddrRangeSeq(AddrRange(start, end) for start, end in pairs)


def _bytes_io() -> tuple[ResolvedIO, int]:
    return BytesIO(bytearray(TEXT)), 0


def _patchy() -> tuple[ResolvedIO, int]:
    return PatchyIO({(1 << 64) - 10: bytearray(TEXT)}), (1 << 64) - 10


def _space() -> tuple[ResolvedIO, int]:
    space = AddressSpace()
    addr = space.mmap(0, PAGE, mman.PROT_READ | mman.PROT_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    space.copy_out(addr + PAGE - 10, TEXT)
    return space, addr + PAGE - 10


@pytest.fixture(params=[_bytes_io, _patchy, _space], ids=["BytesIO", "top", "AddressSpace"])
def ten(request: pytest.FixtureRequest) -> tuple[ResolvedIO, int]:
    """An IO in which ten bytes, TEXT, are at the address, and nothing is behind them."""
    made: tuple[ResolvedIO, int] = request.param()
    return made


def at(base: int, *pairs: tuple[int, int]) -> AddrRangeSeq:
    """Ranges relative to base."""
    return ranges(*((base + start, base + end) for start, end in pairs))


@pytest.mark.parametrize(
    ("pairs", "size", "expected"),
    [
        pytest.param([(0, 4)], 4, b"abcd", id="one"),
        pytest.param([(4, 6), (0, 2), (9, 10)], 5, b"efabj", id="in their order, not in memory's"),
        pytest.param([(0, 3), (0, 3)], 6, b"abcabc", id="the same twice"),
        pytest.param([(0, 2), (4, 8)], 3, b"abe", id="the buffer ends first"),
        pytest.param([(0, 2), (4, 5)], 9, b"abe", id="the ranges end first"),
        pytest.param([(0, 2), (3, 3), (4, 5), (10, 10)], 3, b"abe", id="empty ranges between"),
        pytest.param([], 3, b"", id="no ranges"),
        pytest.param([(0, 0)], 3, b"", id="only an empty range"),
        pytest.param([(0, 4)], 0, b"", id="an empty buffer"),
        pytest.param([(0, 2), (20, 30)], 2, b"ab", id="bad ranges behind the last byte are not looked at"),
        pytest.param([(20, 30)], 0, b"", id="nor any for no bytes"),
    ],
)
def test_min_of_ranges_and_buffer(
    ten: tuple[ResolvedIO, int], pairs: list[tuple[int, int]], size: int, expected: bytes
) -> None:
    """As many bytes as both sides have are moved, and truncation is no error: in, out and zeroing alike."""
    io, base = ten
    ars = at(base, *pairs)
    dst = bytearray(b"\xee" * size)
    assert copy_in_vec(io, ars, dst) == len(expected)
    assert dst == expected + b"\xee" * (size - len(expected))
    assert copy_in_vec(WatchedIO(io), ars, memoryview(dst)) == len(expected)
    assert copy_out_vec(io, ars, bytes(range(size))) == len(expected)
    model = bytearray(TEXT)
    touched = [i for start, end in pairs for i in range(start, end)][: len(expected)]
    for value, i in enumerate(touched):
        model[i] = value
    assert io.read_bytes(base, 10) == model
    assert zero_out_vec(io, ars, size) == len(expected)
    assert io.read_bytes(base, 10) == bytes(0 if i in touched else TEXT[i] for i in range(10))


Move = Callable[[Any, AddrRangeSeq, int], int]
MOVES: list[Any] = [
    pytest.param(lambda io, ars, n: copy_in_vec(io, ars, bytearray(n)), READ, id="in"),
    pytest.param(lambda io, ars, n: copy_out_vec(io, ars, b"\x55" * n), WRITE, id="out"),
    pytest.param(lambda io, ars, n: zero_out_vec(io, ars, n), WRITE, id="zero"),
]


@pytest.mark.parametrize(("move", "access"), MOVES)
@pytest.mark.parametrize(
    ("pairs", "n", "moved", "bad"),
    [
        pytest.param([(8, 12)], 4, 2, 10, id="the hole in the first"),
        pytest.param([(0, 4), (8, 12)], 8, 6, 10, id="in the second"),
        pytest.param([(0, 4), (10, 11), (4, 8)], 9, 4, 10, id="a whole range, and not the one behind it"),
        pytest.param([(0, 4), (2, 2), (12, 14)], 5, 4, 12, id="behind an empty range"),
        pytest.param([(10, 11)], 1, 0, 10, id="at once"),
        pytest.param([(9, 11), (9, 11)], 4, 1, 10, id="the same hole named twice"),
    ],
)
def test_faults(
    ten: tuple[ResolvedIO, int], move: Move, access: object, pairs: list[tuple[int, int]], n: int, moved: int, bad: int
) -> None:
    """The fault names its byte and counts all ranges before it; from there on nothing happens, and it comes again."""
    io, base = ten
    ars = at(base, *pairs)
    for memory in (io, WatchedIO(io)):
        with pytest.raises(FaultError) as caught:
            move(memory, ars, n)
        assert (caught.value.transferred, caught.value.address) == (moved, base + bad)
        assert caught.value.access == access
    untouched = set(range(10)) - {i for start, end in pairs[:-1] for i in range(start, end)} - {8, 9}
    assert all(io.read_bytes(base + i, 1) == TEXT[i : i + 1] for i in untouched)
    with pytest.raises(FaultError) as again:
        move(io, ars.drop_first(moved), n - moved)
    assert (again.value.transferred, again.value.address) == (0, base + bad)


@pytest.mark.parametrize(("move", "access"), MOVES)
def test_empty_ranges_in_bad_places(move: Move, access: object) -> None:
    """An empty range outside user space faults if it comes before the last byte, and is not looked at behind it."""
    io, base = _space()
    bad = 1 << 63
    with pytest.raises(FaultError) as caught:
        move(io, ranges((base, base + 2), (bad, bad), (base, base + 2)), 4)
    assert (caught.value.transferred, caught.value.address) == (2, bad)
    assert caught.value.reason is FaultReason.OUTSIDE_RANGE
    assert caught.value.access == access
    assert move(io, ranges((base, base + 2), (bad, bad), (base, base + 2)), 2) == 2
    assert move(io, ranges((0, 0), (base, base + 2)), 2) == 2


@pytest.mark.parametrize(("move", "access"), MOVES)
def test_options_are_handed_on(move: Move, access: object) -> None:
    """Every access is made with the options of the call, and by the IO's own methods, one a range."""
    io, base = _space()
    watched = WatchedIO(io)
    calls: dict[str, Callable[[], int]] = {
        "copy_in": lambda: copy_in_vec(watched, at(base, (0, 2), (4, 5)), bytearray(9), ignore_permissions=True),
        "copy_out": lambda: copy_out_vec(watched, at(base, (0, 2), (4, 5)), b"xyz", ignore_permissions=True),
        "zero_out": lambda: zero_out_vec(watched, at(base, (0, 2), (4, 5)), 3, ignore_permissions=True),
    }
    for name, call in calls.items():
        watched.accesses.clear()
        assert call() == 3
        assert watched.accesses == [(name, base, 2), (name, base + 4, 1)]
    assert set(watched.ignored) == {True}


def test_permissions() -> None:
    """What may not be read or written faults with the reason, wherever it is; ignoring permissions it does not."""
    io, base = _space()
    assert isinstance(io, AddressSpace)
    io.mprotect(base & -PAGE, PAGE, mman.PROT_NONE)
    calls: list[Callable[[bool], int]] = [
        lambda ignored: copy_in_vec(io, at(base, (0, 2), (2, 4)), bytearray(4), ignore_permissions=ignored),
        lambda ignored: copy_out_vec(io, at(base, (0, 2), (2, 4)), b"wxyz", ignore_permissions=ignored),
        lambda ignored: zero_out_vec(io, at(base, (0, 2), (2, 4)), 4, ignore_permissions=ignored),
    ]
    for call in calls:
        with pytest.raises(FaultError) as caught:
            call(False)
        assert (caught.value.reason, caught.value.address) == (FaultReason.PERMISSION, base)
        assert call(True) == 4


def test_arguments_that_are_none(ten: tuple[ResolvedIO, int]) -> None:
    """Counts and buffers are the caller's: ValueError, TypeError, with the argument's name, and nothing written."""
    io, base = ten
    ars = at(base, (0, 4))
    bad: Any
    with pytest.raises(ValueError, match="n must not be negative"):
        zero_out_vec(io, ars, -1)
    for bad in (b"read-only", "text", 4, None):
        with pytest.raises(TypeError, match="dst"):
            copy_in_vec(io, ars, bad)
    for bad in ("text", 4, None):
        with pytest.raises(TypeError, match="src"):
            copy_out_vec(io, ars, bad)
    with pytest.raises(ValueError, match="dst must be a contiguous"):
        copy_in_vec(io, ars, memoryview(bytearray(8))[::2])
    with pytest.raises(ValueError, match="src must be a contiguous"):
        copy_out_vec(io, ars, memoryview(bytes(8))[::2])
    assert io.read_bytes(base, 10) == TEXT


def test_an_error_that_is_no_fault_passes() -> None:
    """An AttributeError of an IO's own copy_in_vec comes out, and is not taken for the absence of one."""

    class Broken(BytesIO):
        def copy_in_vec(self, ars: AddrRangeSeq, dst: object, *, ignore_permissions: bool = False) -> int:
            raise AttributeError("a bug of its own")

    with pytest.raises(AttributeError, match="of its own"):
        copy_in_vec(Broken(b"abcd"), ranges((0, 4)), bytearray(4))


def test_buffers_of_other_items_than_bytes(ten: tuple[ResolvedIO, int]) -> None:
    """A buffer counts by its bytes, not by its items."""
    io, base = ten
    words = array.array("H", [0, 0])
    assert copy_in_vec(io, at(base, (0, 3), (8, 9)), words) == 4
    assert words.tobytes() == b"abci"
    assert copy_out_vec(io, at(base, (5, 6), (0, 3)), words) == 4
    assert io.read_bytes(base, 10) == b"bcideaghij"


PAIRS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda p: (p[0], p[0] + p[1])), max_size=7)


@given(pairs=PAIRS, n=st.integers(0, 40), data=st.data())
def test_against_a_byte_at_a_time(pairs: list[tuple[int, int]], n: int, data: st.DataObject) -> None:
    """Any ranges over memory with holes: the same as one byte after the other, with the same fault."""
    there = data.draw(st.sets(st.integers(0, 50)))
    io = PatchyIO({i: bytearray([i]) for i in there})
    flat = [i for start, end in pairs for i in range(start, end)][:n]
    good = next((k for k, i in enumerate(flat) if i not in there), len(flat))
    fault = (good, flat[good]) if good < len(flat) else None
    dst = bytearray(b"\xee" * n)

    def outcome(call: Callable[[], int]) -> tuple[int, int] | None:
        try:
            assert call() == len(flat)
        except FaultError as exc:
            return exc.transferred, exc.address
        return None

    assert outcome(lambda: copy_in_vec(io, ranges(*pairs), dst)) == fault
    assert dst == bytes(flat[:good]) + b"\xee" * (n - good)
    src = bytes(200 + i for i in range(n))
    assert outcome(lambda: copy_out_vec(io, ranges(*pairs), src)) == fault
    model = {i: i for i in there} | {i: src[k] for k, i in enumerate(flat[:good])}
    assert {i: io.read_bytes(i, 1)[0] for i in there} == model
    assert outcome(lambda: zero_out_vec(io, ranges(*pairs), n)) == fault
    model |= dict.fromkeys(flat[:good], 0)
    assert {i: io.read_bytes(i, 1)[0] for i in there} == model


@given(pairs=PAIRS, extra=st.integers(-3, 3))
def test_the_quick_way_is_the_plain_way(pairs: list[tuple[int, int]], extra: int) -> None:
    """An AddressSpace's own copy_in_vec answers as the plain one does, before its pages were touched and after."""
    with AddressSpace() as space:
        base = space.mmap(0, 2 * PAGE, mman.PROT_READ | mman.PROT_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        start = base + 2 * PAGE - 30
        space.copy_out(start, bytes(range(30)))
        space.mprotect(base, 2 * PAGE, mman.PROT_READ)
        ars = at(start, *pairs)
        size = max(ars.num_bytes + extra, 0)
        answers: list[tuple[object, bytes]] = []
        for io in (space, WatchedIO(space), space, WatchedIO(space)):
            dst = bytearray(b"\xee" * size)
            result: object
            try:
                result = copy_in_vec(io, ars, dst)
            except FaultError as exc:
                result = (exc.transferred, exc.address, exc.reason, str(exc))
            answers.append((result, bytes(dst)))
    assert answers == answers[:1] * 4
