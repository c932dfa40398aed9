"""The host refuses in the middle of snapshot, restore, fork and spawn: a clear error, and nothing has changed.

The real calls are refused: mappings by a counter in the place of the libc's mmap, memory by one in that of pwrite,
descriptors by RLIMIT_NOFILE.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from edge_layouts import FIXED, PAGE, RW
from hostarch import mman
from usermem import AddressSpace, Snapshot
from usermem.mm import host_calls, host_pages, image, memory_file, overlay
from usermem.mm.image import Image, new_image

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not image.maps_images(), reason="needs a host that maps images"
)

BASE, PAGES = 0x4000_0000, 16


class Refusing:
    """The libc, one function of which fails from its ``at``-th call on, or does a part of it only."""

    def __init__(self, name: str, at: int, answer: Callable[..., int]) -> None:
        self._libc = host_calls._libc()
        self._name, self._at, self._answer = name, at, answer
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return self._refuse if name == self._name else getattr(self._libc, name)

    def _refuse(self, *args: Any) -> int:
        self.calls += 1
        if self.calls < self._at:
            return int(getattr(self._libc, self._name)(*args))
        return self._answer(self._libc, *args)


def failed(code: int, answer: int = -1) -> Callable[..., int]:
    """A call that fails."""

    def fail(libc: object, *args: object) -> int:
        ctypes.set_errno(code)
        return answer

    return fail


@contextmanager
def refusing(
    monkeypatch: pytest.MonkeyPatch, name: str, at: int, answer: Callable[..., int] | None = None
) -> Iterator[Refusing]:
    """A host that refuses a call."""
    libc = Refusing(name, at, answer or failed(errno.ENOMEM, host_calls.FAILED if name == "mmap" else -1))
    with monkeypatch.context() as patch:
        patch.setattr(host_calls, "_libc", lambda: libc)
        yield libc


def sample() -> tuple[AddressSpace, Snapshot, bytes]:
    """A space with a snapshot of pages in pieces, what that holds, and pages written since."""
    space = AddressSpace()
    space.mmap(BASE, PAGES * PAGE, RW, FIXED)
    for page in range(0, PAGES, 2):
        space.copy_out(BASE + page * PAGE, b"then%d" % page)
    snapshot = space.snapshot()
    then = content(space)
    for page in range(0, PAGES, 3):
        space.copy_out(BASE + page * PAGE, b"now %d" % page)
    return space, snapshot, then


def content(space: AddressSpace) -> bytes:
    """All its bytes."""
    return space.read_bytes(BASE, PAGES * PAGE)


def check(space: AddressSpace, snapshot: Snapshot, then: bytes) -> None:
    """All goes on."""
    now = content(space)
    later = space.snapshot()
    for each, expected in ((snapshot, then), (later, now), (snapshot, then)):
        space.restore(each)
        assert content(space) == expected
        with each.spawn() as other:
            assert content(other) == expected
    space.close()


@pytest.mark.parametrize("name", ["mmap", "pwrite"])
@pytest.mark.parametrize("call", [AddressSpace.snapshot, AddressSpace.fork])
def test_a_snapshot_is_refused(name: str, call: Callable[[AddressSpace], object], monkeypatch: Any) -> None:
    """At each call of the host's: the first, in the middle of the pages, at the child."""
    at, done = 0, False
    while not done:
        at += 1
        space, snapshot, then = sample()
        now = content(space)
        with refusing(monkeypatch, name, at) as host:
            try:
                made = call(space)
                done = host.calls < at
                assert done
                del made
            except MemoryError:
                pass
            if not done and name == "pwrite":
                assert space.dirty_pages(snapshot).num_bytes >= PAGE
        assert content(space) == now
        check(space, snapshot, then)
    assert at > 3


def test_a_snapshot_with_no_memory_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC, at once or in the middle of a range: the error says what the host says; what is there stays."""

    def fill(fd: int, src: object, at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(libc: Any, fd: int, start: int, length: int, offset: int) -> int:
        return int(libc.pwrite(fd, start, length // PAGE // 2 * PAGE + 100, offset)) if length > PAGE else -1

    for answer in (failed(errno.ENOSPC), half):
        space, snapshot, then = sample()
        space.copy_out(BASE, b"x" * 7 * PAGE)
        now = content(space)
        with refusing(monkeypatch, "pwrite", 1, answer), monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fill)
            with pytest.raises(MemoryError, match="No space left on device"):
                space.snapshot()
        assert content(space) == now
        check(space, snapshot, then)


@pytest.mark.parametrize("name", ["mmap", "madvise"])
def test_a_restore_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one puts everything right. Where madvise alone is refused, a sandbox's doing, the first one does."""
    monkeypatch.setattr(host_pages._Host, "advises_many", False)
    at, done = 0, False
    while not done:
        at += 1
        space, snapshot, then = sample()
        later = space.snapshot()
        answer = failed(errno.EPERM) if name == "madvise" else None
        with refusing(monkeypatch, name, at, answer) as host, suppress(*[MemoryError] * (name == "mmap")):
            space.restore(snapshot)
            assert content(space) == then
            done = host.calls < at
        space.restore(snapshot)
        assert content(space) == then
        space.restore(later)
        check(space, snapshot, then)
    assert at > 1


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """EMFILE, whatever is opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1 << 9, limits[0]), limits[1]))
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_no_descriptor_left() -> None:
    """All works: what the host would tell by a file is found by comparing."""
    space, snapshot, then = sample()
    space.copy_out(BASE, b"now")
    with no_descriptor_left():
        dirty = space.dirty_pages(snapshot)
        now = content(space)
        child, later = space.fork(), space.snapshot()
        space.restore(snapshot)
        assert content(space) == then
        space.restore(later)
        assert content(space) == content(child) == now
        with snapshot.spawn() as other:
            assert content(other) == then
    space.restore(later)
    assert dirty == space.dirty_pages(snapshot)
    check(space, snapshot, then)


def test_no_descriptor_left_at_the_first_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """MemoryError says so, and that is not remembered as the host's way."""
    monkeypatch.setattr(memory_file, "_current", None)
    for probed in (True, False):
        space = AddressSpace()
        space.mmap(BASE, PAGES * PAGE, RW, FIXED)
        space.copy_out(BASE, b"x" * PAGE)
        if not probed:
            image.maps_images.cache_clear()
        with no_descriptor_left(), pytest.raises(MemoryError, match="memory file"):
            space.snapshot()
        snapshot = space.snapshot()
        assert image.maps_images()
        check(space, snapshot, content(space))
        monkeypatch.setattr(memory_file, "_current", None)


@pytest.mark.parametrize("answer", [-1, PAGE], ids=["refused", "partly"])
def test_process_madvise_is_refused(answer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges are given up one by one then."""
    monkeypatch.setattr(host_pages, "_MANY", -(1 << 40))
    monkeypatch.setattr(host_pages._Host, "looks_left", 1 << 20)
    monkeypatch.setattr(host_pages._Host, "advises_many", True)
    monkeypatch.setattr(host_calls, "process_madvise", lambda *args: answer)
    space, snapshot, then = sample()
    space.restore(snapshot)
    assert content(space) == then
    assert not host_pages._Host.advises_many
    check(space, snapshot, then)


def test_a_file_that_is_truncated_while_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages are the file's business: the snapshot is made, and the rest is there."""
    fd = os.memfd_create("file")
    os.ftruncate(fd, PAGES * PAGE)
    space = AddressSpace()
    space.mmap(BASE, PAGES * PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, fd)
    space.copy_out(BASE, b"own" * 4 * PAGE)

    def truncate(libc: Any, *args: Any) -> int:
        os.ftruncate(fd, 2 * PAGE)
        return int(libc.pwrite(*args))

    with refusing(monkeypatch, "pwrite", 1, truncate):
        snapshot = space.snapshot()
    assert space.read_bytes(BASE, 2 * PAGE) == (b"own" * 4 * PAGE)[: 2 * PAGE]
    os.ftruncate(fd, PAGES * PAGE)
    space.copy_out(BASE + PAGE, b"later")
    space.restore(snapshot)
    assert content(space) == (b"own" * 4 * PAGE)[: 2 * PAGE] + bytes((PAGES - 2) * PAGE)
    os.close(fd)


def test_a_file_that_is_truncated_where_there_are_no_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the comparison and the copy: no signal kills the process, what is gone is zeros."""
    monkeypatch.setattr(overlay, "maps_images", lambda: False)
    monkeypatch.setattr("usermem.mm.image.memory_file", lambda: None)
    fd = os.memfd_create("file")
    os.ftruncate(fd, PAGES * PAGE)
    space = AddressSpace()
    space.mmap(BASE, PAGES * PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, fd)
    space.copy_out(BASE, b"own" * 4 * PAGE)

    def truncate(length: int) -> Image:
        os.ftruncate(fd, 2 * PAGE)
        return new_image(length)

    with monkeypatch.context() as patch:
        patch.setattr("usermem.mm.overlay.new_image", truncate)
        snapshot = space.snapshot()
    os.ftruncate(fd, PAGES * PAGE)
    space.restore(snapshot)
    assert content(space) == (b"own" * 4 * PAGE)[: 2 * PAGE] + bytes((PAGES - 2) * PAGE)
    os.close(fd)
