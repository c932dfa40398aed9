"""The two tables of an address space against naive ones: a dict of pages, and counting.

VMASet merges and splits, PMASet keeps bytes where they are, and both stay in order whatever happens to them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_layouts import GrowingObject
from hostarch import ANY_ACCESS, READ
from usermem import pma as pma_module
from usermem.pma import PMA, PMASet
from usermem.segment import SegmentSet
from usermem.vma import VMA, VMASet

PAGE = 4096
PAGES = 24
page_numbers = st.integers(0, PAGES - 1)
runs = st.tuples(page_numbers, st.integers(1, 8)).map(lambda run: (run[0], min(run[0] + run[1], PAGES)))


def vma(start: int, end: int, prot: int, name: str = "") -> VMA:
    """Anonymous memory in pages [start, end)."""
    return VMA(start * PAGE, end * PAGE, prot, ANY_ACCESS, False, name=name)


class VMAsAgainstPages(RuleBasedStateMachine):
    """A VMASet, and a dict that says what each page is."""

    def __init__(self) -> None:
        super().__init__()
        self.vmas = VMASet()
        self.pages: dict[int, tuple[int, str]] = {}

    @rule(run=runs, prot=st.integers(0, 2), name=st.sampled_from(["", "[a]"]))
    def map(self, run: tuple[int, int], prot: int, name: str) -> None:
        """A mapping replaces what is there."""
        self.unmap(run)
        self.vmas.add(vma(*run, prot, name))
        self.pages |= dict.fromkeys(range(*run), (prot, name))

    @rule(run=runs)
    def unmap(self, run: tuple[int, int]) -> None:
        """What is taken out is what was there, cut at the bounds."""
        removed = self.vmas.remove(run[0] * PAGE, run[1] * PAGE)
        assert [page for s in removed for page in range(s.start // PAGE, s.end // PAGE)] == [
            page for page in range(*run) if page in self.pages
        ]
        for page in range(*run):
            self.pages.pop(page, None)

    @rule(run=runs, prot=st.integers(0, 2))
    def protect(self, run: tuple[int, int], prot: int) -> None:
        """Every mapped page of the range gets the rights."""
        self.vmas.protect(run[0] * PAGE, run[1] * PAGE, prot)
        for page in range(*run):
            if page in self.pages:
                self.pages[page] = prot, self.pages[page][1]

    @rule(run=runs)
    def look(self, run: tuple[int, int]) -> None:
        """Questions about a range change nothing and have the answers that counting gives."""
        start, end = run[0] * PAGE, run[1] * PAGE
        found = self.vmas.overlapping(start, end)
        assert found == [s for s in self.vmas if s.start < end and start < s.end]
        holes = [page for page in range(*run) if page not in self.pages]
        assert self.vmas.mapped_up_to(start, end) == (holes[0] * PAGE if holes else end)
        assert self.vmas.overlapping(end, start) == []

    @rule(pages=st.sampled_from([1, 1, 2, 5]), high=st.sampled_from([PAGES, PAGES - 4]), take=st.booleans())
    def place(self, pages: int, high: int, take: bool) -> None:
        """The highest gap is found, also after many searches that remembered where to begin; it may be taken."""
        fits = [at for at in range(2, high - pages + 1) if self.pages.keys().isdisjoint(range(at, at + pages))]
        found = self.vmas.find_gap(pages * PAGE, 2 * PAGE, high * PAGE)
        assert found == (max(fits) * PAGE if fits else None)
        if take and fits:  # without unmapping first, which makes it forget
            self.vmas.add(vma(max(fits), max(fits) + pages, 1))
            self.pages |= dict.fromkeys(range(max(fits), max(fits) + pages), (1, ""))

    @invariant()
    def agrees(self) -> None:
        """Page by page the two say the same, and runs of equal pages are one mapping."""
        self.vmas._check()
        expected: list[VMA] = []
        for page, (prot, name) in sorted(self.pages.items()):
            new = vma(page, page + 1, prot, name)
            if expected and expected[-1].can_merge(new):
                expected[-1] = evolve(expected[-1], end=new.end)
            else:
                expected.append(new)
        assert list(self.vmas) == expected
        assert len(self.vmas) == len(expected)
        for page in range(PAGES + 1):
            for addr in (page * PAGE, page * PAGE + PAGE - 1):
                segment = self.vmas.find(addr)
                assert (segment and (segment.prot, segment.name)) == self.pages.get(page)


TestVMAsAgainstPages = VMAsAgainstPages.TestCase


def populated(pmas: PMASet, mapping: VMA, addr: int, high: int) -> PMA:
    """The PMA at an address of a mapping, made as an address space makes it."""
    pma = pmas.find(addr) or pmas.place(addr, high)
    if pma.host is None and mapping.mapped is not None:
        pma = pmas.draft(pma, addr, min(high, mapping.end))
        mapping.mapped.read_at(mapping.offset + pma.start - mapping.start, pma.view())
        pmas.replace(pma)
    return pma


class PMAsAgainstPages(RuleBasedStateMachine):
    """A PMASet behind mappings, and a dict of what each page holds. Windows of a few pages, so that there are many."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(pma_module, "WINDOW", 8 * PAGE)
        self.patch.setattr(pma_module, "OBJECT_WINDOW", 2 * PAGE)
        self.pmas = PMASet()
        self.vmas: dict[int, VMA] = {}
        self.content: dict[int, bytes] = {}

    def teardown(self) -> None:
        """Give the windows their size back."""
        self.patch.undo()

    def _map(self, new: VMA) -> None:
        self.pmas.remove(new.start, new.end)
        self.pmas.reserve(new)
        for page in range(new.start // PAGE, new.end // PAGE):
            self.vmas[page] = new
            self.content[page] = bytes(1)

    @rule(run=runs)
    def map(self, run: tuple[int, int]) -> None:
        """Anonymous memory is zero."""
        self._map(vma(*run, 3))

    @rule(run=runs, offset=st.integers(0, 3))
    def map_object(self, run: tuple[int, int], offset: int) -> None:
        """An object's pages hold its bytes: its page number, from 1."""
        data = b"".join(bytes([page + 1]) * PAGE for page in range(PAGES + 4))
        self._map(evolve(vma(*run, 3), mapped=GrowingObject(data, len(data)), offset=offset * PAGE))
        for page in range(*run):
            self.content[page] = bytes([page - run[0] + offset + 1])

    @rule(run=runs)
    def unmap(self, run: tuple[int, int]) -> None:
        """What is unmapped is gone, from the table too."""
        self.pmas.remove(run[0] * PAGE, run[1] * PAGE)
        for page in range(*run):
            self.vmas.pop(page, None)
            self.content.pop(page, None)
            assert self.pmas.find(page * PAGE) is None

    @precondition(lambda self: self.vmas)
    @rule(data=st.data(), value=st.integers(1, 255))
    def write(self, data: st.DataObject, value: int) -> None:
        """A byte is written to the start of a mapped page."""
        page = data.draw(st.sampled_from(sorted(self.vmas)))
        self._view(page)[0] = value
        self.content[page] = bytes([value])

    def _view(self, page: int) -> memoryview:
        pma = populated(self.pmas, self.vmas[page], page * PAGE, PAGES * PAGE)
        assert pma.start <= page * PAGE < pma.end <= PAGES * PAGE
        return pma.block(page * PAGE, PAGE).view()

    @precondition(lambda self: self.vmas)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """A mapped page holds what it should."""
        page = data.draw(st.sampled_from(sorted(self.vmas)))
        assert self._view(page)[:1] == self.content[page]

    @invariant()
    def agrees(self) -> None:
        """In order; every page that has a place holds what it should, and no page's place is another's."""
        self.pmas._check()
        places = [(id(p.host.memory), p.host.start, p.host.end) for p in self.pmas if p.host is not None]
        assert all(p.host.end - p.host.start == p.end - p.start for p in self.pmas if p.host is not None)
        places.sort()
        for left, right in pairwise(places):
            assert left[0] != right[0] or left[2] <= right[1]
        for page, expected in self.content.items():
            pma = self.pmas.find(page * PAGE)
            if pma is not None and pma.host is not None:
                assert pma.block(page * PAGE, 1).tobytes() == expected


TestPMAsAgainstPages = PMAsAgainstPages.TestCase


@frozen
class Piece:
    """The simplest segment."""

    start: int
    end: int

    def split(self, at: int) -> tuple[Piece, Piece]:
        """See Segment.split."""
        return Piece(self.start, at), Piece(at, self.end)


def pieces(bounds: list[int]) -> SegmentSet[Piece]:
    """Segments between each even bound and the next one."""
    found: SegmentSet[Piece] = SegmentSet()
    for start, end in zip(bounds[::2], bounds[1::2], strict=False):
        found.insert(Piece(start, end))
    return found


some_bounds = st.lists(st.integers(0, 40), unique=True, max_size=12).map(sorted)


@given(some_bounds, st.integers(0, 30), st.integers(0, 40), st.integers(0, 45))
def test_find_gap_is_the_highest(bounds: list[int], length: int, low: int, high: int) -> None:
    """find_gap gives the highest start at which that many addresses in [low, high) are free, as trying all finds."""
    segments = pieces(bounds)
    length = max(length, 1)
    starts = [at for at in range(low, high - length + 1) if not segments.overlapping(at, at + length)]
    assert segments.find_gap(length, low, high) == (max(starts) if starts else None)


@given(some_bounds, st.integers(0, 41), st.integers(0, 20), st.integers(20, 45))
def test_gap_is_all_the_free_space_around(bounds: list[int], addr: int, low: int, high: int) -> None:
    """gap gives the largest free range around a free address within the limits."""
    segments = pieces(bounds)
    if segments.find(addr) is None and low <= addr < high:
        start, end = segments.gap(addr, low, high)
        assert low <= start <= addr < end <= high
        assert segments.overlapping(start, end) == []
        assert start == low or segments.find(start - 1)
        assert end == high or segments.find(end)


@given(some_bounds, st.integers(0, 41), st.integers(0, 41))
def test_isolate_cuts_and_keeps(bounds: list[int], start: int, end: int) -> None:
    """After isolate no segment reaches over a bound, and every address belongs where it did."""
    segments = pieces(bounds)
    before = [segments.find(addr) is not None for addr in range(42)]
    segments.isolate(start, end)
    segments._check()
    assert not [s for s in segments for at in (start, end) if s.start < at < s.end]
    assert [segments.find(addr) is not None for addr in range(42)] == before


@given(some_bounds, st.integers(0, 41), st.integers(0, 41))
def test_remove_takes_the_range(bounds: list[int], start: int, end: int) -> None:
    """remove takes out what is in the range and nothing else; an empty range, nothing."""
    segments = pieces(bounds)
    before = {addr for addr in range(42) if segments.find(addr)}
    removed = segments.remove(start, end)
    segments._check()
    taken = {addr for s in removed for addr in range(s.start, s.end)}
    assert taken == before & set(range(start, end))
    assert {addr for addr in range(42) if segments.find(addr)} == before - taken


class Alike(GrowingObject):
    """An object that says it equals any other of its kind, as files with the same bytes may."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike)


@pytest.mark.parametrize(
    "other",
    [
        *[{"start": 3 * PAGE, "end": 4 * PAGE}, {"prot": 1}, {"max_prot": READ}, {"shared": False}],
        *[{"growsdown": True}, {"mapped": Alike(b"", 0)}, {"mapped": None}, {"offset": 0}],
        *[{"offset": 3 * PAGE}, {"name": "[b]"}],
    ],
    ids=lambda other: ", ".join(other),
)
def test_neighbours_that_differ_do_not_merge(other: dict[str, Any]) -> None:
    """Two mappings merge if the right one is what a cut of both would leave, and if anything differs they do not."""
    whole = VMA(PAGE, 3 * PAGE, 3, ANY_ACCESS, True, False, Alike(b"", 0), PAGE, "[a]")
    left, right = whole.split(2 * PAGE)
    assert (right.offset, left.can_merge(right)) == (2 * PAGE, True)
    assert not left.can_merge(evolve(right, **other))
    assert not right.can_merge(left)


def test_a_broken_set_is_seen() -> None:
    """_check() fails where segments overlap, are empty, or could be one."""
    overlapping: SegmentSet[Piece] = SegmentSet()
    overlapping.insert(Piece(0, 5))
    overlapping.insert(Piece(4, 9))
    different = VMASet()
    different.insert(vma(0, 5, 3))
    different.insert(vma(4, 9, 1))
    empty: SegmentSet[Piece] = SegmentSet()
    empty.insert(Piece(3, 3))
    apart = VMASet()
    apart.insert(vma(0, 1, 3))
    apart.insert(vma(1, 2, 3))
    for broken in (overlapping, different, empty, apart):
        with pytest.raises(AssertionError):
            broken._check()


@pytest.mark.parametrize("most", [0, 1 << 16], ids=["nothing", "64 KiB"])
def test_a_host_with_little_memory(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no whole window can be had a small one does; where that cannot be had either, nothing has changed."""
    pmas = PMASet()
    allocate = pmas._arena.allocate

    def little(length: int) -> object:
        if length > most:
            raise MemoryError
        return allocate(length)

    monkeypatch.setattr(pmas._arena, "allocate", little)
    large = vma(0, 1 << 16, 3)
    if not most:
        with pytest.raises(MemoryError):
            populated(pmas, large, 5 * PAGE, 1 << 40)
        assert len(pmas) == 0
        return
    for page in (5, 6, 20, 40, 5):
        found = populated(pmas, large, page * PAGE, 1 << 40)
        assert found.start <= page * PAGE < found.end
        assert found.end - found.start <= most
        found.block(page * PAGE, 1).view()[0] = page
    pmas._check()
    for page in (5, 6, 20, 40):
        found = populated(pmas, large, page * PAGE, 1 << 40)
        assert found.block(page * PAGE, 1).tobytes() == bytes([page])
