"""Fetched: intervals that are the same as a set of bytes, disjoint, merged, and bounded in number."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from usermem.observe import fetched
from usermem.observe.fetched import Fetched

SPANS = st.tuples(st.integers(0, 60), st.integers(1, 20), st.sampled_from("abc"))


@given(st.lists(SPANS, max_size=20), st.tuples(st.integers(0, 80), st.integers(1, 20)))
def test_intervals_are_a_set_of_bytes(spans: list[tuple[int, int, str]], asked: tuple[int, int]) -> None:
    """Each byte keeps the value that it got first; neighbours with equal values are one."""
    found, model = Fetched(), dict[int, str]()
    for start, length, value in spans:
        before = found.overlaps(start, start + length)
        assert found.add_all([(start, start + length)], value) == before
        for at in range(start, start + length):
            model.setdefault(at, value)
    start, end = asked[0], sum(asked)
    parts = found.overlaps(start, end)
    assert {at: value for first, last, value in parts for at in range(first, last)} == {
        at: value for at, value in model.items() if start <= at < end
    }
    whole = found.overlaps(0, 1 << 64)
    assert len(whole) == len(found)
    for (_, end_of_one, one), (start_of_next, _, other) in pairwise(whole):
        assert end_of_one < start_of_next or (end_of_one == start_of_next and one != other)


def test_they_are_bounded(monkeypatch: object) -> None:
    """What comes when there are many is not remembered; what touches them may still be."""
    found = Fetched()
    for i in range(fetched._MOST + 10):
        found.add(4 * i, 4 * i + 2, None)
    assert len(found) == fetched._MOST
    assert not found.overlaps(4 * fetched._MOST, 4 * fetched._MOST + 2)
    found.add(0, 4 * fetched._MOST, None)
    assert len(found) == 1
