"""Many images in pieces: the host's mappings stay few enough, contents right, errors clear; memory is given back."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
from pathlib import Path

import pytest

from campaign import times
from edge_layouts import FIXED, PAGE, RW
from usermem import AddressSpace, Snapshot, host_limits
from usermem.mm import host_calls, image
from usermem.mm.memory_file import memory_file
from usermem.mm.overlay import MAX_EXTENTS

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not image.maps_images(), reason="needs a host that maps images"
)

BASE = 0x4000_0000


def new_space(pages: int) -> AddressSpace:
    """A space with some pages, none of them touched."""
    gc.collect()
    space = AddressSpace()
    space.mmap(BASE, pages * PAGE, RW, FIXED)
    return space


def write(space: AddressSpace, pages: range, byte: bytes) -> None:
    """Write the first bytes of some pages."""
    for page in pages:
        space.copy_out(BASE + page * PAGE, byte * 8)


def maps() -> int:
    """How many mappings this process has."""
    return len(Path("/proc/self/maps").read_text().splitlines())


def blocks() -> int:
    """How many bytes the process's memory file takes."""
    file = memory_file()
    assert file is not None
    return os.fstat(file.fd).st_blocks * 512


def extents(space: AddressSpace) -> int:
    """How many extents cover its memory."""
    return space._map.anonymous.arena.overlay.extents.count


def test_every_other_page() -> None:
    """Of 16 MiB: few extents, right contents, whichever snapshot comes back."""
    pages = 1 << 12
    space, before = new_space(pages), maps()
    kept: list[tuple[Snapshot, bytes]] = []
    for n in range(3):
        write(space, range(n, pages, 2 + n), b"%d" % n)
        kept.append((space.snapshot(), space.read_bytes(BASE, pages * PAGE)))
        assert extents(space) <= MAX_EXTENTS
    for snapshot, then in [*kept, *kept[::-1]]:
        space.restore(snapshot)
        assert space.read_bytes(BASE, pages * PAGE) == then
        assert maps() - before <= 2 * MAX_EXTENTS + 50
        assert space.dirty_pages(snapshot).num_bytes == 0


def test_nested_snapshots() -> None:
    """Thousands, each of one page written somewhere: all that are kept come back."""
    pages, rng = 1 << 12, random.Random(3)
    space, before = new_space(pages), maps()
    model = [0] * pages
    kept: list[tuple[Snapshot, list[int]]] = []
    count = times(1500, 10_000)
    for n in range(1, count + 1):
        page = rng.randrange(pages)
        model[page] = n
        space.copy_out(BASE + page * PAGE, n.to_bytes(4, "little"))
        snapshot = space.snapshot()
        if n % (count // 10) == 0:
            kept.append((snapshot, [*model]))
        assert extents(space) <= MAX_EXTENTS
    assert maps() - before <= 2 * MAX_EXTENTS + 50
    for snapshot, then in [*kept, *kept[::-1]]:
        space.restore(snapshot)
        found = space.read_bytes(BASE, pages * PAGE)
        assert [int.from_bytes(found[at : at + 4], "little") for at in range(0, len(found), PAGE)] == then


def test_forks_up_to_the_limit() -> None:
    """Children with pages in pieces, until guests hold no more mappings: MemoryError, and all goes on."""
    space = new_space(600)
    write(space, range(0, 600, 2), b"x")
    then = space.read_bytes(BASE, 600 * PAGE)
    children = []
    limit = host_limits.max_map_count
    host_limits.max_map_count = 2000
    try:
        with pytest.raises(MemoryError, match="guests hold"):
            for _ in range(100):
                children.append(space.fork())
        assert 2 <= len(children) < 10
        for each in (space, *children):
            assert each.read_bytes(BASE, 600 * PAGE) == then
        write(children[0], range(1, 600, 2), b"y")
        now = children[0].read_bytes(BASE, 600 * PAGE)
        try:
            snapshot = children[0].snapshot()
        except MemoryError:
            assert children[0].read_bytes(BASE, 600 * PAGE) == now
        children.pop().close()
        snapshot = children[0].snapshot()
        write(children[0], range(600), b"z")
        children[0].restore(snapshot)
        assert children[0].read_bytes(BASE, 600 * PAGE) == now
    finally:
        host_limits.max_map_count = limit
    for each in children:
        each.close()
    assert space.read_bytes(BASE, 600 * PAGE) == then


def test_memory_that_could_not_be_uncovered_is_not_lost() -> None:
    """Where no mapping is left to give a part back, it comes back later: nobody ever sees its image."""
    space = new_space(64)
    space.copy_out(BASE, b"x" * 64 * PAGE)
    snapshot = space.snapshot()
    snapshot.close()
    del snapshot
    limit = host_limits.max_map_count
    host_limits.max_map_count = 1
    try:
        space.munmap(BASE + 8 * PAGE, 8 * PAGE)
    finally:
        host_limits.max_map_count = limit
    arena = space._map.anonymous.arena
    (left,) = arena._stuck
    for _ in range(4):
        assert not arena.allocate(PAGE).view().tobytes().strip(b"\0")
    assert not arena._stuck
    space.close()
    arena.allocate(PAGE)
    assert arena.overlay.extents.count == 0
    assert not any(arena.allocate(n * PAGE).view().tobytes().strip(b"\0") for n in range(1, 64))
    assert left[1] - left[0] == 8 * PAGE


def test_memory_is_given_back() -> None:
    """What no snapshot and no space shows takes no memory; an image that is used in part is there as a whole."""
    size = 1 << 22
    space, before = new_space(size // PAGE), blocks()
    space.copy_out(BASE, b"x" * size)
    snapshot = space.snapshot()
    assert size <= blocks() - before <= size + (1 << 16)
    for n in range(10):
        space.copy_out(BASE, b"%d" % n * size)
        snapshot = space.snapshot()
    assert blocks() - before <= size + (1 << 16)
    space.copy_out(BASE, b"y" * (size - PAGE))
    snapshot = space.snapshot()
    assert blocks() - before >= 2 * size - PAGE  # for one page of it
    space.copy_out(BASE, b"z" * size)
    snapshot = space.snapshot()
    assert blocks() - before <= size + (1 << 16)
    child = space.fork()
    space.close()
    snapshot.close()
    assert child.read_bytes(BASE, size) == b"z" * size
    assert blocks() - before >= size
    child.close()
    del space, child, snapshot
    gc.collect()
    assert blocks() - before <= 1 << 16


def test_what_guests_hold_is_counted_by_all_threads() -> None:
    """Owners come and go in threads while the mappings are counted."""
    failed: list[BaseException] = []
    end = time.monotonic() + times(5, 200) / 10

    def work() -> None:
        try:
            while time.monotonic() < end:
                with new_quick_space() as space, space.snapshot(), space.fork(timeout=5):
                    host_calls.check_mappings()
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def new_quick_space() -> AddressSpace:
    """A space with one page."""
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)
    space.copy_out(BASE, b"x")
    return space


def test_a_family_in_threads() -> None:
    """Two spaces of one arena are written, snapshotted, restored, forked and closed at the same time."""
    parent = new_space(64)
    write(parent, range(64), b"p")
    start = parent.snapshot()
    failed: list[BaseException] = []
    end = time.monotonic() + times(6, 600) / 10

    def work(space: AddressSpace, name: bytes, seed: int) -> None:
        rng = random.Random(seed)
        try:
            kept: list[tuple[Snapshot, bytes]] = [(space.snapshot(timeout=5), space.read_bytes(BASE, 64 * PAGE))]
            while time.monotonic() < end:
                for page in rng.sample(range(64), 9):
                    space.copy_out(BASE + page * PAGE, name * rng.randrange(1, 64))
                now = space.read_bytes(BASE, 64 * PAGE)
                kept.append((space.snapshot(timeout=5), now))
                with space.fork(timeout=5) as child:
                    space.zero_out(BASE, 64 * PAGE)
                    assert child.read_bytes(BASE, 64 * PAGE) == now
                snapshot, then = kept.pop(rng.randrange(len(kept)) if len(kept) > 5 else 0)
                space.restore(snapshot, timeout=5)
                assert space.read_bytes(BASE, 64 * PAGE) == then
                with snapshot.spawn() as other:
                    other.copy_out(BASE + 9 * PAGE, b"other")
                    assert other.read_bytes(BASE, 9 * PAGE) == then[: 9 * PAGE]
                if not kept:
                    kept.append((snapshot, then))
                space.munmap(BASE + 60 * PAGE, 4 * PAGE)
                space.mmap(BASE + 60 * PAGE, 4 * PAGE, RW, FIXED)
                assert not any(space.read_bytes(BASE + 60 * PAGE, 4 * PAGE))
        except BaseException as exc:
            failed.append(exc)

    spaces = [parent.fork(), parent.fork(), parent]
    threads = [threading.Thread(target=work, args=(space, b"%d" % n, n)) for n, space in enumerate(spaces)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    parent.restore(start)
    assert parent.read_bytes(BASE, 8) == b"p" * 8
