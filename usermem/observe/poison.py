"""Poison: the pattern that buffers are filled with, so that bytes which were never stored are found again.

The pattern repeats every eight bytes and holds neither zeros nor text. Any four bytes of it begin one of its eight
rotations, so that a search is eight searches in C, whatever the alignment. Random bytes hold four of them by chance
once in 500 MB.
"""

from __future__ import annotations

from typing import Final

_PATTERN: Final = b"\xf5\x9a\xd7\x8e\xb3\xc6\xe9\xbd"
_SHORTEST: Final = 4
_HEADS: Final = [(_PATTERN * 2)[turn : turn + _SHORTEST] for turn in range(8)]


def poisoned(n: int) -> bytearray:
    """n bytes of poison."""
    return bytearray((_PATTERN * (n // 8 + 1))[:n])


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
