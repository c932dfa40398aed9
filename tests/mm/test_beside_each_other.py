"""What others do between two steps of a mapping call: listeners and signal handlers; limits and guards."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from contextlib import suppress
from functools import partial

import pytest

from each_line import Event, interrupt
from hostarch import READ, AddrRange, AddrRangeSeq, mman
from small_arena import check_free
from usermem import AddressSpace
from usermem.mm import arena, change, memory_map

PAGE = 4096
BASE = 0x10_0000
RW = mman.PROT_READ | mman.PROT_WRITE
FIXED = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED


def test_dontneed_leaves_what_a_listener_put_there() -> None:
    """A listener that attaches memory in the range while MADV_DONTNEED goes through it keeps what it holds."""
    buffer = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer[:6] = b"keepme"
    with AddressSpace() as space:
        space.mmap(BASE, PAGE, RW, FIXED)
        space.mmap(BASE + PAGE, PAGE, mman.PROT_READ, FIXED)
        space.copy_out(BASE, b"a")

        def listen(start: int, end: int, kind: object) -> None:
            if kind == "memory" and start == BASE:
                space.on_change = None
                space.munmap(BASE + PAGE, PAGE)
                space.attach(BASE + PAGE, buffer, RW, mman.MAP_FIXED)
                space.read_bytes(BASE + PAGE, 1)

        space.on_change = listen
        space.madvise(BASE, 2 * PAGE, mman.MADV_DONTNEED)
        assert space.on_change is None
        assert space.read_bytes(BASE + PAGE, 6) == b"keepme"


def test_splits_count_against_max_map_count() -> None:
    """mprotect of every second page ends with ENOMEM at the limit, and then nothing has changed."""
    with AddressSpace(max_map_count=10) as space:
        space.mmap(BASE, 100 * PAGE, RW, FIXED)
        with pytest.raises(OSError, match="mappings") as caught:
            for page in range(1, 100, 2):
                space.mprotect(BASE + page * PAGE, PAGE, mman.PROT_READ)
        assert caught.value.errno == errno.ENOMEM
        assert len(space.mappings()) <= 10
        space._check()


@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 150, 298])
def test_the_hole_where_a_guard_went_is_found(k: int) -> None:
    """A mapping that no longer grows down leaves its guard's room to others, wherever it is in the tree."""
    with AddressSpace() as space:
        probe = space.mmap(0, PAGE, RW, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        space.munmap(probe, PAGE)
        at, addrs = probe, {}
        for i in range(300):
            addrs[i] = at
            space.mmap(at, PAGE, RW, FIXED | (mman.MAP_GROWSDOWN if i == k else 0))
            at -= 2 * PAGE if i != k else 0x108000 + PAGE
        for _ in range(2):
            below = space.mmap(0, 0x9000, RW, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        space.munmap(below, 0x9000)
        space.mmap(addrs[k], PAGE, RW, FIXED)
        space._check()
        assert space.mmap(0, 0x9000, RW, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS) == addrs[k] - 0x9000


def test_mlock_keeps_to_max_map_count() -> None:
    """Locking every second page ends with ENOMEM at the limit, as mprotect does."""
    with AddressSpace(max_map_count=10) as space:
        space.mmap(BASE, 100 * PAGE, RW, FIXED)
        with pytest.raises(OSError, match="mappings") as caught:
            for page in range(1, 100, 2):
                space.mlock(BASE + page * PAGE, PAGE)
        assert caught.value.errno == errno.ENOMEM
        assert len(space.mappings()) <= 10


def test_a_locked_mapping_that_grows_is_copied_at_once() -> None:
    """The pages that mremap adds to locked private memory of a file are the guest's own, when the file shrinks too."""
    memory = os.memfd_create("file")
    os.write(memory, b"f" * 2 * PAGE)
    with AddressSpace() as space:
        space.mmap(BASE, PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED | mman.MAP_LOCKED, memory)
        assert space.mremap(BASE, PAGE, 2 * PAGE) == BASE
        os.ftruncate(memory, PAGE + 1)
        os.close(memory)
        assert space.read_bytes(BASE + PAGE, 3) == b"fff"


def test_a_handler_that_cuts_the_same_memory() -> None:
    """Whoever holds the whole of it keeps its bytes, at whichever line of the cut the handler comes."""
    at, fired = 0, True
    while fired:
        at += 1
        with AddressSpace() as space:
            space.mmap(BASE, 16 * PAGE, RW, FIXED)
            space.copy_out(BASE, b"A" * 16 * PAGE)
            held = space.blocks(AddrRangeSeq.of(AddrRange(BASE, BASE + 16 * PAGE)), READ)
            cut = partial(space.munmap, BASE + 8 * PAGE, PAGE)
            event = Event([arena], at, cut)
            event.during(cut)
            fired = bool(event.where)
            space.munmap(BASE, 16 * PAGE)
            for other in range(8):  # would be given what held has lost
                space.mmap(BASE + 32 * PAGE * other, 16 * PAGE, RW, FIXED)
                space.copy_out(BASE + 32 * PAGE * other, b"Z" * 16 * PAGE)
            assert held.tobytes() == b"A" * 16 * PAGE, event.where
    assert at > 10


def test_an_interrupt_while_memory_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole and its parts are not both given back, whatever is called next."""
    monkeypatch.setattr(sys, "unraisablehook", bool)  # what a destructor raises goes nowhere
    at, fired = 0, True
    while fired:
        at += 1
        space = AddressSpace()
        space.mmap(BASE, 16 * PAGE, RW, FIXED)
        space.copy_out(BASE, b"A" * 16 * PAGE)
        event = Event([arena], at, interrupt, between=True)
        with suppress(KeyboardInterrupt):
            event.during(partial(space.munmap, BASE + 8 * PAGE, PAGE))
        fired = bool(event.where)
        space.close()
        check_free(space._map.anonymous.arena)
    assert at > 5


def read_pages(space: AddressSpace, pages: range) -> None:
    """Have pages cached."""
    for page in pages:
        space.read_bytes(BASE + page * PAGE, 1)


def crowded() -> AddressSpace:
    """Memory of which so many stretches are cached that a few more divide it."""
    space = AddressSpace()
    space.mmap(BASE, 400 * PAGE, RW, FIXED)
    space.copy_out(BASE, b"x")
    for page in range(0, 400, 2):
        space.mprotect(BASE + page * PAGE, PAGE, mman.PROT_READ)
    read_pages(space, range(120))
    return space


def test_a_handler_that_reads_while_memory_is_divided() -> None:
    """It may cache more of it."""
    at, fired = 0, True
    while fired:
        at += 1
        with crowded() as space:
            event = Event([change], at, partial(read_pages, space, range(340, 400)), often=2, between=True)
            event.during(partial(read_pages, space, range(120, 140)))
            fired = bool(event.where)
            space._check()
    assert at > 3


def test_a_handler_that_maps_over_memory_that_is_divided() -> None:
    """What it maps has its own memory, not that which is divided."""
    at, fired = 0, True
    while fired:
        at += 1
        with crowded() as space:
            event = Event([memory_map, change], at, partial(space.mmap, BASE, 400 * PAGE, RW, FIXED), often=1)
            event.during(partial(read_pages, space, range(120, 140)))
            fired = bool(event.where)
            assert space.read_bytes(BASE, 1) == (b"\0" if fired else b"x"), event.where
            space._check()
    assert at > 20
