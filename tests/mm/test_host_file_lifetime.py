"""A host mapping or descriptor that goes is found by nobody any more, and what an inode does not name is not shared."""

from __future__ import annotations

import fcntl
import gc
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from each_line import Event, interrupt
from edge_layouts import PAGE, RW
from hostarch import ARM64_64K, mman
from usermem import AddressSpace
from usermem.mm import host_calls
from usermem.mm.backing import host_file
from usermem.mm.faulting import can_map

pytestmark = pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")


class Watched:
    """The C library, which calls a function right after it has unmapped pages, without the GIL as it were."""

    def __init__(self, libc: Any, after: Callable[[], object]) -> None:
        self.libc = libc
        self.after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.libc, name)

    def munmap(self, address: int, length: int) -> int:
        """munmap(2)."""
        result: int = self.libc.munmap(address, length)
        thread = threading.Thread(target=self.after)
        thread.start()
        thread.join()
        return result


def test_a_window_that_is_being_unmapped_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread that touches the file while the last mapping of a window goes gets a window of its own."""
    with tempfile.TemporaryFile(buffering=0) as file, AddressSpace() as one, AddressSpace() as other:
        file.write(b"x" * PAGE)
        there = other.mmap(0, PAGE, RW, mman.MAP_SHARED, file.fileno(), 0)
        at = one.mmap(0, PAGE, RW, mman.MAP_SHARED, file.fileno(), 0)
        one.read_bytes(at, 1)
        seen: list[bytes] = []
        watched = Watched(host_calls._libc(), lambda: seen.append(other.read_bytes(there, 4)))
        monkeypatch.setattr(host_calls, "_libc", lambda: watched)
        one.munmap(at, PAGE)
        monkeypatch.undo()
        assert seen == [b"xxxx"]
        assert other.read_bytes(there, 4) == b"xxxx"


def test_mappings_of_a_device_have_memory_of_their_own() -> None:
    """Each shared mapping of /dev/zero is another piece of memory, in one space and in two."""
    fd = os.open("/dev/zero", os.O_RDWR)
    try:
        with AddressSpace() as one, AddressSpace() as other:
            at = one.mmap(0, PAGE, RW, mman.MAP_SHARED, fd, 0)
            one.copy_out(at, b"secret")
            for space in (one, other):
                assert space.read_bytes(space.mmap(0, PAGE, RW, mman.MAP_SHARED, fd, 0), 6) == bytes(6)
            assert one.read_bytes(at, 6) == b"secret"
    finally:
        os.close(fd)


def test_a_private_page_behind_the_end_keeps_what_was_written() -> None:
    """On a machine with large pages, when the file grows."""
    with tempfile.TemporaryFile(buffering=0) as file, AddressSpace(ARM64_64K) as space:
        file.write(b"f" * 100)
        at = space.mmap(0, 1 << 16, RW, mman.MAP_PRIVATE, file.fileno(), 0)
        space.copy_out(at + 2 * PAGE, b"mine")
        for size in (5100, 3 * PAGE + 5, 5 * PAGE):
            file.truncate(size)
            assert space.read_bytes(at + 2 * PAGE, 5) == b"mine\0"
        assert space.read_bytes(at + 4 * PAGE, 4) == bytes(4)


F_ADD_SEALS, F_SEAL_FUTURE_WRITE = 1033, 16
NAME = "interrupted-file"


@contextmanager
def interrupted_file(kind: int, seals: int) -> Iterator[tuple[AddressSpace, int, int]]:
    """A space, a memory file, and where it is mapped in the space, untouched, sealed afterwards."""
    fd = os.memfd_create(NAME, os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    with AddressSpace() as space:
        try:
            at = space.mmap(0, PAGE, RW, kind, fd, 0)
            if seals:
                fcntl.fcntl(fd, F_ADD_SEALS, seals)
            yield space, fd, at
        finally:
            os.close(fd)


def left() -> int:
    """How many mappings of such files the process has, and descriptors."""
    gc.collect()
    descriptors = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.exists()]  # noqa: PTH115 - no file
    return Path("/proc/self/maps").read_text().count(NAME) + "".join(descriptors).count(NAME)


@pytest.mark.parametrize("name", ["mmap", "shared", "private", "sealed", "mincore"])
def test_an_interrupt_leaves_nothing_open(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it comes: no mapping of the host's stays when the space is closed, and no descriptor.

    But for those that a destructor was to give back, which loses the interrupt, too.
    """

    def call(space: AddressSpace, fd: int, at: int) -> None:
        if name == "mmap":
            space.munmap(at, PAGE)  # so that the file is met anew
            space.mmap(0, PAGE, RW, mman.MAP_SHARED, fd, 0)
        elif name == "mincore":
            space.mincore(at, PAGE)
        else:
            space.copy_out(at, b"touched")

    kind, seals = mman.MAP_PRIVATE if name == "private" else mman.MAP_SHARED, F_SEAL_FUTURE_WRITE * (name == "sealed")
    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraised: lost.append(str(unraised)))
    point, event = 0, Event([])
    while point <= event.lines:
        point, before = point + 1, left()
        event = Event([host_calls, host_file], point, interrupt, between=True)
        with interrupted_file(kind, seals) as (space, fd, at), suppress(KeyboardInterrupt):
            event.during(lambda s=space, f=fd, a=at: call(s, f, a))  # type: ignore[misc]
        # At the end of an ``except`` there are instructions without a line, before which no handler runs.
        assert left() <= before or lost or ":None" in event.where, event.where
        lost.clear()
    assert point > 10
