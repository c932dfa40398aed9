"""Where VMASet finds room: what it remembers of earlier searches changes no answer, and spares it the walk."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from usermem.segment import SegmentSet
from usermem.vma import VMA, VMASet

PAGE = 4096
PAGES = 40


def vma(start: int, pages: int, prot: int = 3) -> VMA:
    """A private mapping of some pages."""
    return VMA(start * PAGE, (start + pages) * PAGE, prot, 7, False)


steps = st.one_of(
    st.tuples(st.just("find"), st.integers(1, 12), st.sampled_from([PAGES, PAGES - 7])),
    st.tuples(st.just("place"), st.integers(1, 6), st.sampled_from([PAGES, PAGES - 7])),
    st.tuples(st.just("remove"), st.integers(0, PAGES - 1), st.integers(1, 10)),
)


@given(st.lists(steps, max_size=40))
def test_what_is_remembered_changes_no_answer(taken: list[tuple[str, int, int]]) -> None:
    """After any mappings and removals the place is that of a search from the top."""
    vmas = VMASet()
    for what, a, b in taken:
        if what == "remove":
            vmas.remove(a * PAGE, (a + b) * PAGE)
            continue
        right = SegmentSet.find_gap(vmas, a * PAGE, PAGE, b * PAGE)
        found = vmas.find_gap(a * PAGE, PAGE, b * PAGE)
        assert found == right
        if what == "place" and found is not None:
            vmas.add(vma(found // PAGE, a, prot=a % 4))


class Counting(list[int]):
    """The starts of segments, and how many of them were looked at."""

    looks = 0

    def __getitem__(self, i: Any) -> Any:
        self.looks += 1
        return super().__getitem__(i)


def test_a_place_beside_many_costs_no_walk() -> None:
    """Mapping and unmapping below ten thousand mappings looks at a few of them."""
    vmas = VMASet()
    top = 1 << 40
    for i in range(10_000):
        vmas.add(VMA(top - (2 * i + 2) * PAGE, top - (2 * i + 1) * PAGE, 3, 7, False))
    looks = []
    for _ in range(5):
        found = vmas.find_gap(2 * PAGE, PAGE, top)
        assert found == top - 20_002 * PAGE
        vmas.add(VMA(found, found + 2 * PAGE, 1, 7, False))
        vmas.remove(found, found + 2 * PAGE)
        vmas._starts = counting = Counting(vmas._starts)
        vmas.find_gap(2 * PAGE, PAGE, top)
        looks.append(counting.looks)
        vmas._starts = list(counting)
    assert max(looks) < 45  # two bisections of 10,000, and a few


def test_places_of_several_lengths_in_turn_cost_no_walk() -> None:
    """A short one, which fills a hole near the top, does not have the next long one look at all holes again."""
    vmas = VMASet()
    top = 1 << 40
    for i in range(10_000):
        vmas.add(VMA(top - (2 * i + 2) * PAGE, top - (2 * i + 1) * PAGE, 3, 7, False))
    looks = []
    for turn in range(6):
        vmas._starts = counting = Counting(vmas._starts)
        for pages in (1, 2):
            found = vmas.find_gap(pages * PAGE, PAGE, top)
            assert found is not None
            vmas.add(VMA(found, found + pages * PAGE, turn % 2, 7, False))
        looks.append(counting.looks)
        vmas._starts = list(counting)
    assert max(looks[1:]) < 250
    for pages in range(1, 40):
        vmas.find_gap(pages * PAGE, PAGE, top)
    assert len(vmas._searched) <= 8
