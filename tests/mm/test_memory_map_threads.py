"""Threads that copy while others map, unmap, protect, move and drop: nothing is torn, and every error says all."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from campaign import times
from hostarch import READ, WRITE, AddrRange, AddrRangeSeq, mman
from safemem import BlockSeq, ReaderFunc
from simulator_file import SimulatorFile
from switching import quick_switches
from usermem import AddressSpace, FaultError, copy_in_vec, copy_string_in, copy_uint32_in
from usermem.errors import FaultReason

PAGE = 4096
BASE = 0x1000_0000
PAGES = 16
R, RW = mman.PROT_READ, mman.PROT_READ | mman.PROT_WRITE
PRIVATE = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
FIXED = PRIVATE | mman.MAP_FIXED
SHARED_FIXED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED
SECONDS = times(1, 20)
REASONS = (FaultReason.UNMAPPED, FaultReason.PERMISSION, FaultReason.BEYOND_FILE)

Change = Callable[[AddressSpace, int, random.Random], object]

CHANGES: list[Change] = [
    lambda space, addr, rng: space.mmap(addr, rng.randint(1, 4) * PAGE, RW, FIXED),
    lambda space, addr, rng: space.mmap(addr, rng.randint(1, 4) * PAGE, RW, SHARED_FIXED),
    lambda space, addr, rng: space.munmap(addr, rng.randint(1, 4) * PAGE),
    lambda space, addr, rng: space.mprotect(addr, rng.randint(1, 4) * PAGE, rng.choice([0, R, RW])),
    lambda space, addr, rng: space.madvise(addr, rng.randint(1, 4) * PAGE, mman.MADV_DONTNEED),
    lambda space, addr, rng: space.mremap(
        addr, PAGE, PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, BASE + rng.randrange(PAGES) * PAGE
    ),
    lambda space, addr, rng: space.brk(BASE + (PAGES + 4) * PAGE + rng.randrange(8 * PAGE)),
    lambda space, addr, rng: space.attach(addr, bytearray(PAGE), flags=mman.MAP_FIXED),
]


def word(n: int) -> bytes:
    """Eight bytes that are all the same, none of them 0."""
    return bytes([1 + n % 255]) * 8


def whole(data: bytes | bytearray) -> bool:
    """Whether each word of some was written by one thread, or is zeros."""
    return all(len(set(data[at : at + 8])) == 1 for at in range(0, len(data), 8))


def _read(space: AddressSpace, addr: int, n: int) -> None:
    assert whole(space.read_bytes(addr, n))


def _copy_in(space: AddressSpace, addr: int, n: int) -> None:
    buffer = bytearray(n)
    try:
        assert space.copy_in(addr, buffer) == n
    except FaultError as fault:
        assert not any(buffer[fault.transferred :])
        raise


def _vec(space: AddressSpace, addr: int, n: int) -> None:
    buffer = bytearray(16)
    copy_in_vec(space, AddrRangeSeq([AddrRange(addr, addr + 8), AddrRange(addr + PAGE, addr + PAGE + 8)]), buffer)
    assert whole(buffer)


def _stream(space: AddressSpace, addr: int, n: int) -> None:
    def fill(dsts: BlockSeq) -> int:
        time.sleep(0)  # somebody unmaps it here: the memory stays valid
        for block in dsts:
            block.view()[:] = bytes([7]) * len(block)
        return dsts.num_bytes

    space.copy_out_from(AddrRangeSeq.of(AddrRange(addr, addr + n)), ReaderFunc(fill))


ACCESSES: list[tuple[object, Callable[[AddressSpace, int, int], object]]] = [
    (READ, _read),
    (READ, _copy_in),
    (READ, _vec),
    (READ, lambda space, addr, n: copy_uint32_in(space, addr)),
    (READ, lambda space, addr, n: copy_string_in(space, addr, 8) if n < 0 else None),
    (WRITE, lambda space, addr, n: space.copy_out(addr, word(addr) * (n // 8))),
    (WRITE, _stream),
    (None, lambda space, addr, n: space.compare_and_swap_uint64(addr, 0, int.from_bytes(word(addr), "little"))),
]


@pytest.fixture(autouse=True)
def often_switched() -> Iterator[None]:
    """Threads take turns every 50 microseconds, not every 5 ms."""
    with quick_switches(5e-5):
        yield


def test_copies_while_mappings_change() -> None:
    """Four threads copy and two change, for a while; then the tables are in order, and all can be unmapped."""
    space = AddressSpace()
    space.set_brk(BASE + (PAGES + 4) * PAGE)
    stop = time.monotonic() + SECONDS
    errors: list[BaseException] = []
    counts: list[tuple[int, int]] = []

    def copy(seed: int) -> None:
        rng = random.Random(seed)
        good = bad = 0
        try:
            while time.monotonic() < stop:
                addr = BASE + rng.randrange(PAGES * PAGE // 8) * 8
                n = rng.choice([8, 64, PAGE, 2 * PAGE])
                access, act = rng.choice(ACCESSES)
                try:
                    act(space, addr, n)
                    good += 1
                except FaultError as fault:
                    bad += 1
                    assert fault.reason in REASONS
                    assert access in (None, fault.access)
                    assert addr <= fault.address <= addr + PAGE + n
                    assert 0 <= fault.transferred <= max(n, 16)
        except BaseException as exc:
            errors.append(exc)
        counts.append((good, bad))

    def change(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while time.monotonic() < stop:
                try:
                    rng.choice(CHANGES)(space, BASE + rng.randrange(PAGES) * PAGE, rng)
                except OSError as exc:
                    assert exc.errno, exc
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=copy, args=(i,)) for i in range(4)]
    threads += [threading.Thread(target=change, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert sum(good for good, _ in counts) > 100
    assert sum(bad for _, bad in counts) > 100
    space._check()
    space.munmap(0, space.arch.max_addr)
    assert space.maps() == ""


@pytest.mark.parametrize("way", ["mmap", "madvise", "mlock"])
def test_populating_lets_others_map(way: str) -> None:
    """A call that touches a slow object's pages holds no lock while it waits for them."""
    here, on = threading.Event(), threading.Event()

    class Slow(SimulatorFile):
        def read_at(self, offset: int, dst: memoryview) -> int:
            here.set()
            assert on.wait(10)
            return super().read_at(offset, dst)

    slow = Slow(b"s" * PAGE)
    space = AddressSpace()

    def populate() -> None:
        flags = mman.MAP_SHARED | (mman.MAP_POPULATE if way == "mmap" else 0)
        addr = space.map_object(0, PAGE, R, flags, slow)
        if way == "madvise":
            space.madvise(addr, PAGE, mman.MADV_POPULATE_READ)
        elif way == "mlock":
            space.mlock(addr, PAGE)

    thread = threading.Thread(target=populate)
    thread.start()
    try:
        assert here.wait(10)
        for other in (
            lambda: space.mmap(BASE, PAGE, RW, FIXED),
            lambda: space.mprotect(BASE, PAGE, R),
            lambda: space.munmap(BASE, PAGE),
        ):
            side = threading.Thread(target=other)
            side.start()
            side.join(5)
            assert not side.is_alive(), "it waits for the object"
    finally:
        on.set()
        thread.join(10)
