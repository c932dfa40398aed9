"""Integers that are no plain ints in every mapping call."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW
from hostarch import WRITE, AddrRangeSeq, mman
from integer_kinds import KINDS, Like, checked, kind_of, plain, range_of
from usermem import AddressSpace, SharedMemory

SIZE = 2 * PAGE


MAPPING_CALLS: dict[str, Callable[[AddressSpace, Like, int], object]] = {
    "mmap": lambda s, i, fd: s.mmap(i(0), i(PAGE), i(1), i(ANON)),
    "mmap at a hint": lambda s, i, fd: s.mmap(i(BASE), i(PAGE + 1), i(1), i(ANON)),
    "mmap populated": lambda s, i, fd: s.mmap(i(0), i(PAGE), i(RW), i(ANON | mman.MAP_POPULATE)),
    "mmap shared": lambda s, i, fd: s.mmap(
        i(0x7FF0_0000), i(PAGE), i(RW), i(mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED)
    ),
    "mmap of a file": lambda s, i, fd: s.mmap(i(0), i(PAGE), i(1), i(mman.MAP_PRIVATE), i(fd), i(PAGE)),
    "map_object": lambda s, i, fd: s.map_object(
        i(0), i(PAGE), i(1), i(mman.MAP_SHARED), SharedMemory(i(SIZE)), i(PAGE), i(7)
    ),
    "map_object of nothing": lambda s, i, fd: s.map_object(i(0), i(PAGE), i(1), i(mman.MAP_SHARED), None),
    "attach": lambda s, i, fd: s.attach(i(0x7FF0_0000), bytearray(PAGE), i(1), i(mman.MAP_FIXED)),
    "munmap": lambda s, i, fd: s.munmap(i(BASE), i(1)),
    "mprotect": lambda s, i, fd: s.mprotect(i(BASE + PAGE), i(1), i(0)),
    "mremap": lambda s, i, fd: s.mremap(i(BASE), i(SIZE), i(4 * PAGE), i(mman.MREMAP_MAYMOVE)),
    "mremap to a place": lambda s, i, fd: s.mremap(
        i(BASE), i(SIZE), i(SIZE), i(mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED), i(0x7FF0_0000)
    ),
    "madvise": lambda s, i, fd: s.madvise(i(BASE), i(PAGE), i(mman.MADV_DONTNEED)),
    "madvise populating": lambda s, i, fd: s.madvise(i(BASE), i(PAGE), i(mman.MADV_POPULATE_WRITE)),
    "msync": lambda s, i, fd: s.msync(i(BASE), i(PAGE), i(mman.MS_SYNC)),
    "mincore": lambda s, i, fd: len(s.mincore(i(BASE), i(SIZE))),
    "brk": lambda s, i, fd: _heap(s, i),
    "mlock": lambda s, i, fd: (s.mlock(i(BASE), i(PAGE), i(1)), s.munlock(i(BASE + 1), i(1)), s.mlockall(i(1))),
    "set_name": lambda s, i, fd: s.set_name(i(BASE), i(PAGE), "name"),
    "host_runs": lambda s, i, fd: [(run.start, run.length) for run in s.host_runs(i(BASE), i(BASE + SIZE))],
    "blocks": lambda s, i, fd: s.blocks(AddrRangeSeq([range_of(i, BASE, 9)]), WRITE).tobytes(),
}


def _heap(space: AddressSpace, i: Like) -> object:
    space.set_brk(i(0x7000_0000))
    return space.brk(i(0x7000_0001)), space.brk(i(0))


@pytest.mark.parametrize("name", KINDS)
def test_mapping_calls(name: str) -> None:
    """Every call that changes the map or looks at it; the map is the same after it, and its numbers are ints."""
    like = kind_of(name)
    with tempfile.TemporaryFile(buffering=0) as file:
        file.truncate(SIZE)
        for what, call in MAPPING_CALLS.items():
            results = []
            for kind in (plain, like):
                with AddressSpace() as space:
                    space.mmap(BASE, SIZE, RW, FIXED)
                    space.copy_out(BASE, b"content")
                    result = checked(call(space, kind, file.fileno()))
                    maps = [(vma.start, vma.end, vma.prot, vma.offset, vma.name) for vma in space.mappings()]
                    results.append((result, checked(maps)))
                    space._check()
            assert results[0] == results[1], what
