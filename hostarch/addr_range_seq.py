"""AddrRangeSeq: an immutable sequence of address ranges, as an iovec array describes it.

Ranges of zero length are kept, because bounds checks and order depend on them. A sequence is a window on a shared
list of plain ints: dropping from the front moves an index, so walking n ranges costs O(n) in all.

Source: gVisor pkg/hostarch/addr_range_seq_unsafe.go. One difference: ``drop_first`` passes a head that is empty
because ``take_first`` cut it, as gVisor's comment says and its code does not (there, a copy over such a sequence
never ends).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hostarch.addr_range import AddrRange
from hostarch.integers import check_count, check_int

_MASK = (1 << 64) - 1
_INT64_MAX = (1 << 63) - 1
_new = object.__new__


class AddrRangeSeq:
    """An immutable sequence of :class:`AddrRange`.

    ``len(seq)`` is the number of ranges, ``seq.num_bytes`` the number of bytes: a sequence of empty ranges is true,
    and has 0 bytes. Sequences are equal if the same ranges are visible; one that was cut by ``take_first`` still keeps
    an empty rest of a range that ``drop_first`` stops in.
    """

    __slots__ = ("_limit", "flat", "window")

    flat: list[int]
    """``[start, length, start, length, …]``, never changed once it is here."""
    window: tuple[int, int] | None
    """None where all of ``flat`` is visible, as nearly always. Else where the first visible range is in it, and how
    many bytes of that are gone."""
    _limit: int  # so many bytes are visible

    def __init__(self, ranges: Iterable[AddrRange] = ()) -> None:
        """Raises ValueError if a length (an ill-formed range's wraps), or their sum, exceeds 2**63 - 1."""
        self.flat = [x for ar in ranges for x in (ar.start, ar.length)]
        self._limit = _num_bytes(self.flat)
        self.window = None

    def _cut(self, index: int, offset: int, limit: int) -> AddrRangeSeq:
        seq = AddrRangeSeq.__new__(AddrRangeSeq)
        seq.flat = self.flat
        seq._limit = limit
        seq.window = (index, offset)
        return seq

    @classmethod
    def of(cls, ar: AddrRange) -> AddrRangeSeq:
        """A sequence of one range, taken as it is: an ill-formed one has its wrapped length.

        Raises ValueError if the length does not fit 64 bits.
        """
        if ar.length > _MASK:
            raise ValueError(f"ar: length {ar.length:#x} does not fit 64 bits")
        return cls.unchecked([ar.start, ar.length], ar.length)

    @classmethod
    def from_pairs(cls, flat: list[int]) -> AddrRangeSeq:
        """A sequence from ``[start, length, start, length, …]``, which it keeps. Raises as the constructor."""
        for x in flat:
            if type(x) is not int:
                flat = [check_int(x, "ranges") for x in flat]
                break
        return cls.unchecked(flat, _num_bytes(flat))

    @staticmethod
    def unchecked(flat: list[int], num_bytes: int) -> AddrRangeSeq:
        """As :meth:`from_pairs`, where the caller knows that the lengths are right and add up to ``num_bytes``."""
        seq = _new(AddrRangeSeq)
        seq.flat = flat
        seq._limit = num_bytes
        seq.window = None
        return seq

    def __len__(self) -> int:
        return (len(self.flat) - self._start()[0]) // 2

    def _start(self) -> tuple[int, int]:
        """The index of the first visible range, and how many of its bytes are gone."""
        return self.window or (0, 0)

    def is_empty(self) -> bool:
        """Whether there are no ranges. A sequence of empty ranges is not empty."""
        return self._start()[0] == len(self.flat)

    @property
    def num_bytes(self) -> int:
        """The sum of the lengths, in bytes (as an int64: only ``of`` lets one past 2**63 - 1, and it is negative)."""
        limit = self._limit
        return limit if limit <= _INT64_MAX else limit - (1 << 64)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """The (start, length) of each range, as plain ints."""
        if self.window is not None:
            return self._window_pairs(*self.window)
        if len(self.flat) == 2:  # as in read(2): half the time of what follows
            return iter([(self.flat[0], self.flat[1])])
        flat_ints = iter(self.flat)
        return zip(flat_ints, flat_ints)  # noqa: B905 - strict costs 60 ns, and cannot fail: the list is even

    def _window_pairs(self, index: int, offset: int) -> Iterator[tuple[int, int]]:
        flat = self.flat
        left = self._limit
        for i in range(index, len(flat), 2):
            length = min(flat[i + 1] - offset, left)
            yield flat[i] + offset, length
            left -= length
            offset = 0

    def __iter__(self) -> Iterator[AddrRange]:
        for start, length in self.pairs():
            yield AddrRange(start, (start + length) & _MASK)

    def _head_length(self) -> int:
        index, offset = self._start()
        if index == len(self.flat) - 2:
            return self._limit
        return min(self.flat[index + 1] - offset, self._limit)

    def head(self) -> AddrRange:
        """The first range. Raises IndexError if there is none."""
        if self.is_empty():
            raise IndexError("head of an empty AddrRangeSeq")
        index, offset = self._start()
        start = self.flat[index] + offset
        return AddrRange(start, (start + self._head_length()) & _MASK)

    def tail(self) -> AddrRangeSeq:
        """All ranges but the first. Raises IndexError if there is none."""
        if self.is_empty():
            raise IndexError("tail of an empty AddrRangeSeq")
        return self._cut(self._start()[0] + 2, 0, self._limit - self._head_length())

    def drop_first(self, n: int) -> AddrRangeSeq:
        """The sequence without its first n bytes; an empty one if it has fewer.

        A head of zero length always goes, also for n = 0: ``while seq: seq = seq.drop_first(move(seq.head()))`` ends.
        Trailing empty ranges stay when n is exactly ``num_bytes``. Raises ValueError if n < 0.
        """
        n = check_count(n, "n")
        flat = self.flat
        index, offset = self._start()
        limit = self._limit
        if n > limit or index == len(flat):
            return EMPTY
        last = len(flat) - 2
        if n == 0 and self._head_length() == 0:
            return self._cut(index + 2, 0, limit)
        limit -= n
        while n:
            length = n + limit if index == last else flat[index + 1] - offset
            if n < length:
                offset += n
                break
            n -= length
            index += 2
            offset = 0
        return self._cut(index, offset, limit)

    def take_first(self, n: int) -> AddrRangeSeq:
        """The sequence cut after n bytes. No range goes: those past the cut become empty at their start.

        Raises ValueError if n < 0.
        """
        n = check_count(n, "n")
        return self if n >= self._limit else self._cut(*self._start(), n)

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


def _num_bytes(flat: list[int]) -> int:
    """The sum of the lengths. Raises ValueError if one of them, or the sum, is none."""
    if len(flat) % 2:
        raise ValueError("ranges: a start without a length at the end")
    total = 0
    for length in flat[1::2]:
        if not 0 <= length <= _INT64_MAX:
            start = flat[flat[1::2].index(length) * 2]
            raise ValueError(f"ranges: length {length:#x} of the range at {start:#x} overflows int64")
        total += length
    if total > _INT64_MAX:
        raise ValueError(f"ranges: total length {total:#x} overflows int64")
    return total


EMPTY = AddrRangeSeq()
