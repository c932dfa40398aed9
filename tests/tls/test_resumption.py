"""Sessions that a second connection resumes: the standard library's server says whether it did."""

from __future__ import annotations

import socket
import ssl

import pytest

from safemem import read_full_to_blocks
from safemem.tls import Alert, ContentType, Handoff, SSLObjectReader, TLSError, handshake, ssl_object_pair
from sample_blocks import blocks, room
from tls_peers import client_context, peer, server_context, tls_peer
from tls_wire import ENGINES, ticket

reused: list[bool | None] = []


def speak(tls: ssl.SSLSocket) -> None:
    """Notes whether the session was resumed, and talks."""
    reused.append(tls.session_reused)
    tls.sendall(b"hello")
    assert tls.recv(5) == b"thank"
    tls.unwrap().close()


def connect(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None, engine: str
) -> tuple[Handoff, ssl.SSLSession | None]:
    """A connection by ``handshake``, and its session."""
    with peer(tls_peer(speak, server)) as sock:
        made = handshake(sock, client, server_hostname="localhost", session=session, engine_name=engine)
        assert (made.session is None) == (not made.resumed)  # no ticket has been read yet
        assert made.reader.read_to_blocks(room(5)) == 5
        found = made.session
        made.writer.write_from_blocks(blocks(b"thank"))
        assert read_full_to_blocks(made.reader, room(1)) == 0
        made.writer.close_notify()
        made.close()
        assert made.session is None
        made.close()
    return made, found


@pytest.mark.parametrize("engine", ENGINES)
def test_handshakes(engine: str) -> None:
    """Again and again, each time with the ticket that the last one brought."""
    reused.clear()
    server, client = server_context(), client_context()
    session = None
    for number in range(3):
        made, session = connect(server, client, session, engine)
        assert made.resumed == bool(number)
        assert session is not None
        assert session.has_ticket
    assert reused == [False, True, True]


def test_a_session_of_another_context() -> None:
    """As the ssl module: a ValueError, before anything is sent."""
    server, client = server_context(), client_context()
    _, session = connect(server, client, None, ENGINES[0])
    with peer(lambda sock: sock.recv(1)) as sock, pytest.raises(ValueError, match="different SSLContext"):
        handshake(sock, client_context(), server_hostname="localhost", session=session)


def test_a_server_without_tickets() -> None:
    """There is no session to resume."""
    server = server_context()
    server.num_tickets = 0
    _, session = connect(server, client_context(), None, ENGINES[0])
    assert session is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_ssl_object_pairs(version: ssl.TLSVersion) -> None:
    """The session is the SSLObject's, once what the peer sent was read."""
    reused.clear()
    server, client = server_context(), client_context(maximum_version=version)
    session = None
    for _ in range(2):
        with peer(tls_peer(speak, server)) as sock:
            reader, writer = ssl_object_pair(sock, client, server_hostname="localhost", session=session)
            assert isinstance(reader, SSLObjectReader)
            assert reader.read_to_blocks(room(5)) == 5
            session = reader.ssl_object.session
            writer.write_from_blocks(blocks(b"thank"))
            assert read_full_to_blocks(reader, room(1)) == 0
            writer.close_notify()
    assert reused == [False, True]


def test_a_ticket_is_its_message() -> None:
    """What a NewSessionTicket was made of, byte for byte."""
    message = ticket()
    from safemem.tls.post_handshake import PostHandshake

    (found,) = PostHandshake(server_side=False).events(22, message)
    assert found.message() == message  # type: ignore[union-attr]


def test_a_ticket_that_openssl_refuses() -> None:
    """Ends the connection as it would OpenSSL's, again and again: early data of QUIC's kind in a ticket of TLS."""
    server = server_context()
    server.num_tickets = 0

    def speak_by_hand(sock: socket.socket) -> None:
        made = handshake(sock, server, server_side=True)
        made.writer.write_record(ContentType.HANDSHAKE, ticket(extensions=b"\0\x2a\0\1\0"))
        made.writer.write_from_blocks(blocks(b"hello"))

    with peer(speak_by_hand) as sock:
        made = handshake(sock, client_context(), server_hostname="localhost")
        for _ in range(2):
            with pytest.raises(TLSError, match="OpenSSL refuses") as caught:
                made.reader.read_to_blocks(room(5))
            assert caught.value.alert == Alert.DECODE_ERROR


def test_close_during_a_read() -> None:
    """It is refused, and changes nothing: the connection goes on, and is closed when the read has ended."""
    refused: list[str] = []

    def on_ticket(_: object) -> None:
        with pytest.raises(RuntimeError) as caught:
            made.close()
        refused.append(str(caught.value))

    with peer(tls_peer(speak, server_context())) as sock:
        made = handshake(sock, client_context(), server_hostname="localhost", on_ticket=on_ticket)
        assert made.reader.read_to_blocks(room(5)) == 5
        assert set(refused) == {"another read is under way"}
        assert made.session is not None
        made.writer.write_from_blocks(blocks(b"thank"))
        assert read_full_to_blocks(made.reader, room(1)) == 0
        made.writer.close_notify()
        made.close()
        assert made.session is None
