"""Batches that are used again by one call after another, each by one at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress

from safemem.block_seq import EMPTY
from safemem.datagram.batch import MessageBatch


class SpareBatches:
    """Batches that are not in use. ``any`` is one of them, for its limits."""

    def __init__(self, make: Callable[[], MessageBatch]) -> None:
        self._make = make
        self.any: MessageBatch = make()
        self._free = deque([self.any])

    def take(self) -> MessageBatch:
        """One that nobody else uses."""
        with suppress(IndexError):
            return self._free.pop()
        return self._make()

    def give(self, batch: MessageBatch) -> None:
        """Have it used again."""
        self._free.append(batch)

    def drop(self) -> None:
        """Let the memory of those that are not in use go."""
        for batch in [*self._free]:
            with suppress(RuntimeError):  # in use by now
                batch.bind_ring([EMPTY], 0)
