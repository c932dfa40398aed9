"""What others do between two steps of a mapping call: listeners, limits, guards."""

from __future__ import annotations

import errno
import mmap

import pytest

from hostarch import mman
from usermem import AddressSpace

PAGE = 4096
BASE = 0x10_0000
RW = mman.PROT_READ | mman.PROT_WRITE
FIXED = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED


def test_dontneed_leaves_what_a_listener_put_there() -> None:
    """A listener that attaches memory in the range while MADV_DONTNEED goes through it keeps what it holds."""
    buffer = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer[:6] = b"keepme"
    with AddressSpace() as space:
        space.mmap(BASE, PAGE, RW, FIXED)
        space.mmap(BASE + PAGE, PAGE, mman.PROT_READ, FIXED)
        space.copy_out(BASE, b"a")

        def listen(start: int, end: int, kind: object) -> None:
            if kind == "memory" and start == BASE:
                space.on_change = None
                space.munmap(BASE + PAGE, PAGE)
                space.attach(BASE + PAGE, buffer, RW, mman.MAP_FIXED)
                space.read_bytes(BASE + PAGE, 1)

        space.on_change = listen
        space.madvise(BASE, 2 * PAGE, mman.MADV_DONTNEED)
        assert space.on_change is None
        assert space.read_bytes(BASE + PAGE, 6) == b"keepme"


def test_splits_count_against_max_map_count() -> None:
    """mprotect of every second page ends with ENOMEM at the limit, and then nothing has changed."""
    with AddressSpace(max_map_count=10) as space:
        space.mmap(BASE, 100 * PAGE, RW, FIXED)
        with pytest.raises(OSError, match="mappings") as caught:
            for page in range(1, 100, 2):
                space.mprotect(BASE + page * PAGE, PAGE, mman.PROT_READ)
        assert caught.value.errno == errno.ENOMEM
        assert len(space.mappings()) <= 10
        space._check()


@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 150, 298])
def test_the_hole_where_a_guard_went_is_found(k: int) -> None:
    """A mapping that no longer grows down leaves its guard's room to others, wherever it is in the tree."""
    with AddressSpace() as space:
        probe = space.mmap(0, PAGE, RW, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        space.munmap(probe, PAGE)
        at, addrs = probe, {}
        for i in range(300):
            addrs[i] = at
            space.mmap(at, PAGE, RW, FIXED | (mman.MAP_GROWSDOWN if i == k else 0))
            at -= 2 * PAGE if i != k else 0x108000 + PAGE
        for _ in range(2):
            below = space.mmap(0, 0x9000, RW, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        space.munmap(below, 0x9000)
        space.mmap(addrs[k], PAGE, RW, FIXED)
        space._check()
        assert space.mmap(0, 0x9000, RW, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS) == addrs[k] - 0x9000
