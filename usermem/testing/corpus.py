"""Bytes as operations and back, so that any byte-oriented fuzzer drives a simulator.

``Codec(layout.edges).decode(data)`` is a list of :mod:`usermem.testing.operations` for any bytes at all, and ``encode``
writes such a list, a seed for the fuzzer, as bytes that decode to it. No byte is refused, and none of random bytes asks
for much memory.

Fuzzers change, insert and remove a few bytes at a time, and learn from what that changes. So the format finds its place
again after each change, as MIDI and UTF-8 do::

    0xe1 … 0xff   begins an operation: which kind, and whether it ignores permissions
    0xe0 x        an operand byte that is itself 0xe0 … 0xff: 0xe0 | x & 0x1f
    other bytes   operands of the operation before them; before the first operation they are skipped

Operands that are missing are 0, and what is left over is skipped. A byte that is changed, inserted or removed therefore
changes the operation it lies in, splits it in two, or joins it to the one before: all other operations stay. Operands
are small where guests' are: an address is an edge and a distance of up to 128 bytes, a length one byte if it is below
192 or near one to four pages.

What bytes mean depends on the edges and on the machine, and may change with the version of this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from attrs import fields

from hostarch import AMD64, AddrRangeSeq, Arch
from usermem.testing.operations import (
    KINDS,
    Operation,
    StreamError,
    StreamOSError,
    Temper,
    stream_fault,
    stream_host_fault,
)

MAX_COUNT: Final = (1 << 24) - 1
"""The largest count of bytes that an operation's buffer, reader or writer may have."""

_ESCAPE, _FIRST = 0xE0, 0xE1
_RECORD = re.compile(rb"[\xe1-\xff][^\xe1-\xff]*")
_ESCAPED = re.compile(rb"\xe0(.?)", re.DOTALL)
_TO_ESCAPE = re.compile(rb"[\xe0-\xff]")

_KINDS = tuple(kind for kinds in KINDS.values() for kind in kinds)  # at most 15: two of 31 codes each
_ERRORS = (None, StreamError, StreamOSError, stream_fault, stream_host_fault, BlockingIOError)
_FORMS = {
    "addr": "address",
    "ars": "ranges",
    "maxlen": "count",
    "n": "count",
    "new": "word",
    "old": "optional_word",
    "reader": "temper",
    "src": "rest",
    "writer": "temper",
}
_OPERANDS = {
    kind: tuple((a.name, _FORMS[a.name]) for a in fields(kind) if a.name != "ignore_permissions") for kind in _KINDS
}

# The first byte of an address: an edge, a limit of the machine, or eight bytes that follow (with _LITERAL, sixteen).
_LIMITS, _ABSOLUTE = 0xA0, 0xC8
# The first byte of a count or a length: itself, a distance from one to four pages, or bytes that follow.
_PAGES, _LITERAL = 0xC0, 0xE0
_FEW_RANGES = 6
_INT64_MAX = (1 << 63) - 1
_WORD = (1 << 64) - 1


def _signed(distance: int) -> int:
    """0, -1, 1, -2, 2, … for 0, 1, 2, 3, 4, …"""
    return -(distance + 1) // 2 if distance & 1 else distance // 2


class Codec:
    """Decodes bytes to operations and encodes them, for a guest with these edges (``Layout.edges``).

    Addresses near one of the first 160 edges, by default near the first page that can be mapped, take two bytes.
    """

    def __init__(self, near: Iterable[int] = (), *, arch: Arch = AMD64) -> None:
        """Raises nothing of its own."""
        limits = (arch.min_addr, arch.max_addr, 0, arch.addr_mask, 1 << 63, _WORD)
        self._edges = tuple(near)[:_LIMITS] or (arch.page_round_up(arch.min_addr),)
        self._limits = limits
        self._page = arch.page_size
        self._codes = {
            addr: code
            for start, addrs in ((_LIMITS, limits), (0, self._edges))
            for code, addr in enumerate(addrs, start)
        }

    def decode(self, data: bytes) -> list[Operation]:
        """The operations that the bytes say. Takes any bytes."""
        return [self._operation(record) for record in _RECORD.findall(data)]

    def encode(self, operations: Iterable[Operation]) -> bytes:
        """Bytes that decode to equal operations.

        Raises ValueError for an operation that has no encoding: one of another class than those of ``KINDS``, a count
        above ``MAX_COUNT``, an address or a length that is no 64-bit word, a reader's error of the caller's own.
        """
        return b"".join(map(self._record, operations))

    def _operation(self, record: bytes) -> Operation:
        code = record[0] - _FIRST
        data = record[1:]
        if _ESCAPE in data:
            data = _ESCAPED.sub(lambda found: bytes(_ESCAPE | x & 0x1F for x in found[1]), data)
        kind = _KINDS[code % len(_KINDS)]
        taken = _Taker(self._edges, self._limits, self._page, data)
        operands = {name: getattr(taken, form)() for name, form in _OPERANDS[kind]}
        return kind(**operands, ignore_permissions=code // len(_KINDS) == 1)

    def _record(self, operation: Operation) -> bytes:
        kind = type(operation)
        if kind not in _OPERANDS:
            raise ValueError(f"{operation} has no encoding: not of a class in KINDS")
        put = _Putter(self._codes, self._page)
        for name, form in _OPERANDS[kind]:
            try:
                getattr(put, form)(getattr(operation, name))
            except (OverflowError, ValueError) as exc:
                raise ValueError(f"{operation} has no encoding: {name}: {exc}") from None
        code = _FIRST + _KINDS.index(kind) + len(_KINDS) * operation.ignore_permissions
        return bytes((code,)) + _TO_ESCAPE.sub(lambda found: bytes((_ESCAPE, found[0][0] & 0x1F)), bytes(put.data))


class _Taker:
    """Operands out of a record's bytes; what is missing is 0."""

    def __init__(self, edges: tuple[int, ...], limits: tuple[int, ...], page: int, data: bytes) -> None:
        self._edges = edges
        self._limits = limits
        self._page = page
        self._data = data
        self._at = 0

    def uint(self, size: int) -> int:
        at = self._at
        self._at = at + size
        return int.from_bytes(self._data[at : at + size], "little")

    def address(self) -> int:
        code = self.uint(1)
        if code >= _LITERAL:
            self._at += 16
            return int.from_bytes(self._data[self._at - 16 : self._at], "little", signed=True)
        if code >= _ABSOLUTE:
            return self.uint(8)
        addrs, code = (self._edges, code) if code < _LIMITS else (self._limits, code - _LIMITS)
        distance = self.uint(1)
        return max(0, min(addrs[code % len(addrs)] + _signed(distance), _WORD))

    def count(self, literal: int = 3) -> int:
        code = self.uint(1)
        if code >= _LITERAL:
            return self.uint(literal)
        if code < _PAGES:
            return code
        pages, distance = divmod(code - _PAGES, 8)
        return (pages + 1) * self._page + distance - 4

    def ranges(self) -> AddrRangeSeq:
        code = self.uint(1)
        count = code % _FEW_RANGES if code < _LITERAL else self.uint(3)
        flat, left = [], _INT64_MAX
        for _ in range(min(count, len(self._data) - self._at)):
            flat += [self.address(), min(self.count(literal=8), left)]
            left -= flat[-1]
        return AddrRangeSeq.from_pairs(flat)

    def temper(self) -> Temper:
        code = self.uint(1)
        error = _ERRORS[code % len(_ERRORS)]
        message, some = code // len(_ERRORS) & 1, code // len(_ERRORS) & 2
        return Temper(self.count() if some else None, error, bool(message))

    def word(self) -> int:
        return self.uint(4)

    def optional_word(self) -> int | None:
        return self.word() if self.uint(1) & 1 else None

    def rest(self) -> bytes:
        return self._data[self._at :]


class _Putter:
    """The same forms, written: each method puts what the _Taker's of that name takes."""

    def __init__(self, codes: dict[int, int], page: int) -> None:
        self._codes = codes
        self._page = page
        self.data = bytearray()

    def uint(self, value: int, size: int) -> None:
        self.data += value.to_bytes(size, "little")

    def address(self, addr: int) -> None:
        if not 0 <= addr <= _WORD:  # no guest's word, but where a range goes on that was cut
            self.data.append(_LITERAL)
            self.data += addr.to_bytes(16, "little", signed=True)
            return
        for distance in range(256):
            code = self._codes.get(addr - _signed(distance))
            if code is not None:
                self.data += bytes((code, distance))
                return
        self.data.append(_ABSOLUTE)
        self.uint(addr, 8)

    def count(self, n: int, literal: int = 3) -> None:
        pages, distance = divmod(n + 4, self._page)
        if 0 <= n < _PAGES:
            self.data.append(n)
        elif 1 <= pages <= 4 and distance < 8:
            self.data.append(_PAGES + (pages - 1) * 8 + distance)
        else:
            self.data.append(_LITERAL)
            self.uint(n, literal)

    def ranges(self, ars: AddrRangeSeq) -> None:
        if not 0 <= sum(length for _, length in ars.pairs()) <= _INT64_MAX:
            raise ValueError("more bytes than an int64 counts")
        if len(ars) < _FEW_RANGES:
            self.data.append(len(ars))
        else:
            self.data.append(_LITERAL)
            self.uint(len(ars), 3)
        for start, length in ars.pairs():
            self.address(start)
            self.count(length, literal=8)

    def temper(self, temper: Temper) -> None:
        if temper.error not in _ERRORS:
            raise ValueError(f"{temper.error} is no error of usermem.testing.operations")
        some = temper.most is not None
        self.data.append(_ERRORS.index(temper.error) + len(_ERRORS) * (temper.message + 2 * some))
        if temper.most is not None:
            self.count(temper.most)

    def word(self, value: int) -> None:
        self.uint(value, 4)

    def optional_word(self, value: int | None) -> None:
        self.data.append(value is not None)
        if value is not None:
            self.word(value)

    def rest(self, data: bytes) -> None:
        self.data += data
