"""mremap and brk: what moves where with which bytes, each documented errno, and the limits of an address space."""

from __future__ import annotations

import errno
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from campaign import times
from edge_layouts import ANON, BASE, FIXED, PAGE, RW, GrowingObject, pattern
from hostarch import AMD64, ARM64, mman
from map_rows import rows
from usermem import AddressSpace, FaultError
from usermem.mm.faulting import can_map

MAYMOVE, MOVE_TO, DONTUNMAP = mman.MREMAP_MAYMOVE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, mman.MREMAP_DONTUNMAP
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED
R = mman.PROT_READ
FAR = BASE + 100 * PAGE
TOP = AMD64.max_addr


def filled(pages: int = 4) -> AddressSpace:
    """A space with a mapping at BASE that holds the pattern."""
    space = AddressSpace()
    space.mmap(BASE, pages * PAGE, RW, FIXED)
    space.copy_out(BASE, pattern(pages * PAGE))
    return space


def bytes_of(space: AddressSpace, page: int, base: int = BASE) -> bytes:
    """What a page holds."""
    return space.read_bytes(base + page * PAGE, PAGE)


def old(page: int) -> bytes:
    """What the page held at first."""
    return pattern(4 * PAGE)[page * PAGE : (page + 1) * PAGE]


def code(call: Callable[[], object]) -> str:
    """The name of the errno that a call raises."""
    with pytest.raises(OSError) as caught:
        call()
    return errno.errorcode[caught.value.errno or 0]


ERRORS: list[tuple[str, str, tuple[int, int, int, int, int]]] = [
    ("an unknown flag", "EINVAL", (BASE, PAGE, PAGE, 8, 0)),
    ("not at a page", "EINVAL", (BASE + 1, PAGE, PAGE, 0, 0)),
    ("to nothing", "EINVAL", (BASE, PAGE, 0, MAYMOVE, 0)),
    ("to more than there is", "EINVAL", (BASE, PAGE, TOP + PAGE, MAYMOVE, 0)),
    ("to what wraps to 0", "EINVAL", (BASE, PAGE, (1 << 64) - 1, MAYMOVE, 0)),
    ("fixed, and may not move", "EINVAL", (BASE, PAGE, PAGE, mman.MREMAP_FIXED, FAR)),
    ("kept, and may not move", "EINVAL", (BASE, PAGE, PAGE, DONTUNMAP, FAR)),
    ("kept and resized", "EINVAL", (BASE, PAGE, 2 * PAGE, MAYMOVE | DONTUNMAP, 0)),
    ("to what is no page", "EINVAL", (BASE, PAGE, PAGE, MOVE_TO, FAR + 1)),
    ("to beyond the top", "EINVAL", (BASE, PAGE, 2 * PAGE, MOVE_TO, TOP - PAGE)),
    ("onto itself", "EINVAL", (BASE, 2 * PAGE, PAGE, MOVE_TO, BASE + PAGE)),
    ("onto itself, kept, as a hint", "EINVAL", (BASE, PAGE, PAGE, MAYMOVE | DONTUNMAP, BASE)),
    ("of no size, private", "EINVAL", (BASE, 0, PAGE, MAYMOVE, 0)),
    ("what reaches beyond the top", "EINVAL", (BASE, TOP, PAGE, 0, 0)),
    ("what is not mapped", "EFAULT", (BASE - PAGE, PAGE, PAGE, 0, 0)),
    ("what is not mapped, fixed", "EFAULT", (BASE - PAGE, 2 * PAGE, 2 * PAGE, MOVE_TO, FAR)),
    ("growing what is not one mapping", "EFAULT", (BASE, 5 * PAGE, 6 * PAGE, MAYMOVE, 0)),
    ("shrinking to what is not one mapping", "EFAULT", (BASE, 8 * PAGE, 5 * PAGE, MOVE_TO, FAR)),
    ("no room", "ENOMEM", (BASE + PAGE, PAGE, 2 * PAGE, 0, 0)),
    ("no room up to the next", "ENOMEM", (BASE, 4 * PAGE, 6 * PAGE, 0, 0)),
]


@pytest.mark.parametrize(("expected", "args"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS])
def test_errors(expected: str, args: tuple[int, int, int, int, int]) -> None:
    """Each errno, and nothing has changed."""
    space = filled()
    space.mmap(BASE + 5 * PAGE, 2 * PAGE, R, FIXED)
    before = space.maps()
    assert code(lambda: space.mremap(*args)) == expected
    assert space.maps() == before
    assert [bytes_of(space, page) for page in range(4)] == [old(page) for page in range(4)]
    space._check()


def test_arguments_are_ints_and_spaces_open() -> None:
    """A TypeError for what is no int; ValueError for a space that was closed."""
    space = filled()
    for args in (
        (1.0, PAGE, PAGE),
        (BASE, "1", PAGE),
        (BASE, PAGE, None),
        (BASE, PAGE, PAGE, b""),
        (BASE, 1, 1, 0, ""),
    ):
        with pytest.raises(TypeError):
            space.mremap(*args)
    with pytest.raises(TypeError):
        space.brk(1.5)  # type: ignore[arg-type]
    space.close()
    for call in (lambda: space.mremap(BASE, 1, 1), lambda: space.brk(0), lambda: space.set_brk(0)):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_growing_in_place() -> None:
    """The bytes stay, zeros follow, and it is one mapping; copies that were cached reach into what is new."""
    space = filled(2)
    assert space.read_bytes(BASE, 1) == pattern(1)
    assert space.mremap(BASE, 2 * PAGE, 5 * PAGE) == BASE
    assert rows(space) == [(0, 5, "rw-p")]
    assert space.read_bytes(BASE, 3 * PAGE) == pattern(2 * PAGE) + bytes(PAGE)
    assert space.copy_out(BASE + 5 * PAGE - 2, b"ab") == 2
    assert space.mremap(BASE + 3 * PAGE, 2 * PAGE, 3 * PAGE) == BASE + 3 * PAGE  # its end, from the middle
    assert rows(space) == [(0, 6, "rw-p")]


def test_shrinking() -> None:
    """What is cut off is gone, over holes and into what follows, and zero when it is back."""
    space = filled()
    space.mmap(BASE + 5 * PAGE, PAGE, R, FIXED)
    assert space.mremap(BASE + PAGE, 3 * PAGE, PAGE) == BASE + PAGE
    assert rows(space) == [(0, 2, "rw-p"), (5, 6, "r--p")]
    assert space.mremap(BASE, 6 * PAGE, 2 * PAGE) == BASE
    assert rows(space) == [(0, 2, "rw-p")]
    space.mremap(BASE, 2 * PAGE, 4 * PAGE)
    assert bytes_of(space, 1) == old(1)
    assert bytes_of(space, 2) == bytes(PAGE)
    assert space.mremap(BASE, 4 * PAGE, 4 * PAGE - 1) == BASE
    assert rows(space) == [(0, 4, "rw-p")]


def test_moving_with_the_bytes() -> None:
    """A part is moved to a place: the bytes go with it, what was there is replaced, and what it left cannot be read."""
    space = filled()
    space.mmap(FAR, 3 * PAGE, R, FIXED)
    assert space.mremap(BASE + PAGE, 2 * PAGE, 2 * PAGE, MOVE_TO, FAR + PAGE) == FAR + PAGE
    assert rows(space) == [(0, 1, "rw-p"), (3, 4, "rw-p"), (100, 101, "r--p"), (101, 103, "rw-p")]
    assert space.read_bytes(FAR + PAGE, 2 * PAGE) == old(1) + old(2)
    with pytest.raises(FaultError):
        space.read_bytes(BASE + PAGE, 1)
    space.mmap(BASE + PAGE, 2 * PAGE, RW, FIXED)
    assert space.read_bytes(BASE, 4 * PAGE) == old(0) + bytes(2 * PAGE) + old(3)
    space._check()


def test_moving_to_grow() -> None:
    """Where it cannot grow it goes elsewhere if it may, with its bytes, rights and zeros behind."""
    space = filled()
    at = space.mremap(BASE, 2 * PAGE, 3 * PAGE, MAYMOVE)
    assert not BASE - 3 * PAGE < at < BASE + 4 * PAGE
    assert space.read_bytes(at, 3 * PAGE) == old(0) + old(1) + bytes(PAGE)
    assert rows(space)[0] == (2, 4, "rw-p")


@pytest.mark.parametrize("size", [1, 3])
def test_moving_and_resizing(size: int) -> None:
    """MREMAP_FIXED with another size cuts the old range, or has zeros behind."""
    space = filled()
    assert space.mremap(BASE + 2 * PAGE, 2 * PAGE, size * PAGE, MOVE_TO, FAR) == FAR
    assert rows(space) == [(0, 2, "rw-p"), (100, 100 + size, "rw-p")]
    assert space.read_bytes(FAR, size * PAGE) == (old(2) + old(3) + bytes(PAGE))[: size * PAGE]


def test_moving_several() -> None:
    """Of one size, several mappings move, with the holes between them; what was at their holes' new places stays."""
    space = filled()
    space.munmap(BASE + PAGE, PAGE)
    space.mprotect(BASE + 3 * PAGE, PAGE, R)
    space.mmap(FAR, 5 * PAGE, mman.PROT_NONE, FIXED)
    assert space.mremap(BASE, 5 * PAGE, 5 * PAGE, MOVE_TO, FAR) == FAR
    assert rows(space, FAR) == [(0, 1, "rw-p"), (1, 2, "---p"), (2, 3, "rw-p"), (3, 4, "r--p"), (4, 5, "---p")]
    assert [bytes_of(space, page, FAR) for page in (0, 2, 3)] == [old(0), old(2), old(3)]


def test_what_is_cut_off_before_a_move_may_be_anything() -> None:
    """Only what is left must be one mapping: the rest is unmapped, over holes and into what follows."""
    space = filled()
    space.mmap(BASE + 5 * PAGE, 3 * PAGE, R, FIXED)
    assert space.mremap(BASE + PAGE, 6 * PAGE, 2 * PAGE, MOVE_TO, FAR) == FAR
    assert rows(space) == [(0, 1, "rw-p"), (7, 8, "r--p"), (100, 102, "rw-p")]
    assert space.read_bytes(FAR, 2 * PAGE) == old(1) + old(2)


def test_what_is_kept_is_empty() -> None:
    """MREMAP_DONTUNMAP moves the bytes and leaves zeros, at a hint or a place."""
    space = filled()
    assert space.mremap(BASE, 2 * PAGE, 2 * PAGE, MAYMOVE | DONTUNMAP, FAR) == FAR
    assert rows(space) == [(0, 4, "rw-p"), (100, 102, "rw-p")]
    assert space.read_bytes(BASE, 4 * PAGE) == bytes(2 * PAGE) + old(2) + old(3)
    assert space.read_bytes(FAR, 2 * PAGE) == old(0) + old(1)
    assert space.mremap(BASE + 2 * PAGE, PAGE, PAGE, MOVE_TO | DONTUNMAP, FAR + PAGE) == FAR + PAGE
    assert bytes_of(space, 1, FAR) == old(2)
    assert bytes_of(space, 2) == bytes(PAGE)
    assert space.copy_out(BASE, b"new") == 3
    assert bytes_of(space, 0, FAR) == old(0)


def test_shared_memory_twice() -> None:
    """With old_size 0 shared memory is mapped again: each sees what the other writes, also when one is unmapped."""
    space = AddressSpace()
    space.mmap(BASE, 3 * PAGE, RW, SHARED)
    twin = space.mremap(BASE + PAGE, 0, 2 * PAGE, MAYMOVE)
    assert space.mremap(BASE, 0, PAGE, MOVE_TO, FAR) == FAR
    space.copy_out(twin + 5, b"from the twin")
    assert space.read_bytes(BASE + PAGE + 5, 13) == b"from the twin"
    space.copy_out(BASE, b"first")
    assert space.read_bytes(FAR, 5) == b"first"
    space.munmap(BASE, 3 * PAGE)
    assert space.read_bytes(FAR, 5) == b"first"
    assert space.read_bytes(twin + 5, 13) == b"from the twin"
    space._check()


def test_shared_memory_keeps_its_bytes() -> None:
    """Moved or kept, shared memory is the same; beyond its end there is nothing, however long the mapping."""
    space = AddressSpace()
    space.mmap(BASE, 2 * PAGE, RW, SHARED)
    space.copy_out(BASE, pattern(2 * PAGE))
    assert space.mremap(BASE, PAGE, PAGE, MAYMOVE | DONTUNMAP, FAR) == FAR
    assert bytes_of(space, 0) == bytes_of(space, 0, FAR) == old(0)
    assert space.mremap(BASE, 2 * PAGE, 4 * PAGE) == BASE
    assert rows(space)[0] == (0, 4, "rw-s")
    assert space.read_bytes(BASE, 2 * PAGE) == old(0) + old(1)
    with pytest.raises(FaultError, match="beyond-file"):
        space.read_bytes(BASE + 2 * PAGE, 1)
    at = space.mremap(BASE + PAGE, 3 * PAGE, 3 * PAGE, MOVE_TO, FAR + 8 * PAGE)
    assert bytes_of(space, 0, at) == old(1)
    with pytest.raises(FaultError, match="beyond-file"):
        space.read_bytes(at + PAGE, 1)


def test_objects_move_with_what_was_written() -> None:
    """The pages of an object that were read or written go on at the new place, and the others are read there."""
    data = pattern(4 * PAGE)
    space = AddressSpace()
    space.map_object(BASE, 3 * PAGE, RW, FIXED, GrowingObject(data, len(data)), PAGE)
    space.copy_out(BASE, b"written")
    assert space.mremap(BASE, 3 * PAGE, 3 * PAGE, MOVE_TO, FAR) == FAR
    assert space.read_bytes(FAR, 3 * PAGE) == b"written" + data[PAGE + 7 :]
    assert space.mremap(FAR, PAGE, PAGE, MOVE_TO | DONTUNMAP, BASE) == BASE
    assert bytes_of(space, 0) == b"written" + data[PAGE + 7 : 2 * PAGE]
    assert bytes_of(space, 0, FAR) == data[PAGE : 2 * PAGE]


@pytest.mark.skipif(not can_map(), reason="the host cannot copy memory that may fault")
def test_private_files_move_with_what_was_written() -> None:
    """What was written goes to the new place, and where it was is the file again, if that is kept."""
    space = AddressSpace()
    with tempfile.TemporaryFile() as file:
        file.write(pattern(4 * PAGE))
        file.flush()
        space.mmap(BASE, 4 * PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, file.fileno())
    space.copy_out(BASE + PAGE, b"written")
    assert space.mremap(BASE + PAGE, 2 * PAGE, 2 * PAGE, MOVE_TO | DONTUNMAP, FAR) == FAR
    assert space.read_bytes(FAR, 2 * PAGE) == b"written" + (old(1) + old(2))[7:]
    assert space.read_bytes(BASE, 4 * PAGE) == pattern(4 * PAGE)
    space.copy_out(BASE + PAGE, b"again")
    assert space.read_bytes(FAR, 7) == b"written"
    assert space.mremap(FAR, PAGE, PAGE, MOVE_TO, FAR + 9 * PAGE) == FAR + 9 * PAGE
    assert space.read_bytes(FAR + 9 * PAGE, 7) == b"written"
    space._check()


def test_tagged_addresses() -> None:
    """On a machine that ignores the top byte, the old address may have a tag, and the new one must not."""
    space = AddressSpace(ARM64)
    space.mmap(BASE, PAGE, RW, FIXED)
    space.copy_out(BASE, b"tag")
    assert code(lambda: space.mremap(BASE, PAGE, PAGE, MOVE_TO, FAR | 0x42 << 56)) == "EINVAL"
    assert space.mremap(BASE | 0x42 << 56, PAGE, PAGE, MOVE_TO, FAR) == FAR
    assert space.read_bytes(FAR, 3) == b"tag"


HEAP = 0x5_0000_0000


def test_brk() -> None:
    """The heap grows by whole pages of zeros and shrinks, to the byte as far as brk says, and is called [heap]."""
    space = AddressSpace()
    space.set_brk(HEAP + 5)
    assert space.brk(0) == space.brk(HEAP) == HEAP + 5
    assert space.maps() == ""
    assert space.brk(HEAP + 3 * PAGE + 1) == HEAP + 3 * PAGE + 1
    assert rows(space, HEAP) == [(1, 4, "rw-p")]
    assert space.maps().endswith(" [heap]\n")
    space.copy_out(HEAP + PAGE, b"\xff" * 3 * PAGE)
    assert space.brk(HEAP + 2 * PAGE - 1) == HEAP + 2 * PAGE - 1
    assert rows(space, HEAP) == [(1, 2, "rw-p")]
    assert space.brk(HEAP + 2 * PAGE) == HEAP + 2 * PAGE
    assert space.brk(HEAP + 3 * PAGE) == HEAP + 3 * PAGE
    assert space.read_bytes(HEAP + PAGE, 2 * PAGE) == b"\xff" * PAGE + bytes(PAGE)
    assert space.brk(HEAP + 5) == HEAP + 5
    assert space.maps() == ""


def test_brk_stays_where_it_cannot_go() -> None:
    """A page is kept free below the next mapping, and the guard below a stack; there is no heap beyond the top."""
    space = AddressSpace()
    space.set_brk(HEAP)
    space.mmap(HEAP + 4 * PAGE, PAGE, RW, FIXED)
    assert space.brk(HEAP + 3 * PAGE + 1) == HEAP
    assert space.brk(HEAP + 3 * PAGE) == HEAP + 3 * PAGE
    assert space.brk(TOP + 1) == space.brk(-1) == space.brk(1 << 64) == HEAP + 3 * PAGE
    space.mmap(HEAP + 4 * PAGE, 400 * PAGE, RW, FIXED | mman.MAP_GROWSDOWN)
    assert space.brk(HEAP + 4 * PAGE) == HEAP + 3 * PAGE
    space.mmap(HEAP + 300 * PAGE, PAGE, RW, FIXED | mman.MAP_GROWSDOWN)
    space.munmap(HEAP + 4 * PAGE, 296 * PAGE)
    assert space.brk(HEAP + 44 * PAGE) == HEAP + 3 * PAGE
    assert space.brk(HEAP + 43 * PAGE) == HEAP + 43 * PAGE
    space.munmap(HEAP, 43 * PAGE)
    assert space.brk(HEAP) == HEAP + 43 * PAGE  # nothing is there to be unmapped


@pytest.mark.skipif(sys.platform != "linux", reason="counts the lines of /proc/self/maps")
def test_a_heap_grows_often() -> None:
    """20,000 times: few host mappings, one mapping for the guest, and the last time is as quick as the first."""

    def host_mappings() -> int:
        return Path("/proc/self/maps").read_text().count("\n")

    space = AddressSpace()
    space.set_brk(HEAP)
    before, end, seconds, each = host_mappings(), HEAP, [], times(2_000, 10_000)
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(each):
            end += PAGE
            assert space.brk(end) == end
            space.copy_out(end - 4, b"heap")
        seconds.append(time.perf_counter() - start)
    assert host_mappings() - before < 24
    assert space.maps().count("\n") == 1
    assert min(seconds[5:]) < 4 * min(seconds[:5])
    assert space.read_bytes(HEAP + PAGE - 4, 8) == b"heap" + bytes(4)


def test_the_limit_of_mappings() -> None:
    """ENOMEM of what would make more mappings than there may be; what makes none more goes on."""
    space = AddressSpace(max_map_count=8)
    for page in range(0, 18, 2):
        space.mmap(BASE + page * PAGE, PAGE, RW, FIXED)  # one more than the limit, as Linux lets it be
    assert code(lambda: space.mmap(FAR, PAGE, RW, FIXED)) == "ENOMEM"
    assert space.brk(space.brk(0) + PAGE) == 0
    assert code(lambda: space.mremap(BASE, PAGE, PAGE, MOVE_TO, FAR)) == "ENOMEM"
    space.munmap(BASE, 4 * PAGE)
    space.mremap(BASE + 4 * PAGE, PAGE, 2 * PAGE)
    assert code(lambda: space.mremap(BASE + 4 * PAGE, 2 * PAGE, 3 * PAGE, MAYMOVE)) == "ENOMEM"
    space.mmap(BASE, 3 * PAGE, RW, FIXED)
    assert len(rows(space)) == 7
    space.mmap(FAR, 3 * PAGE, RW, FIXED)
    assert code(lambda: space.munmap(FAR + PAGE, PAGE)) == "ENOMEM"
    assert code(lambda: space.mmap(FAR + PAGE, PAGE, R, FIXED)) == "ENOMEM"
    space.munmap(FAR, 2 * PAGE)
    assert space.mremap(FAR + 2 * PAGE, PAGE, PAGE) == FAR + 2 * PAGE


def test_the_limit_of_bytes() -> None:
    """ENOMEM of what would map more than RLIMIT_AS; what is replaced does not count twice."""
    space = AddressSpace(address_limit=4 * PAGE)
    space.mmap(BASE, 3 * PAGE, RW, FIXED)
    assert code(lambda: space.mmap(FAR, 2 * PAGE, RW, FIXED)) == "ENOMEM"
    assert code(lambda: space.mremap(BASE, 3 * PAGE, 5 * PAGE, MAYMOVE)) == "ENOMEM"
    assert code(lambda: space.mremap(BASE, 2 * PAGE, 2 * PAGE, MAYMOVE | DONTUNMAP)) == "ENOMEM"
    space.set_brk(HEAP)
    assert space.brk(HEAP + 2 * PAGE) == HEAP
    assert space.brk(HEAP + PAGE) == HEAP + PAGE
    space.mmap(BASE + PAGE, 2 * PAGE, R, FIXED)
    space.munmap(BASE, PAGE)
    assert space.mremap(BASE + PAGE, 2 * PAGE, 3 * PAGE) == BASE + PAGE
    assert code(lambda: space.mmap(0, PAGE, RW, ANON)) == "ENOMEM"


def test_a_seed() -> None:
    """The same seed gives the same places, another one others, all in user space."""
    places = [[AddressSpace(seed=seed).mmap(0, PAGE, RW, ANON) for seed in range(20)] for _ in range(2)]
    assert places[0] == places[1]
    assert len(set(places[0])) == 20
    assert all(not place % PAGE and AMD64.min_addr <= place < TOP for place in places[0])


def test_map_32bit() -> None:
    """MAP_32BIT maps in the second GiB, as low as can be, or at a hint below 2 GiB; then there is ENOMEM."""
    flags = ANON | mman.MAP_32BIT
    space = AddressSpace()
    assert space.mmap(0, PAGE, RW, flags) == 1 << 30
    assert space.mmap(0, 2 * PAGE, RW, flags) == (1 << 30) + PAGE
    space.munmap(1 << 30, PAGE)
    assert space.mmap(0, 2 * PAGE, RW, flags) == (1 << 30) + 3 * PAGE
    assert space.mmap(0, PAGE, RW, flags) == 1 << 30
    assert space.mmap(BASE, PAGE, RW, flags) == BASE
    assert space.mmap((1 << 31) - PAGE, 2 * PAGE, RW, flags) == (1 << 30) + 5 * PAGE
    assert code(lambda: space.mmap(0, 1 << 30, RW, flags)) == "ENOMEM"
    arm = AddressSpace(ARM64)
    assert arm.mmap(0, PAGE, RW, flags) > 1 << 32


def test_map_populate() -> None:
    """MAP_POPULATE places memory that can be read, and reads objects; without it nothing is there."""
    space = AddressSpace()
    assert space.mincore(space.mmap(0, 3 * PAGE, R, ANON), 3 * PAGE) == bytes(3)
    read: list[int] = []

    class Object(GrowingObject):
        def read_at(self, offset: int, dst: memoryview) -> int:
            read.append(offset)
            return super().read_at(offset, dst)

    flags = FIXED | mman.MAP_POPULATE
    space.mmap(BASE, 3 * PAGE, R, flags)
    assert space.mincore(BASE, 3 * PAGE) == b"\1" * 3
    space = AddressSpace()
    space.mmap(BASE, PAGE, mman.PROT_NONE, flags)
    assert space.mincore(BASE, PAGE) == b"\0"
    space.map_object(FAR, PAGE, R, FIXED, Object(pattern(PAGE), PAGE))
    assert not read


def test_nothing_moves_below_the_lowest_address() -> None:
    """As mmap, mremap maps nothing below min_addr: page 0 stays free."""
    space = AddressSpace()
    at = space.mmap(0, PAGE, RW, ANON)
    with pytest.raises(PermissionError):
        space.mremap(at, PAGE, PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, 0)
    assert len(space.mappings()) == 1
