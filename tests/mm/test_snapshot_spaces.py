"""What the docstrings of spawn, fork, dirty pages and diff promise, a test each; machines' edges; lifetimes."""

from __future__ import annotations

import gc
import os
import weakref

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW, pattern
from hostarch import AMD64, ARM64_16K, I386, Arch, mman
from snapshot_spaces import dirty, in_pages, new_space
from usermem import AddressSpace, SharedMemory, Snapshot
from usermem.mm.memory_file import memory_file

SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED

# --- spawn and fork


def test_spawned_spaces_are_on_their_own() -> None:
    """Private and shared memory, maps and heap: none of the others sees a write, nor does the snapshot."""
    space = new_space(2)
    space.mmap(BASE + 2 * PAGE, 2 * PAGE, RW, SHARED)
    space.copy_out(BASE + 2 * PAGE, b"then")
    snapshot = space.snapshot()
    spaces = [space, snapshot.spawn(), snapshot.spawn()]
    for n, each in enumerate(spaces):
        each.copy_out(BASE, b"own%d" % n)
        each.copy_out(BASE + 2 * PAGE, b"shr%d" % n)
    for n, each in enumerate(spaces):
        assert each.read_bytes(BASE, 4) + each.read_bytes(BASE + 2 * PAGE, 4) == b"own%dshr%d" % (n, n)
    last = snapshot.spawn()
    assert last.read_bytes(BASE, 4) + last.read_bytes(BASE + 2 * PAGE, 4) == b"thenthen"
    assert last.snapshot().diff(snapshot).num_bytes == 0


def test_limits_of_spawned_and_forked_spaces() -> None:
    """Those that the old space has now, to be changed on their own; locked memory is not, in a child."""
    space = new_space()
    space.mlock(BASE, PAGE)
    snapshot = space.snapshot()
    space.limits.address_limit = 99 * PAGE
    child, spawned = space.fork(), snapshot.spawn()
    assert child.limits.address_limit == spawned.limits.address_limit == 99 * PAGE
    child.limits.address_limit = None
    assert space.limits.address_limit == spawned.limits.address_limit == 99 * PAGE
    modes = [[vma.mlock_mode for vma in each.mappings()] for each in (space, child, spawned)]
    assert modes == [[1, 0], [0], [1, 0]]


def test_a_fork_shares_shared_memory_only() -> None:
    """Private memory is each one's own, both ways; shared memory is both's."""
    space = new_space(1)
    space.mmap(BASE + PAGE, PAGE, RW, SHARED)
    child = space.fork()
    space.copy_out(BASE, b"mine")
    child.copy_out(BASE + PAGE, b"both")
    assert child.read_bytes(BASE, 4) == b"then"
    child.copy_out(BASE, b"hers")
    assert space.read_bytes(BASE, 4) == b"mine"
    assert space.read_bytes(BASE + PAGE, 4) == b"both"
    space.close()
    assert child.read_bytes(BASE, 4) + child.read_bytes(BASE + PAGE, 4) == b"hersboth"


class NamedSpace(AddressSpace):
    """A subclass whose making needs more than AddressSpace's."""

    def __init__(self, name: str) -> None:
        super().__init__(seed=7)
        self.name = name


def test_a_subclass() -> None:
    """It can be restored; what it forks off and its snapshots start are AddressSpaces, mapping where it maps."""
    space = NamedSpace("guest")
    at = space.mmap(0, PAGE, RW, ANON)
    snapshot = space.snapshot()
    following = space.mmap(0, PAGE, RW, ANON)
    space.restore(snapshot)
    for other in (space, space.fork(), snapshot.spawn()):
        assert type(other) is (NamedSpace if other is space else AddressSpace)
        assert other.mappings()[0].start == at
        assert other.mmap(0, PAGE, RW, ANON) == following


# --- dirty pages and diff


def test_dirty_pages_are_those_written() -> None:
    """By a copy, by zeros, by an atomic; not those that were read, protected, or written back by a restore."""
    space = new_space(8)
    snapshot = space.snapshot()
    assert dirty(space, snapshot) == []
    space.read_bytes(BASE, 8 * PAGE)
    space.mprotect(BASE + PAGE, PAGE, mman.PROT_READ)
    assert dirty(space, snapshot) == []
    space.copy_out(BASE + 3 * PAGE - 1, b"xy")
    space.zero_out(BASE + 5 * PAGE, PAGE)
    space.swap_uint32(BASE + 7 * PAGE, 1)
    assert dirty(space, snapshot) == [(2, 4), (5, 6), (7, 8)]
    space.munmap(BASE + 3 * PAGE, PAGE)
    assert dirty(space, snapshot) == [(2, 3), (5, 6), (7, 8)]
    space.restore(snapshot)
    assert dirty(space, snapshot) == []


def test_pages_that_moved_are_dirty() -> None:
    """They have other memory than what was there then."""
    space = new_space(3)
    snapshot = space.snapshot()
    space.mremap(BASE, PAGE, PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, BASE + 2 * PAGE)
    assert dirty(space, snapshot) == [(2, 3)]


def test_dirty_tracking() -> None:
    """It begins anew each time, and a snapshot or a restore in between does not disturb it."""
    space = new_space(4)
    with pytest.raises(ValueError, match=r"start_dirty_tracking\(\) before it"):
        space.dirty_pages()
    space.start_dirty_tracking()
    space.copy_out(BASE, b"x")
    snapshot = space.snapshot()
    assert dirty(space) == [(0, 1)]
    space.copy_out(BASE + PAGE, b"x")
    assert dirty(space) == [(0, 2)]
    space.restore(snapshot)
    assert dirty(space) == [(0, 1)]
    space.start_dirty_tracking()
    assert dirty(space) == []
    space.copy_out(BASE + 2 * PAGE, b"x")
    assert dirty(space) == [(2, 3)]
    for other in (space.fork(), snapshot.spawn()):  # it is not inherited
        with pytest.raises(ValueError, match="start_dirty_tracking"):
            other.dirty_pages()


def test_diff() -> None:
    """Pages with other bytes, and those in only one; not those that were written with the same bytes. Both ways."""
    space = new_space(6)
    one = space.snapshot()
    space.copy_out(BASE, b"x")
    space.copy_out(BASE + PAGE, b"then")
    space.munmap(BASE + 3 * PAGE, PAGE)
    space.mmap(BASE + 5 * PAGE, 2 * PAGE, RW, SHARED)
    space.copy_out(BASE + 5 * PAGE, b"then")
    other = space.snapshot()
    assert in_pages(one.diff(other)) == in_pages(other.diff(one)) == [(0, 1), (3, 4), (6, 7)]
    assert one.diff(one).num_bytes == 0


def test_diff_of_memory_that_is_mapped_otherwise() -> None:
    """The bytes count: a spawned space's shared memory is another one with the same bytes."""
    space = new_space(3, SHARED)
    snapshot = space.snapshot()
    spawned = snapshot.spawn()
    assert snapshot.diff(spawned.snapshot()).num_bytes == 0
    spawned.copy_out(BASE + PAGE, b"else")
    spawned.mmap(BASE + 2 * PAGE, PAGE, RW, FIXED)
    spawned.copy_out(BASE + 2 * PAGE, b"then")
    assert in_pages(snapshot.diff(spawned.snapshot())) == [(1, 2)]


# --- edges


@pytest.mark.parametrize("arch", [AMD64, ARM64_16K, I386], ids=lambda arch: arch.name)
def test_the_last_page_of_a_machine(arch: Arch) -> None:
    """Ranges are whole pages of the guest's, up to the end of its user space."""
    page, space = arch.page_size, AddressSpace(arch)
    last = arch.page_round_down(arch.max_addr) - page
    space.mmap(last - page, 2 * page, RW, mman.MAP_PRIVATE | mman.MAP_FIXED | arch.map_flags.anonymous)
    space.copy_out(last, pattern(page))
    snapshot = space.snapshot()
    space.copy_out(last + page - 1, b"\xee")
    for found in (space.dirty_pages(snapshot), snapshot.diff(space.snapshot())):
        assert [(ar.start, ar.end) for ar in found] == [(last, last + page)]
    child, spawned = space.fork(), snapshot.spawn()
    space.restore(snapshot)
    assert space.read_bytes(last, page) == spawned.read_bytes(last, page) == pattern(page)
    assert child.read_bytes(last, page) == pattern(page)[:-1] + b"\xee"
    assert (child.arch, spawned.arch) == (arch, arch)


def test_nothing_mapped() -> None:
    """An empty space can do it all."""
    space = AddressSpace()
    snapshot = space.snapshot()
    assert space.dirty_pages(snapshot).num_bytes == snapshot.diff(space.snapshot()).num_bytes == 0
    assert snapshot.spawn().maps() == space.fork().maps() == ""
    space.mmap(BASE, PAGE, RW, FIXED)
    space.copy_out(BASE, b"x")
    assert dirty(space, snapshot) == [(0, 1)]
    space.restore(snapshot)
    assert space.maps() == ""


# --- lifetime


def test_a_snapshot_outlives_its_space() -> None:
    """Neither the space nor its map is kept from going by the snapshots."""
    space = new_space()
    snapshot = space.snapshot()
    space.copy_out(BASE, b"now!")
    ref = weakref.ref(space)
    del space
    gc.collect()
    assert ref() is None
    assert snapshot.spawn().read_bytes(BASE, 4) == b"then"


def test_what_a_snapshot_keeps_goes_with_it() -> None:
    """The memory that was mapped then; a tracked space keeps its own snapshot."""
    memory = SharedMemory(PAGE)
    ref = weakref.ref(memory)
    space = AddressSpace()
    space.map_object(BASE, PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, memory)
    snapshot = space.snapshot()
    del memory
    space.munmap(BASE, PAGE)
    gc.collect()
    assert ref() is not None
    snapshot.close()
    assert ref() is None


@pytest.mark.parametrize("way", ["close", "del"])
def test_images_give_their_memory_back(way: str) -> None:
    """With the last snapshot and space that show them, without the garbage collector."""
    file = memory_file()
    if file is None:
        pytest.skip("this host has no memory files")
    gc.collect()
    gc.disable()
    try:
        before = os.fstat(file.fd).st_blocks
        space = new_space(64)
        snapshots = [space.snapshot(), space.snapshot()]
        spawned = snapshots[0].spawn()
        assert os.fstat(file.fd).st_blocks >= before + 64 * PAGE // 512
        if way == "close":
            spaces_and_snapshots: list[AddressSpace | Snapshot] = [space, spawned, *snapshots]
            while spaces_and_snapshots:
                spaces_and_snapshots.pop().close()
        else:
            del space, spawned, snapshots
        assert os.fstat(file.fd).st_blocks <= before
    finally:
        gc.enable()
