"""Spaces out of files that no save has made: an error that says what is wrong, or a space that contradicts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from every_mapping import contents
from hostarch import AMD64, ARM64_16K, mman
from map_rows import rows
from usermem import AddressSpace, Snapshot
from usermem.mm.limits import Limits
from usermem.mm.saved_space import PRIVATE, Behind, SavedExtent, SavedMapping, SavedSpace
from usermem.mm.snapshot_file import Source, save

PAGE = 4096


def filled(start: int, end: int) -> bytes:
    """Pages that are full of one byte, which their number tells."""
    return b"".join(bytes([at // PAGE & 0xFF]) * PAGE for at in range(start, end, PAGE))


def space_of(path: Path, saved: SavedSpace, *extents: tuple[int, int, int]) -> AddressSpace:
    """The space that begins as a file with these tables says; extents as (space, first page, page after the last)."""
    pages: list[tuple[SavedExtent, Source]] = [
        (SavedExtent(n, low * PAGE, high * PAGE), filled) for n, low, high in extents
    ]
    save(path / "a", saved, pages)
    space = Snapshot.load(path / "a").spawn()
    space._check()
    return space


def saved(*mappings: SavedMapping, guards: tuple[tuple[int, int], ...] = (), base: int = 1 << 30) -> SavedSpace:
    """A space with some mappings, and a shared memory of a page and a half."""
    return SavedSpace(AMD64, base, Limits(), mappings, guards, (PAGE * 3 // 2,))


def mapping(first: int, last: int, behind: Behind = Behind.ANONYMOUS, offset: int = 0) -> SavedMapping:
    """A private mapping of some pages."""
    return SavedMapping(first * PAGE, last * PAGE, 3, 7, False, behind, offset=offset * PAGE)


def test_pages_that_nobody_can_access(tmp_path: Path) -> None:
    """Extents in guards, and behind the end of shared memory, show nowhere; those beside them do."""
    guards = tuple((page * PAGE, (page + 1) * PAGE) for page in (16, 18, 41))
    parts = (mapping(16, 24), mapping(24, 32, Behind.SHARED), mapping(32, 34, Behind.SHARED, 5))
    tables = saved(*parts, mapping(40, 44, Behind.OTHER), guards=guards)
    space = space_of(tmp_path, tables, (PRIVATE, 16, 34), (PRIVATE, 40, 43))
    seen = {addr // PAGE: found[0] for addr, found, *_ in contents(space)}
    assert seen == {
        **dict.fromkeys((16, 18, 41), "G"),
        **{page: page for page in (17, *range(19, 26), 40, 42)},
        **dict.fromkeys(range(26, 34), "B"),  # beyond the memory's end
        43: 0,
    }
    space.madvise(16 * PAGE, 8 * PAGE, mman.MADV_GUARD_REMOVE)
    assert space.read_bytes(16 * PAGE, 3 * PAGE) == bytes(PAGE) + bytes([17]) * PAGE + bytes(PAGE)
    space.madvise(41 * PAGE, PAGE, mman.MADV_GUARD_REMOVE)
    assert space.read_bytes(41 * PAGE, PAGE) == bytes([41]) * PAGE


def test_a_base_that_is_no_page(tmp_path: Path) -> None:
    """What is mapped later begins at one."""
    space = space_of(tmp_path, saved(base=(1 << 30) + 5))
    assert space.mmap(0, PAGE, 3, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS) == (1 << 30) - PAGE


def test_neighbours_that_are_one_mapping(tmp_path: Path) -> None:
    """They are one."""
    space = space_of(tmp_path, saved(mapping(0x400, 0x402), mapping(0x402, 0x403), mapping(0x404, 0x405)))
    assert [(vma.start // PAGE, vma.end // PAGE) for vma in space.mappings()] == [(0x400, 0x403), (0x404, 0x405)]
    assert len(rows(space)) == 2


@pytest.mark.parametrize("accessible", [5, PAGE, 3 * PAGE, 1 << 63])
def test_extents_and_ends_in_the_middle_of_a_large_page(tmp_path: Path, accessible: int) -> None:
    """The guest's page that the end lies in can be accessed, and is zero where nothing was saved."""
    page = ARM64_16K.page_size
    behind = SavedMapping(4 * page, 6 * page, 3, 7, False, Behind.OTHER, accessible=accessible)
    tables = SavedSpace(
        ARM64_16K, 1 << 30, Limits(), (behind, SavedMapping(8 * page, 9 * page, 3, 7, False, Behind(0)))
    )
    space = space_of(tmp_path, tables, (PRIVATE, 17, 18), (PRIVATE, 34, 35))
    assert space.read_bytes(4 * page, page) == bytes(PAGE) + bytes([17]) * PAGE + bytes(2 * PAGE)
    assert space.read_bytes(8 * page, page) == bytes(2 * PAGE) + bytes([34]) * PAGE + bytes(PAGE)
    assert (contents(space)[1][1] == "BEYOND_FILE") == (accessible <= page)
    space.copy_out(4 * page, b"x" * page)
    space.fork()._check()
    space.restore(space.snapshot())
    assert space.read_bytes(4 * page, page) == b"x" * page
