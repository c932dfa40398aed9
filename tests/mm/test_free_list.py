"""FreeList against a set of numbers: what it hands out is free, long enough, and nobody else's."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from each_line import Event, interrupt
from usermem.mm import arena
from usermem.mm.arena import FreeList

SIZE = 200
steps = st.one_of(
    st.tuples(st.just("take"), st.integers(1, 40), st.just(0)),
    st.tuples(st.just("give"), st.integers(0, 50), st.integers(1, 40)),
)


def lengths(free: set[int]) -> list[int]:
    """Of each run of free numbers, how many they are."""
    starts = sorted(n for n in free if n - 1 not in free)
    ends = sorted(n + 1 for n in free if n + 1 not in free)
    return [end - start for start, end in zip(starts, ends, strict=True)]


@given(st.lists(steps, max_size=60))
def test_any_order(taken: list[tuple[str, int, int]]) -> None:
    """What was taken comes back in parts, in any order; neighbours are one range again, and all are found."""
    ranges, free = FreeList(), set(range(SIZE))
    ranges.give(0, SIZE)
    held: list[tuple[int, int]] = []
    for what, a, b in taken:
        if what == "take":
            start = ranges.take(a)
            if start is None:
                longest = max(lengths(free), default=0)
                assert longest < 1 << (a - 1).bit_length()  # only what is hardly long enough is missed,
                assert longest < a or len(lengths(free)) > 8  # and only among many
                continue
            assert free.issuperset(range(start, start + a))
            free.difference_update(range(start, start + a))
            held.append((start, start + a))
        elif held:
            start, end = held.pop(a % len(held))
            stop = min(start + b, end)
            ranges.give(start, stop)
            free.update(range(start, stop))
            held += [(stop, end)] if stop < end else []
        assert len(ranges) == len(lengths(free))
    for start, end in held:
        ranges.give(start, end)
    assert (len(ranges), ranges.take(SIZE), ranges.take(1)) == (1, 0, None)


class Counting(dict[int, int]):
    """A dict that counts how often it is asked."""

    looks = 0

    def __getitem__(self, key: int) -> int:
        self.looks += 1
        return super().__getitem__(key)


@pytest.mark.parametrize("length", [9, 15])
def test_many_that_are_too_short_cost_no_walk(length: int) -> None:
    """Beside ten thousand ranges that are just too short, a longer one is found after a few looks."""
    ranges = FreeList()
    ranges.give(1 << 20, (1 << 20) + 1000)
    for i in range(10_000):
        ranges.give(10 * i, 10 * i + 8)
    ranges._ends = counting = Counting(ranges._ends)
    assert ranges.take(length) == 1 << 20
    assert counting.looks < 12


CALLS = [("give", 300, 400), ("give", 20, 30), ("take", 0, 15), ("take", 0, 20)]


@pytest.mark.parametrize(("what", "start", "end"), CALLS, ids=["give", "join", "take a part", "take all"])
def test_an_interrupt_makes_nothing_free_twice(what: str, start: int, end: int) -> None:
    """Before any line: numbers may be lost, but those that are left are handed out once, and the list goes on."""

    def call(ranges: FreeList, got: list[int | None]) -> None:
        if what == "give":
            ranges.give(start, end)
        else:
            got.append(ranges.take(end))

    def sample() -> FreeList:
        ranges = FreeList()
        for first, last in ((0, 20), (30, 50), (100, 101)):
            ranges.give(first, last)
        return ranges

    whole = Event([arena])
    whole.during(lambda: call(sample(), []))
    for at in range(1, whole.lines + 1):
        ranges, event = sample(), Event([arena], at, interrupt)
        got: list[int | None] = []
        with suppress(KeyboardInterrupt):
            event.during(partial(call, ranges, got))
        numbers = [n for first in got if first is not None for n in range(first, first + end)]
        for first in (50, 400, 1000):  # neighbours of what was given, and others
            ranges.give(first, first + 10)
        while (n := ranges.take(1)) is not None:
            numbers.append(n)
        assert len(numbers) == len(set(numbers)), event.where
        assert {50, 400, 1000} <= set(numbers), event.where
