"""Restores and dirty pages of guests with many mappings: the cost follows what was written, not how many there are."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hostarch import AddrRange, AddrRangeSeq, mman
from usermem import AddressSpace
from usermem.mm import host_pages
from usermem.mm.image import maps_images
from usermem.mm.ranges import Ranges

PAGE = 4096
FAR = 1 << 26  # so far from each other, mappings have memory in pieces
RW = mman.PROT_READ | mman.PROT_WRITE
FIXED = mman.MAP_ANONYMOUS | mman.MAP_FIXED

pytestmark = pytest.mark.skipif(not maps_images(), reason="images are copied here")


def calls(function: Callable[[], object]) -> int:
    """How many functions a call of this one calls."""
    count = 0

    def note(_frame: object, event: str, _what: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.collect()
    gc.disable()  # what other tests have left is not counted
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def guest(count: int, kind: int) -> tuple[AddressSpace, list[int]]:
    """A space with mappings far from each other, all of which were written."""
    space = AddressSpace()
    addresses = [space.mmap(FAR * at, PAGE, RW, kind | FIXED) for at in range(1, count + 1)]
    for address in addresses:
        space.copy_out(address, b"before")
    return space, addresses


def restore_cost(count: int) -> int:
    """What a restore costs after one page was written, and a child has left images where the host's memory goes on."""
    space, addresses = guest(count, mman.MAP_PRIVATE)
    told: list[tuple[int, int]] = []
    with space, space.snapshot() as start:
        space.copy_out(addresses[-1], b"after")
        space.fork().close()
        space.restore(start)
        space.on_change = lambda low, high, _kind: told.append((low, high))
        space.copy_out(addresses[1], b"after")
        space.restore(start)  # the first one finds where the memory is
        space.copy_out(addresses[1], b"after")
        cost = calls(lambda: space.restore(start))
        assert told == [(addresses[1], addresses[1] + PAGE)] * 2
        assert all(space.read_bytes(address, 6) == b"before" for address in addresses)
    return cost


def test_a_restore_with_a_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """To tell the listener what had other bytes, nobody looks at all mappings."""
    monkeypatch.setattr(host_pages, "_MANY", 1 << 40)  # whatever pages of files other tests have left mapped
    few, many = restore_cost(20), restore_cost(1000)
    assert many < 1.5 * few, (few, many)


def test_dirty_pages_of_many_shared_memories() -> None:
    """What each costs does not grow with their number."""
    costs = []
    for count in (20, 200):
        space, addresses = guest(count, mman.MAP_SHARED)
        with space, space.snapshot() as start:
            space.copy_out(addresses[1], b"after")
            found: list[AddrRangeSeq] = []
            # Of Python's functions alone: what a quadratic loop does here, it does in them.
            costs.append(calls(lambda: found.append(space.dirty_pages(start))))  # noqa: B023
            assert found == [AddrRangeSeq([AddrRange(addresses[1], addresses[1] + PAGE)])]
    assert costs[1] < 15 * costs[0]


def test_a_restore_asks_once_for_all_private_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Private mappings of files have host mappings each; the host is not asked for each."""
    reverted: list[int] = []
    real = host_pages.revert

    def revert(ranges: Ranges) -> None:
        reverted.append(len(ranges))
        real(ranges)

    monkeypatch.setattr(host_pages, "revert", revert)
    with (tmp_path / "file").open("w+b") as file, AddressSpace() as space:
        file.write(b"file" * PAGE)
        file.flush()
        addresses = [
            space.mmap(FAR * at, PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, file.fileno()) for at in range(1, 51)
        ]
        for address in addresses:
            space.copy_out(address, b"before")
        with space.snapshot() as start:
            for address in addresses[::2]:
                space.copy_out(address, b"after")
            space.restore(start)
        assert reverted == [50]
        assert all(space.read_bytes(address, 6) == b"before" for address in addresses)
