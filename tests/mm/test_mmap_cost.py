"""No call looks at all mappings: counted by the lines that it runs beside few mappings and beside many.

Figures in time, for more mappings, are in ``python tests/benchmarks mapping``.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

import usermem.mm
from each_line import Event
from edge_layouts import ANON, BASE, FIXED, PAGE, RW
from hostarch import mman
from usermem import AddressSpace
from usermem.mm.backing.backing import Backing

MODULES = [importlib.import_module(found.name) for found in pkgutil.walk_packages(usermem.mm.__path__, "usermem.mm.")]
FEW, MANY = 100, 4000
LOW = ANON | mman.MAP_32BIT


def lines(call: Callable[[], object]) -> int:
    """How many lines of the mapping core a call runs."""
    event = Event(MODULES)
    event.during(call)
    return event.lines


def falling(count: int) -> Iterator[int]:
    """Each length once, from the greatest down."""
    return iter(range(count, 0, -1))


def mixed(count: int) -> Iterator[int]:
    """64 lengths, at random."""
    rng = random.Random(1)
    return iter([rng.randrange(1, 65) for _ in range(count)])


def same(count: int) -> Iterator[int]:
    """One page each."""
    return iter([1] * count)


PLACINGS: dict[str, tuple[int, Callable[[int], Iterator[int]], int | None]] = {
    "one length": (ANON, same, None),
    "MAP_32BIT": (LOW, same, None),
    "MAP_32BIT, many lengths": (LOW, mixed, None),
    "falling lengths": (ANON, falling, None),
    "many lengths": (ANON, mixed, None),
    "a limit": (ANON, same, 1 << 46),
}


def place(count: int, flags: int, lengths: Iterator[int], limit: int | None) -> AddressSpace:
    """A space in which so many mappings were placed, none of which merge."""
    space = AddressSpace(address_limit=limit)
    for i, length in enumerate(lengths):
        space.mmap(0, length * PAGE, mman.PROT_READ + 2 * (i & 1), flags)
    assert len(space.mappings()) == count
    return space


@pytest.mark.parametrize("name", PLACINGS)
def test_placing(name: str) -> None:
    """Of some calls beside many mappings the sum is not much more than beside few."""
    flags, lengths, limit = PLACINGS[name]

    def cost(count: int) -> int:
        space = place(count, flags, lengths(count), limit)
        return sum(lines(partial(space.mmap, 0, (1 + i % 3) * PAGE, mman.PROT_EXEC, flags)) for i in range(12))

    assert cost(MANY) < 2 * cost(FEW)


CALLS: dict[str, Callable[[AddressSpace, int], object]] = {
    "munmap": lambda space, at: space.munmap(at, PAGE),
    "mmap over it": lambda space, at: space.mmap(at, PAGE, mman.PROT_EXEC, FIXED),
    "mprotect": lambda space, at: space.mprotect(at, PAGE, mman.PROT_EXEC),
    "mprotect of a half": lambda space, at: space.mprotect(at + PAGE, PAGE, 0),
    "mremap": lambda space, at: space.mremap(at, 2 * PAGE, 8 * PAGE, mman.MREMAP_MAYMOVE),
    "madvise": lambda space, at: space.madvise(at, PAGE, mman.MADV_DONTNEED),
    "msync": lambda space, at: space.msync(at, PAGE, mman.MS_SYNC),
    "mincore": lambda space, at: space.mincore(at, PAGE),
    "set_name": lambda space, at: space.set_name(at, PAGE, "name"),
    "first touch": lambda space, at: space.read_bytes(at + PAGE, 1),
    "host_runs": lambda space, at: space.host_runs(at, at + 2 * PAGE),
    "brk": lambda space, at: space.brk(at & 0xFFF | 0x10_1000),
}


@pytest.mark.parametrize("warm", [False, True], ids=["untouched", "cached"])
def test_changing_one_of_many(warm: bool) -> None:
    """A call's cost does not follow the number of mappings, nor that of pages that are cached."""

    def costs(count: int) -> dict[str, int]:
        space = AddressSpace()
        space.set_brk(0x10_0000)
        for i in range(count):
            space.mmap(BASE + 4 * i * PAGE, 2 * PAGE, RW, FIXED)
            if warm:
                space.copy_out(BASE + 4 * i * PAGE, b"cached")
        middle = range(count // 2, count, 3)  # each call has mappings of its own, and some between
        return {
            name: lines(partial(call, space, BASE + 4 * at * PAGE))
            for (name, call), at in zip(CALLS.items(), middle, strict=False)
        }

    many, few = costs(MANY), costs(FEW)
    assert len(few) == len(CALLS)
    assert {name: (many[name], few[name]) for name in CALLS if many[name] >= 2 * few[name] + 20} == {}


class Large:
    """An object of 64 MiB that counts the pages that are written back."""

    writes = 0

    def size(self) -> int:
        """See MappedObject."""
        return 1 << 26

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        return len(dst)

    def write_at(self, offset: int, src: memoryview) -> int:
        """See WritableObject."""
        self.writes += 1
        return len(src)


@pytest.mark.parametrize("name", ["msync", "munmap"])
def test_one_page_of_an_object(name: str) -> None:
    """Syncing or unmapping a page looks at that page, however many of the object were touched."""

    def cost(mib: int) -> int:
        mapped = Large()
        with AddressSpace() as space:
            space.map_object(BASE, 1 << 26, RW, mman.MAP_SHARED | mman.MAP_FIXED, mapped)
            for at in range(0, mib << 20, 1 << 18):
                space.copy_out(BASE + at, b"x")
            found = lines(partial(CALLS[name], space, BASE + (1 << 19)))
            assert mapped.writes == 1
        return found

    assert cost(16) < 1.5 * cost(1) + 20


def test_unmapping_many_shared_mappings() -> None:
    """Each is written back in its turn; 200,000 take some milliseconds.

    By a clock: taking items from the front of a list is one line, and its time is the list's length.
    """
    space, told = AddressSpace(), []

    class Told(Backing):
        def write_back(self, start: int, end: int) -> None:
            told.append(start)

    before = time.process_time()
    space._map._write_back([(Told(), at, at + PAGE) for at in range(200_000)])
    assert time.process_time() - before < 2
    assert sorted(told) == [*range(200_000)]
