"""MADV_GUARD_INSTALL and MADV_GUARD_REMOVE: what faults, what keeps a guard, what takes it away; MADV_COLLAPSE."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW, GrowingObject, pattern
from hostarch import AMD64, READ, WRITE, AccessType, AddrRange, AddrRangeSeq, mman
from map_rows import rows
from usermem import AddressSpace, FaultError, FaultReason

SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED
INSTALL, REMOVE = mman.MADV_GUARD_INSTALL, mman.MADV_GUARD_REMOVE
MOVE = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED
HUGE = AMD64.huge_page_size


def guarded(flags: int = FIXED, pages: int = 8) -> AddressSpace:
    """A space with pages at BASE that hold the pattern, the third and fourth of them guarded."""
    space = AddressSpace()
    space.mmap(BASE, pages * PAGE, RW, flags)
    space.copy_out(BASE, pattern(pages * PAGE))
    assert space.read_bytes(BASE + 3 * PAGE, 1)  # cached
    assert space.madvise(BASE + 2 * PAGE, 2 * PAGE, INSTALL) == 0
    space._check()
    return space


def faulting(space: AddressSpace, start: int = BASE, pages: int = 8) -> list[int]:
    """The pages where a read faults by a guard."""
    found = []
    for i in range(pages):
        try:
            space.read_bytes(start + i * PAGE, 1)
        except FaultError as fault:
            assert fault.reason == FaultReason.GUARD
            found.append(i)
    return found


def test_guards_fault() -> None:
    """Each access faults there, whatever the rights, after the bytes before it; the mapping is as it was."""
    space = guarded()
    assert faulting(space) == [2, 3]
    assert rows(space, BASE) == [(0, 8, "rw-p")]
    at = BASE + 2 * PAGE
    calls: list[Callable[[], object]] = [
        lambda: space.read_bytes(at - 5, 9),
        lambda: space.copy_out(at - 5, bytes(9)),
        lambda: space.zero_out(at - 5, 9),
        lambda: space.read_bytes(at - 5, 9, ignore_permissions=True),
    ]
    for call in calls:
        with pytest.raises(FaultError) as caught:
            call()
        assert (caught.value.address, caught.value.transferred, caught.value.reason) == (at, 5, FaultReason.GUARD)
    for access in (READ, WRITE, AccessType(4)):
        with pytest.raises(FaultError):
            space.blocks(AddrRangeSeq.of(AddrRange(at, at + 1)), access)
    with pytest.raises(FaultError):
        space.load_uint32(at + PAGE)
    assert space.read_bytes(at + 2 * PAGE, 4) == pattern(8 * PAGE)[4 * PAGE : 4 * PAGE + 4]


def test_the_hook_may_take_a_guard_away() -> None:
    """on_fault hears of it."""
    space = guarded()
    space.on_fault = lambda addr, access: not space.madvise(addr, PAGE, REMOVE)
    assert space.read_bytes(BASE + 3 * PAGE, 2) == bytes(2)
    assert space.read_bytes(BASE + 2 * PAGE - 1, 2)[1:] == b"\0"


def test_what_keeps_a_guard() -> None:
    """MADV_DONTNEED, mprotect, msync and other advice do."""
    space = guarded()
    for advice in (mman.MADV_DONTNEED, mman.MADV_DONTNEED_LOCKED, mman.MADV_FREE, mman.MADV_COLD, mman.MADV_WILLNEED):
        assert space.madvise(BASE, 8 * PAGE, advice) == 0
    assert space.read_bytes(BASE, PAGE) == bytes(PAGE)
    for prot in (0, mman.PROT_READ, RW):
        space.mprotect(BASE + PAGE, 2 * PAGE, prot)
    assert space.msync(BASE, 8 * PAGE, mman.MS_SYNC) == 0
    assert faulting(space) == [2, 3]
    assert space.mincore(BASE + 2 * PAGE, 2 * PAGE) == bytes(2)
    space._check()


def test_populating_and_locking() -> None:
    """MADV_POPULATE_* is EFAULT, mlock ENOMEM but locked; locked memory gets no new guard, but may lose one."""
    space = guarded()
    for advice in (mman.MADV_POPULATE_READ, mman.MADV_POPULATE_WRITE):
        with pytest.raises(OSError) as caught:
            space.madvise(BASE, 8 * PAGE, advice)
        assert caught.value.errno == errno.EFAULT
    with pytest.raises(OSError) as caught:
        space.mlock(BASE, 8 * PAGE)
    assert caught.value.errno == errno.ENOMEM
    with pytest.raises(OSError) as caught:
        space.madvise(BASE, PAGE, INSTALL)
    assert caught.value.errno == errno.EINVAL
    assert space.madvise(BASE + 2 * PAGE, PAGE, REMOVE) == 0
    assert faulting(space) == [3]


@pytest.mark.parametrize("flags", [FIXED, SHARED], ids=["private", "shared"])
def test_removing(flags: int) -> None:
    """What was private is zero, what was shared is as it was; the same twice, and where nothing is guarded."""
    space = guarded(flags)
    expected = pattern(8 * PAGE)[2 * PAGE : 3 * PAGE] if flags == SHARED else bytes(PAGE)
    for _ in range(2):
        assert space.madvise(BASE, 3 * PAGE, REMOVE) == 0
    assert faulting(space) == [3]
    assert space.read_bytes(BASE + 2 * PAGE, PAGE) == expected
    assert space.read_bytes(BASE, 2 * PAGE) == pattern(2 * PAGE)
    for _ in range(2):
        space.madvise(BASE, 8 * PAGE, INSTALL)
    assert faulting(space) == list(range(8))
    space.madvise(BASE, 8 * PAGE, REMOVE)
    for i in (4, 2, 3, 5):
        space.madvise(BASE + i * PAGE, PAGE, INSTALL)
    assert (faulting(space), len(space._map.tables.guards)) == ([2, 3, 4, 5], 1)
    space._check()


def test_files() -> None:
    """A private page of a file shows the file again."""
    fd = os.memfd_create("file") if hasattr(os, "memfd_create") else pytest.skip("no memory files")
    os.write(fd, pattern(2 * PAGE))
    space = AddressSpace()
    host = space.mmap(0, 2 * PAGE, RW, mman.MAP_PRIVATE, fd)
    os.close(fd)
    mapped = space.map_object(BASE, 2 * PAGE, RW, FIXED, GrowingObject(pattern(2 * PAGE), 2 * PAGE))
    for at in (host, mapped):
        space.copy_out(at, bytes(2 * PAGE))
        space.madvise(at, PAGE, INSTALL)
        assert faulting(space, at, 2) == [0]
        space.madvise(at, PAGE, REMOVE)
        assert space.read_bytes(at, 2 * PAGE) == pattern(PAGE) + bytes(PAGE)
    space._check()


def test_moving() -> None:
    """mremap takes guards along, and leaves none behind; of a second mapping of shared memory none are guarded."""
    space = guarded()
    to = BASE + 100 * PAGE
    space.mremap(BASE, 8 * PAGE, 10 * PAGE, MOVE, to)
    assert faulting(space, to, 10) == [2, 3]
    space.mremap(to, 10 * PAGE, 10 * PAGE, MOVE | mman.MREMAP_DONTUNMAP, BASE)
    assert (faulting(space), faulting(space, to, 10)) == ([2, 3], [])
    space.mremap(BASE, 10 * PAGE, 3 * PAGE)
    assert faulting(space, BASE, 3) == [2]
    space._check()
    space = guarded(SHARED)
    twin = space.mremap(BASE, 0, 8 * PAGE, mman.MREMAP_MAYMOVE)
    assert (faulting(space), faulting(space, twin)) == ([2, 3], [])
    space._check()


def test_unmapping() -> None:
    """What is mapped anew is not guarded, nor is what a failed call left alone."""
    space = guarded()
    space.munmap(BASE + 2 * PAGE, PAGE)
    space.mmap(BASE + 2 * PAGE, PAGE, RW, FIXED)
    assert faulting(space) == [3]
    space.mmap(BASE + 3 * PAGE, PAGE, RW, FIXED)
    assert faulting(space) == []
    with pytest.raises(OSError) as caught:
        space.madvise(BASE + 7 * PAGE, 2 * PAGE, INSTALL)
    assert caught.value.errno == errno.ENOMEM
    assert faulting(space) == [7]
    space.close()


def test_host_runs_and_listeners() -> None:
    """An emulator is told that the memory is another, and finds none behind a guard."""
    space = guarded()
    told: list[tuple[int, int, str]] = []
    space.on_change = lambda start, end, kind: told.append((start - BASE, end - BASE, kind))
    parts = [(run.start - BASE, run.end - BASE) for run in space.host_runs(BASE, BASE + 8 * PAGE)]
    assert parts == [(0, 2 * PAGE), (4 * PAGE, 8 * PAGE)]
    space.madvise(BASE, 3 * PAGE, REMOVE)
    space.madvise(BASE, PAGE, INSTALL)
    assert told == [(2 * PAGE, 3 * PAGE, "memory"), (0, PAGE, "memory")]


def test_untouched_memory_ends_at_a_guard() -> None:
    """Memory that is placed later, on both sides, does not reach over a guard."""
    space = AddressSpace()
    space.mmap(BASE, 64 * PAGE, RW, FIXED)
    space.madvise(BASE + 8 * PAGE, PAGE, INSTALL)
    for at in (BASE + 20 * PAGE, BASE):
        space.copy_out(at, b"x")
        space._check()
    assert faulting(space, BASE, 64) == [8]


def test_collapse() -> None:
    """MADV_COLLAPSE is 0 for huge pages that were touched and lie in one anonymous mapping, else EINVAL."""
    space = AddressSpace()
    space.mmap(HUGE, 4 * HUGE, RW, FIXED)
    cases = [(HUGE, 2 * HUGE, 22), (HUGE, HUGE, 0), (HUGE, PAGE, 0), (HUGE + PAGE, PAGE, 22), (HUGE, 0, 0)]
    assert _collapse(space, HUGE, HUGE) == _collapse(space, HUGE, PAGE) == errno.EINVAL
    space.copy_out(HUGE + 5, b"x")
    assert [_collapse(space, addr, length) for addr, length, _ in cases] == [expected for *_, expected in cases]
    assert _collapse(space, HUGE, 5 * HUGE) == errno.EINVAL
    assert space.read_bytes(HUGE + 5, 1) == b"x"
    space.mmap(1 << 32, 2 * PAGE, RW, FIXED)
    space.copy_out(1 << 32, b"x")
    assert _collapse(space, 1 << 32, PAGE) == errno.EINVAL
    space.map_object(1 << 33, HUGE, RW, FIXED, GrowingObject(b"x" * HUGE, HUGE))
    space.copy_out(1 << 33, b"y")
    assert _collapse(space, 1 << 33, HUGE) == errno.EINVAL


def _collapse(space: AddressSpace, addr: int, length: int) -> int:
    try:
        return space.madvise(addr, length, mman.MADV_COLLAPSE)
    except OSError as exc:
        return exc.errno or 0
