"""Tally and Progress: what a campaign has done so far, counted in each process and shown while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType

from usermem.testing.edges import Edge, Edges


class Tally:
    """Examples, edges taken and distinct failures of one process; it can be pickled and added to another's.

    Failures are distinct if their type or the line that raised differs: shrinking repeats a failure many times.
    """

    def __init__(self) -> None:
        """Nothing was done."""
        self.examples: int = 0
        self.edges: set[Edge] = set()
        self.failures: set[tuple[str, str, int]] = set()

    @contextmanager
    def example(self, edges: Edges | None = None) -> Iterator[None]:
        """Count what runs within as an example, with its edges if given. An Exception is a failure, and passes."""
        try:
            with nullcontext() if edges is None else edges:
                yield
        except Exception as error:
            self.failures.add((type(error).__name__, *_raised_at(error.__traceback__)))
            raise
        finally:
            self.examples += 1
            if edges is not None:
                self.edges |= edges.seen

    def add(self, other: Tally) -> None:
        """Add what another process did."""
        self.examples += other.examples
        self.edges |= other.edges
        self.failures |= other.failures


class Progress(Tally):
    """A tally that is shown on stderr: on a terminal one line that is renewed, else a line from time to time.

    To be entered around the campaign, whose last state is shown at the end. Under pytest ``-s`` lets it through. Where
    stderr is closed, or its reader is gone, the campaign goes on unseen.
    """

    def __init__(self, name: str, *, every: float | None = None) -> None:
        """Lines begin with ``name``. ``every`` is in seconds; by default 0.2 on a terminal, else 10."""
        super().__init__()
        self._name = name
        self._every = every
        self._start = self._shown = time.monotonic()
        self._seen = sys.stderr is not None

    def __enter__(self) -> Progress:
        """The time starts."""
        self._start = self._shown = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        """Show the last state, on a line that stays."""
        self._show(end="\n")

    @contextmanager
    def example(self, edges: Edges | None = None) -> Iterator[None]:
        """Count an example as :meth:`Tally.example` does, and show the state if it is time."""
        try:
            with super().example(edges):
                yield
        finally:
            self._show_if_due()

    def add(self, other: Tally) -> None:
        """Add what another process did, and show the state if it is time."""
        super().add(other)
        self._show_if_due()

    def __str__(self) -> str:
        """The state in one line."""
        seconds = time.monotonic() - self._start
        rate = self.examples / seconds if seconds else 0.0
        return (
            f"{self._name}: {self.examples} examples, {rate:.0f}/s, {len(self.edges)} edges, "
            f"{len(self.failures)} failures, {seconds:.0f} s"
        )

    def _show_if_due(self) -> None:
        if not self._seen:
            return
        terminal = sys.stderr.isatty()
        every = self._every if self._every is not None else 0.2 if terminal else 10
        if time.monotonic() - self._shown >= every:
            self._show(end="" if terminal else "\n")

    def _show(self, end: str) -> None:
        self._shown = time.monotonic()
        if self._seen:
            line = f"\r{self}\x1b[K" if sys.stderr.isatty() else str(self)
            try:
                print(line, end=end, file=sys.stderr, flush=True)
            except OSError:  # it must not come out in the place of an example's failure
                self._seen = False


def _raised_at(traceback: TracebackType | None) -> tuple[str, int]:
    """The function and line that raised."""
    if traceback is None:
        return "", 0
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_qualname, traceback.tb_lineno
