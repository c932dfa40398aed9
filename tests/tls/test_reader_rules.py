"""The rules for a receiver of RFC 8446, one row each: what is refused with which alert, and what is not."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from typing import Literal

import pytest

from safemem.tls import Alert, NewSessionTicket, ReceivedAlertError, TLSError, TLSReader, TrafficSecret
from safemem.tls.record import MAX_BODY, MAX_CONTENT, TAG
from tls_wire import CLOSE, ENGINES, SUITE, Script, Sender, flat, message, read, read_all, ticket

Release = Literal["verified", "direct"]
RELEASES: list[Release] = ["verified", "direct"]
every_release = pytest.mark.parametrize("release", RELEASES)
every_engine = pytest.mark.parametrize("name", ENGINES)

Make = Callable[[Sender], bytes]


def header(kind: int, length: int) -> bytes:
    """The header of a record, and as many zeros as it says, or a few."""
    return bytes([kind, 3, 3]) + length.to_bytes(2, "big") + bytes(min(length, 100))


def flipped(record: bytes, place: int = -1) -> bytes:
    """The record with one bit changed."""
    changed = bytearray(record)
    changed[place] ^= 1
    return bytes(changed)


def ticket_body(label: int, extensions: int, nonce: int = 0) -> bytes:
    """A ticket message whose lengths say this, each followed by one byte."""
    return message(
        4, bytes(8) + bytes([nonce]) + label.to_bytes(2, "big") + b"t" + extensions.to_bytes(2, "big") + b"e"
    )


def after_update(peer: Sender) -> Sender:
    """The peer, with the keys that follow its key update."""
    keys = peer.keys.next()
    assert keys is not None
    peer.use(keys)
    return peer


LONGEST = ticket(b"t" * (0xFFFF - 8 - 2 - 2 - 2))
"""The longest message that is taken."""

OVERFLOW: dict[str, Make] = {
    "a header of more than 2**14 + 256": lambda peer: header(23, MAX_CONTENT + 257),
    "a header of 65535": lambda peer: header(23, 0xFFFF),
    "a header of 2**14 + 256, which leaves no right content": lambda peer: header(23, MAX_CONTENT + 256),
    "content of 2**14 + 1": lambda peer: peer.data(bytes(MAX_CONTENT + 1)),
    "padding beyond 2**14 + 1": lambda peer: peer.data(b"short", MAX_CONTENT - 4),
    "a handshake record of 2**14 + 1": lambda peer: peer.handshake(bytes(MAX_CONTENT + 1)),
}
BAD_MAC: dict[str, Make] = {
    "no body": lambda peer: header(23, 0),
    "shorter than its tag": lambda peer: header(23, TAG - 1),
    "a flipped tag": lambda peer: flipped(peer.data(b"data")),
    "a flipped content": lambda peer: flipped(peer.data(b"data"), 5),
    "another version in the header": lambda peer: flipped(peer.data(b"data"), 2),
    "of zeros": lambda peer: header(23, 100),
    "only a tag, which is wrong": lambda peer: header(23, TAG),
    "a record left out": lambda peer: peer.data(b"lost")[:0] + peer.data(b"data"),
    "a record twice": lambda peer: 2 * peer.data(),
    "a long one": lambda peer: flipped(peer.data(bytes(MAX_CONTENT))),
    "an alert": lambda peer: flipped(peer.close()),
}
UNEXPECTED: dict[str, Make] = {
    "an empty inner plaintext": lambda peer: peer.inner(b""),
    "an inner plaintext of one zero": lambda peer: peer.inner(b"\0"),
    "an inner plaintext of zeros": lambda peer: peer.inner(bytes(300)),
    "the longest inner plaintext of zeros": lambda peer: peer.inner(bytes(MAX_BODY - TAG)),
    "an unprotected change_cipher_spec": lambda peer: b"\x14\x03\x03\x00\x01\x01",
    "an unprotected alert": lambda peer: b"\x15\x03\x03\x00\x02\x01\x00",
    "an unprotected handshake message": lambda peer: header(22, 40),
    "an outer type that is unknown": lambda peer: header(24, 40),
    "an outer type of 0": lambda peer: header(0, 40),
    "no TLS at all": lambda peer: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a protected change_cipher_spec": lambda peer: peer.record(20, b"\x01"),
    "an inner type that is unknown": lambda peer: peer.record(24, b"heartbeat"),
    "an inner type of 1": lambda peer: peer.record(1, b""),
    "an inner type of 255": lambda peer: peer.record(255, b"data", 10),
    "an unknown type inside a message": lambda peer: peer.handshake(b"\x04") + peer.record(24, b""),
    "an empty handshake record": lambda peer: peer.handshake(),
    "an empty handshake record with padding": lambda peer: peer.handshake(b"", 50),
    "an empty handshake record inside a message": lambda peer: peer.handshake(b"\x04\0") + peer.handshake(),
    "an empty alert record": lambda peer: peer.record(21),
    "an empty alert record with padding": lambda peer: peer.record(21, b"", 50),
    "data inside a message": lambda peer: peer.handshake(ticket()[:7]) + peer.data(b"data"),
    "data inside a message's header": lambda peer: peer.handshake(b"\x04") + peer.data(b"data"),
    "padded data inside a message": lambda peer: peer.handshake(ticket()[:-1]) + peer.data(b"data", 9),
    "empty data inside a message": lambda peer: peer.handshake(ticket()[:7]) + peer.data(),
    "empty data between the parts of a message": (
        lambda peer: peer.handshake(ticket()[:7]) + peer.data() + peer.handshake(ticket()[7:])
    ),
    "an alert inside a message": lambda peer: peer.handshake(ticket()[:7]) + peer.alert(40),
    "close_notify inside a message": lambda peer: peer.handshake(ticket()[:7]) + peer.close(),
    "a key update and a ticket": lambda peer: peer.handshake(message(24, b"\0") + ticket()),
    "a key update and the start of a message": lambda peer: peer.handshake(message(24, b"\1") + b"\x04"),
    "two key updates": lambda peer: peer.handshake(2 * message(24, b"\0")),
    "a hello request": lambda peer: peer.handshake(message(0, b"")),
    "a client hello": lambda peer: peer.handshake(message(1, bytes(40))),
    "a server hello": lambda peer: peer.handshake(message(2, bytes(40))),
    "end of early data": lambda peer: peer.handshake(message(5, b"")),
    "encrypted extensions": lambda peer: peer.handshake(message(8, bytes(2))),
    "a certificate": lambda peer: peer.handshake(message(11, bytes(4))),
    "a certificate request, which was not offered": lambda peer: peer.handshake(message(13, bytes(3))),
    "finished": lambda peer: peer.handshake(message(20, bytes(32))),
    "a message of type 254": lambda peer: peer.handshake(message(254, bytes(32))),
    "the header alone of a wrong message": lambda peer: peer.handshake(b"\x01\xff\xff\xff"),
    "a ticket and a wrong message": lambda peer: peer.handshake(ticket() + message(11, b"")),
}
DECODE: dict[str, Make] = {
    "an alert of 1 byte": lambda peer: peer.record(21, b"\x01"),
    "an alert of 3 bytes": lambda peer: peer.record(21, CLOSE + b"\0"),
    "two alerts in a record": lambda peer: peer.record(21, CLOSE + CLOSE),
    "an alert of 2**14 bytes": lambda peer: peer.record(21, bytes(MAX_CONTENT)),
    "a key update of 0 bytes": lambda peer: peer.handshake(message(24, b"")),
    "a key update of 2 bytes": lambda peer: peer.handshake(message(24, b"\0\0")),
    "the header of a key update of 2**24 - 1": lambda peer: peer.handshake(b"\x18\xff\xff\xff"),
    "a ticket of 0 bytes": lambda peer: peer.handshake(message(4, b"")),
    "a ticket of 8 bytes": lambda peer: peer.handshake(message(4, bytes(8))),
    "a ticket of 9 bytes": lambda peer: peer.handshake(message(4, bytes(9))),
    "a ticket without ticket": lambda peer: peer.handshake(ticket(b"")),
    "a ticket whose nonce is too long": lambda peer: peer.handshake(ticket_body(1, 1, 200)),
    "a ticket that is too long": lambda peer: peer.handshake(ticket_body(9, 1)),
    "a ticket of 65535": lambda peer: peer.handshake(ticket_body(0xFFFF, 1)),
    "a ticket that ends before the extensions": lambda peer: peer.handshake(ticket_body(3, 0)),
    "a ticket that ends inside the extensions' length": lambda peer: peer.handshake(ticket_body(2, 0)),
    "a ticket that ends inside the length of no extensions": lambda peer: peer.handshake(message(4, ticket()[4:-1])),
    "a ticket whose extensions are too long": lambda peer: peer.handshake(ticket_body(1, 2)),
    "a ticket whose extensions are too short": lambda peer: peer.handshake(ticket_body(1, 0)),
    "a ticket of more than 65535, by its header": lambda peer: peer.handshake(b"\x04\x01\x00\x00"),
}
ILLEGAL: dict[str, Make] = {
    "a key update of 2": lambda peer: peer.handshake(message(24, b"\x02")),
    "a key update of 255": lambda peer: peer.handshake(message(24, b"\xff")),
}
ROWS = [
    pytest.param(make, alert, id=f"{alert.name.lower()}: {name}")
    for alert, rows in (
        (Alert.RECORD_OVERFLOW, OVERFLOW),
        (Alert.BAD_RECORD_MAC, BAD_MAC),
        (Alert.UNEXPECTED_MESSAGE, UNEXPECTED),
        (Alert.DECODE_ERROR, DECODE),
        (Alert.ILLEGAL_PARAMETER, ILLEGAL),
    )
    for name, make in rows.items()
]
ERRNOS = {Alert.RECORD_OVERFLOW: errno.EMSGSIZE, Alert.BAD_RECORD_MAC: errno.EBADMSG}


@every_engine
@every_release
@pytest.mark.parametrize(("make", "alert"), ROWS)
def test_what_is_refused(make: Make, alert: Alert, release: Release, name: str) -> None:
    """The data before it comes first; then the error, with the alert for the peer, for ever and with no more I/O."""
    peer = Sender()
    source = Script(peer.data(b"first") + make(peer) + peer.data(b"never"))
    reader = TLSReader(source, Sender().keys, release=release, engine_name=name)
    assert read(reader, 70_000) == b"first"
    assert reader.has_pending()
    receives = source.receives
    for _ in range(3):
        with pytest.raises(TLSError) as caught:
            read(reader, 100)
        error = caught.value
        assert (error.alert, error.errno, error.transferred) == (alert, ERRNOS.get(alert, errno.EPROTO), 0)
    assert f"({alert.name.lower()})" in str(error)
    assert (source.receives, reader.pending(), reader.eof) == (receives, 0, False)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.alert, copy.reason, str(copy)) == (error.alert, error.reason, str(error))


@every_release
@pytest.mark.parametrize("level", [0, 1, 2, 255])
@pytest.mark.parametrize("number", [10, 20, 40, 49, 80, 86, 109, 120, 1, 91, 255])
def test_alerts_are_fatal(number: int, level: int, release: Release) -> None:
    """Whatever their level, and unknown ones too: no more is read."""
    peer = Sender()
    source = Script(peer.data(b"first") + peer.alert(number, level) + peer.data(b"never"))
    reader = TLSReader(source, Sender().keys, release=release)
    assert read(reader, 100) == b"first"
    for _ in range(2):
        with pytest.raises(ReceivedAlertError) as caught:
            read(reader, 100)
        assert (caught.value.alert, caught.value.errno, caught.value.transferred) == (number, errno.ECONNABORTED, 0)
    assert source.receives == 1
    known = number in Alert.__members__.values()
    assert isinstance(caught.value.alert, Alert) == known
    assert (Alert(number).name.lower() if known else f"number {number}") in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).alert == number


ALLOWED: dict[str, tuple[Make, bytes]] = {
    "the longest content": (lambda peer: peer.data(b"l" * MAX_CONTENT), b"l" * MAX_CONTENT),
    "the most padding": (lambda peer: peer.data(b"short", MAX_CONTENT - 5), b"short"),
    "only padding": (lambda peer: peer.data(b"", MAX_CONTENT), b""),
    "content of zeros": (lambda peer: peer.data(bytes(50)), bytes(50)),
    "content of zeros, with padding": (lambda peer: peer.data(bytes(50), 50), bytes(50)),
    "content that looks like a type": (lambda peer: peer.data(b"\x15\x16\x17", 1), b"\x15\x16\x17"),
    "another version": (lambda peer: peer.inner(b"data\x17", b"\xfe\xfd"), b"data"),
    "version 0": (lambda peer: peer.inner(b"data\x17", b"\0\0"), b"data"),
    "empty data": (lambda peer: peer.data() + peer.data(b"data") + peer.data(), b"data"),
    "user_canceled": (lambda peer: peer.alert(90, 1) + peer.data(b"data"), b"data"),
    "user_canceled, whatever its level": (lambda peer: peer.alert(90) + peer.data(b"data"), b"data"),
    "a padded alert": (lambda peer: peer.record(21, b"\x01\x5a", 99) + peer.data(b"data"), b"data"),
    "a ticket": (lambda peer: peer.handshake(ticket()) + peer.data(b"data"), b"data"),
    "a ticket with padding": (lambda peer: peer.handshake(ticket(), 99) + peer.data(b"data"), b"data"),
    "a ticket in two records": (
        lambda peer: peer.handshake(ticket()[:9]) + peer.handshake(ticket()[9:]) + peer.data(b"data"),
        b"data",
    ),
    "a ticket byte by byte": (
        lambda peer: flat([[peer.handshake(bytes([byte])) for byte in ticket()], [peer.data(b"data")]]),
        b"data",
    ),
    "three tickets in a record": (lambda peer: peer.handshake(3 * ticket()) + peer.data(b"data"), b"data"),
    "a ticket of 65535 bytes": (
        lambda peer: (
            flat([[peer.handshake(LONGEST[at : at + MAX_CONTENT]) for at in range(0, 1 << 16, MAX_CONTENT)]])
            + peer.handshake(LONGEST[1 << 16 :])
            + peer.data(b"data")
        ),
        b"data",
    ),
    "a key update": (lambda peer: peer.key_update() + peer.data(b"data"), b"data"),
    "a key update that asks for ours": (lambda peer: peer.key_update(1) + peer.data(b"data"), b"data"),
    "a ticket and a key update in a record": (
        lambda peer: peer.handshake(ticket() + message(24, b"\0")) + after_update(peer).data(b"data"),
        b"data",
    ),
    "a key update in pieces": (
        lambda peer: (
            flat([[peer.handshake(bytes([byte])) for byte in message(24, b"\0")]]) + after_update(peer).data(b"data")
        ),
        b"data",
    ),
    "many key updates": (lambda peer: flat([[peer.key_update() for _ in range(32)], [peer.data(b"data")]]), b"data"),
}


@every_engine
@every_release
@pytest.mark.parametrize(("make", "expected"), ALLOWED.values(), ids=ALLOWED)
@pytest.mark.parametrize("size", [1, 70, 70_000])
def test_what_is_allowed(make: Make, expected: bytes, size: int, release: Release, name: str) -> None:
    """Whatever the call's size, what comes is the data, and then the end."""
    peer = Sender()
    wire = make(peer) + peer.close()
    reader = TLSReader(Script(wire), Sender().keys, release=release, engine_name=name)
    if size == 1 and len(expected) > 100:
        size = 16_383
    assert read_all(reader, (size,)) == (expected, None)


def test_a_server_gets_no_tickets() -> None:
    """Only servers send them; key updates come from both."""
    for make, alert in ((Sender.key_update, None), (lambda peer: peer.handshake(ticket()), Alert.UNEXPECTED_MESSAGE)):
        peer = Sender()
        wire = make(peer) + peer.close()
        _, error = read_all(TLSReader(Script(wire), Sender().keys, server_side=True))
        assert getattr(error, "alert", None) == alert


LIMITS: dict[str, tuple[int, Make]] = {
    "empty records in a row": (32, lambda peer: peer.data()),
    "empty records with padding": (32, lambda peer: peer.data(b"", 100)),
    "tickets without data": (32, lambda peer: peer.handshake(ticket())),
    "key updates without data": (32, lambda peer: peer.key_update()),
    "messages in one record": (32, lambda peer: peer.handshake(ticket())),
}


@every_release
@pytest.mark.parametrize(("limit", "make"), LIMITS.values(), ids=LIMITS)
def test_limits(limit: int, make: Make, release: Release) -> None:
    """As many are allowed, again after each byte of data, and not one more."""
    peer = Sender()
    wire = b"".join(flat([[make(peer) for _ in range(limit)], [peer.data(b"data", pad)]]) for pad in (0, 5, 0))
    wire += flat([[make(peer) for _ in range(limit + 1)], [peer.data(b"never")]])
    for size in (1, 3, 1000):
        found, error = read_all(TLSReader(Script(wire), Sender().keys, release=release), (size,))
        assert (found, getattr(error, "alert", None)) == (3 * b"data", Alert.UNEXPECTED_MESSAGE)
        assert str(limit) in str(error)


def test_messages_of_one_record_count() -> None:
    """Each message does, not each record."""
    for n, expected in ((32, None), (33, Alert.UNEXPECTED_MESSAGE)):
        peer = Sender()
        _, error = read_all(TLSReader(Script(peer.handshake(n * ticket()) + peer.close()), Sender().keys))
        assert getattr(error, "alert", None) == expected


def test_warnings_count_for_ever() -> None:
    """Data between them changes nothing."""
    for n, expected in ((4, None), (5, Alert.UNEXPECTED_MESSAGE)):
        peer = Sender()
        wire = flat([[peer.alert(90, 1) + peer.data(b"x") for _ in range(n)], [peer.close()]])
        _, error = read_all(TLSReader(Script(wire), Sender().keys))
        assert getattr(error, "alert", None) == expected


def test_tickets_come_to_the_callback() -> None:
    """All of their fields, in order, whether joined or in pieces; repr shows only the lifetime."""
    found: list[NewSessionTicket] = []
    peer = Sender()
    both = ticket(b"two", nonce=b"", lifetime=604800) + ticket(b"three", nonce=bytes(range(255)))
    wire = peer.handshake(ticket(b"one", extensions=b"ext")) + peer.handshake(both[:20]) + peer.handshake(both[20:])
    wire += peer.data(b"data")
    assert read(TLSReader(Script(wire), Sender().keys, on_ticket=found.append), 10) == b"data"
    assert [(one.lifetime, one.nonce, one.ticket, one.extensions) for one in found] == [
        (7200, b"\0", b"one", b"ext"),
        (604800, b"", b"two", b""),
        (7200, bytes(range(255)), b"three", b""),
    ]
    assert {one.age_add for one in found} == {0xAABBCCDD}
    assert repr(found[0]) == "NewSessionTicket(lifetime=7200)"


@pytest.mark.parametrize("last", [(1 << 64) - 1, (1 << 64) - 2])
def test_record_numbers_end(last: int) -> None:
    """The last one is read; there is none after it, unless the keys change."""
    keys = TrafficSecret(SUITE, bytes(32), last)
    for update in (False, True):
        peer = Sender(keys)
        parts = [peer.data(b"x") for _ in range((1 << 64) - 1 - last)]
        wire = b"".join(parts) + (peer.key_update() + peer.data(b"new") + peer.close() if update else peer.data(b"y"))
        found, error = read_all(TLSReader(Script(wire + (b"" if update else wire)), keys))
        if update:
            assert (found, error) == (b"x" * len(parts) + b"new", None)
        else:
            assert (found, getattr(error, "alert", None)) == (b"x" * len(parts) + b"y", Alert.INTERNAL_ERROR)
