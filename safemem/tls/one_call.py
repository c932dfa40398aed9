"""OneCall: one call at a time on one direction of a stream, and none after one that left its place unknown.

A signal handler may raise between any two steps of a call: when a record has been decrypted and not yet counted, say.
Whatever goes on from there would give wrong data, or say that the peer's are not authentic.
"""

from __future__ import annotations

from safemem.fork import InUse, in_use_lock
from safemem.tls.errors import StreamInterruptedError


class OneCall:
    """Who is ``alone`` may change the stream: ``with call.alone:``. A second call is refused with a RuntimeError."""

    torn = False
    """Whether what is under way, or was, has changed some of the stream's state and not yet all of it.

    A call sets it, and takes it back when it ends, but for an exception that it does not expect. What comes out of the
    transport it does expect: most interrupts come there, and lose nothing.
    """

    def __init__(self, what: str) -> None:
        """``what`` the calls do, for the errors."""
        self._what = what
        self.alone: InUse = in_use_lock(f"another {what} is under way")

    def check(self) -> None:
        """Raise StreamInterruptedError if a call was torn. Be alone."""
        if self.torn:
            raise StreamInterruptedError(self._what)
