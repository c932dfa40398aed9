"""Something happens in the middle of snapshot, restore, fork and spawn: Ctrl-C, or a handler that goes on.

At each line, and at each instruction at which CPython lets a handler run. After Ctrl-C the space is as before the call
or as after it, but for a restore, whose contents may be partly those of then: a second one puts everything right.
"""

from __future__ import annotations

import gc
import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest

from campaign import times
from each_line import Event, interrupt
from edge_layouts import FIXED, PAGE, RW
from hostarch import mman
from safemem import fork
from small_arena import check_free
from usermem import AddressSpace, BusyError, Snapshot
from usermem.mm import (
    arena,
    change,
    extent,
    free_list,
    host_calls,
    host_pages,
    image,
    memory_file,
    memory_map,
    overlay,
    quiet,
    restore,
    segment,
    segment_diff,
    spawn,
    state,
)

MODULES = [
    *(arena, change, extent, free_list, host_calls, host_pages, image, memory_file, memory_map, overlay),
    *(quiet, restore, segment, segment_diff, spawn, state),
]
BASE, PAGES = 0x4000_0000, 12
SHARED_AT = BASE + 0x100_0000
LATER = BASE + 0x200_0000
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED
OFTEN = 1  # of a line that a call runs several times, the first

Pages = dict[int, bytes]
Kept = list[tuple[Snapshot, Pages]]


def sample() -> tuple[AddressSpace, Kept]:
    """A space with two snapshots that differ in pages and mappings, and with changes since; and what they hold."""
    space = AddressSpace()
    space.mmap(BASE, PAGES * PAGE, RW, FIXED)
    space.mmap(SHARED_AT, PAGE, RW, SHARED)
    kept = []
    for content in (b"first", b"second"):
        for page in (0, 2, 3) if content == b"first" else (2, 5):
            space.copy_out(BASE + page * PAGE, content * 100)
        space.copy_out(SHARED_AT, content)
        kept.append((space.snapshot(), contents(space)))
        space.munmap(BASE + 8 * PAGE, 2 * PAGE)
    space.mmap(LATER, PAGE, RW, FIXED)
    for addr in (BASE, BASE + PAGE, BASE + 3 * PAGE, BASE + 5 * PAGE, BASE + 10 * PAGE, SHARED_AT, LATER):
        space.copy_out(addr, b"now")
    return space, kept


def contents(space: AddressSpace) -> Pages:
    """All pages that are mapped."""
    space._check()
    return {
        addr: space.read_bytes(addr, PAGE)
        for vma in space.mappings()
        for addr in range(vma.start, vma.end, PAGE)
        if vma.start >= BASE
    }


def restore_first(space: AddressSpace, kept: Kept) -> None:
    """Back to the older snapshot."""
    space.restore(kept[0][0])


def close_all(space: AddressSpace, kept: Kept) -> None:
    """A snapshot goes, then the space."""
    kept.pop()[0].close()
    space.close()


CALLS: dict[str, Callable[[AddressSpace, Kept], object]] = {
    "snapshot": lambda space, kept: space.snapshot(),
    "restore": restore_first,
    "restore the last": lambda space, kept: space.restore(kept[1][0]),
    "fork": lambda space, kept: space.fork(),
    "spawn": lambda space, kept: kept[0][0].spawn(),
    "dirty_pages": lambda space, kept: space.dirty_pages(kept[0][0]),
    "close": close_all,
}


@pytest.fixture(autouse=True)
def determined(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No collector that runs destructors anywhere; an interrupt in a destructor goes nowhere, as Python has it."""
    monkeypatch.setattr(sys, "unraisablehook", bool)
    monkeypatch.setattr(memory_file, "_current", None)
    gc.disable()
    yield
    gc.enable()


def check_all(space: AddressSpace, kept: Kept, where: str) -> None:
    """Every snapshot restores exactly, in this space and in a new one; memory that is handed out anew is zero."""
    for snapshot, pages in [*kept, kept[0]]:
        if not space._map.tables.closed:
            space.restore(snapshot)
            assert contents(space) == pages, where
        with snapshot.spawn() as other:
            assert contents(other) == pages, where
    if not space._map.tables.closed:
        check_zeros(space, where)


def check_zeros(space: AddressSpace, where: str) -> None:
    """What the arena hands out holds nothing, in as many pieces as its first chunk has windows."""
    memory = space._map.anonymous.arena
    check_free(memory)
    pieces = [memory.allocate(1 << 26) for _ in range(3)] + [memory.allocate(PAGE) for _ in range(8)]
    for piece in pieces:
        assert not piece.view()[: 64 * PAGE].tobytes().strip(b"\0"), where


def places(
    name: str, act: Callable[[AddressSpace, Kept], object], *, between: bool = False, near: int = 4
) -> Iterator[tuple[Event, AddressSpace, Kept]]:
    """Events in which a space is acted on, each at another place of a call, with a space of its own, which is checked.

    By day at every twentieth place, which ones differs by the call, and every ``near``-th where images are mapped.
    """
    for modules, step in [(MODULES, times(20, 1)), ([overlay], times(near, 1))]:
        at = -((list(CALLS).index(name) * 2 + between) % step)
        while True:
            at += step
            space, kept = sample()
            event = Event(modules, at, partial(act, space, kept), OFTEN, between)
            yield event, space, kept
            check_all(space, kept, event.where)
            space.close()
            if not event.where:
                break
        assert at > 20 or modules is not MODULES


@pytest.mark.parametrize("between", [False, True], ids=["lines", "instructions"])
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_each_place(name: str, between: bool) -> None:
    """No lock is held; contents are those of before or after; all snapshots restore."""
    for event, space, kept in places(name, lambda space, kept: interrupt(), between=between, near=1):
        before = contents(space)
        with suppress(KeyboardInterrupt):
            event.during(partial(CALLS[name], space, kept))
        assert not any(lock._is_owned() for lock in fork._locks), event.where  # type: ignore[attr-defined]
        assert space._map.held is None
        if name in ("snapshot", "fork", "spawn", "dirty_pages") or (name == "close" and not space._map.tables.closed):
            assert contents(space) == before, event.where
        elif not space._map.tables.closed:
            assert contents(space).keys() in (before.keys(), kept[0][1].keys(), kept[1][1].keys()), event.where


@pytest.mark.parametrize("between", [True, False][: times(1, 2)], ids=["instructions", "lines"][: times(1, 2)])
@pytest.mark.parametrize("name", ["snapshot", "fork", "restore", "spawn"])
def test_a_handler_that_writes(name: str, between: bool) -> None:
    """What a handler writes in the middle of a snapshot, a fork and a spawn is not lost: into a page that was written,
    one that was not, one that the snapshot before has. In the middle of a restore it is undone, or stays.
    """
    targets = (BASE + 8, BASE + 3 * PAGE + 8, BASE + 6 * PAGE + 8, BASE + 2 * PAGE + 8)

    def handle(space: AddressSpace, kept: Kept) -> None:
        for addr in targets:
            space.copy_out(addr, b"handler")

    for event, space, kept in places(name, handle, between=between):
        then = contents(space)
        event.during(partial(CALLS[name], space, kept))
        now = contents(space)
        for addr in targets if event.where else ():
            page, offset = addr // PAGE * PAGE, addr % PAGE
            there = now[page][offset : offset + 7]
            undone = name == "restore" and there == kept[0][1][page][offset : offset + 7]
            assert there == b"handler" or undone, event.where
            assert name == "restore" or now[page][:offset] == then[page][:offset], event.where


def map_elsewhere(space: AddressSpace, kept: Kept) -> None:
    """Map, write, unmap what the call is about."""
    space.mmap(LATER + 8 * PAGE, PAGE, RW, FIXED)
    space.copy_out(LATER + 8 * PAGE, b"handler")
    space.munmap(BASE + 3 * PAGE, PAGE)


@pytest.mark.parametrize("name", ["snapshot", "fork", "restore", "spawn"])
def test_a_handler_that_maps(name: str) -> None:
    """Its changes came before or after: they are there, or a restore has undone them, both of them."""
    for event, space, kept in places(name, map_elsewhere):
        event.during(partial(CALLS[name], space, kept))
        if event.where:
            now = contents(space)
            if name == "restore" and LATER + 8 * PAGE not in now:
                assert now.keys() == kept[0][1].keys(), event.where
            else:
                assert now[LATER + 8 * PAGE][:8] == b"handler\0", event.where
                assert BASE + 3 * PAGE not in now, event.where


@pytest.mark.parametrize("name", ["snapshot", "fork", "restore"])
def test_a_handler_cannot_snapshot(name: str) -> None:
    """In the middle of one it is told that the space is busy; before and after, it can."""
    refused = 0

    def handle(space: AddressSpace, kept: Kept) -> None:
        nonlocal refused
        try:
            kept.append((space.snapshot(), contents(space)))
            space.fork().close()
        except BusyError:
            refused += 1

    for event, space, kept in places(name, handle):
        event.during(partial(CALLS[name], space, kept[:2]))
    assert refused > 10


def test_signals_beside_snapshots() -> None:
    """A timer's handler writes all the time, into pages that are written, too: nothing of it is lost."""
    space, numbers = AddressSpace(), itertools.count(1)
    space.mmap(BASE, 64 * PAGE, RW, FIXED)
    written = [0] * 64

    def handle(*args: object) -> None:
        number = next(numbers)
        space.copy_out(BASE + number % 64 * PAGE, number.to_bytes(8, "little"))
        written[number % 64] = number

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.00023)
        end = time.monotonic() + times(4, 200) / 10
        while time.monotonic() < end:
            for page in range(0, 64, 3):
                space.copy_out(BASE + page * PAGE + 64, b"main")
            space.snapshot()
            space.fork().close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sum(written) > 100
    assert [int.from_bytes(space.read_bytes(BASE + page * PAGE, 8), "little") for page in range(64)] == written
