"""Where a guest's memory is: how many places (PMAs) it has does not grow with the calls that a guest makes."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW, GrowingObject
from hostarch import AddrRange, AddrRangeSeq, mman
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


KEEP = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED | mman.MREMAP_DONTUNMAP

CUTS: dict[str, Callable[[AddressSpace, int], object]] = {
    "mmap": lambda space, at: space.mmap(at, PAGE, RW, FIXED),
    "mremap": lambda space, at: space.mremap(at, PAGE, PAGE, KEEP, BASE - PAGE),
    "MADV_DONTNEED": lambda space, at: space.madvise(at, PAGE, mman.MADV_DONTNEED),
}


@pytest.mark.parametrize("name", CUTS)
def test_places_are_limited(name: str) -> None:
    """Memory is cut by calls whose mappings merge again: at a limit such a call is ENOMEM, and changes nothing.

    What is touched gets memory all the same, and what goes away makes room.
    """
    space = AddressSpace()
    if name == "MADV_DONTNEED":
        space.map_object(BASE, 1 << 24, RW, FIXED, GrowingObject(b"kept" * PAGE, 1 << 24))
    else:
        space.mmap(BASE, 1 << 24, RW, FIXED)
    space.copy_out(BASE, b"kept")
    space.limits.max_pma_count = 6
    with pytest.raises(OSError, match="in 7 pieces") as caught:
        for page in range(1, 16, 2):
            CUTS[name](space, BASE + page * PAGE)
    assert caught.value.errno == errno.ENOMEM
    assert len(space._map.tables.pmas) == 6
    space._check()
    for page in range(16):
        space.copy_out(BASE + page * PAGE, b"touched")
    assert len(space._map.tables.pmas) > 6
    space.mprotect(BASE, PAGE, mman.PROT_READ)
    space.munmap(BASE, 16 * PAGE)
    CUTS[name](space, BASE + 20 * PAGE)
    assert space.read_bytes(BASE + 20 * PAGE, 1) == bytes(1)


def test_memory_whose_cached_pages_are_gone_is_not_divided() -> None:
    """Another thread may have pruned what made it look crowded: then there is nothing to divide, and no error."""
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)
    space.copy_out(BASE, b"x")
    (pma,) = space._map.tables.pmas
    pma.cached.clear()
    space._map.change(lambda change: change.divide(pma))
    assert list(space._map.tables.pmas) == [pma]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_window_is_used_again_clean(order: tuple[int, int]) -> None:
    """Two mappings in one window, written and unmapped in turn; then the window is all zero, wherever it is mapped."""
    space = AddressSpace()
    zeros = bytes(WINDOW)
    for _ in range(3):
        space.mmap(BASE, WINDOW, RW, FIXED)
        assert space.read_bytes(BASE, WINDOW) == zeros
        space.munmap(BASE, WINDOW)
        for _ in range(3):
            for at in (BASE, BASE + WINDOW // 2):
                space.mmap(at, PAGE, RW, FIXED)
                space.copy_out(at, b"x" * PAGE)
            for number in order:
                space.munmap(BASE + number * WINDOW // 2, PAGE)
        addresses = []
        for _ in range(3):
            space.mmap(BASE, PAGE, RW, FIXED)
            assert space.read_bytes(BASE, PAGE) == bytes(PAGE)
            space.copy_out(BASE, b"x" * PAGE)
            addresses += [pma.run.address for pma in space._map.tables.pmas]
            space.munmap(BASE, PAGE)
        assert len(addresses) == 3 and addresses[1] == addresses[2]


def test_a_view_keeps_a_window_that_is_unmapped() -> None:
    """Memory that is used again is not that of a view, until the view is gone; then it is zero."""
    space = AddressSpace()
    for _ in range(3):
        space.mmap(BASE, PAGE, RW, FIXED)
        space.copy_out(BASE, b"x" * PAGE)
        (view,) = space.blocks(AddrRangeSeq.of(AddrRange(BASE, BASE + PAGE))).views()
        space.munmap(BASE, PAGE)
        space.mmap(BASE, PAGE, RW, FIXED)
        space.copy_out(BASE, b"y")
        assert bytes(view) == b"x" * PAGE
        assert space.read_bytes(BASE, PAGE) == b"y" + bytes(PAGE - 1)
        view[:] = b"z" * PAGE
        del view
        space.munmap(BASE, PAGE)
        space.mmap(BASE, PAGE, RW, FIXED)
        assert space.read_bytes(BASE, PAGE) == bytes(PAGE)
        space.munmap(BASE, PAGE)
