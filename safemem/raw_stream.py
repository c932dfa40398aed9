"""RawStream: what our raw file objects share, so that no byte is lost and no error swallowed whoever uses them.

An io.RawIOBase says how much it moved, and raises an error that stops it at the next call. Its users differ:

- Who reads looks at the count, so a read gives a short count first. But ``io.BufferedReader.read`` and ``readline``
  ask again within the same call, and drop what they have if that raises. Such a call gets None (nothing now), upon
  which they return what they have; their next call meets the error.
- Who writes mostly ignores the count: shutil.copyfileobj, pickle, zipfile, gzip. So a write that is stopped raises at
  once and has the count in ``transferred``; the position is where it stopped. Only io's buffered writers, which keep
  what was not taken, get a short count first: they would write the first part twice.

Two facts about CPython's Modules/_io/bufferedio.c tell who asks: its views have no exporter (``obj`` is None), and each
of its calls fetches ``closed`` of the raw file once, before anything else. Where these do not hold, a buffered file
loses what it had read in the call that raises.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from safemem.errors import is_interrupt

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_READALL = 1 << 16


def is_buffered(buffer: ReadableBuffer) -> bool:
    """Whether a buffer was handed over by one of io's buffered files."""
    return type(buffer) is memoryview and buffer.obj is None


class RawStream(io.RawIOBase):
    """A raw file object over memory or a stream: the rules are those at the top of this module."""

    _error: BaseException | None = None
    _closed = False
    _midway = False  # a buffered file has bytes of ours that it read in the call which it is in

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        self._midway = False
        return self._closed

    def close(self) -> None:
        """Close the file: reads and writes raise ValueError from then on. What lies below stays open."""
        try:
            super().close()
        finally:
            self._closed = True

    def _begin(self) -> None:
        """Called by every read and write first. Raises ValueError if the file is closed."""
        if self._closed:
            raise ValueError("I/O operation on closed file")

    def _hold(self, error: BaseException) -> None:
        """Keep an error for the next call, without its traceback, which would keep the caller's buffer exported."""
        self._error = error.with_traceback(None)

    def _raise_held(self) -> None:
        """Raise an error that was held, once."""
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error

    def readall(self) -> bytes | None:  # type: ignore[override]  # typeshed leaves out the None of non-blocking files
        """All bytes up to the end or to an error, which the next call raises; None if nothing is there now.

        Raises the error if there is no byte before it.
        """
        parts: list[bytes] = []
        while True:
            buffer = bytearray(_READALL)
            try:
                n = self.readinto(buffer)
            except Exception as exc:
                if not parts or is_interrupt(exc):
                    raise
                self._hold(exc)
                return b"".join(parts)
            if not n:
                return None if n is None and not parts else b"".join(parts)
            parts.append(bytes(buffer[:n]))
