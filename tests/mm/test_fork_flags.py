"""MADV_DONTFORK, MADV_WIPEONFORK and what undoes them: what they split and merge, and what a forked child inherits."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW, GrowingObject, pattern
from hostarch import mman
from usermem import AddressSpace, FaultError
from usermem.mm import madvise
from usermem.mm.change import Tables
from usermem.mm.fork import inherited
from usermem.mm.vma import MLOCK_EAGER, VM_DONTCOPY, VM_WIPEONFORK

DONTFORK, DOFORK = mman.MADV_DONTFORK, mman.MADV_DOFORK
WIPE, KEEP = mman.MADV_WIPEONFORK, mman.MADV_KEEPONFORK
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED
MOVE = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED


def code(call: Callable[[], object]) -> str:
    """The name of the errno that a call raises."""
    with pytest.raises(OSError) as caught:
        call()
    return errno.errorcode[caught.value.errno or 0]


def flags(tables: AddressSpace | Tables) -> list[tuple[int, int, int]]:
    """The mappings as (first page, page after the last, advice_flags), pages counted from BASE."""
    vmas = tables.mappings() if isinstance(tables, AddressSpace) else list(tables.vmas)
    return [((vma.start - BASE) // PAGE, (vma.end - BASE) // PAGE, vma.advice_flags) for vma in vmas]


def advised(*calls: tuple[int, int, int], pages: int = 8, how: int = FIXED) -> AddressSpace:
    """A space with pages at BASE that hold the pattern, and advice for (first page, page after the last)."""
    space = AddressSpace()
    space.mmap(BASE, pages * PAGE, RW, how)
    space.copy_out(BASE, pattern(pages * PAGE))
    for first, last, advice in calls:
        assert space.madvise(BASE + first * PAGE, (last - first) * PAGE, advice) == 0
        space._check()
    return space


@pytest.mark.parametrize(("advice", "undo", "flag"), [(DONTFORK, DOFORK, VM_DONTCOPY), (WIPE, KEEP, VM_WIPEONFORK)])
def test_splits_and_merges(advice: int, undo: int, flag: int) -> None:
    """A part that differs is a mapping of its own, until it does not; no byte changes."""
    space = advised((2, 4, advice))
    assert flags(space) == [(0, 2, 0), (2, 4, flag), (4, 8, 0)]
    assert space.madvise(BASE + 4 * PAGE, PAGE, advice) == 0
    assert flags(space) == [(0, 2, 0), (2, 5, flag), (5, 8, 0)]
    assert space.madvise(BASE + 3 * PAGE, PAGE, undo) == 0
    assert flags(space) == [(0, 2, 0), (2, 3, flag), (3, 4, 0), (4, 5, flag), (5, 8, 0)]
    assert space.read_bytes(BASE, 8 * PAGE) == pattern(8 * PAGE)
    assert space.madvise(BASE, 8 * PAGE, undo) == 0
    assert flags(space) == [(0, 8, 0)]


def test_the_two_flags_are_independent() -> None:
    """Each is set and cleared without the other."""
    space = advised((0, 4, DONTFORK), (2, 6, WIPE))
    both = VM_DONTCOPY | VM_WIPEONFORK
    assert flags(space) == [(0, 2, VM_DONTCOPY), (2, 4, both), (4, 6, VM_WIPEONFORK), (6, 8, 0)]
    assert space.madvise(BASE, 8 * PAGE, DOFORK) == 0
    assert flags(space) == [(0, 2, 0), (2, 6, VM_WIPEONFORK), (6, 8, 0)]


def test_wiping_is_for_private_anonymous_memory() -> None:
    """EINVAL of other memory, after what came before it was marked. The other advice takes any memory."""
    space = advised(pages=1)
    space.mmap(BASE + PAGE, PAGE, RW, SHARED)
    space.map_object(BASE + 2 * PAGE, PAGE, RW, FIXED, GrowingObject(b"", PAGE))
    for at in (BASE, BASE + PAGE, BASE + 2 * PAGE):
        assert code(lambda at=at: space.madvise(at, 3 * PAGE, WIPE)) == "EINVAL"  # type: ignore[misc]
    assert flags(space) == [(0, 1, VM_WIPEONFORK), (1, 2, 0), (2, 3, 0)]
    assert space.madvise(BASE, 3 * PAGE, KEEP) == space.madvise(BASE, 3 * PAGE, DONTFORK) == 0
    assert flags(space) == [(0, 1, VM_DONTCOPY), (1, 2, VM_DONTCOPY), (2, 3, VM_DONTCOPY)]


def test_holes_are_passed() -> None:
    """ENOMEM comes after the mappings behind the hole were marked too."""
    space = advised(pages=2)
    space.mmap(BASE + 3 * PAGE, PAGE, RW, FIXED)
    assert code(lambda: space.madvise(BASE + PAGE, 4 * PAGE, WIPE)) == "ENOMEM"
    assert flags(space) == [(0, 1, 0), (1, 2, VM_WIPEONFORK), (3, 4, VM_WIPEONFORK)]


def test_too_many_mappings() -> None:
    """EAGAIN where a split would make more than there may be; what splits nothing is done."""
    space = advised((0, 1, DONTFORK))
    space.limits.max_map_count = 2
    assert code(lambda: space.madvise(BASE + 3 * PAGE, PAGE, WIPE)) == "EAGAIN"
    assert code(lambda: space.madvise(BASE + 7 * PAGE, PAGE, DONTFORK)) == "EAGAIN"
    assert flags(space) == [(0, 1, VM_DONTCOPY), (1, 8, 0)]
    assert space.madvise(BASE + PAGE, PAGE, DONTFORK) == 0
    assert flags(space) == [(0, 2, VM_DONTCOPY), (2, 8, 0)]
    assert space.madvise(BASE + 2 * PAGE, 6 * PAGE, WIPE) == space.madvise(BASE + 3 * PAGE, PAGE, WIPE) == 0


def test_what_another_maps_meanwhile_is_not_advised() -> None:
    """Shared memory that takes a mapping's place between the look at it and the change keeps what it has."""
    space = advised(pages=2)
    mm, looked_at = space._map, space.mappings()[0]
    space.mmap(BASE, PAGE, RW, SHARED)
    mm.change(lambda change: madvise._set_advice(mm, change, looked_at, (BASE, BASE + 2 * PAGE), WIPE))
    assert flags(space) == [(0, 1, 0), (1, 2, VM_WIPEONFORK)]


def test_flags_stay_with_a_mapping() -> None:
    """mprotect, mremap in place and elsewhere, and the growth of a stack keep them; what is mapped anew has none."""
    space = advised((0, 4, WIPE), (0, 4, DONTFORK), how=FIXED | mman.MAP_GROWSDOWN)
    both = VM_DONTCOPY | VM_WIPEONFORK
    space.mprotect(BASE + PAGE, PAGE, 0)
    assert flags(space) == [(0, 1, both), (1, 2, both), (2, 4, both), (4, 8, 0)]
    space.copy_out(BASE - 2 * PAGE, b"grown")
    assert flags(space)[0] == (-2, 1, both)
    space.mremap(BASE + 3 * PAGE, PAGE, PAGE, MOVE, BASE + 20 * PAGE)
    space.mremap(BASE + 20 * PAGE, PAGE, 3 * PAGE)
    assert flags(space)[-1] == (20, 23, both)
    space.mmap(BASE + 21 * PAGE, PAGE, RW, FIXED)
    space.mmap(BASE + 23 * PAGE, PAGE, RW, FIXED)
    assert flags(space)[-4:] == [(20, 21, both), (21, 22, 0), (22, 23, both), (23, 24, 0)]
    space._check()


def test_the_heap_grows_without() -> None:
    """What brk adds to a heap that is not inherited is inherited."""
    space = AddressSpace()
    space.set_brk(BASE)
    space.brk(BASE + PAGE)
    space.madvise(BASE, PAGE, DONTFORK)
    assert space.brk(BASE + 3 * PAGE) == BASE + 3 * PAGE
    assert flags(space) == [(0, 1, VM_DONTCOPY), (1, 3, 0)]
    child = inherited(space._map.tables)
    assert (flags(child), child.brk_start, child.brk) == ([(1, 3, 0)], BASE, BASE + 3 * PAGE)


def test_cached_pages_stay_right() -> None:
    """What was cached before a split is found after it, and cannot be after the part is unmapped."""
    space = advised()
    assert space.read_bytes(BASE + 3 * PAGE, 4)
    space.madvise(BASE + 3 * PAGE, PAGE, DONTFORK)
    assert space.read_bytes(BASE + 3 * PAGE, PAGE) == pattern(4 * PAGE)[3 * PAGE :]
    space.munmap(BASE + 3 * PAGE, PAGE)
    with pytest.raises(FaultError):
        space.read_bytes(BASE + 3 * PAGE, 1)


def test_a_child_that_inherits_all_shares_the_table() -> None:
    """Nothing is built where no mapping differs; there is no memory yet, and the parent is as before."""
    space = advised((2, 4, WIPE))
    tables = space._map.tables
    child = inherited(tables)
    assert child.vmas is tables.vmas
    assert child.pmas.count == 0 < tables.pmas.count
    assert not child.closed


def test_what_a_child_inherits() -> None:
    """Not DONTFORK; of guards those outside WIPEONFORK; no lock, so that what differed in it alone is one mapping."""
    space = advised((0, 2, DONTFORK), (2, 4, WIPE))
    for page in (1, 3, 5):
        space.madvise(BASE + page * PAGE, PAGE, mman.MADV_GUARD_INSTALL)
    space.mlock(BASE + 6 * PAGE, PAGE)
    space.mlock(BASE, PAGE)
    space.mlockall(mman.MCL_FUTURE)
    before = flags(space)
    child = inherited(space._map.tables)
    child.vmas._check()
    child.guards._check()
    assert flags(child) == [(2, 4, VM_WIPEONFORK), (4, 8, 0)]
    assert [(guard.start, guard.end) for guard in child.guards] == [(BASE + 5 * PAGE, BASE + 6 * PAGE)]
    assert not any(vma.mlock_mode for vma in child.vmas)
    assert (child.mlock_future, space._map.tables.mlock_future) == (0, MLOCK_EAGER)
    assert flags(space) == before
    assert space._map.tables.guards.count == 3


def test_a_child_without_mappings() -> None:
    """Of a parent that forks nothing there is nothing; a mapping beside it is as in any new space."""
    space = advised((0, 8, DONTFORK))
    assert flags(inherited(space._map.tables)) == []
    assert flags(inherited(AddressSpace()._map.tables)) == []
    space.mmap(0, PAGE, RW, ANON)
    assert len(flags(inherited(space._map.tables))) == 1
