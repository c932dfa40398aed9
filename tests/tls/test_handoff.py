"""handshake: against the standard library's ssl at the other end, as client and as server."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import tls_peers
from safemem import BlockSeq, read_full_to_blocks
from safemem.tls import (
    SUITES,
    Alert,
    EngineError,
    Handoff,
    NewSessionTicket,
    TLSError,
    TruncationError,
    handshake,
)
from sample_blocks import blocks, room
from tls_peers import (
    TIMEOUT,
    add_certificate,
    client_context,
    peer,
    plain_client,
    plain_server,
    receive_all,
    send_and_close,
    server_context,
    tls_peer,
)

SIDES = [False, True]
"""Whether we are the server."""


def connect(
    sock: socket.socket, server_side: bool, context: ssl.SSLContext | None = None, **options: object
) -> Handoff:
    """Our handshake, as a client of localhost or as a server."""
    if context is None:
        context = plain_server() if server_side else plain_client()
    name = None if server_side else "localhost"
    return handshake(sock, context, server_side=server_side, server_hostname=name, **options)  # type: ignore[arg-type]


def read_all(made: Handoff, size: int = 1 << 20) -> bytes:
    """What the peer sends before its close_notify."""
    dsts = room(size)
    n = read_full_to_blocks(made.reader, dsts)
    assert made.reader.eof
    return dsts.tobytes()[:n]


def wait(sock: socket.socket) -> None:
    """Until the other end is closed."""
    with suppress(ConnectionResetError):
        while sock.recv(1 << 16):
            pass


def echo(tls: ssl.SSLSocket) -> None:
    """Read to the end and send it back; then the end."""
    data = receive_all(tls)
    tls.sendall(data)
    tls.unwrap()


@pytest.mark.parametrize("engine_name", ["cryptography", "libcrypto"])
@pytest.mark.parametrize("server_side", SIDES)
def test_data_goes_both_ways(server_side: bool, engine_name: str) -> None:
    """What we write comes back, over many records, and each side's end is seen by the other."""
    data = bytes(range(256)) * 200
    try:
        with peer(tls_peer(echo, server_side=not server_side)) as sock:
            made = connect(sock, server_side, engine_name=engine_name)
            assert made.suite == SUITES["TLS_AES_256_GCM_SHA384"]
            for at in range(0, len(data), 20_000):
                assert made.writer.write_from_blocks(blocks(data[at : at + 20_000])) == len(data[at : at + 20_000])
            made.writer.close_notify()
            assert read_all(made) == data
            made.close()
    except EngineError as exc:
        pytest.skip(str(exc))


CHILD = """
import socket, ssl, sys
from tls_peers import client_context, server_context
server_side = sys.argv[2] == "True"
context = server_context() if server_side else client_context()
name = None if server_side else "localhost"
with socket.socket(fileno=int(sys.argv[1])) as sock:
    with context.wrap_socket(sock, server_side=server_side, server_hostname=name) as tls:
        tls.sendall(tls.recv(100) + tls.cipher()[0].encode())
        tls.unwrap()
"""
OPENSSL_CONF = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = tls\n[tls]\nCiphersuites = {}\n"


@pytest.mark.parametrize("server_side", SIDES)
@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_suites(suite: object, server_side: bool, tmp_path: Path) -> None:
    """Each cipher suite, with a process whose OpenSSL is configured for that one."""
    assert suite in SUITES.values()
    name: str = suite.name  # type: ignore[attr-defined]
    conf = tmp_path / "openssl.cnf"
    conf.write_text(OPENSSL_CONF.format(name))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(TIMEOUT)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(theirs.fileno()), str(not server_side)],
            pass_fds=[theirs.fileno()],
            env={"OPENSSL_CONF": str(conf), "PYTHONPATH": str(Path(tls_peers.__file__).parent)},
        )
        theirs.close()
        made = connect(ours, server_side)
        assert made.suite == suite
        made.writer.write_from_blocks(blocks(b"hello "))
        assert read_all(made) == b"hello " + name.encode()
        made.writer.close_notify()
        assert child.wait(TIMEOUT) == 0


@pytest.mark.parametrize("count", [0, 1, 2, 4])
@pytest.mark.parametrize("server_side", SIDES)
def test_tickets(server_side: bool, count: int) -> None:
    """However many tickets a server sends: we as server count them, and as client tell them to the callback."""
    context = server_context(num_tickets=count)
    tickets: list[NewSessionTicket] = []
    their_context = plain_client() if server_side else context
    with peer(tls_peer(echo, their_context, server_side=not server_side)) as sock:
        made = connect(sock, server_side, context if server_side else None, on_ticket=tickets.append)
        assert made.writer.write_from_blocks(blocks(b"data")) == 4
        made.writer.close_notify()
        assert read_all(made) == b"data"
    assert len(tickets) == (0 if server_side else count)
    for ticket in tickets:
        assert ticket.lifetime > 0
        assert ticket.ticket


@pytest.mark.parametrize("server_side", SIDES)
def test_what_was_agreed_on(server_side: bool) -> None:
    """The application protocol and the peer's certificate; a server that asks for none sees none."""
    theirs = client_context() if server_side else server_context()
    ours = server_context() if server_side else client_context()
    for context in (ours, theirs):
        context.set_alpn_protocols(["h2", "http/1.1"])
    with peer(tls_peer(send_and_close(b""), theirs, server_side=not server_side)) as sock:
        made = connect(sock, server_side, ours)
        assert made.alpn == "h2"
        if server_side:
            assert (made.peer_certificate, made.peer_certificate_der) == (None, None)
        else:
            assert made.peer_certificate is not None
            assert made.peer_certificate["subjectAltName"] == (("DNS", "localhost"),)
            assert made.peer_certificate_der
        assert read_all(made) == b""
        made.writer.close_notify()


@pytest.mark.parametrize("server_side", SIDES)
def test_client_certificates(server_side: bool) -> None:
    """Both sides show one: the messages are longer, and the server's tickets still count right."""
    server, client = server_context(verify_mode=ssl.CERT_REQUIRED), client_context()
    add_certificate(client)
    ours, theirs = (server, client) if server_side else (client, server)
    with peer(tls_peer(echo, theirs, server_side=not server_side)) as sock:
        made = connect(sock, server_side, ours)
        assert made.peer_certificate is not None
        assert made.peer_certificate["subject"] == ((("commonName", "localhost"),),)
        made.writer.write_from_blocks(blocks(b"data"))
        made.writer.close_notify()
        assert read_all(made) == b"data"


@pytest.mark.parametrize("server_side", SIDES)
def test_data_that_comes_with_the_handshake(server_side: bool) -> None:
    """A peer that speaks at once, and is gone before our first read: all is there."""
    with peer(tls_peer(send_and_close(b"early" * 1000), server_side=not server_side)) as sock:
        made = connect(sock, server_side)
        made.writer.close_notify()
        assert read_all(made) == b"early" * 1000


def test_a_hello_retry() -> None:
    """A server that wants another group: there are two ClientHellos, and one handshake."""
    server = server_context()
    server.set_ecdh_curve("secp384r1")
    for ours, theirs, server_side in ((client_context(), server, False), (server, client_context(), True)):
        with peer(tls_peer(echo, theirs, server_side=not server_side)) as sock:
            made = connect(sock, server_side, ours)
            made.writer.write_from_blocks(blocks(b"data"))
            made.writer.close_notify()
            assert read_all(made) == b"data"


@pytest.mark.parametrize("server_side", SIDES)
def test_tls_1_2_is_refused(server_side: bool) -> None:
    """Another version is an error that says which, and what to do."""
    old = ssl.TLSVersion.TLSv1_2
    theirs = client_context(maximum_version=old) if server_side else server_context(maximum_version=old)
    with peer(tls_peer(lambda tls: None, theirs, server_side=not server_side)) as sock:
        with pytest.raises(TLSError, match=r"TLSv1\.2 was agreed on") as caught:
            connect(sock, server_side)
        assert caught.value.alert is Alert.PROTOCOL_VERSION


@pytest.mark.parametrize("server_side", SIDES)
@pytest.mark.parametrize("garbage", [b"220 ready\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5, b"SSH-2.0-x\r\n"])
def test_a_peer_that_speaks_no_tls(garbage: bytes, server_side: bool) -> None:
    """It is an ssl.SSLError as soon as that is plain, though the peer waits for us and sends nothing more."""

    def speak(sock: socket.socket) -> None:
        sock.sendall(garbage)
        wait(sock)

    with peer(speak) as sock:
        sock.settimeout(2)
        with pytest.raises(ssl.SSLError):
            connect(sock, server_side)


def cut(inner: Callable[[socket.socket], object], limit: int) -> Callable[[socket.socket], object]:
    """A peer of whose bytes only the first ``limit`` get through."""

    def speak(sock: socket.socket) -> None:
        near, far = socket.socketpair()
        with near, far:
            near.settimeout(TIMEOUT)
            far.settimeout(TIMEOUT)

            def through(left: int) -> None:
                while left and (data := near.recv(min(left, 1 << 16))):
                    left -= len(data)
                    sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)

            def back() -> None:
                while data := sock.recv(1 << 16):
                    near.sendall(data)
                near.shutdown(socket.SHUT_WR)

            threads = [threading.Thread(target=through, args=[limit]), threading.Thread(target=back)]
            for thread in threads:
                thread.start()
            with suppress(OSError):
                inner(far)
            for thread in threads:
                thread.join()

    return speak


@pytest.mark.parametrize("server_side", SIDES)
def test_a_peer_that_goes_away(server_side: bool) -> None:
    """Wherever its bytes end, in a record or between two, the handshake is truncated."""
    for limit in [0, 1, 4, 5, 6, 100, 127, 128, 200, 300, 500] if not server_side else [0, 1, 5, 6, 200, 517, 523]:
        with peer(cut(tls_peer(lambda tls: None, server_side=not server_side), limit)) as sock:
            with pytest.raises(TruncationError) as caught:
                connect(sock, server_side)
            assert caught.value.inside_record or limit not in (1, 4, 6)
            sock.shutdown(socket.SHUT_RDWR)


def test_a_certificate_that_is_not_trusted() -> None:
    """The error is the standard library's, and the peer is told why."""
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"), peer(tls_peer(receive_all)) as sock:
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(sock, False, context)
        sock.shutdown(socket.SHUT_RDWR)


def test_an_alert_that_cannot_be_sent() -> None:
    """The peer is gone: the error is still why the handshake failed."""

    class Deaf(socket.socket):
        def sendall(self, data: object, flags: int = 0) -> None:
            raise BrokenPipeError

    ours, theirs = socket.socketpair()
    with theirs, Deaf(fileno=ours.detach()) as sock:
        theirs.sendall(b"\x16\x03\x01\x00\x04what")
        with pytest.raises(ssl.SSLError):
            connect(sock, True)


def test_sockets_that_cannot() -> None:
    """One that TLS has been spoken on, and one that does not wait."""
    with peer(lambda sock: sock.recv(1)) as sock:
        wrapped = plain_client().wrap_socket(sock.dup(), server_hostname="localhost", do_handshake_on_connect=False)
        with wrapped, pytest.raises(TypeError, match="plain socket"):
            connect(wrapped, False)
        sock.setblocking(False)
        with pytest.raises(ValueError, match="must wait"):
            connect(sock, False)
        sock.settimeout(1)
        with pytest.raises(ValueError, match="engine"):
            connect(sock, False, engine_name="none")


def test_a_timeout_of_the_socket() -> None:
    """A peer that says nothing: TimeoutError, and the context is as before."""
    context = client_context()
    with peer(wait) as sock:
        sock.settimeout(0.01)
        with pytest.raises(TimeoutError):
            connect(sock, False, context)
        assert context.keylog_filename is None


def test_release_goes_to_the_reader() -> None:
    """Options of the reader are taken: truncation that is allowed."""
    with peer(tls_peer(lambda tls: tls.sendall(b"cut"))) as sock:
        made = connect(sock, False, allow_truncation=True, release="direct")
        assert read_all(made) == b"cut"
        assert made.reader.read_to_blocks(BlockSeq()) == 0
