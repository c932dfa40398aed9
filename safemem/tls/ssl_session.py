"""SSLSession: an ``ssl.SSLObject`` and its two BIOs, as its reader and its writer share them.

``lock`` is held whenever the SSLObject or a BIO is used, and never while the transport is. The reader sends, too: the
answers that the peer's messages call for, unless a write is under way, which sends them then.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from safemem.fork import fork_safe_lock
from safemem.protocols import Writer
from safemem.tls.outbox import Outbox

if TYPE_CHECKING:
    import socket

BULK = 1 << 18
"""How many bytes of ciphertext are moved at a time."""


def wrap_memory(
    context: ssl.SSLContext, server_hostname: str | None, server_side: bool
) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """``SSLContext.wrap_bio``: the SSLObject, and what it reads from and writes to.

    Raises ValueError for a missing name as ``SSLContext.wrap_socket`` does: ``wrap_bio`` would check none.
    """
    if context.check_hostname and not server_side and not server_hostname:
        raise ValueError("server_hostname is missing, and the context checks it (SSLContext.check_hostname)")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return context.wrap_bio(incoming, outgoing, server_side, server_hostname), incoming, outgoing


def last_flight(tls: ssl.SSLObject) -> AbstractContextManager[None]:
    """Send in a ``with`` what a handshake has left at its end.

    A TLS 1.3 server's are tickets: that the peer has gone meanwhile is no error yet (OpenSSL's conn_is_closed()).
    """
    if tls.server_side and tls.version() == "TLSv1.3":
        return suppress(BrokenPipeError, ConnectionResetError)
    return nullcontext()


class SSLSession(Outbox):
    """What is encrypted goes to the sink. ``early`` was decrypted before it was asked for, and is read first."""

    def __init__(
        self,
        sink: socket.socket | int | Writer,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        """``incoming`` and ``outgoing`` are the SSLObject's. Raises as :class:`Outbox`."""
        super().__init__(sink)
        self.tls = tls
        self.incoming = incoming
        self.outgoing = outgoing
        self.lock = fork_safe_lock()
        self.early = b""
        self._sending = threading.Lock()
        self._view = memoryview(b"")  # read from ``outgoing``, and not sent yet

    def waiting(self) -> memoryview:
        if not self._view:
            with self.lock:
                self._view = memoryview(self.outgoing.read(BULK))
        return self._view

    def sent(self, n: int) -> None:
        self._view = self._view[n:]

    def unsent(self) -> int:
        """How many bytes of ciphertext wait for the transport."""
        with self.lock:
            return len(self._view) + self.outgoing.pending

    def unread(self) -> int:
        """How many decrypted bytes wait. The lock must be held."""
        return len(self.early) + self.tls.pending()

    def take_early(self, target: memoryview) -> int:
        """Move early bytes to the start of the target; returns how many. The lock must be held."""
        n = min(len(self.early), len(target))
        target[:n], self.early = self.early[:n], self.early[n:]
        return n

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Have the sending to oneself in a ``with``, and then send what has come up meanwhile."""
        with self._sending:
            yield
        if not self._view:
            self.answer()

    def answer(self) -> None:
        """Send what the peer's messages call for, unless somebody is sending. An error waits for the next write.

        The reader must not wait here for a large write to go: the peer may be waiting for the reader.
        """
        while self._held is None and self.unsent() and self._sending.acquire(blocking=False):
            try:
                if not self.push_or_hold():
                    break
            finally:
                self._sending.release()

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Have nothing in the SSLObject, in a ``with``, that the peer has sent. The lock must be held.

        While it sends a close_notify it looks for the peer's, and data in its way would be an error for good.
        """
        while n := self.tls.pending():
            self.early += self.tls.read(n)
        encrypted = self.incoming.read()
        try:
            yield
        finally:
            self.incoming.write(encrypted)
