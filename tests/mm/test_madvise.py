"""madvise, msync and mincore: effects and errnos, each as documented; and stacks that grow by access."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from edge_layouts import BASE, FIXED, PAGE, RW, GrowingObject, pattern
from hostarch import AMD64, ARM64, READ, mman
from map_rows import rows
from usermem import AddressSpace, FaultError
from usermem.mm.backing.shared_memory import SharedMemory

R, W = mman.PROT_READ, mman.PROT_WRITE
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED
GROWING = FIXED | mman.MAP_GROWSDOWN
FAR = BASE + 5000 * PAGE
TOP = AMD64.max_addr
DROPPING = [mman.MADV_DONTNEED, mman.MADV_DONTNEED_LOCKED]
HINTS = [0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]


def code(call: Callable[[], object]) -> str:
    """The name of the errno that a call raises."""
    with pytest.raises(OSError) as caught:
        call()
    return errno.errorcode[caught.value.errno or 0]


def filled(flags: int = FIXED) -> AddressSpace:
    """A space with four pages at BASE that hold the pattern, and two behind a hole of one."""
    space = AddressSpace()
    space.mmap(BASE, 4 * PAGE, RW, flags)
    space.copy_out(BASE, pattern(4 * PAGE))
    space.mmap(BASE + 5 * PAGE, 2 * PAGE, RW, FIXED)
    space.copy_out(BASE + 5 * PAGE, pattern(2 * PAGE))
    return space


@pytest.mark.parametrize("advice", DROPPING)
def test_private_memory_is_dropped(advice: int) -> None:
    """It is zero, whatever its rights, and the pages around are not; what was cached of it is not seen any more."""
    space = filled()
    assert space.read_bytes(BASE + PAGE, 1) == pattern(PAGE + 1)[-1:]
    space.mprotect(BASE + PAGE, PAGE, 0)
    assert space.madvise(BASE + PAGE, PAGE + 1, advice) == 0
    space.mprotect(BASE + PAGE, PAGE, R)
    expected = pattern(4 * PAGE)
    assert space.read_bytes(BASE, 4 * PAGE) == expected[:PAGE] + bytes(2 * PAGE) + expected[3 * PAGE :]
    assert space.copy_out(BASE + 2 * PAGE, b"new") == 3
    assert space.read_bytes(BASE + 2 * PAGE, 4) == b"new\0"
    assert space.madvise(BASE + 2 * PAGE, PAGE, advice) == 0
    assert space.read_bytes(BASE + 2 * PAGE, 4) == bytes(4)
    space._check()


def test_what_is_shared_is_not_dropped() -> None:
    """Shared memory keeps its bytes; a private object's pages are read again."""
    space = filled(SHARED)
    assert space.madvise(BASE, 4 * PAGE, mman.MADV_DONTNEED) == 0
    assert space.read_bytes(BASE, 4 * PAGE) == pattern(4 * PAGE)
    space.map_object(FAR, PAGE, RW, FIXED, GrowingObject(pattern(PAGE), PAGE))
    space.copy_out(FAR, b"written")
    assert space.madvise(FAR, PAGE, mman.MADV_DONTNEED) == 0
    assert space.read_bytes(FAR, PAGE) == pattern(PAGE)


@pytest.mark.parametrize("advice", [*HINTS, mman.MADV_FREE])
def test_hints_change_no_byte(advice: int) -> None:
    """What is a hint is taken, and memory and mappings are as before; beside a hole it is ENOMEM after all was done."""
    space = filled()
    before = space.maps()
    assert space.madvise(BASE, 4 * PAGE, advice) == 0
    assert code(lambda: space.madvise(BASE, 9 * PAGE, advice)) == "ENOMEM"
    assert (space.read_bytes(BASE, 4 * PAGE), space.maps()) == (pattern(4 * PAGE), before)


def test_holes_are_passed() -> None:
    """ENOMEM for a page that is not mapped comes after the pages behind it too were dropped."""
    for addr, length in ((BASE, 7 * PAGE), (BASE - PAGE, 9 * PAGE), (BASE, TOP - BASE)):
        space = filled()
        assert code(lambda a=addr, n=length, s=space: s.madvise(a, n, mman.MADV_DONTNEED)) == "ENOMEM"  # type: ignore[misc]
        assert space.read_bytes(BASE, 4 * PAGE) == bytes(4 * PAGE)
        assert space.read_bytes(BASE + 5 * PAGE, 2 * PAGE) == bytes(2 * PAGE)


ERRORS: list[tuple[str, str, tuple[int, int, int]]] = [
    ("unknown advice", "EINVAL", (BASE, PAGE, 5)),
    ("unknown advice for nothing", "EINVAL", (BASE, 0, 99)),
    ("negative advice", "EINVAL", (BASE, PAGE, -1)),
    ("not at a page", "EINVAL", (BASE + 1, PAGE, 0)),
    ("what wraps to nothing", "EINVAL", (BASE, (1 << 64) - 1, 0)),
    ("what wraps", "EINVAL", (BASE, (1 << 64) - PAGE, 0)),
    ("less than nothing", "EINVAL", (BASE, -PAGE, 0)),
    ("MADV_FREE of shared memory", "EINVAL", (FAR, PAGE, mman.MADV_FREE)),
    ("MADV_WIPEONFORK of shared memory", "EINVAL", (FAR, PAGE, mman.MADV_WIPEONFORK)),
    ("MADV_REMOVE of private memory", "EINVAL", (BASE, PAGE, mman.MADV_REMOVE)),
    ("MADV_REMOVE of an object, private", "EACCES", (FAR + PAGE, PAGE, mman.MADV_REMOVE)),
    ("MADV_REMOVE of what may not be written", "EACCES", (FAR + 2 * PAGE, PAGE, mman.MADV_REMOVE)),
    ("MADV_REMOVE of an object", "ENOTSUP", (FAR + 3 * PAGE, PAGE, mman.MADV_REMOVE)),
    ("what is not mapped", "ENOMEM", (BASE - PAGE, PAGE, 0)),
    ("populating what is not mapped", "ENOMEM", (BASE + 3 * PAGE, 2 * PAGE, mman.MADV_POPULATE_READ)),
    ("populating what may not be written", "EINVAL", (FAR + 2 * PAGE, PAGE, mman.MADV_POPULATE_WRITE)),
    ("populating what may only be written", "EINVAL", (FAR + 4 * PAGE, PAGE, mman.MADV_POPULATE_READ)),
    ("populating beyond an object", "EFAULT", (FAR + 5 * PAGE, 2 * PAGE, mman.MADV_POPULATE_READ)),
]


@pytest.mark.parametrize(("expected", "args"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS])
def test_madvise_errors(expected: str, args: tuple[int, int, int]) -> None:
    """Each errno."""
    space = filled()
    file = GrowingObject(pattern(PAGE), PAGE)
    shared = mman.MAP_SHARED | mman.MAP_FIXED
    space.mmap(FAR, PAGE, RW, SHARED)
    space.map_object(FAR + PAGE, PAGE, RW, FIXED, file)
    space.map_object(FAR + 2 * PAGE, PAGE, R, shared, file, 0, READ)
    space.map_object(FAR + 3 * PAGE, PAGE, RW, shared, file)
    space.mmap(FAR + 4 * PAGE, PAGE, W, FIXED)
    space.map_object(FAR + 5 * PAGE, 2 * PAGE, R, FIXED, file)
    assert code(lambda: space.madvise(*args)) == expected
    assert space.read_bytes(BASE, 4 * PAGE) == pattern(4 * PAGE)


def test_nothing_is_advised() -> None:
    """A length of 0 is nothing, wherever."""
    space = AddressSpace()
    assert space.madvise(BASE, 0, mman.MADV_REMOVE) == space.madvise(1 << 63, 0, mman.MADV_POPULATE_READ) == 0
    assert space.msync(BASE, 0, mman.MS_SYNC) == 0
    assert space.mincore(BASE, 0) == b""


def test_holes_in_shared_memory() -> None:
    """MADV_REMOVE makes the part zero for all mappings of it, read-only or not, and what was cached is zero too."""
    space = filled(SHARED)
    twin = space.mremap(BASE, 0, 4 * PAGE, mman.MREMAP_MAYMOVE)
    space.mprotect(BASE, 4 * PAGE, R)
    assert space.read_bytes(twin + PAGE, 1) != b"\0"
    assert space.madvise(BASE + PAGE, 2 * PAGE, mman.MADV_REMOVE) == 0
    expected = pattern(4 * PAGE)
    expected = expected[:PAGE] + bytes(2 * PAGE) + expected[3 * PAGE :]
    assert space.read_bytes(twin, 4 * PAGE) == space.read_bytes(BASE, 4 * PAGE) == expected
    # A part of a part: the offset counts.
    space.munmap(twin, 3 * PAGE)
    at = space.mremap(twin + 3 * PAGE, PAGE, 2 * PAGE, mman.MREMAP_MAYMOVE)
    assert space.madvise(at, 2 * PAGE, mman.MADV_REMOVE) == 0
    assert space.read_bytes(BASE, 4 * PAGE) == expected[:PAGE] + bytes(3 * PAGE)


@pytest.mark.parametrize("file", [True, False], ids=["memory file", "no memory file"])
@pytest.mark.parametrize(("start", "end"), [(0, mmap.PAGESIZE), (5, 70), (mmap.PAGESIZE - 1, 2 * mmap.PAGESIZE)])
def test_shared_memory_is_zeroed(start: int, end: int, file: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole pages and parts of them, and nothing beyond its end, which is that of its last page of 64 KiB."""
    if not file:
        monkeypatch.setattr("usermem.mm.backing.shared_memory.memory_file", lambda: None)
    size = 1 << 16
    shared, other = SharedMemory(size), SharedMemory(size)
    first, run = shared.run(0, 0, size)
    view = run.view()
    assert (first, len(view)) == (0, size)
    view[:] = b"\xff" * size
    _, neighbour = other.run(0, 0, size)
    neighbour.view()[:] = b"\xee" * size
    shared.punch(start, end)
    assert view == b"\xff" * start + bytes(end - start) + b"\xff" * (size - end)
    shared.punch(size, size + 5)
    shared.punch(size - 1, size + mmap.PAGESIZE)
    assert view[size - 2 :].tobytes() == b"\xff\0"
    assert neighbour.view() == b"\xee" * size


def test_populating() -> None:
    """MADV_POPULATE_READ and _WRITE place what may be read or written, up to where it may not."""
    for advice in (mman.MADV_POPULATE_READ, mman.MADV_POPULATE_WRITE):
        space = AddressSpace()
        space.mmap(FAR, 2 * PAGE, RW, FIXED)
        assert space.madvise(FAR, 2 * PAGE, advice) == 0
        assert space.mincore(FAR, 2 * PAGE) == b"\1\1"
    space = AddressSpace()
    space.map_object(FAR, PAGE, R, FIXED, GrowingObject(pattern(PAGE), PAGE))
    space.mmap(FAR + PAGE, PAGE, 0, FIXED)
    assert code(lambda: space.madvise(FAR, 3 * PAGE, mman.MADV_POPULATE_READ)) == "EINVAL"
    assert space.mincore(FAR, PAGE) == b"\1"


CALLS: list[tuple[str, str, Callable[[AddressSpace], object]]] = [
    ("msync: unknown flag", "EINVAL", lambda s: s.msync(BASE, PAGE, 8)),
    ("msync: both ways", "EINVAL", lambda s: s.msync(BASE, PAGE, mman.MS_ASYNC | mman.MS_SYNC)),
    ("msync: not at a page", "EINVAL", lambda s: s.msync(BASE + 1, PAGE, 0)),
    ("msync: a hole", "ENOMEM", lambda s: s.msync(BASE, 5 * PAGE, mman.MS_SYNC)),
    ("msync: a hole in the middle", "ENOMEM", lambda s: s.msync(BASE, 7 * PAGE, 0)),
    ("msync: wraps", "ENOMEM", lambda s: s.msync(BASE, (1 << 64) - PAGE, 0)),
    ("mincore: not at a page", "EINVAL", lambda s: s.mincore(BASE + 1, PAGE)),
    ("mincore: not at a page beyond the top", "EINVAL", lambda s: s.mincore(TOP + 1, PAGE)),
    ("mincore: a hole", "ENOMEM", lambda s: s.mincore(BASE, 5 * PAGE)),
    ("mincore: over the top", "ENOMEM", lambda s: s.mincore(BASE, TOP)),
    ("mincore: nothing beyond the top", "ENOMEM", lambda s: s.mincore(1 << 63, 0)),
    ("mincore: wraps", "ENOMEM", lambda s: s.mincore(BASE, (1 << 64) - 1)),
    ("mincore: less than nothing", "ENOMEM", lambda s: s.mincore(BASE, -1)),
]


@pytest.mark.parametrize(("expected", "call"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_msync_and_mincore_errors(expected: str, call: Callable[[AddressSpace], object]) -> None:
    """Each errno."""
    space = filled()
    assert code(lambda: call(space)) == expected


def test_msync_passes_holes() -> None:
    """What is mapped is synced, and then it is ENOMEM; but MS_ASYNC alone goes up to the hole."""
    for flags, expected in ((mman.MS_SYNC, [1, 1]), (0, [1, 1]), (mman.MS_ASYNC, [1, 0])):
        space = AddressSpace()
        written: list[int] = [0, 0]

        class Noting(GrowingObject):
            def write_at(self, offset: int, src: memoryview, written: list[int] = written) -> None:
                written[offset // PAGE] += 1

        noting = Noting(b"", 2 * PAGE)
        for i in range(2):
            space.map_object(FAR + 2 * i * PAGE, PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, noting, i * PAGE)
            space.copy_out(FAR + 2 * i * PAGE, b"new")
        assert code(lambda s=space, f=flags: s.msync(FAR, 3 * PAGE, f)) == "ENOMEM"  # type: ignore[misc]
        assert written == expected


def test_msync_and_mincore() -> None:
    """msync of what is mapped is 0, and of what wraps to nothing; mincore has a byte for each page begun."""
    space = filled()
    for flags in (0, mman.MS_ASYNC, mman.MS_SYNC | mman.MS_INVALIDATE):
        assert space.msync(BASE, 4 * PAGE, flags) == 0
    assert space.msync(BASE, (1 << 64) - 1, 0) == 0
    assert space.mincore(BASE, 3 * PAGE + 1) == b"\1" * 4


def test_arguments_and_tags() -> None:
    """TypeErrors for what is no int, ValueError of a closed space, and tags where a machine ignores them."""
    space = filled()
    for call in (space.madvise, space.msync):
        for args in ((1.0, PAGE, 0), (BASE, "1", 0), (BASE, PAGE, None)):
            with pytest.raises(TypeError):
                call(*args)
    with pytest.raises(TypeError):
        space.mincore(BASE, 1.5)  # type: ignore[arg-type]
    space.close()
    for closed in (lambda: space.madvise(BASE, 1, 0), lambda: space.msync(BASE, 1, 0), lambda: space.mincore(BASE, 1)):
        with pytest.raises(ValueError, match="closed"):
            closed()
    arm = AddressSpace(ARM64)
    arm.mmap(BASE, PAGE, RW, FIXED)
    assert arm.madvise(BASE | 7 << 56, PAGE, mman.MADV_DONTNEED) == arm.msync(BASE | 7 << 56, PAGE, 0) == 0


# Stacks: see MemoryMap.


def stack(below: int = 0, prot: int = RW, flags: int = FIXED, **limits: Any) -> AddressSpace:
    """A stack of two pages at FAR, and a mapping that ends ``below`` pages below it, if any."""
    space = AddressSpace(**limits)
    space.mmap(FAR, 2 * PAGE, RW, GROWING)
    if below:
        space.mmap(FAR - (below + 1) * PAGE, PAGE, prot, flags)
    return space


def test_a_stack_grows() -> None:
    """By any access below it, to the page that was accessed, with zeros and the rights it has."""
    space = stack()
    assert space.read_bytes(FAR - 1, 2) == bytes(2)
    assert rows(space, FAR) == [(-1, 2, "rw-p")]
    assert space.copy_out(FAR - 9 * PAGE - 3, b"below") == 5
    assert rows(space, FAR) == [(-10, 2, "rw-p")]
    assert space.read_bytes(FAR - 9 * PAGE - 4, 7) == b"\0below\0"
    space.mprotect(FAR - 10 * PAGE, PAGE, R)
    with pytest.raises(FaultError, match="permission"):
        space.copy_out(FAR - 11 * PAGE, b"x")
    assert rows(space, FAR) == [(-11, -9, "r--p"), (-9, 2, "rw-p")]
    space._check()


@pytest.mark.parametrize(
    ("space", "pages"),
    [
        (lambda: stack(stack_limit=20 * PAGE), 18),
        (stack, (8 << 20) // PAGE - 2),
        (lambda: stack(300), 300 - 256),
        (lambda: stack(300, R), 300 - 256),
        (lambda: stack(300, 0), 300),
        (lambda: stack(300, RW, GROWING), 300),
        (lambda: stack(address_limit=12 * PAGE), 10),
        (lambda: stack(256), 0),
        (lambda: stack(20), 0),
    ],
    ids=[
        "limit",
        "default limit",
        "guard",
        "guard of r",
        "no access",
        "stack",
        "address limit",
        "at the guard",
        "near",
    ],
)
def test_how_far_a_stack_grows(space: Callable[[], AddressSpace], pages: int) -> None:
    """To the limit of its length or of bytes; not near what can be accessed and is no stack. One page more faults."""
    there = space()
    before = there.maps()
    below = FAR - (pages + 1) * PAGE
    if below >= FAR - 300 * PAGE or pages > 300:
        with pytest.raises(FaultError, match="unmapped"):
            there.read_bytes(below + PAGE - 1, 1)
    assert there.maps() == before
    if pages:
        assert there.read_bytes(below + PAGE, 1) == b"\0"
        assert rows(there, FAR)[-1] in [(-pages, 2, "rw-p"), (-pages - 1, 2, "rw-p")]  # with what is below


def test_a_stack_keeps_off_the_first_pages() -> None:
    """Below vm.mmap_min_addr nothing is mapped by growing either."""
    space = AddressSpace(evolve(AMD64, min_addr=16 * PAGE))
    space.mmap(17 * PAGE, PAGE, RW, GROWING)
    with pytest.raises(FaultError):
        space.read_bytes(16 * PAGE - 1, 1)
    assert space.read_bytes(16 * PAGE, 1) == b"\0"


def test_the_guard_below_a_stack() -> None:
    """What asks for no place, or hints at one, is kept off a stack by 256 pages; MAP_FIXED is not."""
    space = stack()
    anon = FIXED & ~mman.MAP_FIXED
    hint = FAR - 257 * PAGE
    assert space.mmap(hint + PAGE, PAGE, RW, anon) > FAR
    assert space.mmap(hint, PAGE, RW, anon) == hint
    assert space.mmap(FAR - PAGE, PAGE, RW, FIXED) == FAR - PAGE
    space = AddressSpace()
    top = space.mmap(0, 600 * PAGE, R, anon)
    space.mmap(top + 500 * PAGE, 100 * PAGE, RW, GROWING)
    space.munmap(top, 500 * PAGE)
    assert space.mmap(0, PAGE, RW, anon) == top + (500 - 257) * PAGE
    assert space.mmap(0, PAGE, RW, anon) == top + (500 - 258) * PAGE
    space.munmap(top + 500 * PAGE, 100 * PAGE)
    assert space.mmap(0, PAGE, RW, anon) == top + 599 * PAGE
