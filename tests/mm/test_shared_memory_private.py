"""A MAP_PRIVATE mapping of shared memory: its pages are shared until they are written, and then its own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW, pattern
from hostarch import READ, mman
from usermem import AddressSpace, FaultError, FaultReason, host_limits
from usermem.mm import host_calls
from usermem.mm.backing.shared_memory import SharedMemory

PRIVATE = mman.MAP_PRIVATE | mman.MAP_FIXED
SHARED = mman.MAP_SHARED | mman.MAP_FIXED
OWN = BASE
THEIRS = BASE + 64 * PAGE


def both(memory: SharedMemory, pages: int = 4) -> AddressSpace:
    """A space with the memory mapped twice: private at OWN, shared at THEIRS."""
    space = AddressSpace()
    space.map_object(OWN, pages * PAGE, RW, PRIVATE, memory)
    space.map_object(THEIRS, pages * PAGE, RW, SHARED, memory)
    return space


def test_what_it_writes_nobody_else_sees() -> None:
    """Not the memory's shared mappings, nor another private one; each page is its own from its first write on."""
    with both(SharedMemory(4 * PAGE)) as space, AddressSpace() as other:
        again = space.map_object(0, 4 * PAGE, RW, mman.MAP_PRIVATE, space.mappings()[0].backing.mapped)  # type: ignore[arg-type]
        space.copy_out(THEIRS, pattern(4 * PAGE))
        space.copy_out(OWN + PAGE, b"mine")
        assert space.read_bytes(THEIRS, 4 * PAGE) == space.read_bytes(again, 4 * PAGE) == pattern(4 * PAGE)
        assert space.read_bytes(OWN + PAGE, PAGE) == b"mine" + pattern(4 * PAGE)[PAGE + 4 : 2 * PAGE]
        other.map_object(OWN, 4 * PAGE, RW, PRIVATE, space.mappings()[0].backing.mapped)  # type: ignore[arg-type]
        assert other.read_bytes(OWN, 4 * PAGE) == pattern(4 * PAGE)
        other.copy_out(OWN, b"others'")
        assert space.read_bytes(OWN, 8) == space.read_bytes(THEIRS, 8) == pattern(8)
        assert space.swap_uint32(OWN + 8, 7) == int.from_bytes(pattern(12)[8:], "little")
        assert space.read_bytes(THEIRS + 8, 4) == pattern(12)[8:]


def test_pages_that_were_not_written_follow() -> None:
    """They show what the others write, also after they were read; written ones keep what they have."""
    with both(SharedMemory(2 * PAGE), 2) as space:
        assert space.read_bytes(OWN, 2 * PAGE) == bytes(2 * PAGE)
        space.copy_out(OWN, b"m")
        space.copy_out(THEIRS, pattern(2 * PAGE))
        assert space.read_bytes(OWN, 2 * PAGE) == b"m" + bytes(PAGE - 1) + pattern(2 * PAGE)[PAGE:]
        space.madvise(THEIRS, 2 * PAGE, mman.MADV_REMOVE)
        assert space.read_bytes(OWN, 2 * PAGE) == b"m" + bytes(2 * PAGE - 1)


def test_dontneed_brings_the_shared_bytes_back() -> None:
    """In the pages that are named, and no others."""
    with both(SharedMemory(3 * PAGE), 3) as space:
        space.copy_out(THEIRS, pattern(3 * PAGE))
        space.copy_out(OWN, b"\xee" * 3 * PAGE)
        space.madvise(OWN + PAGE, PAGE, mman.MADV_DONTNEED)
        expected = b"\xee" * PAGE + pattern(3 * PAGE)[PAGE : 2 * PAGE] + b"\xee" * PAGE
        assert space.read_bytes(OWN, 3 * PAGE) == expected
        space.copy_out(THEIRS + PAGE, b"later")
        assert space.read_bytes(OWN + PAGE, 5) == b"later"
        assert space.read_bytes(THEIRS, PAGE) == pattern(3 * PAGE)[:PAGE]


def test_mremap_takes_what_was_written_along() -> None:
    """Also as it grows; where it is kept (MREMAP_DONTUNMAP) the shared bytes are left behind."""
    to = BASE + 32 * PAGE
    flags = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED
    with both(SharedMemory(4 * PAGE)) as space:
        space.copy_out(THEIRS, pattern(4 * PAGE))
        space.copy_out(OWN + PAGE, b"mine")
        expected = pattern(PAGE) + b"mine" + pattern(4 * PAGE)[PAGE + 4 :]
        assert space.mremap(OWN, 2 * PAGE, 4 * PAGE, flags, to) == to
        assert space.read_bytes(to, 4 * PAGE) == expected
        space.copy_out(THEIRS, b"follow")
        assert space.read_bytes(to, 6) == b"follow"
        assert space.mremap(to, 4 * PAGE, 4 * PAGE, flags | mman.MREMAP_DONTUNMAP, OWN) == OWN
        assert space.read_bytes(OWN, 4 * PAGE) == b"follow" + expected[6:]
        assert space.read_bytes(to, 4 * PAGE) == b"follow" + pattern(4 * PAGE)[6:]
        space._check()


def test_parts_keep_what_they_have() -> None:
    """Unmapped in the middle, with other rights, mapped over: the pages around it are not touched."""
    with both(SharedMemory(6 * PAGE), 6) as space:
        space.copy_out(OWN, pattern(6 * PAGE))
        space.munmap(OWN + PAGE, PAGE)
        space.mprotect(OWN + 3 * PAGE, PAGE, mman.PROT_READ)
        space.mmap(OWN + 4 * PAGE, PAGE, RW, FIXED)
        for page in (0, 2, 3, 5):
            assert space.read_bytes(OWN + page * PAGE, PAGE) == pattern(6 * PAGE)[page * PAGE : (page + 1) * PAGE]
        assert space.read_bytes(THEIRS, 6 * PAGE) == bytes(6 * PAGE)


def test_an_offset_and_the_end() -> None:
    """From any page on; beyond the memory's end is nothing, and its last page is whole."""
    memory = SharedMemory(2 * PAGE + 10)
    with both(memory, 3) as space:
        space.copy_out(THEIRS, pattern(3 * PAGE))
        at = space.map_object(0, 4 * PAGE, RW, mman.MAP_PRIVATE, memory, PAGE)
        with pytest.raises(FaultError) as caught:
            space.read_bytes(at, 4 * PAGE)
        assert caught.value.partial == pattern(3 * PAGE)[PAGE:]
        assert caught.value.reason is FaultReason.BEYOND_FILE
        assert space.copy_out(at + PAGE, b"own") == 3
        assert space.read_bytes(THEIRS + 2 * PAGE, 3) == pattern(3 * PAGE)[2 * PAGE : 2 * PAGE + 3]


def test_far_apart_pages_of_a_large_memory() -> None:
    """What lies in different windows of the host's is one memory for the guest."""
    size = 1 << 30
    memory = SharedMemory(size)
    with AddressSpace() as space:
        own = space.map_object(0, size, RW, mman.MAP_PRIVATE, memory)
        theirs = space.map_object(0, size, RW, mman.MAP_SHARED, memory)
        places = range((1 << 26) - 4, size, 1 << 27)
        for at in places:
            space.copy_out(theirs + at, b"shared bytes")
            assert space.read_bytes(own + at, 12) == b"shared bytes"
            space.copy_out(own + at, b"OWN")
        for at in places:
            assert space.read_bytes(own + at, 12) == b"OWNred bytes"
            assert space.read_bytes(theirs + at, 12) == b"shared bytes"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this host does not fork")
def test_a_child_has_its_own() -> None:
    """After a fork each process keeps what it writes to itself, and both follow the shared bytes."""
    space = both(SharedMemory(2 * PAGE), 2)
    space.copy_out(OWN, b"before")
    outlet, inlet = os.pipe()
    child = os.fork()
    if not child:
        try:
            space.copy_out(OWN, b"child!")
            space.copy_out(THEIRS + PAGE, b"common")
            os.write(inlet, space.read_bytes(OWN, 6))
        finally:
            os._exit(0)
    os.close(inlet)
    assert os.read(outlet, 6) == b"child!"
    os.close(outlet)
    os.waitpid(child, 0)
    assert space.read_bytes(OWN, 6) == b"before"
    assert space.read_bytes(OWN + PAGE, 6) == b"common"


def without_memory_files(patch: pytest.MonkeyPatch) -> None:
    """As on a host that has none."""
    patch.setattr("usermem.mm.backing.shared_memory.memory_file", lambda: None)


@pytest.mark.parametrize("prepare", [lambda patch: None, without_memory_files], ids=["memfd", "no memfd"])
def test_everywhere_private_is_private(
    monkeypatch: pytest.MonkeyPatch, prepare: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Whatever the host has to make shared memory of."""
    prepare(monkeypatch)
    with both(SharedMemory(2 * PAGE), 2) as space:
        space.copy_out(THEIRS, pattern(2 * PAGE))
        space.copy_out(OWN, b"own")
        assert space.read_bytes(THEIRS, 2 * PAGE) == pattern(2 * PAGE)
        assert space.read_bytes(OWN, 2 * PAGE) == b"own" + pattern(2 * PAGE)[3:]
        space.madvise(OWN, PAGE, mman.MADV_DONTNEED)
        assert space.read_bytes(OWN, 8) == pattern(8)
        assert space.range_fault(OWN, 2 * PAGE, READ) is None


def test_without_memory_files_host_mappings_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each memory is a mapping of the host's then: none is left when guests have theirs, until one goes."""
    without_memory_files(monkeypatch)
    monkeypatch.setattr(host_limits, "max_map_count", len(host_calls._live) + 2)
    space, anonymous = AddressSpace(), mman.MAP_SHARED | mman.MAP_ANONYMOUS
    first, _ = (space.mmap(0, PAGE, RW, anonymous) for _ in range(2))
    with pytest.raises(OSError, match="shared memory") as caught:
        space.mmap(0, PAGE, RW, anonymous)
    assert caught.value.errno == errno.ENOMEM
    space.munmap(first, PAGE)
    space.copy_out(space.mmap(0, PAGE, RW, anonymous), b"x")
