"""os.fork() of this process with spaces and snapshots: parent and child go on, each on its own."""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress

import pytest

from campaign import times
from edge_layouts import FIXED, PAGE, RW
from hostarch import mman
from usermem import AddressSpace, Snapshot
from usermem.mm import host_calls, image
from usermem.mm.memory_file import MemoryRange

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")

BASE, PAGES = 0x4000_0000, 16
SHARED_AT = BASE + 0x100_0000


class Family:
    """A space with two snapshots, what they hold, and what is there now."""

    def __init__(self) -> None:
        self.space = space = AddressSpace()
        space.mmap(BASE, PAGES * PAGE, RW, FIXED)
        space.mmap(SHARED_AT, PAGE, RW, mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED)
        self.kept: list[tuple[Snapshot, bytes]] = []
        for n in range(1, 3):
            for page in range(0, PAGES, n):
                space.copy_out(BASE + page * PAGE, b"moment %d" % n)
            self.kept.append((space.snapshot(), self.content(space)))
        space.copy_out(BASE + 3 * PAGE, b"now")
        self.now = self.content(space)

    @staticmethod
    def content(space: AddressSpace) -> bytes:
        """All private bytes."""
        return space.read_bytes(BASE, PAGES * PAGE)

    def check(self) -> None:
        """All snapshots restore and spawn, and what is dirty is known of this process."""
        assert self.content(self.space) == self.now
        for snapshot, then in [*self.kept, *self.kept[::-1]]:
            self.space.copy_out(BASE + 5 * PAGE, os.urandom(PAGE))
            self.space.restore(snapshot)
            assert self.content(self.space) == then
            self.space.copy_out(BASE + 7 * PAGE, b"x")
            at = BASE + 7 * PAGE
            assert [(ar.start, ar.end) for ar in self.space.dirty_pages(snapshot)] == [(at, at + PAGE)]
            with snapshot.spawn() as other, self.space.fork() as child:
                assert self.content(other) == then
                assert child.read_bytes(at, 8) == b"x" + then[7 * PAGE + 1 : 7 * PAGE + 8]
        with self.space.snapshot() as later:
            self.space.zero_out(BASE, PAGES * PAGE)
            self.space.restore(later)

    def end(self) -> None:
        """All goes, and new memory comes."""
        for snapshot, _ in self.kept:
            snapshot.close()
        self.space.close()
        self.kept.clear()
        gc.collect()
        with AddressSpace() as other:
            other.mmap(BASE, 64 * PAGE, RW, FIXED)
            assert other.read_bytes(BASE, 64 * PAGE) == bytes(64 * PAGE)
            other.copy_out(BASE, os.urandom(64 * PAGE))
            for _ in range(3):
                other.snapshot()
                other.copy_out(BASE, os.urandom(64 * PAGE))

    def live(self) -> None:
        """Both."""
        self.check()
        self.end()


def forked(act: Callable[[], object]) -> int:
    """A child process that does something and ends, well if it went well."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        act()
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def wait(pid: int) -> None:
    """The child's end, which is good."""
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("first", ["parent", "child", "both"])
def test_each_goes_on(first: str) -> None:
    """Whoever of the two ends first, or writes, restores and takes new images: the other has all it had."""
    family = Family()
    read, write = os.pipe()

    def child() -> None:
        if first == "parent":
            os.read(read, 1)
        family.check()
        family.end()

    pid = forked(child)
    if first == "child":
        wait(pid)
    family.check()
    family.end()
    os.write(write, b".")
    if first != "child":
        wait(pid)
    os.close(read)
    os.close(write)


def test_grandchildren() -> None:
    """Each forks on from restored spaces, with images of several memory files."""
    family = Family()

    def child() -> None:
        family.space.copy_out(BASE, b"child")
        family.now = family.content(family.space)
        family.kept.append((family.space.snapshot(), family.now))
        pid = forked(family.live)
        family.check()
        wait(pid)
        family.end()

    pid = forked(child)
    family.check()
    wait(pid)
    family.end()


def test_images_of_before_are_not_given_back() -> None:
    """The memory file's ranges of before the fork are left alone by both, those of after it are given back."""
    family = Family()
    extents = [extent for snapshot, _ in family.kept for extent in snapshot._open().extents]
    images = {extent.image for extent in extents}
    assert all(isinstance(image, MemoryRange) for image in images)

    def child() -> None:
        family.end()
        assert all(image.file.retired for image in images if isinstance(image, MemoryRange))

    wait(forked(child))
    family.check()
    assert all(image.file.retired for image in images if isinstance(image, MemoryRange))


@pytest.mark.skipif(not image.maps_images(), reason="needs a host that maps images")
def test_a_fork_in_the_middle_of_a_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child of another thread's fork has what is noted: pages are mapped before it is forked off, or after."""
    family = Family()
    family.space.copy_out(BASE, b"in the middle" * PAGE)
    now = family.content(family.space)
    begun, forks = threading.Event(), threading.Event()
    real = host_calls._libc()
    pids: list[int] = []

    def child() -> None:
        assert family.content(family.space) == now
        extents = family.space._map.anonymous.arena.overlay.extents
        written = {at for ar in family.space.dirty_pages(family.kept[1][0]) for at in range(ar.start, ar.end, PAGE)}
        assert {BASE + n * PAGE for n in range(13)} <= written
        address = family.space.host_runs(BASE, BASE + PAGE)[0].address
        if (extent := extents.find(address)) is not None:
            host_calls.drop([extent.start], [extent.end - extent.start])
            assert extent.image.read_at(extent.offset, view := memoryview(bytearray(PAGE))) == PAGE
            assert family.content(family.space)[:PAGE] == bytes(view)

    def fork() -> None:
        begun.wait(10)
        forks.set()
        pids.append(forked(child))

    class Slow:
        """A libc whose mmap is slow."""

        def __getattr__(self, name: str) -> object:
            return self.mmap if name == "mmap" else getattr(real, name)

        def mmap(self, *args: int) -> int:
            begun.set()
            forks.wait(10)
            threading.Event().wait(0.05)
            return int(real.mmap(*args))

    thread = threading.Thread(target=fork)
    thread.start()
    with monkeypatch.context() as patch:
        patch.setattr(host_calls, "_libc", Slow)
        snapshot = family.space.snapshot()
    thread.join()
    wait(pids[0])
    family.space.zero_out(BASE, PAGE)
    family.space.restore(snapshot)
    assert family.content(family.space) == now


def test_forks_beside_snapshots() -> None:
    """A thread snapshots and restores all the time; the children that another one forks off find all in order."""
    family = Family()
    family.kept = family.kept[:1]
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            space = AddressSpace()
            space.mmap(BASE, 8 * PAGE, RW, FIXED)
            space.copy_out(BASE, b"y" * 8 * PAGE)
            with suppress(OSError), space.snapshot(timeout=1) as snapshot:
                space.copy_out(BASE, b"z")
                space.restore(snapshot, timeout=1)
            space.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(times(8, 200)):
            wait(forked(family.live))
    finally:
        done.set()
        thread.join()
    family.check()
