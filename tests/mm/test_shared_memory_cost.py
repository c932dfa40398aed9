"""Shared memory and files cost the host what a guest touches of them, not what it maps; and what goes, goes back."""

from __future__ import annotations

import errno
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_layouts import BASE, PAGE, RW, pattern
from hostarch import mman
from usermem import AddressSpace
from usermem.mm import memory_file
from usermem.mm.backing.shared_memory import SharedMemory
from usermem.mm.faulting import can_map

SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS
MIB = 1 << 20
TIB = 1 << 40

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="measures by /proc/self"),
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this host has no memory files"),
]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this host does not fork")


def address_space() -> int:
    """How much address space this process has, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE


def host_mappings() -> int:
    """How many mappings this process has."""
    return Path("/proc/self/maps").read_text().count("\n")


def descriptors() -> int:
    """How many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def memory_files() -> dict[int, int]:
    """The memory files of this test: how much memory each has, in bytes, by its inode."""
    gc.collect()
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        if link.exists() and "memfd:usermem-shared" in str(link.readlink()):
            found[link.stat().st_ino] = link.stat().st_blocks * 512
    return {inode: size for inode, size in found.items() if inode not in others}


others: set[int] = set()
"""The memory files that other tests have left something in."""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Begin with a new memory file."""
    memory_file._retire()
    others.update(memory_files())
    yield
    memory_file._retire()


def map_shared(space: AddressSpace, size: int) -> int:
    """Shared anonymous memory."""
    return space.mmap(0, size, RW, SHARED)


def map_file(space: AddressSpace, size: int) -> int:
    """A file that has one byte."""
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"x")
        return space.mmap(0, size, RW, mman.MAP_SHARED, file.fileno(), 0)


def map_private(space: AddressSpace, size: int) -> int:
    """A private mapping of shared memory."""
    return space.map_object(0, size, RW, mman.MAP_PRIVATE, SharedMemory(size))


@pytest.mark.parametrize("map_some", [map_shared, map_private, map_file])
def test_huge_mappings_take_no_address_space(map_some: Callable[[AddressSpace, int], int]) -> None:
    """Hundreds of TiB in ever smaller mappings, until the guest's address space is full: the host has its own still."""
    if map_some is map_file and not can_map():
        pytest.skip("this host cannot copy memory that may fault")
    space = AddressSpace()
    map_some(space, PAGE)
    before, mappings = address_space(), host_mappings()
    size, calls = 64 * TIB, 0
    while size >= MIB and calls < 200:
        try:
            map_some(space, size)
            calls += 1
        except OSError as exc:
            assert exc.errno == errno.ENOMEM
            size //= 2
    assert calls > 20
    assert address_space() - before < 64 * MIB
    assert host_mappings() - mappings < 16


def test_many_small_mappings_take_no_host_mapping_each() -> None:
    """8,000 of a page, all touched: windows of the memory file, one descriptor, some 64 KiB of it for each."""
    space = AddressSpace()
    space.mmap(0, PAGE, RW, SHARED)
    mappings, fds, before = host_mappings(), descriptors(), address_space()
    found = [space.mmap(BASE + 2 * i * PAGE, PAGE, RW, SHARED | mman.MAP_FIXED) for i in range(8_000)]
    assert (host_mappings() - mappings, descriptors() - fds) <= (2, 0)
    for i, at in enumerate(found):
        space.copy_out(at, i.to_bytes(4, "little"))
    assert host_mappings() - mappings < 60
    assert descriptors() == fds
    assert address_space() - before < 2 * (8_000 << 16)
    assert all(space.read_bytes(at, 5) == i.to_bytes(5, "little") for i, at in enumerate(found))
    del space, found
    gc.collect()
    assert host_mappings() - mappings < 8
    assert address_space() - before < 256 * MIB


def test_what_is_not_touched_is_no_memory() -> None:
    """Of 1 TiB in which three bytes lie far apart, three pages."""
    space = AddressSpace()
    at = space.mmap(0, TIB, RW, SHARED)
    for offset in (0, TIB // 2, TIB - 1):
        space.copy_out(at + offset, b"x")
    (size,) = memory_files().values()
    assert size <= 3 * 2 * MIB  # a page each, or a huge one


def test_memory_goes_back_with_the_last_reference() -> None:
    """Not while a mapping, the object, or a block of it is there; then to the host, and other memory gets zeros."""
    memory = SharedMemory(8 * MIB)
    space, other = AddressSpace(), AddressSpace()
    at = space.map_object(0, 8 * MIB, RW, mman.MAP_SHARED, memory)
    space.copy_out(at, b"\xee" * 8 * MIB)
    also = other.map_object(0, 8 * MIB, RW, mman.MAP_SHARED, memory)
    assert max(memory_files().values()) >= 8 * MIB
    space.close()
    del memory
    runs = other.host_runs(also, also + PAGE)
    other.munmap(also, 8 * MIB)
    assert max(memory_files().values()) >= 8 * MIB
    del runs
    assert max(memory_files().values()) < MIB
    again = other.mmap(0, 8 * MIB, RW, SHARED)
    assert other.read_bytes(again, 8 * MIB) == bytes(8 * MIB)


def in_a_child(call: Callable[[], bytes], meanwhile: Callable[[], object] = bool) -> bytes:
    """What a call returns in a child process, up to a pipe's worth; b"" if it raises. And something to do meanwhile."""
    outlet, inlet = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(inlet, call())
        finally:
            os._exit(0)
    os.close(inlet)
    meanwhile()
    found = os.read(outlet, PAGE)
    os.close(outlet)
    os.waitpid(child, 0)
    return found


@forks
def test_what_neither_had_touched_is_shared() -> None:
    """A fork before the first touch: each process sees what the other writes, wherever it first touches it."""
    space = AddressSpace()
    at = space.mmap(0, 256 * MIB, RW, SHARED)
    memory = SharedMemory(PAGE)

    def child() -> bytes:
        space.copy_out(at + 10, b"child")
        own = AddressSpace()
        own.copy_out(own.map_object(0, PAGE, RW, mman.MAP_SHARED, memory), b"late map")
        space.copy_out(at + 200 * MIB, b"far")
        return b"done"

    assert in_a_child(child) == b"done"
    assert space.read_bytes(at + 10, 5) == b"child"
    assert space.read_bytes(at + 200 * MIB, 3) == b"far"
    there = space.map_object(0, PAGE, RW, mman.MAP_SHARED, memory)
    assert space.read_bytes(there, 8) == b"late map"
    space.copy_out(at, b"parent")
    assert in_a_child(lambda: space.read_bytes(at, 6)) == b"parent"


@forks
def test_what_is_allocated_after_a_fork_is_not_shared() -> None:
    """Though both processes allocate the same: each has its own bytes, and neither takes what the other may use."""
    space = AddressSpace()
    common = space.mmap(0, PAGE, RW, SHARED)
    space.copy_out(common, b"common")
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    own = [space.mmap(0, PAGE, RW, SHARED) for _ in range(8)]
    for at in own:
        space.copy_out(at, b"parent" if child else b"child!")
    if not child:
        try:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            found = {space.read_bytes(at, 6) for at in own} | {space.read_bytes(common, 6)}
            os._exit(0 if found == {b"child!", b"common"} else 1)
        finally:
            os._exit(2)
    assert os.read(ready[0], 1) == b"x"
    assert {space.read_bytes(at, 6) for at in own} == {b"parent"}
    space.munmap(own[0], PAGE)
    os.write(go[1], b"x")
    _, status = os.waitpid(child, 0)
    for fd in (*ready, *go):
        os.close(fd)
    assert os.waitstatus_to_exitcode(status) == 0
    assert space.read_bytes(common, 6) == b"common"


@forks
def test_memory_that_goes_in_one_process_stays_in_the_other() -> None:
    """Unmapped by the child, or by the parent, it is the other's all the same."""
    space = AddressSpace()
    at = space.mmap(0, MIB, RW, SHARED)
    space.copy_out(at, pattern(MIB))

    def child() -> bytes:
        space.close()
        gc.collect()
        return b"closed"

    assert in_a_child(child) == b"closed"
    assert space.read_bytes(at, MIB) == pattern(MIB)
    ready, go = os.pipe(), os.pipe()

    def reader() -> bytes:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        return b"whole" if space.read_bytes(at, MIB) == pattern(MIB) else b"zeroed"

    def parent() -> None:
        os.read(ready[0], 1)
        space.close()
        gc.collect()
        os.write(go[1], b"x")

    assert in_a_child(reader, parent) == b"whole"
    for fd in (*ready, *go):
        os.close(fd)


@forks
def test_the_old_memory_file_goes_with_its_last_memory() -> None:
    """After forks there is one for each generation that is still in use, and none for the others."""
    space = AddressSpace()
    first = space.mmap(0, MIB, RW, SHARED)
    space.copy_out(first, b"\xee" * MIB)
    for _ in range(5):
        assert in_a_child(lambda: b"x") == b"x"
        at = space.mmap(0, PAGE, RW, SHARED)
        space.copy_out(at, b"x")
        space.munmap(at, PAGE)
    assert len(memory_files()) <= 2
    assert max(memory_files().values()) >= MIB
    space.munmap(first, MIB)
    assert max([0, *memory_files().values()]) < MIB
    assert len(memory_files()) <= 1
