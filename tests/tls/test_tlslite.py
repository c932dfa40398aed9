"""tlslite-ng, an implementation that is not OpenSSL's nor ours, as the peer: oddities that others do not send."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from safemem import read_full_to_blocks
from safemem.tls import Handoff, NewSessionTicket, TLSReader, TrafficSecret, handshake
from sample_blocks import blocks, room
from tls_wire import ENGINES, Script, message, read, ticket
from usermem.testing.operations import pattern

tlslite = pytest.importorskip("tlslite.api", reason="needs tlslite-ng")
messages = pytest.importorskip("tlslite.messages")
x509 = pytest.importorskip("cryptography.x509", reason="needs the cryptography package to make a certificate")

Release = Literal["verified", "direct"]
RELEASES: list[Release] = ["verified", "direct"]
every_release = pytest.mark.parametrize("release", RELEASES)
every_cipher = pytest.mark.parametrize("cipher", ["aes128gcm", "aes256gcm", "chacha20-poly1305"])

Talk = Callable[[Any], None]
"""What the peer does with its connection once the handshake is done."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate that nobody has signed but itself."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    made = builder.sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def settings(cipher: str) -> Any:
    """TLS 1.3 with one cipher."""
    chosen = tlslite.HandshakeSettings()
    chosen.minVersion = chosen.maxVersion = (3, 4)
    chosen.cipherNames = [cipher]
    return chosen


@contextmanager
def peer(run: Callable[[Any], None]) -> Iterator[socket.socket]:
    """Our end of a connection whose other end a tlslite peer runs in a thread; what it raises is raised here."""
    ours, theirs = socket.socketpair()
    errors: list[BaseException] = []

    def target() -> None:
        try:
            run(tlslite.TLSConnection(theirs))
        except BaseException as exc:
            errors.append(exc)
        finally:
            theirs.close()

    for end in (ours, theirs):
        end.settimeout(20)
    thread = threading.Thread(target=target)
    thread.start()
    try:
        with ours:
            yield ours
    finally:
        thread.join(20)
        if errors:
            raise errors[0]
    assert not thread.is_alive()


def server(certificate: Path, cipher: str, talk: Talk, tickets: int = 0) -> Callable[[Any], None]:
    """A peer that is the server."""
    chosen = settings(cipher)
    chosen.ticketKeys = [bytearray(32)]
    chosen.ticket_count = tickets

    def run(connection: Any) -> None:
        pem = certificate.read_text(encoding="ascii")
        chain = tlslite.X509CertChain()
        chain.parsePemList(pem)
        key = tlslite.parsePEMKey(pem, private=True)
        connection.handshakeServer(certChain=chain, privateKey=key, settings=chosen)
        talk(connection)

    return run


def connect(sock: socket.socket, release: Release, heard: list[NewSessionTicket]) -> Handoff:
    """Our side of the handshake with a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return handshake(sock, context, server_hostname="localhost", release=release, on_ticket=heard.append)


def send(connection: Any, kind: int, content: bytes) -> None:
    """One record of the peer's, whatever it is."""
    for _ in connection._recordLayer.sendRecord(messages.Message(kind, bytearray(content))):
        pass


def request_update(connection: Any, requested: int) -> None:
    """The peer goes on with new keys."""
    for _ in connection.send_keyupdate_request(requested):
        pass


def padded(connection: Any, n: int) -> None:
    """The peer pads its records from now on."""
    connection._recordLayer.padding_cb = lambda length, kind, most: max(0, min(n, most))


@every_cipher
@every_release
def test_oddities(cipher: str, release: Release, certificate: Path) -> None:
    """Tickets, empty records, padding, messages in pieces and key updates in between: the data is right."""

    def talk(connection: Any) -> None:
        connection.write(b"one")
        send(connection, 23, b"")
        padded(connection, 100)
        connection.write(b"two")
        send(connection, 23, b"")
        request_update(connection, 0)
        connection.write(b"three")
        padded(connection, 0)
        for part in (ticket(b"own")[:3], ticket(b"own")[3:9], ticket(b"own")[9:]):
            send(connection, 22, part)
        send(connection, 21, b"\x01\x5a")
        connection.write(pattern(17_000))
        request_update(connection, 0)
        request_update(connection, 0)
        connection.write(b"last")
        connection.close()

    heard: list[NewSessionTicket] = []
    with peer(server(certificate, cipher, talk, tickets=2)) as sock:
        handoff = connect(sock, release, heard)
        expected = b"onetwothree" + pattern(17_000) + b"last"
        dsts = room(5, 5000, 20_000)
        assert read_full_to_blocks(handoff.reader, dsts) == len(expected)
        assert dsts.tobytes()[: len(expected)] == expected
        assert handoff.reader.eof
    assert len(heard) == 3
    assert heard[-1].ticket == b"own"


@every_cipher
def test_a_key_update_that_is_answered(cipher: str, certificate: Path) -> None:
    """The peer asks for new keys: what we write next comes under them, and it can read it."""
    found: list[bytes] = []

    def talk(connection: Any) -> None:
        connection.write(b"before")
        request_update(connection, 1)
        request_update(connection, 1)
        connection.write(b"after")
        found.append(bytes(connection.read(min=8, max=8)))
        connection.write(b"done")
        connection.close()

    with peer(server(certificate, cipher, talk)) as sock:
        handoff = connect(sock, "verified", [])
        assert handoff.reader.read_at_least(room(100), 11) == 11
        assert handoff.writer.write_from_blocks(blocks(b"answ", b"ered")) == 8
        assert [read(handoff.reader, 9), read(handoff.reader, 9)] == [b"done", b""]
    assert found == [b"answered"]


@pytest.mark.parametrize("name", ENGINES)
@every_release
def test_keys_of_the_peers(name: str, release: Release, certificate: Path) -> None:
    """A reader that is made from nothing but the peer's secret reads what it sends."""
    secrets: list[bytes] = []
    wires: list[bytes] = []

    def talk(connection: Any) -> None:
        secrets.append(bytes(connection.session.sr_app_secret))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            real, connection._recordLayer._recordSocket.sock = connection._recordLayer._recordSocket.sock, theirs
            padded(connection, 7)
            connection.write(b"one")
            request_update(connection, 0)
            connection.write(b"two")
            send(connection, 21, b"\x01\x00")
            wires.append(ours.recv(1 << 16))
            connection._recordLayer._recordSocket.sock = real

    with peer(server(certificate, "aes128gcm", talk)) as sock:
        suite = connect(sock, release, []).suite
        sock.recv(1)
    reader = TLSReader(Script(*wires), TrafficSecret(suite, secrets[0]), release=release, engine_name=name)
    assert [read(reader, 100), read(reader, 100)] == [b"onetwo", b""]


def test_a_client(certificate: Path) -> None:
    """The other way round: we are the server, the client pads, updates its keys and asks for ours."""
    found: list[bytes] = []

    def run(connection: Any) -> None:
        connection.handshakeClientCert(settings=settings("aes256gcm"), serverName="localhost")
        padded(connection, 50)
        connection.write(b"one")
        request_update(connection, 1)
        connection.write(b"two")
        found.append(bytes(connection.read(min=6, max=6)))
        connection.close()

    with peer(run) as sock:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        handoff = handshake(sock, context, server_side=True)
        dsts = room(6)
        assert read_full_to_blocks(handoff.reader, dsts) == 6
        assert dsts.tobytes() == b"onetwo"
        handoff.writer.write_from_blocks(blocks(b"answer"))
        assert read(handoff.reader, 9) == b""
    assert found == [b"answer"]


def test_what_the_peer_may_not_send(certificate: Path) -> None:
    """A message that another interrupts, and one that a client does not take."""
    for kinds in ((22, 23), (22,)):

        def talk(connection: Any, kinds: tuple[int, ...] = kinds) -> None:
            for kind in kinds:
                send(connection, kind, message(11, bytes(20))[: 3 if len(kinds) == 2 else None])

        with peer(server(certificate, "aes128gcm", talk)) as sock:
            handoff = connect(sock, "direct", [])
            with pytest.raises(OSError, match=r"\(unexpected_message\)"):
                read(handoff.reader, 100)
