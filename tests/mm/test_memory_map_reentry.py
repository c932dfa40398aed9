"""A signal handler in the middle of a call, at random: it uses the same space, or raises.

What happens at each single line of the calls is tested elsewhere; here a timer picks the moments, in the C code of
dicts and lists too.
"""

from __future__ import annotations

import gc
import random
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW
from hostarch import READ, WRITE, mman
from usermem import AddressSpace, FaultError

PAGES = 48
THEIRS = BASE + 0x1000_0000
R = mman.PROT_READ
WINDOW = 1 << 26
SECONDS = 1.0

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this host has no timers")


@pytest.fixture
def on_alarm() -> Iterator[Callable[[Callable[[], object]], None]]:
    """A function that sets what the handler of the timer does."""
    act: Callable[[], object] = bool

    def set_act(new: Callable[[], object]) -> None:
        nonlocal act
        act = new

    before = signal.signal(signal.SIGALRM, lambda *_: act())
    yield set_act
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def random_call(rng: random.Random, space: AddressSpace, base: int) -> None:
    """A mapping call or a copy somewhere in the pages from ``base`` on."""
    at, length = base + rng.randrange(PAGES) * PAGE, rng.randrange(1, 4) * PAGE
    calls: list[Callable[[], object]] = [
        lambda: space.mmap(at, length, rng.choice((RW, R)), FIXED),
        lambda: space.munmap(at, length),
        lambda: space.mprotect(at, length, rng.choice((RW, R, 0))),
        lambda: space.madvise(at, length, mman.MADV_DONTNEED),
        lambda: space.mremap(at, PAGE, length, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, base + PAGES // 2 * PAGE),
        lambda: space.copy_out(at, b"x" * 100),
        lambda: space.read_bytes(at, length),
    ]
    try:
        rng.choice(calls)()
    except OSError as exc:
        assert exc.errno


def check_cached(space: AddressSpace) -> None:
    """All pages that the space remembers can be accessed in that way."""
    space._check()
    for pages, access in ((space._readable, READ), (space._writable, WRITE)):
        for page in pages:
            _, base, limit, _ = pages[page]
            vma = space._map.tables.vmas.find(page << 12)
            if base + limit > page << 12:
                assert vma is not None
                assert not access & ~(vma.prot | (R if vma.prot else 0))


def copy_to_all(space: AddressSpace) -> None:
    """Copy to each page that may be written."""
    for page in range(PAGES):
        try:
            space.copy_out(BASE + page * PAGE, b"y")
        except FaultError as fault:
            assert not fault.transferred


@pytest.mark.parametrize("what", ["maps", "copies"])
def test_a_handler_that_uses_the_space(what: str, on_alarm: Callable[[Callable[[], object]], None]) -> None:
    """It maps and unmaps in its own part, as a simulator's timer may, or copies to what is being changed."""
    rng = random.Random(1)
    inside = False
    calls = 0
    raised: list[BaseException] = []

    def act() -> None:
        nonlocal inside, calls
        if inside:
            return
        inside = True
        calls += 1
        try:
            random_call(rng, space, THEIRS) if what == "maps" else copy_to_all(space)
        except BaseException as exc:
            raised.append(exc)
        finally:
            inside = False

    on_alarm(act)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        space = AddressSpace()
        space.mmap(BASE, PAGES * PAGE, RW, FIXED)
        space.mmap(THEIRS, PAGES * PAGE, RW, FIXED)
        signal.setitimer(signal.ITIMER_REAL, 50e-6, 130e-6 if what == "maps" else 900e-6)
        for _ in range(120):
            random_call(rng, space, BASE)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert not raised
        check_cached(space)
    assert calls > 100


class Dying:
    """Garbage in a cycle, whose destructor and whose weak reference's callback use the space, wherever they run."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.cycle = self

    def __del__(self) -> None:
        self.act()


def test_destructors_and_callbacks_that_use_the_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector runs them in the middle of calls: what they asked for is done, and what the call did is too."""
    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(args.exc_value))
    rng = random.Random(1)
    done = 0
    references: list[weakref.ref[Dying]] = []
    thresholds = gc.get_threshold()
    for _ in range(20):
        space = AddressSpace()
        space.mmap(BASE, PAGES * PAGE, RW, FIXED)
        theirs = iter(range(10_000))

        def act(space: AddressSpace = space, theirs: Iterator[int] = theirs) -> None:
            nonlocal done
            addr = THEIRS + next(theirs) * 2 * PAGE
            space.mmap(addr, PAGE, RW, FIXED)
            space.copy_out(addr, b"theirs")
            done += 1

        gc.set_threshold(7)
        try:
            for _ in range(100):
                references.append(weakref.ref(Dying(act), lambda _, act=act: act()))  # type: ignore[misc]
                random_call(rng, space, BASE)
        finally:
            gc.set_threshold(*thresholds)
        check_cached(space)
        pages = next(theirs)
        assert pages > 100
        assert {space.read_bytes(THEIRS + i * 2 * PAGE, 6) for i in range(pages)} == {b"theirs"}
        references.clear()
        gc.collect()
    assert done > 2000
    assert not raised


class Interrupted(BaseException):
    """What a handler raises."""


def test_a_handler_that_raises(
    on_alarm: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First touches of many windows are interrupted; then every word is the guest's own, and all tables are whole."""
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: ignored.append(args.exc_value))
    rng = random.Random(1)
    armed = False
    interrupts = 0

    def act() -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupted

    on_alarm(act)
    places = [BASE + i * WINDOW for i in range(24)]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        space = AddressSpace()
        for at in places:
            space.mmap(at, PAGE, RW, FIXED)
        rng.shuffle(places)
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(20e-6, 400e-6))
            for at in places:
                space.copy_out(at, at.to_bytes(8, "little"))
            armed = False
        except Interrupted:
            interrupts += 1
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        for i, at in enumerate(places):
            assert space.swap_uint64(at, i) in (0, at)
        assert [space.load_uint64(at) for at in places] == list(range(len(places)))
        space.munmap(BASE, 4 * WINDOW)
        space._check()
    assert interrupts > 20
    # In a destructor nothing can be raised: Python reports it, and goes on.
    assert [exc for exc in ignored if not isinstance(exc, Interrupted)] == []
