"""A child that is forked off while other threads map finds every lock free, and can use all that its parent has."""

from __future__ import annotations

import _thread
import importlib
import os
import pkgutil
import signal
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count

import pytest

import hostarch
import safemem
import usermem
from atomics_tier import forced
from each_line import Event
from edge_layouts import ANON, BASE, FIXED, PAGE, RW, GrowingObject
from hostarch import mman
from safemem import Block, atomics, fork
from safemem.tls import keylog
from usermem import AddressSpace
from usermem.mm import listeners
from usermem.mm.backing.shared_memory import SharedMemory

SHARED_HERE = mman.MAP_SHARED | mman.MAP_FIXED
COMMON = BASE
SIZE = 1 << 16
FORKS = 12
SECONDS = 5

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this host does not fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # of CPython 3.12: that is the point here
]


def map_object(space: AddressSpace) -> None:
    """Map an object that nobody else has."""
    own = AddressSpace()
    at = own.map_object(0, PAGE, RW, mman.MAP_SHARED, GrowingObject(b"object", PAGE))
    assert own.read_bytes(at, 6) == b"object"


def new_space(space: AddressSpace) -> None:
    """Make a space, map and write."""
    own = AddressSpace()
    at = own.mmap(0, PAGE, RW, ANON)
    own.copy_out(at, b"new")
    assert own.read_bytes(at, 4) == b"new\0"


def map_memory(space: AddressSpace) -> None:
    """Map private and shared memory, and use it."""
    for flags in (ANON, mman.MAP_SHARED | mman.MAP_ANONYMOUS):
        at = space.mmap(0, 4 * PAGE, RW, flags)
        space.copy_out(at + PAGE, b"mapped")
        space.munmap(at, 4 * PAGE)


def change_all(space: AddressSpace) -> None:
    """Every other mapping call."""
    at = space.mmap(0, 4 * PAGE, RW, ANON)
    space.copy_out(at, b"moved")
    space.mprotect(at + PAGE, PAGE, mman.PROT_READ)
    space.madvise(at + 2 * PAGE, PAGE, mman.MADV_DONTNEED)
    at = space.mremap(at, PAGE, 8 * PAGE, mman.MREMAP_MAYMOVE)
    assert space.read_bytes(at, 5) == b"moved"
    space.close()
    assert space.maps() == ""


USES: dict[str, Callable[[AddressSpace], object]] = {
    "cached copy": lambda space: space.copy_out(COMMON, b"z"),
    "copy to untouched memory": lambda space: space.copy_out(COMMON + SIZE // 2, b"z"),
    "atomics": lambda space: space.swap_uint32(COMMON + 64, 9),
    "mmap": map_memory,
    "other calls": change_all,
    "object": map_object,
    "new space": new_space,
}


@pytest.fixture
def space() -> Iterator[AddressSpace]:
    """A space with memory that processes share, its first page touched, in which four threads map and unmap."""
    space = AddressSpace()
    space.map_object(COMMON, SIZE, RW, SHARED_HERE, SharedMemory(SIZE))
    space.copy_out(COMMON, b"x")
    stop = threading.Event()

    def work(number: int) -> None:
        at = COMMON + (number + 1) * (1 << 24)
        while not stop.is_set():
            space.mmap(at, 8 * PAGE, RW, FIXED)
            space.copy_out(at, b"y")
            space.munmap(at, 8 * PAGE)
            space.mmap(at, PAGE, RW, SHARED_HERE | mman.MAP_ANONYMOUS)
            space.copy_out(at, b"y")
            space.swap_uint32(COMMON + 64, number)
            map_object(space)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    yield space
    stop.set()
    for thread in threads:
        thread.join()
    space._check()


def outcome(use: Callable[[], object]) -> str:
    """What becomes of a forked child that uses the space."""
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        code = 1
        try:
            use()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return {0: "ended", -signal.SIGALRM: "hung"}.get(code, f"exit {code}")


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("tier", ["native", "lock"])
def test_a_forked_child_uses_the_space(space: AddressSpace, name: str, tier: str) -> None:
    """Whatever the other threads were in the middle of when it was forked off."""
    with forced(tier):
        found = Counter(outcome(lambda: USES[name](space)) for _ in range(FORKS))
    assert found == {"ended": FORKS}


def test_a_child_of_a_thread_that_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread is before any line of telling the listener of its change: the child goes on without it."""
    monkeypatch.setattr(listeners, "_PATIENCE", 0.01)
    for at in count(1):
        space = AddressSpace()
        space.on_change = lambda start, end, kind: None
        here, on = threading.Event(), threading.Event()

        def stay(here: threading.Event = here, on: threading.Event = on) -> None:
            here.set()
            on.wait(60)

        event = Event([listeners, threading], at, stay)

        def use(space: AddressSpace = space) -> None:
            space.mmap(0, PAGE, RW, ANON)
            owners = {each.owner for each in space._map.listeners._events}
            assert owners <= {threading.get_ident()}, "somebody is waited for who is not here"

        def work(event: Event = event, here: threading.Event = here, space: AddressSpace = space) -> None:
            event.during(partial(space.mmap, 0, PAGE, RW, ANON))
            here.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert here.wait(10)
        found = outcome(use)
        on.set()
        thread.join()
        assert found == "ended", event.where
        if not event.where:
            break
    assert at > 20


def test_a_child_of_a_thread_in_the_middle_of_a_call(space: AddressSpace) -> None:
    """An object's code that forks while it is read: both processes get their page."""
    results = []

    class Forking(GrowingObject):
        def read_at(self, offset: int, dst: memoryview) -> int:
            results.append(os.fork())
            return super().read_at(offset, dst)

    parent = os.getpid()
    data = b""
    try:
        at = space.map_object(0, PAGE, RW, mman.MAP_SHARED, Forking(b"both", PAGE))
        data = space.read_bytes(at, 4)
        map_memory(space)
    finally:
        if os.getpid() != parent:
            os._exit(0 if data == b"both" else 1)
    (child,) = results
    _, status = os.waitpid(child, 0)
    assert (data, os.waitstatus_to_exitcode(status)) == (b"both", 0)


def test_locks_that_another_thread_holds() -> None:
    """Those that calls wait for, of a module or of an object: the child finds them free."""

    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    pages = AddressSpace()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with atomics._lock, keylog._LOCK, pages._map._lock, pages._map.anonymous.arena._lock:
            held.set()
            done.wait(60)

    def use() -> None:
        with forced("lock"):
            atomics.swap_uint32(Block(bytearray(4)), 1)
        with keylog.Keylog(tls) as log, suppress(ssl.SSLWantReadError):
            log.step()
        new_space(pages)
        map_memory(pages)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        assert outcome(use) == "ended"
    finally:
        done.set()
        thread.join()


def test_no_module_has_another_lock() -> None:
    """A lock that a module has for itself is free in a child."""
    plain = type(threading.Lock())
    for package in (hostarch, safemem, usermem):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if found.name.endswith("__main__"):
                continue
            for name, value in vars(importlib.import_module(found.name)).items():
                assert not isinstance(value, plain), f"{found.name}.{name}"
                assert not isinstance(value, _thread.RLock) or value in fork._locks, f"{found.name}.{name}"
