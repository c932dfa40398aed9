"""handshake: the standard library's ssl does the handshake and checks the certificates; the records are ours then.

The handshake runs over memory, one record at a time, so that the position in the stream is known when it is done. The
traffic secrets come by :mod:`safemem.tls.keylog`.

Source: RFC 8446 sections 4.6.1 and 7.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Literal, Self

from attrs import field, frozen

from safemem.tls.aead import engine
from safemem.tls.errors import Alert, TLSError, TruncationError
from safemem.tls.keylog import Keylog
from safemem.tls.keys import SUITES, CipherSuite, TrafficSecret
from safemem.tls.post_handshake import NewSessionTicket
from safemem.tls.reader import BUFFER_SIZE, TLSReader, check_options
from safemem.tls.record import HEADER, ContentType
from safemem.tls.resumption import Resumption
from safemem.tls.ssl_session import last_flight, wrap_memory
from safemem.tls.writer import TLSWriter

if TYPE_CHECKING:
    import socket

_RANDOM = slice(6, 38)  # of a ClientHello: its message header is 4 bytes, its version 2
_HELLO = 1024  # the start of what the client sends, in which that is


@frozen
class Handoff:
    """A connection after its handshake: who reads and writes it, and what was agreed on."""

    reader: TLSReader
    writer: TLSWriter
    suite: CipherSuite
    alpn: str | None
    """The application protocol, if one was negotiated."""
    peer_certificate: dict[str, Any] | None
    """As ``SSLSocket.getpeercert()``: empty if the certificate was not asked to be checked, None without one."""
    peer_certificate_der: bytes | None = field(repr=False)
    resumed: bool
    """Whether this is a session that an earlier connection began."""
    _resumption: Resumption | None = field(repr=False, eq=False)

    @property
    def session(self) -> ssl.SSLSession | None:
        """A client's session with its last ticket, to resume by :func:`handshake`. None without one, or after close."""
        return self._resumption.session() if self._resumption is not None else None

    def close(self) -> None:
        """Wipe all keys. The socket stays as it is: send ``writer.close_notify()`` before, and close it after.

        Raises RuntimeError while a read or a write is under way: close again when it has ended.
        """
        self.reader.close()
        self.writer.close()
        if self._resumption is not None:
            self._resumption.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def handshake(
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    server_hostname: str | None = None,
    server_side: bool = False,
    session: ssl.SSLSession | None = None,
    release: Literal["verified", "direct"] = "verified",
    allow_truncation: bool = False,
    on_ticket: Callable[[NewSessionTicket], object] | None = None,
    buffer_size: int = BUFFER_SIZE,
    engine_name: str | None = None,
) -> Handoff:
    """Do a TLS 1.3 handshake on a connected socket that waits, and hand over its records.

    ``context``, ``server_hostname``, ``server_side`` and ``session``, one to resume, are those of
    ``SSLContext.wrap_socket``; the others go to :class:`TLSReader`. Key updates that the peer asks for are answered by
    the writer.

    Raises ssl.SSLError as the standard library does, after telling the peer; TLSError (protocol_version) if another
    version was agreed on; TruncationError if the peer went away; ValueError for a socket that does not wait, for a
    parameter out of its range, or if the context checks host names and none is given; TypeError for a socket that TLS
    has been spoken on, whose place in the stream cannot be known; OSError if no descriptor is left, or the host has no
    /dev/fd. The context's steps of all handshakes take turns, and must not wait in ``sni_callback``. Warns
    (RuntimeWarning) where the context has a key log that cannot be opened once more, and ends it.
    """
    _check_socket(sock)
    check_options(release, buffer_size)  # before the handshake, so that it is not in vain
    chosen = engine(engine_name).name
    tls, incoming, outgoing = wrap_memory(context, server_hostname, server_side, session)
    ours, theirs = _shake_hands(sock, tls, incoming, outgoing)
    resumption = None if server_side else Resumption(tls, incoming, theirs, chosen)
    writer = TLSWriter(sock, ours, engine_name=chosen)
    reader = TLSReader(
        sock,
        theirs,
        release=release,
        server_side=server_side,
        allow_truncation=allow_truncation,
        on_ticket=on_ticket if resumption is None else _both(resumption.add, on_ticket),
        on_key_update=lambda requested: writer.answer_key_update() if requested else None,
        buffer_size=buffer_size,
        engine_name=chosen,
    )
    certificate, der = tls.getpeercert(), tls.getpeercert(binary_form=True)
    resumed = bool(tls.session_reused)
    return Handoff(reader, writer, ours.suite, tls.selected_alpn_protocol(), certificate, der, resumed, resumption)


def _both(
    first: Callable[[NewSessionTicket], object], second: Callable[[NewSessionTicket], object] | None
) -> Callable[[NewSessionTicket], object]:
    def call(ticket: NewSessionTicket) -> None:
        first(ticket)
        if second is not None:
            second(ticket)

    return call


def _check_socket(sock: socket.socket) -> None:
    if isinstance(sock, ssl.SSLSocket | ssl.SSLObject):
        raise TypeError(
            "sock must be a plain socket before its handshake: how many records an SSLSocket has read and sent cannot "
            "be known. Do the handshake here, or read with SSLObjectReader"
        )
    if sock.gettimeout() == 0:
        raise ValueError("sock must wait, or have a timeout, until the handshake is done")


def _shake_hands(
    sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> tuple[TrafficSecret, TrafficSecret]:
    """Do the handshake. Returns our secret and the peer's. Raises as :func:`handshake`."""
    with Keylog(tls) as log:
        client_random, sent_last = _run(sock, log, tls, incoming, outgoing)
        version = tls.version()
        if version != "TLSv1.3":
            raise TLSError(
                Alert.PROTOCOL_VERSION, f"{version} was agreed on. Set context.minimum_version, or use SSLObjectReader"
            )
        if incoming.pending:
            raise TLSError(Alert.INTERNAL_ERROR, "the place in the stream is not known")
        secrets = log.secrets(client_random)
    cipher = tls.cipher()
    suite = SUITES.get(cipher[0]) if cipher else None
    if suite is None:
        raise TLSError(Alert.INTERNAL_ERROR, f"{cipher} was agreed on, which is none of {', '.join(SUITES)}")
    ours, theirs = ("SERVER", "CLIENT") if tls.server_side else ("CLIENT", "SERVER")
    try:
        # What a server sends once its handshake is done, its tickets, already counts.
        seq = _records(sent_last) if tls.server_side else 0
        return (
            TrafficSecret(suite, secrets[f"{ours}_TRAFFIC_SECRET_0"], seq),
            TrafficSecret(suite, secrets[f"{theirs}_TRAFFIC_SECRET_0"]),
        )
    except KeyError:
        raise TLSError(Alert.INTERNAL_ERROR, "this ssl module did not tell the traffic secrets") from None


def _run(
    sock: socket.socket, log: Keylog, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> tuple[bytes, bytes]:
    """Do the handshake. Returns the client's random, and what was sent after the last record that was received."""
    hello = b""  # what the client has sent
    body = 0  # how much of a record is to come
    while True:
        done = True
        try:
            log.step()
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError:
            with suppress(OSError):  # the peer may be gone; this is why it failed
                sock.sendall(outgoing.read())
            raise
        sent = outgoing.read()
        if not tls.server_side and len(hello) < _HELLO:
            hello += sent
        if sent:
            with last_flight(tls) if done else nullcontext():
                sock.sendall(sent)
        if done:
            return _client_random(hello), sent
        # Never a byte of the next record. The header goes alone: OpenSSL sees at once what is no TLS, whose length
        # would be one that never comes.
        if body:
            part = _exactly(sock, body, True)
            body = 0
        else:
            part = _exactly(sock, HEADER, False)
            body = int.from_bytes(part[3:], "big")
        if tls.server_side and len(hello) < _HELLO:
            hello += part
        incoming.write(part)


def _client_random(stream: bytes) -> bytes:
    """The random of the ClientHello, which may be cut into many records."""
    message = b""
    while len(stream) > HEADER:
        end = HEADER + int.from_bytes(stream[3:HEADER], "big")
        message += stream[HEADER:end]
        stream = stream[end:]
    return message[_RANDOM]


def _exactly(sock: socket.socket, n: int, inside: bool) -> bytes:
    data = b""
    while len(data) < n:
        part = sock.recv(n - len(data))
        if not part:
            raise TruncationError(inside or bool(data))
        data += part
    return data


def _records(stream: bytes) -> int:
    """How many records a stream has that are protected by the application's keys."""
    count = at = 0
    while at < len(stream):
        count += stream[at] == ContentType.APPLICATION_DATA
        at += HEADER + int.from_bytes(stream[at + 3 : at + HEADER], "big")
    return count
