"""Arch: rounding is arithmetic modulo the sizes of the machine, and never silently leaves the machine's width.

The model is remainder and comparison; the machine's width is checked against ctypes, the byte order against struct.
"""

from __future__ import annotations

import ctypes
import struct
import sys

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hostarch
from hostarch import (
    AMD64,
    ARM,
    ARM64,
    ARM64_16K,
    ARM64_64K,
    HOST_BYTE_ORDER,
    I386,
    MIPS,
    MIPSEL,
    PPC64,
    RISCV64,
    S390X,
    Arch,
    mman,
)

KIB = 1 << 10
MIB = 1 << 20
ARCHES = (AMD64, I386, ARM64, ARM64_16K, ARM64_64K, ARM, RISCV64, MIPS, MIPSEL, PPC64, S390X)

every_arch = pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)


arch_and_address = st.sampled_from(ARCHES).flatmap(
    lambda arch: st.tuples(
        st.just(arch),
        st.integers(0, arch.addr_mask) | st.integers(0, 2 * arch.huge_page_size).map(lambda n: arch.addr_mask - n),
    )
)


@pytest.mark.parametrize(
    ("arch", "pointer", "page", "huge_page", "order"),
    [
        (AMD64, 8, 4 * KIB, 2 * MIB, "little"),
        (I386, 4, 4 * KIB, 4 * MIB, "little"),
        (ARM64, 8, 4 * KIB, 2 * MIB, "little"),
        (ARM64_16K, 8, 16 * KIB, 32 * MIB, "little"),
        (ARM64_64K, 8, 64 * KIB, 512 * MIB, "little"),
        (ARM, 4, 4 * KIB, 2 * MIB, "little"),
        (RISCV64, 8, 4 * KIB, 2 * MIB, "little"),
        (MIPS, 4, 4 * KIB, 2 * MIB, "big"),
        (MIPSEL, 4, 4 * KIB, 2 * MIB, "little"),
        (PPC64, 8, 64 * KIB, 16 * MIB, "big"),
        (S390X, 8, 4 * KIB, 1 * MIB, "big"),
    ],
    ids=lambda value: value.name if isinstance(value, Arch) else str(value),
)
def test_machines(arch: Arch, pointer: int, page: int, huge_page: int, order: str) -> None:
    """The shipped machines have the widths, page sizes and byte orders they have in the world."""
    assert (arch.pointer_size, arch.page_size, arch.huge_page_size) == (pointer, page, huge_page)
    assert arch.byte_order == order
    assert arch.cache_line_size == {"ppc64": 128, "s390x": 256}.get(arch.name, 64)


@every_arch
def test_machine_makes_sense(arch: Arch) -> None:
    """Sizes follow the shifts, the mask is a pointer of ones, user space lies within it and is page-aligned."""
    word = ctypes.c_uint64 if arch.pointer_size == 8 else ctypes.c_uint32
    assert arch.addr_mask == word(-1).value
    assert arch.page_size == 2**arch.page_shift
    assert arch.huge_page_size == 2**arch.huge_page_shift
    assert arch.cache_line_size == 2**arch.cache_line_shift
    assert 0 < arch.min_addr < arch.max_addr <= arch.addr_mask
    assert arch.is_page_aligned(arch.min_addr) and arch.is_page_aligned(arch.max_addr)


def test_names_differ() -> None:
    """Every shipped machine has its own name."""
    assert len({arch.name for arch in ARCHES}) == len(ARCHES)


def test_host_byte_order() -> None:
    """The host's byte order is the one that struct uses."""
    assert struct.pack("=I", 1) == (1).to_bytes(4, HOST_BYTE_ORDER)
    assert sys.byteorder == HOST_BYTE_ORDER


@given(arch_and_address)
def test_round_down(arch_and_x: tuple[Arch, int]) -> None:
    """Rounding down removes the remainder."""
    arch, x = arch_and_x
    assert arch.page_round_down(x) == x - x % arch.page_size
    assert arch.is_page_aligned(x) == (x % arch.page_size == 0)


@given(arch_and_address)
def test_round_up(arch_and_x: tuple[Arch, int]) -> None:
    """Rounding up gives the next multiple, OverflowError where an address cannot hold it, and None in the twin."""
    arch, x = arch_and_x
    expected = x if x % arch.page_size == 0 else x - x % arch.page_size + arch.page_size
    if expected > arch.addr_mask:
        assert arch.checked_page_round_up(x) is None
        with pytest.raises(OverflowError, match=arch.name):
            arch.page_round_up(x)
    else:
        assert arch.checked_page_round_up(x) == expected
        assert arch.page_round_up(x) == expected


@every_arch
def test_last_boundary(arch: Arch) -> None:
    """The last boundary of the space rounds up to itself; the very next address has none above it."""
    last = arch.addr_mask + 1 - arch.page_size
    assert arch.page_round_up(last) == arch.page_round_up(last - 1) == last
    for x in (last + 1, arch.addr_mask):
        with pytest.raises(OverflowError):
            arch.page_round_up(x)


@pytest.mark.parametrize("x", [-4097, -(1 << 64)])
@pytest.mark.parametrize("arch", [AMD64, I386], ids=lambda arch: arch.name)
def test_round_up_below_zero(arch: Arch, x: int) -> None:
    """A multiple below zero is no address either: OverflowError, None in the twin."""
    assert arch.checked_page_round_up(x) is None
    with pytest.raises(OverflowError):
        arch.page_round_up(x)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0x0000_7FFF_1234_5678, 0x0000_7FFF_1234_5678),
        (0xAB00_7FFF_1234_5678, 0x0000_7FFF_1234_5678),
        (0xFF00_0000_0000_0000, 0),
        (0x0080_0000_0000_0000, 0xFF80_0000_0000_0000),
        (0x12FF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF),
        (0xFFFF_0000_0000_0001, 0xFFFF_0000_0000_0001),
    ],
    ids=hex,
)
def test_untagged_arm64(x: int, expected: int) -> None:
    """On ARM64 the top byte is a tag: access checks see copies of bit 55 there."""
    for arch in (ARM64, ARM64_16K, ARM64_64K):
        assert arch.untagged(x) == expected


@given(st.integers(0, 2**64 - 1))
def test_untagged_is_sign_extension(x: int) -> None:
    """Untagging is the sign extension of the low 56 bits, done twice the same as once; elsewhere it is nothing."""
    assert ARM64.untagged(x) == ctypes.c_uint64(ctypes.c_int64(x << 8).value >> 8).value
    assert ARM64.untagged(ARM64.untagged(x)) == ARM64.untagged(x)
    for arch in ARCHES:
        if arch.pointer_size == 8 and not arch.name.startswith("arm64"):
            assert arch.untagged(x) == x


def test_immutable() -> None:
    """An Arch is a value: it cannot be changed, equals its copies and can be a key."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        AMD64.page_shift = 13  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        AMD64.page_size = 8192  # type: ignore[misc]
    assert attrs.evolve(AMD64) == AMD64
    assert len({AMD64, attrs.evolve(AMD64), I386}) == 2


def test_evolve() -> None:
    """A machine of one's own: what was derived from the changed field follows it, the rest stays."""
    small = attrs.evolve(AMD64, max_addr=1 << 21)
    assert (small.max_addr, small.page_size, small.name) == (1 << 21, 4096, "amd64")
    large = attrs.evolve(I386, page_shift=13, huge_page_shift=20, cache_line_shift=5, pointer_size=8)
    assert (large.page_size, large.huge_page_size, large.cache_line_size) == (8192, 1 << 20, 32)
    assert large.addr_mask == 2**64 - 1
    assert large.page_round_up(2**32 - 1) == 2**32
    assert I386.page_size == 4096


@pytest.mark.parametrize("arch", [*ARCHES, attrs.evolve(AMD64, max_addr=1 << 21), attrs.evolve(MIPS, name="Arch")])
def test_the_repr_makes_the_machine_again(arch: Arch) -> None:
    """A machine that is shipped is its name, so that signatures stay short; another one the call that makes it."""
    assert eval(repr(arch), {**vars(hostarch), "MapFlags": mman.MapFlags}) == arch
    assert repr(arch) == arch.name.upper().replace("-", "_") or arch not in ARCHES
