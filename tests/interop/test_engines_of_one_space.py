"""Several engines over one space, as of threads: each that is closed is let go, whatever came after it."""

from __future__ import annotations

import gc
import itertools
import weakref

import pytest

from cpu import unicorn
from usermem import AddressSpace, ChangeKind
from usermem.unicorn import SharedEngine, share


def engines(space: AddressSpace, n: int) -> list[SharedEngine]:
    """Engines that share a space."""
    return [share(unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64), space) for _ in range(n)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_they_leave_in_any_order(order: tuple[int, ...]) -> None:
    """Nothing refers to a closed one, and the listener that was there before is told all the time."""
    told: list[ChangeKind] = []
    with AddressSpace() as space:
        space.on_change = listener = lambda start, end, kind: told.append(kind)
        shared = engines(space, 3)
        gone = [weakref.ref(each) for each in shared]
        for count, index in enumerate(order, 1):
            shared[index].close()
            space.mmap(0, 4096, 3, 0x22)
            assert len(told) == count
        assert space.on_change == listener
        shared.clear()
        gc.collect()
        assert [each() for each in gone] == [None] * 3


def test_others_listeners_stay() -> None:
    """One of the user's that came in between is told to the end."""
    told: list[ChangeKind] = []
    with AddressSpace() as space:
        (first,) = engines(space, 1)
        before = space.on_change
        assert before is not None

        def listener(start: int, end: int, kind: ChangeKind) -> None:
            told.append(kind)
            before(start, end, kind)

        space.on_change = listener
        (second,) = engines(space, 1)
        first.close()
        second.close()
        assert space.on_change is listener
        space.mmap(0, 4096, 3, 0x22)
        assert len(told) == 1
