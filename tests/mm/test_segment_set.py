"""SegmentSet against a list: every question, after any replacement, in trees of several heights; and old sets stay."""

from __future__ import annotations

import pytest
from attrs import frozen
from hypothesis import example, given
from hypothesis import strategies as st

from each_line import Event
from usermem.mm import segment
from usermem.mm.segment import SegmentSet

END = 120


@frozen
class Piece:
    """The simplest segment, with a guard below it; what is cut off keeps the mark."""

    start: int
    end: int
    guard: int = 0
    mark: int = 0

    @property
    def floor(self) -> int:
        """See Segment.floor."""
        return max(self.start - self.guard, 0)

    def cut(self, start: int, end: int) -> Piece:
        """See Segment.cut."""
        assert self.start <= start < end <= self.end
        return Piece(start, end, self.guard, self.mark)


Pieces = list[Piece]


def replaced(pieces: Pieces, start: int, end: int, new: Pieces) -> Pieces:
    """What SegmentSet.replace says, by a list."""
    left = [p if p.end <= start else p.cut(p.start, start) for p in pieces if p.start < start]
    right = [p if p.start >= end else p.cut(end, p.end) for p in pieces if p.end > end]
    return left + new + right


def is_free(pieces: Pieces, start: int, end: int) -> bool:
    """Whether no segment has an address in [start, end), nor the guard of the next segment above."""
    return next((end <= p.floor for p in pieces if p.end > start), True)


def check(found: SegmentSet[Piece], pieces: Pieces, start: int, end: int, length: int) -> None:
    """Ask the set everything about [start, end), and compare with what the list says."""
    found._check()
    assert list(found) == pieces
    assert (len(found), found.num_bytes) == (len(pieces), sum(p.end - p.start for p in pieces))
    overlapping = [p for p in pieces if p.start < end and start < p.end] if start < end else []
    assert found.overlapping(start, end) == overlapping
    assert found.within(start, end) == [p.cut(max(p.start, start), min(p.end, end)) for p in overlapping]
    assert start == end or found.is_free(start, end) is (not overlapping)
    taken = {at for p in pieces for at in range(p.start, p.end)}
    assert found.covered_up_to(start, end) == next((at for at in range(start, end) if at not in taken), end)
    for at in (start, end):
        assert found.find(at) == next((p for p in pieces if p.start <= at < p.end), None)
        assert found.first_from(at) == next((p for p in pieces if p.end > at), None)
        assert found.last_before(at) == next((p for p in reversed(pieces) if p.start < at), None)
        if at not in taken:
            low = max([p.end for p in pieces if p.end <= at] + [-5])
            high = min([p.start for p in pieces if p.start > at] + [END + 5])
            assert found.gap(at, -5, END + 5) == (low, high)
            assert found.gap(at, at, at + 1) == (at, at + 1)
    places = [at for at in range(start, end - length + 1) if is_free(pieces, at, at + length)]
    assert found.highest_gap(length, start, end) == (max(places) if places else None)
    assert found.lowest_gap(length, start, end) == (min(places) if places else None)


def root(found: SegmentSet[Piece]) -> segment._Node:
    """The root of its tree."""
    assert found._root is not None
    return found._root


bounds = st.tuples(st.integers(0, END), st.integers(0, 40)).map(lambda run: (run[0], min(run[0] + run[1], END)))
not_empty = st.tuples(st.integers(0, END - 1), st.integers(1, 40)).map(lambda run: (run[0], min(sum(run), END)))
replacements = st.tuples(not_empty, st.lists(st.tuples(*[st.integers(1, 4)] * 2, st.sampled_from([0, 0, 0, 2, 9]))))


Step = tuple[tuple[int, int], list[tuple[int, int, int]]]


def fitting(start: int, end: int, sizes: list[tuple[int, int, int]], mark: int) -> Pieces:
    """Segments in [start, end): after a hole of the first size one of the second, with a guard of the third."""
    pieces: Pieces = []
    for hole, length, guard in sizes:
        start += hole - 1
        if start + length > end:
            break
        pieces.append(Piece(start, start + length, guard, mark))
        start += length
    return pieces


@pytest.mark.parametrize(("fanout", "height"), [(3, 3), (4, 2), (8, 1), (segment._FANOUT, 0)])
@given(st.lists(replacements, min_size=1, max_size=12), st.booleans(), bounds, st.integers(1, 12))
@example([((0, 120), [(1, 1, 0)] * 120), ((1, 119), [])], True, (0, 120), 3)
@example([((0, 120), [(2, 1, 1)] * 60), ((30, 31), [(1, 1, 2)])], True, (3, 99), 1)
def test_replace(fanout: int, height: int, steps: list[Step], full: bool, asked: tuple[int, int], length: int) -> None:
    """After any replacements each question has the answer of a list, and each set before still has its own.

    With few items a node, sixty segments make a high tree.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "_FANOUT", fanout)
        _replace(steps, height if full else None, asked, length)


def _replace(steps: list[Step], full: int | None, asked: tuple[int, int], length: int) -> None:
    found: SegmentSet[Piece] = SegmentSet()
    pieces: Pieces = []
    if full is not None:
        pieces = [Piece(at, at + 1, at % 7 // 6 * 3, -1) for at in range(0, END, 2)]
        found = found.replace(0, END, pieces)
        assert root(found).height == full
    history = [(found, pieces)]
    for mark, ((start, end), sizes) in enumerate(steps):
        new = fitting(start, end, sizes, mark)
        found, pieces = found.replace(start, end, new), replaced(pieces, start, end, new)
        check(found, pieces, *asked, length)
        history.append((found, pieces))
    for before, list_before in history:
        check(before, list_before, *asked, length)
    check(found, pieces, 0, END, length)


def pieces_at(some_bounds: list[int]) -> SegmentSet[Piece]:
    """Segments between each even bound and the next one."""
    found: SegmentSet[Piece] = SegmentSet()
    for start, end in zip(some_bounds[::2], some_bounds[1::2], strict=False):
        found = found.replace(start, end, [Piece(start, end)])
    return found


some_bounds = st.lists(st.integers(0, 40), unique=True, max_size=12).map(sorted)


@given(some_bounds, st.integers(0, 41), st.integers(0, 20), st.integers(20, 45))
def test_gap_is_all_the_free_space_around(bounds: list[int], addr: int, low: int, high: int) -> None:
    """gap gives the largest free range around a free address within the limits."""
    segments = pieces_at(bounds)
    if segments.find(addr) is None and low <= addr < high:
        start, end = segments.gap(addr, low, high)
        assert low <= start <= addr < end <= high
        assert segments.overlapping(start, end) == []
        assert start == low or segments.find(start - 1)
        assert end == high or segments.find(end)


@given(some_bounds, st.integers(0, 41), st.integers(0, 41))
def test_what_is_put_back_is_cut_and_kept(bounds: list[int], start: int, end: int) -> None:
    """A range replaced by what lies within it: no segment reaches over a bound, and every address belongs as before."""
    segments = pieces_at(bounds)
    if start > end:
        return
    before = [segments.find(addr) is not None for addr in range(42)]
    again = segments.replace(start, end, segments.within(start, end))
    again._check()
    assert start == end or not [s for s in again for at in (start, end) if s.start < at < s.end]
    assert [again.find(addr) is not None for addr in range(42)] == before


@given(some_bounds, st.integers(0, 41), st.integers(0, 41))
def test_replaced_by_nothing(bounds: list[int], start: int, end: int) -> None:
    """What is in the range goes and nothing else; the set before still has it. An empty range is nothing."""
    segments = pieces_at(bounds)
    if start > end:
        return
    before = {addr for addr in range(42) if segments.find(addr)}
    rest = segments.replace(start, end, [])
    rest._check()
    assert {addr for addr in range(42) if rest.find(addr)} == before - set(range(start, end))
    assert {addr for addr in range(42) if segments.find(addr)} == before


def test_a_broken_set_is_seen() -> None:
    """_check() fails where segments overlap or are empty, and where a node or the set says what is not so."""
    empty: SegmentSet[Piece] = SegmentSet()
    wrong_count = empty.replace(0, 9, [Piece(0, 5)])
    wrong_count.count = 2
    wrong_size = empty.replace(0, 9, [Piece(0, 5)])
    wrong_size._totals = {segment._length: 6}
    wrong_node = empty.replace(0, 9, [Piece(0, 5)])
    root(wrong_node).starts = [1]
    overlapping = empty.replace(0, 9, [Piece(0, 5), Piece(4, 9)])
    for broken in (overlapping, empty.replace(3, 3, [Piece(3, 3)]), wrong_count, wrong_size, wrong_node):
        with pytest.raises(AssertionError):
            broken._check()


@pytest.mark.parametrize("order", [1, -1, 7], ids=["upward", "downward", "across"])
def test_the_tree_does_not_thin_out(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built and taken apart one by one, a set is no higher, and has few more nodes, than one that is made at once."""
    monkeypatch.setattr(segment, "_FANOUT", 16)
    found: SegmentSet[Piece] = SegmentSet()
    for i in range(1000):
        at = order * i % 1000 * 10
        found = found.replace(at, at + 5, [Piece(at, at + 5)])
    assert (len(found), root(found).height) == (1000, 2)
    for i in range(1000):
        at = order * i % 1000 * 10
        if at % 200:
            found = found.replace(at, at + 5, [])
    found._check()
    assert (len(found), root(found).height) == (50, 1)
    assert len(root(found).items) <= 50 // 4 + 1
    for piece in list(found)[1:]:
        found = found.replace(piece.start, piece.end, [])
    assert root(found).height == 0
    assert found.replace(0, 10, [])._root is None


def test_a_change_copies_few_nodes() -> None:
    """Of a set of a hundred thousand the next shares all but a few, and finding and replacing is not much longer."""
    lines: list[int] = []
    for count in (1000, 100_000):
        pieces = [Piece(10 * i, 10 * i + 5) for i in range(count)]
        empty: SegmentSet[Piece] = SegmentSet()
        found = empty.replace(0, 10 * count, pieces)
        assert found.lowest_gap(6, 0, 10 * count) is None
        event = Event([segment])
        event.during(lambda at=count // 2 * 10, found=found: change_and_look(found, at))  # type: ignore[misc]
        lines.append(event.lines)
    assert lines[1] < 5 * lines[0]
    assert lines[1] < 1000


def change_and_look(found: SegmentSet[Piece], at: int) -> None:
    """Replace a segment by another, and look for free space in the outcome."""
    new = found.replace(at, at + 5, [Piece(at + 2, at + 3)])
    assert new.highest_gap(7, 0, 1 << 60) is not None
    assert new.lowest_gap(7, 0, at + 100) == at - 5
    assert new.find(at) is None and found.find(at) is not None
