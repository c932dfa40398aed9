"""A guest that runs is moved to another space, in rounds: nothing that it writes is missed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable

import pytest

from hostarch import WRITE, AddrRange, AddrRangeSeq, mman
from usermem import AddressSpace, BusyError

PAGE = 4096
SIZE = 64 * PAGE
RW = mman.PROT_READ | mman.PROT_WRITE
PRIVATE = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS


def test_each_start_returns_what_was_written_since_the_last() -> None:
    with AddressSpace() as space:
        addr = space.mmap(0, SIZE, RW, PRIVATE)
        space.copy_out(addr, b"before")
        assert space.start_dirty_tracking() == AddrRangeSeq()
        space.copy_out(addr + PAGE, b"one")
        one = AddrRangeSeq([AddrRange(addr + PAGE, addr + 2 * PAGE)])
        assert space.dirty_pages() == one
        pin = space.blocks(AddrRangeSeq([AddrRange(addr, addr + 1)]), WRITE)
        with pytest.raises(BusyError):
            space.start_dirty_tracking()
        del pin
        assert space.start_dirty_tracking() == one  # what failed has changed nothing
        assert space.start_dirty_tracking() == space.dirty_pages() == AddrRangeSeq()


def test_a_guest_is_moved_while_it_runs() -> None:
    """Writers go on in other threads all the time; the last round, without them, makes the two equal."""
    with AddressSpace() as guest, AddressSpace() as copy:
        addr = guest.mmap(0, SIZE, RW, PRIVATE)
        copy.mmap(addr, SIZE, RW, PRIVATE | mman.MAP_FIXED)
        done = threading.Event()

        def run(seed: int) -> None:
            choice = random.Random(seed)
            while not done.wait(0.0002):
                guest.copy_out(addr + choice.randrange(SIZE - 8), choice.randbytes(8))

        def move(pages: Iterable[AddrRange]) -> None:
            for part in pages:
                copy.copy_out(part.start, guest.read_bytes(part.start, part.length))

        writers = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
        for writer in writers:
            writer.start()
        try:
            guest.start_dirty_tracking(timeout=None)
            move([AddrRange(addr, addr + SIZE)])
            for _ in range(100):
                move(guest.start_dirty_tracking(timeout=None))
        finally:
            done.set()
            for writer in writers:
                writer.join()
        move(guest.start_dirty_tracking())
        assert copy.read_bytes(addr, SIZE) == guest.read_bytes(addr, SIZE)
