"""mincore: which pages of the guest's the host holds."""

from __future__ import annotations

import errno
import mmap
import sys
import tempfile

import pytest

from host_figures import resident
from hostarch import AMD64, ARM64_16K, mman
from usermem import AddressSpace, SharedMemory
from usermem.mm import host_calls

pytestmark = pytest.mark.skipif(sys.platform != "linux" or mmap.PAGESIZE != 4096, reason="counts Linux's pages")

PAGE = 4096
BASE = 0x4000_0000
RW = mman.PROT_READ | mman.PROT_WRITE
ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED


@pytest.mark.parametrize("flags", [SHARED, ANON], ids=["shared", "private"])
def test_single_pages(flags: int) -> None:
    """Only what was touched is there, wherever the range begins; what is given up is not."""
    with AddressSpace() as space:
        space.mmap(BASE, 8 * PAGE, RW, flags)
        space.madvise(BASE, 8 * PAGE, mman.MADV_NOHUGEPAGE)
        assert space.mincore(BASE, 8 * PAGE) == bytes(8)
        space.copy_out(BASE + 2 * PAGE - 1, b"xy")
        assert space.mincore(BASE, 8 * PAGE) == b"\0\1\1\0\0\0\0\0"
        assert space.mincore(BASE + 2 * PAGE, 2 * PAGE) == b"\1\0"
        space.madvise(BASE + PAGE, PAGE, mman.MADV_REMOVE if flags == SHARED else mman.MADV_DONTNEED)
        assert space.mincore(BASE, 4 * PAGE) == b"\0\0\1\0"
        space.mprotect(BASE, PAGE, mman.PROT_READ)
        space.madvise(BASE, 8 * PAGE, mman.MADV_POPULATE_READ)
        assert space.mincore(BASE, 8 * PAGE) == b"\1" * 8


def test_large_guest_pages_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest's page is there if one of the host's in it is; long ranges are asked for in parts."""
    monkeypatch.setattr(host_calls, "PAGES_ASKED", 2)
    with AddressSpace(ARM64_16K) as space:
        space.mmap(BASE, 7 * 4 * PAGE, RW, SHARED)
        for page in (0, 3, 6):
            space.copy_out(BASE + page * 4 * PAGE + 3 * PAGE, b"x")
        assert space.mincore(BASE, 7 * 4 * PAGE) == b"\1\0\0\1\0\0\1"


def test_files_and_buffers() -> None:
    """A file's pages are there as the host caches them, a buffer's as it was touched, read-only or at an odd place."""
    with tempfile.TemporaryFile(buffering=0) as file, AddressSpace() as space:
        file.write(bytes(2 * PAGE))
        at = space.mmap(0, 3 * PAGE, RW, mman.MAP_SHARED, file.fileno(), 0)
        assert space.mincore(at, 3 * PAGE) == b"\1\1\0"
        assert space.mincore(at + PAGE, 2 * PAGE) == b"\1\0"
        at = space.attach(0, memoryview(bytearray(b"x" * (3 * PAGE + 8)))[8:])
        assert space.mincore(at, 3 * PAGE) == b"\1\1\1"
        memory = mmap.mmap(-1, 2 * PAGE)
        memory[PAGE] = 1
        assert space.mincore(space.attach(0, memory), 2 * PAGE) == b"\0\1"
        assert space.mincore(space.attach(0, mmap.mmap(-1, PAGE, prot=mmap.PROT_READ)), PAGE) == b"\0"


@pytest.mark.parametrize("answer", [None, lambda *_: -1], ids=["missing", "refused"])
def test_a_host_that_cannot_tell(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    """All pages that have a place are there."""
    monkeypatch.setattr(host_calls, "_mincore", lambda: answer)
    with AddressSpace(AMD64) as space:
        space.mmap(BASE, 4 * PAGE, RW, ANON)
        assert space.mincore(BASE, 4 * PAGE) == bytes(4)
        space.copy_out(BASE, b"x")
        assert space.mincore(BASE, 4 * PAGE) == b"\1" * 4


def test_populating_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that populates very much costs the host no more than its owner allows: anonymous memory, and files."""
    asked: list[int] = []
    monkeypatch.setattr(host_calls, "advise", lambda _, length, advice: asked.append(length))
    with AddressSpace() as space, tempfile.TemporaryFile(buffering=0) as file:
        space.limits.populate_limit = 2 * PAGE
        space.mmap(BASE, 4 * PAGE, RW, SHARED | mman.MAP_POPULATE)
        assert space.mincore(BASE, 4 * PAGE) == b"\1\1\0\0"
        space.madvise(BASE + 2 * PAGE, 2 * PAGE, mman.MADV_POPULATE_READ)
        assert space.mincore(BASE, 4 * PAGE) == b"\1\1\1\1"
        file.truncate(4 * PAGE)
        at = space.mmap(0, 4 * PAGE, RW, mman.MAP_PRIVATE, file.fileno(), 0)
        space.madvise(at, 4 * PAGE, mman.MADV_POPULATE_WRITE)
        assert asked == [2 * PAGE]


def test_mincore_has_a_bound() -> None:
    """A page more than the owner allows is EAGAIN; a tebibyte of which nothing was touched costs no time and memory."""
    with AddressSpace() as space:
        space.mmap(BASE, 4 * PAGE, RW, ANON)
        space.limits.mincore_limit = 3
        assert space.mincore(BASE, 3 * PAGE) == bytes(3)
        with pytest.raises(OSError, match="limit is 3") as caught:
            space.mincore(BASE, 4 * PAGE)
        assert caught.value.errno == errno.EAGAIN


class Holes:
    """An object of 1 TiB of zeros."""

    def size(self) -> int:
        return 1 << 40

    def read_at(self, offset: int, dst: memoryview) -> int:
        return 0


@pytest.mark.parametrize("kind", ["private", "shared", "copy on write", "object"])
def test_a_tebibyte_that_nobody_touched(kind: str) -> None:
    """The answer for it is zeros that cost the host no memory, until a page is touched: that is 1 in the answer."""
    size = 1 << 40
    with AddressSpace() as space:
        if kind == "object":
            at = space.map_object(0, size, RW, mman.MAP_SHARED, Holes())
        elif kind == "copy on write":
            at = space.map_object(0, size, RW, mman.MAP_PRIVATE, SharedMemory(size))
        else:
            at = space.mmap(0, size, RW, (ANON if kind == "private" else SHARED) & ~mman.MAP_FIXED)
        before = resident()
        answer = space.mincore(at, size)
        assert len(answer) == size // PAGE
        assert resident() - before < 16 << 20
        del answer
        space.copy_out(at + (1 << 30), b"x")
        part = space.mincore(at + (1 << 30) - 16 * PAGE, 32 * PAGE)
        assert part[:16] == bytes(16)
        assert part[16] == 1


def test_which_windows_of_an_object_are_there() -> None:
    """A page of an object that this mapping has not touched is there with its window, wherever the question begins."""
    window = 1 << 16
    with AddressSpace() as space:
        holes = Holes()
        other = space.map_object(0, 8 * window, RW, mman.MAP_SHARED, holes)
        for number in (1, 4, 5):
            space.read_bytes(other + number * window, 1)
        at = space.map_object(0, 8 * window, RW, mman.MAP_SHARED, holes)
        expected = b"".join(bytes([number in (1, 4, 5)]) * 16 for number in range(8))
        for first, last in ((0, 128), (17, 18), (15, 17), (31, 65), (80, 97), (100, 128), (0, 16)):
            found = space.mincore(at + first * PAGE, (last - first) * PAGE)
            assert found == expected[first:last], (first, last)
