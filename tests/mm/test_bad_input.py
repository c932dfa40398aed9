"""Bad arguments of the mapping calls: named, refused, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve

from each_line import Event
from edge_layouts import ANON, BASE, FIXED, PAGE, RW
from hostarch import AMD64, ARM64, READ, AddrRange, AddrRangeSeq, mman
from safemem import ReaderFunc
from usermem import AddressSpace, FaultError, copy_string_in
from usermem.mm import segment, vma

CALLS: dict[str, Callable[[AddressSpace, object], object]] = {
    "mmap addr": lambda s, x: s.mmap(x, PAGE, RW, ANON),  # type: ignore[arg-type]
    "mmap length": lambda s, x: s.mmap(0, x, RW, ANON),  # type: ignore[arg-type]
    "mmap prot": lambda s, x: s.mmap(0, PAGE, x, ANON),  # type: ignore[arg-type]
    "mmap flags": lambda s, x: s.mmap(0, PAGE, RW, x),  # type: ignore[arg-type]
    "mmap offset": lambda s, x: s.mmap(0, PAGE, RW, ANON, -1, x),  # type: ignore[arg-type]
    "map_object max_prot": lambda s, x: s.map_object(0, PAGE, RW, ANON, None, 0, x),  # type: ignore[arg-type]
    "munmap addr": lambda s, x: s.munmap(x, PAGE),  # type: ignore[arg-type]
    "munmap length": lambda s, x: s.munmap(BASE, x),  # type: ignore[arg-type]
    "mprotect addr": lambda s, x: s.mprotect(x, PAGE, RW),  # type: ignore[arg-type]
    "mprotect length": lambda s, x: s.mprotect(BASE, x, RW),  # type: ignore[arg-type]
    "mprotect prot": lambda s, x: s.mprotect(BASE, PAGE, x),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("bad", [1.5, "4096", None, b""])
@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_are_no_ints(name: str, bad: object) -> None:
    """A TypeError that names the argument, and the map is as it was."""
    space = AddressSpace()
    space.mmap(BASE, 2 * PAGE, RW, FIXED)
    before = space.maps()
    with pytest.raises(TypeError, match=name.split()[1]):
        CALLS[name](space, bad)
    assert space.maps() == before
    space._check()


@pytest.mark.parametrize("addr", [(1 << 64) + BASE, BASE - (1 << 70), BASE - (1 << 80)])
def test_what_is_no_address_has_no_tag(addr: int) -> None:
    """On a machine that ignores the top byte, an int beyond 64 bits names nothing, and below 0 neither."""
    space = AddressSpace(ARM64)
    space.mmap(BASE, PAGE, RW, FIXED)
    space.copy_out(BASE, b"secret")
    with pytest.raises(FaultError):
        space.read_bytes(addr, 6)
    assert space.resolve(addr, 6, READ)[0] == []
    with pytest.raises(OSError):
        space.munmap(addr, PAGE)
    with pytest.raises(OSError):
        space.mprotect(addr, PAGE, 0)
    assert space.read_bytes(BASE, 6) == b"secret"


def test_pages_smaller_than_the_caches_are_refused() -> None:
    """The smallest page of any machine that Linux runs on is 4 KiB."""
    with pytest.raises(ValueError, match="page_shift"):
        evolve(AMD64, page_shift=10)


@pytest.mark.parametrize("flags", [mman.MAP_SHARED, mman.MAP_PRIVATE])
@pytest.mark.parametrize(
    ("mapped", "missing"),
    [
        (object(), "size"),
        (b"bytes", "size"),
        (Path(), "size"),
        (SimpleNamespace(size=4096, read_at=len), "size"),
        (SimpleNamespace(size=lambda: 4096), "read_at"),
    ],
)
def test_what_is_no_object_to_map(mapped: Any, missing: str, flags: int) -> None:
    """A TypeError at the call, that names what is missing; nothing is mapped."""
    space = AddressSpace()
    with pytest.raises(TypeError, match=rf"mapped must be .* has no {missing}\(\)"):
        space.map_object(0, PAGE, RW, flags, mapped)
    assert space.mappings() == []


def test_a_closed_space_says_so_first() -> None:
    """Whatever else is wrong with the call, or however little it asks for."""
    space = AddressSpace()
    space.close()
    calls: list[Callable[[], object]] = [
        lambda: space.mmap(0, PAGE, RW, ANON, -1, 5),
        lambda: space.mmap(0, PAGE, RW, mman.MAP_PRIVATE),
        lambda: space.munmap(1, 0),
        lambda: space.blocks(AddrRangeSeq()),
        space.__enter__,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize("count", [-1, 5, 999])
def test_an_impossible_count_of_a_reader_that_would_block(count: int) -> None:
    """What a BlockingIOError says of progress is checked as a returned count is."""
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)

    def read(dsts: object) -> int:
        error = BlockingIOError()
        error.transferred = count  # type: ignore[attr-defined]
        raise error

    with pytest.raises(ValueError, match="reader or writer"):
        space.copy_out_from(AddrRangeSeq([AddrRange(BASE, BASE + 4)]), ReaderFunc(read))


def test_placing_many_mappings_looks_at_few() -> None:
    """Top-down placement goes on where it ended: it does not pass all mappings again for each."""
    space = AddressSpace()
    event = Event([segment, vma])
    places: list[int] = []

    def place() -> None:
        places.extend(space.mmap(0, PAGE, RW if i % 2 else mman.PROT_READ, ANON) for i in range(2000))

    event.during(place)
    assert event.lines < 2000 * 200
    assert places == [places[0] - i * PAGE for i in range(2000)]
    space.munmap(places[5], PAGE)
    assert space.mmap(0, PAGE, RW, ANON) == places[5]
    assert copy_string_in(space, places[5], 4) == b""
