"""The whole mapping interface and I/O over the holes it leaves, against the running kernel: results, maps, bytes.

Random calls go to this process's own memory and to an AddressSpace (see :mod:`kernel_memory`). After each, both have
returned the same and have the same mappings with the same bytes. Where we differ on purpose, a rule says so and why.
"""

from __future__ import annotations

import mmap
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostarch import AMD64, mman
from usermem.mm.backing.host_file import HostFile

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or mmap.PAGESIZE != 4096,
    reason="needs a Linux kernel on x86-64 to compare with",
)
if sys.platform == "linux":
    import resource

    from kernel_memory import (
        BASE,
        BELOW,
        DATA,
        DATA_LIMIT,
        FILE,
        PAGE,
        WINDOW,
        GuestMemory,
        KernelMemory,
        Memory,
        Ranges,
        Result,
        Row,
        join,
        new_file,
        new_pipe,
        new_sockets,
        without_privileges,
    )

RULES = {
    "hidden boundary": "The kernel keeps apart neighbours that differ in what maps does not show: memory that was "
    "moved, accounting, advice. mremap refuses a range over such a boundary; ours has none. The call is not made.",
    "chunks of a stream": "A pipe and a stream socket take and give whole chunks only: bytes of a chunk that meets a "
    "hole are not counted, and not sent. Ours moves and counts each byte up to the hole.",
    "huge pages": "Without a reservation the kernel maps huge pages that it has not, and kills who touches them. Ours "
    "are never mapped. It is not made.",
    "leaked count": "Linux 6.17 and later count locked memory twice after MREMAP_DONTUNMAP, for good, though what "
    "stays is locked no more. It is not made.",
    "first pages": "A privileged process may map the first pages, whatever vm.mmap_min_addr says. It is not made.",
    "looked at ahead": "Ours finds all of a read's memory before it reads, so that a stack grows as far as was asked, "
    "the kernel's as far as bytes came. A read of more than a stream has is not made where something grows, nor one, "
    "or a write, that a mapped file may end, since only the copy tells that.",
    "one move for many": "Before Linux 6.17 mremap moves one mapping at a time. Such a call is not made there.",
    "unmapped in vain": "Linux's mremap unmaps the target before it finds that its source wraps, or has no length "
    "and was in it. Of ours a call that fails changes nothing. It is not made.",
}
"""Where we differ, or cannot compare, and why."""

KERNEL = tuple(int(n) for n in platform.release().split("-")[0].split(".")[:2]) if sys.platform == "linux" else (0, 0)
SKB = 1 << 15  # a stream socket sends this at once, and more as it likes
PAGES = 14
_GIVEN = 3 * PAGE  # bytes that there are in a stream
MAX64 = (1 << 64) - 1

ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS
RW = mman.PROT_READ | mman.PROT_WRITE
# Not PROT_EXEC alone: where the processor has protection keys, not even reading is allowed then.
PROTS = st.sampled_from([RW, RW, RW, 0, mman.PROT_READ, mman.PROT_WRITE, 5, 7])
HINTS = [
    mman.MADV_NORMAL,
    mman.MADV_RANDOM,
    mman.MADV_SEQUENTIAL,
    mman.MADV_WILLNEED,
    mman.MADV_DONTFORK,
    mman.MADV_DOFORK,
    mman.MADV_DONTDUMP,
    mman.MADV_DODUMP,
    mman.MADV_WIPEONFORK,
    mman.MADV_KEEPONFORK,
    mman.MADV_COLD,
    mman.MADV_PAGEOUT,
    mman.MADV_POPULATE_READ,
    mman.MADV_POPULATE_WRITE,
    mman.MADV_COLLAPSE,
]
GUARDING = [mman.MADV_GUARD_INSTALL, mman.MADV_GUARD_INSTALL, mman.MADV_GUARD_REMOVE] if KERNEL >= (6, 15) else HINTS
UNKNOWN = [5, 6, 7, 26, 99, 1000, -1]

Call = tuple[str, tuple[object, ...]]


def page(low: int = 0, high: int = PAGES) -> st.SearchStrategy[int]:
    """The address of a page."""
    return st.integers(low, high - 1).map(lambda i: BASE + i * PAGE)


def mostly(usual: st.SearchStrategy[int], *odd: int) -> st.SearchStrategy[int]:
    """One of the odd values now and then."""
    return st.integers(0, 40).flatmap(lambda n: st.sampled_from(odd) if n == 23 else usual)


def maps(places: list[int]) -> st.SearchStrategy[Call]:
    """A mapping that something can be done with."""
    size = st.integers(2, 7).map(lambda n: n * PAGE)
    kinds = [ANON, ANON, ANON, ANON | mman.MAP_POPULATE, SHARED, SHARED, ANON | mman.MAP_GROWSDOWN]
    kinds += [ANON | mman.MAP_LOCKED, SHARED | mman.MAP_LOCKED]
    flags = st.sampled_from([kind | place for kind in kinds for place in places])
    return st.tuples(st.just("mmap"), st.tuples(page(), size, PROTS, flags))


def calls() -> st.SearchStrategy[Call]:
    """One call, mostly a sensible one."""
    addr = mostly(page(), BASE + 1, BASE + PAGE - 1, 0, AMD64.max_addr, AMD64.max_addr - PAGE, MAX64 - 4095, 1 << 63)
    few = mostly(st.integers(1, 2).map(lambda n: n * PAGE), 0, 3 * PAGE, MAX64, MAX64 - PAGE, 1 << 63)
    count = mostly(
        st.integers(1, 4).map(lambda n: n * PAGE), 0, 1, PAGE + 1, 3 * PAGE - 1, MAX64, MAX64 - PAGE, 1 << 63
    )
    # Not 1 << 63: advice is followed behind holes too, and this process lies behind the window.
    advised = mostly(st.integers(1, 4).map(lambda n: n * PAGE), 0, 1, PAGE + 1, MAX64, MAX64 - PAGE)
    place = st.sampled_from([mman.MAP_FIXED] * 4 + [mman.MAP_FIXED_NOREPLACE, 0])
    kind = st.sampled_from(
        [
            ANON,
            ANON,
            ANON,
            SHARED,
            SHARED,
            ANON | mman.MAP_NORESERVE,
            ANON | mman.MAP_GROWSDOWN,
            ANON | mman.MAP_POPULATE,
            ANON | mman.MAP_LOCKED,
            ANON | mman.MAP_LOCKED | mman.MAP_GROWSDOWN,
            SHARED | mman.MAP_LOCKED,
        ]
    )
    odd = st.sampled_from([0] * 40 + [SHARED | mman.MAP_GROWSDOWN, mman.MAP_TYPE, mman.MAP_32BIT, mman.MAP_HUGETLB])
    flags = st.tuples(place, kind, odd).map(lambda t: t[0] | t[1] | t[2])
    moves = st.sampled_from([0, 1, 1, 3, 3, 3, 3, 5, 7, 7, 2, 4, 6, 8])
    length = st.one_of(st.integers(0, 5 * PAGE), st.sampled_from([1, PAGE, 2 * PAGE, 6 * PAGE]))
    where = st.one_of(
        st.integers(BASE, BASE + PAGES * PAGE),
        page().map(lambda addr: addr - 3),
        page(-BELOW + 5, 0).map(lambda addr: addr + 77),
    )
    ranges = st.lists(st.tuples(where, length), min_size=1, max_size=3)
    files = st.sampled_from(["file", "file", "file at", "pipe", "socket"])
    protections = mostly(PROTS, RW | mman.PROT_SEM, 0x100, 1 | mman.PROT_GROWSDOWN, 1 | mman.PROT_GROWSUP)
    advice = st.one_of(
        st.sampled_from([mman.MADV_DONTNEED, mman.MADV_REMOVE, mman.MADV_FREE, mman.MADV_DONTNEED_LOCKED]),
        st.sampled_from(GUARDING),
        st.sampled_from(HINTS),
        mostly(st.sampled_from(HINTS), *UNKNOWN),
    )

    def call(name: str, *args: st.SearchStrategy[object]) -> st.SearchStrategy[Call]:
        return st.tuples(st.just(name), st.tuples(*args))

    reading, writing = call("read", files, ranges), call("write", files, ranges)
    sizes = st.integers(1, 4).map(lambda n: n * PAGE)
    file_kinds = mostly(
        st.sampled_from([mman.MAP_SHARED, mman.MAP_SHARED, mman.MAP_SHARED_VALIDATE, mman.MAP_PRIVATE]),
        mman.MAP_SHARED_VALIDATE | mman.MAP_SYNC,
        mman.MAP_SHARED_VALIDATE | 0x200,
        mman.MAP_SHARED_VALIDATE | mman.MAP_LOCKED | mman.MAP_NORESERVE | mman.MAP_DENYWRITE,
        mman.MAP_PRIVATE | mman.MAP_LOCKED,
        mman.MAP_PRIVATE | mman.MAP_HUGETLB,
    )
    file_flags = file_kinds.map(lambda n: n | mman.MAP_FIXED)
    offsets = st.integers(0, 6).map(lambda n: n * PAGE)
    both = st.one_of(sizes.map(lambda n: (n, n)), st.tuples(sizes, sizes), st.tuples(st.just(0), sizes))
    to = st.one_of(page(), page(PAGES, 40))
    remapping = st.tuples(page(), both, st.sampled_from([0, 1, 1, 3, 3, 3, 5, 7, 7]), to).map(
        lambda t: ("mremap", (t[0], *t[1], t[2], t[3]))
    )
    return st.one_of(
        maps([mman.MAP_FIXED]),
        maps([mman.MAP_FIXED, mman.MAP_FIXED_NOREPLACE, 0]),
        call("mmap", addr, count, PROTS, flags),
        call(
            "mmap_file",
            page(),
            sizes,
            PROTS,
            file_flags,
            mostly(offsets, 1, MAX64 - 4095),
        ),
        call("mmap_file", page(), sizes, PROTS, file_flags, offsets),
        call("truncate", st.integers(0, 7 * PAGE)),
        call("poke", st.integers(0, 5 * PAGE)),
        call("munmap", addr, few),
        call("mprotect", addr, count, protections),
        remapping,
        remapping,
        remapping,
        call("mremap", addr, count, count, moves, addr),
        call("madvise", addr, advised, advice),
        call("msync", addr, count, st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8])),
        call("mincore", addr, count),
        call("mlock", mostly(addr, BASE + 1), count, mostly(st.sampled_from([0, 0, mman.MLOCK_ONFAULT]), 2)),
        call("munlock", addr, count),
        call("munlockall"),
        reading,
        reading,
        writing,
    )


class Pair:
    """Both memories, and the comparison of what they answer."""

    def __init__(self, kernel: KernelMemory) -> None:
        self.kernel = kernel
        self.guest = GuestMemory()
        self.used: Counter[str] = Counter()
        self._locked = kernel.locked_bytes()
        self._same: dict[object, object] = {}

    def run(self, call: Call, step: int) -> None:
        """Make the call on both sides, and compare all there is."""
        name, args = call
        if name in ("truncate", "poke"):
            for side in (self.kernel, self.guest):
                if name == "truncate":
                    os.ftruncate(side.file, args[0])  # type: ignore[arg-type]
                else:
                    os.pwrite(side.file, b"from outside", args[0])  # type: ignore[arg-type]
        elif name in ("read", "write"):
            self._transfer(name, str(args[0]), args[1], step)  # type: ignore[arg-type]
        else:
            numbers: tuple[int, ...] = args  # type: ignore[assignment]
            if rule := self._refuses(name, *numbers):
                self.used[rule] += 1
                return
            theirs = self._limited(lambda: getattr(self.kernel, name)(*numbers))
            ours = getattr(self.guest, name)(*numbers)
            if name in ("mmap", "mremap"):
                size = numbers[1 if name == "mmap" else 2]
                theirs, ours = self._elsewhere(theirs, ours, -(-size // PAGE) * PAGE)
            assert ours == theirs
        self.compare()

    def _limited(self, call: Callable[[], Result]) -> Result:
        """The kernel's answer to a call, while the window may have as much data as the guest.

        Asked again if Python has got memory of its own in the meantime, which then lacked.
        """
        before = resource.getrlimit(resource.RLIMIT_DATA)
        while True:
            others = self.kernel.data_bytes() - self.guest.data_bytes()
            resource.setrlimit(resource.RLIMIT_DATA, (others + DATA_LIMIT, before[1]))
            try:
                answer = call()
            finally:
                resource.setrlimit(resource.RLIMIT_DATA, before)
            if answer != "ENOMEM" or self.kernel.data_bytes() - self.guest.data_bytes() <= others:
                return answer

    def _refuses(self, name: str, addr: int = 0, old: int = 0, new: int = 0, flags: int = 0, to: int = -1) -> str:
        """The rule for a call that cannot be compared."""
        if name == "mmap" and flags & mman.MAP_HUGETLB and flags & mman.MAP_NORESERVE:
            return "huge pages"
        if name == "mmap" and addr == 0 and flags & (mman.MAP_FIXED | mman.MAP_FIXED_NOREPLACE):
            return "first pages"
        if name != "mremap":
            return ""
        if to == 0 and flags & mman.MREMAP_FIXED:
            return "first pages"
        end = (addr - (-old // PAGE) * PAGE) & MAX64
        if flags & mman.MREMAP_FIXED and (end < addr or (end == addr and to <= addr < to + new)):
            return "unmapped in vain"
        end = addr + old
        locked = any(vma.mlock_mode and vma.start < end and addr < vma.end for vma in self.guest.space.mappings())
        if flags & mman.MREMAP_DONTUNMAP and locked:
            return "leaked count"
        if flags & mman.MREMAP_FIXED and -(-old // PAGE) == -(-new // PAGE):
            several = not any(row.start <= addr and end <= row.end for row in self.kernel.raw_rows())
            return "one move for many" if several and KERNEL < (6, 17) else ""
        raw = [row for row in self.kernel.raw_rows() if row.start <= addr < row.end]
        rows = [row for row in join(self.kernel.raw_rows()) if row.start <= addr < row.end]
        known = {vma.end for vma in self.guest.space.mappings()}
        return "hidden boundary" if raw and raw[0].end < min(end, rows[0].end) and raw[0].end not in known else ""

    def _elsewhere(self, theirs: Result, ours: Result, size: int) -> tuple[Result, Result]:
        """Results outside the window are alike if their bytes are; they are unmapped."""
        outside = [isinstance(at, int) and not WINDOW[0] <= at < WINDOW[1] for at in (theirs, ours)]
        if all(outside):
            assert isinstance(theirs, int) and isinstance(ours, int)
            assert self.kernel.content(theirs, theirs + size) == self.guest.content(ours, ours + size)
            assert (theirs < 1 << 32) == (ours < 1 << 32)
        sides: list[tuple[Memory, Result]] = [(self.kernel, theirs), (self.guest, ours)]
        for (side, at), out in zip(sides, outside, strict=True):
            if out and isinstance(at, int):
                assert side.munmap(at, size) == 0
        return "elsewhere" if outside[0] else theirs, "elsewhere" if outside[1] else ours

    def _transfer(self, name: str, kind: str, ranges: Ranges, step: int) -> None:
        vmas = self.guest.space.mappings()
        grows = any(vma.growsdown for vma in vmas)
        short = name == "read" and kind in ("pipe", "socket") and sum(n for _, n in ranges) > _GIVEN
        if grows and (short or any(isinstance(vma.backing, HostFile) for vma in vmas)):
            self.used["looked at ahead"] += 1
            return
        results: list[Result] = []
        moved: list[bytes] = []
        for side in (self.kernel, self.guest):
            offset = 100 * step if kind == "file at" else None
            if kind.startswith("file"):
                near = far = new_file(DATA if name == "read" else bytes(len(DATA)))
                os.lseek(near, 100 * step, os.SEEK_SET)
            else:
                far, near = new_pipe() if kind == "pipe" else new_sockets()
                if name == "read":
                    near, far = far, near
                    os.write(far, DATA[100 * step : 100 * step + _GIVEN])
            memory: Memory = side
            results.append(getattr(memory, name)(near, ranges, offset))
            if name == "write":
                moved.append(self._moved(far, kind))
            for fd in {near, far}:
                os.close(fd)
        theirs, ours = results
        if theirs != ours and kind in ("pipe", "socket"):
            self._check_chunks(kind, theirs, ours, sum(n for _, n in ranges))
        else:
            assert ours == theirs
        if theirs == ours and moved:
            assert moved[1] == moved[0]

    def _moved(self, far: int, kind: str) -> bytes:
        if kind.startswith("file"):
            return os.pread(far, 1 << 20, 0)
        try:
            return os.read(far, 1 << 20)
        except BlockingIOError:
            return b""

    def _check_chunks(self, kind: str, theirs: Result, ours: Result, wanted: int) -> None:
        """The kernel's count is less, by a part of a chunk: of a page in a pipe, of what a socket sends at once."""
        self.used["chunks of a stream"] += 1
        assert isinstance(ours, int)
        if kind == "pipe":
            assert theirs == (ours // PAGE * PAGE or "EFAULT")
        elif wanted <= SKB or isinstance(theirs, str):
            assert theirs == "EFAULT"
        else:
            assert 0 < theirs < ours

    def compare(self) -> None:
        """The mappings are the same, and their bytes."""
        self.guest.space._check()
        theirs, ours = self.kernel.rows(), self.guest.rows()
        assert [self._visible(row) for row in ours] == [self._visible(row) for row in theirs]
        locked = self.kernel.locked_bytes() - self._locked
        assert self.guest.locked_bytes() == locked
        if locked:
            pages = [side.locked_pages(row.start, row.end) for side in (self.kernel, self.guest) for row in theirs]
            assert pages[: len(theirs)] == pages[len(theirs) :]
        assert os.pread(self.guest.file, 1 << 20, 0) == os.pread(self.kernel.file, 1 << 20, 0)
        for row in self._pieces(theirs):
            a, b = self.kernel.content(row.start, row.end), self.guest.content(row.start, row.end)
            if a != b:
                at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                raise AssertionError(
                    f"at {row.start - BASE + at:#x}: {a[at:][:9]!r}, ours {b[at:][:9]!r} ({len(a)}, {len(b)})"
                )

    def _pieces(self, rows: list[Row]) -> list[Row]:
        """The mappings, page by page if there are guards: a look at one ends at the first."""
        if not self.guest.space._map.tables.guards.count:
            return rows
        pages = [(row, at) for row in rows for at in range(row.start, row.end, PAGE)]
        return [evolve(row, start=at, end=at + PAGE) for row, at in pages]

    def _visible(self, row: Row) -> tuple[object, ...]:
        return row.start - BASE, row.end - BASE, row.rights, row.offset


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelMemory]:
    """The window of this process's memory."""
    memory = KernelMemory()
    with without_privileges():
        yield memory
    memory.close()


def run(kernel: KernelMemory, sequence: list[Call]) -> Counter[str]:
    """Make the calls one after the other, from an empty window, and return which rules were used."""
    kernel.close_window()
    os.ftruncate(kernel.file, 0)
    os.pwrite(kernel.file, FILE, 0)
    pair = Pair(kernel)
    try:
        for step, call in enumerate(sequence):
            pair.run(call, step)
    finally:
        pair.guest.close()
    return pair.used


def sequences() -> st.SearchStrategy[list[Call]]:
    """Some mappings, then anything."""
    first = st.lists(maps([mman.MAP_FIXED]), min_size=2, max_size=5)
    return st.tuples(first, st.lists(calls(), min_size=10, max_size=35)).map(lambda both: [*both[0], *both[1]])


@given(sequences())
@settings(
    max_examples=max(100, settings().max_examples),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_random_calls(kernel: KernelMemory, sequence: list[Call]) -> None:
    """Sequences of calls, from an empty window."""
    run(kernel, sequence)
