"""AddrRangeSeq: ranges are dropped and cut as gVisor does it, and no sequence ever changes.

The model drops one byte at a time from a plain list.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import AddrRange, AddrRangeSeq

Pair = tuple[int, int]


class Model:
    """A list of ranges, with bytes after the first ``limit`` cut off; every operation is as naive as can be."""

    def __init__(self, ranges: list[Pair], limit: int | None = None) -> None:
        self.ranges = list(ranges)
        self.limit = sum(length for _, length in ranges) if limit is None else limit

    def visible(self) -> list[Pair]:
        """What is left of the ranges by the limit, as (start, length)."""
        out = []
        left = self.limit
        for start, length in self.ranges:
            out.append((start, min(length, left)))
            left -= min(length, left)
        return out

    def drop_first(self, n: int) -> Model:
        """Without the first n bytes. A range goes with its last byte; an empty one when something behind it does."""
        if n > self.limit:
            return Model([])
        ranges, limit = list(self.ranges), self.limit
        if n == 0 and ranges and self.visible()[0][1] == 0:
            return Model(ranges[1:], limit)
        for _ in range(n):
            while ranges[0][1] == 0:
                del ranges[0]
            start, length = ranges[0]
            ranges[0] = (start + 1, length - 1)
            limit -= 1
            # What lies behind the limit in a range counts as its bytes, unless it is the last range.
            if length == 1 or (limit == 0 and len(ranges) == 1):
                del ranges[0]
        return Model(ranges, limit)

    def take_first(self, n: int) -> Model:
        """Cut after n bytes."""
        return Model(self.ranges, min(self.limit, n))

    def tail(self) -> Model:
        """Without the first range."""
        return Model(self.ranges[1:], self.limit - self.visible()[0][1])


PAIRS = st.lists(
    st.tuples(st.integers(0, 100) | st.integers(2**63, 2**64 - 20), st.integers(0, 6) | st.just(0)), max_size=6
)
STEPS = st.lists(
    st.tuples(st.just("drop"), st.integers(0, 12) | st.just(0))
    | st.tuples(st.just("take"), st.integers(0, 30))
    | st.tuples(st.just("tail"), st.just(0)),
    max_size=10,
)


def ranges_of(pairs: list[Pair]) -> list[AddrRange]:
    """(start, length) pairs as ranges."""
    return [AddrRange(start, start + length) for start, length in pairs]


def seq_of(*bounds: Pair) -> AddrRangeSeq:
    """The sequence of the ranges with these bounds."""
    return AddrRangeSeq([AddrRange(start, end) for start, end in bounds])


def bounds_of(seq: AddrRangeSeq) -> list[Pair]:
    """The bounds of a sequence's ranges."""
    return [(ar.start, ar.end) for ar in seq]


def check(seq: AddrRangeSeq, model: Model) -> None:
    """Everything that can be asked of seq is as the model has it."""
    pairs = model.visible()
    ranges = ranges_of(pairs)
    assert list(seq) == ranges
    assert list(seq.pairs()) == pairs
    assert len(seq) == len(pairs)
    assert bool(seq) == bool(pairs) == (not seq.is_empty())
    assert seq.num_bytes == sum(length for _, length in pairs)
    assert str(seq) == "[" + " ".join(f"[{ar.start:#x}, {ar.end:#x})" for ar in ranges) + "]"
    assert str(seq) in repr(seq)
    fresh = AddrRangeSeq(ranges)
    assert seq == fresh and hash(seq) == hash(fresh)
    if pairs:
        assert seq.head() == ranges[0]
        assert list(seq.tail()) == ranges[1:]
        assert seq != AddrRangeSeq(ranges[1:])


@given(PAIRS, STEPS)
def test_against_the_model(pairs: list[Pair], steps: list[tuple[str, int]]) -> None:
    """After any operations a sequence is what the naive list is, and none of those before it has changed."""
    seq, model = AddrRangeSeq(ranges_of(pairs)), Model(pairs)
    states = [(seq, model)]
    for name, n in steps:
        if name == "tail":
            if seq.is_empty():
                continue
            seq, model = seq.tail(), model.tail()
        elif name == "drop":
            seq, model = seq.drop_first(n), model.drop_first(n)
        else:
            seq, model = seq.take_first(n), model.take_first(n)
        states.append((seq, model))
    for state in states:
        check(*state)


@given(PAIRS, st.integers(0, 30), st.data())
def test_io_loop_ends(pairs: list[Pair], limit: int, data: st.DataObject) -> None:
    """The loop of all IO, move some of the head and drop it, visits every byte once, in order, and ends."""
    seq = AddrRangeSeq(ranges_of(pairs)).take_first(limit)
    expected = [addr for start, length in seq.pairs() for addr in range(start, start + length)]
    visited: list[int] = []
    most_steps = len(seq) + seq.num_bytes
    for _ in range(most_steps):
        if not seq:
            break
        head = seq.head()
        n = data.draw(st.integers(1, head.length)) if head.length else 0
        visited += range(head.start, head.start + n)
        seq = seq.drop_first(n)
    assert seq.is_empty()
    assert visited == expected


@given(PAIRS)
def test_from_pairs(pairs: list[Pair]) -> None:
    """The flat list of starts and lengths makes the same sequence as the ranges do."""
    seq = AddrRangeSeq.from_pairs([x for pair in pairs for x in pair])
    assert seq == AddrRangeSeq(ranges_of(pairs))
    check(seq, Model(pairs))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_of_takes_any_range(start: int, end: int) -> None:
    """``of`` keeps one range as it was said, ill-formed or not, and its bytes are an int64."""
    seq = AddrRangeSeq.of(AddrRange(start, end))
    assert bounds_of(seq) == [(start, end)] and seq.head() == AddrRange(start, end)
    assert len(seq) == 1 and not seq.is_empty() and seq.tail().is_empty()
    assert seq.num_bytes == int.from_bytes(((end - start) % 2**64).to_bytes(8, "little"), "little", signed=True)
    assert str(seq) == f"[[{start:#x}, {end:#x})]"


def test_of_ill_formed() -> None:
    """An ill-formed range can be dropped from and cut: it goes around the end of the space."""
    seq = AddrRangeSeq.of(AddrRange(5, 3))
    assert seq.num_bytes == -2
    assert bounds_of(seq.take_first(4)) == [(5, 9)]
    assert bounds_of(seq.drop_first(4)) == [(9, 3)]
    assert AddrRangeSeq.of(AddrRange(0, 2**63)).num_bytes == -(2**63)
    assert AddrRangeSeq.of(AddrRange(0, 2**64 - 1)).num_bytes == -1


GVISOR_ROWS = [
    [],
    [(0x10, 0x10)],
    [(0x10, 0x11)],
    [(0x10, 0x12)],
    [(0x10, 0x11), (0x20, 0x22)],
    [
        *[(0x10, 0x10), (0x20, 0x20), (0x30, 0x33), (0x40, 0x44), (0x50, 0x50)],
        *[(0x60, 0x60), (0x70, 0x77), (0x80, 0x88), (0x90, 0x90), (0xA0, 0xA0)],
    ],
]


def tails(seq: AddrRangeSeq, most: int) -> list[Pair]:
    """The heads of seq, its tail, the tail of that and so on, checking the counts on the way."""
    heads: list[Pair] = []
    left = seq.num_bytes
    for n in range(len(seq), 0, -1):
        assert len(seq) == n <= most and seq.num_bytes == left
        head = seq.head()
        heads.append((head.start, head.end))
        left -= head.length
        seq = seq.tail()
    assert seq.is_empty() and len(seq) == 0 and seq.num_bytes == left == 0
    return heads


@pytest.mark.parametrize("bounds", GVISOR_ROWS, ids=str)
def test_tail_iteration(bounds: list[Pair]) -> None:
    """Heads of tails are the ranges that were put in, the empty ones too."""
    assert tails(seq_of(*bounds), len(bounds)) == bounds


@pytest.mark.parametrize("bounds", GVISOR_ROWS, ids=str)
def test_drop_single_byte_iteration(bounds: list[Pair]) -> None:
    """Dropping byte by byte passes every byte's rest of its range, and every empty range once."""
    expected = [
        (start, end) for first, end in bounds for start in (range(first, end) if first < end else range(first, end + 1))
    ]
    seq = seq_of(*bounds)
    left = seq.num_bytes
    heads: list[Pair] = []
    for _ in expected:
        assert seq.num_bytes == left
        head = seq.head()
        heads.append((head.start, head.end))
        seq = seq.drop_first(min(1, head.length))
        left -= min(1, head.length)
    assert heads == expected
    assert seq.is_empty() and left == 0


@pytest.mark.parametrize("n", [0, 1, 2**63])
def test_empty_stays_empty(n: int) -> None:
    """There is nothing to drop from an empty sequence and nothing to take."""
    assert AddrRangeSeq().drop_first(n) == AddrRangeSeq() == AddrRangeSeq().take_first(n)
    assert AddrRangeSeq().drop_first(n).is_empty()


def test_take_first() -> None:
    """Ranges past the cut become empty at their start and none goes."""
    seq = seq_of((0x10, 0x11), (0x20, 0x22), (0x30, 0x30), (0x40, 0x44), (0x50, 0x55), (0x60, 0x60), (0x70, 0x77))
    expected = [(0x10, 0x11), (0x20, 0x22), (0x30, 0x30), (0x40, 0x42), (0x50, 0x50), (0x60, 0x60), (0x70, 0x70)]
    assert tails(seq.take_first(5), 7) == expected
    assert bounds_of(seq.take_first(5)) == expected


@pytest.mark.parametrize(
    ("bounds", "take", "drops", "left"),
    [
        pytest.param([(1, 1), (2, 2), (3, 5)], None, [0], [(2, 2), (3, 5)], id="0 passes one empty head"),
        pytest.param([(1, 1), (2, 2), (3, 5)], None, [0, 0], [(3, 5)], id="0 again passes the next"),
        pytest.param([(3, 5), (6, 7)], None, [0], [(3, 5), (6, 7)], id="0 leaves a head with bytes"),
        pytest.param([(1, 1), (2, 2), (3, 5)], None, [1], [(4, 5)], id="1 passes all empty heads"),
        pytest.param([(1, 3), (4, 4), (5, 6)], None, [2], [(4, 4), (5, 6)], id="a cut at a boundary is the next range"),
        pytest.param([(1, 3), (4, 4), (5, 5)], None, [2], [(4, 4), (5, 5)], id="all bytes: trailing empty ones stay"),
        pytest.param([(1, 3), (4, 4), (5, 5)], None, [3], [], id="more than all: nothing stays"),
        pytest.param([(1, 1)], None, [0], [], id="the last empty range goes"),
        pytest.param([(1, 9)], 4, [4], [], id="a single cut range goes with its last byte"),
        pytest.param([(1, 9), (20, 30)], 4, [0], [(1, 5), (20, 20)], id="0 leaves a cut where it was"),
        pytest.param([(1, 9), (20, 30)], 0, [0], [(20, 20)], id="a head cut to nothing is passed"),
        pytest.param([(1, 9), (20, 30)], 0, [0, 0], [], id="and so is the one behind it"),
        pytest.param([(1, 9), (20, 30)], 4, [4], [(5, 5), (20, 20)], id="a cut inside a range leaves its empty rest"),
        pytest.param([(1, 9), (20, 30)], 4, [4, 0, 0], [], id="which is passed like any"),
        pytest.param([(1, 9), (20, 30)], 8, [8], [(20, 20)], id="a cut at its end leaves none"),
        pytest.param([(1, 9), (20, 30)], 4, [5], [], id="more than the cut has: nothing stays"),
    ],
)
def test_drop_first(bounds: list[Pair], take: int | None, drops: list[int], left: list[Pair]) -> None:
    """What stays after dropping from the front, where empty ranges and cuts matter."""
    seq = seq_of(*bounds)
    if take is not None:
        seq = seq.take_first(take)
    for n in drops:
        seq = seq.drop_first(n)
    assert bounds_of(seq) == left
    assert len(seq) == len(left)


def test_take_more_than_there_is() -> None:
    """Taking as much as there is or more changes nothing; taking nothing keeps the ranges."""
    seq = seq_of((1, 3), (5, 5))
    assert seq.take_first(2) == seq.take_first(2**70) == seq
    assert bounds_of(seq.take_first(0)) == [(1, 1), (5, 5)]
    assert not seq.take_first(0).is_empty()


def test_empty_is_not_without_bytes() -> None:
    """A sequence of empty ranges has no bytes and is not empty."""
    seq = seq_of((7, 7))
    assert seq and not seq.is_empty() and len(seq) == 1 and seq.num_bytes == 0


MAX = 2**63 - 1


@pytest.mark.parametrize("bounds", [[(0, MAX)], [(0, MAX - 1), (5, 6)], [(2**64 - 4, 4)], [(2**64 - 4, 0)]], ids=str)
def test_most_bytes(bounds: list[Pair]) -> None:
    """2**63 - 1 bytes in all are fine; an ill-formed range counts with its wrapped length."""
    seq = seq_of(*bounds)
    assert bounds_of(seq) == bounds
    assert seq.num_bytes == sum((end - start) % 2**64 for start, end in bounds)


@pytest.mark.parametrize(
    "bounds",
    [[(0, MAX + 1)], [(0, MAX), (5, 6)], [(0, 1), (5, 3)], [(0, 2**64)], [(0x1000, 0x1008 + 2**64)]],
    ids=str,
)
def test_too_many_bytes(bounds: list[Pair]) -> None:
    """A length, or a sum of them, that no int64 holds is an error, however long the range is."""
    with pytest.raises(ValueError, match="overflows int64"):
        seq_of(*bounds)


@pytest.mark.parametrize(("start", "end"), [(0, 2**64), (0x1000, 0x1008 + 2**64)])
def test_of_too_long(start: int, end: int) -> None:
    """Not even ``of`` takes a length that 64 bits do not hold."""
    with pytest.raises(ValueError, match="64 bits"):
        AddrRangeSeq.of(AddrRange(start, end))


@pytest.mark.parametrize(
    ("flat", "why"),
    [
        ([0, MAX + 1], "length 0x8000000000000000 of the range at 0x0 overflows int64"),
        ([0, MAX, 5, 1], "total length 0x8000000000000000 overflows int64"),
        ([0, -5], "length -0x5 of the range at 0x0 overflows int64"),
        ([0, 5, 9, -1], "length -0x1 of the range at 0x9 overflows int64"),
        ([0, 5, 9], "a start without a length at the end"),
    ],
    ids=str,
)
def test_bad_pairs(flat: list[int], why: str) -> None:
    """from_pairs raises as the constructor does; a negative length or a start without a length is no range either."""
    with pytest.raises(ValueError, match=f"^ranges: {why}$"):
        AddrRangeSeq.from_pairs(flat)


@pytest.mark.parametrize("n", [-1, -(2**64)])
@pytest.mark.parametrize("seq", [AddrRangeSeq(), seq_of((1, 3))], ids=str)
def test_negative_count(seq: AddrRangeSeq, n: int) -> None:
    """A negative count is the caller's error, named, also for an empty sequence."""
    with pytest.raises(ValueError, match="n must not be negative"):
        seq.drop_first(n)
    with pytest.raises(ValueError, match="n must not be negative"):
        seq.take_first(n)


@pytest.mark.parametrize("n", ["1", 1.0, None], ids=repr)
def test_count_that_is_none(n: Any) -> None:
    """A count that is no int is a TypeError that names the argument and what it was."""
    seq = seq_of((1, 3))
    for method in (seq.drop_first, seq.take_first):
        with pytest.raises(TypeError, match=f"^n must be an int, not {type(n).__name__}$"):
            method(n)


def test_head_and_tail_of_empty() -> None:
    """An empty sequence has no first range, and the error says what was asked for."""
    with pytest.raises(IndexError, match=r"^head of an empty AddrRangeSeq$"):
        AddrRangeSeq().head()
    with pytest.raises(IndexError, match=r"^tail of an empty AddrRangeSeq$"):
        AddrRangeSeq().tail()


def test_hashes_tell_sequences_apart() -> None:
    """Sequences that differ in a start, a length, the order or a cut have different hashes."""
    seqs = [seq_of(), seq_of((1, 3)), seq_of((1, 4)), seq_of((2, 4)), seq_of((1, 3), (5, 6)), seq_of((5, 6), (1, 3))]
    hashes = {hash(seq) for seq in [*seqs, seq_of((1, 3), (5, 6)).take_first(2)]}
    assert len(hashes) == 7


def test_immutable() -> None:
    """The caller's list may change later, attributes may not; other types are never equal."""
    ranges = [AddrRange(1, 3)]
    seq = AddrRangeSeq(ranges)
    ranges.append(AddrRange(5, 6))
    assert bounds_of(seq) == [(1, 3)]
    with pytest.raises(AttributeError):
        seq.num_bytes = 3  # type: ignore[misc]
    assert seq != [AddrRange(1, 3)]
    assert seq == mock.ANY  # which the other side decides
    assert bounds_of(AddrRangeSeq(ar for ar in ranges)) == [(1, 3), (5, 6)]
