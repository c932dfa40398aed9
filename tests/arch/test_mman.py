"""The constants of mmap(2): equal to the standard library's and to the kernel's own headers where the host has them.

The values that differ on MIPS and PowerPC are a table, after those machines' headers.
"""

from __future__ import annotations

import mmap
import platform
import re
import sys
from pathlib import Path

import attrs
import pytest

from hostarch import AMD64, ARM, ARM64, ARM64_16K, ARM64_64K, I386, MIPS, MIPSEL, PPC64, RISCV64, S390X, Arch, mman

_NAMES = r"(PROT|MAP|MREMAP|MADV|MS|MCL|MLOCK)_[A-Z0-9_]+"
CONSTANTS = {name: value for name, value in vars(mman).items() if re.fullmatch(_NAMES, name)}
HEADERS = ("asm-generic/mman-common.h", "asm-generic/mman.h", "linux/mman.h", "x86_64-linux-gnu/asm/mman.h")
_INCLUDE = Path("/usr/include")

generic_host = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "i686", "aarch64", "armv7l", "riscv64", "s390x"),
    reason="the host's own constants are not those of Linux's generic ABI",
)


def defined(header: Path) -> dict[str, int]:
    """The names that a C header defines as numbers."""
    found = re.findall(r"^#define\s+(\w+)\s+(0[xX][0-9a-fA-F]+|\d+)\b", header.read_text(), re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


@generic_host
def test_against_the_standard_library() -> None:
    """What Python's mmap module knows too has the same value."""
    common = CONSTANTS.keys() & vars(mmap).keys()
    assert common >= {"PROT_READ", "PROT_WRITE", "PROT_EXEC", "MAP_SHARED", "MAP_PRIVATE", "MAP_ANONYMOUS"}
    assert {name: CONSTANTS[name] for name in common} == {name: getattr(mmap, name) for name in common}


@generic_host
@pytest.mark.parametrize("name", HEADERS)
def test_against_the_kernels_headers(name: str) -> None:
    """What a header of the kernel defines has the same value here."""
    header = _INCLUDE / name
    if not header.exists():
        pytest.skip(f"the host has no {header}")
    theirs = defined(header)
    common = CONSTANTS.keys() & theirs.keys()
    assert common, f"{header} defines nothing of ours"
    assert {name: CONSTANTS[name] for name in common} == {name: theirs[name] for name in common}


@generic_host
def test_headers_know_all() -> None:
    """Every constant is in one of the headers: none is ours alone."""
    headers = [_INCLUDE / name for name in HEADERS]
    missing = [str(header) for header in headers if not header.exists()]
    if missing:
        pytest.skip(f"the host has no {', '.join(missing)}")
    # Of Linux 6.13, of asm/mman.h since 5.18, and of the headers for hugetlb.
    newer = {"MADV_GUARD_INSTALL", "MADV_GUARD_REMOVE", "MAP_ABOVE4G", "MAP_HUGE_SHIFT", "MAP_HUGE_MASK"}
    assert CONSTANTS.keys() - newer <= set().union(*map(defined, headers))


def test_map_type() -> None:
    """The two ways to share are under the mask of the type, and every flag lies outside it."""
    for name, value in CONSTANTS.items():
        if name in ("MAP_SHARED", "MAP_PRIVATE", "MAP_SHARED_VALIDATE"):
            assert value & mman.MAP_TYPE == value, name
        elif name.startswith("MAP_") and name not in ("MAP_TYPE", "MAP_HUGE_SHIFT", "MAP_HUGE_MASK"):
            assert value & mman.MAP_TYPE == 0, name


def test_flags_are_single_bits() -> None:
    """Flags can be told apart: each is one bit of its own."""
    names = [n for n in CONSTANTS if n.startswith("MAP_") and not n.startswith("MAP_HUGE_")]
    flags = [CONSTANTS[n] for n in names if CONSTANTS[n] & mman.MAP_TYPE == 0]
    assert len(flags) > 10
    assert all(value.bit_count() == 1 for value in flags)
    assert len(set(flags)) == len(flags)


@pytest.mark.parametrize(
    "arch", [AMD64, I386, ARM64, ARM64_16K, ARM64_64K, ARM, RISCV64, S390X], ids=lambda arch: arch.name
)
def test_generic_map_flags(arch: Arch) -> None:
    """Most machines have the generic flags: the constants of the module."""
    for name, value in attrs.asdict(arch.map_flags).items():
        if name == "map_32bit":
            assert value == (mman.MAP_32BIT if arch is AMD64 else 0)
        else:
            assert value == CONSTANTS[name.upper() if name.startswith("mcl_") else f"MAP_{name.upper()}"], name


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        *(
            (
                arch,
                {
                    "fixed": 0x10,
                    "anonymous": 0x800,
                    "growsdown": 0x1000,
                    "denywrite": 0x2000,
                    "executable": 0x4000,
                    "locked": 0x8000,
                    "noreserve": 0x400,
                    "populate": 0x10000,
                    "nonblock": 0x20000,
                    "stack": 0x40000,
                    "hugetlb": 0x80000,
                    "fixed_noreplace": 0x100000,
                    "map_32bit": 0,
                    "mcl_current": 1,
                    "mcl_future": 2,
                    "mcl_onfault": 4,
                },
            )
            for arch in (MIPS, MIPSEL)
        ),
        (
            PPC64,
            {
                "fixed": 0x10,
                "anonymous": 0x20,
                "growsdown": 0x100,
                "denywrite": 0x800,
                "executable": 0x1000,
                "locked": 0x80,
                "noreserve": 0x40,
                "populate": 0x8000,
                "nonblock": 0x10000,
                "stack": 0x20000,
                "hugetlb": 0x40000,
                "fixed_noreplace": 0x100000,
                "map_32bit": 0,
                "mcl_current": 0x2000,
                "mcl_future": 0x4000,
                "mcl_onfault": 0x8000,
            },
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Arch) else "",
)
def test_other_map_flags(arch: Arch, expected: dict[str, int]) -> None:
    """MIPS and PowerPC have numbers of their own."""
    assert expected.items() <= attrs.asdict(arch.map_flags).items()
    assert expected.keys() == attrs.asdict(arch.map_flags).keys()


@pytest.mark.parametrize("arch", [AMD64, MIPS, PPC64], ids=lambda arch: arch.name)
def test_map_flags_can_be_told_apart(arch: Arch) -> None:
    """On each machine every flag of mmap is one bit of its own, outside the mask of the type."""
    flags = attrs.asdict(arch.map_flags)
    values = [value for name, value in flags.items() if not name.startswith("mcl_") and (name != "map_32bit" or value)]
    assert len(set(values)) == len(values)
    assert all(value.bit_count() == 1 and not value & mman.MAP_TYPE for value in values)


def test_map_flags_are_values() -> None:
    """MapFlags cannot be changed."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        mman.GENERIC_MAP_FLAGS.fixed = 0  # type: ignore[misc]
