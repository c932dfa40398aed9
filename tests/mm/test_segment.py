"""The two tables of an address space against naive ones: a dict of pages, and counting.

VMASet merges and splits, PMASet keeps bytes where they are, and both stay in order whatever changes happen to them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_layouts import GrowingObject
from hostarch import AMD64, ANY_ACCESS, READ, mman
from usermem.errors import FaultReason
from usermem.mm.backing import object_backing
from usermem.mm.backing.anonymous import Anonymous
from usermem.mm.backing.private_object import PrivateObject
from usermem.mm.change import Change, Tables
from usermem.mm.check import check
from usermem.mm.host_run import HostRun
from usermem.mm.limits import Limits
from usermem.mm.memory_map import MemoryMap
from usermem.mm.page_cache import PageCache
from usermem.mm.pma import PMASet
from usermem.mm.vma import VMA, VMASet

PAGE = 4096
PAGES = 24
RW = mman.PROT_READ | mman.PROT_WRITE
ANONYMOUS = Anonymous()
page_numbers = st.integers(0, PAGES - 1)
runs = st.tuples(page_numbers, st.integers(1, 8)).map(lambda run: (run[0], min(run[0] + run[1], PAGES)))


def vma(start: int, end: int, prot: int, name: str = "") -> VMA:
    """Anonymous memory in pages [start, end)."""
    return VMA(start * PAGE, end * PAGE, prot, ANY_ACCESS, False, ANONYMOUS, name=name)


class VMAsAgainstPages(RuleBasedStateMachine):
    """A VMASet, and a dict that says what each page is."""

    def __init__(self) -> None:
        super().__init__()
        self.vmas = VMASet()
        self.pages: dict[int, tuple[int, str]] = {}

    def _change(self) -> Change:
        return Change(Tables(self.vmas, PMASet()))

    @rule(run=runs, prot=st.integers(0, 2), name=st.sampled_from(["", "[a]"]))
    def map(self, run: tuple[int, int], prot: int, name: str) -> None:
        """A mapping replaces what is there."""
        change = self._change()
        change.add(vma(*run, prot, name))
        self.vmas = change.vmas
        self.pages |= dict.fromkeys(range(*run), (prot, name))

    @rule(run=runs)
    def unmap(self, run: tuple[int, int]) -> None:
        """What goes is what was there, cut at the bounds; the set before the change still has it."""
        before = self.vmas
        parts = before.within(run[0] * PAGE, run[1] * PAGE)
        change = self._change()
        change.unmap(run[0] * PAGE, run[1] * PAGE)
        self.vmas = change.vmas
        assert [page for s in parts for page in range(s.start // PAGE, s.end // PAGE)] == [
            page for page in range(*run) if page in self.pages
        ]
        assert before.num_bytes - self.vmas.num_bytes == sum(part.end - part.start for part in parts)
        for page in range(*run):
            self.pages.pop(page, None)

    @rule(run=runs, prot=st.integers(0, 2))
    def protect(self, run: tuple[int, int], prot: int) -> None:
        """Every mapped page of the range gets the rights."""
        change = self._change()
        change.protect(run[0] * PAGE, run[1] * PAGE, prot)
        self.vmas = change.vmas
        for page in range(*run):
            if page in self.pages:
                self.pages[page] = prot, self.pages[page][1]

    @rule(run=runs, name=st.sampled_from(["", "[a]"]))
    def rename(self, run: tuple[int, int], name: str) -> None:
        """Every mapped page of the range gets the name."""
        change = self._change()
        change.rename(run[0] * PAGE, run[1] * PAGE, name)
        self.vmas = change.vmas
        for page in range(*run):
            if page in self.pages:
                self.pages[page] = self.pages[page][0], name

    @rule(run=runs)
    def look(self, run: tuple[int, int]) -> None:
        """Questions about a range change nothing and have the answers that counting gives."""
        start, end = run[0] * PAGE, run[1] * PAGE
        found = self.vmas.overlapping(start, end)
        assert found == [s for s in self.vmas if s.start < end and start < s.end]
        holes = [page for page in range(*run) if page not in self.pages]
        assert self.vmas.covered_up_to(start, end) == (holes[0] * PAGE if holes else end)
        assert self.vmas.overlapping(end, start) == []

    @rule(pages=st.sampled_from([1, 1, 2, 5]), high=st.sampled_from([PAGES, PAGES - 4]), take=st.booleans())
    def place(self, pages: int, high: int, take: bool) -> None:
        """The highest gap is found, also where nodes know their gaps from earlier searches; it may be taken."""
        fits = [at for at in range(2, high - pages + 1) if self.pages.keys().isdisjoint(range(at, at + pages))]
        found = self.vmas.highest_gap(pages * PAGE, 2 * PAGE, high * PAGE)
        assert found == (max(fits) * PAGE if fits else None)
        if take and fits:
            self.vmas = self.vmas.put(found or 0, (found or 0) + pages * PAGE, [vma(max(fits), max(fits) + pages, 1)])
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
        found = [(s.start, s.end, s.prot, s.name) for s in self.vmas]
        assert found == [(s.start, s.end, s.prot, s.name) for s in expected]
        assert len(self.vmas) == len(expected)
        assert self.vmas.num_bytes == len(self.pages) * PAGE
        for page in range(PAGES + 1):
            for addr in (page * PAGE, page * PAGE + PAGE - 1):
                segment = self.vmas.find(addr)
                assert (segment and (segment.prot, segment.name)) == self.pages.get(page)


TestVMAsAgainstPages = VMAsAgainstPages.TestCase


def memory_map() -> MemoryMap:
    """An empty one."""
    return MemoryMap(AMD64, Limits(), PageCache())


def located(mm: MemoryMap, addr: int) -> memoryview | FaultReason:
    """The memory from an address to where its run ends, placed if it was not; or why there is none."""
    found = mm.locate(addr, RW, ignore_permissions=False)
    if isinstance(found, FaultReason):
        return found
    _, base, limit, run = found
    assert isinstance(run, HostRun)
    return run.view()[addr - base - run.start : limit - run.start]


class PMAsAgainstPages(RuleBasedStateMachine):
    """A PMASet behind mappings, and a dict of what each page holds. Windows of a few pages, so that there are many."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("usermem.mm.backing.anonymous.WINDOW", 8 * PAGE)
        self.patch.setattr("usermem.mm.backing.private_object.WINDOW", 2 * PAGE)
        self.mm = memory_map()
        self.content: dict[int, bytes] = {}

    def teardown(self) -> None:
        """Give the windows their size back."""
        self.patch.undo()

    @rule(run=runs)
    def map(self, run: tuple[int, int]) -> None:
        """Anonymous memory is zero."""
        new = VMA(run[0] * PAGE, run[1] * PAGE, RW, ANY_ACCESS, False, self.mm.anonymous)
        self.mm.change(lambda change: change.add(new))
        self.content |= dict.fromkeys(range(*run), bytes(1))

    @rule(run=runs, offset=st.integers(0, 3))
    def map_object(self, run: tuple[int, int], offset: int) -> None:
        """An object's pages hold its bytes: its page number, from 1."""
        data = b"".join(bytes([page + 1]) * PAGE for page in range(PAGES + 4))
        backing = PrivateObject(GrowingObject(data, len(data)))
        new = VMA(run[0] * PAGE, run[1] * PAGE, RW, ANY_ACCESS, False, backing, offset * PAGE)
        self.mm.change(lambda change: change.add(new))
        for page in range(*run):
            self.content[page] = bytes([page - run[0] + offset + 1])

    @rule(run=runs)
    def unmap(self, run: tuple[int, int]) -> None:
        """What is unmapped is gone, from the table too."""
        self.mm.change(lambda change: change.unmap(run[0] * PAGE, run[1] * PAGE))
        for page in range(*run):
            self.content.pop(page, None)
            assert self.mm.tables.pmas.find(page * PAGE) is None

    @rule(run=runs, to=page_numbers)
    def move(self, run: tuple[int, int], to: int) -> None:
        """What one mapping shows goes elsewhere with its bytes; nothing is mapped where it was."""
        vma = self.mm.tables.vmas.find(run[0] * PAGE)
        if vma is None:
            return
        end = min(run[1], vma.end // PAGE, run[0] + PAGES - to)
        stop = to + end - run[0]
        if to < end and run[0] < stop:
            return
        old, new = (run[0] * PAGE, end * PAGE), (to * PAGE, stop * PAGE)

        def build(change: Change) -> None:
            change.unmap(*new)
            source = change.vmas.find(old[0])
            assert source is not None
            change.move(source, old, new, keep=False)

        self.mm.change(build)
        moved = [self.content.pop(page) for page in range(run[0], end)]
        self.content |= zip(range(to, stop), moved, strict=True)

    @precondition(lambda self: self.content)
    @rule(data=st.data(), value=st.integers(1, 255))
    def write(self, data: st.DataObject, value: int) -> None:
        """A byte is written to the start of a mapped page."""
        page = data.draw(st.sampled_from(sorted(self.content)))
        self._view(page)[0] = value
        self.content[page] = bytes([value])

    def _view(self, page: int) -> memoryview:
        view = located(self.mm, page * PAGE)
        pma = self.mm.tables.pmas.find(page * PAGE)
        assert isinstance(view, memoryview)
        assert pma is not None and pma.start <= page * PAGE < pma.end
        return view

    @precondition(lambda self: self.content)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """A mapped page holds what it should."""
        page = data.draw(st.sampled_from(sorted(self.content)))
        assert self._view(page)[:1] == self.content[page]

    @invariant()
    def agrees(self) -> None:
        """In order; every page that has a place holds what it should, and no page's place is another's.

        What was placed ahead, where nothing is mapped, is zero.
        """
        check(self.mm, self.mm._cache)
        pmas = list(self.mm.tables.pmas)
        assert all(len(pma.run) == pma.end - pma.start for pma in pmas)
        for left, right in pairwise(sorted((pma.run.address, pma.run.address + len(pma.run)) for pma in pmas)):
            assert left[1] <= right[0]
        for pma in pmas:
            for at in range(pma.start, min(pma.end, PAGES * PAGE), PAGE):
                assert pma.run.view()[at - pma.start] == self.content.get(at // PAGE, b"\0")[0]


TestPMAsAgainstPages = PMAsAgainstPages.TestCase


class Alike(GrowingObject):
    """An object that says it equals any other of its kind, as files with the same bytes may."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike)


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize(
    "other",
    [
        *[{"start": 3 * PAGE, "end": 4 * PAGE}, {"prot": 1}, {"max_prot": READ}, {"shared": None}],
        *[{"guard": PAGE}, {"backing": Alike(b"", 0)}, {"backing": None}, {"offset": 0}],
        *[{"offset": 3 * PAGE}, {"name": "[b]"}],
    ],
    ids=lambda other: ", ".join(other),
)
def test_neighbours_that_differ_do_not_merge(other: dict[str, Any], shared: bool) -> None:
    """Two mappings merge if the right one is what a cut of both would leave, and if anything differs they do not."""
    mapped = Alike(b"", 0)
    whole = VMA(PAGE, 3 * PAGE, 3, ANY_ACCESS, shared, object_backing(mapped, shared), PAGE, 0, "[a]")
    left, right = whole.cut(PAGE, 2 * PAGE), whole.cut(2 * PAGE, 3 * PAGE)
    assert (right.offset, left.can_merge(right)) == (2 * PAGE, True)
    assert left.can_merge(evolve(right, backing=object_backing(mapped, shared)))
    if "backing" in other:
        other = {"backing": object_backing(other["backing"], shared) if other["backing"] else ANONYMOUS}
    if "shared" in other:
        other = {"shared": not shared}
    assert not left.can_merge(evolve(right, **other))
    assert not right.can_merge(left)
    merged = VMASet().put(PAGE, 2 * PAGE, [left]).put(2 * PAGE, 3 * PAGE, [right])
    assert [(s.start, s.end, s.offset, s.name) for s in merged] == [(PAGE, 3 * PAGE, PAGE, "[a]")]


@given(st.lists(st.tuples(runs, st.integers(0, 2)), min_size=1, max_size=8), runs)
def test_put_merges_with_both_neighbours(mapped: list[tuple[tuple[int, int], int]], run: tuple[int, int]) -> None:
    """Whatever is put where, several at a time too, no two neighbours are left that could be one."""
    vmas = VMASet()
    for pages, prot in mapped:
        vmas = vmas.put(pages[0] * PAGE, pages[1] * PAGE, [vma(*pages, prot)])
        vmas._check()
    pieces = [vma(page, page + 1, page % 3 // 2) for page in range(*run) if page % 5]
    rights = {page: s.prot for s in vmas for page in range(s.start // PAGE, s.end // PAGE) if page not in range(*run)}
    rights |= {s.start // PAGE: s.prot for s in pieces}
    vmas = vmas.put(run[0] * PAGE, run[1] * PAGE, pieces)
    vmas._check()
    assert {page: s.prot for s in vmas for page in range(s.start // PAGE, s.end // PAGE)} == rights


def test_broken_tables_are_seen() -> None:
    """_check() fails where mappings overlap or could be one."""
    different = VMASet().replace(0, 9 * PAGE, [vma(0, 5, 3), vma(4, 9, 1)])
    apart = VMASet().replace(0, 2 * PAGE, [vma(0, 1, 3), vma(1, 2, 3)])
    for broken in (different, apart):
        with pytest.raises(AssertionError):
            broken._check()


@pytest.mark.parametrize("most", [0, 1 << 16], ids=["nothing", "64 KiB"])
def test_a_host_with_little_memory(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no whole window can be had a small one does; where that cannot be had either, nothing has changed."""
    mm = memory_map()
    allocate = mm.anonymous.arena.allocate

    def little(length: int) -> HostRun:
        if length > most:
            raise MemoryError
        return allocate(length)

    monkeypatch.setattr(mm.anonymous.arena, "allocate", little)
    mm.change(lambda change: change.add(VMA(0, (1 << 16) * PAGE, RW, ANY_ACCESS, False, mm.anonymous)))
    before = mm.tables
    if not most:
        assert located(mm, 5 * PAGE) is FaultReason.NO_MEMORY
        assert mm.tables is before and len(before.pmas) == 0
        return
    for page in (5, 6, 20, 40, 5):
        view = located(mm, page * PAGE)
        found = mm.tables.pmas.find(page * PAGE)
        assert isinstance(view, memoryview) and found is not None
        assert found.start <= page * PAGE < found.end
        assert found.end - found.start <= most
        view[0] = page
    check(mm, mm._cache)
    for page in (5, 6, 20, 40):
        view = located(mm, page * PAGE)
        assert isinstance(view, memoryview) and view[0] == page
