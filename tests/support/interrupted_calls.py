"""A program: calls of a guest's that a timer's handler interrupts at random: ``interrupted_calls.py COUNT SEED``.

After each interrupt the tables are whole, no lock is held, every page has what was written to it last, and the listener
has been told of every change. In a process of its own, for a wrong address would end it. Prints what is left at last.
"""

from __future__ import annotations

import gc
import mmap as host_mmap
import os
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

from hostarch import AddrRange, AddrRangeSeq, mman
from safemem import FDReader, atomics, fork
from simulator_file import SimulatorFile
from small_arena import check_free
from usermem import AddressSpace, ChangeKind, FaultError, SharedMemory, copy_uint32_in
from usermem.mm import host_calls

PAGE = 4096
PAGES = 12
WINDOW = 1 << 26
BASE = 0x4000_0000
KINDS = ("anonymous", "shared", "memory", "file", "private file", "object", "buffer")
RW, R = mman.PROT_READ | mman.PROT_WRITE, mman.PROT_READ
PRIVATE, SHARED, FIXED, ANON = mman.MAP_PRIVATE, mman.MAP_SHARED, mman.MAP_FIXED, mman.MAP_ANONYMOUS
LONGEST = 150e-6
NUMBERS = 17  # of the calls; the last one has several
SOON = 60e-6
SEARCH = 1000
"""So many interrupts come to new places first: each passes by up to PASSES places of a call that have had one."""
PASSES = 40
ROUND = 200
"""How many interrupts an address space lives through."""


class Interrupted(BaseException):
    """What the handler raises."""


class Guest:
    """A region of each kind, far from the next one; and what each page holds: a word, zeros at first."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.space = AddressSpace()
        self.mirror: set[int] = set()
        self.space.on_change = self.listen
        self.files = [tempfile.TemporaryFile(buffering=0) for _ in range(2)]  # noqa: SIM115 - see close()
        for file in self.files:
            file.truncate(PAGES * PAGE)
        self.memory, self.object = SharedMemory(PAGES * PAGE), SimulatorFile(bytes(PAGES * PAGE))
        self.buffer = host_mmap.mmap(-1, PAGES * PAGE)
        self.zero = os.open("/dev/zero", os.O_RDONLY)
        self.held: dict[int, set[int]] = {}
        """Of each page, the words that it may hold; more than one where a call was interrupted."""
        self.touched: list[int] = []
        """The pages that the call in progress is about."""
        for kind in range(len(KINDS)):
            self.map(kind, 0, PAGES)

    def close(self) -> None:
        """Give everything back."""
        self.space.close()
        check_free(self.space._map.anonymous.arena)
        for file in self.files:
            file.close()
        os.close(self.zero)

    def listen(self, start: int, end: int, kind: ChangeKind) -> None:
        """The listener: what is mapped, by what it is told."""
        if kind is ChangeKind.UNMAP:
            self.mirror = {page for page in self.mirror if not start <= page < end}
        elif kind in (ChangeKind.MAP, ChangeKind.MOVE):
            self.mirror.update(range(start, end, PAGE))

    def at(self, kind: int, page: int) -> int:
        """The address of a page."""
        return BASE + kind * 2 * WINDOW + page * PAGE

    def map(self, kind: int, page: int, pages: int) -> None:
        """Map pages of a kind where they belong."""
        addr, size, space = self.at(kind, page), pages * PAGE, self.space
        name, offset = KINDS[kind], page * PAGE
        if name == "anonymous":
            space.mmap(addr, size, RW, PRIVATE | ANON | FIXED)
        elif name == "shared":
            space.mmap(addr, size, RW, SHARED | ANON | FIXED)
        elif name == "memory":
            space.map_object(addr, size, RW, SHARED | FIXED, self.memory, offset)
        elif name == "object":
            space.map_object(addr, size, RW, SHARED | FIXED, self.object, offset)
        elif name == "buffer":
            space.attach(addr, memoryview(self.buffer)[offset : offset + size], flags=FIXED)
        else:
            flags, file = (SHARED, self.files[0]) if name == "file" else (PRIVATE, self.files[1])
            space.mmap(addr, size, RW, flags | FIXED, file.fileno(), offset)

    def call(self, number: int) -> None:
        """The call of this number, somewhere."""
        rng, space = self.rng, self.space
        kind, page = rng.randrange(len(KINDS)), rng.randrange(PAGES)
        pages = rng.randrange(1, min(4, PAGES - page) + 1)
        addr, size = self.at(kind, page), pages * PAGE
        self.touched = [addr + i * PAGE for i in range(pages)]
        word = rng.getrandbits(31)
        calls: list[Callable[[], object]] = [
            lambda: self.map(kind, page, pages),
            lambda: space.munmap(addr, size),
            lambda: space.mprotect(addr, size, rng.choice((RW, R, 0))),
            lambda: space.madvise(addr, size, mman.MADV_DONTNEED),
            lambda: space.mremap(addr, size, size, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, self.at(kind, PAGES + 4)),
            lambda: space.msync(addr, size, mman.MS_SYNC),
            lambda: space.host_runs(addr, addr + size, copy_files=True),
            lambda: space.copy_out_from(AddrRangeSeq.of(AddrRange(addr, addr + size)), FDReader(self.zero)),
            lambda: self.store(addr, lambda: space.copy_out(addr, word.to_bytes(4, "little")), word),
            lambda: self.store(addr, lambda: space.swap_uint32(addr, word), word),
            lambda: space.compare_and_swap_uint32(addr, -1 & 0xFFFF_FFFF, 0),
            lambda: space.copy_in(addr, bytearray(size)),
            lambda: space.read_bytes(addr, size),
        ]
        try:
            calls[min(number, len(calls) - 1)]()
        except FaultError:
            pass
        except OSError as exc:
            assert exc.errno, exc

    def store(self, addr: int, store: Callable[[], object], word: int) -> None:
        """Note what a page may hold from now on, before it does."""
        self.held.setdefault(addr, {0}).add(word)
        store()

    def check(self) -> None:
        """After an interrupt: all is whole, and copies are right."""
        space = self.space
        space._check()
        assert not any(lock._is_owned() for lock in fork._locks), "a lock is held"  # type: ignore[attr-defined]
        space.mmap(self.at(len(KINDS), 0), PAGE, RW, PRIVATE | ANON | FIXED)  # which tells what an interrupt has left
        assert not space._map.listeners._events, "an event stays that was told"
        mapped = {page for vma in space.mappings() for page in range(vma.start, vma.end, PAGE)}
        assert mapped == self.mirror, sorted(mapped ^ self.mirror)
        for kind in range(len(KINDS)):
            for addr in self.rng.sample(range(self.at(kind, 0), self.at(kind, PAGES), PAGE), 3):
                self.check_page(addr)

    def check_page(self, addr: int) -> None:
        """All ways to a page agree, and a word that is stored is there."""
        space, word = self.space, self.rng.getrandbits(31)
        vma = space._map.tables.vmas.find(addr)
        if vma is None or not vma.prot:
            for access in (space.load_uint32, lambda addr: space.read_bytes(addr, 4)):
                try:
                    found = access(addr)
                except FaultError:
                    continue
                raise AssertionError(f"{addr:#x} can be read: {found!r}")
            return
        found = int.from_bytes(space.read_bytes(addr, 4), "little")
        assert found in self.held.get(addr, {0}) | {0}, f"{addr:#x} holds {found:#x}"
        assert space.load_uint32(addr) == copy_uint32_in(space, addr) == found
        if vma.prot & mman.PROT_WRITE:
            self.held.setdefault(addr, set()).add(word)
            assert space.swap_uint32(addr, word) == found
            assert space.read_bytes(addr, 4) == word.to_bytes(4, "little")
            self.held[addr] = {word}


def figures() -> dict[str, int]:
    """What the process has of the host's."""
    gc.collect()
    live = len(host_calls._live)
    return {
        "descriptors": len([*Path("/proc/self/fd").iterdir()]),
        "mappings": Path("/proc/self/maps").read_text().count("\n"),
        "live": live,
        "resident MiB": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE >> 20,
        "threads": threading.active_count(),
    }


def main(count: int, seed: int) -> None:
    """Let so many interrupts happen."""
    rng = random.Random(seed)
    armed = False
    interrupts = lost = passes = number = 0
    places: set[tuple[CodeType, int, int]] = set()

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal armed, lost, passes
        if not armed or frame is None:
            return
        place = frame.f_code, frame.f_lasti, number
        if passes and place in places:
            passes -= 1
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-6, SOON), 1e-3)
            return
        inner: FrameType | None = frame
        while inner is not None:
            if inner.f_code is Guest.listen.__code__:  # the listener's own affair
                return
            inner = inner.f_back
        armed = False
        places.add(place)
        raise Interrupted

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        nonlocal lost
        lost += 1
        assert isinstance(args.exc_value, Interrupted), args

    def use(guest: Guest) -> None:  # in a function: in CPython 3.13 ``try`` has no hold of a loop's jump back
        nonlocal number
        while armed:
            number = rng.randrange(NUMBERS)
            guest.call(number)

    sys.unraisablehook = unraisable
    signal.signal(signal.SIGALRM, handle)
    before = figures()
    while interrupts < count:
        guest = Guest(rng)
        for _ in range(ROUND):
            try:
                armed, passes = True, PASSES if interrupts < SEARCH else 0
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-6, LONGEST), 1e-3)
                use(guest)
            except Interrupted:
                pass
            interrupts += 1
            guest.check()
        guest.close()
    del guest
    after = figures()
    print(f"{interrupts} interrupts, {lost} of them in destructors, tier {atomics.tier()}: {before} {after}")
    # What a destructor was to give back that was interrupted is lost; and some is kept for the next space.
    for what, allowed in {"descriptors": 2, "mappings": 80, "live": 4, "resident MiB": 32, "threads": 0}.items():
        assert after[what] <= before[what] + allowed + lost, what
    assert lost < interrupts // 10 + 10


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
