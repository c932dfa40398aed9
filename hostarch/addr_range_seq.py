"""AddrRangeSeq: an immutable sequence of address ranges, as an iovec array describes it.

Ranges of zero length are kept, because bounds checks and order depend on them. A sequence is a window on a shared
list of plain ints: dropping from the front moves an index, so walking n ranges costs O(n) in all.

Source: gVisor pkg/hostarch/addr_range_seq_unsafe.go. One difference: ``drop_first`` passes a head that is empty
because ``take_first`` cut it, as gVisor's comment says and its code does not (there, a copy over such a sequence
never ends).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator

from hostarch.addr_range import AddrRange

_MASK = (1 << 64) - 1
_INT64_MAX = (1 << 63) - 1


class AddrRangeSeq:
    """An immutable sequence of :class:`AddrRange`.

    ``len(seq)`` is the number of ranges, ``seq.num_bytes`` the number of bytes: a sequence of empty ranges is true,
    and has 0 bytes. Sequences are equal if the same ranges are visible; one that was cut by ``take_first`` still keeps
    an empty rest of a range that ``drop_first`` stops in.
    """

    __slots__ = ("_cut", "_flat", "_index", "_limit", "_offset")

    # [start, length, start, length, ...], never changed once it is here; the first visible range is at _index, its
    # first _offset bytes are gone; _limit bytes are visible in all, and _cut says that this is less than there are.
    _flat: list[int]
    _index: int
    _offset: int
    _limit: int
    _cut: bool

    def __init__(self, ranges: Iterable[AddrRange] = ()) -> None:
        """Raises ValueError if a length (an ill-formed range's wraps), or their sum, exceeds 2**63 - 1."""
        self._init_flat([x for ar in ranges for x in (ar.start, ar.length)])

    def _init_flat(self, flat: list[int]) -> None:
        if len(flat) % 2:
            raise ValueError("ranges: a start without a length at the end")
        limit = 0
        for i in range(1, len(flat), 2):
            if not 0 <= flat[i] <= _INT64_MAX:
                raise ValueError(f"ranges: length {flat[i]:#x} of the range at {flat[i - 1]:#x} overflows int64")
            limit += flat[i]
        if limit > _INT64_MAX:
            raise ValueError(f"ranges: total length {limit:#x} overflows int64")
        self._flat = flat
        self._index = 0
        self._offset = 0
        self._limit = limit
        self._cut = False

    def _window(self, index: int, offset: int, limit: int, cut: bool) -> AddrRangeSeq:
        seq = AddrRangeSeq.__new__(AddrRangeSeq)
        seq._flat = self._flat
        seq._index = index
        seq._offset = offset
        seq._limit = limit
        seq._cut = cut
        return seq

    @classmethod
    def of(cls, ar: AddrRange) -> AddrRangeSeq:
        """A sequence of one range, taken as it is: an ill-formed one has its wrapped length.

        Raises ValueError if the length does not fit 64 bits.
        """
        if ar.length > _MASK:
            raise ValueError(f"ar: length {ar.length:#x} does not fit 64 bits")
        seq = cls.__new__(cls)
        seq._flat = [ar.start, ar.length]
        seq._index = 0
        seq._offset = 0
        seq._limit = ar.length
        seq._cut = False
        return seq

    @classmethod
    def from_pairs(cls, flat: list[int]) -> AddrRangeSeq:
        """A sequence from ``[start, length, start, length, …]``, which it keeps. Raises as the constructor."""
        seq = cls.__new__(cls)
        seq._init_flat(flat)
        return seq

    def __len__(self) -> int:
        return (len(self._flat) - self._index) // 2

    def is_empty(self) -> bool:
        """Whether there are no ranges. A sequence of empty ranges is not empty."""
        return self._index == len(self._flat)

    @property
    def num_bytes(self) -> int:
        """The sum of the lengths, in bytes (as an int64: only ``of`` lets one past 2**63 - 1, and it is negative)."""
        return self._limit if self._limit <= _INT64_MAX else self._limit - (1 << 64)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """The (start, length) of each range, as plain ints."""
        if self._index or self._offset or self._cut:
            return self._window_pairs()
        flat_ints = iter(self._flat)
        return zip(flat_ints, flat_ints)  # noqa: B905 - strict costs 60 ns, and cannot fail: the list is even

    def _window_pairs(self) -> Iterator[tuple[int, int]]:
        flat = self._flat
        offset = self._offset
        left = self._limit
        for i in range(self._index, len(flat), 2):
            length = min(flat[i + 1] - offset, left)
            yield flat[i] + offset, length
            left -= length
            offset = 0

    def __iter__(self) -> Iterator[AddrRange]:
        for start, length in self.pairs():
            yield AddrRange(start, (start + length) & _MASK)

    def _head_length(self) -> int:
        i = self._index
        if i == len(self._flat) - 2:
            return self._limit
        return min(self._flat[i + 1] - self._offset, self._limit)

    def head(self) -> AddrRange:
        """The first range. Raises IndexError if there is none."""
        if self._index == len(self._flat):
            raise IndexError("head of an empty AddrRangeSeq")
        start = self._flat[self._index] + self._offset
        return AddrRange(start, (start + self._head_length()) & _MASK)

    def tail(self) -> AddrRangeSeq:
        """All ranges but the first. Raises IndexError if there is none."""
        if self._index == len(self._flat):
            raise IndexError("tail of an empty AddrRangeSeq")
        return self._window(self._index + 2, 0, self._limit - self._head_length(), self._cut)

    def drop_first(self, n: int) -> AddrRangeSeq:
        """The sequence without its first n bytes; an empty one if it has fewer.

        A head of zero length always goes, also for n = 0: ``while seq: seq = seq.drop_first(move(seq.head()))`` ends.
        Trailing empty ranges stay when n is exactly ``num_bytes``. Raises ValueError if n < 0.
        """
        n = _count(n)
        flat = self._flat
        index = self._index
        limit = self._limit
        if n > limit or index == len(flat):
            return EMPTY
        offset = self._offset
        last = len(flat) - 2
        if n == 0 and self._head_length() == 0:
            return self._window(index + 2, 0, limit, self._cut)
        limit -= n
        while n:
            length = n + limit if index == last else flat[index + 1] - offset
            if n < length:
                offset += n
                break
            n -= length
            index += 2
            offset = 0
        return self._window(index, offset, limit, self._cut)

    def take_first(self, n: int) -> AddrRangeSeq:
        """The sequence cut after n bytes. No range goes: those past the cut become empty at their start.

        Raises ValueError if n < 0.
        """
        n = _count(n)
        if n >= self._limit:
            return self
        return self._window(self._index, self._offset, n, True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AddrRangeSeq):
            return NotImplemented
        return list(self.pairs()) == list(other.pairs())

    def __hash__(self) -> int:
        return hash(tuple(self.pairs()))

    def __str__(self) -> str:
        return "[" + " ".join(map(str, self)) + "]"

    def __repr__(self) -> str:
        return f"<AddrRangeSeq {self}>"


def _count(n: int) -> int:
    try:
        n = operator.index(n)
    except TypeError:
        raise TypeError(f"n must be an int, not {type(n).__name__}") from None
    if n < 0:
        raise ValueError(f"n must not be negative: {n}")
    return n


EMPTY = AddrRangeSeq()
