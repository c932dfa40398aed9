"""What the docstrings of snapshot and restore promise, a test each: contents, listeners, errors."""

from __future__ import annotations

import copy
import ctypes
import mmap
import os
import pickle
from collections.abc import Callable

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW
from hostarch import AMD64, AddrRange, AddrRangeSeq, mman
from map_rows import rows
from simulator_file import SimulatorFile
from snapshot_spaces import dirty, listen, new_space
from usermem import AddressSpace, ChangeKind, FaultError, SharedMemory

SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED

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
    return [(vma.start, vma.mlock_mode, vma.advice_flags) for vma in space.mappings()]


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


def test_no_snapshot_at_all() -> None:
    """What is none is a TypeError, and nothing changes."""
    space = new_space()
    before = space.maps()
    for call in (space.restore, space.dirty_pages):
        with pytest.raises(TypeError, match="snapshot must be a Snapshot, not bytes"):
            call(b"")  # type: ignore[arg-type]
    assert space.maps() == before


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
