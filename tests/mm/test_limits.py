"""Limits that are set; and RLIMIT_DATA: what counts against it, and which call says what at the limit."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from attrs import fields

from edge_layouts import BASE, FIXED, PAGE, RW
from hostarch import mman
from integer_kinds import KINDS, kind_of
from usermem import AddressSpace
from usermem.mm.host_limits import HostLimits
from usermem.mm.limits import Limits

R = mman.PROT_READ
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS
ANYWHERE = FIXED & ~mman.MAP_FIXED
FAR = BASE + 1000 * PAGE


def code(call: Callable[[], object]) -> str:
    """The name of the errno that a call raises."""
    with pytest.raises(OSError) as caught:
        call()
    return errno.errorcode[caught.value.errno or 0]


@pytest.fixture
def space() -> AddressSpace:
    """A space at its limit of four pages of data."""
    found = AddressSpace(data_limit=4 * PAGE)
    found.mmap(BASE, 4 * PAGE, RW, FIXED)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_limits_are_ints(kind: str) -> None:
    """Whatever integers are given as limits and as a seed, at first or later, they are kept as ints."""
    like = kind_of(kind)
    names = [field.name for field in fields(Limits)]
    space = AddressSpace(seed=like(5), **{name: like(100) for name in names[:5]})
    assert space._map.base == AddressSpace(seed=5)._map.base
    for name in names:
        setattr(space.limits, name, like(100))
        assert type(getattr(space.limits, name)) is int
        for wrong, error in ((-1, ValueError), ("9", TypeError)):
            with pytest.raises(error, match=name):
                setattr(space.limits, name, wrong)
    with pytest.raises(TypeError, match="seed"):
        AddressSpace(seed="5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_map_count"):
        HostLimits(None)  # type: ignore[arg-type]
    space.limits.address_limit = space.limits.data_limit = space.limits.memlock_limit = None


def test_what_is_data(space: AddressSpace) -> None:
    """Private writable memory is; shared, growing and read-only memory is not. A refusal changes nothing."""
    before = space.maps()
    assert code(lambda: space.mmap(0, PAGE, RW, ANYWHERE)) == "ENOMEM"
    assert code(lambda: space.mmap(BASE + 3 * PAGE, 2 * PAGE, RW, FIXED)) == "ENOMEM"
    assert space.maps() == before
    assert space.mmap(BASE, PAGE, RW, FIXED) == BASE
    for prot, flags in ((R, ANYWHERE), (RW, SHARED), (RW, ANYWHERE | mman.MAP_GROWSDOWN)):
        assert space.mmap(0, 9 * PAGE, prot, flags)
    assert space.mmap(FAR, PAGE, RW, FIXED | mman.MAP_GROWSDOWN) == FAR
    assert space.read_bytes(FAR - 9 * PAGE, 1) == b"\0"
    space.munmap(BASE, PAGE)
    assert space.mmap(0, PAGE, RW, ANYWHERE)


def test_mprotect(space: AddressSpace) -> None:
    """ENOMEM where memory would become data, after what came before; what is data, or leaves it, is free."""
    space.mmap(BASE + 4 * PAGE, 2 * PAGE, R, FIXED)
    assert code(lambda: space.mprotect(BASE + 2 * PAGE, 4 * PAGE, RW | mman.PROT_EXEC)) == "ENOMEM"
    assert [vma.prot for vma in space.mappings()] == [RW, RW | mman.PROT_EXEC, R]
    assert space.mprotect(BASE, PAGE, R) == 0
    assert space.mprotect(BASE + 4 * PAGE, PAGE, RW) == 0
    assert code(lambda: space.mprotect(BASE + 5 * PAGE, PAGE, RW)) == "ENOMEM"
    space._check()


def test_mremap(space: AddressSpace) -> None:
    """To grow is ENOMEM, and so is to keep the old place."""
    flags = mman.MREMAP_MAYMOVE | mman.MREMAP_DONTUNMAP
    assert code(lambda: space.mremap(BASE, 4 * PAGE, 5 * PAGE, mman.MREMAP_MAYMOVE)) == "ENOMEM"
    assert code(lambda: space.mremap(BASE, PAGE, PAGE, flags)) == "ENOMEM"
    assert space.mremap(BASE, 4 * PAGE, 4 * PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, FAR) == FAR


def test_brk() -> None:
    """The heap ends where it did, beyond its own length and with other data; the limit is to the byte."""
    space = AddressSpace(data_limit=4 * PAGE + 100)
    space.set_brk(BASE)
    assert space.brk(BASE + (1 << 30)) == BASE
    assert space.brk(BASE + 4 * PAGE) == BASE + 4 * PAGE
    assert space.brk(BASE + 4 * PAGE + 1) == BASE + 4 * PAGE  # a page more would be data
    space.brk(BASE + 3 * PAGE)
    space.mmap(FAR, PAGE, RW, FIXED)
    assert space.brk(BASE + 3 * PAGE + 1) == BASE + 3 * PAGE
    space.limits.data_limit = None
    assert space.brk(BASE + (1 << 20)) == BASE + (1 << 20)
    space.limits.data_limit = 0
    assert space.brk(BASE + PAGE) == BASE + (1 << 20)
    assert space.brk(BASE) == BASE
