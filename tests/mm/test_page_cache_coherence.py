"""After each change of the mappings, with every page cached before it, a lookup answers as one without a cache."""

from __future__ import annotations

import mmap
import random
import tempfile
from importlib import import_module

import pytest

from campaign import times
from hostarch import AMD64, ARM, READ, WRITE, Arch, mman
from usermem import AddressSpace, FaultError, SharedMemory

RW = mman.PROT_READ | mman.PROT_WRITE
PRIVATE = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS
PAGE = 4096
BASE, PAGES = 0x4000_0000, 40
RIGHTS = (mman.PROT_NONE, mman.PROT_READ, RW, RW, mman.PROT_EXEC)
WINDOW = 1 << 26


class _Object:
    def size(self) -> int:
        return PAGES * PAGE

    def read_at(self, offset: int, dst: memoryview) -> int:
        return 0


Answer = tuple[list[tuple[int, int]], tuple[int, str] | None]


def _run(space: AddressSpace, addr: int, length: int, write: bool) -> Answer:
    """Where the host has the accessible bytes from addr, joined, and what stopped them."""
    found: list[tuple[int, int]] = []
    blocks, fault = space.resolve(addr, length, WRITE if write else READ)
    for block in blocks:
        if found and sum(found[-1]) == block.address:
            found[-1] = found[-1][0], found[-1][1] + len(block)
        else:
            found.append((block.address, len(block)))
    return found, None if fault is None else (fault.address, fault.reason.value)


def _word(space: AddressSpace, addr: int) -> int | None:
    try:
        return space.copy_uint32_in(addr)
    except FaultError:
        return None


def _forget_all(space: AddressSpace) -> None:
    """Have the page cache know nothing."""
    for pages in (space._readable, space._writable):
        pages.clear()
    space._cache.words = {}
    for pma in space._map.tables.pmas:
        pma.cached.clear()


class _Turns:
    """Random changes in a small window."""

    def __init__(self, arch: Arch, seed: int) -> None:
        self.random = random.Random(seed)
        self.space = AddressSpace(arch)
        self.space.set_brk(BASE + 30 * PAGE)
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self.file.truncate(PAGES * PAGE)
        self.objects = SharedMemory(PAGES * PAGE), _Object()

    def change(self) -> str:
        """Make one call, which may fail."""
        choose, space = self.random, self.space
        addr, to = (BASE + choose.randrange(PAGES) * PAGE for _ in range(2))
        length, more = (choose.randrange(1, 12) * PAGE for _ in range(2))
        kind = choose.choice(("mmap", "munmap", "mprotect", "mremap", "move", "brk", "madvise", "attach", "object"))
        fixed = mman.MAP_FIXED if choose.random() < 0.8 else 0
        prot, offset = choose.choice(RIGHTS), choose.randrange(8) * PAGE
        try:
            if kind == "mmap":
                flags = choose.choice((PRIVATE, PRIVATE, SHARED, mman.MAP_PRIVATE, mman.MAP_SHARED)) | fixed
                space.mmap(addr, length, prot, flags, self.file.fileno(), offset)
            elif kind == "munmap":
                space.munmap(addr, length)
            elif kind == "mprotect":
                space.mprotect(addr, length, prot)
            elif kind == "mremap":
                space.mremap(addr, length, more, choose.choice((0, mman.MREMAP_MAYMOVE)))
            elif kind == "move":
                flags = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED | choose.choice((0, mman.MREMAP_DONTUNMAP))
                space.mremap(addr, length, length, flags, to)
            elif kind == "brk":
                space.brk(addr)
            elif kind == "madvise":
                space.madvise(addr, length, choose.choice((mman.MADV_DONTNEED, mman.MADV_REMOVE, mman.MADV_FREE)))
            elif kind == "attach":
                buffer = bytearray(length) if choose.random() < 0.3 else mmap.mmap(-1, length)
                space.attach(addr, buffer, prot, fixed)
            else:
                flags = choose.choice((mman.MAP_PRIVATE, mman.MAP_SHARED)) | fixed
                space.map_object(addr, length, prot, flags, choose.choice(self.objects), offset)
        except OSError:
            pass
        return f"{kind} {addr:#x} {length:#x} {more:#x} {to:#x}"

    def answers(self) -> list[tuple[Answer, Answer, int | None]]:
        """What every page answers, and how far from there one may go."""
        top = BASE + PAGES * PAGE
        return [
            (
                _run(self.space, addr, top - addr, False),
                _run(self.space, addr, top - addr, True),
                _word(self.space, addr + 8),
            )
            for addr in range(BASE, top, PAGE)
        ]

    def stamp(self) -> None:
        """Give every page that may be written words of its own."""
        for addr in range(BASE, BASE + PAGES * PAGE, PAGE):
            if _run(self.space, addr, 16, True)[1] is None:
                self.space.copy_out(addr + 8, self.random.randbytes(4))


@pytest.mark.parametrize("arch", [AMD64, ARM], ids=lambda arch: arch.name)
@pytest.mark.parametrize("seed", range(times(3, 60)))
def test_every_page_answers_as_without_a_cache(monkeypatch: pytest.MonkeyPatch, arch: Arch, seed: int) -> None:
    """Windows are small here, so that what is moved straddles them."""
    for name in ("anonymous", "object_pages", "private_object"):
        monkeypatch.setattr(import_module(f"usermem.mm.backing.{name}"), "WINDOW", 4 * PAGE)
    monkeypatch.setattr("usermem.mm.backing.host_file._WINDOW", 4 * mmap.PAGESIZE)
    turns = _Turns(arch, seed)
    with turns.file, turns.space as space:
        for _ in range(120):
            turns.stamp()
            turns.answers()  # every page is cached
            turns.answers()
            change = turns.change()
            cached = turns.answers()
            _forget_all(space)
            assert cached == turns.answers(), change
            space._check()


def test_a_run_longer_than_a_window_ends_where_rights_end() -> None:
    """Shared memory has one place, however long: what is cached at its start reaches to its end."""
    with AddressSpace() as space:
        start = space.mmap(0, 3 * WINDOW, RW, SHARED)
        space.read_bytes(start, 1)
        space.mprotect(start + 2 * WINDOW, PAGE, mman.PROT_NONE)
        blocks, fault = space.resolve(start, 3 * WINDOW, READ)
        assert (sum(map(len, blocks)), fault and fault.address) == (2 * WINDOW, start + 2 * WINDOW)


@pytest.mark.parametrize("change", ["mprotect", "madvise", "mremap"])
def test_a_run_that_straddles_two_windows_ends_where_it_changes(change: str) -> None:
    """Memory that was moved does not begin where a window begins."""
    with AddressSpace() as space:
        space.mmap(4 * WINDOW, WINDOW, RW, PRIVATE | mman.MAP_FIXED)
        space.copy_out(5 * WINDOW - PAGE, b"x" * PAGE)
        to = 9 * WINDOW - WINDOW // 2
        space.mremap(4 * WINDOW, WINDOW, WINDOW, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, to)
        first, last = 9 * WINDOW - PAGE, to + WINDOW - PAGE
        space.read_bytes(first, 1)
        if change == "mprotect":
            space.mprotect(last, PAGE, mman.PROT_NONE)
        elif change == "madvise":
            space.madvise(last, PAGE, mman.MADV_DONTNEED)
        else:
            space.mremap(last, PAGE, PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_DONTUNMAP)
        cached = _run(space, first, last + PAGE - first, False)
        _forget_all(space)
        assert cached == _run(space, first, last + PAGE - first, False)
        if change != "mprotect":
            assert space.read_bytes(last, 1) == b"\0"
