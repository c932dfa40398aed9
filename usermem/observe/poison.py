"""Poison: the pattern that buffers are filled with, so that bytes which were never stored are found again.

The pattern repeats every eight bytes and holds neither zeros nor text. Any four bytes of it begin one of its eight
rotations, so that a search is eight searches in C, whatever the alignment. Random bytes hold four of them by chance
once in 500 MB.

Padding is often shorter. Fewer bytes may be the handler's own that are equal by chance, but not again and again, since
each buffer begins with another byte of the pattern: see :class:`Short`.
"""

from __future__ import annotations

from typing import Final

_PATTERN: Final = b"\xf5\x9a\xd7\x8e\xb3\xc6\xe9\xbd"
_SHORTEST: Final = 4
_HEADS: Final = [(_PATTERN * 2)[turn : turn + _SHORTEST] for turn in range(8)]
_IS_ZERO: Final = b"\1" + bytes(255)
_MOST_BYTES: Final = 1024
_MOST_PLACES: Final = 1000


def poisoned(n: int, turn: int = 0) -> bytearray:
    """n bytes of poison, from byte ``turn`` of the pattern on."""
    return bytearray((_PATTERN * (n // 8 + 2))[turn : turn + n])


def find_poison(data: bytes | bytearray) -> tuple[int, int] | None:
    """The start and the end of the first run of at least four bytes of poison; None if there is none."""
    hits = [(at, turn) for turn, head in enumerate(_HEADS) if (at := data.find(head)) >= 0]
    if not hits:
        return None
    start, turn = min(hits)
    end = start
    while end < len(data) and data[end] == _PATTERN[(turn + end - start) % 8]:
        end += 1
    return start, end


class Short:
    """Runs of one to three bytes of poison: the same ones in two writes in turn from one place; a single one in four.

    Writes are looked at that have at most 1,024 bytes and begin where a buffer of the same system call begins.
    """

    def __init__(self) -> None:
        self._before: dict[object, list[bytes]] = {}  # by place: of the last writes, 1 for each byte that is poison

    def find(self, place: object, data: bytes | bytearray, turns: set[int]) -> tuple[int, int] | None:
        """The start and the end of the first such run of a write; None if there is none."""
        n = len(data)
        if n > _MOST_BYTES or (place not in self._before and len(self._before) >= _MOST_PLACES):
            return None
        word, equal = int.from_bytes(data), 0
        for turn in turns:
            equal |= int.from_bytes((word ^ int.from_bytes(poisoned(n, turn))).to_bytes(n).translate(_IS_ZERO))
        last = self._before[place] = [equal.to_bytes(n), *self._before.get(place, ())][:_SHORTEST]
        for writes, run in (2, b"\1\1"), (4, b"\1"):
            if len(last) >= writes and len(set(map(len, last[:writes]))) == 1:
                both = -1
                for each in last[:writes]:
                    both &= int.from_bytes(each)
                found = both.to_bytes(n)
                if (start := found.find(run)) >= 0:
                    return start, start + len(found[start:]) - len(found[start:].lstrip(b"\1"))
        return None
