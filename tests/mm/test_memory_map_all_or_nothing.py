"""The host refuses in the middle of a call: then nothing has changed, and the call works when the host does.

Each thing that a call asks of the host is refused once, at each time that it is asked, and from there on. A call that
fails has left the mappings and all bytes as they were; one that goes another way has done its work.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from edge_layouts import ANON, RW, pattern
from hostarch import AMD64, ARM64_16K, Arch, mman
from usermem import AddressSpace, FaultError
from usermem.mm import arena, host_calls, host_mapping, memory_file
from usermem.mm.backing import private_object
from usermem.mm.backing.shared_memory import SharedMemory
from usermem.mm.faulting import can_map
from usermem.mm.host_limits import host_limits
from usermem.mm.host_mapping import HostMapping

R = mman.PROT_READ
SHARED, PRIVATE, FIXED = mman.MAP_SHARED, mman.MAP_PRIVATE, mman.MAP_FIXED
MOVE = mman.MREMAP_MAYMOVE
WINDOW = 1 << 26
"""Host memory is asked for in windows that end at multiples of this, in the guest, in files and in memory files."""

Refusal = Callable[..., object]


def fails_with(code: int) -> Refusal:
    """How a system call refuses."""

    def refuse(*_: object) -> object:
        raise OSError(code, "refused")

    return refuse


def too_many(init: Callable[..., object], *args: object) -> object:
    """How HostMapping refuses when guests have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_limits, "max_map_count", 0)
        return init(*args)


HOST: dict[str, tuple[list[tuple[Any, str]], Refusal]] = {
    "map_file": (
        [(host_calls.Unmapping, "map_file"), (host_calls, "map_over"), (host_mapping, "map_over")],
        fails_with(errno.ENOMEM),
    ),
    "map_zeros": ([(host_calls, "map_zeros")], fails_with(errno.ENOMEM)),
    "HostMapping": ([(HostMapping, "__init__")], too_many),
    "reserve": ([(arena, "reserve"), (host_mapping, "reserve")], fails_with(errno.ENOMEM)),
    "advise": ([(host_calls, "advise")], fails_with(errno.EAGAIN)),
    "memfd_create": ([(os, "memfd_create")], fails_with(errno.EMFILE)),
    "ftruncate": ([(os, "ftruncate")], fails_with(errno.EFBIG)),
    "dup": ([(os, "dup")], fails_with(errno.EMFILE)),
}
"""What is asked of the host: where it is looked up, and how it refuses."""

BEHIND = 3 * WINDOW >> 12
"""The page from which on something else is mapped, in another window."""

BYTES = pattern(1 << 14) * 14


class Object:
    """A simulator's file: zeros, and BYTES around the end of its first window."""

    def __init__(self, start: int, length: int) -> None:
        self.start = start
        self.data = bytearray(BYTES[:length])

    def size(self) -> int:
        """See MappedObject."""
        return self.start + len(self.data)

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        low, high = max(offset, self.start), min(offset + len(dst), self.size())
        if low < high:
            dst[low - offset : high - offset] = self.data[low - self.start : high - self.start]
        return len(dst)

    def write_at(self, offset: int, src: memoryview) -> object:
        """See WritableObject."""
        self.data[offset - self.start : offset - self.start + len(src)] = src
        return len(src)


class Guest:
    """Twelve pages of one kind at the end of a window, touched or not, and something else behind a hole."""

    def __init__(self, kind: str, arch: Arch, touched: bool) -> None:
        forget_the_hosts_memory()
        self.kind = kind
        self.page = arch.page_size
        self.base = 2 * WINDOW - 6 * self.page
        self.offset = WINDOW - 6 * self.page
        self.space = AddressSpace(arch)
        self.map(0, 12, FIXED)
        self.space.mmap(self.at(BEHIND), 4 * self.page, RW, ANON | FIXED)
        self.space.set_brk(self.at(64))
        for page, data in ((2, b"written"), (4, b"there"), (BEHIND + 1, b"behind")) if touched else ():
            self.space.copy_out(self.at(page), data)
        forget_the_hosts_memory()

    def at(self, page: int) -> int:
        """The address of a page."""
        return self.base + page * self.page

    def map(self, page: int, pages: int, flags: int) -> int:
        """Map some pages of the kind, of something that is not mapped yet."""
        shared = PRIVATE if self.kind.startswith("private") else SHARED
        addr, size = self.at(page), pages * self.page
        if self.kind.endswith("anonymous"):
            return self.space.mmap(addr, size, RW, flags | shared | mman.MAP_ANONYMOUS)
        if self.kind.endswith("file"):
            with tempfile.TemporaryFile(buffering=0) as file:
                os.pwrite(file.fileno(), BYTES[: 11 * self.page + 100], self.offset)
                return self.space.mmap(addr, size, RW, flags | shared, file.fileno(), self.offset)
        if self.kind.endswith("buffer"):
            return self.space.attach(addr, bytearray(BYTES[:size]), flags=flags)
        end = self.offset + 12 * self.page
        mapped = SharedMemory(end) if self.kind.endswith("memory") else Object(self.offset, 11 * self.page + 100)
        return self.space.map_object(addr, size, RW, flags | shared, mapped, self.offset)

    def state(self) -> tuple[list[tuple[object, ...]], list[tuple[int, bytes]]]:
        """The mappings, without what differs between guests that did the same, and what the guest sees in each page."""
        rows: list[tuple[object, ...]] = []
        content = []
        for vma in self.space.mappings():
            rows.append((vma.start, vma.end, vma.prot, vma.max_prot, vma.shared, vma.offset, vma.guard))
            for page in range(vma.start, vma.end, self.page):
                try:
                    content.append((page, self.space.read_bytes(page, self.page, ignore_permissions=True)))
                except FaultError as fault:
                    content.append((page, fault.partial))
        return rows, content


Call = Callable[[Guest], object]


def look(guest: Guest) -> int:
    """host_runs of all of it: no system call, so what the host has not is a MemoryError."""
    try:
        return sum(run.length for run in guest.space.host_runs(guest.at(0), guest.at(12), copy_files=True))
    except MemoryError as exc:
        raise OSError(errno.ENOMEM, "no memory") from exc


CALLS: dict[str, Call] = {
    "mmap": lambda g: g.map(16, 4, 0),
    "mmap over it": lambda g: g.map(4, 5, FIXED),
    "mmap over the end": lambda g: g.map(10, 4, FIXED),
    "mmap that populates": lambda g: g.map(16, 4, mman.MAP_POPULATE | FIXED),
    "mremap where it is": lambda g: g.space.mremap(g.at(0), 12 * g.page, 14 * g.page),
    "mremap to less": lambda g: g.space.mremap(g.at(0), 12 * g.page, 5 * g.page),
    "mremap to elsewhere": lambda g: g.space.mremap(g.at(1), 8 * g.page, 12 * g.page, MOVE),
    "mremap over a mapping": lambda g: g.space.mremap(
        g.at(1), 8 * g.page, 8 * g.page, MOVE | mman.MREMAP_FIXED, g.at(BEHIND)
    ),
    "mremap that keeps": lambda g: g.space.mremap(g.at(0), 8 * g.page, 8 * g.page, MOVE | mman.MREMAP_DONTUNMAP),
    "munmap": lambda g: g.space.munmap(g.at(1), 7 * g.page),
    "munmap of all": lambda g: g.space.munmap(g.at(0), (BEHIND + 4) * g.page),
    "mprotect": lambda g: g.space.mprotect(g.at(1), 7 * g.page, R),
    "MADV_DONTNEED": lambda g: g.space.madvise(g.at(1), 7 * g.page, mman.MADV_DONTNEED),
    "MADV_REMOVE": lambda g: g.space.madvise(g.at(1), 7 * g.page, mman.MADV_REMOVE),
    "MADV_POPULATE_WRITE": lambda g: g.space.madvise(g.at(0), 12 * g.page, mman.MADV_POPULATE_WRITE),
    "brk": lambda g: g.space.brk(g.at(66)),
    "a first read": lambda g: g.space.read_bytes(g.at(10), 8),
    "a first write": lambda g: g.space.copy_out(g.at(10), b"first"),
    "a first word": lambda g: g.space.swap_uint32(g.at(10), 7),
    "host_runs": look,
}

ASKED: dict[str, set[str]] = {
    "private anonymous": {"reserve"},
    "shared anonymous": {"memfd_create", "ftruncate", "reserve", "map_file", "HostMapping"},
    "shared memory": {"memfd_create", "ftruncate", "reserve", "map_file", "HostMapping"},
    "private memory": {"memfd_create", "ftruncate", "reserve", "map_file", "HostMapping"},
    "shared file": {"dup", "map_file", "HostMapping", "map_zeros"},
    "private file": {"dup", "map_file", "HostMapping", "map_zeros", "advise"},
    "shared object": set(),
    "private object": {"reserve"},
    "caller's buffer": set(),
}
"""For each kind what its calls ask the host for at least; that of a shared object has its memory from Python's mmap."""


@pytest.fixture(autouse=True)
def nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither to this test by others, nor the other way round. Reservations are small, so that there are many."""
    monkeypatch.setattr(arena, "_FIRST_CHUNK", 1 << 20)
    monkeypatch.setattr(arena, "_LARGEST_CHUNK", 1 << 20)
    yield
    monkeypatch.undo()
    forget_the_hosts_memory()


def forget_the_hosts_memory() -> None:
    """Let whoever needs some ask for it."""
    memory_file._retire()
    private_object._arena = arena.Arena()


class Refusals:
    """Refuses one thing: the ``at``-th time that it is asked for, and all times after it if ``lasting``."""

    def __init__(self, at: int = 0, lasting: bool = False) -> None:
        self.at = at
        self.lasting = lasting
        self.asked: Counter[str] = Counter()

    @contextmanager
    def of(self, *names: str) -> Iterator[None]:
        """Refuse these meanwhile."""
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                places, refuse = HOST[name]
                for owner, attribute in places:
                    patch.setattr(owner, attribute, self._asking(name, getattr(owner, attribute), refuse))
            yield

    def _asking(self, name: str, original: Callable[..., object], refuse: Refusal) -> Callable[..., object]:
        def ask(*args: Any, **kwargs: Any) -> object:
            self.asked[name] += 1
            if self.asked[name] == self.at or (self.lasting and self.asked[name] > self.at > 0):
                return refuse(original, *args)
            return original(*args, **kwargs)

        return ask


def outcome(call: Callable[[], object]) -> object:
    """What a call returns; the error it raises, a system call's or a fault."""
    try:
        return call()
    except (OSError, ValueError) as exc:
        return type(exc), str(exc)


def failed(found: object) -> bool:
    """Whether an outcome is an error."""
    return isinstance(found, tuple)


def try_all(make: Callable[[], Guest], call: Call) -> Counter[str]:
    """Make the call in guests that are refused each thing at each time. Returns what is asked for, and how often."""
    guest = make()
    before = guest.state()
    guest.space.close()
    guest = make()
    counting = Refusals()
    with counting.of(*HOST):
        expected = outcome(lambda: call(guest))
    after = guest.state()
    guest.space.close()
    cases = [(what, at, lasting) for what, n in counting.asked.items() for at in range(1, n + 1) for lasting in (0, 1)]
    for what, at, lasting in cases:
        guest = make()
        maps = guest.space.maps()
        with Refusals(at, bool(lasting)).of(what):
            found = outcome(lambda: call(guest))  # noqa: B023
        guest.space._check()
        if found != expected:
            assert failed(found), (what, at, lasting, found)
            assert guest.space.maps() == maps, (what, at, lasting, found)
            assert guest.state() == before, (what, at, lasting, found)
            assert outcome(lambda: call(guest)) == expected  # noqa: B023
        assert guest.state() == after, (what, at, lasting, found)
        guest.space._check()
        guest.space.close()
    return counting.asked


@pytest.mark.parametrize("touched", [False, True], ids=["untouched", "touched"])
@pytest.mark.parametrize("kind", ASKED)
def test_all_or_nothing(kind: str, touched: bool) -> None:
    """Every call, whatever it is refused, once or from some time on."""
    if kind.endswith("file") and not can_map():
        pytest.skip("this host cannot copy memory that may fault")
    asked: Counter[str] = Counter()
    for name, call in CALLS.items():
        for arch in (AMD64, ARM64_16K) if kind.endswith("file") else (AMD64,):
            try:
                asked += try_all(lambda arch=arch: Guest(kind, arch, touched), call)  # type: ignore[misc]
            except AssertionError as exc:
                raise AssertionError(f"{name} with {arch.name}: {exc}") from exc
    assert asked.keys() >= ASKED[kind]
