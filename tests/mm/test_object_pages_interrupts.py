"""Ctrl-C, no memory and errors while what copies in flight wrote to a file's pages goes back into it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from edge_layouts import ANON, BASE, PAGE, RW, one
from hostarch import mman
from usermem import AddressSpace


class File:
    """A simulator's file of a page, whose write_at raises the next of ``errors``."""

    def __init__(self, *errors: BaseException) -> None:
        self.data = bytearray(PAGE)
        self.errors = list(errors)

    def size(self) -> int:
        """See MappedObject."""
        return len(self.data)

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        dst[: len(self.data)] = self.data
        return len(self.data)

    def write_at(self, offset: int, src: memoryview) -> None:
        """See WritableObject."""
        if self.errors:
            raise self.errors.pop(0)
        self.data[offset : offset + len(src)] = src


def written_late(file: File) -> None:
    """Write to a page of the file's whose last mapping is gone."""
    space = AddressSpace()
    space.map_object(BASE, PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, file)
    blocks = space.blocks(one(BASE, PAGE), ignore_permissions=True)
    space.munmap(BASE, PAGE)
    blocks.head().view()[:5] = b"later"


def any_call() -> object:
    """A mapping call of any space's."""
    return AddressSpace().mmap(0, PAGE, RW, ANON)


def test_an_error_goes_to_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it, and the call that does the work is somebody else's."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(args.exc_value))
    error = OSError(28, "the disk is full")
    file = File(error)
    written_late(file)
    any_call()
    assert told == [error]
    any_call()
    assert told == [error]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_loses_nothing(interrupt: Callable[[], BaseException]) -> None:
    """It comes out of the call, and the next one goes on."""
    file = File(interrupt())
    written_late(file)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        any_call()
    assert file.data[:5] == bytes(5)
    any_call()
    assert file.data[:5] == b"later"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_of_munmap_loses_nothing(interrupt: Callable[[], BaseException]) -> None:
    """Nor does one while munmap itself writes back: it is no answer of the file's, which is asked again."""
    file = File(interrupt())
    space = AddressSpace()
    space.map_object(BASE, PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, file)
    space.copy_out(BASE, b"later")
    try:
        space.munmap(BASE, PAGE)
    except KeyboardInterrupt:
        assert interrupt is KeyboardInterrupt
    any_call()
    assert file.data[:5] == b"later"
