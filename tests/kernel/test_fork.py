"""AddressSpace.fork() against the running kernel's fork(2): what parent and child have, and what either does after it.

A process of its own makes the calls and forks for real (see :mod:`kernel_family`), an AddressSpace beside it. Parents,
children and their children map, write and fork on. After each call that process has answered as its space did, and at
each fork and at the end all of them have the same mappings, flags and bytes, and fault at the same pages.
"""

from __future__ import annotations

import mmap
import os
import platform
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostarch import mman
from usermem import FaultError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or mmap.PAGESIZE != 4096,
    reason="needs a Linux kernel on x86-64 to compare with",
)
if sys.platform == "linux":
    from kernel_family import MOST, Family, Looked, digests
    from kernel_fork import guest_row, shown
    from kernel_memory import BASE, DATA, PAGE, GuestMemory, Result, new_file

KERNEL = tuple(int(n) for n in platform.release().split("-")[0].split(".")[:2]) if sys.platform == "linux" else (0, 0)
GUARDING = [mman.MADV_GUARD_INSTALL, mman.MADV_GUARD_REMOVE] if KERNEL >= (6, 15) else []
FORKING = [mman.MADV_DONTFORK, mman.MADV_DOFORK, mman.MADV_WIPEONFORK, mman.MADV_KEEPONFORK]
FIXED = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED
STACK = FIXED | mman.MAP_GROWSDOWN
OF_FILE = [mman.MAP_PRIVATE | mman.MAP_FIXED, mman.MAP_SHARED | mman.MAP_FIXED]
RW = mman.PROT_READ | mman.PROT_WRITE
MOVE = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED
PAGES = 14

Call = tuple[int, str, tuple[object, ...]]
"""Who, modulo how many there are; which call; its arguments."""


def at(page: int) -> int:
    """The address of a page."""
    return BASE + page * PAGE


def poke(who: int, page: int, data: bytes, offset: int = 0) -> Call:
    """Write bytes as a program does."""
    return who, "poke", (at(page) + offset, data.hex())


def mapped(page: int, pages: int, flags: int, prot: int = RW) -> Call:
    """A mapping of the first process's."""
    return 0, "mmap", (at(page), pages * PAGE, prot, flags)


def advised(page: int, pages: int, *advice: int) -> list[Call]:
    """Advice to the first process's memory."""
    return [(0, "madvise", (at(page), pages * PAGE, each)) for each in advice]


FORK: Call = 0, "fork", ()
FIXED_SEQUENCES: dict[str, list[Call]] = {
    "private anonymous memory": [
        mapped(0, 4, FIXED), poke(0, 0, b"before"), poke(0, 1, b"before"), FORK,
        poke(0, 0, b"PARENT"), poke(1, 1, b"child"), poke(1, 2, b"child's own"), poke(0, 3, b"parent's own"),
    ],
    "shared anonymous memory": [
        mapped(0, 4, SHARED), poke(0, 0, b"before"), FORK,
        poke(0, 1, b"parent"), poke(1, 2, b"child"), poke(1, 0, b"B"), (1, "madvise", (at(0), PAGE, mman.MADV_REMOVE)),
    ],
    "private pages of a file, written before the fork and after": [
        (0, "mmap_file", (at(0), 5 * PAGE, RW, OF_FILE[0], 0)), poke(0, 0, b"before"), poke(0, 1, b"before"), FORK,
        (0, "pwrite", (0, b"the file's own".hex())), (0, "pwrite", (2 * PAGE, b"the file's own".hex())),
        poke(0, 1, b"PARENT"), poke(1, 1, b"child"), poke(1, 2, b"child"), (1, "pwrite", (3 * PAGE, b"more".hex())),
        (1, "madvise", (at(0), 2 * PAGE, mman.MADV_DONTNEED)),
        (0, "madvise", (at(1), 2 * PAGE, mman.MADV_DONTNEED)), FORK,
    ],
    "advice, guards, locks and what may not be touched": [
        mapped(0, 10, FIXED), *[poke(0, page, b"page %d" % page) for page in range(10)],
        *advised(1, 2, mman.MADV_DONTFORK), *advised(3, 2, mman.MADV_WIPEONFORK), (0, "mlock", (at(6), 2 * PAGE, 0)),
        *[call for page in (2, 4, 5) for call in advised(page, 1, *GUARDING[:1])],
        (0, "mprotect", (at(8), 2 * PAGE, 0)), FORK, (1, "mprotect", (at(8), 2 * PAGE, RW)), poke(1, 8, b"child"),
        *[poke(1, page, b"child") for page in range(10)], (1, "fork", ()), (2, "fill", (at(3), 3 * PAGE, 5)),
    ],
    "a stack that grows on both sides": [
        mapped(2, 2, STACK), poke(0, 2, b"top"), poke(0, 1, b"grown"), FORK,
        (0, "fill", (at(0), PAGE, 7)), (1, "fill", (at(-2), PAGE, 9)),
        (1, "fork", ()), (2, "fill", (at(-4), PAGE, 11)),
    ],
    "moved, then forked, and a fork of a fork": [
        mapped(0, 6, FIXED), (0, "fill", (at(0), 6 * PAGE, 3)), FORK,
        (1, "mremap", (at(1), PAGE, PAGE, MOVE, at(9))),
        (0, "mremap", (at(2), PAGE, PAGE, MOVE | mman.MREMAP_DONTUNMAP, at(9))), (1, "fork", ()), FORK,
        *[poke(who, page, b"who %d" % who) for who in range(4) for page in (0, 2, 9)],
    ],
}  # fmt: skip
"""What chance would seldom try, or not often enough."""


def calls() -> st.SearchStrategy[Call]:
    """One call of one of the processes."""
    who = st.integers(0, MOST - 1)
    pages = st.integers(0, PAGES - 4).map(at)
    size, few = (st.integers(1, most).map(lambda n: n * PAGE) for most in (4, 2))
    prots = st.sampled_from([RW, RW, RW, mman.PROT_READ, 0])
    offsets = st.integers(0, 4).map(lambda n: n * PAGE)
    texts = st.binary(min_size=1, max_size=9).map(bytes.hex)
    places = st.tuples(pages, st.sampled_from([0, 0, 7, PAGE - 4])).map(sum)

    def call(name: str, *args: st.SearchStrategy[object]) -> st.SearchStrategy[Call]:
        return st.tuples(who, st.just(name), st.tuples(*args))

    writing = st.one_of(
        call("poke", places, texts),
        call("fill", places, st.sampled_from([5, PAGE, 2 * PAGE + 1]), st.integers(0, 999)),
        call("pwrite", st.integers(0, 5 * PAGE), texts),
    )
    mapping = st.one_of(
        call("mmap", pages, size, prots, st.sampled_from([FIXED, FIXED, SHARED, STACK, FIXED | mman.MAP_LOCKED])),
        call("mmap_file", pages, size, prots, st.sampled_from([*OF_FILE, OF_FILE[0]]), offsets),
        call("munmap", pages, few),
        call("mprotect", pages, size, prots),
        call("mremap", pages, st.just(PAGE), few, st.just(MOVE), pages),
    )
    # Not MADV_REMOVE of a file: what it shows beyond its end is another test's.
    advising = st.one_of(
        call("madvise", pages, size, st.sampled_from(FORKING)),
        call("madvise", pages, few, st.sampled_from([*GUARDING, mman.MADV_DONTNEED])),
        call("mlock", pages, few, st.sampled_from([0, mman.MLOCK_ONFAULT])),
        call("munlock", pages, size),
    )
    forking = st.tuples(who, st.just("fork"), st.just(()))
    return st.one_of(writing, writing, writing, mapping, mapping, advising, forking)


class Pairs:
    """The processes, and a guest for each."""

    def __init__(self, family: Family) -> None:
        self.family = family
        first = GuestMemory()
        first.space.limits.data_limit = None
        self.guests = [first]
        self.source = new_file(DATA)
        family.call(0, "begin")

    def run(self, who: int, name: str, args: tuple[object, ...]) -> None:
        """Make a call on both sides."""
        who %= len(self.guests)
        if name == "fork":
            if len(self.guests) < MOST:
                self.family.call(who, "fork", len(self.guests))
                self.guests.append(child_of(self.guests[who]))
                self.compare()
        elif name == "poke":
            if self.poked(who, *args):  # type: ignore[arg-type]
                self.family.call(who, "poke", *args)
        else:
            ours = self.answer(self.guests[who], name, args)
            assert self.family.call(who, name, *args) == ours, (who, name, args)

    def poked(self, who: int, addr: int, text: str) -> bool:
        """Whether all bytes could be written: else the process would die of it."""
        data = bytes.fromhex(text)
        try:
            self.guests[who].space.read_bytes(addr, len(data))
            if all(vma.prot & mman.PROT_WRITE for vma in self.guests[who].space.mappings() if touches(vma, addr, data)):
                self.guests[who].space.copy_out(addr, data)
                return True
        except FaultError:
            pass
        return False

    def answer(self, guest: GuestMemory, name: str, args: tuple[object, ...]) -> Result | None:
        """The guest's answer."""
        numbers: tuple[int, ...] = args  # type: ignore[assignment]
        if name == "fill":
            return guest.read(self.source, [(numbers[0], numbers[1])], numbers[2])
        if name == "pwrite":
            os.pwrite(guest.file, bytes.fromhex(str(args[1])), numbers[0])
            return None
        result: Result = getattr(guest, name)(*numbers)
        return result

    def compare(self) -> None:
        """All processes have what their guests have."""
        for who, guest in enumerate(self.guests):
            guest.space._check()
            assert looked(guest) == self.family.look(who), f"process {who}"

    def close(self) -> None:
        """End the children, and close the guests."""
        for who in range(1, len(self.guests)):
            self.family.call(who, "exit")
        for guest in self.guests:
            guest.close()
        os.close(self.source)


def touches(vma: object, addr: int, data: bytes) -> bool:
    """Whether some bytes lie in a mapping."""
    return vma.start < addr + len(data) and addr < vma.end  # type: ignore[attr-defined, no-any-return]


def child_of(parent: GuestMemory) -> GuestMemory:
    """A guest whose space is forked off another one's, with the same file."""
    child = GuestMemory()
    child.close()
    child.file, child.space = os.dup(parent.file), parent.space.fork()
    return child


def looked(guest: GuestMemory) -> Looked:
    """What a guest has, as the processes say it."""
    rows = shown([guest_row(vma) for vma in guest.space.mappings()])
    return rows, digests(guest, rows)


@pytest.fixture(scope="module")
def family() -> Iterator[Family]:
    """The first of the processes."""
    family = Family()
    yield family
    family.close()


def run(family: Family, sequence: list[Call]) -> None:
    """Make the calls one after the other, from an empty window."""
    pairs = Pairs(family)
    try:
        for call in sequence:
            pairs.run(*call)
        pairs.compare()
    finally:
        pairs.close()


@pytest.mark.parametrize("name", FIXED_SEQUENCES)
def test_fixed_calls(family: Family, name: str) -> None:
    """Each kind of memory, before a fork and after."""
    run(family, FIXED_SEQUENCES[name])


@given(st.lists(calls(), min_size=10, max_size=30))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    max_examples=settings().max_examples // 2,
)
def test_random_calls(family: Family, sequence: list[Call]) -> None:
    """Maps, writes, advice and locks among forks."""
    begin = [mapped(0, 4, FIXED), (0, "fill", (at(0), 3 * PAGE, 1)), mapped(4, 2, SHARED)]
    of_file: Call = 0, "mmap_file", (at(6), 4 * PAGE, RW, OF_FILE[0], 0)
    run(family, [*begin, of_file, poke(0, 7, b"private"), *sequence[: len(sequence) // 2], FORK, *sequence])
