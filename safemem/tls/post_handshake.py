"""What comes between application data: alerts, session tickets, key updates. Who may send what, and how much of it.

Source: RFC 8446 sections 4.6, 5.1, 6; the limits on what a peer may send without data are rustls'.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import field, frozen

from safemem.tls.errors import Alert, ReceivedAlertError, TLSError
from safemem.tls.record import ContentType

MAX_EMPTY_RECORDS = 32
"""The most records without content in a row."""
MAX_MESSAGES = 32
"""The most handshake messages, of whatever kind, without application data between them."""
MAX_WARNINGS = 4
"""The most user_canceled alerts on a connection."""
MAX_MESSAGE = 0xFFFF
"""The longest handshake message, in bytes."""

_NEW_SESSION_TICKET = 4
_KEY_UPDATE = 24


@frozen
class NewSessionTicket:
    """A session ticket, as the server sent it: RFC 8446 section 4.6.1. Lifetime in seconds."""

    lifetime: int
    age_add: int = field(repr=False)
    nonce: bytes = field(repr=False)
    ticket: bytes = field(repr=False)
    extensions: bytes = field(repr=False)

    def message(self) -> bytes:
        """The handshake message that it came in."""
        body = self.lifetime.to_bytes(4, "big") + self.age_add.to_bytes(4, "big")
        body += len(self.nonce).to_bytes(1, "big") + self.nonce
        for part in (self.ticket, self.extensions):
            body += len(part).to_bytes(2, "big") + part
        return bytes([_NEW_SESSION_TICKET]) + len(body).to_bytes(3, "big") + body


@frozen
class KeyUpdate:
    """The peer's next record has new keys; with ``update_requested`` it wants ours to be new as well."""

    update_requested: bool


@frozen
class CloseNotify:
    """The peer sends nothing more."""


Event = NewSessionTicket | KeyUpdate | CloseNotify


class PostHandshake:
    """Takes the content of the records that are no application data, and tells what is in them.

    ``joining`` is true while a handshake message goes on in the next record, ``waiting`` when ``data`` must be told of
    the next data.
    """

    def __init__(self, server_side: bool) -> None:
        self._server_side = server_side
        self._message = bytearray()
        self._messages = 0
        self._empty = 0
        self._warnings = 0
        self.joining: bool = False
        self.waiting: bool = False

    def data(self) -> None:
        """Application data came. Raises TLSError in the middle of a handshake message."""
        if self.joining:
            raise TLSError(Alert.UNEXPECTED_MESSAGE, "a handshake message is followed by another type of record")
        self._messages = self._empty = 0
        self.waiting = False

    def empty_data(self) -> None:
        """Application data of no bytes came. Raises TLSError in the middle of a message, or if it comes too often."""
        if self.joining:
            self.data()
        self.waiting = True
        self._empty += 1
        if self._empty > MAX_EMPTY_RECORDS:
            raise TLSError(Alert.UNEXPECTED_MESSAGE, f"more than {MAX_EMPTY_RECORDS} empty records in a row")

    def events(self, kind: int, content: bytes) -> Iterator[Event]:
        """What is in a record of another type. Raises TLSError, and ReceivedAlertError for a fatal alert."""
        if kind == ContentType.ALERT:
            yield from self._alert(content)
        elif kind == ContentType.HANDSHAKE:
            yield from self._handshake(content)
        else:
            raise TLSError(Alert.UNEXPECTED_MESSAGE, f"a protected record of type {kind}")

    def _alert(self, content: bytes) -> Iterator[Event]:
        if self.joining:
            raise TLSError(Alert.UNEXPECTED_MESSAGE, "a handshake message is followed by an alert")
        if not content:
            raise TLSError(Alert.UNEXPECTED_MESSAGE, "an alert record without content")
        if len(content) != 2:
            raise TLSError(Alert.DECODE_ERROR, f"an alert record of {len(content)} bytes")
        alert = content[1]
        if alert == Alert.CLOSE_NOTIFY:
            yield CloseNotify()
        elif alert == Alert.USER_CANCELED:
            self._warnings += 1
            if self._warnings > MAX_WARNINGS:
                raise TLSError(Alert.UNEXPECTED_MESSAGE, f"more than {MAX_WARNINGS} warnings")
        else:
            raise ReceivedAlertError(alert)

    def _handshake(self, content: bytes) -> Iterator[Event]:
        if not content:
            raise TLSError(Alert.UNEXPECTED_MESSAGE, "a handshake record without content")
        self.waiting = True
        message = self._message
        message += content
        while len(message) >= 4:
            length = int.from_bytes(message[1:4], "big")
            self._check_header(message[0], length)
            if len(message) < 4 + length:
                break
            body = bytes(message[4 : 4 + length])
            kind = message[0]
            del message[: 4 + length]
            self._messages += 1
            if self._messages > MAX_MESSAGES:
                raise TLSError(Alert.UNEXPECTED_MESSAGE, f"more than {MAX_MESSAGES} handshake messages without data")
            self.joining = bool(message)
            yield self._key_update(body) if kind == _KEY_UPDATE else _ticket(body)
        self.joining = bool(message)

    def _check_header(self, kind: int, length: int) -> None:
        if kind != _KEY_UPDATE and (kind != _NEW_SESSION_TICKET or self._server_side):
            raise TLSError(Alert.UNEXPECTED_MESSAGE, f"a handshake message of type {kind} after the handshake")
        if length > MAX_MESSAGE or (kind == _KEY_UPDATE and length != 1):
            raise TLSError(Alert.DECODE_ERROR, f"a handshake message of type {kind} and {length} bytes")

    def _key_update(self, body: bytes) -> KeyUpdate:
        if body[0] > 1:
            raise TLSError(Alert.ILLEGAL_PARAMETER, f"a key update with the value {body[0]}")
        if self._message:
            raise TLSError(Alert.UNEXPECTED_MESSAGE, "a key update that does not end its record")
        return KeyUpdate(body[0] == 1)


def _ticket(body: bytes) -> NewSessionTicket:
    try:
        nonce_end = 9 + body[8]
        ticket_end = nonce_end + 2 + int.from_bytes(body[nonce_end : nonce_end + 2], "big")
        extensions = body[ticket_end + 2 :]
        ticket = body[nonce_end + 2 : ticket_end]
        right = ticket and len(extensions) == int.from_bytes(body[ticket_end : ticket_end + 2], "big")
    except IndexError:
        right = False
    if not right or len(body) < ticket_end + 2:
        raise TLSError(Alert.DECODE_ERROR, f"a session ticket message of {len(body)} bytes whose lengths do not fit")
    lifetime, age_add = int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big")
    return NewSessionTicket(lifetime, age_add, body[9:nonce_end], ticket, extensions)
