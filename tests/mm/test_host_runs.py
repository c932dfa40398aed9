"""Where a guest's memory is in this process, for an emulator that aliases it and is kept true by a listener."""

from __future__ import annotations

import ctypes
import gc
import mmap
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW, GrowingObject, pattern
from hostarch import mman
from usermem import AddressSpace, FaultError
from usermem.mm.backing.shared_memory import SharedMemory
from usermem.mm.faulting import can_map
from usermem.mm.host_runs import GuestRun
from usermem.mm.listeners import ChangeKind

R = mman.PROT_READ
SHARED_HERE = mman.MAP_SHARED | mman.MAP_FIXED
PRIVATE_HERE = mman.MAP_PRIVATE | mman.MAP_FIXED
files = pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")


def content(run: GuestRun) -> bytes:
    """The bytes at a run's host address."""
    return ctypes.string_at(run.address, run.length)


def places(runs: list[GuestRun]) -> list[tuple[int, int, int]]:
    """Where the guest sees them, and its rights."""
    return [(run.start, run.length, run.prot) for run in runs]


def test_the_addresses_are_the_memorys() -> None:
    """What is written at the host address the guest reads, and the other way round; untouched memory is zero."""
    space = AddressSpace()
    space.mmap(BASE, 4 * PAGE, RW, FIXED)
    (run,) = space.host_runs(BASE, BASE + 4 * PAGE)
    assert places([run]) == [(BASE, 4 * PAGE, RW)]
    assert (run.end, run.is_copy) == (BASE + 4 * PAGE, False)
    assert content(run) == bytes(4 * PAGE)
    space.copy_out(BASE + 5, pattern(3 * PAGE))
    assert content(run)[5 : 5 + 3 * PAGE] == pattern(3 * PAGE)
    ctypes.memmove(run.address + 2 * PAGE, b"emulated", 8)
    assert space.read_bytes(BASE + 2 * PAGE, 8) == b"emulated"


def test_neighbours_are_joined_and_holes_left_out() -> None:
    """One run for what is contiguous here and there with the same rights; the first and the last cut to the range."""
    space = AddressSpace()
    for page in range(6):
        space.mmap(BASE + page * PAGE, PAGE, RW, FIXED)
        space.copy_out(BASE + page * PAGE, b"touched")
    space.set_name(BASE + PAGE, PAGE, "another mapping")
    space.mprotect(BASE + 2 * PAGE, PAGE, R)
    space.munmap(BASE + 4 * PAGE, PAGE)
    space.mmap(BASE + 6 * PAGE, PAGE, mman.PROT_NONE, FIXED)
    assert places(space.host_runs(0, space.arch.max_addr)) == [
        (BASE, 2 * PAGE, RW),
        (BASE + 2 * PAGE, PAGE, R),
        (BASE + 3 * PAGE, PAGE, RW),
        (BASE + 5 * PAGE, PAGE, RW),
        (BASE + 6 * PAGE, PAGE, mman.PROT_NONE),
    ]
    assert places(space.host_runs(BASE + PAGE, BASE + 3 * PAGE)) == [
        (BASE + PAGE, PAGE, RW),
        (BASE + 2 * PAGE, PAGE, R),
    ]
    assert space.host_runs(BASE + 4 * PAGE, BASE + 5 * PAGE) == space.host_runs(BASE, BASE) == []


def test_what_is_contiguous_only_for_the_guest_is_two() -> None:
    """Two buffers of the caller's side by side."""
    buffers = [bytearray(pattern(PAGE)), bytearray(b"b" * PAGE)]
    space = AddressSpace()
    for i, buffer in enumerate(buffers):
        space.attach(BASE + i * PAGE, buffer, flags=mman.MAP_FIXED)
    runs = space.host_runs(BASE, BASE + 2 * PAGE)
    found = b"".join(content(run) for run in runs)
    assert found == buffers[0] + buffers[1]
    assert runs[0].address == ctypes.addressof(ctypes.c_char.from_buffer(buffers[0]))


def test_a_run_keeps_its_memory_alive() -> None:
    """After munmap its bytes stay, and the memory is nobody else's, until the run is gone."""
    space = AddressSpace()
    space.mmap(BASE, 2 * PAGE, RW, FIXED)
    space.copy_out(BASE, pattern(2 * PAGE))
    shared = space.map_object(BASE + 4 * PAGE, PAGE, RW, SHARED_HERE, SharedMemory(PAGE))
    space.copy_out(shared, b"shared")
    runs = space.host_runs(BASE, shared + PAGE)
    space.close()
    gc.collect()
    other = AddressSpace()
    for _ in range(4):
        other.copy_out(other.mmap(0, 2 * PAGE, RW, ANON), b"\xaa" * 2 * PAGE)
    assert content(runs[0]) == pattern(2 * PAGE)
    assert content(runs[1])[:6] == b"shared"
    at = runs[0].address
    del runs
    gc.collect()
    assert ctypes.string_at(at, 2 * PAGE) == bytes(2 * PAGE)


@files
@pytest.mark.parametrize("flags", [mman.MAP_SHARED, mman.MAP_PRIVATE])
def test_a_file_is_refused_by_name_or_copied(tmp_path: Path, flags: int) -> None:
    """Memory that somebody can truncate is never given out as it is: touching it might kill the process."""
    path = tmp_path / "library.so"
    path.write_bytes(pattern(PAGE + 100))
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)
    with path.open("r+b", buffering=0) as file:
        space.mmap(BASE + PAGE, 2 * PAGE, RW, flags | mman.MAP_FIXED, file.fileno(), 0)
        with pytest.raises(ValueError, match=r"library\.so"):
            space.host_runs(BASE, BASE + 3 * PAGE)
        assert len(space.host_runs(BASE, BASE + PAGE)) == 1
        runs = space.host_runs(BASE, BASE + 3 * PAGE, copy_files=True)
        assert [run.is_copy for run in runs] == [False, flags == mman.MAP_SHARED]
        assert places(runs)[1] == (BASE + PAGE, 2 * PAGE, RW)
        expected = pattern(PAGE + 100) + bytes(PAGE - 100)
        assert content(runs[1]) == expected
        file.truncate(0)
        assert content(runs[1]) == expected
        if flags == mman.MAP_PRIVATE:
            assert space.read_bytes(BASE + PAGE, 2 * PAGE) == expected
            assert space.madvise(BASE + PAGE, PAGE, mman.MADV_DONTNEED) == 0
        with pytest.raises(FaultError):
            space.read_bytes(BASE + PAGE, 1)


@files
def test_private_pages_of_a_file_become_the_guests_own() -> None:
    """As if all had been written: stored bytes are seen from both sides and move; given up, they are the file's."""
    events: list[tuple[int, int, ChangeKind]] = []
    with tempfile.TemporaryFile(buffering=0) as file, AddressSpace() as space:
        file.write(pattern(2 * PAGE))
        space.mmap(BASE, 4 * PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, file.fileno(), 0)
        space.copy_out(BASE + 8, b"before")
        space.on_change = lambda *event: events.append(event)
        (run,) = space.host_runs(BASE, BASE + 4 * PAGE, copy_files=True)
        assert events == [(BASE, BASE + 2 * PAGE, ChangeKind.MEMORY)]
        assert places([run]) == places(space.host_runs(BASE, BASE + 2 * PAGE)) == [(BASE, 2 * PAGE, RW)]
        ctypes.memmove(run.address, b"x", 1)
        assert space.read_bytes(BASE, 14) == b"x" + pattern(8)[1:] + b"before"
        move = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED
        assert space.mremap(BASE, PAGE, PAGE, move, BASE + 8 * PAGE) == BASE + 8 * PAGE
        assert space.read_bytes(BASE + 8 * PAGE, 2) == b"x" + pattern(2)[1:]
        with space.fork() as child:
            space.madvise(BASE + 8 * PAGE, PAGE, mman.MADV_DONTNEED)
            assert child.read_bytes(BASE + 8 * PAGE, 1) == b"x"
        assert space.read_bytes(BASE + 8 * PAGE, PAGE) == pattern(PAGE)
        with pytest.raises(OSError, match="Invalid"):
            space.madvise(BASE + 8 * PAGE, PAGE, mman.MADV_FREE)
        space._check()


@files
def test_an_attached_file_is_refused_too(tmp_path: Path) -> None:
    """By the name that it was attached with."""
    with (tmp_path / "file").open("wb+", buffering=0) as file:
        file.write(pattern(PAGE))
        memory = mmap.mmap(file.fileno(), PAGE)
    space = AddressSpace()
    space.attach(BASE, memory, flags=mman.MAP_FIXED, name="[the caller's]")
    with pytest.raises(ValueError, match=r"\[the caller's\]"):
        space.host_runs(BASE, BASE + PAGE)
    (run,) = space.host_runs(BASE, BASE + PAGE, copy_files=True)
    assert content(run) == pattern(PAGE)


@pytest.mark.parametrize("flags", [SHARED_HERE, PRIVATE_HERE])
def test_pages_that_an_object_does_not_have_are_holes(flags: int) -> None:
    """They cannot be accessed, so they are nowhere; the rest of the last page is there."""
    space = AddressSpace()
    space.map_object(BASE, 4 * PAGE, RW, flags, GrowingObject(pattern(PAGE + 9), PAGE + 9))
    runs = space.host_runs(BASE, BASE + 4 * PAGE)
    assert places(runs) == [(BASE, 2 * PAGE, RW)]
    assert content(runs[0]) == pattern(PAGE + 9) + bytes(PAGE - 9)


BACKINGS: dict[str, Callable[[AddressSpace], object]] = {
    "private": lambda space: space.mmap(BASE, 4 * PAGE, RW, FIXED),
    "shared": lambda space: space.map_object(BASE, 4 * PAGE, RW, SHARED_HERE, SharedMemory(4 * PAGE)),
    "private of shared": lambda space: space.map_object(BASE, 4 * PAGE, RW, PRIVATE_HERE, SharedMemory(4 * PAGE)),
    "object": lambda space: space.map_object(BASE, 4 * PAGE, RW, SHARED_HERE, GrowingObject(b"", 4 * PAGE)),
    "private of object": lambda space: space.map_object(BASE, 4 * PAGE, RW, PRIVATE_HERE, GrowingObject(b"", 4 * PAGE)),
    "buffer": lambda space: space.attach(BASE, bytearray(4 * PAGE), flags=mman.MAP_FIXED),
}


@pytest.mark.parametrize("name", BACKINGS)
@pytest.mark.parametrize(("low", "high"), [(0, 100), (PAGE - 1, PAGE + 1), (100, 3 * PAGE + 5)])
def test_a_range_that_is_no_whole_pages(name: str, low: int, high: int) -> None:
    """The runs end where the range ends; what the guest sees around it, and where its memory is, is in order."""
    with AddressSpace() as space:
        BACKINGS[name](space)
        runs = space.host_runs(BASE + low, BASE + high)
        assert sum(run.length for run in runs) == high - low
        assert (runs[0].start, runs[-1].end) == (BASE + low, BASE + high)
        for pma in space._map.tables.pmas:
            assert not (pma.start | pma.end) & (PAGE - 1)
        space.copy_out(BASE, pattern(4 * PAGE))
        assert b"".join(map(content, runs)) == pattern(4 * PAGE)[low:high]


def test_arguments() -> None:
    """No ints are a TypeError; a range that is empty or nowhere has no runs, and nor has a closed space.

    A listener may ask for them when close tells that all is unmapped.
    """
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)
    with pytest.raises(TypeError):
        space.host_runs(BASE, "end")  # type: ignore[arg-type]
    assert space.host_runs(BASE + PAGE, BASE) == space.host_runs(-5, 5) == space.host_runs(1 << 70, 1 << 71) == []
    asked = []
    space.on_change = lambda start, end, kind: asked.append(space.host_runs(start, end))
    space.close()
    assert asked == [[]]


class Emulator:
    """Aliases the pages of a space, and looks again only where it was told of a change. It keeps nothing alive."""

    def __init__(self, space: AddressSpace) -> None:
        self.space = space
        self.pages: dict[int, tuple[int, int]] = {}
        space.on_change = self.look

    def look(self, start: int, end: int, kind: ChangeKind) -> None:
        """See Listener."""
        for page in range(start, end, PAGE):
            self.pages.pop(page, None)
        if kind is not ChangeKind.UNMAP:
            self.pages |= pages_of(self.space.host_runs(start, end))


def pages_of(runs: list[GuestRun]) -> dict[int, tuple[int, int]]:
    """For each guest page the host address and the rights."""
    return {
        page: (run.address + page - run.start, run.prot) for run in runs for page in range(run.start, run.end, PAGE)
    }


PAGES = 24
END = BASE + PAGES * PAGE
TOP = END + 8 * PAGE
"""A heap lies between END and TOP, and a stack that grows below BASE."""


def any_call(rng: random.Random, shared: SharedMemory, mapped: GrowingObject) -> Callable[[AddressSpace], object]:
    """A mapping call or a copy, somewhere between BASE and END or in the heap or the stack."""
    at = BASE + rng.randrange(PAGES - 4) * PAGE
    to = BASE + rng.randrange(PAGES - 4) * PAGE
    length, other = rng.randint(1, 4) * PAGE, rng.randint(1, 4) * PAGE
    prot = rng.choice([RW, RW, R, 0])
    flags = rng.choice([SHARED_HERE, PRIVATE_HERE])
    what: SharedMemory | GrowingObject = shared if rng.random() < 0.5 else mapped
    offset = rng.randrange(4) * PAGE
    move = rng.choice([0, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED])
    keep = mman.MREMAP_DONTUNMAP if move and length == other and rng.random() < 0.5 else 0
    calls: list[Callable[[AddressSpace], object]] = [
        lambda s: s.mmap(at, length, prot, FIXED),
        lambda s: s.mmap(at, length, prot, SHARED_HERE | mman.MAP_ANONYMOUS),
        lambda s: s.map_object(at, length, prot, flags, what, offset),
        lambda s: s.attach(at, bytearray(pattern(length)), flags=mman.MAP_FIXED),
        lambda s: s.munmap(at, length),
        lambda s: s.mprotect(at, length, prot),
        lambda s: s.mremap(at, length, other, move | keep, to),
        lambda s: s.madvise(at, length, rng.choice([mman.MADV_DONTNEED, mman.MADV_REMOVE])),
        lambda s: s.set_name(at, length, rng.choice(["name", None])),
        lambda s: s.brk(END + rng.randrange(8 * PAGE)),
        lambda s: s.copy_out(at + 7, pattern(length)),
        lambda s: s.read_bytes(at, length),
        lambda s: s.copy_out(BASE - rng.randint(3, 6) * PAGE, b"deeper"),
    ]
    return rng.choice(calls)


@pytest.mark.parametrize("seed", range(6))
def test_an_emulator_that_looks_only_where_it_is_told(seed: int) -> None:
    """After any calls it has the addresses and rights that a fresh look at everything finds, and the guest's bytes."""
    rng = random.Random(seed)
    shared, mapped = SharedMemory(6 * PAGE), GrowingObject(pattern(6 * PAGE), 6 * PAGE)
    space = AddressSpace()
    emulator = Emulator(space)
    space.set_brk(END)
    space.mmap(BASE - 2 * PAGE, PAGE, RW, FIXED | mman.MAP_GROWSDOWN)
    for _ in range(250):
        try:
            any_call(rng, shared, mapped)(space)
        except OSError as exc:
            assert exc.errno
        assert emulator.pages == pages_of(space.host_runs(0, TOP))
        for page in rng.sample(sorted(emulator.pages), min(4, len(emulator.pages))):
            data = ctypes.string_at(emulator.pages[page][0], PAGE)
            assert data == space.read_bytes(page, PAGE, ignore_permissions=True)
    space._check()


def test_copies_end_where_the_file_does() -> None:
    """Of a host's file, with copies, the pages behind its end are holes; its last page is whole."""
    with tempfile.TemporaryFile(buffering=0) as file, AddressSpace() as space:
        file.write(pattern(PAGE + 100))
        at = space.mmap(0, 4 * PAGE, R, mman.MAP_SHARED, file.fileno(), 0)
        (run,) = space.host_runs(at, at + 4 * PAGE, copy_files=True)
        assert (run.start, run.length, run.is_copy) == (at, 2 * PAGE, True)
        assert ctypes.string_at(run.address, 2 * PAGE) == space.read_bytes(at, 2 * PAGE)
        file.truncate(0)
        assert space.host_runs(at, at + 4 * PAGE, copy_files=True) == []
