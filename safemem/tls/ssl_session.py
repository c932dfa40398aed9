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

from safemem.fork import fork_safe_lock, in_use_lock
from safemem.protocols import Writer
from safemem.tls.one_call import OneCall
from safemem.tls.outbox import Outbox

if TYPE_CHECKING:
    import socket

BULK = 1 << 18
"""How many bytes of ciphertext are moved at a time."""


def wrap_memory(
    context: ssl.SSLContext, server_hostname: str | None, server_side: bool, session: ssl.SSLSession | None
) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """``SSLContext.wrap_bio``: the SSLObject, and what it reads from and writes to.

    Raises ValueError for a missing name as ``SSLContext.wrap_socket`` does: ``wrap_bio`` would check none.
    """
    if context.check_hostname and not server_side and not server_hostname:
        raise ValueError("server_hostname is missing, and the context checks it (SSLContext.check_hostname)")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return context.wrap_bio(incoming, outgoing, server_side, server_hostname, session), incoming, outgoing


def last_flight(tls: ssl.SSLObject) -> AbstractContextManager[None]:
    """Send in a ``with`` what a handshake has left at its end.

    A TLS 1.3 server's are tickets: that the peer has gone meanwhile is no error yet (OpenSSL's conn_is_closed()).
    """
    if tls.server_side and tls.version() == "TLSv1.3":
        return suppress(BrokenPipeError, ConnectionResetError)
    return nullcontext()


class SSLSession(Outbox):
    """What is encrypted goes to the sink. ``early`` was decrypted before it was asked for, and is read first.

    ``taken`` is how many bytes of data a write has had encrypted, or has left waiting for that.
    """

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
        self.lock: threading.RLock = fork_safe_lock()
        self.reading: OneCall = OneCall("read")
        self.early: bytes = b""
        self.taken: int = 0
        self._owed = b""
        self._sending = in_use_lock("another write is under way", waits=True)
        self._view = memoryview(b"")  # read from ``outgoing``, and not sent yet

    def waiting(self) -> memoryview:
        if not self._view:
            with self.lock:
                self._view = memoryview(self.outgoing.read(BULK))
        return self._view

    def sent(self, n: int) -> None:
        self._view = self._view[n:]

    def unsent(self) -> int:
        """How many bytes wait for the transport: of ciphertext, and of data that will be encrypted."""
        with self.lock:
            return len(self._view) + self.outgoing.pending + len(self._owed)

    def unread(self) -> int:
        """How many decrypted bytes wait. The lock must be held."""
        return len(self.early) + self.tls.pending()

    def take_early(self, target: memoryview) -> int:
        """Move early bytes to the start of the target; returns how many. The lock must be held."""
        n = min(len(self.early), len(target))
        target[:n], self.early = self.early[:n], self.early[n:]
        return n

    def encrypt(self, data: memoryview) -> None:
        """Encrypt data for the peer, and count them in ``taken``.

        While the peer wants another handshake (TLS 1.2's renegotiation) they wait for its end: see :meth:`push`.
        """
        with self.lock:
            taken = self.taken + len(data)
            owed = self._owed + data if self._owed else b""
            self.call.torn = True
            try:
                if not owed:
                    self.tls.write(data)
            except ssl.SSLWantReadError:
                owed = bytes(data)
            except ssl.SSLError:
                self.call.torn = False
                raise
            self._owed, self.taken, self.call.torn = owed, taken, False

    def push(self) -> bool:
        """As Outbox.push, with what waits for a handshake's end encrypted first, if it has come."""
        with self.lock:
            self.call.check()
            if self._owed:
                self.call.torn = True
                try:
                    self.tls.write(self._owed)
                    self._owed = b""
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError:
                    self.call.torn = False
                    raise
                self.call.torn = False
        return super().push() and not self._owed

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Have the sending to oneself in a ``with``, and then send what has come up meanwhile.

        Another thread waits its turn; a call in the middle of one, a signal handler's say, raises RuntimeError.
        """
        with self._sending:
            yield
        if not self._view:
            self.answer()

    def answer(self) -> None:
        """Send what the peer's messages call for, unless somebody is sending. An error waits for the next write.

        The reader must not wait here for a large write to go: the peer may be waiting for the reader.
        """
        while self._held is None and not self.call.torn and self.unsent() and not self._sending.mine():
            taken: list[bool] = []
            try:
                taken.extend(map(self._sending.acquire, (False,)))  # one step: an interrupt finds it taken, or not
                if not taken[0] or not self.push_or_hold():
                    break
            finally:
                if taken and taken[0]:
                    self._sending.release()

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Have nothing in the SSLObject, in a ``with``, that the peer has sent. The lock must be held.

        While it sends a close_notify it looks for the peer's, and data in its way would be an error for good.
        """
        whole = False
        try:
            while True:
                n = self.tls.pending()
                if not n:
                    break
                self.early += self.tls.read(n)
            encrypted = self.incoming.read()
            try:
                yield
            finally:
                self.incoming.write(encrypted)
                whole = True
        finally:
            if not whole:  # an interrupt between what was taken out and its place: the read has lost it
                self.reading.torn = True
