"""Addr: an int whose named methods cannot silently leave the address space.

Wrapping is checked against ctypes' unsigned integers, rounding against the remainder.
"""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import AMD64, ARM64, ARM64_64K, I386, Addr, AddrRange, Arch

U64 = st.integers(0, 2**64 - 1)
ANY_ARCH = st.sampled_from((AMD64, I386, ARM64_64K))
TOP64 = 2**64 - 1
TOP32 = 2**32 - 1


def method(obj: object, name: str) -> Callable[..., Any]:
    """A method of an object by name."""
    found: Callable[..., Any] = getattr(obj, name)
    return found


@given(U64)
def test_is_an_int(x: int) -> None:
    """An Addr is equal to its int, hashes as it, survives pickling, and the operators give plain ints."""
    addr = Addr(x)
    assert addr == x and hash(addr) == hash(x) and {x: "found"}[addr] == "found"
    assert type(pickle.loads(pickle.dumps(addr))) is Addr and pickle.loads(pickle.dumps(addr)) == x
    assert type(addr + 0) is int and type(addr & 1) is int


@given(U64)
def test_text(x: int) -> None:
    """str is the address in hexadecimal, as int() reads it; repr says what it is."""
    assert int(str(Addr(x)), 16) == x and str(Addr(x)).startswith("0x")
    assert repr(Addr(x)) == f"Addr({x:#x})"


def test_default() -> None:
    """Addr() is 0."""
    assert Addr() == 0


@pytest.mark.parametrize("x", [-1, 2**64, -(2**64), 10**30])
def test_no_address(x: int) -> None:
    """What does not fit 64 bits is no address."""
    with pytest.raises(OverflowError, match="64 bits"):
        Addr(x)


@pytest.mark.parametrize(
    ("arch", "x", "length", "expected"),
    [
        (AMD64, 0, 0, 0),
        (AMD64, 0x1000, 5, 0x1005),
        (AMD64, TOP64, 0, TOP64),
        (AMD64, TOP64, 1, None),
        (AMD64, 0, TOP64, TOP64),
        (AMD64, 0, 2**64, None),
        (AMD64, TOP64, TOP64, None),
        (AMD64, TOP32, 1, 2**32),
        (I386, TOP32, 0, TOP32),
        (I386, TOP32, 1, None),
        (I386, 0, 2**32, None),
        (I386, 2**32, 0, None),
    ],
    ids=lambda value: value.name if isinstance(value, Arch) else str(value),
)
def test_add_length(arch: Arch, x: int, length: int, expected: int | None) -> None:
    """The end of the address space itself is no address: adding up to it has no answer, in either width."""
    assert Addr(x).checked_add_length(length, arch) == expected
    if expected is None:
        assert Addr(x).checked_to_range(length, arch) is None
        with pytest.raises(OverflowError, match="leaves the address space"):
            Addr(x).add_length(length, arch)
        with pytest.raises(OverflowError, match="leaves the address space"):
            Addr(x).to_range(length, arch)
    else:
        assert Addr(x).add_length(length, arch) == expected
        assert Addr(x).to_range(length, arch) == Addr(x).checked_to_range(length, arch) == AddrRange(x, expected)


@given(U64, U64)
def test_wrapping_add(x: int, length: int) -> None:
    """wrapping_add is what the machine's adder does; where add_length has an answer they agree."""
    assert Addr(x).wrapping_add(length) == ctypes.c_uint64(x + length).value
    assert Addr(x).wrapping_add(length, I386) == ctypes.c_uint32(x + length).value
    end = Addr(x).checked_add_length(length)
    assert end is None or end == Addr(x).wrapping_add(length)


@pytest.mark.parametrize("name", ["add_length", "checked_add_length", "to_range", "checked_to_range"])
def test_negative_length(name: str) -> None:
    """A negative length is the caller's error, named, also where the sum would be an address."""
    with pytest.raises(ValueError, match="length"):
        method(Addr(0x1000), name)(-1)


UNITS = {"": "page_size", "huge_": "huge_page_size", "cache_line_": "cache_line_size"}


@pytest.mark.parametrize("name", UNITS)
@given(x=U64 | st.integers(0, 2**22).map(lambda n: TOP64 - n), arch=ANY_ARCH)
def test_rounding(name: str, x: int, arch: Arch) -> None:
    """By the remainder: to the multiple before, or the next one, if the machine's addresses reach it."""
    addr, size = Addr(x), getattr(arch, UNITS[name])
    down = method(addr, f"{name}round_down")(arch)
    assert down == x - x % size and type(down) is Addr
    expected = x if x % size == 0 else x - x % size + size
    up = method(addr, f"checked_{name}round_up")(arch)
    if expected > arch.addr_mask:
        assert up is None
    else:
        assert up == method(addr, f"{name}round_up")(arch) == expected and type(up) is Addr


@given(U64, ANY_ARCH)
def test_offsets(x: int, arch: Arch) -> None:
    """The remainder in pages and huge pages, whether there is none, and how many pages reach so far."""
    addr = Addr(x)
    assert addr.page_offset(arch) == x % arch.page_size
    assert addr.huge_page_offset(arch) == x % arch.huge_page_size
    assert addr.is_page_aligned(arch) == (x % arch.page_size == 0)
    assert addr.is_huge_page_aligned(arch) == (x % arch.huge_page_size == 0)
    up = addr.checked_round_up(arch)
    assert addr.checked_to_pages_round_up(arch) == (None if up is None else up // arch.page_size)


@pytest.mark.parametrize("arch", [AMD64, I386], ids=lambda arch: arch.name)
@pytest.mark.parametrize("name", UNITS)
def test_rounding_overflows(name: str, arch: Arch) -> None:
    """The last address of the space rounds up to no address: OverflowError, None in the twin."""
    addr = Addr(arch.addr_mask)
    assert method(addr, f"checked_{name}round_up")(arch) is None
    with pytest.raises(OverflowError, match=arch.name):
        method(addr, f"{name}round_up")(arch)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0, 0),
        (63, 64),
        (64, 64),
        (65, 128),
        (66, 128),
        (99, 128),
        (127, 128),
        (128, 128),
        (129, 192),
        (2**32 - 1, 2**32),
    ],
)
def test_cache_line_round_up(x: int, expected: int) -> None:
    """gVisor's rows: the next multiple of 64, past 32 bits too."""
    assert Addr(x).cache_line_round_up() == expected
    assert Addr(x).checked_cache_line_round_up() == expected


@pytest.mark.parametrize(
    ("arch", "x"),
    [(AMD64, 2**64 - 2), (AMD64, 2**64 - 1), (I386, 2**32 - 2), (I386, 2**32 - 1)],
    ids=lambda value: value.name if isinstance(value, Arch) else str(value),
)
def test_cache_line_round_up_wraps(arch: Arch, x: int) -> None:
    """gVisor's rows where the sum wraps, for both widths: no answer."""
    assert Addr(x).checked_cache_line_round_up(arch) is None
    with pytest.raises(OverflowError):
        Addr(x).cache_line_round_up(arch)


def test_untagged() -> None:
    """A tag counts on ARM64 alone."""
    tagged = Addr(0x5A00_0000_0000_1000)
    assert tagged.untagged(ARM64) == 0x1000 and type(tagged.untagged(ARM64)) is Addr
    assert tagged.untagged() == tagged
