"""Memory that several have in common: forked processes, spaces, buffers of the caller's, files of the simulator's.

And the hook that is asked before an access faults.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from edge_layouts import one
from hostarch import READ, WRITE, AccessType, mman
from safemem import atomics
from usermem import AddressSpace, FaultError
from usermem.errors import FaultReason
from usermem.mm.backing.shared_memory import SharedMemory
from usermem.mm.faulting import can_map
from usermem.testing.operations import pattern

PAGE = mmap.PAGESIZE
R, RW = mman.PROT_READ, mman.PROT_READ | mman.PROT_WRITE
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS
PRIVATE = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
FIXED = mman.MAP_FIXED


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this host does not fork")
def test_a_child_shares_what_is_shared() -> None:
    """Each process sees what the other writes to shared memory, and not what it writes to its own."""
    space = AddressSpace()
    shared, private = (space.mmap(0, PAGE, RW, flags) for flags in (SHARED, PRIVATE))
    space.copy_out(private, b"parent")
    outlet, inlet = os.pipe()
    child = os.fork()
    if not child:
        try:
            space.copy_out(shared, b"child")
            space.copy_out(private, b"child!")
            os.write(inlet, b"x")
        finally:
            os._exit(0)
    os.close(inlet)
    assert os.read(outlet, 1) == b"x"
    os.close(outlet)
    os.waitpid(child, 0)
    assert space.read_bytes(shared, 5) == b"child"
    assert space.read_bytes(private, 6) == b"parent"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this host does not fork")
def test_two_processes_count_in_guest_memory() -> None:
    """Native atomics on shared guest memory lose nothing."""
    if atomics.tier() != "native":
        pytest.skip("atomics are not native here")
    turns = 20_000
    space = AddressSpace()
    addr = space.mmap(0, PAGE, RW, SHARED)
    word = space.blocks(one(addr, 8), WRITE).head()
    child = os.fork()
    for _ in range(turns):
        atomics.fetch_add(8, word, 1)
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert space.load_uint64(addr) == 2 * turns


def test_spaces_share_one_memory() -> None:
    """Mapped as often as one likes, whole or in part; beyond its end is nothing."""
    memory = SharedMemory(4 * PAGE)
    with AddressSpace() as one_space, AddressSpace() as other:
        a = one_space.map_object(0, 4 * PAGE, RW, mman.MAP_SHARED, memory)
        b = other.map_object(0, 2 * PAGE, RW, mman.MAP_SHARED, memory, 2 * PAGE)
        c = one_space.map_object(0, 6 * PAGE, R, mman.MAP_SHARED, memory)
        one_space.copy_out(a + 2 * PAGE, b"hello")
        assert other.read_bytes(b, 5) == one_space.read_bytes(c + 2 * PAGE, 5) == b"hello"
        other.copy_out(b + PAGE, b"back")
        assert one_space.read_bytes(a + 3 * PAGE, 4) == b"back"
        with pytest.raises(FaultError) as caught:
            one_space.read_bytes(c + 4 * PAGE - 4, 8)
        assert (caught.value.reason, caught.value.transferred) == (FaultReason.BEYOND_FILE, 4)
        one_space.munmap(a, 4 * PAGE)
        assert other.read_bytes(b, 5) == b"hello"


def test_an_attached_buffer() -> None:
    """No copy is made: each sees the other's bytes; it stays exported until it is unmapped."""
    buffer = bytearray(pattern(2 * PAGE))
    with AddressSpace() as space:
        addr = space.attach(0, buffer, name="[caller's]")
        assert space.read_bytes(addr, 2 * PAGE) == buffer
        space.copy_out(addr + PAGE - 2, b"guest")
        assert buffer[PAGE - 2 : PAGE + 3] == b"guest"
        buffer[:4] = b"host"
        assert space.read_bytes(addr, 4) == b"host"
        assert "[caller's]" in space.maps()
        with pytest.raises(BufferError):
            buffer.append(1)
        space.mprotect(addr, PAGE, R)
        with pytest.raises(FaultError):
            space.copy_out(addr, b"x")
        assert space.copy_out(addr + PAGE, b"x") == 1
        space.munmap(addr, 2 * PAGE)
        buffer.append(1)


def test_an_attached_mmap_is_as_quick_as_our_own() -> None:
    """Its pages are remembered; it can be attached twice, where the caller says."""
    memory = mmap.mmap(-1, 2 * PAGE)
    with AddressSpace() as space:
        at = 0x10_0000
        assert space.attach(at, memory, flags=FIXED) == at
        again = space.attach(0, memory)
        space.copy_out(at, b"twice")
        assert space.read_bytes(again, 5) == memory[:5] == b"twice"
        assert again >> 12 in space._readable
        with pytest.raises(BufferError):
            memory.close()
    memory.close()


def test_buffers_that_cannot_be_attached() -> None:
    """No whole pages, nothing, no buffer; a read-only one is never writable."""
    with AddressSpace() as space:
        for bad in (bytearray(PAGE + 1), bytearray()):
            with pytest.raises(ValueError, match="whole pages"):
                space.attach(0, bad)
        with pytest.raises(TypeError, match="buffer"):
            space.attach(0, "text")  # type: ignore[arg-type]
        addr = space.attach(0, bytes(PAGE))
        with pytest.raises(FaultError):
            space.copy_out(addr, b"x")
        with pytest.raises(PermissionError):
            space.mprotect(addr, PAGE, RW)


@pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")
def test_an_attached_file_that_is_cut(tmp_path: Path) -> None:
    """The caller's own mapping of a file faults as ours do, and kills nobody."""
    with (tmp_path / "file").open("wb+", buffering=0) as file:
        file.write(pattern(2 * PAGE))
        memory = mmap.mmap(file.fileno(), 2 * PAGE)
        with AddressSpace() as space:
            addr = space.attach(0, memory)
            space.copy_out(addr, b"both")
            file.truncate(PAGE)
            with pytest.raises(FaultError) as caught:
                space.read_bytes(addr, 2 * PAGE)
            assert (caught.value.transferred, caught.value.reason) == (PAGE, FaultReason.BEYOND_FILE)
            assert memory[:4] == b"both"


class File:
    """A simulator's file."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.reads: list[int] = []
        self.writes: list[tuple[int, int]] = []

    def size(self) -> int:
        """See MappedObject."""
        return len(self.data)

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        self.reads.append(offset)
        part = self.data[offset : offset + len(dst)]
        dst[: len(part)] = part
        return len(part)

    def write_at(self, offset: int, src: memoryview) -> int:
        """See WritableObject."""
        self.writes.append((offset, len(src)))
        self.data[offset : offset + len(src)] = src
        return len(src)


def test_a_simulators_file_gets_what_was_written() -> None:
    """By msync and munmap, the pages that have changed and no others, and none of the bytes behind its end."""
    file = File(pattern(3 * PAGE + 100))
    with AddressSpace() as space:
        addr = space.map_object(0, 4 * PAGE, RW, mman.MAP_SHARED, file)
        assert file.reads == []
        assert space.read_bytes(addr, 10) == file.data[:10]
        space.copy_out(addr + PAGE, b"changed")
        assert file.data[PAGE : PAGE + 7] != b"changed"
        assert space.msync(addr, PAGE, mman.MS_SYNC) == 0
        assert file.writes == []
        space.msync(addr, 4 * PAGE, mman.MS_SYNC)
        assert file.writes == [(PAGE, PAGE)]
        space.msync(addr, 4 * PAGE, mman.MS_SYNC)
        assert file.writes == [(PAGE, PAGE)]
        space.copy_out(addr + 3 * PAGE, b"tail" * 50)
        space.munmap(addr + 3 * PAGE, PAGE)
        assert file.writes[1:] == [(3 * PAGE, 100)]
        assert (len(file.data), bytes(file.data[3 * PAGE :])) == (3 * PAGE + 100, b"tail" * 25)
        space.copy_out(addr, b"at the close")
    assert file.data[:12] == b"at the close"
    assert len(set(file.reads)) == len(file.reads) == 1


def test_mappings_of_one_file_are_coherent() -> None:
    """In one space and in two; a private mapping has pages of its own."""
    file = File(pattern(2 * PAGE))
    with AddressSpace() as space, AddressSpace() as other:
        a = space.map_object(0, 2 * PAGE, RW, mman.MAP_SHARED, file)
        b = space.map_object(0, PAGE, RW, mman.MAP_SHARED, file, PAGE)
        c = other.map_object(0, PAGE, R, mman.MAP_SHARED, file, PAGE)
        private = other.map_object(0, PAGE, RW, mman.MAP_PRIVATE, file)
        space.copy_out(a + PAGE, b"all see this")
        assert space.read_bytes(b, 12) == other.read_bytes(c, 12) == b"all see this"
        other.copy_out(private, b"mine")
        assert space.read_bytes(a, 4) == file.data[:4]
        moved = space.mremap(a, 2 * PAGE, 4 * PAGE, mman.MREMAP_MAYMOVE)
        assert space.read_bytes(moved + PAGE, 12) == b"all see this"
        with pytest.raises(FaultError):
            space.read_bytes(moved + 2 * PAGE, 1)
    assert file.data[PAGE : PAGE + 12] == b"all see this"


def test_the_hook_maps_what_is_missing() -> None:
    """It is asked once for each byte that stops an access, and the access goes on."""
    asked: list[tuple[int, AccessType]] = []
    base = 0x10_0000
    with AddressSpace() as space:

        def on_fault(addr: int, access: AccessType) -> bool:
            asked.append((addr, access))
            space.mmap(addr & -PAGE, PAGE, RW, PRIVATE | FIXED)
            return True

        space.on_fault = on_fault
        assert space.copy_out(base + 10, pattern(2 * PAGE)) == 2 * PAGE
        assert asked == [(base + 10, WRITE), (base + PAGE, WRITE), (base + 2 * PAGE, WRITE)]
        assert space.read_bytes(base + 10, 2 * PAGE) == pattern(2 * PAGE)
        assert len(asked) == 3
        space.mprotect(base, PAGE, R)
        assert space.swap_uint32(base, 1) == 0


@pytest.mark.parametrize("answer", [True, False])
def test_the_hook_is_asked_once(answer: bool) -> None:
    """If nothing has changed, or it says so, the fault is the guest's; what the hook itself touches asks nobody."""
    asked: list[int] = []
    with AddressSpace() as space:

        def on_fault(addr: int, access: AccessType) -> bool:
            asked.append(addr)
            with pytest.raises(FaultError):
                space.read_bytes(0x5000, 1)
            return answer

        space.on_fault = on_fault
        with pytest.raises(FaultError) as caught:
            space.read_bytes(0x10_0000, 8)
        assert (caught.value.address, caught.value.access) == (0x10_0000, READ)
        assert asked == [0x10_0000]


def test_an_error_of_the_hooks_passes_through() -> None:
    """As the same object; the next fault asks it again."""
    with AddressSpace() as space:

        def on_fault(addr: int, access: AccessType) -> bool:
            raise KeyError(addr)

        space.on_fault = on_fault
        for _ in range(2):
            with pytest.raises(KeyError):
                space.read_bytes(0x10_0000, 8)


def test_shared_memory_costs_nothing_until_it_is_touched() -> None:
    """As private memory: the host sets none aside for it."""
    with AddressSpace() as space:
        addr = space.mmap(0, 1 << 40, RW, SHARED)
        space.copy_out(addr + (1 << 39), b"here")
        assert space.read_bytes(addr + (1 << 39), 4) == b"here"
