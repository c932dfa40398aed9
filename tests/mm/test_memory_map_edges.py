"""What mapping calls make of odd sizes, odd objects, and memory that takes the place of other memory."""

from __future__ import annotations

import copy
import errno
import mmap
import pickle
import tempfile
from collections.abc import Callable

import pytest

from hostarch import WRITE, AddrRange, AddrRangeSeq, mman
from simulator_file import SimulatorFile
from usermem import AddressSpace, FaultError, FaultReason, SharedMemory

PAGE = 4096
BASE = 0x4000_0000
RW = mman.PROT_READ | mman.PROT_WRITE
ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
FIXED = ANON | mman.MAP_FIXED
SHARED_HERE = mman.MAP_SHARED | mman.MAP_FIXED
MOVE = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED
OLD = b"o" * 2 * PAGE


def test_private_pages_of_a_file_that_went_are_the_files_again() -> None:
    """What was written to a private page is gone with the page, when the mapping shrinks and grows again."""
    with tempfile.TemporaryFile(buffering=0) as file, AddressSpace() as space:
        file.write(b"f" * 2 * PAGE)
        space.mmap(BASE, 2 * PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, file.fileno(), 0)
        space.copy_out(BASE, b"kept")
        space.copy_out(BASE + PAGE, b"gone")
        space.mremap(BASE, 2 * PAGE, PAGE)
        space.mremap(BASE, PAGE, 2 * PAGE)
        assert space.read_bytes(BASE, 5) == b"keptf"
        assert space.read_bytes(BASE + PAGE, 4) == b"ffff"


@pytest.mark.parametrize("offset", [(1 << 63) - PAGE, 1 << 63, 1 << 64, 1 << 70])
def test_a_file_does_not_reach_so_far(offset: int) -> None:
    """An offset that the host cannot say is EOVERFLOW, and not another place in the file."""
    with tempfile.TemporaryFile(buffering=0) as file, AddressSpace() as space:
        file.write(b"f" * PAGE)
        with pytest.raises(OSError, match=f"at offset {offset:#x}") as caught:
            space.mmap(0, PAGE, RW, mman.MAP_SHARED, file.fileno(), offset)
        assert caught.value.errno == errno.EOVERFLOW


def test_a_buffer_that_is_read_only() -> None:
    """A mapping that may only be read can be copied from by every way, short and long."""
    with AddressSpace() as space:
        at = space.attach(0, mmap.mmap(-1, 2 * PAGE, prot=mmap.PROT_READ))
        for _ in range(2):
            assert space.read_bytes(at, 4) == bytes(4)
            assert space.copy_uint32_in(at) == 0
            blocks = space.blocks(AddrRangeSeq.of(AddrRange(at, at + 10)))
            assert blocks.tobytes() == bytes(10)
            assert space.copy_in(at, bytearray(PAGE)) == PAGE
        with pytest.raises(FaultError, match="permission"):
            space.copy_out(at, b"x")


def test_the_rest_of_the_last_page_is_shared() -> None:
    """Shared memory of any length has whole pages, whatever the mapping; the pages after them are beyond its end."""
    common = SharedMemory(PAGE + 1)
    with AddressSpace() as space:
        one, two = (space.map_object(0, 3 * PAGE, RW, mman.MAP_SHARED, common) for _ in range(2))
        assert space.read_bytes(one, 2 * PAGE) == bytes(2 * PAGE)
        assert space.copy_uint32_in(one + PAGE) == 0
        space.copy_out(one + PAGE + 100, b"both")
        assert space.read_bytes(two + PAGE + 100, 4) == b"both"
        with pytest.raises(FaultError) as caught:
            space.read_bytes(one + 2 * PAGE, 1)
        assert caught.value.reason is FaultReason.BEYOND_FILE


@pytest.mark.parametrize(
    "change",
    [
        lambda space: space.mmap(BASE, 2 * PAGE, RW, FIXED),
        lambda space: space.attach(BASE, bytearray(2 * PAGE), flags=mman.MAP_FIXED),
        lambda space: space.mremap(BASE, 2 * PAGE, PAGE),
        lambda space: space.mremap(space.mmap(0, 2 * PAGE, RW, ANON), 2 * PAGE, 2 * PAGE, MOVE, BASE),
        lambda space: space.munmap(BASE + PAGE, PAGE),
        lambda space: space.close(),
    ],
    ids=["mmap", "attach", "mremap, shorter", "mremap onto it", "munmap", "close"],
)
def test_an_object_gets_what_was_written_whatever_takes_its_place(change: Callable[[AddressSpace], object]) -> None:
    """Nothing that a guest wrote to a shared mapping is lost when it goes."""
    space, file = AddressSpace(), SimulatorFile(OLD)
    space.map_object(BASE, 2 * PAGE, RW, SHARED_HERE, file)
    space.copy_out(BASE + PAGE, b"written")
    change(space)
    assert bytes(file.data[PAGE : PAGE + 8]) == b"writteno"


def test_an_object_that_unmaps_as_it_is_written() -> None:
    """write_at may unmap and close: no page comes twice. One that raises gets the page again."""
    calls = []

    class Closing(SimulatorFile):
        def write_at(self, offset: int, src: memoryview) -> None:
            calls.append(offset)
            if len(calls) == 1:
                raise OSError(errno.EIO, "not now")
            super().write_at(offset, src)
            space.close()

    space, file = AddressSpace(), Closing(OLD)
    space.map_object(BASE, 2 * PAGE, RW, SHARED_HERE, file)
    space.copy_out(BASE, b"w")
    with pytest.raises(OSError, match="not now"):
        space.msync(BASE, PAGE, mman.MS_SYNC)
    space.munmap(BASE, 2 * PAGE)
    assert calls == [0, 0]
    assert file.data[:2] == b"wo"


@pytest.mark.parametrize("kind", [mman.MAP_PRIVATE, mman.MAP_SHARED])
@pytest.mark.parametrize("size", [-1, -(1 << 80), 0, 1, 1 << 80, 4096.0, None])
def test_whatever_size_an_object_says(kind: int, size: object) -> None:
    """A size that cannot be has no pages, one that is too large has all, and what is no int is a TypeError."""

    class Odd(SimulatorFile):
        def size(self) -> int:
            return size  # type: ignore[return-value]

    with AddressSpace() as space:
        at = space.map_object(0, 2 * PAGE, RW, kind, Odd(OLD))
        if not isinstance(size, int):
            with pytest.raises(TypeError, match="what size"):
                space.read_bytes(at, 1)
            space.munmap(at, 2 * PAGE)
        elif size <= 0:
            with pytest.raises(FaultError, match="beyond-file"):
                space.read_bytes(at, 1)
        else:
            assert space.read_bytes(at, 1) == b"o"


def test_an_object_that_unmaps_itself_when_it_is_asked() -> None:
    """size() is called without the lock, and what it unmaps is not there."""

    class Unmapping(SimulatorFile):
        def size(self) -> int:
            space.munmap(BASE, PAGE)
            return PAGE

    with AddressSpace() as space:
        space.map_object(BASE, PAGE, RW, FIXED, Unmapping(OLD))
        with pytest.raises(FaultError, match="unmapped"):
            space.write_bytes(BASE, b"x")
        assert space.resolve(BASE, PAGE, WRITE)[0] == []


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_space_is_not_copied(how: Callable[[object], object]) -> None:
    """Two that share their tables would not know of each other's changes."""
    with pytest.raises(TypeError, match="AddressSpace cannot be copied or pickled"):
        how(AddressSpace())


@pytest.mark.parametrize("advice", [mman.MADV_DONTNEED, mman.MADV_DONTNEED_LOCKED])
def test_only_the_pages_that_are_named_are_dropped(advice: int) -> None:
    """Of a private mapping of a file, the pages around keep what was written."""
    with tempfile.TemporaryFile(buffering=0) as file, AddressSpace() as space:
        file.write(b"f" * 3 * PAGE)
        at = space.mmap(0, 3 * PAGE, RW, mman.MAP_PRIVATE, file.fileno(), 0)
        space.copy_out(at, b"w" * 3 * PAGE)
        space.madvise(at + PAGE, PAGE, advice)
        assert space.read_bytes(at, 3 * PAGE) == b"w" * PAGE + b"f" * PAGE + b"w" * PAGE


def test_the_limit_counts_what_is_replaced_only_where_it_is() -> None:
    """A new mapping over the end of an old one grows the space by what reaches beyond."""
    space = AddressSpace(address_limit=4 * PAGE)
    space.mmap(BASE, 3 * PAGE, RW, FIXED)
    with pytest.raises(OSError, match="may not grow") as caught:
        space.mmap(BASE + 2 * PAGE, 3 * PAGE, RW, FIXED)
    assert caught.value.errno == errno.ENOMEM
    assert space.mmap(BASE + 2 * PAGE, 2 * PAGE, mman.PROT_READ, FIXED) == BASE + 2 * PAGE


@pytest.mark.parametrize("flags", [MOVE, mman.MREMAP_MAYMOVE | mman.MREMAP_DONTUNMAP])
def test_a_move_leaves_room_for_the_mappings_it_may_make(flags: int) -> None:
    """As Linux, mremap wants five mappings less than there may be, and counts two that it may cut."""
    for count, expected in ((4, 0), (5, errno.ENOMEM)):
        space = AddressSpace(max_map_count=10)
        for i in range(count):
            space.mmap(BASE + 2 * i * PAGE, PAGE, RW, FIXED)
        found = 0
        try:
            space.mremap(BASE, PAGE, PAGE, flags, BASE + 100 * PAGE)
        except OSError as exc:
            found = exc.errno or -1
        assert found == expected


def test_a_hook_may_touch_a_space_with_a_hook() -> None:
    """Only a space whose hook runs has none for what the hook touches."""
    inner, outer = AddressSpace(), AddressSpace()

    def fill_inner(addr: int, access: object) -> bool:
        return bool(inner.mmap(addr & -PAGE, PAGE, RW, FIXED))

    def fill_outer(addr: int, access: object) -> bool:
        inner.copy_out(addr, b"there")
        outer.mmap(addr & -PAGE, PAGE, RW, FIXED)
        return outer.copy_out(addr, inner.read_bytes(addr, 5)) == 5

    inner.on_fault, outer.on_fault = fill_inner, fill_outer
    assert outer.read_bytes(BASE, 6) == b"there\0"


def test_what_was_read_for_a_mapping_that_went_is_dropped() -> None:
    """read_at may unmap: what takes the place has nothing of the object's."""

    class Vanishing(SimulatorFile):
        def read_at(self, offset: int, dst: memoryview) -> int:
            super().read_at(offset, dst)
            space.munmap(BASE, PAGE)
            space.mmap(BASE, PAGE, RW, FIXED)
            return PAGE

    with AddressSpace() as space:
        space.map_object(BASE, PAGE, RW, FIXED, Vanishing(OLD))
        assert space.read_bytes(BASE, PAGE) == bytes(PAGE)
