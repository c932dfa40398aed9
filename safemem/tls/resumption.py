"""Resumption: session tickets that our reader has received, as an ``ssl.SSLSession`` to begin the next connection with.

Only OpenSSL can make one. The SSLObject that did the handshake gets each ticket in a record that is sealed here as the
server would have, under its first keys. No such record leaves the process.

Source: RFC 8446 sections 2.2 and 4.6.1; SSL_get1_session(3).
"""

from __future__ import annotations

import ssl

from safemem.block_seq import BlockSeq
from safemem.protocols import WriterFunc
from safemem.tls.errors import Alert, TLSError
from safemem.tls.keys import TrafficSecret
from safemem.tls.post_handshake import NewSessionTicket
from safemem.tls.record import MAX_CONTENT, MAX_RECORD, ContentType
from safemem.tls.writer import TLSWriter


class Resumption:
    """What a client keeps of a handshake to resume its session."""

    def __init__(self, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, theirs: TrafficSecret, engine_name: str) -> None:
        """``tls`` has just done its handshake, and reads from ``incoming``; ``theirs`` is the server's secret."""
        self._tls: ssl.SSLObject | None = tls
        self._incoming = incoming
        self._server = TLSWriter(WriterFunc(self._feed), theirs, buffer_size=MAX_RECORD, engine_name=engine_name)

    def _feed(self, srcs: BlockSeq) -> int:
        return self._incoming.write(srcs.tobytes())

    def add(self, ticket: NewSessionTicket) -> None:
        """Take a ticket. After close nothing is done. Raises TLSError for one that OpenSSL refuses."""
        if self._tls is None:
            return
        message = ticket.message()
        for at in range(0, len(message), MAX_CONTENT):
            self._server.write_record(ContentType.HANDSHAKE, message[at : at + MAX_CONTENT])
        try:
            self._tls.read(1)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as exc:
            raise TLSError(Alert.DECODE_ERROR, f"a session ticket that OpenSSL refuses ({exc.reason})") from exc

    def session(self) -> ssl.SSLSession | None:
        """The session with the ticket that came last; None without a ticket, and after close."""
        session = self._tls.session if self._tls is not None else None
        return session if session is not None and session.has_ticket else None

    def close(self) -> None:
        """Wipe the keys, and forget the session."""
        self._server.close()
        self._tls = None
