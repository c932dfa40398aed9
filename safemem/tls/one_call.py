"""OneCall: one call at a time on one direction of a stream, and none after one that left its place unknown.

A signal handler may raise between any two steps of a call: when a record has been decrypted and not yet counted, say.
Whatever goes on from there would give wrong data, or say that the peer's are not authentic.
"""

from __future__ import annotations

import threading

from safemem.tls.errors import StreamInterruptedError


class OneCall:
    """Who is alone may change the stream. A second call, of a thread, a callback or a handler, is refused."""

    torn = False
    """Whether what is under way, or was, has changed some of the stream's state and not yet all of it.

    A call sets it, and takes it back when it ends, but for an exception that it does not expect. It is False while the
    transport is asked: most interrupts come there, and lose nothing.
    """

    def __init__(self, what: str) -> None:
        """``what`` the calls do, for the error."""
        self._what = what
        self._lock = threading.Lock()

    def alone(self) -> threading.Lock:
        """What to be in a ``with`` of: Python takes it and gives it back without running a handler in between.

        Raises RuntimeError if another call is under way.
        """
        if self._lock.locked():
            raise RuntimeError(f"another {self._what} is under way")
        return self._lock

    def check(self) -> None:
        """Raise StreamInterruptedError if a call was torn. Be alone."""
        if self.torn:
            raise StreamInterruptedError(self._what)
