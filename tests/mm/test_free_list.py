"""FreeList against a set of numbers: what it hands out is free, long enough, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from each_line import Event, interrupt
from usermem.mm import free_list
from usermem.mm.free_list import FreeList

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
@example([("take", 150, 0), ("take", 10, 0), ("give", 0, 150), ("take", 150, 0), ("give", 1, 5), ("give", 0, 10)])
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


@pytest.mark.parametrize("length", [9, 15])
def test_many_that_are_too_short_cost_no_walk(length: int) -> None:
    """Beside ten thousand ranges that are just too short, a longer one is found after a few looks."""
    ranges = FreeList()
    ranges.give(1 << 20, (1 << 20) + 1000)
    for i in range(10_000):
        ranges.give(10 * i, 10 * i + 8)
    event, found = Event([free_list]), list[int | None]()
    event.during(lambda: found.append(ranges.take(length)))
    assert found == [1 << 20]
    assert event.lines < 500


Act = Callable[[FreeList, list[int | None]], object]


def take_two(ranges: FreeList, got: list[int | None]) -> None:
    """Take two single numbers."""
    got += [ranges.take(1), ranges.take(1)]


def give_around(ranges: FreeList, got: list[int | None]) -> None:
    """Give neighbours of free ranges, as a destructor may."""
    ranges.give(60, 61)
    ranges.give(59, 60)
    ranges.give(50, 59)
    ranges.give(99, 100)


def interrupted(ranges: FreeList, got: list[int | None]) -> None:
    """As Ctrl-C."""
    interrupt()


CALLS = [("give", 300, 400), ("give", 20, 30), ("take", 0, 15), ("take", 0, 20)]


@pytest.mark.parametrize("act", [interrupted, take_two, give_around])
@pytest.mark.parametrize(("what", "start", "end"), CALLS, ids=["give", "join", "take a part", "take all"])
def test_nothing_is_free_twice(what: str, start: int, end: int, act: Act) -> None:
    """Whatever happens before any line: numbers may be lost, but what is left is handed out once, and all goes on."""

    def call(ranges: FreeList, got: list[int]) -> None:
        if what == "give":
            ranges.give(start, end)
        elif (first := ranges.take(end)) is not None:
            got += range(first, first + end)

    def sample() -> FreeList:
        ranges = FreeList()
        for first, last in ((0, 20), (30, 50), (100, 101)):
            ranges.give(first, last)
        return ranges

    at, fired = 0, True
    while fired:
        at += 1
        ranges, numbers = sample(), list[int]()
        singles: list[int | None] = []
        event = Event([free_list], at, partial(act, ranges, singles))
        with suppress(KeyboardInterrupt):
            event.during(partial(call, ranges, numbers))
        fired = bool(event.where)
        later = (400, 1000) if act is give_around else (50, 400, 1000)  # neighbours of what was given, and others
        for first in later:
            ranges.give(first, first + 10)
        while (n := ranges.take(1)) is not None:
            numbers.append(n)
        numbers += [n for n in singles if n is not None]
        assert len(numbers) == len(set(numbers)), event.where
        assert set(later) <= set(numbers), event.where
    assert at > 5
