"""The page cache is coherent: no page stays accessible after the change that forbids it has returned.

Tried with threads that copy and lose the processor at the worst places. The same trial finds the fault in cache orders
that are naive. That quick ways answer as slow ones is in test_page_cache_quick_ways.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW, one, pattern, source
from hostarch import AMD64, MIPS, MIPSEL, Arch, mman
from switching import quick_switches
from usermem import AddressSpace, FaultError, copy_in_vec, copy_string_in, copy_uint32_in
from usermem.errors import FaultReason
from usermem.mm import page_cache
from usermem.mm.change import Change
from usermem.mm.memory_map import MemoryMap
from usermem.mm.page_cache import PageCache, Stretch


def pause() -> None:
    """Let the other threads run."""
    time.sleep(0)


class PausingCache(PageCache):
    """Its threads lose the processor before and after each step that matters."""

    __slots__ = ()

    def forget(self, cached: dict[int, Stretch], firsts: list[int]) -> None:
        pause()
        super().forget(cached, firsts)
        pause()

    def stretch(self, cached: dict[int, Stretch], first: int, new: Stretch, writable: bool) -> Stretch:
        pause()
        found = super().stretch(cached, first, new, writable)
        pause()
        return found

    def remember(self, addr: int, stretch: Stretch, writable: bool) -> None:
        pause()
        super().remember(addr, stretch, writable)
        pause()


class Preempted(AddressSpace):
    """The real thing, over such a cache."""

    def __init__(self) -> None:
        super().__init__()
        self._cache.__class__ = PausingCache


class ClearedFirst(AddressSpace):
    """Naive: a change clears the cache, and then changes the tables."""

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        """Without one lock around both steps."""
        self._clear_and_publish(lambda change: change.protect(addr, addr + length, prot))
        return 0

    def munmap(self, addr: int, length: int) -> int:
        """As mprotect."""
        self._clear_and_publish(lambda change: change.unmap(addr, addr + length))
        return 0

    def _clear_and_publish(self, build: Callable[[Change], object]) -> None:
        with self._map._lock:
            for pma in self._map.tables.pmas:
                self._cache.forget(pma.cached, list(pma.cached))
            self._cache.words = {}
        pause()
        with self._map._lock:
            change = Change(self._map.tables)
            build(change)
            self._map.tables = change


class LateCache(PageCache):
    """Keeps what it is to remember for later."""

    __slots__ = ()
    waiting = threading.local()

    def stretch(self, cached: dict[int, Stretch], first: int, new: Stretch, writable: bool) -> Stretch:
        self.waiting.place = cached, first, new, writable
        return new

    def remember(self, addr: int, stretch: Stretch, writable: bool) -> None:
        self.waiting.addr = addr

    def remember_late(self) -> None:
        """Remember it now."""
        place, self.waiting.place = self.waiting.__dict__.get("place"), None
        if place is not None:
            super().remember(self.waiting.addr, super().stretch(*place), place[3])


class LateMap(MemoryMap):
    """Gives up the lock before pages are remembered."""

    def locate(self, addr: int, access: int, *, ignore_permissions: bool) -> Stretch | FaultReason:
        """See MemoryMap.locate."""
        found = super().locate(addr, access, ignore_permissions=ignore_permissions)
        pause()
        assert isinstance(self._cache, LateCache)
        self._cache.remember_late()
        return found


class FilledLate(AddressSpace):
    """Naive: a page is looked up under the lock, and remembered after it was given up."""

    def __init__(self) -> None:
        super().__init__()
        self._cache.__class__ = LateCache
        self._map.__class__ = LateMap


class WordsTakenLate(AddressSpace):
    """Naive: a page's words are stored in the dict that is there after the page was looked up."""

    def copy_uint32_in(self, addr: int, ignore_permissions: bool = False) -> int:
        """The right order is the other way round."""
        stretch = self._readable.get(addr >> 12)
        if stretch is None or stretch[0] is None or addr >> 12 in self._cache.words:
            return super().copy_uint32_in(addr, ignore_permissions=ignore_permissions)
        _, base, _, run = stretch
        pause()
        start = addr - base - run.start
        words = run.view()[start : start + PAGE].cast("I")
        self._cache.words[addr >> 12] = words
        return int(words[0])


PROBES: list[tuple[str, Callable[[AddressSpace], object]]] = [
    ("r", lambda space: space.read_bytes(BASE, 8)),
    ("r", lambda space: copy_uint32_in(space, BASE)),
    ("r", lambda space: space.copy_in(BASE, bytearray(8))),
    ("r", lambda space: copy_string_in(space, BASE, 8)),
    ("r", lambda space: copy_in_vec(space, one(BASE, 8), bytearray(8))),
    ("w", lambda space: space.copy_out(BASE, bytes(8))),
    ("w", lambda space: space.copy_out_from(one(BASE, 8), source(bytes(8)))),
]


class Gone:
    """From now on, until it is replaced, no access of these kinds may succeed."""

    def __init__(self, kinds: str) -> None:
        self.kinds = kinds


CHANGES: list[tuple[str, Callable[[AddressSpace], object]]] = [
    ("rw", lambda space: space.munmap(BASE, PAGE)),
    ("rw", lambda space: space.mprotect(BASE, PAGE, mman.PROT_NONE)),
    ("w", lambda space: space.mprotect(BASE, PAGE, mman.PROT_READ)),
]


def stale_accesses(space: AddressSpace, rounds: int, copiers: int = 2) -> int:
    """How many accesses succeeded that began and ended after a change that forbids them had returned."""
    forbidden: list[Gone] = [Gone("")]
    stale: list[str] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def probe() -> None:
        for kind, access in PROBES:
            before = forbidden[0]
            try:
                access(space)
            except FaultError:
                continue
            if kind in before.kinds and forbidden[0] is before:
                stale.append(kind)

    def copy() -> None:
        try:
            while not done.is_set():
                probe()
        except BaseException as exc:
            errors.append(exc)

    space.mmap(BASE, PAGE, RW, FIXED)
    threads = [threading.Thread(target=copy) for _ in range(copiers)]
    for thread in threads:
        thread.start()
    try:
        for i in range(rounds):
            kinds, change = CHANGES[i % len(CHANGES)]
            change(space)
            forbidden[0] = Gone(kinds)
            probe()
            pause()
            forbidden[0] = Gone("")
            space.mmap(BASE, PAGE, RW, FIXED)
            probe()
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    return len(stale)


@pytest.fixture
def often_switched() -> Iterator[None]:
    """Threads take turns every 20 microseconds, not every 5 ms."""
    with quick_switches(2e-5):
        yield


@pytest.mark.usefixtures("often_switched")
@pytest.mark.parametrize("kind", [AddressSpace, Preempted])
def test_no_page_stays_accessible(kind: Callable[[], AddressSpace]) -> None:
    """While threads copy, no access that began after munmap or mprotect had returned gets what they took away."""
    assert stale_accesses(kind(), 150) == 0


@pytest.mark.usefixtures("often_switched")
@pytest.mark.parametrize("kind", [ClearedFirst, FilledLate, WordsTakenLate])
def test_naive_orders_are_seen_to_fail(kind: Callable[[], AddressSpace]) -> None:
    """The same trial finds pages that stay accessible where the cache is cleared, filled or taken in another order."""
    assert stale_accesses(kind(), 60) > 0


def test_entries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pages are accessed, the cache keeps no more than its limit, and every answer stays right."""
    monkeypatch.setattr(page_cache, "_MAX_ENTRIES", 8)
    space = AddressSpace()
    space.mmap(BASE, 100 * PAGE, RW, FIXED)
    for i in range(100):
        copy = space.copy_out if i % 3 else space.write_bytes
        assert copy(BASE + i * PAGE, i.to_bytes(4, "little")) == 4
        assert copy_uint32_in(space, BASE + i * PAGE) == i
        assert len(space._readable) + len(space._writable) <= 8
        assert len(space._cache.words) <= 8
    assert [copy_uint32_in(space, BASE + i * PAGE) for i in range(100)] == list(range(100))


@pytest.mark.parametrize("arch", [AMD64, MIPSEL, MIPS], ids=lambda arch: arch.name)
def test_words_at_every_offset(arch: Arch) -> None:
    """A uint32 at any address is its four bytes in the guest's order, remembered or not, up to where memory ends."""
    space = AddressSpace(arch)
    flags = mman.MAP_PRIVATE | arch.map_flags.anonymous | arch.map_flags.fixed
    space.mmap(BASE, 2 * PAGE, RW, flags)
    data = pattern(2 * PAGE)
    for _ in range(2):
        space.mprotect(BASE, PAGE, RW)
        space.copy_out(BASE, data)
        for offset in (*range(2 * PAGE - 3), *range(2 * PAGE - 4, -1, -1)):
            expected = int.from_bytes(data[offset : offset + 4], arch.byte_order)
            assert copy_uint32_in(space, BASE + offset) == expected
        for offset in range(2 * PAGE - 3, 2 * PAGE + 3):
            with pytest.raises(FaultError) as caught:
                copy_uint32_in(space, BASE + offset)
            left = max(2 * PAGE - offset, 0)
            assert (caught.value.transferred, caught.value.partial) == (left, data[offset:])
            assert caught.value.address == BASE + max(offset, 2 * PAGE)
        space.copy_out(BASE + 8, b"\1\2\3\4")
        assert copy_uint32_in(space, BASE + 8) == int.from_bytes(b"\1\2\3\4", arch.byte_order)
