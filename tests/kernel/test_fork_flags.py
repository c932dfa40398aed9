"""Advice that lasts against the running kernel: what it splits and merges, and what a child has after a fork(2).

A process of its own makes the calls (see :mod:`kernel_fork`). After each, both sides have answered the same and have
the same mappings with the same VmFlags. At the end the process forks, and its child has what inherited() says.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostarch import mman
from usermem.mm.change import Tables
from usermem.mm.fork import inherited
from usermem.mm.vma import VM_WIPEONFORK

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or mmap.PAGESIZE != 4096,
    reason="needs a Linux kernel on x86-64 to compare with",
)
if sys.platform == "linux":
    import kernel_memory
    from kernel_fork import PAGES, ForkedProcess, guest_row, shown
    from kernel_memory import BASE, DATA, PAGE, GuestMemory, Memory, Result, new_file

KERNEL = tuple(int(n) for n in platform.release().split("-")[0].split(".")[:2]) if sys.platform == "linux" else (0, 0)
DONTFORK, DOFORK = mman.MADV_DONTFORK, mman.MADV_DOFORK
WIPE, KEEP = mman.MADV_WIPEONFORK, mman.MADV_KEEPONFORK
FORKING = [DONTFORK, DOFORK, WIPE, KEEP]
LASTING = [mman.MADV_NORMAL, mman.MADV_SEQUENTIAL, mman.MADV_RANDOM, mman.MADV_DONTDUMP, mman.MADV_DODUMP]
STACK: list[int] = []
if Path("/sys/kernel/mm/transparent_hugepage").is_dir():
    LASTING += [mman.MADV_HUGEPAGE, mman.MADV_NOHUGEPAGE]
    STACK += [mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED | mman.MAP_STACK] if KERNEL >= (6, 7) else []
GUARDING = [mman.MADV_GUARD_INSTALL, mman.MADV_GUARD_REMOVE] if KERNEL >= (6, 15) else []
FIXED = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED
OF_FILE = [mman.MAP_SHARED | mman.MAP_FIXED, mman.MAP_PRIVATE | mman.MAP_FIXED]
RW = mman.PROT_READ | mman.PROT_WRITE
MOVE = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED

Call = tuple[str, tuple[int, ...]]
EIGHT: Call = ("mmap", (BASE, 8 * PAGE, RW, FIXED))
FILL: Call = ("fill", (BASE, 8 * PAGE))

FIXED_SEQUENCES: dict[str, list[Call]] = {
    "a stack that grows": [
        ("mmap", (BASE + 2 * PAGE, 4 * PAGE, RW, FIXED | mman.MAP_GROWSDOWN)),
        ("madvise", (BASE + 2 * PAGE, 2 * PAGE, WIPE)),
        ("fill", (BASE, 3 * PAGE)),
    ],
    "moved, and what was there kept": [
        EIGHT,
        FILL,
        ("madvise", (BASE + PAGE, 2 * PAGE, WIPE)),
        ("mremap", (BASE + 2 * PAGE, PAGE, PAGE, MOVE | mman.MREMAP_DONTUNMAP, BASE + 9 * PAGE)),
    ],
    "shared memory mapped again": [
        ("mmap", (BASE, 2 * PAGE, RW, SHARED)),
        ("madvise", (BASE, 2 * PAGE, DONTFORK)),
        ("mremap", (BASE + PAGE, 0, PAGE, MOVE, BASE + 8 * PAGE)),
    ],
    "guards": [
        *[
            call
            for at, how in ((BASE, FIXED), (BASE + 6 * PAGE, SHARED))
            for call in (
                ("mmap", (at, 6 * PAGE, RW, how)),
                ("madvise", (at + 2 * PAGE, 2 * PAGE, WIPE)),
                ("madvise", (at + 4 * PAGE, 2 * PAGE, DONTFORK)),
                ("fill", (at, 6 * PAGE)),
                *(("madvise", (at + page * PAGE, PAGE, advice)) for page in (1, 3, 5) for advice in GUARDING[:1]),
            )
        ],
    ],
    "advice of each kind": [
        EIGHT,
        *(("madvise", (BASE + i * PAGE, 3 * PAGE, advice)) for i, advice in enumerate(LASTING)),
        *(("madvise", (BASE + i * PAGE, 3 * PAGE, advice)) for i, advice in enumerate(LASTING[::-1])),
        *(("mmap", (BASE + 8 * PAGE, 2 * PAGE, RW, flags)) for flags in STACK),
        ("mremap", (BASE + PAGE, 2 * PAGE, 2 * PAGE, MOVE, BASE + 9 * PAGE)),
    ],
    "locked": [
        EIGHT,
        ("mlock", (BASE, 8 * PAGE, 0)),
        ("madvise", (BASE + PAGE, PAGE, WIPE)),
        ("madvise", (BASE + 2 * PAGE, PAGE, DONTFORK)),
        ("munlock", (BASE, 4 * PAGE)),
    ],
}

# Makes as many mappings as there may be, and prints what the kernel says to advice then.
_CROWD = """
import json, sys
from kernel_memory import KernelMemory
from test_fork_flags import crowd
print(json.dumps(crowd(KernelMemory(), int(sys.argv[1]))))
"""


def calls() -> st.SearchStrategy[Call]:
    """One call. mremap is of one page, in which the kernel can have no boundary that it does not show."""
    pages = st.integers(0, PAGES - 3).map(lambda i: BASE + i * PAGE)
    size = st.integers(1, 4).map(lambda n: n * PAGE)
    few = st.integers(1, 2).map(lambda n: n * PAGE)
    prots = st.sampled_from([RW, RW, RW, mman.PROT_READ, 0])

    def call(name: str, *args: st.SearchStrategy[int]) -> st.SearchStrategy[Call]:
        return st.tuples(st.just(name), st.tuples(*args))

    more = st.integers(1, 3).map(lambda n: n * PAGE)
    others = st.one_of(
        call("madvise", pages, few, st.sampled_from([*GUARDING, mman.MADV_DONTNEED])),
        call("mmap", pages, few, prots, st.sampled_from([FIXED, FIXED, SHARED, FIXED | mman.MAP_LOCKED, *STACK])),
        call("mmap_file", pages, few, prots, st.sampled_from(OF_FILE), st.integers(0, 2).map(lambda n: n * PAGE)),
        call("fill", pages, size),
        call("munmap", pages, few),
        call("mprotect", pages, size, prots),
        call("mlock", pages, few, st.sampled_from([0, mman.MLOCK_ONFAULT])),
        call("munlock", pages, size),
        call("mremap", pages, st.just(PAGE), more, st.just(0), st.just(0)),
        call("mremap", pages, st.just(PAGE), more, st.just(MOVE), pages),
    )
    advising = call("madvise", pages, size, st.sampled_from([*FORKING, *FORKING, *LASTING]))
    return st.booleans().flatmap(lambda advises: advising if advises else others)


class Pair:
    """Both sides, of which the guest's is new."""

    def __init__(self, process: ForkedProcess) -> None:
        self.process = process
        self.guest = GuestMemory()
        self.guest.space.limits.data_limit = None
        self.source = new_file(DATA)
        process.call("begin")

    def run(self, name: str, args: tuple[int, ...]) -> None:
        """Make a call on both, and compare the answers and the mappings."""
        theirs = self.process.call(name, *args)
        assert (self.answer(name, args), shown([guest_row(vma) for vma in self.guest.space.mappings()])) == theirs
        self.guest.space._check()

    def answer(self, name: str, args: tuple[int, ...]) -> Result:
        """The guest's answer."""
        if name == "fill":
            return self.guest.read(self.source, [(args[0], args[1])], 0)
        result: Result = getattr(self.guest, name)(*args)
        return result

    def check_fork(self) -> None:
        """The child of a fork has the mappings, and the bytes, that it is to inherit."""
        rows, pages = self.process.fork()
        tables = inherited(self.guest.space._map.tables)
        assert shown([guest_row(vma) for vma in tables.vmas]) == rows
        assert [self.inherited_page(tables, BASE + i * PAGE) for i in range(PAGES)] == pages

    def inherited_page(self, tables: Tables, addr: int) -> str:
        """The first bytes of a child's page, as its tables and its parent's bytes have it."""
        vma = tables.vmas.find(addr)
        if vma is None or tables.guards.find(addr) is not None:
            return ""
        if vma.advice_flags & VM_WIPEONFORK:
            return bytes(8).hex()
        assert self.guest.space._map.tables.guards.find(addr) is None
        return self.guest.content(addr, addr + 8).hex()

    def close(self) -> None:
        """Close the guest's side."""
        self.guest.close()
        os.close(self.source)


@pytest.fixture(scope="module")
def process() -> Iterator[ForkedProcess]:
    """The process that is forked."""
    process = ForkedProcess()
    yield process
    process.close()


def run(process: ForkedProcess, sequence: list[Call]) -> None:
    """Make the calls one after the other, from an empty window, and fork."""
    pair = Pair(process)
    try:
        for name, args in sequence:
            pair.run(name, args)
        pair.check_fork()
    finally:
        pair.close()


@pytest.mark.parametrize("name", FIXED_SEQUENCES)
def test_fixed_calls(process: ForkedProcess, name: str) -> None:
    """What chance would seldom try."""
    run(process, FIXED_SEQUENCES[name])


def crowd(memory: Memory, most: int) -> list[Result]:
    """The answers to advice where there are ``most`` mappings: for parts of one, then for a whole one."""
    start, pages = 1 << 39, 2 * most
    memory.mmap(start, pages * PAGE, 0, FIXED | mman.MAP_NORESERVE)
    full = next(at for at in range(0, pages, 2) if memory.mprotect(start + at * PAGE, PAGE, RW) == "ENOMEM")
    part, whole = start + (full + 3) * PAGE, start + 2 * PAGE
    return [memory.madvise(at, PAGE, advice) for at in (part, whole) for advice in FORKING]


def test_too_many_mappings() -> None:
    """What would split a mapping then is EAGAIN; what does not, is done."""
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if most > 1 << 17:
        pytest.skip(f"there may be {most} mappings: too many to make")
    rooms = [str(Path(__file__).parent), str(Path(kernel_memory.__file__).parent)]
    child = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {rooms}{_CROWD}", str(most)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    guest = GuestMemory()
    guest.space.limits.data_limit, guest.space.limits.max_map_count = None, 100
    ours = crowd(guest, 100)
    guest.close()
    assert ours == json.loads(child.stdout) == ["EAGAIN", 0, "EAGAIN", 0, 0, 0, 0, 0]


@given(st.lists(calls(), min_size=8, max_size=25))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    max_examples=settings().max_examples // 2,
)
def test_random_calls(process: ForkedProcess, sequence: list[Call]) -> None:
    """Advice among maps, moves, rights and locks, then a fork."""
    run(process, [EIGHT, FILL, *sequence])
