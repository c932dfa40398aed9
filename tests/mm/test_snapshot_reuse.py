"""Memory that showed an image never shows its bytes to whoever gets it next, in whatever order things go."""

from __future__ import annotations

import gc
import itertools
import random
import threading
from collections.abc import Callable

import pytest

from campaign import times
from edge_layouts import FIXED, PAGE, RW
from hostarch import READ, AddrRange, AddrRangeSeq, mman
from safemem import BlockSeq
from small_arena import check_free
from usermem import AddressSpace, Snapshot
from usermem.mm.arena import Arena, _Atom, _Lease

BASE, PAGES = 0x4000_0000, 16
WINDOW = 1 << 26


def new_space(arena: Arena | None = None) -> AddressSpace:
    """An empty one; two of the same arena have their memory from one source."""
    space = AddressSpace()
    if arena is not None:
        space._map.anonymous.arena = arena
    return space


def check_zeros(arena: Arena, pieces: int = 12) -> None:
    """All that the arena hands out in pieces of many sizes holds nothing; it is given back unwritten."""
    check_free(arena)
    held = [arena.allocate(length) for length in [WINDOW] * 2 + [PAGE] * 2 + [PAGE * n for n in range(1, pieces)]]
    for piece in held:
        length = min(len(piece), 64 * PAGE)
        assert piece.view()[:length].tobytes() == bytes(length)


def blocks(space: AddressSpace) -> BlockSeq:
    """A block in flight, of all of a space's pages that can be read."""
    return space.blocks(AddrRangeSeq.of(AddrRange(BASE, BASE + PAGE)), READ)


ENDS: dict[str, Callable[[dict[str, object]], object]] = {
    "snapshot": lambda things: things["snapshot"].close(),  # type: ignore[attr-defined]
    "last": lambda things: things["last"].close(),  # type: ignore[attr-defined]
    "restore": lambda things: _restore(things["space"], things["snapshot"]),
    "munmap": lambda things: _munmap(things["space"]),
    "space": lambda things: things.pop("space", None),
    "child": lambda things: things.pop("child").close(),  # type: ignore[attr-defined]
    "block": lambda things: things.pop("block"),
}


def _restore(space: object, snapshot: object) -> None:
    if isinstance(space, AddressSpace) and isinstance(snapshot, Snapshot) and snapshot._state is not None:
        space.restore(snapshot)


def _munmap(space: object) -> None:
    if isinstance(space, AddressSpace):
        space.munmap(BASE, PAGES * PAGE)


def test_every_order_of_ends() -> None:
    """Snapshots, spaces, children, blocks: whatever goes first, all is zero for the next one."""
    orders = [order for order in itertools.permutations(ENDS) if order[-1] != "restore"]
    for order in random.Random(5).sample(orders, times(60, 2000)):
        arena = Arena()
        space = new_space(arena)
        space.mmap(BASE, PAGES * PAGE, RW, FIXED)
        space.copy_out(BASE, b"first" * PAGE)
        things: dict[str, object] = {"space": space, "block": blocks(space), "snapshot": space.snapshot()}
        space.munmap(BASE + 4 * PAGE, 2 * PAGE)
        space.copy_out(BASE + PAGE, b"later")
        things["last"] = space.snapshot()
        things["child"] = space.fork()
        space.copy_out(BASE + 2 * PAGE, b"now")
        del space
        for name in order:
            if name in ("restore", "munmap") and "space" not in things:
                continue
            ENDS[name](things)
            check_zeros(arena)
        things.clear()
        gc.collect()
        check_zeros(arena)
        assert arena.overlay.extents.count == 0, order


def small_piece(arena: Arena) -> tuple[AddressSpace, Snapshot]:
    """A space with a page that is all that was ever mapped of its memory, and a snapshot without an image of it."""
    space = new_space(arena)
    space.mmap(BASE, PAGE, RW, FIXED)
    space.host_runs(BASE, BASE + PAGE)
    return space, space.snapshot()


@pytest.mark.parametrize("end", ["close", "forgotten"])
def test_memory_that_comes_back_and_is_mapped_further(end: str) -> None:
    """What was noted when a piece was given up is wrong when a restore brings it back: all of it is zero afterwards.

    The mapping grows into the free part of its memory, all is written, and the space goes, closed or not.
    """
    arena = Arena()
    space, snapshot = small_piece(arena)
    space.munmap(BASE, PAGE)
    space.restore(snapshot)
    snapshot.close()
    space.mmap(BASE + PAGE, PAGES * PAGE, RW, FIXED)
    space.copy_out(BASE, b"x" * PAGES * PAGE)
    if end == "close":
        space.close()
    del space, snapshot
    gc.collect()
    check_zeros(arena)


def test_what_was_noted_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The note of a piece that is mapped again is taken back, also of its parts."""
    forgotten: list[_Lease] = []
    forget = _Lease.forget_used

    def note(lease: _Lease) -> None:
        forgotten.append(lease)
        forget(lease)

    monkeypatch.setattr(_Lease, "forget_used", note)
    arena = Arena()
    space, snapshot = small_piece(arena)
    (pma,) = space._map.tables.pmas
    whole = _all_atoms(pma.run.keeper)
    space.munmap(BASE, PAGE)
    assert [atom.used for atom in whole] != [(atom.start, atom.end) for atom in whole]
    space.restore(snapshot)
    assert forgotten
    assert [atom.used for atom in whole] == [(atom.start, atom.end) for atom in whole]


def _all_atoms(keeper: object) -> list[_Atom]:
    assert isinstance(keeper, _Lease)
    return keeper._atoms


def test_destructors_in_other_threads() -> None:
    """Snapshots and children that go in a thread, while this one maps, writes, restores and hands on."""
    arena = Arena()
    gone: list[object] = []
    done = threading.Event()

    def drop() -> None:
        while not done.is_set() or gone:
            if gone:
                gone.pop()

    dropper = threading.Thread(target=drop)
    dropper.start()
    space = new_space(arena)
    try:
        for n in range(times(150, 3000)):
            space.mmap(BASE, PAGES * PAGE, RW, FIXED)
            assert space.read_bytes(BASE, PAGES * PAGE) == bytes(PAGES * PAGE)
            space.copy_out(BASE, b"%d" % n * 3 * PAGE)
            snapshot = space.snapshot(timeout=10)
            space.copy_out(BASE + (n % PAGES) * PAGE, b"now")
            gone += [snapshot, space.fork(timeout=10)]
            if n % 3 == 0:
                space.restore(snapshot, timeout=10)
                assert space.read_bytes(BASE, 3 * PAGE) == (b"%d" % n * 3 * PAGE)[: 3 * PAGE]
            gone.append(space.blocks(AddrRangeSeq.of(AddrRange(BASE, BASE + PAGE)), READ))
            del snapshot
            space.munmap(BASE, PAGES * PAGE)
    finally:
        done.set()
        dropper.join()
    space.close()
    gc.collect()
    check_zeros(arena)
    assert arena.overlay.extents.count == 0


def test_advice_on_pages_with_images() -> None:
    """MADV_DONTNEED and MADV_FREE of imaged pages: zeros, the image in none of what is placed then; mremap takes it."""
    space = new_space()
    space.mmap(BASE, PAGES * PAGE, RW, FIXED)
    space.copy_out(BASE, b"x" * PAGES * PAGE)
    snapshot = space.snapshot()
    then = space.read_bytes(BASE, PAGES * PAGE)
    for advice in (mman.MADV_DONTNEED, mman.MADV_FREE):
        space.madvise(BASE + 2 * PAGE, 3 * PAGE, advice)
        space.mremap(BASE, PAGE, PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, BASE + 64 * PAGE)
        assert space.read_bytes(BASE + 2 * PAGE, 3 * PAGE) in (bytes(3 * PAGE), b"x" * 3 * PAGE)
        assert space.read_bytes(BASE + 64 * PAGE, PAGE) == b"x" * PAGE
        space.restore(snapshot)
        assert space.read_bytes(BASE, PAGES * PAGE) == then
    snapshot.close()
    space.close()
    check_zeros(space._map.anonymous.arena)
