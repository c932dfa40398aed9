"""The host refuses in the middle of a call: then nothing has changed, and the call works when the host does.

Each thing that is asked of the host on the way is refused once, at each time that it is asked, and from there on. A call
that fails has left the mappings and all bytes as they were; one that goes another way has done its work.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from edge_layouts import ANON, BASE, PAGE, RW, pattern
from hostarch import ARM64_16K, Arch, mman
from usermem import AddressSpace, FaultError
from usermem.mm import arena, host_calls
from usermem.mm.backing import private_object, shared_memory
from usermem.mm.backing.host_file import can_map
from usermem.mm.host_calls import HostMapping

R = mman.PROT_READ
SHARED, PRIVATE, FIXED = mman.MAP_SHARED, mman.MAP_PRIVATE, mman.MAP_FIXED
MOVE = mman.MREMAP_MAYMOVE
BEHIND = 32
"""The page from which on something else is mapped."""

HOST: dict[str, tuple[list[tuple[Any, str]], BaseException]] = {
    "map_file": ([(host_calls, "map_file")], OSError(errno.ENOMEM, "refused")),
    "map_zeros": ([(host_calls, "map_zeros")], OSError(errno.ENOMEM, "refused")),
    "HostMapping": ([(HostMapping, "__init__")], MemoryError("refused")),
    "reserve": ([(arena, "reserve"), (host_calls, "reserve")], OSError(errno.ENOMEM, "refused")),
    "advise": ([(host_calls, "advise")], OSError(errno.EAGAIN, "refused")),
    "memfd_create": ([(os, "memfd_create")], OSError(errno.EMFILE, "refused")),
    "ftruncate": ([(os, "ftruncate")], OSError(errno.EFBIG, "refused")),
    "dup": ([(os, "dup")], OSError(errno.EMFILE, "refused")),
}
"""What is asked of the host: where it is looked up, and how it refuses."""


class Object:
    """A simulator's file."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(pattern(size))

    def size(self) -> int:
        """See MappedObject."""
        return len(self.data)

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        part = self.data[offset : offset + len(dst)]
        dst[: len(part)] = part
        return len(part)

    def write_at(self, offset: int, src: memoryview) -> object:
        """See WritableObject."""
        self.data[offset : offset + len(src)] = src
        return len(src)


class Guest:
    """Twelve pages of one kind at BASE, of which the host has seen two, and something else behind a hole."""

    def __init__(self, kind: str, arch: Arch) -> None:
        self.kind = kind
        self.page = arch.page_size
        self.space = AddressSpace(arch)
        self.object = Object(16 * self.page)
        self.memory = shared_memory.SharedMemory(16 * self.page)
        self.file = tempfile.TemporaryFile(buffering=0)
        self.file.write(pattern(14 * self.page + 100))
        self.map(0, 12, FIXED)
        self.space.mmap(self.at(BEHIND), 4 * self.page, RW, ANON | FIXED)
        self.space.set_brk(self.at(64))
        for page, data in ((2, b"written"), (7, b"there"), (BEHIND + 1, b"behind")):
            self.space.copy_out(self.at(page), data)

    def at(self, page: int) -> int:
        """The address of a page."""
        return BASE + page * self.page

    def map(self, page: int, pages: int, flags: int) -> int:
        """Map some pages of the kind, from its third page on."""
        shared = PRIVATE if self.kind.startswith("private") else SHARED
        addr, size, offset = self.at(page), pages * self.page, 2 * self.page
        if self.kind.endswith("anonymous"):
            return self.space.mmap(addr, size, RW, flags | shared | mman.MAP_ANONYMOUS)
        if self.kind.endswith("file"):
            return self.space.mmap(addr, size, RW, flags | shared, self.file.fileno(), offset)
        if self.kind.endswith("buffer"):
            return self.space.attach(addr, bytearray(pattern(size)), flags=flags)
        mapped = self.memory if self.kind.endswith("memory") else self.object
        return self.space.map_object(addr, size, RW, flags | shared, mapped, offset)

    def content(self) -> list[tuple[int, bytes]]:
        """What the guest sees in each page that it can read."""
        found = []
        for vma in self.space.mappings():
            for page in range(vma.start, vma.end, self.page):
                try:
                    found.append((page, self.space.read_bytes(page, self.page, ignore_permissions=True)))
                except FaultError as fault:
                    found.append((page, fault.partial))
        return found

    def rows(self) -> list[tuple[object, ...]]:
        """The mappings, without what differs between two guests that did the same."""
        return [(v.start, v.end, v.prot, v.max_prot, v.shared, v.offset, v.guard) for v in self.space.mappings()]

    def close(self) -> None:
        """Let go of the file."""
        self.space.close()
        self.file.close()


Call = Callable[[Guest], object]

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
    "munmap of all": lambda g: g.space.munmap(g.at(0), 40 * g.page),
    "mprotect": lambda g: g.space.mprotect(g.at(1), 7 * g.page, R),
    "MADV_DONTNEED": lambda g: g.space.madvise(g.at(1), 7 * g.page, mman.MADV_DONTNEED),
    "MADV_REMOVE": lambda g: g.space.madvise(g.at(1), 7 * g.page, mman.MADV_REMOVE),
    "MADV_POPULATE_WRITE": lambda g: g.space.madvise(g.at(0), 12 * g.page, mman.MADV_POPULATE_WRITE),
    "brk": lambda g: g.space.brk(g.at(66)),
    "a first read": lambda g: g.space.read_bytes(g.at(10), 8),
    "a first write": lambda g: g.space.copy_out(g.at(10), b"first"),
    "a first word": lambda g: g.space.swap_uint32(g.at(10), 7),
    "host_runs": lambda g: len(g.space.host_runs(g.at(0), g.at(12), copy_files=True)),
}

KINDS = [
    "private anonymous",
    "shared anonymous",
    "shared memory",
    "private memory",
    "shared file",
    "private file",
    "shared object",
    "private object",
    "caller's buffer",
]


@pytest.fixture(autouse=True)
def nothing_is_left_from_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that other tests have asked of the host is used again."""
    monkeypatch.setattr(arena, "_FIRST_CHUNK", 1 << 20)
    forget_the_hosts_memory()
    yield
    forget_the_hosts_memory()


def forget_the_hosts_memory() -> None:
    """Let the next call ask for it."""
    shared_memory._retire()
    private_object._arena = arena.Arena()


class Refusals:
    """Refuses what is asked of the host: the ``at``-th time, and all times after it if ``lasting``."""

    def __init__(self, what: str, at: int, lasting: bool) -> None:
        self.places, self.error = HOST[what]
        self.at = at
        self.lasting = lasting
        self.asked = 0

    def during(self, call: Callable[[], object]) -> object:
        """Make the call and return what it returns, or "refused" if it raised that."""
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in self.places:
                patch.setattr(
                    owner, name, partial(self._ask, getattr(owner, name)) if owner is not HostMapping else None
                )
                if owner is HostMapping:
                    patch.setattr(owner, name, self._method(HostMapping.__init__))
            try:
                return call()
            except (OSError, FaultError):
                return "refused"

    def _ask(self, original: Callable[..., object], *args: Any, **kwargs: Any) -> object:
        self.asked += 1
        if self.asked == self.at or (self.lasting and self.asked > self.at):
            raise self.error
        return original(*args, **kwargs)

    def _method(self, original: Callable[..., None]) -> Callable[..., None]:
        def method(mapping: HostMapping, *args: Any, **kwargs: Any) -> None:
            self._ask(original, mapping, *args, **kwargs)

        return method


def check(kind: str, arch: Arch, call: Call, refusals: Refusals) -> None:
    """Make the call with refusals in a new guest, and compare with guests that nobody refuses anything."""
    forget_the_hosts_memory()
    guest, untouched, helped = (Guest(kind, arch) for _ in range(3))
    try:
        before = guest.space.maps()
        expected = refused_otherwise(lambda: call(helped))
        found = refusals.during(lambda: call(guest))
        guest.space._check()
        if found == "refused" and expected != "refused":
            assert guest.space.maps() == before
            assert guest.content() == untouched.content()
            found = refused_otherwise(lambda: call(guest))
        assert found == expected
        assert guest.rows() == helped.rows()
        assert guest.content() == helped.content()
        guest.space._check()
    finally:
        for each in (guest, untouched, helped):
            each.close()


def refused_otherwise(call: Callable[[], object]) -> object:
    """What a call returns; "refused" if it is an error of the guest's."""
    try:
        return call()
    except OSError:
        return "refused"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_or_nothing(kind: str, name: str) -> None:
    """Whatever is refused, once or from some time on."""
    if kind.endswith("file") and not can_map():
        pytest.skip("this host cannot copy memory that may fault")
    for arch in (ARM64_16K,) if kind.endswith("file") else ():
        try_all(kind, arch, CALLS[name])
    try_all(kind, AddressSpace().arch, CALLS[name])


def try_all(kind: str, arch: Arch, call: Call) -> None:
    """Refuse each thing at each time that it is asked for."""
    for what in HOST:
        for lasting in (False, True):
            for at in range(1, 100):
                refusals = Refusals(what, at, lasting)
                check(kind, arch, call, refusals)
                if refusals.asked < at:
                    break
            else:
                raise AssertionError(f"{what} was asked for too often")


def test_the_host_is_asked() -> None:
    """The calls above ask the host for each of these somewhere, or nothing would be tested."""
    asked = set()
    for kind in KINDS:
        if kind.endswith("file") and not can_map():
            continue
        for call in CALLS.values():
            for what in HOST:
                forget_the_hosts_memory()
                guest = Guest(kind, ARM64_16K if kind.endswith("file") else AddressSpace().arch)
                refusals = Refusals(what, 1 << 30, lasting=False)
                refusals.during(partial(call, guest))
                guest.close()
                asked |= {what} if refusals.asked else set()
    assert asked >= set(HOST) - ({"map_zeros"} if not can_map() else set())
