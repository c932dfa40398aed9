"""Decimal numbers in user memory: which tokens are numbers, how many bytes are consumed, what a fault leaves."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import AddrRange, AddrRangeSeq, mman
from patchy_io import PatchyIO
from safemem import TransferError
from usermem import (
    AddressSpace,
    BytesIO,
    FaultError,
    InvalidIntegerError,
    copy_int32_string_in_vec,
    copy_int32_strings_in_vec,
    linux_result,
)
from watched_io import WatchedIO

if TYPE_CHECKING:
    pass

MIN, MAX = -(1 << 31), (1 << 31) - 1
MANY = 100


def all_of(data: bytes) -> AddrRangeSeq:
    """One range over all of data, from address 0."""
    return AddrRangeSeq([AddrRange(0, len(data))])


def parse(data: bytes, count: int = MANY) -> tuple[int, list[int]]:
    """Up to count values in data, which is all that there is."""
    return copy_int32_strings_in_vec(BytesIO(data), all_of(data), count)


def model(data: bytes, count: int) -> tuple[str, int, list[int]]:
    """(verdict, consumed, values), found character by character."""
    i = 0
    values: list[int] = []
    while True:
        while i < len(data) and chr(data[i]) in " \t\n\v\f\r":
            i += 1
        if i == len(data) or len(values) == count:
            return ("good" if values else "invalid"), i, values
        end = i
        while end < len(data) and chr(data[end]) not in " \t\n\v\f\r":
            end += 1
        digits = data[i:end]
        negative = digits[:1] == b"-"
        if digits[:1] in (b"+", b"-"):
            digits = digits[1:]
        value = 0
        for digit in digits:
            if not 48 <= digit <= 57:
                return "invalid", i, values
            value = value * 10 + digit - 48
        value = -value if negative else value
        if not digits or not MIN <= value <= MAX:
            return "invalid", i, values
        values.append(value)
        i = end


@pytest.mark.parametrize(
    ("data", "count", "consumed", "values"),
    [
        pytest.param(b"100", 1, 3, [100], id="one"),
        pytest.param(b"100\n", 1, 4, [100], id="trailing space is consumed"),
        pytest.param(b"  100 200\t\n300 \r", 3, 16, [100, 200, 300], id="all of three"),
        pytest.param(b"100 200 300", 2, 8, [100, 200], id="up to the start of the next"),
        pytest.param(b"100 200", 9, 7, [100, 200], id="fewer than asked for"),
        pytest.param(b"1 bad", 1, 2, [1], id="what is behind the last value is not looked at"),
        pytest.param(b" \t\n\v\f\r1", 1, 7, [1], id="all six kinds of space"),
        pytest.param(b"+5 -0 007 -007 +0", 5, 17, [5, 0, 7, -7, 0], id="signs and zeros"),
        pytest.param(b"2147483647 -2147483648", 2, 22, [MAX, MIN], id="the extremes"),
        pytest.param(b"+0002147483647", 1, 14, [MAX], id="zeros before the greatest"),
        pytest.param(b"-" + b"0" * 99_999 + b"2147483648", 1, 100_010, [MIN], id="a long run of zeros"),
        pytest.param(b"0" * 100_000, 1, 100_000, [0], id="nothing but zeros"),
        pytest.param(b"1 " * 5000, 5000, 10_000, [1] * 5000, id="many"),
    ],
)
def test_numbers(data: bytes, count: int, consumed: int, values: list[int]) -> None:
    """Bytes consumed and values, as Linux's proc_dointvec takes them."""
    assert parse(data, count) == (consumed, values)


@pytest.mark.parametrize(
    "token",
    [
        *(b"+", b"-", b"+-1", b"--1", b"1-", b"1+1", b"x", b"12x", b"0x10", b"1.0", b"1e3", b"1,", b"1;2", b"#1"),
        *(b"1_0", b"_1", b"1_", b"1\0", b"\0", b"1\x1c2", b"\x1c1", b"\x1d1", b"\x1e1", b"\x1f1", b"\x851", b"\xa01"),
        *(c.encode() for c in ("٣", "\N{FULLWIDTH DIGIT THREE}", "²", "①", "1\N{NO-BREAK SPACE}", "\ufeff1", "Ⅷ")),
        "\N{MINUS SIGN}1".encode(),
        *(b"\xff", b"1\x80", b"2147483648", b"-2147483649", b"00002147483648", b"99999999999", b"4294967296"),
        *(b"18446744073709551617", b"1" * 5000, b"0" * 100_000 + b"x", b"0" * 100_000 + b"99999999999"),
    ],
    ids=lambda token: repr(token[:24]),
)
def test_tokens_that_are_no_numbers(token: bytes) -> None:
    """Whatever Python's int() or a locale would say: EINVAL at the token, with the values before it."""
    with pytest.raises(InvalidIntegerError) as caught:
        parse(b" 7 -8\t" + token + b" 9")
    assert (caught.value.consumed, caught.value.values) == (6, [7, -8])
    assert linux_result(caught.value) == -22
    with pytest.raises(InvalidIntegerError) as caught:
        parse(token)
    assert (caught.value.consumed, caught.value.values) == (0, [])


@pytest.mark.parametrize("data", [b"", b" ", b"\n\t \v\f\r"])
@pytest.mark.parametrize("count", [1, 3])
def test_one_value_is_needed(data: bytes, count: int) -> None:
    """Nothing but space is EINVAL, after all of the space."""
    with pytest.raises(InvalidIntegerError) as caught:
        parse(data, count)
    assert (caught.value.consumed, caught.value.values) == (len(data), [])


def test_no_values_asked_for() -> None:
    """With count 0 nothing is read, not even bad ranges; a negative count is the caller's ValueError."""
    io = WatchedIO(BytesIO(b""))
    assert copy_int32_strings_in_vec(io, AddrRangeSeq([AddrRange(5, 9)]), 0) == (0, [])
    assert io.accesses == []
    with pytest.raises(ValueError, match="count"):
        copy_int32_strings_in_vec(io, AddrRangeSeq(), -1)


def test_one_value() -> None:
    """copy_int32_string_in_vec gives the value itself, and the same errors."""
    data = b" -12 13"
    assert copy_int32_string_in_vec(BytesIO(data), all_of(data)) == (5, -12)
    with pytest.raises(InvalidIntegerError) as invalid:
        copy_int32_string_in_vec(BytesIO(b"  x"), all_of(b"  x"))
    assert (invalid.value.consumed, invalid.value.values) == (2, [])
    with pytest.raises(FaultError) as fault:
        copy_int32_string_in_vec(BytesIO(b"  1"), AddrRangeSeq([AddrRange(0, 4)]))
    assert fault.value.partial == (3, [1])


@pytest.mark.parametrize(
    ("data", "count", "consumed", "values"),
    [
        pytest.param(b"12 34", 2, 5, [12, 34], id="a number cut by the fault counts"),
        pytest.param(b"12 34 ", 3, 6, [12, 34], id="space before it"),
        pytest.param(b"12 34", 1, 3, [12], id="though nothing behind the value was asked for"),
        pytest.param(b"214748364", 1, 9, [214748364], id="cut before it would be too great"),
        pytest.param(b"", 1, 0, [], id="at once"),
        pytest.param(b"  ", 1, 2, [], id="after space"),
    ],
)
def test_a_fault(data: bytes, count: int, consumed: int, values: list[int]) -> None:
    """What came before the fault is parsed, and is in ``partial`` as the result would be; the answer is EFAULT."""
    with pytest.raises(FaultError) as caught:
        copy_int32_strings_in_vec(BytesIO(data), AddrRangeSeq([AddrRange(0, len(data) + 5)]), count)
    fault = caught.value
    assert (fault.partial, fault.transferred, fault.address) == ((consumed, values), consumed, len(data))
    assert linux_result(fault) == -14


@pytest.mark.parametrize("data", [b"12 x", b"12 -", b"12 99999999999", b"12 3_"])
def test_a_bad_token_comes_before_a_fault(data: bytes) -> None:
    """EINVAL at the token, also where the token is cut by the fault."""
    with pytest.raises(InvalidIntegerError) as caught:
        copy_int32_strings_in_vec(BytesIO(data), AddrRangeSeq([AddrRange(0, 100)]), 2)
    assert (caught.value.consumed, caught.value.values) == (3, [12])


def test_an_error_that_is_no_fault_passes() -> None:
    """What an IO raises of its own comes out as it is, and is no end of the text; its bytes before are parsed."""
    error = TransferError(errno.EIO, "Input/output error", 2)

    class Failing(BytesIO):
        def read_bytes(self, addr: int, n: int, *, ignore_permissions: bool = False) -> bytes:
            error.partial = b"12"  # type: ignore[attr-defined]
            raise error

    with pytest.raises(TransferError) as caught:
        copy_int32_strings_in_vec(Failing(b"12 34"), all_of(b"12 34"), 2)
    assert caught.value is error
    assert (error.transferred, error.partial) == (2, (2, [12]))  # type: ignore[attr-defined]


def test_options_are_handed_on() -> None:
    """Memory that may not be read can be, with permissions ignored."""
    with AddressSpace() as space:
        addr = space.mmap(0, 4096, mman.PROT_READ | mman.PROT_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        space.copy_out(addr, b"41 42")
        space.mprotect(addr, 4096, mman.PROT_NONE)
        ars = AddrRangeSeq([AddrRange(addr, addr + 5)])
        with pytest.raises(FaultError):
            copy_int32_strings_in_vec(space, ars, 2)
        assert copy_int32_strings_in_vec(space, ars, 2, ignore_permissions=True) == (5, [41, 42])
        assert copy_int32_string_in_vec(space, ars, ignore_permissions=True) == (3, 41)


def test_empty_ranges_in_bad_places() -> None:
    """An empty range outside user space faults if it comes before the last byte, and is not looked at behind it."""
    with AddressSpace() as space:
        addr = space.mmap(0, 4096, mman.PROT_READ | mman.PROT_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        space.copy_out(addr, b"12 34")
        bad = AddrRange(1 << 63, 1 << 63)
        for io in (space, WatchedIO(space)):
            good = AddrRangeSeq([AddrRange(addr, addr + 2), AddrRange(addr + 2, addr + 5), bad, bad])
            assert copy_int32_strings_in_vec(io, good, 9) == (5, [12, 34])
            with pytest.raises(FaultError) as caught:
                copy_int32_strings_in_vec(
                    io, AddrRangeSeq([AddrRange(addr, addr + 2), bad, AddrRange(addr, addr + 1)]), 9
                )
            assert (caught.value.partial, caught.value.address) == ((2, [12]), 1 << 63)


@pytest.mark.parametrize(
    "ars",
    [AddrRangeSeq([AddrRange(0, 1 << 62)]), AddrRangeSeq.of(AddrRange(0, 1 << 63)), AddrRangeSeq.of(AddrRange(2, 0))],
    ids=["more than any host has", "negative as an int64", "ill-formed"],
)
def test_any_ranges_of_a_guest(ars: AddrRangeSeq) -> None:
    """The worst that a range of the guest's does is a FaultError: it costs no memory of its size, nor our caller."""
    with AddressSpace() as space:
        for io in (space, BytesIO(b"")):
            with pytest.raises(FaultError):
                copy_int32_strings_in_vec(io, ars, 1)


WORDS = st.one_of(
    st.integers(MIN - 2, MAX + 2).map(lambda n: b"%d" % n),
    st.sampled_from([b" ", b"  ", b"\n", b"\v", b"+", b"-", b"0", b"00", b"2147483647", b"2147483648", b"x", b"_"]),
    st.binary(max_size=2),
)


@given(words=st.lists(WORDS, max_size=8), separator=st.sampled_from([b" ", b"\t", b""]), count=st.integers(1, 5))
def test_against_a_model(words: list[bytes], separator: bytes, count: int) -> None:
    """Any text: the values, the bytes consumed and the place of the first bad token, as read one by one."""
    data = separator.join(words)
    verdict, consumed, values = model(data, count)
    if verdict == "good":
        assert parse(data, count) == (consumed, values)
    else:
        with pytest.raises(InvalidIntegerError) as caught:
            parse(data, count)
        assert (caught.value.consumed, caught.value.values) == (consumed, values)


@given(
    words=st.lists(WORDS, max_size=5),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    count=st.integers(1, 4),
    hole=st.booleans(),
)
def test_any_ranges_and_a_hole(words: list[bytes], cuts: list[int], count: int, hole: bool) -> None:
    """However the text lies in ranges, here apart and out of order: the same answer, and the fault if there is one."""
    data = b" ".join(words)
    bounds = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    parts = [data[a:b] for a, b in pairwise(bounds)]
    places = [0x10000 - 100 * i for i in range(len(parts) + 1)]
    io = PatchyIO({place: part for place, part in zip(places, parts, strict=False) if part})
    named = [AddrRange(place, place + len(part)) for place, part in zip(places, parts, strict=False)]
    if hole:
        named.append(AddrRange(places[-1], places[-1] + 3))
    verdict, consumed, values = model(data, count)
    result: tuple[object, ...]
    try:
        result = ("good", *copy_int32_strings_in_vec(io, AddrRangeSeq(named), count))
    except InvalidIntegerError as exc:
        result = ("invalid", exc.consumed, exc.values)
    except FaultError as exc:
        result = ("fault", *exc.partial)
        assert exc.address == places[-1]
    bad_token = verdict == "invalid" and consumed < len(data)
    assert result == ("fault" if hole and not bad_token else verdict, consumed, values)
