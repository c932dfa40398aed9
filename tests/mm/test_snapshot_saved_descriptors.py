"""The descriptors of saved and loaded snapshots, and interrupts: nothing is left open, no file is left half."""

from __future__ import annotations

import errno
import gc
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from campaign import times
from each_line import Event, interrupt
from edge_layouts import FIXED, PAGE
from every_mapping import BASE, RW, EveryMapping, assert_same, contents
from hostarch import AMD64, mman
from usermem import AddressSpace, Snapshot
from usermem.mm import (
    image,
    overlay,
    replace_file,
    saved_space,
    saved_state,
    snapshot_file,
    snapshot_tables,
    spawn,
)
from usermem.mm.backing import saved_bytes, shared_memory

MODULES = [
    *(image, replace_file, saved_bytes, saved_space, saved_state, shared_memory, snapshot_file, snapshot_tables),
]
"""Not that of Descriptor: CPython swallows what is raised in a destructor, and what that was to do is not done."""

SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED


def open_on(path: Path) -> int:
    """How many descriptors of this process are of a file, whatever its name is now."""
    inode = path.stat().st_ino
    count = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - pathlib would open one more
        try:
            count += os.fstat(int(name)).st_ino == inode
        except OSError:
            continue  # that of the listing
    return count


def descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def small() -> AddressSpace:
    """A space with one of each kind."""
    space = AddressSpace()
    space.mmap(BASE, 3 * PAGE, RW, FIXED)
    space.copy_out(BASE, b"private")
    space.mmap(BASE + 4 * PAGE, PAGE, RW, SHARED)
    space.copy_out(BASE + 4 * PAGE, b"shared")
    fd = os.memfd_create("file")
    os.pwrite(fd, b"file", 0)
    space.mmap(BASE + 8 * PAGE, 2 * PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, fd)
    os.close(fd)
    return space


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A saved file."""
    with small() as space:
        space.snapshot().save(tmp_path / "a")
    return tmp_path / "a"


def test_one_for_each_load_until_its_last_user_is_gone(path: Path) -> None:
    """The snapshot, its spaces, their snapshots and forks; in any order."""
    assert open_on(path) == 0
    loaded, other = Snapshot.load(path), Snapshot.load(path)
    spaces = [loaded.spawn() for _ in range(5)]
    assert open_on(path) == 2
    other.close()
    assert open_on(path) == 1
    contents(spaces[0])
    later, child = spaces[0].snapshot(), spaces[1].fork()
    loaded.close()
    for space in spaces:
        space.close()
    del space, spaces
    gc.collect()
    assert open_on(path) == 1
    assert child.read_bytes(BASE, 7) == b"private"
    child.close()
    assert later.spawn().read_bytes(BASE + 8 * PAGE, 4) == b"file"
    gc.collect()
    assert open_on(path) == 1
    later.close()
    del child
    gc.collect()
    assert open_on(path) == 0


def test_in_memory_none(path: Path) -> None:
    """The file is closed when it was read."""
    loaded = Snapshot.load(path, in_memory=True)
    assert loaded.spawn().read_bytes(BASE, 7) == b"private"
    assert open_on(path) == 0


def test_none_after_errors(path: Path) -> None:
    """Damaged files, other files, no memory: also while the error is at hand."""
    raw = path.read_bytes()
    before = descriptors()
    for bad in (b"", b"something else", raw[:-1], raw[:70000] + b"\xff" + raw[70001:], raw + b"\0"):
        path.write_bytes(bad)
        for in_memory in (False, True):
            with pytest.raises(ValueError) as caught:
                Snapshot.load(path, in_memory=in_memory)
            assert descriptors() == before, caught
    for other in (path.parent, path.parent / "nothing"):
        with pytest.raises((ValueError, OSError)) as refused:
            Snapshot.load(other)
        assert descriptors() == before, refused
    with small() as space:
        snapshot, before = space.snapshot(), descriptors()
        with pytest.raises(OSError) as not_saved:
            snapshot.save(path.parent)
        assert descriptors() == before, not_saved


@contextmanager
def no_more_than(count: int) -> Iterator[None]:
    """The process may open so many more descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


CALLS: dict[str, Callable[[Path, AddressSpace], object]] = {
    "load": lambda path, _: Snapshot.load(path).spawn().read_bytes(BASE, 1),
    "load in memory": lambda path, _: Snapshot.load(path, in_memory=True).spawn().read_bytes(BASE, 1),
    "save": lambda path, space: space.snapshot().save(path),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_descriptors_left(path: Path, name: str) -> None:
    """Whichever cannot be opened: EMFILE, the old file is there, and nothing is left open."""
    space, call = small(), CALLS[name]
    call(path, space)
    gc.collect()
    raw, before, count, failed = path.read_bytes(), descriptors(), 0, 0
    while True:
        with no_more_than(count):
            try:
                call(path, space)
                break
            except OSError as exc:
                assert exc.errno == errno.EMFILE
                failed += 1
        gc.collect()
        assert (descriptors(), path.read_bytes()) == (before, raw)
        assert [each.name for each in path.parent.iterdir()] == ["a"]
        count += 1
    assert failed >= {"load": 1, "load in memory": 1, "save": 2}[name]


def interrupted(call: Callable[[], object], between: bool) -> Iterator[str]:
    """Make a call, with an interrupt before each line in turn, by day every fourth, and say after each where."""
    at = 1
    while True:
        event = Event(MODULES, at, interrupt, often=1, between=between)
        with suppress(KeyboardInterrupt):
            event.during(call)
        if event.lines < at:
            break
        yield event.where
        at += times(4, 1)
    assert at > 100


@pytest.mark.parametrize("between", [False, True], ids=["lines", "instructions"])
@pytest.mark.parametrize("in_memory", [False, True], ids=["mapped", "in_memory"])
def test_interrupted_loads(path: Path, in_memory: bool, between: bool) -> None:
    """No descriptor is left open, wherever Ctrl-C comes."""
    Snapshot.load(path, in_memory=in_memory)
    before = descriptors()
    for where in interrupted(lambda: Snapshot.load(path, in_memory=in_memory), between):
        assert descriptors() == before, where


@pytest.mark.parametrize("between", [False, True], ids=["lines", "instructions"])
def test_interrupted_saves(path: Path, between: bool) -> None:
    """The file is the old one or the new one, and nothing else is there, wherever Ctrl-C comes."""
    old = path.read_bytes()
    with small() as space:
        space.copy_out(BASE, b"another")
        snapshot = space.snapshot()
        before = descriptors()
        for where in interrupted(lambda: snapshot.save(path), between):
            assert descriptors() == before, where
            assert [each.name for each in path.parent.iterdir()] == ["a"], where
            if path.read_bytes() != old:
                assert Snapshot.load(path).spawn().read_bytes(BASE, 7) == b"another", where
                path.write_bytes(old)


def test_interrupted_spawns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spawn that is interrupted leaves the snapshot whole, and the file is closed at the end."""
    monkeypatch.setattr(sys, "unraisablehook", bool)  # an interrupt in a destructor goes nowhere, as Python has it
    loaded = Snapshot.load(path)
    modules = [overlay, saved_bytes, shared_memory, spawn]
    spaces: list[AddressSpace] = []
    at = 1
    while True:
        event = Event(modules, at, interrupt, often=1)
        with suppress(KeyboardInterrupt):
            event.during(lambda: spaces.append(loaded.spawn()))
        spaces.clear()
        if event.lines < at:
            break
        space = loaded.spawn()
        assert [space.read_bytes(BASE + at * PAGE, 4) for at in (0, 4, 8)] == [b"priv", b"shar", b"file"], event.where
        space.close()
        at += 1
    del space
    loaded.close()
    gc.collect()
    assert open_on(path) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")
@pytest.mark.parametrize("in_memory", [False, True], ids=["mapped", "in_memory"])
def test_forked_processes(tmp_path: Path, in_memory: bool) -> None:
    """Parent and child go on for themselves with what was loaded before: spawn, write, save; and may close it."""
    one = EveryMapping(AMD64, tmp_path)
    one.space.snapshot().save(tmp_path / "a")
    loaded = Snapshot.load(tmp_path / "a", in_memory=in_memory)
    space = loaded.spawn()
    child = os.fork()
    if not child:
        status = 1
        try:
            assert_same(space, loaded.spawn())
            space.copy_out(BASE, b"the child's")
            space.snapshot().save(tmp_path / "b")
            space.close()
            loaded.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert_same(space, one.space)
    assert_same(loaded.spawn(), one.space)
    assert Snapshot.load(tmp_path / "b").spawn().read_bytes(BASE, 11) == b"the child's"
    one.close()
