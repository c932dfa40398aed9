"""FreeList: which parts of a range nobody has."""

from __future__ import annotations

from typing import Final

_TRIES: Final = 8


class FreeList:
    """Free ranges of integers, neighbours joined. ``take`` looks at a few ranges of about the size: O(1).

    Whoever takes a range out of ``_ends`` has it, and that is one step. So a signal handler may come in at any line,
    and an interrupt may lose a range, but none is ever free twice. The other two tables may have starts that are stale.
    """

    __slots__ = ("_bins", "_ends", "_starts")

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}  # of each free range: start -> end
        self._starts: dict[int, int] = {}  # and end -> start
        self._bins: list[dict[int, None]] = [{} for _ in range(65)]  # the starts, by the bit length of the length

    def __len__(self) -> int:
        return len(self._ends)

    def give(self, start: int, end: int) -> None:
        """Add [start, end), which is not free yet, and join it with its neighbours."""
        after = self._ends.pop(end, None)
        if after is not None:
            self._bins[(after - end).bit_length()].pop(end, None)
            end = after
        before = self._starts.pop(start, None)
        if before is not None and (stop := self._ends.pop(before, None)) is not None:
            if stop == start:
                self._bins[(start - before).bit_length()].pop(before, None)
                start = before
            else:
                self._add(before, stop)
        self._add(start, end)

    def _add(self, start: int, end: int) -> None:
        self._starts[end] = start
        self._bins[(end - start).bit_length()][start] = None
        self._ends[start] = end

    def take(self, length: int) -> int | None:
        """The start of ``length`` free numbers, no longer free; None if no range is certain to be long enough."""
        for size in range(length.bit_length(), len(self._bins)):
            short: list[tuple[int, int]] = []
            # In the first bin a range may be too short: a few are tried, for the search must not be O(n).
            while len(short) < _TRIES and (found := self._claim(size)) is not None:
                start, end = found
                if end - start >= length:
                    break
                short.append(found)
            else:
                found = None
            for start, end in short:
                self._add(start, end)
            if found is not None:
                start, end = found
                if end - start > length:
                    self._add(start + length, end)
                return start
        return None

    def _claim(self, size: int) -> tuple[int, int] | None:
        """A range of a bin, no longer free; None if it has none."""
        while True:
            try:
                start, _ = self._bins[size].popitem()
            except KeyError:
                return None
            end = self._ends.pop(start, None)
            if end is not None:
                return start, end
