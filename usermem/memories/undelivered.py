"""Undelivered: what Readers have given and a memory could not store, until the same Reader is used again."""

from __future__ import annotations

import weakref
from typing import Any

from safemem import BlockSeq, Reader
from safemem.errors import add_transferred, is_interrupt, moved_count


class Given:
    """Bytes that a Reader gave, and the error that it raised along with them, which comes when they are delivered."""

    __slots__ = ("data", "error")

    def __init__(self, data: memoryview, error: BaseException | None) -> None:
        self.data: memoryview = data
        self.error: BaseException | None = error


class Undelivered:
    """For each Reader what it gave, in order. A Reader that is gone takes its bytes along."""

    def __init__(self) -> None:
        self._given: dict[int, tuple[Any, Given]] = {}

    def take(self, reader: Reader, dsts: BlockSeq) -> Given:
        """What is kept of a Reader, and no longer here then; else what it gives now for dsts, which is one buffer."""
        _, given = self._given.pop(id(reader), (None, None))
        if given is not None:
            return given
        (data,) = dsts.views()
        try:
            n = moved_count(reader.read_to_blocks(dsts), len(data), "the reader")
        except BaseException as exc:
            n = moved_count(getattr(exc, "transferred", 0), len(data), "the reader's error")
            return Given(data[:n], exc)
        return Given(data[:n], None)

    def keep(self, reader: Reader, data: memoryview, error: BaseException | None, delivered: int) -> None:
        """Keep bytes that come before all that the Reader gives from now on.

        Its error is kept with them, but for would-block, which tells what was so at that moment. An interrupt is raised
        at once, with how many bytes were ``delivered``.
        """
        key = id(reader)
        interrupt: BaseException | None = None
        if error is not None:
            add_transferred(error, -getattr(error, "transferred", 0))
            if is_interrupt(error):
                interrupt, error = error, None
            elif isinstance(error, BlockingIOError):
                error = None
            else:
                error = error.with_traceback(None)
        if data or error is not None:
            if not data.readonly:  # the Reader's buffer; what was kept before need not be copied again
                data = memoryview(data.tobytes())
            self._given[key] = self._holder(reader), Given(data, error)
        if interrupt is not None:
            add_transferred(interrupt, delivered)
            try:
                raise interrupt
            finally:
                del error, interrupt

    def _holder(self, reader: Reader) -> Any:
        """A reference to a Reader: a weak one, unless it has slots without __weakref__."""
        key, ours = id(reader), weakref.ref(self)  # a strong one would be a cycle, which keeps the bytes

        def gone(_: object) -> None:
            undelivered = ours()
            if undelivered is not None:
                undelivered._given.pop(key, None)

        try:
            return weakref.ref(reader, gone)
        except TypeError:
            return reader
