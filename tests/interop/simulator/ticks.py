"""Ticks: the timer interrupt, which ends time slices."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Final, Self

from simulator.cpu import CPU

_SLICE: Final = 0.02


class Ticks:
    """Stops the engine that runs, fifty times a second, so that another task has its turn and Ctrl-C works.

    The only other host thread there is; it touches nothing of the guests'. (Unicorn's own ``timeout`` starts one for
    each emu_start, which takes 110 us, and its ``count`` makes it eleven times as slow.)
    """

    def __init__(self) -> None:
        self.over = False
        """Whether the slice has ended."""
        self.running: CPU | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin a slice."""
        self.over = False

    def __enter__(self) -> Self:
        self._end.clear()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        self.running = None

    def _tick(self) -> None:
        while not self._end.wait(_SLICE):
            self.over = True
            running = self.running
            if running is not None:
                running.stop()
