"""Internal: what the tools for people write on a terminal and leave out of a pipe: colour, and progress."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Final, Self

BOLD: Final = "1"
RED: Final = "31"
GREEN: Final = "32"
_QUIET: Final = 0.5  # seconds: work that is done by then shows nothing
_BETWEEN: Final = 0.1


def has_colour() -> bool:
    """Whether the standard output is a terminal that knows colours, and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, code: str) -> str:
    """The text in a colour, by the number of its escape sequence."""
    return f"\x1b[{code}m{text}\x1b[0m"


class Progress:
    """A line on the standard error that shows how far long work is, and is erased when the work ends.

    Shows nothing where the standard error is no terminal, nor for work that takes less than half a second.
    Call it with how much of ``total`` is done.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._shows = sys.stderr.isatty()
        self._next = time.monotonic() + _QUIET
        self._width = 0

    def __call__(self, done: int) -> None:
        """Show how much is done, ten times a second at the most."""
        if not self._shows or (now := time.monotonic()) < self._next:
            return
        self._next = now + _BETWEEN
        line = f"   {self._what}: {done / self._total if self._total else 1:.0%}"
        self._write(line.ljust(self._width))
        self._width = len(line)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Erase the line."""
        if self._width:
            self._write(" " * self._width + "\r")

    def _write(self, line: str) -> None:
        sys.stderr.write(f"\r{line}")
        sys.stderr.flush()
