"""Snapshots, restores and forks leave nothing behind, and cost the host the pages that are touched."""

from __future__ import annotations

import gc
import mmap
import os
import random
import sys
from pathlib import Path

import pytest

from campaign import times
from host_figures import host_mappings, resident
from hostarch import mman
from usermem import AddressSpace
from usermem.mm.image import maps_images
from usermem.mm.memory_file import memory_file

PAGE = mmap.PAGESIZE
RW = mman.PROT_READ | mman.PROT_WRITE
PRIVATE = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS
SIZE = 64 * PAGE
CYCLES = times(400, 10_000)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="measures by /proc/self"),
    pytest.mark.skipif(not maps_images(), reason="images are copied here"),
]


def figures() -> tuple[int, int, int]:
    """How many descriptors and host mappings this process has, and how much memory."""
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir()), host_mappings(), resident()


def test_cycles_are_level() -> None:
    """After many cycles there are no more descriptors, host mappings and memory than after some."""
    with AddressSpace() as space:
        addr = space.mmap(0, SIZE, RW, PRIVATE)
        shared = space.mmap(0, 4 * PAGE, RW, SHARED)
        before = figures()
        for turn in range(CYCLES):
            page = addr + turn % 64 * PAGE
            space.copy_out(page, b"%d" % turn)
            with space.snapshot() as snapshot, space.fork() as child, snapshot.spawn() as other:
                child.copy_out(page, b"child's")
                space.copy_out(page, b"after")
                space.copy_out(shared, b"after")
                extra = space.mmap(0, 2 * PAGE, RW, PRIVATE)
                space.copy_out(extra, b"after")
                space.restore(snapshot)
                assert child.read_bytes(page, 5) == b"child"
                assert space.read_bytes(page, 8) == other.read_bytes(page, 8) == (b"%d" % turn).ljust(8, b"\0")
            if turn == CYCLES // 5:
                before = figures()
        after = figures()
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 8
    assert after[2] <= before[2] + (1 << 20)


def test_scattered_pages_cost_themselves() -> None:
    """Each snapshot after pages far from each other were written makes fewer extents: the zeros between take nothing.

    Of the images nothing but those of the first and the last snapshot is kept.
    """
    size, each, turns = 1 << 28, 300, 12
    with AddressSpace() as space:
        addr = space.mmap(0, size, RW, PRIVATE)
        image = memory_file()
        assert image is not None
        before = os.fstat(image.fd).st_blocks * 512
        choice, values = random.Random(1), {}
        with space.snapshot() as start:
            for turn in range(turns):
                for _ in range(each):
                    page = addr + choice.randrange(size // PAGE) * PAGE
                    values[page] = b"%d of %d" % (page, turn)
                    space.copy_out(page, values[page])
                last = space.snapshot()
            assert os.fstat(image.fd).st_blocks * 512 - before <= 2 * each * turns * PAGE
            space.restore(start)
            assert not any(any(space.read_bytes(page, 8)) for page in values)
            space.restore(last)
            assert all(space.read_bytes(page, len(value)) == value for page, value in values.items())


@pytest.mark.parametrize("count", [8, 256])
def test_a_fork_costs_the_pages_it_touches(count: int) -> None:
    """64 MiB of memory: the new space takes little, and its pages cost themselves."""
    size = 64 << 20
    with AddressSpace() as space:
        addr = space.mmap(0, size, RW, PRIVATE)
        space.copy_out(addr, b"\1" * size)
        with space.snapshot() as snapshot:
            start = resident()
            with snapshot.spawn() as child:
                begun = resident()
                assert begun - start < 1 << 20
                for page in range(addr, addr + size, size // count):
                    child.copy_out(page, b"touched")
                cost = resident() - begun
                assert count * PAGE <= cost <= 2 * count * PAGE + (1 << 18)
                assert child.read_bytes(addr + size - PAGE, 1) == b"\1"
                assert space.read_bytes(addr, 1) == b"\1"
