"""IOSequence: an IO and the ranges in it that a system call is about, step by step and as slices."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import AddrRange, AddrRangeSeq
from patchy_io import PatchyIO
from safemem import BlockSeqReader, BlockSeqWriter, TransferError
from sample_blocks import blocks, room
from usermem import (
    BytesIO,
    IOSequence,
    bytes_io_sequence,
)
from watched_io import WatchedIO

TOP = 1 << 64
PAGE = 4096


def ranges(*pairs: tuple[int, int]) -> AddrRangeSeq:
    """A sequence of [start, end) ranges."""
    return AddrRangeSeq(AddrRange(start, end) for start, end in pairs)


def letters(*pairs: tuple[int, int]) -> tuple[bytearray, IOSequence]:
    """Twelve letters, and a sequence of ranges in them; what is behind them is a hole."""
    buffer = bytearray(b"abcdefghijkl")
    return buffer, IOSequence(BytesIO(buffer), ranges(*pairs))


def test_copy_out_step_by_step() -> None:
    """What is written goes on where the last step ended, and at the end nothing fits, which is no error."""
    buffer = bytearray(5)
    seq = bytes_io_sequence(buffer)
    assert (seq.num_bytes, seq.copy_out(b"foo")) == (5, 3)
    seq = seq.drop_first(3)
    assert (bytes(buffer), seq.num_bytes, seq.copy_out(b"bar")) == (b"foo\0\0", 2, 2)
    seq = seq.drop_first(2)
    assert (bytes(buffer), seq.num_bytes, seq.copy_out(b"r")) == (b"fooba", 0, 0)


def test_copy_in_step_by_step() -> None:
    """What is read goes on where the last step ended; beyond the end the buffer stays as it was."""
    seq = bytes_io_sequence(b"foobar")
    dst = bytearray(4)
    assert (seq.copy_in(dst), bytes(dst)) == (4, b"foob")
    seq = seq.drop_first(4)
    assert (seq.copy_in(dst), bytes(dst)) == (2, b"arob")
    seq = seq.drop_first(2)
    assert (seq.copy_in(dst), bytes(dst), seq.num_bytes) == (0, b"arob", 0)


def test_zero_out_step_by_step() -> None:
    """Zeroing goes as far as both the count and the ranges; a negative count is the caller's ValueError."""
    buffer = bytearray(b"ABCDE")
    seq = bytes_io_sequence(buffer)
    assert (seq.zero_out(2), bytes(buffer)) == (2, b"\0\0CDE")
    seq = seq.drop_first(2)
    with pytest.raises(ValueError, match="n must not be negative"):
        seq.zero_out(-1)
    assert (seq.zero_out(9), bytes(buffer)) == (3, bytes(5))
    assert seq.drop_first(3).zero_out(1) == 0


def test_take_first_bounds_every_operation() -> None:
    """A sequence cut to n bytes copies n bytes, by whatever method, and the one it was cut from stays whole."""
    buffer, seq = letters((8, 12), (0, 4), (4, 8))
    cut = seq.take_first(6)
    assert (cut.num_bytes, seq.num_bytes) == (6, 12)
    dst = room(100)
    assert cut.copy_in_to(BlockSeqWriter(dst)) == 6
    assert dst.tobytes()[:7] == b"ijklab\xee"
    assert cut.copy_out(b"123456789") == 6
    assert cut.copy_out_from(BlockSeqReader(blocks(b"654", b"321!"))) == 6
    assert buffer == b"21cdefgh6543"
    assert cut.zero_out(100) == 6
    assert buffer == b"\0\0cdefgh\0\0\0\0"
    assert seq.take_first(100).num_bytes == 12
    with pytest.raises(ValueError):
        seq.take_first(-1)
    with pytest.raises(ValueError):
        seq.drop_first(-1)


def test_reading_a_cut_sequence_ends() -> None:
    """Ranges that were cut to nothing are passed: a loop of copies and drops over two ranges comes to its end."""
    seq = letters((0, 4), (6, 10))[1].take_first(4)
    got = bytearray()
    for _ in range(5):
        dst = bytearray(8)
        n = seq.copy_in(dst)
        got += dst[:n]
        seq = seq.drop_first(n)
    assert (bytes(got), seq.num_bytes, len(seq.addrs)) == (b"abcd", 0, 0)


def test_options_are_handed_on() -> None:
    """Every operation, and every sequence made from this one, uses its options; the default ones if it has none."""
    watched = WatchedIO(BytesIO(bytearray(8)))
    for made, expected in ((IOSequence(watched, ranges((0, 8))), False), (None, True)):
        seq = made or IOSequence(watched, ranges((0, 8)), ignore_permissions=True)
        seq = seq.take_first(7).drop_first(1)
        watched.ignored.clear()
        watched.accesses.clear()
        seq.copy_in(bytearray(2))
        seq.copy_out(b"12")
        seq.zero_out(2)
        seq.copy_out_from(BlockSeqReader(blocks(b"x")))
        seq.copy_in_to(BlockSeqWriter(room(8)))
        assert [name for name, _, _ in watched.accesses] == [
            "copy_in", "copy_out", "zero_out", "copy_out_from", "copy_in_to",
        ]  # fmt: skip
        assert watched.ignored == [expected] * 5


PAIRS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)).map(lambda p: (p[0], p[0] + p[1])), max_size=6)
STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 25)), max_size=6)


@given(pairs=PAIRS, steps=STEPS)
def test_dropping_and_taking_are_slices(pairs: list[tuple[int, int]], steps: list[tuple[bool, int]]) -> None:
    """drop_first(n) is [n:] and take_first(n) is [:n] of the bytes, in any order; a reader gives just those."""
    memory = bytes(range(50))
    model = b"".join(memory[start:end] for start, end in pairs)
    seq = IOSequence(BytesIO(memory), ranges(*pairs))
    for drop, n in steps:
        model = model[n:] if drop else model[:n]
        seq = seq.drop_first(n) if drop else seq.take_first(n)
        dst = bytearray(100)
        assert (seq.num_bytes, bytes(dst[: seq.copy_in(dst)])) == (len(model), model)
    assert seq.reader().readall() == model
    file = seq.reader()
    assert b"".join(iter(lambda: file.read(3), b"")) == model


def test_a_sequence_at_the_top() -> None:
    """A range that ends where the address space does is read and written to its last byte."""
    memory = bytearray(b"01234567")
    seq = IOSequence(PatchyIO({TOP - 8: memory}), ranges((TOP - 3, TOP), (TOP - 8, TOP - 6)))
    assert (seq.num_bytes, seq.reader().readall()) == (5, b"56701")
    with pytest.raises(TransferError) as caught:
        seq.drop_first(2).writer().write(b"abcd")
    assert (caught.value.errno, caught.value.transferred) == (errno.ENOSPC, 3)
    assert memory == b"bc23456a"
    assert seq.copy_in_to(BlockSeqWriter(room(9))) == 5
