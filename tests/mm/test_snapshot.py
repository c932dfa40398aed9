"""What the docstrings of snapshot, restore, fork, dirty pages and Snapshot promise, a test each."""

from __future__ import annotations

import copy
import ctypes
import gc
import mmap
import os
import pickle
import weakref
from collections.abc import Callable

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW, pattern
from hostarch import AMD64, ARM64_16K, I386, AddrRange, AddrRangeSeq, Arch, mman
from map_rows import rows
from simulator_file import SimulatorFile
from usermem import AddressSpace, ChangeKind, FaultError, SharedMemory, Snapshot
from usermem.mm.memory_file import memory_file

SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED
Told = tuple[int, int, ChangeKind]


def new_space(pages: int = 4, how: int = FIXED, content: bytes = b"then") -> AddressSpace:
    """A space with pages at BASE, each of which begins with the same bytes."""
    space = AddressSpace()
    space.mmap(BASE, pages * PAGE, RW, how)
    for page in range(pages if content else 0):
        space.copy_out(BASE + page * PAGE, content)
    return space


def dirty(space: AddressSpace, since: Snapshot | None = None) -> list[tuple[int, int]]:
    """The dirty pages as (first, page after the last), counted from BASE."""
    return in_pages(space.dirty_pages(since))


def in_pages(found: AddrRangeSeq) -> list[tuple[int, int]]:
    """Ranges as (first page, page after the last), counted from BASE."""
    return [((ar.start - BASE) // PAGE, (ar.end - BASE) // PAGE) for ar in found]


def listen(space: AddressSpace) -> list[Told]:
    """What the space's listener is told from now on."""
    told: list[Told] = []
    space.on_change = lambda start, end, kind: told.append((start, end, kind))
    return told


# --- snapshot and restore


def test_everything_comes_back() -> None:
    """Mappings, rights, names, the heap's end, locks, guards, bytes; and how memory is locked that is mapped later."""
    space = new_space(8)
    space.set_brk(BASE + 64 * PAGE)
    space.brk(BASE + 65 * PAGE + 3)
    space.copy_out(BASE + 65 * PAGE, b"heap")
    space.mprotect(BASE + PAGE, PAGE, mman.PROT_READ)
    space.set_name(BASE + 2 * PAGE, PAGE, "named")
    space.mlock(BASE + 3 * PAGE, PAGE)
    space.madvise(BASE + 4 * PAGE, PAGE, mman.MADV_GUARD_INSTALL)
    space.madvise(BASE + 5 * PAGE, PAGE, mman.MADV_DONTFORK)
    before = space.maps(), states(space)
    snapshot = space.snapshot()
    assert (space.maps(), states(space)) == before
    space.mlockall(mman.MCL_FUTURE)
    space.munlock(BASE, 8 * PAGE)
    space.brk(BASE + 80 * PAGE)
    space.madvise(BASE + 4 * PAGE, PAGE, mman.MADV_GUARD_REMOVE)
    space.madvise(BASE, 8 * PAGE, mman.MADV_DOFORK)
    space.mremap(BASE, PAGE, PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, BASE + 20 * PAGE)
    space.mmap(BASE + 2 * PAGE, PAGE, RW, SHARED)
    space.munmap(BASE + 6 * PAGE, PAGE)
    space.restore(snapshot)
    assert (space.maps(), states(space)) == before
    assert space.brk(0) == BASE + 65 * PAGE + 3
    assert space.read_bytes(BASE + 65 * PAGE, 4) == b"heap"
    assert [page for page in range(8) if cannot_be_read(space, BASE + page * PAGE)] == [4]
    space.mmap(BASE + 30 * PAGE, PAGE, RW, FIXED)
    assert [vma.mlock_mode for vma in space.mappings() if vma.start == BASE + 30 * PAGE] == [0]


def states(space: AddressSpace) -> list[tuple[int, int, int]]:
    """What maps does not show of each mapping: where it begins, how it is locked, what a forked child has of it."""
    return [(vma.start, vma.mlock_mode, vma.fork_flags) for vma in space.mappings()]


def cannot_be_read(space: AddressSpace, addr: int) -> bool:
    """Whether the bytes there are not those of new_space."""
    try:
        return space.read_bytes(addr, 4) != b"then"
    except FaultError:
        return True


def test_after_everything_was_unmapped() -> None:
    """All is back, at the same host addresses; a listener is told that it is mapped."""
    space = new_space()
    address = space.host_runs(BASE, BASE + PAGE)[0].address
    snapshot = space.snapshot()
    space.munmap(0, AMD64.max_addr)
    told = listen(space)
    space.restore(snapshot)
    assert rows(space) == [(0, 4, "rw-p")]
    assert space.read_bytes(BASE, 5) == b"then\0"
    assert space.host_runs(BASE, BASE + PAGE)[0].address == address
    assert (BASE, BASE + 4 * PAGE, ChangeKind.MAP) in told


def test_writes_through_host_pointers_are_undone() -> None:
    """What an emulator wrote itself, where it aliased the memory before the snapshot."""
    space = new_space()
    run = space.host_runs(BASE, BASE + 4 * PAGE)[0]
    snapshot = space.snapshot()
    ctypes.memmove(run.address + PAGE, b"pointer", 7)
    assert space.read_bytes(BASE + PAGE, 7) == b"pointer"
    assert dirty(space, snapshot) == [(1, 2)]
    space.restore(snapshot)
    assert ctypes.string_at(run.address + PAGE, 7) == b"then\0\0\0"


def test_blocks_stay_valid() -> None:
    """A view from before shows the restored bytes, and stays readable when its memory is unmapped by the restore."""
    space = new_space(1)
    snapshot = space.snapshot()
    space.mmap(BASE + 8 * PAGE, PAGE, RW, FIXED)
    space.copy_out(BASE + 8 * PAGE, b"later")
    old, new = (space.blocks(AddrRangeSeq.of(AddrRange(at, at + 5))) for at in (BASE, BASE + 8 * PAGE))
    space.copy_out(BASE, b"other")
    assert old.tobytes() == b"other"
    space.restore(snapshot)
    assert old.tobytes() == b"then\0"
    assert new.tobytes() in (b"later", bytes(5))  # zeros if its memory was there then, ahead of a mapping


def test_in_any_order() -> None:
    """Many snapshots are alive, and each comes back after each."""
    space = new_space(1, content=b"0")
    snapshots = [space.snapshot()]
    for n in range(1, 4):
        space.copy_out(BASE, b"%d" % n)
        snapshots.append(space.snapshot())
    for n in (2, 0, 3, 3, 1, 0, 2):
        space.restore(snapshots[n])
        assert space.read_bytes(BASE, 1) == b"%d" % n
        assert space.snapshot().diff(snapshots[n]).num_bytes == 0


def test_what_is_not_the_space_s_own() -> None:
    """Shared mappings of files, objects and buffers keep what they show; private pages of a file are the space's."""
    fd = os.memfd_create("file")
    os.ftruncate(fd, 2 * PAGE)
    mapped, buffer = SimulatorFile(bytes(PAGE)), mmap.mmap(-1, PAGE)
    with AddressSpace() as space:
        space.mmap(BASE, PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, fd)
        space.mmap(BASE + PAGE, PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, fd, PAGE)
        space.map_object(BASE + 2 * PAGE, PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, mapped)
        space.attach(BASE + 3 * PAGE, buffer, flags=mman.MAP_FIXED)
        snapshot = space.snapshot()
        for page in range(4):
            space.copy_out(BASE + page * PAGE, b"now")
        assert dirty(space, snapshot) == [(1, 2)]
        space.restore(snapshot)
        assert [space.read_bytes(BASE + page * PAGE, 3) for page in range(4)] == [b"now", bytes(3), b"now", b"now"]
        assert os.pread(fd, 3, 0) == buffer[:3] == b"now"
        space.munmap(BASE, 4 * PAGE)
        assert mapped.data[:3] == b"now"
        space.restore(snapshot)
        assert [space.read_bytes(BASE + page * PAGE, 3) for page in range(4)] == [b"now", bytes(3), b"now", b"now"]
    os.close(fd)


def test_a_restore_that_unmaps_writes_back() -> None:
    """What a guest wrote into an object goes into it when the restore unmaps it."""
    mapped = SimulatorFile(bytes(PAGE))
    space = new_space(1)
    snapshot = space.snapshot()
    space.map_object(BASE + 2 * PAGE, PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, mapped)
    space.copy_out(BASE + 2 * PAGE, b"kept")
    later = space.snapshot()  # which keeps the pages, so that it is not their end that writes them back
    space.restore(snapshot)
    assert mapped.data[:4] == b"kept"
    space.restore(later)
    assert space.read_bytes(BASE + 2 * PAGE, 4) == b"kept"


def test_shared_anonymous_memory_is_put_back_in_place() -> None:
    """For all who share it: another space that maps it sees the bytes of then."""
    memory = SharedMemory(2 * PAGE)
    one, other = AddressSpace(), AddressSpace()
    for space in (one, other):
        space.map_object(BASE, 2 * PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, memory)
    one.copy_out(BASE, b"then")
    snapshot = one.snapshot()
    other.copy_out(BASE, b"more than that")
    other.copy_out(BASE + PAGE, b"and here")
    assert dirty(one, snapshot) == [(0, 2)]
    one.restore(snapshot)
    assert other.read_bytes(BASE, 2 * PAGE) == b"then".ljust(2 * PAGE, b"\0")
    assert dirty(one, snapshot) == []


def test_limits_and_hooks_are_left_alone() -> None:
    """A restore changes neither; what is restored may be more than the limits allow by now."""
    space = new_space()
    snapshot = space.snapshot()
    space.munmap(BASE, 4 * PAGE)
    told = listen(space)
    space.limits.address_limit = PAGE
    space.restore(snapshot)
    assert rows(space) == [(0, 4, "rw-p")]
    assert space.limits.address_limit == PAGE
    assert told and space.on_change is not None


# --- listeners


def test_a_listener_is_told_what_changed_and_nothing_else() -> None:
    """Nothing for an untouched space; MEMORY for pages with other bytes; MAP, UNMAP, PROTECT for those mappings."""
    space = new_space(6)
    space.mprotect(BASE + 3 * PAGE, PAGE, mman.PROT_READ)
    told = listen(space)
    snapshot = space.snapshot()
    space.restore(snapshot)
    assert told == []
    space.copy_out(BASE + PAGE, b"x")
    space.restore(snapshot)
    assert told == [(BASE + PAGE, BASE + 2 * PAGE, ChangeKind.MEMORY)]
    space.mprotect(BASE + 3 * PAGE, PAGE, RW)
    space.munmap(BASE + 5 * PAGE, PAGE)
    space.mmap(BASE + 8 * PAGE, PAGE, RW, FIXED)
    told.clear()
    space.restore(snapshot)
    kinds = {(start - BASE) // PAGE: kind for start, _, kind in told if kind is not ChangeKind.MEMORY}
    assert kinds == {3: ChangeKind.PROTECT, 5: ChangeKind.MAP, 8: ChangeKind.UNMAP}


def test_a_listener_sees_what_is_restored_and_may_map() -> None:
    """It is called after the change; what it raises comes out of the restore, which is done."""
    space = new_space(1)
    snapshot = space.snapshot()
    space.copy_out(BASE, b"more")
    seen = []

    def listener(start: int, end: int, kind: ChangeKind) -> None:
        seen.append(space.read_bytes(BASE, 4))
        space.on_change = None
        space.mmap(BASE + 5 * PAGE, PAGE, RW, FIXED)
        raise RuntimeError("the listener's")

    space.on_change = listener
    with pytest.raises(RuntimeError, match="the listener's"):
        space.restore(snapshot)
    assert seen == [b"then"]
    assert rows(space) == [(0, 1, "rw-p"), (5, 6, "rw-p")]


def test_neither_snapshot_nor_fork_tells_a_listener() -> None:
    """Host addresses stay what they are, and the child has no listener."""
    space = new_space()
    told = listen(space)
    run = space.host_runs(BASE, BASE + PAGE)[0]
    child, spawned = space.fork(), space.snapshot().spawn()
    assert told == []
    assert space.host_runs(BASE, BASE + PAGE)[0].address == run.address
    assert child.on_change is spawned.on_change is None


# --- errors


def test_a_closed_space() -> None:
    """All raise ValueError; the snapshot still starts new spaces."""
    space = new_space()
    snapshot = space.snapshot()
    space.close()
    calls: list[Callable[[], object]] = [
        space.snapshot,
        space.fork,
        space.start_dirty_tracking,
        lambda: space.restore(snapshot),
        lambda: space.dirty_pages(snapshot),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="the address space is closed"):
            call()
    assert space.maps() == ""
    assert snapshot.spawn().read_bytes(BASE, 4) == b"then"


def test_a_closed_snapshot() -> None:
    """A second close does nothing, the rest raises ValueError, and the space is as it was."""
    space = new_space()
    other = space.snapshot()
    with space.snapshot() as snapshot:
        space.copy_out(BASE, b"now!")
    snapshot.close()
    snapshot.close()
    calls: list[Callable[[], object]] = [
        snapshot.spawn,
        snapshot.__enter__,
        lambda: snapshot.diff(other),
        lambda: other.diff(snapshot),
        lambda: space.restore(snapshot),
        lambda: space.dirty_pages(snapshot),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="the snapshot is closed"):
            call()
    assert space.read_bytes(BASE, 4) == b"now!"


def test_another_space_s_snapshot() -> None:
    """Not even a child's or a parent's: ValueError, and nothing has changed."""
    space = new_space()
    snapshot = space.snapshot()
    for other in (AddressSpace(), space.fork(), snapshot.spawn()):
        before = other.maps()
        for call in (other.restore, other.dirty_pages):
            with pytest.raises(ValueError, match=r"another address space: spawn\(\)"):
                call(snapshot)
        assert other.maps() == before


def test_a_snapshot_cannot_be_copied_or_pickled() -> None:
    """It says what to do instead."""
    snapshot = new_space().snapshot()
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="save it to a file"):
            way(snapshot)


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
