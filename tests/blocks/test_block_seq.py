"""BlockSeq: what a list of byte strings would be, without the empty ones; copy_seq and zero_seq over such.

Joined and sliced bytes are the model, for plain memory, for memory that is copied by safecopy, and for both mixed.
"""

from __future__ import annotations

import ctypes
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import Block, BlockSeq, HostFaultError, copy, copy_seq, zero_seq
from usermem.testing.faulty_memory import Fault, FaultyMemory

PIECES = st.lists(st.tuples(st.binary(max_size=6), st.booleans()), max_size=6)
STEPS = st.lists(
    st.tuples(st.sampled_from(("drop", "take", "tail")), st.integers(0, 12)),
    max_size=8,
)
Piece = tuple[bytes, bool]


class Memory:
    """One buffer a piece, and the blocks over them; True says that a piece is given by its address."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.buffers = [bytearray(data) for data, _ in pieces]
        self.blocks = [
            self._by_address(buffer) if by_address and buffer else Block(buffer)
            for buffer, (_, by_address) in zip(self.buffers, pieces, strict=True)
        ]

    @staticmethod
    def _by_address(buffer: bytearray) -> Block:
        first = ctypes.c_char.from_buffer(buffer)
        return Block.from_address(ctypes.addressof(first), len(buffer), first)

    def seq(self) -> BlockSeq:
        """The blocks as a sequence."""
        return BlockSeq(self.blocks)

    def joined(self) -> bytes:
        """All bytes, as they are now."""
        return b"".join(self.buffers)


def cut(pieces: list[bytes], start: int, end: int) -> list[bytes]:
    """The pieces of bytes start to end of all, without empty ones."""
    out = []
    for piece in pieces:
        part = piece[max(start, 0) : max(end, 0)]
        out += [part] if part else []
        start -= len(piece)
        end -= len(piece)
    return out


def check(seq: BlockSeq, pieces: list[bytes]) -> None:
    """Everything that can be asked of seq is as the list of its pieces has it."""
    assert [block.tobytes() for block in seq] == pieces
    assert seq.tobytes() == b"".join(pieces)
    assert seq.num_bytes == sum(map(len, pieces))
    assert len(seq) == len(pieces)
    assert bool(seq) == bool(pieces) == (not seq.is_empty())
    if pieces:
        assert seq.head().tobytes() == pieces[0]
        assert [block.tobytes() for block in seq.tail()] == pieces[1:]
    if not any(block.need_safecopy for block in seq):
        assert [bytes(view) for view in seq.views()] == pieces


@given(PIECES, STEPS)
def test_against_the_model(parts: list[Piece], steps: list[tuple[str, int]]) -> None:
    """After any operations a sequence is the slice it should be, and none of those before it has changed."""
    memory = Memory(parts)
    seq, pieces = memory.seq(), [data for data, _ in parts if data]
    states = [(seq, pieces)]
    for name, n in steps:
        total = sum(map(len, pieces))
        if name == "drop":
            seq, pieces = seq.drop_first(n), cut(pieces, n, total)
        elif name == "take":
            seq, pieces = seq.take_first(n), cut(pieces, 0, n)
        elif pieces:
            seq, pieces = seq.tail(), pieces[1:]
        states.append((seq, pieces))
    for state in states:
        check(*state)


@given(PIECES, PIECES, st.integers(0, 20), st.integers(0, 20))
def test_copy_seq(to: list[Piece], what: list[Piece], skip: int, most: int) -> None:
    """copy_seq moves the bytes of one join over those of the other, as many as both have, and no more."""
    dst, src = Memory(to), Memory(what)
    before, data = dst.joined(), src.joined()
    window = data[skip : skip + most]
    n = min(len(before), len(window))
    assert copy_seq(dst.seq(), src.seq().drop_first(skip).take_first(most)) == n
    assert dst.joined() == window[:n] + before[n:]
    assert src.joined() == data


@given(PIECES, st.binary(max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_fill(pieces: list[Piece], data: bytes, skip: int, most: int) -> None:
    """fill moves the bytes over the start of the window, and returns just what they cover; None if it is too small."""
    memory = Memory(pieces)
    before = memory.joined()
    window = memory.seq().drop_first(skip).take_first(most)
    filled = window.fill(data)
    if len(data) > window.num_bytes:
        assert (filled, memory.joined()) == (None, before)
    else:
        assert filled is not None
        assert filled.tobytes() == data
        assert memory.joined() == before[:skip] + data + before[skip + len(data) :]


@given(PIECES, st.integers(0, 20), st.integers(0, 20))
def test_zero_seq(pieces: list[Piece], skip: int, most: int) -> None:
    """zero_seq sets exactly the bytes it is given to 0."""
    memory = Memory(pieces)
    before = memory.joined()
    window = memory.seq().drop_first(skip).take_first(most)
    n = window.num_bytes
    assert zero_seq(window) == n
    assert memory.joined() == before[:skip] + bytes(n) + before[skip + n :]


ROWS = [
    pytest.param([], 0, None, id="nothing"),
    pytest.param([b"foobar"], 0, None, id="one block"),
    pytest.param([b"foo", b"bar"], 0, None, id="two blocks"),
    pytest.param([b"", b"foo", b"", b"", b"bar", b""], 0, None, id="empty blocks disappear"),
    pytest.param([b"foo", b"bar"], 2, None, id="dropped into"),
    pytest.param([b"foo", b"bar"], 0, 5, id="cut"),
    pytest.param([b"foo", b"bar"], 2, 3, id="dropped into and cut"),
]
every_row = pytest.mark.parametrize(("pieces", "drop", "take"), ROWS)


def row(pieces: list[bytes], drop: int, take: int | None) -> tuple[BlockSeq, list[bytes]]:
    """The sequence of one of gVisor's rows, and the pieces it should have."""
    total = sum(map(len, pieces))
    seq = BlockSeq(map(Block, pieces)).drop_first(drop)
    end = total if take is None else drop + take
    return (seq if take is None else seq.take_first(take)), cut(pieces, drop, end)


@every_row
def test_num_bytes(pieces: list[bytes], drop: int, take: int | None) -> None:
    """num_bytes counts what is left between what was dropped and where it was cut."""
    seq, expected = row(pieces, drop, take)
    assert seq.num_bytes == len(b"".join(expected))


@every_row
def test_iter_blocks(pieces: list[bytes], drop: int, take: int | None) -> None:
    """Heads of tails are the blocks, and each tail is shorter by its head."""
    seq, expected = row(pieces, drop, take)
    for piece in expected:
        assert seq.head().tobytes() == piece
        assert seq.tail().num_bytes == seq.num_bytes - len(piece)
        seq = seq.tail()
    assert seq.is_empty()


@every_row
def test_iter_bytes(pieces: list[bytes], drop: int, take: int | None) -> None:
    """Copying one byte of the head and dropping it gives every byte in order."""
    seq, expected = row(pieces, drop, take)
    for byte in b"".join(expected):
        one = bytearray(1)
        assert copy(Block(one), seq.head()) == 1
        assert one == bytes([byte])
        assert seq.drop_first(1).num_bytes == seq.num_bytes - 1
        seq = seq.drop_first(1)
    assert seq.is_empty()


def test_drop_beyond_limit() -> None:
    """Dropping more than a cut left leaves nothing, though there are more bytes behind the cut."""
    seq = BlockSeq([Block(b"123"), Block(b"4")])
    assert seq.num_bytes == 4
    assert seq.take_first(1).num_bytes == 1
    assert seq.take_first(1).drop_first(2).num_bytes == 0
    assert seq.take_first(1).drop_first(2).is_empty()


def test_of() -> None:
    """One block makes a sequence of one; an empty one makes none."""
    block = Block(b"x")
    seq = BlockSeq.of(block)
    assert seq and len(seq) == 1 and seq.head().address == block.address and seq.tail().is_empty()
    assert BlockSeq.of(Block(b"")).is_empty() and BlockSeq().is_empty()


def test_whole_blocks_are_themselves() -> None:
    """A block that no window cuts comes out as it went in; a cut one lies in the same memory."""
    blocks = [Block(b"abc"), Block(b"def")]
    assert list(BlockSeq(blocks)) == blocks
    cut_off = list(BlockSeq(blocks).drop_first(1).take_first(4))
    assert [block.address for block in cut_off] == [blocks[0].address + 1, blocks[1].address]


def test_repr_shows_the_blocks() -> None:
    """The text of a sequence is that of its blocks, as far as they are visible."""
    first, last = Block(bytearray(b"abc")), Block(bytearray(b"def"))
    assert repr(BlockSeq()) == "<BlockSeq []>"
    assert repr(BlockSeq([first, last])) == f"<BlockSeq [{first!r}, {last!r}]>"
    assert repr(BlockSeq([first, last]).drop_first(1).take_first(2)) == f"<BlockSeq [{first.drop_first(1)!r}]>"


def test_immutable() -> None:
    """The caller's list may change later; any iterable will do."""
    blocks = [Block(b"abc")]
    seq = BlockSeq(blocks)
    blocks.append(Block(b"def"))
    assert seq.tobytes() == b"abc"
    assert BlockSeq(iter(blocks)).tobytes() == b"abcdef"
    with pytest.raises(AttributeError):
        seq.num_bytes = 1  # type: ignore[misc]


def test_views_of_what_may_fault() -> None:
    """views refuses a sequence of which one block needs safecopy."""
    with pytest.raises(BufferError):
        Memory([(b"ab", False), (b"cd", True)]).seq().views()


@pytest.mark.parametrize("seq", [BlockSeq(), BlockSeq.of(Block(b"abc"))], ids=["empty", "one block"])
def test_bad_counts(seq: BlockSeq) -> None:
    """A negative count is a ValueError, one that is no int a TypeError; both name the argument."""
    for method in (seq.drop_first, seq.take_first):
        with pytest.raises(ValueError, match="n must not be negative"):
            method(-1)
        with pytest.raises(TypeError, match="n must be an int"):
            method("1")  # type: ignore[arg-type]


def test_head_and_tail_of_empty() -> None:
    """An empty sequence has no first block, also where a cut made it empty."""
    for seq in (BlockSeq(), BlockSeq.of(Block(b"abc")).take_first(0), BlockSeq.of(Block(b"abc")).drop_first(3)):
        with pytest.raises(IndexError, match=r"^head of an empty BlockSeq$"):
            seq.head()
        with pytest.raises(IndexError):
            seq.tail()


@pytest.mark.parametrize("fault", ["segv", "bus"])
@pytest.mark.parametrize("valid", range(6))
def test_copy_seq_stops_at_a_fault(fault: Fault, valid: int) -> None:
    """A fault in the middle: all before it has arrived, nothing behind it is touched, the count is of all blocks."""
    faulty = FaultyMemory(fault)
    first, last = bytearray(b"\xee" * 3), bytearray(b"\xee" * 4)
    dsts = BlockSeq([Block(first), faulty.block(6, valid, b"\xee" * 6), Block(last)])
    signo = signal.SIGBUS if fault == "bus" else signal.SIGSEGV
    with pytest.raises(HostFaultError) as caught:
        copy_seq(dsts, BlockSeq([Block(b"01"), Block(b"23456789abc")]))
    assert (caught.value.transferred, caught.value.address, caught.value.signo) == (3 + valid, faulty.edge, signo)
    assert first + faulty.before_edge(valid) == b"012345678"[: 3 + valid]
    assert last == b"\xee" * 4
    with pytest.raises(HostFaultError) as caught:
        zero_seq(dsts)
    assert (caught.value.transferred, caught.value.address, caught.value.signo) == (3 + valid, faulty.edge, signo)
    assert first + faulty.before_edge(valid) == bytes(3 + valid)
    assert last == b"\xee" * 4
    taken = bytearray(b"\xee" * 13)
    with pytest.raises(HostFaultError) as caught:
        copy_seq(BlockSeq([Block(memoryview(taken)[:4]), Block(memoryview(taken)[4:])]), dsts)
    assert (caught.value.transferred, caught.value.address, caught.value.signo) == (3 + valid, faulty.edge, signo)
    assert taken == bytes(3 + valid) + b"\xee" * (10 - valid)
    with pytest.raises(HostFaultError) as caught:
        dsts.fill(b"0123456789abc")
    assert (caught.value.transferred, caught.value.address, caught.value.signo) == (3 + valid, faulty.edge, signo)
    assert first + faulty.before_edge(valid) == b"012345678"[: 3 + valid]


@pytest.mark.parametrize("fault", ["segv", "bus"])
@pytest.mark.parametrize("valid", range(4))
def test_tobytes_stops_at_a_fault(fault: Fault, valid: int) -> None:
    """tobytes raises the fault itself, and its count is of all blocks before it too."""
    faulty = FaultyMemory(fault)
    for before in ([], [Block(b"01")], [Block(b"01"), Block(b"2345")]):
        seq = BlockSeq([*before, faulty.block(4, valid, b"6789"), Block(b"abc")])
        with pytest.raises(HostFaultError) as caught:
            seq.tobytes()
        assert caught.value.address == faulty.edge
        assert caught.value.transferred == sum(map(len, before)) + valid


def test_readonly_destination() -> None:
    """A read-only block among the destinations is a TypeError that names the argument, and nothing is written."""
    first, frozen = bytearray(b"--"), bytes(bytearray(b"frozen"))
    dsts = BlockSeq([Block(first), Block(frozen)])
    with pytest.raises(TypeError, match=r"^dst must be writable"):
        copy_seq(dsts, BlockSeq.of(Block(b"0123")))
    with pytest.raises(TypeError, match=r"^dst must be writable"):
        zero_seq(dsts)
    for seq in (dsts, dsts.drop_first(2)):
        with pytest.raises(TypeError):
            seq.fill(b"0123"[: seq.num_bytes])
    assert first == b"--"
    assert frozen == bytes([102, 114, 111, 122, 101, 110])
    assert copy_seq(dsts, BlockSeq.of(Block(b"01"))) == 2  # as far as the writable block goes, it may
    assert first == b"01"
