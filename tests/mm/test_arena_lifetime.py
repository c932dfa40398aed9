"""A piece of host memory comes back when the last reference to it is gone, whatever holds it, and never before.

What is free is asked of the arena itself: memory in use is never handed out, so a piece that is too early would show.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import safecopy
from small_arena import CHUNK, PAGE, Place, SmallArena, content, fill, free_pages, is_free, overlap, place
from usermem.mm.arena import Arena
from usermem.mm.host_run import HostRun


@pytest.fixture
def arena() -> Arena:
    """An arena of few pages."""
    return SmallArena()


def test_given_back(arena: Arena) -> None:
    """A piece is free when its HostRun is gone, and not before."""
    host = arena.allocate(2 * PAGE)
    at = place(host)
    assert not is_free(arena, at)
    other = host
    del host
    assert not is_free(arena, at)
    del other
    assert is_free(arena, at)


def test_given_back_inside_a_cycle(arena: Arena) -> None:
    """A piece that a reference cycle holds is free when the collector has found it."""
    host = arena.allocate(PAGE)
    at = place(host)
    cycle: list[object] = [host]
    cycle.append(cycle)
    del host
    assert not is_free(arena, at)
    del cycle
    assert is_free(arena, at)


HOLDERS: dict[str, Callable[[memoryview], object]] = {
    "the view": lambda view: view,
    "a slice": lambda view: view[PAGE : PAGE + 1],
    "an empty slice": lambda view: view[:0],
    "a slice of a slice": lambda view: view[10:90][20:30],
    "a view of the view": memoryview,
    "a cast": lambda view: view.cast("I"),
    "read-only": lambda view: view.toreadonly()[5:6],
    "an array that shares it": lambda view: (ctypes.c_uint32 * 4).from_buffer(view, 8),
    "an array that shares a slice": lambda view: (ctypes.c_char * 4).from_buffer(view[PAGE:]),
    "a view of such an array": lambda view: memoryview((ctypes.c_uint16 * 4).from_buffer(view[2:])),
    "an iterator": iter,
    "a method": lambda view: view.tobytes,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_views_keep_it(arena: Arena, holder: str) -> None:
    """Whatever is made from a view keeps the piece, with its content, until it is gone itself."""
    host = arena.allocate(2 * PAGE)
    at = place(host)
    fill(host)
    held = HOLDERS[holder](host.view())
    del host
    assert not is_free(arena, at)
    assert ctypes.string_at(at[0], 2 * PAGE) == b"\xee" * (2 * PAGE)
    del held
    assert is_free(arena, at)


def test_view(arena: Arena) -> None:
    """A view is the whole piece as flat writable bytes; those of several runs are the same memory."""
    arena.allocate(PAGE)
    host = arena.allocate(2 * PAGE)
    view, again = host.view(), host.part(0, 2 * PAGE).view()
    assert (view.format, view.ndim, view.readonly, len(view)) == ("B", 1, False, 2 * PAGE)
    assert safecopy.address_of(view) == place(host)[0]
    view[PAGE] = 7
    assert isinstance(host.memory, mmap.mmap)
    assert again[PAGE] == 7 == host.memory[host.start + PAGE]


def test_bytes_keep_nothing(arena: Arena) -> None:
    """A copy of the bytes does not keep the piece."""
    host = arena.allocate(PAGE)
    at = place(host)
    copied = host.view().tobytes()
    del host
    assert is_free(arena, at) and copied == bytes(PAGE)


def halves(host: HostRun, at: int) -> tuple[HostRun, HostRun]:
    """The parts before and from a position, counted from the run's first byte."""
    return host.cut(0, at), host.cut(at, len(host))


def test_cut(arena: Arena) -> None:
    """The parts are the same memory as the whole, and each is free on its own when the whole is gone too."""
    host = arena.allocate(4 * PAGE)
    start, end = place(host)
    fill(host)
    left, right = halves(host, PAGE)
    assert (place(left), place(right)) == ((start, start + PAGE), (start + PAGE, end))
    assert content(left) + content(right) == b"\xee" * (4 * PAGE)
    del host
    assert not is_free(arena, (start, end))
    del left
    assert is_free(arena, (start, start + PAGE)) and not is_free(arena, (start + PAGE, end))
    del right
    assert is_free(arena, (start, end))


def test_all_of_it_is_no_part(arena: Arena) -> None:
    """Cut at its own bounds a run is itself."""
    host = arena.allocate(2 * PAGE)
    assert host.cut(0, 2 * PAGE) is host


def test_a_part_that_is_not_cut_keeps_the_whole(arena: Arena) -> None:
    """part() is the same memory as cut(), but all of the run stays alive with it."""
    host = arena.allocate(4 * PAGE)
    start, end = place(host)
    part = host.part(PAGE, 2 * PAGE)
    assert place(part) == (start + PAGE, start + 2 * PAGE) == place(host.cut(PAGE, 2 * PAGE))
    del host
    assert not is_free(arena, (start, end))
    del part
    assert is_free(arena, (start, end))


def test_a_block_keeps_its_run(arena: Arena) -> None:
    """A block of a part keeps that part, and nothing else of the whole."""
    host = arena.allocate(4 * PAGE)
    start, end = place(host)
    block = host.cut(PAGE, 3 * PAGE).block(PAGE, 5)
    assert (block.address, len(block)) == (start + 2 * PAGE, 5)
    del host
    assert not is_free(arena, (start + PAGE, start + 3 * PAGE))
    assert is_free(arena, (start, start + PAGE)) and is_free(arena, (start + 3 * PAGE, end))
    del block
    assert is_free(arena, (start, end))


def test_whole_keeps_its_parts(arena: Arena) -> None:
    """Who still holds the whole, or a view of it, keeps both parts."""
    host = arena.allocate(4 * PAGE)
    at = place(host)
    view = host.view()
    left, right = halves(host, PAGE)
    del left, right
    assert not is_free(arena, at)
    del host
    assert not is_free(arena, at)
    del view
    assert is_free(arena, at)


def test_part_of_a_part(arena: Arena) -> None:
    """A part can be cut again; a view of one small part keeps that part alone."""
    host = arena.allocate(4 * PAGE)
    start, end = place(host)
    left, right = halves(host, 3 * PAGE)
    first, second = halves(left, PAGE)
    view = second.view()[PAGE:]
    del host, left, right, first, second
    assert not is_free(arena, (start + PAGE, start + 3 * PAGE))
    assert is_free(arena, (start, start + PAGE)) and is_free(arena, (start + 3 * PAGE, end))
    del view
    assert is_free(arena, (start, end))


@pytest.mark.parametrize("order", ["abw", "baw", "wab", "wba", "awb", "bwa"])
def test_cut_in_two_ways(arena: Arena, order: str) -> None:
    """Parts of one piece may overlap: a page is free when no run has it any more, and once only."""
    whole = arena.allocate(4 * PAGE)
    start, _ = place(whole)
    held: dict[str, HostRun] = {"w": whole, "a": whole.cut(0, 3 * PAGE), "b": whole.cut(PAGE, 4 * PAGE)}
    pages = {"w": {0, 1, 2, 3}, "a": {0, 1, 2}, "b": {1, 2, 3}}
    del whole
    for name in order:
        del held[name]
        kept = set().union(*(pages[other] for other in held))
        free = free_pages(arena)
        assert [page for page in range(4) if start + page * PAGE in free] == sorted({0, 1, 2, 3} - kept)
    every = [arena.allocate(PAGE) for _ in range(2 * CHUNK // PAGE)]
    assert len({place(host) for host in every}) == len(every)


Step = tuple[str, int, int, int]


@given(
    st.lists(
        st.tuples(st.just("allocate"), st.integers(1, 9), st.just(0), st.just(0))
        | st.tuples(st.sampled_from(("drop", "cut", "replace", "view")), *[st.integers(0, 50)] * 3),
        max_size=40,
    )
)
def test_any_order(steps: list[Step]) -> None:
    """Whatever is allocated, cut, viewed and dropped: pieces in use keep what was written, and no other is like them.

    A part that is cut may be kept beside the whole or in its place; parts may overlap.
    """
    arena = SmallArena()
    held: list[tuple[object, Place, int]] = []  # what holds a place, the place, the byte in it
    for number, (name, n, low, size) in enumerate(steps, 1):
        if name == "allocate":
            host = arena.allocate(n * PAGE)
            assert not any(content(host))
            assert not any(overlap(place(host), at) for _, at, _ in held)
            fill(host, number)
            held.append((host, place(host), number))
            del host
        elif held:
            holder, at, byte = held.pop(n % len(held))
            if name == "view" and isinstance(holder, HostRun):
                held.append((holder.view()[1:2], at, byte))
            elif name in ("cut", "replace") and isinstance(holder, HostRun):
                low %= len(holder) // PAGE
                high = low + 1 + size % (len(holder) // PAGE - low)
                part = holder.cut(low * PAGE, high * PAGE)
                assert place(part) == (at[0] + low * PAGE, at[0] + high * PAGE)
                held.append((part, place(part), byte))
                if name == "cut":
                    held.append((holder, at, byte))
                del part
            del holder
        assert all(ctypes.string_at(at[0], at[1] - at[0]) == bytes([byte]) * (at[1] - at[0]) for _, at, byte in held)
    places = [at for _, at, _ in held]
    held.clear()
    assert free_pages(arena).issuperset(page for at in places for page in range(*at, PAGE))
