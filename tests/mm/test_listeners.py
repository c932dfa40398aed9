"""Who listens to a map is told every change, after it and before the call returns, in the order of the changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import pytest

from each_line import Event, interrupt
from edge_layouts import ANON, BASE, FIXED, PAGE, RW, GrowingObject, pattern
from hostarch import mman
from switching import run_beside
from usermem import AddressSpace
from usermem.mm import listeners, memory_map
from usermem.mm.backing.shared_memory import SharedMemory
from usermem.mm.listeners import ChangeKind

FAR = BASE + 64 * PAGE
FREE = ANON | mman.MAP_FIXED_NOREPLACE
MOVE = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED
KEEP = mman.MREMAP_MAYMOVE | mman.MREMAP_DONTUNMAP
SHARED = mman.MAP_SHARED | mman.MAP_FIXED
MAP, UNMAP, PROTECT, MOVED, MEMORY = ChangeKind

Told = list[tuple[int, int, ChangeKind]]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads wait for each other a tenth of what they wait else, for tests that have them wait in vain."""
    monkeypatch.setattr(listeners, "_PATIENCE", 0.01)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads wait for each other as long as it takes on a busy host, for tests of the order."""
    monkeypatch.setattr(listeners, "_PATIENCE", 30)


def pages(kind: ChangeKind, first: int, last: int, base: int = BASE) -> tuple[int, int, ChangeKind]:
    """What is told of pages from ``base`` on."""
    return base + first * PAGE, base + last * PAGE, kind


def four_pages() -> AddressSpace:
    """A space with four pages of private memory at BASE, and four that are shared behind a hole of four."""
    space = AddressSpace()
    space.mmap(BASE, 4 * PAGE, RW, FIXED)
    space.map_object(BASE + 8 * PAGE, 4 * PAGE, RW, SHARED, SharedMemory(4 * PAGE))
    space.set_brk(FAR)
    space.copy_out(BASE, pattern(4 * PAGE))
    return space


CALLS: dict[str, tuple[Callable[[AddressSpace], object], Told]] = {
    "mmap": (lambda s: s.mmap(FAR, 2 * PAGE, RW, FIXED), [pages(MAP, 0, 2, FAR)]),
    "mmap over a mapping": (lambda s: s.mmap(BASE + PAGE, 4 * PAGE, RW, FIXED), [pages(MAP, 1, 5)]),
    "mmap that populates": (lambda s: s.mmap(FAR, PAGE, RW, FIXED | mman.MAP_POPULATE), [pages(MAP, 0, 1, FAR)]),
    "map_object": (lambda s: s.map_object(FAR, PAGE, RW, SHARED, GrowingObject(b"x", 1)), [pages(MAP, 0, 1, FAR)]),
    "attach": (lambda s: s.attach(FAR, bytearray(PAGE), flags=mman.MAP_FIXED), [pages(MAP, 0, 1, FAR)]),
    "munmap": (lambda s: s.munmap(BASE + PAGE, 2 * PAGE), [pages(UNMAP, 1, 3)]),
    "munmap of nothing": (lambda s: s.munmap(FAR, PAGE), []),
    "mprotect": (lambda s: s.mprotect(BASE + PAGE, PAGE, mman.PROT_READ), [pages(PROTECT, 1, 2)]),
    "mprotect up to a hole": (lambda s: s.mprotect(BASE, 6 * PAGE, 0), [pages(PROTECT, 0, 4)]),
    "mprotect of nothing": (lambda s: s.mprotect(FAR, PAGE, 0), []),
    "mremap where it is": (lambda s: s.mremap(BASE, 4 * PAGE, 6 * PAGE), [pages(MAP, 4, 6)]),
    "mremap to less": (lambda s: s.mremap(BASE, 4 * PAGE, PAGE), [pages(UNMAP, 1, 4)]),
    "mremap to elsewhere": (
        lambda s: s.mremap(BASE, 2 * PAGE, 2 * PAGE, MOVE, FAR),
        [pages(UNMAP, 0, 2), pages(MOVED, 0, 2, FAR)],
    ),
    "mremap over a mapping": (
        lambda s: s.mremap(BASE, PAGE, PAGE, MOVE, BASE + 2 * PAGE),
        [pages(UNMAP, 2, 3), pages(UNMAP, 0, 1), pages(MOVED, 2, 3)],
    ),
    "mremap that keeps": (
        lambda s: s.mremap(BASE, PAGE, PAGE, KEEP | MOVE, FAR),
        [pages(MEMORY, 0, 1), pages(MOVED, 0, 1, FAR)],
    ),
    "mremap a second time": (
        lambda s: s.mremap(BASE + 8 * PAGE, 0, PAGE, MOVE, FAR),
        [pages(MOVED, 0, 1, FAR)],
    ),
    "brk": (lambda s: s.brk(FAR + 5), [pages(MAP, 0, 1, FAR)]),
    "brk within a page": (lambda s: s.brk(FAR), []),
    "MADV_DONTNEED": (lambda s: s.madvise(BASE + PAGE, 2 * PAGE, mman.MADV_DONTNEED), [pages(MEMORY, 1, 3)]),
    "MADV_REMOVE": (lambda s: s.madvise(BASE + 8 * PAGE, PAGE, mman.MADV_REMOVE), [pages(MEMORY, 8, 9)]),
    "a hint": (lambda s: s.madvise(BASE, 4 * PAGE, mman.MADV_WILLNEED), []),
    "msync": (lambda s: s.msync(BASE, 4 * PAGE, mman.MS_SYNC), []),
    "set_name": (lambda s: s.set_name(BASE, PAGE, "name"), []),
    "a copy": (lambda s: s.copy_out(BASE + 8 * PAGE, b"first touch"), []),
}


def attempt(call: Callable[[AddressSpace], object], space: AddressSpace) -> None:
    """Make a call, which may fail as Linux's."""
    try:
        call(space)
    except OSError as exc:
        assert exc.errno


@pytest.mark.parametrize("name", CALLS)
def test_what_is_told(name: str) -> None:
    """Each change, as a range and a kind; nothing else, and nothing any more when nobody listens."""
    call, expected = CALLS[name]
    space = four_pages()
    told: Told = []
    space.on_change = lambda start, end, kind: told.append((start, end, kind))
    assert space.on_change is not None
    attempt(call, space)
    assert told == expected
    space.on_change = None
    space.munmap(BASE, 4 * PAGE)
    assert told == expected


def test_brk_that_shrinks_and_close() -> None:
    """What goes is told, too."""
    space = four_pages()
    space.brk(FAR + 4 * PAGE)
    told: Told = []
    space.on_change = lambda start, end, kind: told.append((start, end, kind))
    space.brk(FAR + PAGE)
    assert told.pop() == pages(UNMAP, 1, 4, FAR)
    space.close()
    ((start, end, kind),) = told
    assert (kind, start <= BASE, end >= FAR + PAGE) == (UNMAP, True, True)


def test_a_stack_that_grows() -> None:
    """An access that makes a mapping grow tells what is mapped by it."""
    space = AddressSpace()
    space.mmap(FAR, PAGE, RW, FIXED | mman.MAP_GROWSDOWN)
    told: Told = []
    space.on_change = lambda start, end, kind: told.append((start, end, kind))
    space.copy_out(FAR - PAGE - 8, b"deeper")
    assert told == [pages(MAP, -2, 0, FAR)]


@pytest.mark.parametrize("name", [name for name, (_, told) in CALLS.items() if told])
def test_it_is_called_after_the_change_and_before_the_return(name: str) -> None:
    """The map that the listener sees is the one that the call leaves; once for each that is told."""
    call, expected = CALLS[name]
    space = four_pages()
    seen: list[str] = []
    space.on_change = lambda start, end, kind: seen.append(space.maps())
    attempt(call, space)
    assert seen == [space.maps()] * len(expected)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", CALLS)
def test_no_lock_is_held(name: str) -> None:
    """A listener may wait for another thread that maps, copies and unmaps in the same space."""
    call, expected = CALLS[name]
    space = four_pages()
    done: list[str] = []

    def other() -> None:
        at = space.mmap(0, PAGE, RW, ANON)
        space.copy_out(at, b"beside")
        space.munmap(at, PAGE)
        done.append("ended")

    def listener(start: int, end: int, kind: ChangeKind) -> None:
        if threading.current_thread() is main:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join(3)
            done.append("waited")

    main = threading.current_thread()
    space.on_change = listener
    attempt(call, space)
    waits = done.count("waited")  # the other thread tells what is left: then nobody waits
    assert done == ["ended", "waited"] * waits
    assert bool(waits) == bool(expected)


def test_a_listener_may_map_itself() -> None:
    """It is told of that, too, and its own call returns when it was."""
    space = AddressSpace()
    told: Told = []

    def listener(start: int, end: int, kind: ChangeKind) -> None:
        told.append((start, end, kind))
        if kind is MAP and start < FAR:
            count = len(told)
            space.mmap(start + 64 * PAGE, end - start, RW, FIXED)
            assert len(told) == count + 1

    space.on_change = listener
    space.mmap(BASE, PAGE, RW, FIXED)
    assert told == [pages(MAP, 0, 1), pages(MAP, 0, 1, FAR)]
    space.munmap(BASE, PAGE)
    assert told[2:] == [pages(UNMAP, 0, 1)]


def test_what_a_listener_raises() -> None:
    """It comes out of the call, whose change is made; all that the call did is told all the same, and so is the next.

    An emulator that were not told where memory went would go on using what is no longer the guest's.
    """
    space = four_pages()
    told: Told = []

    def listener(start: int, end: int, kind: ChangeKind) -> None:
        told.append((start, end, kind))
        if len(told) == 1:
            raise LookupError("the first is not liked")

    space.on_change = listener
    with pytest.raises(LookupError, match="not liked"):
        space.mremap(BASE, 2 * PAGE, 2 * PAGE, MOVE, FAR)
    assert space.read_bytes(FAR, 2 * PAGE) == pattern(2 * PAGE)
    assert told == [pages(UNMAP, 0, 2), pages(MOVED, 0, 2, FAR)]
    space.munmap(FAR, 2 * PAGE)
    assert told[2:] == [pages(UNMAP, 0, 2, FAR)]
    space._check()


def toggle(space: AddressSpace) -> ChangeKind:
    """Map the page at BASE if it is free, else unmap it: in the order of the changes both alternate."""
    try:
        space.mmap(BASE, PAGE, RW, FREE)
    except FileExistsError:
        space.munmap(BASE, PAGE)
        return UNMAP
    return MAP


def alternate(told: list[ChangeKind]) -> bool:
    """Whether each mapping is followed by its unmapping, from the first on."""
    return told == [(MAP, UNMAP)[i % 2] for i in range(len(told))]


@pytest.mark.usefixtures("patient")
def test_threads_are_told_of_in_order() -> None:
    """Three map and unmap one page: what is told alternates, and each call returns after it was told."""
    space = AddressSpace()
    told: list[ChangeKind] = []
    late: list[int] = []
    space.on_change = lambda start, end, kind: told.append(kind) if start == BASE else own.add(start)
    own: set[int] = set()

    def run(number: int) -> None:
        for i in range(600):
            toggle(space)
            at = FAR + (number * 600 + i) * 2 * PAGE
            space.mmap(at, PAGE, RW, FIXED)
            if at not in own:
                late.append(at)

    run_beside(partial(run, number) for number in range(3))
    assert not late
    assert len(told) > 600
    assert alternate(told)


def test_one_at_a_time() -> None:
    """A listener that takes its time is not called for the next change meanwhile, whoever made it."""
    space = AddressSpace()
    inside: list[int] = []
    most = 0

    def listener(start: int, end: int, kind: ChangeKind) -> None:
        nonlocal most
        inside.append(start)
        most = max(most, len(inside))
        time.sleep(0.005)
        inside.remove(start)

    space.on_change = listener
    threads = [
        threading.Thread(target=lambda at=at: [space.mmap(at + 2 * i * PAGE, PAGE, RW, FIXED) for i in range(8)])
        for at in (BASE, FAR, 2 * FAR)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.usefixtures("impatient")
def test_a_call_is_told_of_before_it_returns_though_another_overtakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is held up for long before it tells of its change tells of it all the same, and then returns."""
    space = AddressSpace()
    main = threading.current_thread()
    begun = threading.Event()
    told: list[int] = []
    threads: list[threading.Thread] = []

    def listener(start: int, end: int, kind: ChangeKind) -> None:
        if threading.current_thread() is not main:
            begun.set()
            time.sleep(10 * listeners._PATIENCE)
        told.append(start)

    def tell(each: listeners.Listeners, *args: Any) -> None:
        if threading.current_thread() is main:
            threads.append(threading.Thread(target=space.mmap, args=(FAR, PAGE, RW, FIXED)))
            threads[0].start()
            assert begun.wait(10)
        original(each, *args)

    original = listeners.Listeners.tell
    monkeypatch.setattr(listeners.Listeners, "tell", tell)
    space.on_change = listener
    space.mmap(BASE, PAGE, RW, FIXED)
    assert BASE in told
    threads[0].join()
    assert sorted(told) == [BASE, FAR]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("who", ["a handler", "a thread"])
def test_a_change_in_the_middle_of_a_call_is_told_in_order(who: str) -> None:
    """A signal handler of the same thread or another thread, at any line of a call, unmaps what that call maps.

    A listener that maps and unmaps its emulator's pages by what it is told would else keep a page that is gone.
    """
    wrong = []
    for at in range(1, lines_of_a_call() + 1):
        space = AddressSpace()
        told: list[ChangeKind] = []
        threads: list[threading.Thread] = []
        space.on_change = lambda start, end, kind, told=told: told.append(kind)

        def act(space: AddressSpace = space, threads: list[threading.Thread] = threads) -> None:
            if who == "a handler":
                toggle(space)
                return
            threads.append(threading.Thread(target=toggle, args=(space,)))
            threads[0].start()
            threads[0].join(0.02)  # it may have to wait for the call that it is in the middle of

        event = Event([listeners, memory_map], at, act)
        event.during(partial(toggle, space))
        for thread in threads:
            thread.join()
        if not alternate(told):
            wrong.append((event.where, told))
    assert not wrong


def lines_of_a_call() -> int:
    """How many lines a mapping call runs where changes are published and told."""
    space = AddressSpace()
    space.on_change = lambda start, end, kind: None
    event = Event([listeners, memory_map])
    event.during(partial(toggle, space))
    assert event.lines > 20
    return event.lines


def test_an_interrupt_at_each_place() -> None:
    """The next call tells the listener what an interrupt has left, and nothing stays that another thread waits for."""
    for at in count(1):
        space = four_pages()
        heard: Told = []
        space.on_change = lambda *told, heard=heard: heard.append(told)
        event = Event([listeners, memory_map], at, interrupt, between=True)
        with suppress(KeyboardInterrupt):
            event.during(partial(space.munmap, BASE, PAGE))
        space.mmap(FAR, PAGE, RW, FIXED)
        done = [] if space._map.tables.vmas.find(BASE) else [pages(UNMAP, 0, 1)]
        assert heard == [*done, pages(MAP, 0, 1, FAR)], event.where
        assert not space._map.listeners._events, event.where
        if not event.where:
            break
    assert at > 20
