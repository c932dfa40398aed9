"""Guest memory costs the host nothing until it is touched, few host mappings ever, and is reused only when let go.

Measured by /proc/self: resident pages, and lines of the maps.
"""

from __future__ import annotations

import ctypes
import gc
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW, one, source
from host_figures import host_mappings, resident
from hostarch import AddrRangeSeq, mman
from safemem import Block, BlockSeq, ReaderFunc
from usermem import AddressSpace, BytesIO, FaultError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures by /proc/self/statm and /proc/self/maps")

MIB = 1 << 20
GIB = 1 << 30


def cost_of_a_touch() -> int:
    """How much memory the host gives where one byte is written: a page, or a huge one if it is set to."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return 2 * MIB if setting.exists() and "[always]" in setting.read_text() else PAGE


def host_address(space: AddressSpace, addr: int) -> int:
    """Where in host memory a guest's byte is."""
    return space.blocks(one(addr, 1)).head().address


def test_a_tebibyte_of_reservation_costs_nothing() -> None:
    """1 TiB without rights: no memory, no host mapping, and every access faults."""
    space = AddressSpace()
    before, mappings = resident(), host_mappings()
    addr = space.mmap(0, 1 << 40, mman.PROT_NONE, ANON | mman.MAP_NORESERVE)
    for at in range(addr, addr + (1 << 40), 1 << 34):
        with pytest.raises(FaultError):
            space.read_bytes(at, 8)
        with pytest.raises(FaultError):
            space.copy_out(at, b"x")
    assert host_mappings() <= mappings + 1
    assert resident() - before < 4 * MIB
    assert space.read_bytes(addr + (1 << 39), 8, ignore_permissions=True) == bytes(8)
    assert resident() - before < 4 * MIB


def test_a_large_mapping_costs_what_is_touched() -> None:
    """64 GiB, of which 256 pages all over it are written: those pages, and some host mappings."""
    space = AddressSpace()
    before, mappings = resident(), host_mappings()
    addr = space.mmap(0, 64 * GIB, RW, ANON)
    assert resident() - before < MIB
    places = range(addr, addr + 64 * GIB, 256 * MIB)
    for at in places:
        assert space.copy_out(at + 5, b"touched") == 7
    assert all(space.read_bytes(at, 13) == bytes(5) + b"touched\0" for at in places)
    assert resident() - before < 4 * MIB + len(places) * cost_of_a_touch()
    assert host_mappings() - mappings < 16
    space.munmap(addr, 64 * GIB)
    assert resident() - before < 4 * MIB


def test_many_small_mappings_make_few_host_mappings() -> None:
    """20,000 mappings of a page that cannot merge, each touched, every other one unmapped and mapped again."""
    space = AddressSpace()
    mappings = host_mappings()
    rights = (RW, RW | mman.PROT_EXEC)
    for i in range(20_000):
        space.mmap(BASE + i * PAGE, PAGE, rights[i & 1], FIXED)
        space.copy_out(BASE + i * PAGE, b"\x01")
    assert space.maps().count("\n") == 20_000
    assert host_mappings() - mappings < 16
    for i in range(0, 20_000, 2):
        space.munmap(BASE + i * PAGE, PAGE)
    for i in range(0, 20_000, 200):
        space.mmap(BASE + i * PAGE, PAGE, RW, FIXED)
        assert space.read_bytes(BASE + i * PAGE, 1) == b"\0"
        assert space.read_bytes(BASE + (i + 1) * PAGE, 1) == b"\x01"
    assert host_mappings() - mappings < 16
    space._check()


def test_what_is_contiguous_for_the_guest_is_here() -> None:
    """Neighbours that were mapped and touched one by one, upward or downward, are one run of host memory."""
    for order in (range(200), range(199, -1, -1)):
        space = AddressSpace()
        for i in order:
            space.mmap(BASE + i * PAGE, PAGE, RW, FIXED)
            space.copy_out(BASE + i * PAGE, b"\x01")
        assert len(space.blocks(one(BASE, 200 * PAGE))) == 1


def test_unmapped_memory_goes_back() -> None:
    """Mapping, filling and unmapping 8 MiB a hundred times over keeps no more than a few MiB."""
    space = AddressSpace()
    before, mappings = resident(), host_mappings()
    for _ in range(100):
        addr = space.mmap(0, 8 * MIB, RW, ANON)
        space.copy_out(addr, b"\xaa" * (8 * MIB))
        space.munmap(addr, 8 * MIB)
    assert resident() - before < 24 * MIB
    assert host_mappings() - mappings < 16


def test_a_closed_space_goes_back() -> None:
    """So does what a space held when it was closed, or simply dropped."""
    before = resident()
    for _ in range(8):
        with AddressSpace() as space:
            space.mmap(BASE, 16 * MIB, RW, FIXED)
            space.copy_out(BASE, b"\xaa" * (16 * MIB))
        dropped = AddressSpace()
        dropped.mmap(BASE, 16 * MIB, RW, FIXED)
        dropped.copy_out(BASE, b"\xaa" * (16 * MIB))
        del space, dropped
    assert resident() - before < 48 * MIB


HOLDERS: dict[str, Callable[[BlockSeq], object]] = {
    "sequence": lambda blocks: blocks,
    "rest of a sequence": lambda blocks: blocks.drop_first(2).take_first(1),
    "block": lambda blocks: blocks.head(),
    "part of a block": lambda blocks: blocks.head().drop_first(2),
    "view": lambda blocks: blocks.head().view(),
    "slice": lambda blocks: blocks.head().view()[2:3],
    "cast": lambda blocks: blocks.head().view().cast("I"),
    "read-only view": lambda blocks: blocks.head().view().toreadonly(),
    "block of a view": lambda blocks: Block(blocks.head().view()[1:]),
    "array over it": lambda blocks: (ctypes.c_ubyte * 4).from_buffer(blocks.head().view()),
    "buffer to pickle": lambda blocks: pickle.PickleBuffer(blocks.head().view()),
    "another IO": lambda blocks: BytesIO(blocks.head().view()),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_pinned_memory_is_not_reused(name: str) -> None:
    """What was unmapped stays as it was while anything made of its blocks is there, and is reused, as zeros, after."""
    space = AddressSpace()
    space.mmap(BASE, 4 * PAGE, RW, FIXED)
    space.copy_out(BASE + PAGE, b"keep" * (PAGE // 4))
    blocks = space.blocks(one(BASE + PAGE, PAGE))
    pinned = blocks.head().address
    view_of_all = bytes(blocks.head().view())
    holder: object = HOLDERS[name](blocks)
    watched = ctypes.string_at(pinned, PAGE)
    del blocks
    gc.collect()
    assert watched == view_of_all == b"keep" * (PAGE // 4)
    space.munmap(BASE, 4 * PAGE)
    for _ in range(8):
        space.mmap(BASE, 4 * PAGE, RW, FIXED)
        space.copy_out(BASE, b"\xaa" * (4 * PAGE))
        assert not pinned <= host_address(space, BASE + PAGE) < pinned + PAGE
        assert ctypes.string_at(pinned, PAGE) == b"keep" * (PAGE // 4)
        space.munmap(BASE, 4 * PAGE)
    del holder
    gc.collect()
    assert ctypes.string_at(pinned, PAGE) == bytes(PAGE)
    reused = set()
    for page in range(8):
        space.mmap(BASE + page * PAGE, PAGE, RW, FIXED)
        assert space.read_bytes(BASE + page * PAGE, PAGE) == bytes(PAGE)
        reused.add(host_address(space, BASE + page * PAGE))
    assert pinned in reused


def test_blocks_of_several_ranges() -> None:
    """blocks() gives what is behind all ranges, in order and over seams, and raises for a byte that is missing."""
    space = AddressSpace()
    space.mmap(BASE, 2 * PAGE, RW, FIXED)
    space.copy_out(BASE + PAGE - 2, b"seam")
    ranges = AddrRangeSeq([*one(BASE + PAGE, 2), *one(BASE, 0), *one(BASE + PAGE - 2, 4)])
    blocks = space.blocks(ranges)
    assert blocks.tobytes() == b"amseam"
    blocks.head().view()[:] = b"AM"
    assert space.read_bytes(BASE + PAGE - 2, 4) == b"seAM"
    with pytest.raises(FaultError) as caught:
        space.blocks(one(BASE, 2 * PAGE + 1))
    assert caught.value.address == BASE + 2 * PAGE


def test_memory_unmapped_in_mid_copy() -> None:
    """A copy that is overtaken by munmap and a new mapping lands in the old memory, never in the new."""
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)

    def overtaken(dsts: BlockSeq) -> int:
        space.munmap(BASE, PAGE)
        for _ in range(4):
            space.mmap(BASE, PAGE, RW, FIXED)
            space.copy_out(BASE, b"new" * 9)
        return source(b"old" * 9).read_to_blocks(dsts)

    assert space.copy_out_from(one(BASE, 27), ReaderFunc(overtaken)) == 27
    assert space.read_bytes(BASE, 27) == b"new" * 9


class Filled:
    """An object of 1 TiB that has bytes everywhere, or says that it has none there."""

    def __init__(self, holes: bool) -> None:
        self.holes = holes

    def size(self) -> int:
        return 1 << 40

    def read_at(self, offset: int, dst: memoryview) -> int:
        """Fill it, or leave it."""
        if not self.holes:
            dst[:] = b"z" * len(dst)
        return 0 if self.holes else len(dst)


@pytest.mark.parametrize("flags", [mman.MAP_SHARED, mman.MAP_PRIVATE], ids=["shared", "private"])
@pytest.mark.parametrize("holes", [False, True], ids=["filled", "holes"])
def test_a_byte_here_and_there_of_an_object(holes: bool, flags: int) -> None:
    """Far apart, each costs a window of 64 KiB, a few pages where the object has a hole, and no host mapping each."""
    with AddressSpace() as space:
        at = space.map_object(0, 1 << 30, RW, flags, Filled(holes))
        before, mappings = resident(), host_mappings()
        for i in range(256):
            assert space.read_bytes(at + (i << 20), 1) == (b"\0" if holes else b"z")
        assert resident() - before < 256 * (24 * 1024 if holes else 80 * 1024)
        assert host_mappings() - mappings < 16


def test_reading_an_object_on_and_on() -> None:
    """Who reads all of a private object has it read in long pieces, for 64 MiB less than 100 calls."""
    calls: list[int] = []

    class Counting(Filled):
        def read_at(self, offset: int, dst: memoryview) -> int:
            calls.append(len(dst))
            return 0

    with AddressSpace() as space:
        at = space.map_object(0, 64 * MIB, RW, mman.MAP_PRIVATE, Counting(True))
        for i in range(1024):
            space.read_bytes(at + (i << 16), 1 << 16)
    assert sum(calls) == 64 * MIB
    assert len(calls) < 100
