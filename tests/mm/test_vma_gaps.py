"""Where a VMASet finds room: what its nodes remember of earlier searches changes no answer, and spares it the walk."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from each_line import Event
from usermem.mm import segment, vma
from usermem.mm.backing.anonymous import Anonymous
from usermem.mm.vma import VMA, VMASet

PAGE = 4096
PAGES = 40
TOP = 1 << 40
ANONYMOUS = Anonymous()


def mapping(start: int, pages: int, prot: int = 3, guard: int = 0) -> VMA:
    """A private mapping of some pages, with a guard of some below it."""
    return VMA(start * PAGE, (start + pages) * PAGE, prot, 7, False, ANONYMOUS, guard=guard * PAGE)


steps = st.one_of(
    st.tuples(st.just("find"), st.integers(1, 12), st.sampled_from([PAGES, PAGES - 7])),
    st.tuples(st.sampled_from(["place", "place low"]), st.integers(1, 6), st.sampled_from([PAGES, PAGES - 7])),
    st.tuples(st.sampled_from(["guard", "remove"]), st.integers(0, PAGES - 1), st.integers(1, 10)),
)


def rebuilt(vmas: VMASet) -> VMASet:
    """The same mappings, in a set that nobody has searched yet."""
    return VMASet().replace(0, 2 * PAGES * PAGE, list(vmas))


@pytest.mark.parametrize("fanout", [3, 8, segment._FANOUT])
@given(st.lists(steps, max_size=40))
def test_what_is_remembered_changes_no_answer(fanout: int, taken: list[tuple[str, int, int]]) -> None:
    """After any mappings and removals the place is what a new set says, and what trying all places says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "_FANOUT", fanout)
        vmas = VMASet()
        for what, a, b in taken:
            if what in ("remove", "guard"):
                new = [mapping(a, b, 5, guard=b)] if what == "guard" else []
                vmas = vmas.put(a * PAGE, (a + b) * PAGE, new)
                continue
            first = vmas.highest_gap(a * PAGE, PAGE, b * PAGE)
            last = vmas.lowest_gap(a * PAGE, PAGE, b * PAGE)
            fits = [at for at in range(1, b - a + 1) if fits_at(vmas, at * PAGE, (at + a) * PAGE)]
            assert [first, last] == ([max(fits) * PAGE, min(fits) * PAGE] if fits else [None, None])
            anew = rebuilt(vmas)
            assert first == anew.highest_gap(a * PAGE, PAGE, b * PAGE)
            assert last == anew.lowest_gap(a * PAGE, PAGE, b * PAGE)
            found = last if what == "place low" else first
            if what != "find" and found is not None:
                vmas = vmas.put(found, found + a * PAGE, [mapping(found // PAGE, a, prot=a % 4)])
            vmas._check()


def fits_at(vmas: VMASet, start: int, end: int) -> bool:
    """Whether nothing is mapped in [start, end), which does not reach into the guard of the next mapping either."""
    return vmas.is_free(start, end) and end <= vmas.limit_from(start)


def with_holes(count: int) -> VMASet:
    """Mappings of a page, with holes of a page between them, from the top down."""
    vmas = [VMA(TOP - (2 * i + 2) * PAGE, TOP - (2 * i + 1) * PAGE, 3, 7, False, ANONYMOUS) for i in range(count)]
    return VMASet().replace(0, TOP, vmas[::-1])


def lines(call: Callable[[], object]) -> int:
    """How many lines of the tables' code a call runs."""
    event = Event([segment, vma])
    event.during(call)
    return event.lines


def test_a_place_beside_many_costs_no_walk() -> None:
    """Mapping and unmapping below a hundred thousand mappings looks at a few of them, once somebody has searched."""
    costs: list[int] = []
    for count in (100, 100_000):
        vmas = with_holes(count)

        def turn(vmas: VMASet = vmas, count: int = count) -> None:
            found = vmas.highest_gap(2 * PAGE, PAGE, TOP)
            assert found == TOP - (2 * count + 2) * PAGE
            new = vmas.put(found, found + 2 * PAGE, [VMA(found, found + 2 * PAGE, 1, 7, False, ANONYMOUS)])
            new = new.put(found, found + 2 * PAGE, [])
            assert new.highest_gap(2 * PAGE, PAGE, TOP) == found

        assert vmas.highest_gap(2 * PAGE, PAGE, TOP)
        costs.append(max(lines(turn) for _ in range(5)))
    assert costs[1] < 3 * costs[0]
    assert costs[1] < 1000


def test_places_of_several_lengths_in_turn_cost_no_walk() -> None:
    """A short one, which fills a hole near the top, does not have the next long one look at all holes again."""
    vmas = with_holes(100_000)

    def turn(number: int) -> None:
        nonlocal vmas
        for pages in (1, 2):
            found = vmas.highest_gap(pages * PAGE, PAGE, TOP)
            assert found is not None
            new = VMA(found, found + pages * PAGE, number % 2, 7, False, ANONYMOUS)
            vmas = vmas.put(found, found + pages * PAGE, [new])

    turn(0)
    assert max(lines(lambda number=number: turn(number)) for number in range(1, 6)) < 3000  # type: ignore[misc]


@pytest.mark.parametrize("upward", [False, True])
def test_a_hole_among_many_is_found_at_once(upward: bool) -> None:
    """The only one that is long enough, in the middle of a hundred thousand, costs a way down the tree."""
    vmas = with_holes(100_000)
    hole = TOP - 100_002 * PAGE
    vmas = vmas.put(hole, hole + PAGE, [])
    search = vmas.lowest_gap if upward else vmas.highest_gap
    # The first search finds out which nodes have none.
    assert search(3 * PAGE, TOP - 150_000 * PAGE, TOP) == hole - PAGE
    assert lines(lambda: search(3 * PAGE, TOP - 150_000 * PAGE, TOP)) < 6000
    assert search(3 * PAGE, TOP - 150_000 * PAGE, TOP) == hole - PAGE
