"""RawStream: what our raw file objects share, so that an error after some bytes loses none of them."""

from __future__ import annotations

import io

from safemem.errors import is_interrupt

_READALL = 1 << 16


class RawStream(io.RawIOBase):
    """A raw file object that gives a short count now and the error at the next call, as io.RawIOBase has it."""

    _error: BaseException | None = None

    def _begin(self) -> None:
        """Called by every read and write first. Raises ValueError if the file is closed, and an error that was held."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _hold(self, error: BaseException) -> None:
        """Keep an error for the next call, without its traceback, which would keep the caller's buffer exported."""
        self._error = error.with_traceback(None)

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
