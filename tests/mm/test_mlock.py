"""mlock, munlock, mlockall and MAP_LOCKED: limits, errnos, and what locked memory refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW, GrowingObject, pattern
from hostarch import ARM64, PPC64, Arch, mman
from map_rows import rows
from usermem import AddressSpace, FaultError

LOCKED = FIXED | mman.MAP_LOCKED
ANYWHERE = FIXED & ~mman.MAP_FIXED
REFUSED = [mman.MADV_DONTNEED, mman.MADV_FREE, mman.MADV_COLD, mman.MADV_PAGEOUT, mman.MADV_GUARD_INSTALL]
BOTH = mman.MCL_CURRENT | mman.MCL_FUTURE


def code(call: Callable[[], object]) -> str:
    """The name of the errno that a call raises."""
    with pytest.raises(OSError) as caught:
        call()
    return errno.errorcode[caught.value.errno or 0]


def space_of(pages: int = 8, flags: int = FIXED, limit: int | None = 8 * PAGE, arch: Arch = ARM64) -> AddressSpace:
    """A space with some pages at BASE, which may lock so many bytes."""
    space = AddressSpace(arch, memlock_limit=limit)
    space.mmap(BASE, pages * PAGE, RW, flags)
    return space


def locked(space: AddressSpace) -> list[int]:
    """Which of the first pages from BASE on are locked."""
    return [i for vma in space.mappings() if vma.mlock_mode for i in _pages(vma.start, vma.end)]


def _pages(start: int, end: int) -> range:
    return range((start - BASE) // PAGE, (end - BASE) // PAGE)


@pytest.mark.parametrize("lock", ["MAP_LOCKED", "mlock", "on fault", "mlockall", "later"])
def test_what_locked_memory_refuses(lock: str) -> None:
    """Advice that drops pages is EINVAL, MS_INVALIDATE EBUSY, however it was locked, and no byte changes."""
    space = AddressSpace()
    if lock == "later":
        space.mlockall(mman.MCL_FUTURE)
    space.mmap(BASE, PAGE, RW, LOCKED if lock == "MAP_LOCKED" else FIXED)
    space.copy_out(BASE, b"secret")
    if lock in ("mlock", "on fault"):
        space.mlock(BASE, PAGE, mman.MLOCK_ONFAULT if lock == "on fault" else 0)
    if lock == "mlockall":
        space.mlockall(mman.MCL_CURRENT)
    for advice in REFUSED:
        assert code(lambda a=advice: space.madvise(BASE, PAGE, a)) == "EINVAL"  # type: ignore[misc]
    assert code(lambda: space.msync(BASE, PAGE, mman.MS_INVALIDATE)) == "EBUSY"
    assert space.msync(BASE, PAGE, mman.MS_SYNC) == 0
    assert space.read_bytes(BASE, 6) == b"secret"
    assert space.madvise(BASE, PAGE, mman.MADV_DONTNEED_LOCKED) == 0
    assert space.read_bytes(BASE, 6) == bytes(6)
    space.munlockall()
    assert [space.madvise(BASE, PAGE, advice) for advice in REFUSED] == [0] * 5


def test_shared_locked_memory_keeps_its_bytes() -> None:
    """MADV_REMOVE of locked memory is EINVAL too."""
    space = space_of(1, mman.MAP_SHARED | LOCKED & ~mman.MAP_PRIVATE)
    assert code(lambda: space.madvise(BASE, PAGE, mman.MADV_REMOVE)) == "EINVAL"


def test_a_range_is_locked() -> None:
    """Mappings are split and merged by it, an address in a page counts as the page, and a hole stops it: ENOMEM."""
    space = space_of()
    assert space.mlock(BASE + 2 * PAGE + 5, PAGE) == 0
    assert (locked(space), len(space.mappings())) == ([2, 3], 3)
    assert space.munlock(BASE + 2 * PAGE, 1) == 0
    assert locked(space) == [3]
    assert code(lambda: space.mlock(BASE + 6 * PAGE, 3 * PAGE)) == "ENOMEM"
    assert locked(space) == [3, 6, 7]
    assert code(lambda: space.munlock(BASE + 6 * PAGE, 3 * PAGE)) == "ENOMEM"
    assert code(lambda: space.mlock(BASE - PAGE, 2 * PAGE)) == "ENOMEM"
    assert space.mlock(BASE - PAGE, 0) == space.munlock(BASE, 8 * PAGE) == space.munlockall() == 0
    assert rows(space, BASE) == [(0, 8, "rw-p")]
    space._check()


def test_pages_are_touched() -> None:
    """mlock and MAP_LOCKED bring pages into memory, MLOCK_ONFAULT does not; a page that cannot be had is ENOMEM."""
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, LOCKED)
    assert space.mincore(BASE, PAGE) == b"\1"
    far = BASE + (1 << 30)
    space.mmap(far, 2 * PAGE, RW, FIXED)
    space.mlock(far, 2 * PAGE, mman.MLOCK_ONFAULT)
    assert space.mincore(far, 2 * PAGE) == bytes(2)
    space.mlock(far, 2 * PAGE)
    assert space.mincore(far, 2 * PAGE) == b"\1\1"
    space.mprotect(far + PAGE, PAGE, 0)
    assert code(lambda: space.mlock(far, 2 * PAGE)) == "ENOMEM"
    space.map_object(far, 2 * PAGE, RW, FIXED, GrowingObject(pattern(PAGE), PAGE))
    assert space.mlock(far, PAGE) == 0
    assert code(lambda: space.mlock(far, 2 * PAGE)) == "ENOMEM"
    assert sum(vma.end - vma.start for vma in space.mappings() if vma.mlock_mode) == 3 * PAGE


def test_the_limit() -> None:
    """RLIMIT_MEMLOCK: ENOMEM of mlock and mlockall, EAGAIN of mmap and mremap; what is locked again counts once."""
    space = space_of(limit=4 * PAGE)
    assert code(lambda: space.mlock(BASE, 5 * PAGE)) == "ENOMEM"
    assert locked(space) == []
    assert space.mlock(BASE, 3 * PAGE) == space.mlock(BASE + PAGE, 3 * PAGE) == 0
    for call in (
        lambda: space.mmap(0, PAGE, RW, ANYWHERE | mman.MAP_LOCKED),
        lambda: space.mmap(BASE, PAGE, RW, LOCKED),  # what it replaces does not count
        lambda: space.mremap(BASE, PAGE, 2 * PAGE, mman.MREMAP_MAYMOVE),
    ):
        assert code(call) == "EAGAIN"
    assert code(lambda: space.mlockall(mman.MCL_CURRENT)) == "ENOMEM"
    assert space.munlock(BASE, PAGE) == space.mlock(BASE + 7 * PAGE, PAGE) == 0
    space.munmap(BASE, 4 * PAGE)
    assert space.mmap(BASE, 3 * PAGE, RW, LOCKED) == BASE
    assert locked(space) == [0, 1, 2, 7]
    space.limits.memlock_limit = None
    assert space.mlockall(mman.MCL_CURRENT) == 0
    space._check()


def test_locking_is_forbidden() -> None:
    """A limit of 0 is EPERM; to unlock is not forbidden."""
    space = space_of(limit=0)
    for call in (
        lambda: space.mlock(BASE, PAGE),
        lambda: space.mlockall(mman.MCL_FUTURE),
        lambda: space.mmap(0, PAGE, RW, ANYWHERE | mman.MAP_LOCKED),
    ):
        assert code(call) == "EPERM"
    assert space.munlock(BASE, PAGE) == space.munlockall() == 0


def test_locking_what_comes() -> None:
    """MCL_FUTURE: mmap, brk and what grows is locked, within the limit, until munlockall."""
    space = AddressSpace(memlock_limit=6 * PAGE)
    space.set_brk(BASE)
    space.mlockall(mman.MCL_FUTURE)
    assert space.brk(BASE + 2 * PAGE) == BASE + 2 * PAGE
    assert space.brk(BASE + 7 * PAGE) == BASE + 2 * PAGE
    assert space.mincore(BASE, 2 * PAGE) == b"\1\1"
    stack = BASE + 1000 * PAGE
    space.mmap(stack, PAGE, RW, FIXED | mman.MAP_GROWSDOWN)
    assert space.read_bytes(stack - PAGE, 1) == b"\0"
    assert code(lambda: space.mmap(0, 3 * PAGE, RW, ANYWHERE)) == "EAGAIN"
    with pytest.raises(FaultError):
        space.read_bytes(stack - 4 * PAGE, 1)
    assert space.brk(BASE + 4 * PAGE) == BASE + 4 * PAGE
    space.munlockall()
    assert space.mmap(0, 100 * PAGE, RW, ANYWHERE) and locked(space) == []
    space._check()


def test_moves_and_merges() -> None:
    """A lock moves with its mapping; what MREMAP_DONTUNMAP leaves behind is not locked. Neighbours do not merge."""
    space = space_of(2, LOCKED)
    space.mmap(BASE + 2 * PAGE, PAGE, RW, FIXED)
    assert len(space.mappings()) == 2
    flags = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED
    assert space.mremap(BASE, 2 * PAGE, 3 * PAGE, flags, BASE + 10 * PAGE)
    assert locked(space) == [10, 11, 12]
    assert space.mremap(BASE + 10 * PAGE, PAGE, PAGE, flags | mman.MREMAP_DONTUNMAP, BASE + 20 * PAGE)
    assert locked(space) == [20]
    space._check()


@pytest.mark.parametrize("flags", [0, mman.MCL_ONFAULT, 8, mman.MCL_CURRENT | 16, -1])
def test_mlockall_flags(flags: int) -> None:
    """Nothing to do, or unknown flags: EINVAL."""
    space = space_of()
    assert code(lambda: space.mlockall(flags)) == "EINVAL"
    assert locked(space) == []


def test_arguments() -> None:
    """EINVAL for flags of mlock2 and for what wraps; tags are ignored; PowerPC has flags of its own."""
    space = space_of(limit=None)
    assert code(lambda: space.mlock(BASE, PAGE, 2)) == "EINVAL"
    assert code(lambda: space.mlock(BASE, (1 << 64) - 2 * PAGE)) == "EINVAL"
    assert code(lambda: space.munlock(BASE, (1 << 64) - 2 * PAGE)) == "EINVAL"
    assert space.mlock(BASE, (1 << 64) - 1) == 0  # in whole pages it is nothing
    assert space.mlock(BASE | 7 << 56, PAGE) == 0
    assert locked(space) == [0]
    calls: list[Callable[[], object]] = [
        lambda: space.mlock(1.5, PAGE),  # type: ignore[arg-type]
        lambda: space.munlock(BASE, "1"),  # type: ignore[arg-type]
        lambda: space.mlockall(None),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    power = AddressSpace(PPC64)
    assert power.mlockall(0x6000) == 0
    assert code(lambda: power.mlockall(BOTH)) == "EINVAL"
    space.close()
    calls = [lambda: space.mlock(BASE, 1), lambda: space.munlock(BASE, 1), space.munlockall]
    for closed in calls:
        with pytest.raises(ValueError, match="closed"):
            closed()


@pytest.mark.parametrize("how", ["MAP_LOCKED", "mlock", "MAP_POPULATE", "neither"])
def test_locked_private_pages_of_a_file_are_copied_at_once(how: str) -> None:
    """What may be written is the guest's own from then on, when the file shrinks too; else it is the file's."""
    memory = os.memfd_create("file")
    os.write(memory, bytes(range(1, 101)))
    extra = {"MAP_LOCKED": mman.MAP_LOCKED, "MAP_POPULATE": mman.MAP_POPULATE}.get(how, 0)
    with AddressSpace() as space:
        space.mmap(BASE, PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED | extra, memory)
        if how == "mlock":
            space.mlock(BASE, PAGE)
        os.ftruncate(memory, 1)
        os.close(memory)
        assert space.read_bytes(BASE, 3) == (b"\1\0\0" if how == "neither" else b"\1\2\3")
