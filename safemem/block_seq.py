"""BlockSeq: an immutable sequence of pieces of host memory, as a window on a shared list. Empty ones disappear.

Plain memory is in the list as a flat byte view, as readv(2) and slice assignment want it; memory that may fault is in
it as a Block. Blocks over the views are made when somebody asks for one.

Source: gVisor pkg/safemem/seq_unsafe.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from safemem.block import Block, Piece, check_writable, copy, part, zero
from safemem.buffers import check_count
from safemem.errors import add_transferred

_new = object.__new__


class BlockSeq:
    """An immutable sequence of blocks. ``seq.num_bytes`` is their size, ``len(seq)`` how many there are (O(n)).

    False when it has no bytes, which is when it has no blocks. Dropping from the front moves an index: walking n
    blocks costs O(n) in all.
    """

    __slots__ = ("_first", "_limit", "_pieces")

    # Never changed once they are here; _limit bytes of them are visible.
    _pieces: list[Piece]
    _limit: int
    # None where the whole list is visible, as nearly always: an index into it, and how many bytes of the piece there
    # are gone.
    _first: tuple[int, int] | None

    def __init__(self, blocks: Iterable[Block] = ()) -> None:
        self._pieces = [block if block.need_safecopy else block.view() for block in blocks if len(block)]
        self._limit = sum(map(len, self._pieces))
        self._first = None

    @classmethod
    def of(cls, block: Block) -> BlockSeq:
        """A sequence of one block; of none if it is empty."""
        return cls((block,))

    @staticmethod
    def unchecked(pieces: list[Piece], num_bytes: int) -> BlockSeq:
        """A sequence of a list that it keeps; the caller knows that it has ``num_bytes`` bytes and no empty piece."""
        seq = _new(BlockSeq)
        seq._pieces = pieces
        seq._limit = num_bytes
        seq._first = None
        return seq

    @property
    def num_bytes(self) -> int:
        """The sum of the blocks' lengths, in bytes."""
        return self._limit

    def __bool__(self) -> bool:
        return self._limit != 0

    def pieces(self) -> list[Piece]:
        """The memory of each block, which must not be changed: a view, or a block if that needs safecopy."""
        return self._pieces if self._first is None else list(self._window_pieces(*self._first))

    def _window_pieces(self, index: int, offset: int) -> Iterator[Piece]:
        left = self._limit
        pieces = self._pieces
        for piece in map(pieces.__getitem__, range(index, len(pieces))):
            if not left:
                return
            n = len(piece)
            if offset or n > left:
                n = min(n - offset, left)
                piece, offset = part(piece, offset, n), 0
            yield piece
            left -= n

    def iter_pieces(self) -> Iterator[Piece]:
        """As :meth:`pieces`, one by one: cheaper where few of many may be looked at."""
        return iter(self._pieces) if self._first is None else self._window_pieces(*self._first)

    @property
    def need_safecopy(self) -> bool:
        """Whether one of the blocks does."""
        return Block in map(type, self.iter_pieces())

    def is_empty(self) -> bool:
        """Whether there are no blocks, and so no bytes."""
        return self._limit == 0

    def __len__(self) -> int:
        return sum(1 for _ in self.iter_pieces())

    def __iter__(self) -> Iterator[Block]:
        for piece in self.iter_pieces():
            yield piece if isinstance(piece, Block) else Block.from_view(piece, 0, len(piece))

    def head(self) -> Block:
        """The first block. Raises IndexError if there is none."""
        for block in self:
            return block
        raise IndexError("head of an empty BlockSeq")

    def tail(self) -> BlockSeq:
        """All blocks but the first. Raises IndexError if there is none."""
        return self.drop_first(len(self.head()))

    def drop_first(self, n: int) -> BlockSeq:
        """The sequence without its first n bytes; an empty one if it has fewer. Raises ValueError if n < 0."""
        n = check_count(n, "n")
        if n >= self._limit:
            return EMPTY
        index, offset = self._first or (0, 0)
        offset += n
        pieces = self._pieces
        while offset >= len(pieces[index]):
            offset -= len(pieces[index])
            index += 1
        return self._window(index, offset, self._limit - n)

    def take_first(self, n: int) -> BlockSeq:
        """The first n bytes; all of them if there are fewer. Raises ValueError if n < 0."""
        n = check_count(n, "n")
        return self if n >= self._limit else self._window(*(self._first or (0, 0)), n)

    def take_blocks(self, n: int) -> BlockSeq:
        """The first n blocks; all of them if there are fewer. Costs O(n), however many follow."""
        first = list(islice(self.iter_pieces(), check_count(n, "n")))
        return BlockSeq.unchecked(first, sum(map(len, first)))

    def _window(self, index: int, offset: int, limit: int) -> BlockSeq:
        seq = _new(BlockSeq)
        seq._pieces = self._pieces
        seq._limit = limit
        seq._first = (index, offset)
        return seq

    def check_writable(self, name: str) -> None:
        """Raise TypeError, naming the argument, if a block is read-only memory."""
        for piece in self.iter_pieces():
            if piece.readonly:
                check_writable(piece, name)

    def views(self) -> list[memoryview]:
        """The memory of each block, as readv(2) wants it. Raises BufferError if one needs safecopy."""
        return [piece if isinstance(piece, memoryview) else piece.view() for piece in self.iter_pieces()]

    def tobytes(self) -> bytes:
        """A copy of all bytes. Raises HostFaultError if memory faults, with the bytes before it in ``transferred``."""
        pieces = self._pieces if self._first is None else self.pieces()  # without a call: 75 ns, not 95
        if len(pieces) == 1:
            return pieces[0].tobytes()
        parts: list[bytes] = []
        for piece in pieces:
            try:
                parts.append(piece.tobytes())
            except OSError as exc:
                add_transferred(exc, sum(map(len, parts)))
                raise
        return b"".join(parts)

    def fill(self, data: bytes) -> BlockSeq | None:
        """Copy data to the start of the sequence and return the part that holds it; None, and no copy, without room.

        Raises HostFaultError and TypeError as :func:`copy_seq`.
        """
        n = len(data)
        if n > self._limit:
            return None
        filled = self if n == self._limit else self._window(*(self._first or (0, 0)), n)
        piece = self._pieces[0] if n and self._first is None else None
        if type(piece) is memoryview and len(piece) >= n:  # one piece takes all: a tenth of the time of copy_seq
            piece[:n] = data
        elif n:
            copy_seq(filled, BlockSeq.unchecked([memoryview(data)], n))
        return filled

    def __repr__(self) -> str:
        return f"<BlockSeq {list(self)}>"


EMPTY = BlockSeq()


def copy_seq(dsts: BlockSeq, srcs: BlockSeq) -> int:
    """Copy min(dsts.num_bytes, srcs.num_bytes) bytes, front to back, and return how many.

    Raises HostFaultError if memory faults, with the exact count; TypeError, before anything is copied, if a block of
    dsts is read-only. (gVisor's safemem.CopySeq.)
    """
    total = dsts._limit if dsts._limit < srcs._limit else srcs._limit
    if len(dsts._pieces) == len(srcs._pieces) == 1 and dsts._limit == srcs._limit:
        dst, src = dsts._pieces[0], srcs._pieces[0]
        if type(dst) is type(src) is memoryview and len(dst) == len(src) == total and not dst.readonly:
            dst[:] = src  # a third of the time of what follows
            return total
    if dsts._limit != total:
        dsts = dsts.take_first(total)
    dsts.check_writable("dst")
    done = at = room = 0
    to = dsts.iter_pieces()
    for src in srcs.iter_pieces():
        if done == total:  # the rest of srcs is not looked at
            break
        start, left = 0, len(src)
        while left and done < total:
            if not room:
                dst = next(to)
                at, room = 0, len(dst)
            n = left if left < room else room
            if type(dst) is memoryview and type(src) is memoryview:
                dst[at : at + n] = src[start : start + n]  # a third of the time of copy()
            else:
                try:
                    copy(part(dst, at, n), part(src, start, n))
                except OSError as exc:
                    add_transferred(exc, done)
                    raise
            done += n
            at += n
            room -= n
            start += n
            left -= n
    return done


def zero_seq(dsts: BlockSeq) -> int:
    """Set all bytes to 0 and return how many. Raises as :func:`copy_seq`. (gVisor's safemem.ZeroSeq.)"""
    dsts.check_writable("dst")
    done = 0
    for dst in dsts.iter_pieces():
        try:
            done += zero(dst)
        except OSError as exc:
            add_transferred(exc, done)
            raise
    return done
