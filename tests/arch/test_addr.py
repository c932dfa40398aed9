"""Addr: an int whose named methods cannot silently leave the address space.

Wrapping is checked against ctypes' unsigned integers, rounding against Arch.
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


@given(U64, ANY_ARCH)
def test_rounding_is_the_machines(x: int, arch: Arch) -> None:
    """Rounding and offsets are those of Arch, as Addr."""
    addr = Addr(x)
    for unit, name in (("page", ""), ("huge_page", "huge_"), ("cache_line", "cache_line_")):
        down = method(addr, f"{name}round_down")(arch)
        assert down == method(arch, f"{unit}_round_down")(x) and type(down) is Addr
        up = method(addr, f"checked_{name}round_up")(arch)
        assert up == method(arch, f"checked_{unit}_round_up")(x)
        assert up is None or (type(up) is Addr and method(addr, f"{name}round_up")(arch) == up)
    assert addr.page_offset(arch) == arch.page_offset(x)
    assert addr.huge_page_offset(arch) == arch.huge_page_offset(x)
    assert addr.is_page_aligned(arch) == arch.is_page_aligned(x)
    assert addr.is_huge_page_aligned(arch) == arch.is_huge_page_aligned(x)
    assert addr.checked_to_pages_round_up(arch) == arch.checked_to_pages_round_up(x)


@pytest.mark.parametrize("arch", [AMD64, I386], ids=lambda arch: arch.name)
@pytest.mark.parametrize("name", ["round_up", "huge_round_up", "cache_line_round_up", "to_pages_round_up"])
def test_rounding_overflows(name: str, arch: Arch) -> None:
    """The last address of the space rounds up to no address: OverflowError, None in the twin."""
    addr = Addr(arch.addr_mask)
    assert method(addr, f"checked_{name}")(arch) is None
    with pytest.raises(OverflowError):
        method(addr, name)(arch)


def test_to_pages() -> None:
    """How many pages reach from 0 to the address, by the machine's page size."""
    assert Addr(0).to_pages_round_up() == 0
    assert Addr(4097).to_pages_round_up() == 2
    assert Addr(4097).to_pages_round_up(ARM64_64K) == 1


def test_untagged() -> None:
    """A tag counts on ARM64 alone."""
    tagged = Addr(0x5A00_0000_0000_1000)
    assert tagged.untagged(ARM64) == 0x1000 and type(tagged.untagged(ARM64)) is Addr
    assert tagged.untagged() == tagged
