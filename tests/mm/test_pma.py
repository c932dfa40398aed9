"""Where a guest's memory is: how many places (PMAs) it has does not grow with the calls that a guest makes."""

from __future__ import annotations

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW
from hostarch import mman
from usermem import AddressSpace
from usermem.mm.backing.shared_memory import SharedMemory

WINDOW = 1 << 26


@pytest.mark.parametrize("advice", [mman.MADV_DONTNEED, mman.MADV_DONTNEED_LOCKED, mman.MADV_FREE])
def test_dropping_pages_makes_no_places(advice: int) -> None:
    """Each second page of memory that was hardly touched: one mapping, and a place for each window, as before."""
    space = AddressSpace()
    at = space.mmap(BASE, 1 << 40, RW, FIXED)
    for window in range(3):
        space.copy_out(at + window * WINDOW, b"kept")
    places = len(space._map.tables.pmas)
    for page in range(1, 3000, 2):
        space.madvise(at + page % 3 * WINDOW + page * PAGE, PAGE, advice)
    assert len(space._map.tables.pmas) == places <= 4
    assert len(space.mappings()) == 1
    assert [space.read_bytes(at + window * WINDOW, 5) for window in range(3)] == [b"kept\0"] * 3
    space._check()


def test_dropping_pages_of_private_shared_memory_makes_no_places() -> None:
    """Nor does it where the host's copy-on-write has the pages."""
    space = AddressSpace()
    at = space.map_object(0, 1 << 24, RW, mman.MAP_PRIVATE, SharedMemory(1 << 24))
    space.copy_out(at, b"kept")
    places = len(space._map.tables.pmas)
    for page in range(1, 1000, 2):
        space.copy_out(at + page * PAGE, b"dropped")
        space.madvise(at + page * PAGE, PAGE, mman.MADV_DONTNEED)
    assert len(space._map.tables.pmas) == places == 1
    assert space.read_bytes(at, 5) == b"kept\0"
    assert space.read_bytes(at + PAGE, 8) == bytes(8)


def test_changing_rights_makes_no_places() -> None:
    """Mappings are cut and merged by mprotect; their memory stays where it is, in one piece."""
    space = AddressSpace()
    at = space.mmap(0, 1 << 22, RW, ANON)
    space.copy_out(at, b"kept")
    (place,) = space._map.tables.pmas
    for page in range(0, 1 << 10, 2):
        space.mprotect(at + page * PAGE, PAGE, mman.PROT_READ)
    assert len(space.mappings()) == 1 << 10
    assert list(space._map.tables.pmas) == [place]
    space.mprotect(at, 1 << 22, RW)
    assert len(space.mappings()) == 1
    assert list(space._map.tables.pmas) == [place]


def test_memory_whose_cached_pages_are_gone_is_not_divided() -> None:
    """Another thread may have pruned what made it look crowded: then there is nothing to divide, and no error."""
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)
    space.copy_out(BASE, b"x")
    (pma,) = space._map.tables.pmas
    pma.cached.clear()
    space._map.change(lambda change: change.divide(pma))
    assert list(space._map.tables.pmas) == [pma]
