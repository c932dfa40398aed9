"""TLSReader: key updates, and the callbacks, which may raise, read, close or give new keys."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Literal

import pytest

from safemem.tls import SUITES, KeyExpiredError, NewSessionTicket, TLSReader, TrafficSecret
from sample_blocks import room
from tls_wire import ENGINES, KEYS, Script, Sender, message, read, read_all, ticket

Release = Literal["verified", "direct"]
RELEASES: list[Release] = ["verified", "direct"]
every_release = pytest.mark.parametrize("release", RELEASES)
every_engine = pytest.mark.parametrize("name", ENGINES)


@every_engine
@every_release
@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.cipher)
def test_key_updates(suite: object, release: Release, name: str) -> None:
    """The records behind them have new keys, which count from 0; the callback hears whether we are to do the same."""
    (secret,) = [TrafficSecret(one, bytes(one.hash_length), 3) for one in SUITES.values() if one == suite]
    peer = Sender(secret)
    wire = peer.data(b"one") + peer.key_update(0) + peer.data(b"two") + peer.data(b"three")
    wire += peer.key_update(1) + peer.key_update(0) + peer.data(b"four") + peer.close()
    for size in (1, 40, 1000):
        heard: list[bool] = []
        reader = TLSReader(Script(wire), secret, release=release, engine_name=name, on_key_update=heard.append)
        assert read_all(reader, (size,)) == (b"onetwothreefour", None)
        assert heard == [False, True, False]


def test_old_keys_are_no_longer_taken() -> None:
    """A record under them, behind the update, is not authentic."""
    peer, old = Sender(), Sender()
    wire = peer.key_update()
    old.data(b"")
    _, error = read_all(TLSReader(Script(wire + old.data(b"old")), KEYS))
    assert getattr(error, "errno", None) == errno.EBADMSG


@every_engine
@every_release
def test_keys_that_have_no_next(release: Release, name: str) -> None:
    """Data first; then KeyExpiredError until new keys come, with no more I/O; nothing is lost."""
    peer = Sender()
    wire = peer.data(b"one") + peer.key_update(1)
    new = peer.keys
    rest = peer.data(b"two") + peer.key_update() + peer.data(b"three") + peer.close()
    source = Script(wire + rest[:40], rest[40:])
    heard: list[bool] = []
    reader = TLSReader(source, KEYS.record_keys(), release=release, engine_name=name, on_key_update=heard.append)
    with pytest.raises(ValueError, match="have not changed"):
        reader.rekey(new)
    assert read(reader, 100) == b"one"
    for _ in range(3):
        with pytest.raises(KeyExpiredError) as caught:
            read(reader, 100)
        assert (caught.value.errno, caught.value.transferred) == (errno.EKEYEXPIRED, 0)
        caught.value.transferred += 5
    assert (source.receives, reader.has_pending(), reader.eof, heard) == (1, True, False, [True])
    reader.rekey(new.record_keys())
    with pytest.raises(ValueError, match="have not changed"):
        reader.rekey(new)
    assert read(reader, 100) == b"two"
    with pytest.raises(KeyExpiredError):
        read(reader, 100)
    following = new.next()
    assert following is not None
    reader.rekey(following)
    assert [read(reader, 100), read(reader, 100)] == [b"three", b""]


def test_keys_from_the_callback() -> None:
    """It may give the new keys at once: then the call goes on."""
    peer = Sender()
    wire = peer.data(b"one") + peer.key_update()
    new = peer.keys
    reader = TLSReader(
        Script(wire + peer.data(b"two") + peer.close()),
        KEYS.record_keys(),
        on_key_update=lambda requested: reader.rekey(new),
    )
    assert [read(reader, 100), read(reader, 100)] == [b"onetwo", b""]


def test_no_keys_after_the_end() -> None:
    """Neither after an error, nor after the end, nor once it is closed."""
    peer = Sender()
    for wire in (peer.data(b"bad"), Sender().close()):
        reader = TLSReader(Script(wire[:-1] + bytes([wire[-1] ^ (wire[:5] == b"bad")])), KEYS)
        read_all(reader)
        with pytest.raises(ValueError, match="have not changed"):
            reader.rekey(KEYS)
    reader = TLSReader(Script(Sender().key_update()), KEYS.record_keys())
    with pytest.raises(KeyExpiredError):
        read(reader, 1)
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.rekey(KEYS)


class OwnError(Exception):
    """What a callback raises."""


ERRORS = [OwnError, ConnectionResetError, BlockingIOError, KeyboardInterrupt]


@every_release
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("which", ["on_ticket", "on_key_update"])
def test_callbacks_that_raise(which: str, error: type[BaseException], release: Release) -> None:
    """The caller gets it, with the count of the bytes before it, of all receives; the next call goes on."""

    def callback(event: object) -> None:
        raise error("own")

    on_ticket: Callable[[NewSessionTicket], None] | None = callback if which == "on_ticket" else None
    on_key_update: Callable[[bool], None] | None = callback if which == "on_key_update" else None
    peer = Sender()
    one, two = peer.data(b"one"), peer.data(b"two")
    event = peer.handshake(ticket()) if which == "on_ticket" else peer.key_update(1)
    rest = peer.data(b"three") + peer.close()
    for parts in ([one + two + event + rest], [one, two + event + rest], [one, two, event, rest]):
        reader = TLSReader(Script(*parts), KEYS, release=release, on_ticket=on_ticket, on_key_update=on_key_update)
        dsts = room(2, 100)
        with pytest.raises(error, match="own") as caught:
            reader.read_at_least(dsts, 100)
        assert getattr(caught.value, "transferred", None) == 6
        assert dsts.tobytes()[:6] == b"onetwo"
        assert read_all(reader) == (b"three", None)


@pytest.mark.parametrize("release", RELEASES)
def test_callbacks_may_not_read(release: Release) -> None:
    """A read inside a read is an error, and so is closing; both come out of the outer call, which loses nothing."""
    peer = Sender()
    wire = peer.handshake(ticket()) + peer.data(b"data") + peer.close()
    for call in (lambda reader: read(reader, 9), lambda reader: reader.close()):
        reader = TLSReader(Script(wire), KEYS, release=release, on_ticket=lambda one: call(reader))  # noqa: B023
        with pytest.raises(RuntimeError, match="under way"):
            read(reader, 9)
        assert [read(reader, 9), read(reader, 9)] == [b"data", b""]
        reader.close()


def test_the_order_of_callbacks() -> None:
    """Data, tickets and updates in the order of the wire, as far as they lie in different records."""
    peer = Sender()
    heard: list[object] = []
    first = peer.handshake(ticket(b"1") + ticket(b"2")) + peer.key_update(1) + peer.handshake(ticket(b"3"))
    second = peer.data(b"data") + peer.handshake(ticket(b"4")[:5])
    third = peer.handshake(ticket(b"4")[5:] + message(24, b"\0"))
    reader = TLSReader(
        Script(first, second, third),
        KEYS,
        on_ticket=lambda one: heard.append(one.ticket),
        on_key_update=heard.append,
    )
    assert read(reader, 9) == b"data"
    assert heard == [b"1", b"2", True, b"3"]
    with pytest.raises(OSError, match="no close_notify"):
        read(reader, 9)
    assert sorted(map(str, heard[4:])) == ["False", "b'4'"]
