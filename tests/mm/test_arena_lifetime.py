"""A piece of host memory comes back when the last reference to it is gone, whatever holds it, and never before.

What is free is asked of the arena itself: memory in use is never handed out, so a piece that is too early would show.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import safecopy
from safemem.arena import Arena, HostRange, export
from small_arena import CHUNK, PAGE, Place, SmallArena, content, fill, is_free, overlap, place


@pytest.fixture
def arena() -> Arena:
    """An arena of few pages."""
    return SmallArena()


def test_given_back(arena: Arena) -> None:
    """A piece is free when its HostRange is gone, and not before."""
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
    """Whatever is made from an exported view keeps the piece, with its content, until it is gone itself."""
    host = arena.allocate(2 * PAGE)
    at = place(host)
    fill(host)
    held = HOLDERS[holder](export(host))
    del host
    assert not is_free(arena, at)
    assert ctypes.string_at(at[0], 2 * PAGE) == b"\xee" * (2 * PAGE)
    del held
    assert is_free(arena, at)


def test_export(arena: Arena) -> None:
    """An exported view is the whole piece as flat writable bytes; several are the same memory."""
    arena.allocate(PAGE)
    host = arena.allocate(2 * PAGE)
    view, again = export(host), export(host)
    assert (view.format, view.ndim, view.readonly, len(view)) == ("B", 1, False, 2 * PAGE)
    assert safecopy.address_of(view) == place(host)[0]
    view[PAGE] = 7
    assert again[PAGE] == 7 == host.memory[host.start + PAGE]


def test_bytes_keep_nothing(arena: Arena) -> None:
    """A copy of the bytes does not keep the piece."""
    host = arena.allocate(PAGE)
    at = place(host)
    copied = export(host).tobytes()
    del host
    assert is_free(arena, at) and copied == bytes(PAGE)


def test_split(arena: Arena) -> None:
    """The parts are the same memory as the whole, and each is free on its own when the whole is gone too."""
    host = arena.allocate(4 * PAGE)
    start, end = place(host)
    fill(host)
    left, right = host.split(host.start + PAGE)
    assert (place(left), place(right)) == ((start, start + PAGE), (start + PAGE, end))
    assert content(left) + content(right) == b"\xee" * (4 * PAGE)
    del host
    assert not is_free(arena, (start, end))
    del left
    assert is_free(arena, (start, start + PAGE)) and not is_free(arena, (start + PAGE, end))
    del right
    assert is_free(arena, (start, end))


def test_whole_keeps_its_parts(arena: Arena) -> None:
    """Who still holds the whole, or a view of it, keeps both parts."""
    host = arena.allocate(4 * PAGE)
    at = place(host)
    view = export(host)
    left, right = host.split(host.start + PAGE)
    del left, right
    assert not is_free(arena, at)
    del host
    assert not is_free(arena, at)
    del view
    assert is_free(arena, at)


def test_part_of_a_part(arena: Arena) -> None:
    """A part can be split again; a view of one small part keeps that part alone."""
    host = arena.allocate(4 * PAGE)
    start, end = place(host)
    left, right = host.split(host.start + 3 * PAGE)
    first, second = left.split(left.start + PAGE)
    view = export(second)[PAGE:]
    del host, left, right, first, second
    assert not is_free(arena, (start + PAGE, start + 3 * PAGE))
    assert is_free(arena, (start, start + PAGE)) and is_free(arena, (start + 3 * PAGE, end))
    del view
    assert is_free(arena, (start, end))


def test_split_twice(arena: Arena) -> None:
    """A second split of the same piece is refused; else its memory would have two owners, and be free twice."""
    host = arena.allocate(4 * PAGE)
    at = place(host)
    parts = host.split(host.start + PAGE)
    with pytest.raises(ValueError, match="split"):
        host.split(host.start + 2 * PAGE)
    del host
    assert not is_free(arena, at)
    del parts
    gc.collect()
    pages = [arena.allocate(PAGE) for _ in range(2 * CHUNK // PAGE)]
    assert len({place(host) for host in pages}) == len(pages)


@given(
    st.lists(
        st.tuples(st.just("allocate"), st.integers(1, 9))
        | st.tuples(st.sampled_from(("drop", "split", "export")), st.integers(0, 50)),
        max_size=40,
    )
)
def test_any_order(steps: list[tuple[str, int]]) -> None:
    """Whatever is allocated, split, exported and dropped: pieces in use never overlap and keep what was written."""
    arena = SmallArena()
    held: list[tuple[object, Place, int]] = []  # what holds a place, the place, the byte in it
    for number, (name, n) in enumerate(steps, 1):
        if name == "allocate":
            host = arena.allocate(n * PAGE)
            assert not any(content(host))
            assert not any(overlap(place(host), at) for _, at, _ in held)
            fill(host, number)
            held.append((host, place(host), number))
            del host
        elif held:
            holder, at, byte = held.pop(n % len(held))
            if name == "export" and isinstance(holder, HostRange):
                held.append((export(holder)[1:2], at, byte))
            elif name == "split" and isinstance(holder, HostRange) and at[1] - at[0] > PAGE:
                left, right = holder.split(holder.start + PAGE)
                held += [(left, place(left), byte), (right, place(right), byte)]
                del left, right
            del holder
    for _, (start, end), byte in held:
        assert ctypes.string_at(start, end - start) == bytes([byte]) * (end - start)
