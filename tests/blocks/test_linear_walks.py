"""AddrRangeSeq and BlockSeq are walked and copied in linear time: shown by counting reads, without a clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from counting_list import CountingList
from hostarch import AddrRangeSeq
from safemem import Block, BlockSeq, copy_seq, zero_seq
from safemem.block import Piece

RANGE_WALKS: dict[str, Callable[[AddrRangeSeq], AddrRangeSeq]] = {
    "head by drop_first": lambda seq: seq.drop_first(seq.head().length),
    "byte by drop_first": lambda seq: seq.drop_first(min(1, seq.head().length)),
    "head by tail": lambda seq: seq.tail(),
    "pair by drop_first": lambda seq: seq.drop_first(next(seq.pairs())[1]),
    "take and drop": lambda seq: seq.drop_first(seq.take_first(1).head().length),
}


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("walk", RANGE_WALKS)
def test_walk_over_ranges(walk: str, cut: bool) -> None:
    """Walking over 1,000 and 10,000 ranges reads the list of ranges a fixed number of times a step."""
    for n in (1_000, 10_000):
        flat = CountingList([x for i in range(n) for x in (16 * i, i % 3)])
        seq = AddrRangeSeq.from_pairs(flat)
        if cut:
            seq = seq.take_first(seq.num_bytes - 1)
        steps = 0
        flat.reads.items = 0
        while seq and steps < 2 * n and flat.reads.items <= 12 * n:
            seq = RANGE_WALKS[walk](seq)
            steps += 1
        assert n // 2 <= flat.reads.items <= 12 * n
        assert seq.is_empty()


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_iteration_over_ranges(cut: bool) -> None:
    """Iterating reads every start and length about once; so does dropping all at once."""
    for n in (1_000, 100_000):
        flat = CountingList([x for i in range(n) for x in (16 * i, 1)])
        seq = AddrRangeSeq.from_pairs(flat).drop_first(1)
        if cut:
            seq = seq.take_first(n - 2)
        flat.reads.items = 0
        assert sum(length for _, length in seq.pairs()) == seq.num_bytes
        assert n <= flat.reads.items <= 6 * n
        flat.reads.items = 0
        assert seq.drop_first(seq.num_bytes).num_bytes == 0
        assert flat.reads.items <= 3 * n


def counted(n: int) -> tuple[BlockSeq, CountingList[Piece]]:
    """A sequence of n blocks of one and two bytes, and the list behind it, which counts its reads."""
    memory = Block(bytearray(2))
    seq = BlockSeq(memory.take_first(1 + i % 2) for i in range(n))
    seq._pieces = blocks = CountingList(seq._pieces)
    return seq, blocks


BLOCK_WALKS: dict[str, Callable[[BlockSeq], BlockSeq]] = {
    "head": lambda seq: seq.drop_first(len(seq.head())),
    "byte": lambda seq: seq.drop_first(1),
    "tail": lambda seq: seq.tail(),
}


@pytest.mark.parametrize("walk", BLOCK_WALKS)
@pytest.mark.parametrize("cut_off", [0, 1], ids=["whole", "cut"])
def test_walk_over_blocks(walk: str, cut_off: int) -> None:
    """Walking over 1,000 and 10,000 blocks reads the list of blocks a fixed number of times a step."""
    for n in (1_000, 10_000):
        seq, blocks = counted(n)
        seq = seq.take_first(seq.num_bytes - cut_off)
        steps = 0
        while seq and steps < 2 * n and blocks.reads.items <= 12 * n:
            seq = BLOCK_WALKS[walk](seq)
            steps += 1
        assert n <= blocks.reads.items <= 12 * n
        assert seq.is_empty()


def test_copy_over_blocks() -> None:
    """Copying and zeroing n blocks reads each of them a fixed number of times, wherever their edges fall."""
    for n in (1_000, 10_000):
        dsts, dst_blocks = counted(n)
        srcs, src_blocks = counted(n)
        total = srcs.num_bytes - 1
        assert copy_seq(dsts, srcs.drop_first(1)) == total
        assert zero_seq(dsts) == dsts.num_bytes
        assert n <= dst_blocks.reads.items <= 6 * n
        assert n <= src_blocks.reads.items <= 3 * n


def test_a_short_copy_looks_at_no_more() -> None:
    """Of a long sequence what a copy does not need is not read: copying it bit by bit takes O(n) in all."""
    srcs, src_blocks = counted(10_000)
    src_blocks.reads.items = 0
    assert copy_seq(BlockSeq([Block(bytearray(3))]), srcs) == 3
    dsts, dst_blocks = counted(10_000)
    dst_blocks.reads.items = 0
    assert copy_seq(dsts, BlockSeq([Block(b"abc")])) == 3
    assert max(src_blocks.reads.items, dst_blocks.reads.items) < 20
