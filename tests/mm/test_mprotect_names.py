"""Names of mappings: prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME) as set_name, and what /proc/PID/maps says of them.

Rules: Linux kernel/sys.c (prctl_set_vma), mm/madvise.c (madvise_set_anon_name), fs/proc/task_mmu.c (get_vma_name).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW, GrowingObject
from hostarch import mman
from usermem import AddressSpace
from usermem.mm.faulting import can_map

SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED
MOVE = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED
HEAP = 0x50_0000

Named = list[tuple[int, int, str]]


def named(space: AddressSpace) -> Named:
    """The mappings as (first page, last page, name in maps), pages from BASE on."""
    found = []
    for line in space.maps().splitlines():
        bounds, *_, name = [*line.split(maxsplit=5), ""][:6]
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        found.append(((start - BASE) // PAGE, (end - BASE) // PAGE, name))
    return found


def anonymous(pages: int = 6) -> AddressSpace:
    """A space with some pages of private memory at BASE."""
    space = AddressSpace()
    space.mmap(BASE, pages * PAGE, RW, FIXED)
    return space


def refused(call: Callable[[], object]) -> str:
    """The name of the errno that a call fails with; "" if it does not."""
    try:
        call()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return ""


def test_a_name_and_none() -> None:
    """A range is named, named anew, and unnamed; its pages keep their bytes and rights."""
    space = anonymous()
    space.copy_out(BASE, b"bytes")
    assert space.set_name(BASE + PAGE, 2 * PAGE, "stack of 7") == 0
    assert named(space) == [(0, 1, ""), (1, 3, "[anon:stack of 7]"), (3, 6, "")]
    space.set_name(BASE, 2 * PAGE, "x")
    assert named(space) == [(0, 2, "[anon:x]"), (2, 3, "[anon:stack of 7]"), (3, 6, "")]
    space.set_name(BASE + PAGE, 1, "")  # as the kernel: no letters are a name
    assert named(space)[:2] == [(0, 1, "[anon:x]"), (1, 2, "[anon:]")]
    space.set_name(BASE, 6 * PAGE, None)
    assert named(space) == [(0, 6, "")]
    assert space.read_bytes(BASE, 5) == b"bytes"
    space._check()


def test_only_equal_names_are_one_mapping() -> None:
    """Neighbours merge when their names become equal, in whatever order."""
    space = anonymous(4)
    for page, name in ((0, "a"), (2, "a"), (1, "b"), (3, "c")):
        space.set_name(BASE + page * PAGE, PAGE, name)
    assert named(space) == [(0, 1, "[anon:a]"), (1, 2, "[anon:b]"), (2, 3, "[anon:a]"), (3, 4, "[anon:c]")]
    space.set_name(BASE + PAGE, PAGE, "a")
    assert named(space) == [(0, 3, "[anon:a]"), (3, 4, "[anon:c]")]
    space.mmap(BASE + 4 * PAGE, PAGE, RW, FIXED)
    assert named(space)[1:] == [(3, 4, "[anon:c]"), (4, 5, "")]


def test_names_go_along() -> None:
    """With parts that are cut off, protected and moved, and with mappings that grow."""
    space = anonymous(4)
    space.set_name(BASE, 4 * PAGE, "n")
    space.mprotect(BASE + PAGE, PAGE, mman.PROT_READ)
    space.mremap(BASE + 3 * PAGE, PAGE, 2 * PAGE, MOVE, BASE + 8 * PAGE)
    space.munmap(BASE, PAGE)
    assert named(space) == [(1, 2, "[anon:n]"), (2, 3, "[anon:n]"), (8, 10, "[anon:n]")]
    space.mremap(BASE + 8 * PAGE, 2 * PAGE, 4 * PAGE)
    assert named(space)[-1] == (8, 12, "[anon:n]")


GOOD = ["x", "a name", "~!@#%^&*()-+={}|;:'\",.<>/?", "x" * 79]
BAD = [
    "back\\slash",
    "back`tick",
    "dol$lar",
    "brac[ket",
    "brac]ket",
    "new\nline",
    "\x1f",
    "\x7f",
    "é",
    "nul\0",
    "x" * 80,
]


@pytest.mark.parametrize("name", GOOD)
def test_names_that_can_be(name: str) -> None:
    """Printable ASCII but for five, and no more than 79 of it."""
    space = anonymous(1)
    assert space.set_name(BASE, PAGE, name) == 0
    assert named(space) == [(0, 1, f"[anon:{name}]")]


@pytest.mark.parametrize("name", BAD)
def test_names_that_cannot_be(name: str) -> None:
    """EINVAL before anything is looked at, and nothing has changed."""
    space = anonymous(2)
    space.set_name(BASE, PAGE, "before")
    for addr, length in ((BASE, 2 * PAGE), (BASE + 1, PAGE), (0, PAGE), (BASE, 0)):
        assert refused(lambda addr=addr, length=length: space.set_name(addr, length, name)) == "EINVAL"  # type: ignore[misc]
    assert named(space) == [(0, 1, "[anon:before]"), (1, 2, "")]


@pytest.mark.parametrize(
    ("addr", "length", "expected"),
    [
        (BASE + 1, PAGE, "EINVAL"),
        (BASE, (1 << 64) - 1, "EINVAL"),
        (BASE, (1 << 64) - PAGE, "EINVAL"),
        (BASE, -1, "EINVAL"),
        (-PAGE, PAGE, "EINVAL"),
        (BASE, 0, ""),
        (0, 0, ""),
        (0, PAGE, "ENOMEM"),
        (BASE + 2 * PAGE, PAGE, "ENOMEM"),
    ],
)
def test_ranges(addr: int, length: int, expected: str) -> None:
    """As the kernel: EINVAL for what is no range, nothing for no bytes, ENOMEM for what is not mapped."""
    space = anonymous(2)
    assert refused(lambda: space.set_name(addr, length, "name")) == expected
    assert named(space) == [(0, 2, "")]


def test_a_hole_is_passed_and_a_file_stops() -> None:
    """ENOMEM after all was named that is mapped; EBADF at a file, after what lies before it."""
    space = anonymous(2)
    space.mmap(BASE + 4 * PAGE, PAGE, RW, FIXED)
    assert refused(lambda: space.set_name(BASE + PAGE, 4 * PAGE, "n")) == "ENOMEM"
    assert named(space) == [(0, 1, ""), (1, 2, "[anon:n]"), (4, 5, "[anon:n]")]
    flags = mman.MAP_SHARED | mman.MAP_FIXED
    space.map_object(BASE + 2 * PAGE, PAGE, RW, flags, GrowingObject(b"", PAGE), name="/bin/sh")
    assert refused(lambda: space.set_name(BASE, 6 * PAGE, "m")) == "EBADF"
    assert named(space) == [(0, 2, "[anon:m]"), (2, 3, "/bin/sh"), (4, 5, "[anon:n]")]
    assert refused(lambda: space.set_name(BASE + 2 * PAGE, PAGE, None)) == "EBADF"


@pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")
@pytest.mark.parametrize("flags", [mman.MAP_SHARED, mman.MAP_PRIVATE])
def test_a_host_file_has_its_own(tmp_path: Path, flags: int) -> None:
    """Its path stays, and the call is EBADF, private or not."""
    path = tmp_path / "library.so"
    path.write_bytes(bytes(PAGE))
    with path.open("rb+", buffering=0) as file, AddressSpace() as space:
        space.mmap(BASE, PAGE, mman.PROT_READ, flags | mman.MAP_FIXED, file.fileno(), 0)
        assert refused(lambda: space.set_name(BASE, PAGE, "n")) == "EBADF"
        assert named(space) == [(0, 1, str(path))]


def test_shared_anonymous_memory() -> None:
    """It has the name of a deleted file, a device and an inode, until it is named; then that of shared memory."""
    space = AddressSpace()
    space.mmap(BASE, 2 * PAGE, RW, SHARED)
    line = space.maps()
    assert re.fullmatch(
        rf"{BASE:08x}-{BASE + 2 * PAGE:08x} rw-s 00000000 00:01 [1-9]\d*\s+/dev/zero \(deleted\)\n", line
    )
    space.set_name(BASE, PAGE, "ring")
    assert [name for *_, name in named(space)] == ["[anon_shmem:ring]", "/dev/zero (deleted)"]
    space.set_name(BASE, PAGE, None)
    assert space.maps() == line
    space.mmap(BASE + 2 * PAGE, PAGE, RW, SHARED)
    inodes = {line.split()[4] for line in space.maps().splitlines()}
    assert len(inodes) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc/self/maps")
def test_shared_anonymous_memory_as_the_kernel_says() -> None:
    """But for addresses and the inode's number the line is the kernel's, byte for byte."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_size_t
    size, zero = ctypes.c_size_t(2 * PAGE), ctypes.c_long(0)
    at = libc.mmap(None, size, RW, mman.MAP_SHARED | mman.MAP_ANONYMOUS, -1, zero)
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.startswith(f"{at:08x}-")]
    libc.munmap(ctypes.c_size_t(at), size)
    space = AddressSpace()
    space.mmap(at, 2 * PAGE, RW, SHARED)
    assert [re.sub(r" \d+ +/", " INODE /", line) for line in lines] == [
        re.sub(r" \d+ +/", " INODE /", line) for line in space.maps().splitlines()
    ]


def labels(space: AddressSpace) -> dict[int, str]:
    """The name of each mapping, by its first address."""
    return {vma.start: vma.name for vma in space.mappings()}


def test_the_heap_is_named_by_its_place() -> None:
    """What is moved out of it has no name any more, what was heap before has none, and a given name does not show."""
    space = AddressSpace()
    space.set_brk(HEAP)
    space.brk(HEAP + 4 * PAGE)
    assert labels(space) == {HEAP: "[heap]"}
    space.mremap(HEAP + 2 * PAGE, PAGE, PAGE, MOVE, BASE)
    assert labels(space) == {BASE: "", HEAP: "[heap]", HEAP + 3 * PAGE: "[heap]"}
    space.set_name(HEAP, PAGE, "arena")
    assert labels(space)[HEAP] == "[heap]"
    space.set_brk(HEAP + 64 * PAGE)
    assert labels(space) == {BASE: "", HEAP: "[anon:arena]", HEAP + PAGE: "", HEAP + 3 * PAGE: ""}


def test_the_heap_joins_its_neighbour() -> None:
    """The memory before it that has the same rights is one mapping with it, which is then the heap."""
    space = AddressSpace()
    space.mmap(HEAP - PAGE, PAGE, RW, FIXED)
    space.set_brk(HEAP)
    assert labels(space) == {HEAP - PAGE: ""}
    space.brk(HEAP + PAGE)
    ((line),) = space.maps().splitlines()
    assert line.split() == [f"{HEAP - PAGE:08x}-{HEAP + PAGE:08x}", "rw-p", "00000000", "00:00", "0", "[heap]"]
    space.mmap(HEAP - PAGE, PAGE, mman.PROT_READ, FIXED)
    assert labels(space) == {HEAP - PAGE: "", HEAP: "[heap]"}


PR_SET_VMA = 0x53564D41


class Kernel:
    """The same calls on pages of this process, with the kernel's answers."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_size_t
        zero, size = ctypes.c_long(0), ctypes.c_size_t(16 * PAGE)
        self.base = self.libc.mmap(None, size, mman.PROT_NONE, ANON, -1, zero)

    def set_name(self, addr: int, length: int, name: str | None) -> str:
        """The name of the errno, or ""."""
        text = None if name is None else name.encode()
        args = (ctypes.c_ulong(0), ctypes.c_ulong(addr % (1 << 64)), ctypes.c_ulong(length % (1 << 64)))
        if self.libc.prctl(PR_SET_VMA, *args, ctypes.c_char_p(text)):
            return errno.errorcode[ctypes.get_errno()]
        return ""

    def map(self, page: int, pages: int, prot: int, flags: int) -> None:
        """Map some pages in the window."""
        size, zero = ctypes.c_size_t(pages * PAGE), ctypes.c_long(0)
        self.libc.mmap(ctypes.c_void_p(self.base + page * PAGE), size, prot, flags, -1, zero)

    def unmap(self, page: int, pages: int) -> None:
        """Unmap some pages in the window."""
        self.libc.munmap(ctypes.c_size_t(self.base + page * PAGE), ctypes.c_size_t(pages * PAGE))

    def names(self) -> Named:
        """The mappings in the window."""
        found = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            bounds, *_, name = [*line.split(maxsplit=5), ""][:6]
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            if self.base <= start < self.base + 16 * PAGE:
                found.append(((start - self.base) // PAGE, (end - self.base) // PAGE, name))
        return found


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """The kernel of this host, if it gives names to anonymous memory."""
    if sys.platform != "linux":
        pytest.skip("needs Linux's prctl")
    found = Kernel()
    if found.set_name(found.base, PAGE, "x"):
        pytest.skip(f"Linux {os.uname().release} is built without CONFIG_ANON_VMA_NAME")
    found.set_name(found.base, PAGE, None)
    yield found
    found.unmap(0, 16)


def test_as_the_kernel_does(kernel: Kernel) -> None:
    """The same calls on the same pages give the same results and the same names."""
    space = AddressSpace()
    kernel.unmap(0, 16)
    for page, pages, flags in ((1, 4, FIXED), (6, 2, FIXED), (8, 2, SHARED), (12, 2, FIXED)):
        kernel.map(page, pages, RW, flags)
        space.mmap(BASE + page * PAGE, pages * PAGE, RW, flags)
    calls: list[tuple[int, int, str | None]] = [
        *((1 * PAGE, PAGE, name) for name in GOOD + BAD if "\0" not in name),
        (2 * PAGE, 2 * PAGE, "two"),
        (2 * PAGE + 1, PAGE, "unaligned"),
        (2 * PAGE, 5, "part"),
        (0, 3 * PAGE, "hole before"),
        (4 * PAGE, 5 * PAGE, "over holes"),
        (8 * PAGE, PAGE, "shared"),
        (8 * PAGE, 2 * PAGE, None),
        (12 * PAGE, 0, "nothing"),
        (12 * PAGE, -1, "too much"),
        (12 * PAGE, 2 * PAGE, ""),
        (12 * PAGE, PAGE, None),
    ]
    for offset, length, name in calls:
        expected = kernel.set_name(kernel.base + offset, length, name)
        found = refused(lambda: space.set_name(BASE + offset, length % (1 << 64), name))  # noqa: B023
        assert (offset, length, name, found) == (offset, length, name, expected)
        assert named(space) == kernel.names()
