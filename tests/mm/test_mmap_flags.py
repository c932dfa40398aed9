"""Flags of mmap that ask for what is not there: MAP_SHARED_VALIDATE, MAP_SYNC, MAP_HUGETLB."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator

import pytest

from edge_layouts import BASE, PAGE, RW, GrowingObject, pattern
from hostarch import AMD64, MIPS, PPC64, Arch, mman
from usermem import AddressSpace

needs_files = pytest.mark.skipif(sys.platform != "linux", reason="needs memory files")
HUGE = AMD64.huge_page_size
VALIDATE = mman.MAP_SHARED_VALIDATE
PRIVATE = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS
UNKNOWN = [mman.MAP_SYNC, mman.MAP_FIXED_NOREPLACE, 0x200, 0x400, 0x20_0000, 0x80_0000, 0x200_0000, 1 << 31]
KNOWN = [mman.MAP_32BIT, mman.MAP_ABOVE4G, 0x800, 0x1000, 0x2000, 0x4000, 0x8000, 0x1_0000, 0x2_0000, 1 << 26, 1 << 30]


def code(call: Callable[[], object]) -> str:
    """The name of the errno that a call raises, EOPNOTSUPP as Linux's own name for it."""
    with pytest.raises(OSError) as caught:
        call()
    return errno.errorcode[caught.value.errno or 0].replace("ENOTSUP", "EOPNOTSUPP")


@pytest.fixture
def fd() -> Iterator[int]:
    """A memory file of a page."""
    found = os.memfd_create("file")
    os.write(found, pattern(PAGE))
    yield found
    os.close(found)


@needs_files
def test_validated_flags(fd: int) -> None:
    """MAP_SHARED_VALIDATE refuses what it does not know, before the file's rights count; MAP_SHARED does not."""
    space = AddressSpace()
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    for flag in UNKNOWN:
        assert code(lambda f=flag: space.mmap(BASE, PAGE, RW, VALIDATE | f, fd)) == "EOPNOTSUPP"  # type: ignore[misc]
        assert code(lambda f=flag: space.mmap(BASE, PAGE, RW, VALIDATE | f, read_only)) == "EOPNOTSUPP"  # type: ignore[misc]
        assert code(lambda f=flag: space.mmap(BASE, 0, RW, VALIDATE | f, fd)) == "EINVAL"  # type: ignore[misc]
    assert not space.mappings()
    for flag in KNOWN:
        assert space.read_bytes(space.mmap(0, PAGE, RW, VALIDATE | flag, fd), 4) == pattern(4)
    assert space.mmap(0, PAGE, RW, mman.MAP_SHARED | mman.MAP_SYNC | 0x80_0000, fd)
    assert code(lambda: space.mmap(0, PAGE, RW, VALIDATE | mman.MAP_ANONYMOUS)) == "EINVAL"
    os.close(read_only)


@pytest.mark.parametrize(
    ("arch", "known", "unknown"), [(MIPS, 0x8400, 0x40), (PPC64, 0x80, 0x4000)], ids=["mips", "ppc64"]
)
def test_validated_flags_of_an_object(arch: Arch, known: int, unknown: int) -> None:
    """A file of the simulator's is a file too, and each machine has its own flags."""
    space = AddressSpace(arch)
    file = GrowingObject(pattern(1 << 16), 1 << 16)
    assert space.map_object(0, 1 << 16, RW, VALIDATE | known, file)
    assert code(lambda: space.map_object(0, 1 << 16, RW, VALIDATE | unknown, file)) == "EOPNOTSUPP"


@pytest.mark.parametrize(
    ("expected", "addr", "length", "flags"),
    [
        ("ENOMEM", 0, HUGE, PRIVATE),
        ("ENOMEM", 0, PAGE, PRIVATE),
        ("ENOMEM", 0, HUGE, SHARED),
        ("ENOMEM", HUGE, HUGE, PRIVATE | mman.MAP_FIXED),
        ("ENOMEM", 0, HUGE, PRIVATE | AMD64.huge_page_shift << mman.MAP_HUGE_SHIFT),
        ("ENOMEM", 0, 1 << 62, PRIVATE),
        ("EAGAIN", 0, 5 * HUGE, PRIVATE | mman.MAP_LOCKED),
        ("EINVAL", HUGE + PAGE, HUGE, PRIVATE | mman.MAP_FIXED),
        ("EINVAL", AMD64.max_addr - PAGE, PAGE, PRIVATE | mman.MAP_FIXED_NOREPLACE),
        ("EINVAL", 0, HUGE, PRIVATE | 16 << mman.MAP_HUGE_SHIFT),
        ("EINVAL", 0, HUGE, PRIVATE | mman.MAP_GROWSDOWN),
        ("EINVAL", 0, HUGE, mman.MAP_ANONYMOUS),
        ("EINVAL", 0, 0, PRIVATE),
        ("EINVAL", 0, (1 << 64) - 1, PRIVATE),
    ],
)
def test_there_are_no_huge_pages(expected: str, addr: int, length: int, flags: int) -> None:
    """MAP_HUGETLB is ENOMEM, after what Linux checks before; nothing is mapped then, and nothing is unmapped."""
    space = AddressSpace()
    space.mmap(HUGE, PAGE, RW, PRIVATE | mman.MAP_FIXED)
    before = space.maps()
    assert code(lambda: space.mmap(addr, length, RW, flags | mman.MAP_HUGETLB)) == expected
    assert code(lambda: space.map_object(addr, length, RW, flags | mman.MAP_HUGETLB, None)) == expected
    assert space.maps() == before


@needs_files
def test_files_have_no_huge_pages(fd: int) -> None:
    """MAP_HUGETLB of a file that has none is EINVAL; a size without it is ignored."""
    space = AddressSpace()
    assert code(lambda: space.mmap(0, PAGE, RW, mman.MAP_SHARED | mman.MAP_HUGETLB, fd)) == "EINVAL"
    file = GrowingObject(pattern(PAGE), PAGE)
    assert code(lambda: space.map_object(0, PAGE, RW, mman.MAP_SHARED | mman.MAP_HUGETLB, file)) == "EINVAL"
    assert space.mmap(0, PAGE, RW, mman.MAP_SHARED | 16 << mman.MAP_HUGE_SHIFT, fd)
