"""What an address space promises to other threads, and to code of the simulator's that it calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW, one, pattern
from hostarch import READ, WRITE, mman
from usermem import AddressSpace, FaultError, FaultReason, copy_string_in

R = mman.PROT_READ


class Reentrant:
    """An object whose first read changes the mapping that it is read for."""

    def __init__(self, change: str, space: AddressSpace) -> None:
        self.change: str | None = change
        self.space = space

    def size(self) -> int:
        """See MappedObject."""
        return 4 * PAGE

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        change, self.change = self.change, None
        if change == "munmap":
            self.space.munmap(BASE, 4 * PAGE)
        elif change == "mprotect":
            self.space.mprotect(BASE, 4 * PAGE, 0)
        elif change == "remap":
            self.space.mmap(BASE, 4 * PAGE, RW, FIXED)
        elif change == "read":
            assert self.space.read_bytes(BASE, 2) == b"oo"
        dst[:] = b"o" * len(dst)
        return len(dst)


@pytest.mark.parametrize(
    ("change", "reason"), [("munmap", FaultReason.UNMAPPED), ("mprotect", FaultReason.PERMISSION), ("remap", None)]
)
def test_an_object_that_changes_its_mapping_while_it_is_read(change: str, reason: FaultReason | None) -> None:
    """The access sees the change, and what is mapped there later holds zeros, not the object's bytes."""
    space = AddressSpace()
    space.map_object(BASE, 4 * PAGE, R, FIXED, Reentrant(change, space))
    if reason is None:
        assert space.read_bytes(BASE, 4) == bytes(4)
    else:
        with pytest.raises(FaultError) as caught:
            space.read_bytes(BASE, 4)
        assert caught.value.reason is reason
    space.mmap(BASE, 4 * PAGE, RW, FIXED)
    assert space.read_bytes(BASE, 4 * PAGE) == bytes(4 * PAGE)
    space._check()


def test_an_object_that_reads_itself() -> None:
    """It may look at the very page it is asked for."""
    space = AddressSpace()
    space.map_object(BASE, 4 * PAGE, R, FIXED, Reentrant("read", space))
    assert space.read_bytes(BASE, 4) == b"oooo"


def test_a_slow_object_holds_up_nobody() -> None:
    """While an object is read, other threads map, unmap and copy."""
    reading, go_on = threading.Event(), threading.Event()

    class Slow:
        def size(self) -> int:
            return PAGE

        def read_at(self, offset: int, dst: memoryview) -> int:
            reading.set()
            assert go_on.wait(30)
            dst[:4] = b"slow"
            return 4

    space = AddressSpace()
    space.map_object(BASE, PAGE, R, FIXED, Slow())
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(space.read_bytes(BASE, 4)))
    thread.start()
    try:
        assert reading.wait(30)
        other = space.mmap(0, PAGE, RW, ANON)
        space.copy_out(other, b"fast")
        assert space.read_bytes(other, 4) == b"fast"
        space.munmap(other, PAGE)
    finally:
        go_on.set()
        thread.join()
    assert got == [b"slow"]


def test_a_copy_over_cached_pages_takes_no_lock() -> None:
    """Over several runs too: one that has been looked up is not looked up again."""
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)
    space.mmap(BASE + PAGE, PAGE, R, FIXED)
    space.mmap(BASE + 2 * PAGE, PAGE, RW, FIXED)
    assert space.read_bytes(BASE, 3 * PAGE) == bytes(3 * PAGE)
    got: list[bytes] = []
    with space._map._lock:
        thread = threading.Thread(target=lambda: got.append(space.read_bytes(BASE, 3 * PAGE)), daemon=True)
        thread.start()
        thread.join(30)
        assert got == [bytes(3 * PAGE)]


def test_a_mapping_that_grows_is_one_run_again() -> None:
    """What is mapped behind, before or between mappings continues them: what was cached ends no longer there.

    The same with rights that become those of the neighbours.
    """
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)
    space.mmap(BASE + 3 * PAGE, PAGE, RW, FIXED)
    changes: list[Callable[[int], object]] = [
        lambda at: space.mmap(at, PAGE, RW, FIXED),
        lambda at: space.mprotect(at, PAGE, RW),
    ]
    for change in changes:
        for at, start, end in ((1, 0, 2), (2, 0, 4), (-1, -1, 4)):
            for page in range(start, end):
                with suppress(FaultError):
                    space.copy_out(BASE + page * PAGE, space.read_bytes(BASE + page * PAGE, 8))
            change(BASE + at * PAGE)
            for access in (READ, WRITE):
                assert len(space.blocks(one(BASE + start * PAGE, (end - start) * PAGE), access)) == 1
        for page in (1, 2, -1):
            space.mprotect(BASE + page * PAGE, PAGE, R)


class Changing:
    """Host memory that another thread writes between two looks at it."""

    def __init__(self, after: bytes) -> None:
        self.after = after

    def find(self, what: bytes, start: int, stop: int) -> int:
        """What is there at first: a NUL, or none."""
        return start + 100 if stop - start > 100 else -1

    def __getitem__(self, part: slice) -> bytes:
        return self.after[: part.stop - part.start]


@pytest.mark.parametrize("maxlen", [200, 50])
def test_a_string_that_changes_while_it_is_read_has_no_nul(maxlen: int) -> None:
    """What was copied is searched, not what was there a moment before."""
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)
    space.read_bytes(BASE, 1)
    _, base, limit, pma = space._readable[BASE >> 12]
    after = b"A" * 20 + b"\0" + b"B" * 200
    space._readable[BASE >> 12] = (Changing(after), base, limit, pma)  # type: ignore[assignment]
    assert copy_string_in(space, BASE, maxlen) == b"A" * 20


def test_tables_do_not_grow_with_what_is_gone() -> None:
    """However memory was mapped and unmapped, nothing stays of it in the tables, and the arena is whole again."""
    space = AddressSpace()
    for i in range(300):
        space.mmap(BASE + (i << 26), PAGE, RW, FIXED)
        space.copy_out(BASE + (i << 26), b"x")
        space.munmap(BASE + (i << 26), PAGE)
    for i in range(300):
        space.mmap(BASE + 2 * i * PAGE, PAGE, RW, FIXED)
        space.copy_out(BASE + 2 * i * PAGE, pattern(16))
    for i in range(300):
        space.munmap(BASE + 2 * i * PAGE, PAGE)
    assert (len(space._map.tables.vmas), len(space._map.tables.pmas)) == (0, 0)
    arena = space._map.anonymous.arena
    assert len(arena.chunks) <= 2
    arena.allocate(PAGE)
    assert len(arena._free) <= len(arena.chunks)


def test_shared_mappings_stay_apart() -> None:
    """Each shared anonymous mapping has memory of its own, as on Linux, and merges only with a part of itself."""
    space = AddressSpace()
    shared = FIXED & ~2 | 1
    space.mmap(BASE, PAGE, RW, shared)
    space.mmap(BASE + PAGE, 2 * PAGE, RW, shared)
    assert len(space.maps().splitlines()) == 2
    space.mprotect(BASE + PAGE, PAGE, R)
    assert len(space.maps().splitlines()) == 3
    space.mprotect(BASE + PAGE, PAGE, RW)
    assert len(space.maps().splitlines()) == 2
    space._check()
