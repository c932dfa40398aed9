"""Arena: host memory in page-aligned pieces, all zero, out of few reservations that grow, from any thread.

Residence is asked of the kernel (mincore).
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import sys
import threading
from contextlib import suppress

import pytest

from each_line import Event, interrupt
from small_arena import CHUNK, PAGE, SmallArena, content, fill, overlap, place, resident
from usermem.mm import arena as arena_module
from usermem.mm import host_calls
from usermem.mm.arena import Arena
from usermem.mm.host_run import HostRun


@pytest.fixture
def arena() -> Arena:
    """An arena of few pages."""
    return SmallArena()


def chunk_size(host: HostRun) -> int:
    """How long the reservation is that a piece is part of, in bytes."""
    assert isinstance(host.memory, mmap.mmap)
    return len(host.memory)


@pytest.mark.parametrize("pages", [1, 3, 16, 17, 100])
def test_allocate(arena: Arena, pages: int) -> None:
    """A piece is as long as asked for, page-aligned in this process, writable and zero, also if a chunk is shorter."""
    host = arena.allocate(pages * PAGE)
    start, end = place(host)
    assert end - start == len(host) == pages * PAGE
    assert start % PAGE == 0
    assert content(host) == bytes(pages * PAGE)
    fill(host)
    assert content(host) == b"\xee" * (pages * PAGE)


def test_zero_when_used_again(arena: Arena) -> None:
    """Memory that comes back is zero for the next one, and its pages are the host's meanwhile."""
    host = arena.allocate(CHUNK)
    at = place(host)
    fill(host)
    assert resident(at) == CHUNK // PAGE
    del host
    assert resident(at) == 0
    again = arena.allocate(CHUNK)
    assert place(again) == at
    assert content(again) == bytes(CHUNK)


def test_zero_where_madvise_does_not(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MADV_DONTNEED keeps the bytes they are overwritten, those of the piece alone."""
    monkeypatch.setattr(arena, "_madvise_zeroes", False)
    before, host, after = arena.allocate(PAGE), arena.allocate(2 * PAGE), arena.allocate(PAGE)
    for piece in (before, host, after):
        fill(piece)
    at = place(host)
    del host
    assert resident(at) == 2
    assert ctypes.string_at(at[0], 2 * PAGE) == bytes(2 * PAGE)
    assert content(before) == content(after) == b"\xee" * PAGE
    again = arena.allocate(2 * PAGE)
    assert place(again) == at and content(again) == bytes(2 * PAGE)


def test_madvise_is_tried() -> None:
    """Whether MADV_DONTNEED zeroes is found out by trying it on this host; on Linux it does."""
    assert arena_module._madvise_zeroes() is (sys.platform == "linux")


def test_reserved_memory_costs_nothing(arena: Arena) -> None:
    """Memory that nobody has touched is not resident, however much was handed out and given back."""
    host = arena.allocate(1 << 34)
    at = place(host)
    assert resident((at[0], at[0] + CHUNK)) == resident((at[1] - CHUNK, at[1])) == 0
    host.view()[-1] = 1
    assert resident((at[1] - PAGE, at[1])) == 1
    del host
    assert resident((at[1] - PAGE, at[1])) == 0


@pytest.mark.parametrize("order", ["012", "021", "102", "120", "201", "210"])
def test_neighbours_are_joined(arena: Arena, order: str) -> None:
    """Three neighbours given back in any order are one free piece again."""
    hosts: dict[str, HostRun | None] = {str(i): arena.allocate(CHUNK // 4) for i in range(3)}
    last = arena.allocate(CHUNK // 4)
    first = hosts["0"]
    assert first is not None
    at = place(first)[0], place(last)[0]
    del first
    for name in order:
        hosts[name] = None
    joined = arena.allocate(3 * CHUNK // 4)
    assert place(joined) == at
    assert len(arena.chunks) == 1


def test_chunks_are_not_joined(arena: Arena) -> None:
    """A piece never reaches over the end of a chunk, even where the next chunk is free from the same offset on."""
    first, low, high = (arena.allocate(CHUNK) for _ in range(3))
    assert len(arena.chunks) == 2
    assert (first.start, first.end) == (0, CHUNK) and (high.start, high.end) == (CHUNK, 2 * CHUNK)
    del first, high
    large = arena.allocate(2 * CHUNK)
    assert len(large) == 2 * CHUNK
    assert large.end <= chunk_size(large)
    assert not overlap(place(large), place(low))


def test_growth(arena: Arena) -> None:
    """Chunks get larger, so that their number stays small; a piece larger than the next one gets one of its size."""
    hosts = [arena.allocate(PAGE) for _ in range(1000)]
    assert len({place(host) for host in hosts}) == 1000
    sizes = list({host.base: chunk_size(host) for host in hosts}.values())
    assert sizes == sorted(sizes) and len(sizes) == len(arena.chunks) <= 8
    large = arena.allocate(10_000 * PAGE)
    assert chunk_size(large) >= 10_000 * PAGE
    assert len(arena.chunks) == len(sizes) + 1


def test_few_host_mappings() -> None:
    """An ordinary arena serves ten thousand pieces out of one reservation."""
    arena = Arena()
    hosts = [arena.allocate(PAGE) for _ in range(10_000)]
    assert len({place(host) for host in hosts}) == 10_000
    assert len(arena.chunks) == 1


def test_smaller_reservation_when_the_host_has_less(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host refuses a large chunk, one that is just large enough will do."""
    real = host_calls.reserve

    def reserve(size: int) -> mmap.mmap:
        if size > 3 * PAGE:
            raise OSError(errno.ENOMEM, "no memory")
        return real(size)

    monkeypatch.setattr(arena_module, "reserve", reserve)
    hosts = [arena.allocate(3 * PAGE) for _ in range(3)]
    assert len({place(host) for host in hosts}) == 3
    assert not any(any(content(host)) for host in hosts)
    with pytest.raises(MemoryError):
        arena.allocate(4 * PAGE)


@pytest.mark.parametrize("length", [1 << 56, 1 << 62, 1 << 63, 1 << 70])
def test_more_than_the_host_has(arena: Arena, length: int) -> None:
    """Asking for more than any host has is a MemoryError, and the arena goes on as before."""
    with pytest.raises(MemoryError):
        arena.allocate(length)
    host = arena.allocate(2 * PAGE)
    assert content(host) == bytes(2 * PAGE) and len(arena.chunks) == 1


def test_given_back_by_another_thread(arena: Arena) -> None:
    """Pieces whose last reference goes in other threads, at the same time, all come back, each once."""
    hosts = [arena.allocate(PAGE) for _ in range(CHUNK // PAGE)]
    expected = sorted(place(host) for host in hosts)
    assert len(arena.chunks) == 1
    for host in hosts:
        fill(host)
    del host
    shares = [hosts[i::4] for i in range(4)]
    hosts.clear()
    start = threading.Barrier(4)

    def drop(share: list[HostRun]) -> None:
        start.wait(timeout=30)
        share.clear()

    threads = [threading.Thread(target=drop, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    again = [arena.allocate(PAGE) for _ in range(CHUNK // PAGE)]
    assert sorted(place(host) for host in again) == expected
    assert not any(any(content(host)) for host in again)


def test_allocated_while_others_give_back(arena: Arena) -> None:
    """Pieces handed out while another thread drops them are zero and never overlap one in use."""
    dropped: list[HostRun] = []
    done = threading.Event()

    def drop() -> None:
        while not done.is_set() or dropped:
            if dropped:
                dropped.pop()

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        kept: list[HostRun] = []
        for i in range(2000):
            host = arena.allocate((1 + i % 3) * PAGE)
            assert not any(content(host))
            assert not any(overlap(place(host), place(other)) for other in kept)
            fill(host, 1 + i % 250)
            kept.append(host)
            if len(kept) > 5:
                dropped.append(kept.pop(i % 5))
            del host
    finally:
        done.set()
        thread.join(timeout=30)
    assert not thread.is_alive()


def test_an_interrupt_at_any_line(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an interrupt leaves half made goes without an error, and no piece is free twice."""
    ignored: set[object] = set()
    monkeypatch.setattr(sys, "unraisablehook", lambda args: ignored.add(args.exc_type))
    held: list[HostRun] = []
    for at in itertools.count(1):
        event = Event([arena_module], at, interrupt)
        with suppress(KeyboardInterrupt):
            event.during(lambda: held.append(arena.allocate(2 * PAGE).cut(0, PAGE)))
        if not event.where:
            break
    assert ignored <= {KeyboardInterrupt}, "a destructor raises an error of its own"
    assert not any(overlap(place(left), place(right)) for left, right in itertools.combinations(held, 2))
