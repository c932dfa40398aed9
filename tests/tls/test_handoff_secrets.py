"""Where the secrets of a handshake go, many handshakes at once, and key updates with an independent peer."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import threading
from pathlib import Path

import pytest

from safemem import read_full_to_blocks
from safemem.tls import Handoff, TLSError, handshake
from sample_blocks import blocks, room
from tls_peers import CERTIFICATE, KEY, client_context, peer, send_and_close, server_context, tls_peer


def exchange(context: ssl.SSLContext, data: bytes = b"hello") -> None:
    """A handshake as client and some data."""
    with peer(tls_peer(send_and_close(data))) as sock:
        made = handshake(sock, context, server_hostname="localhost")
        dsts = room(len(data) + 1)
        assert read_full_to_blocks(made.reader, dsts) == len(data)
        assert dsts.tobytes()[:-1] == data
        made.writer.close_notify()
        made.close()


@pytest.fixture(params=["memory file", "pipe", "refused"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the secrets pass through: a file in memory, or a pipe where there are none, or a sandbox refuses them."""

    def refuse(name: str) -> int:
        raise PermissionError(errno.EPERM, name)

    name: str = request.param
    if name == "pipe":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif name == "refused":
        monkeypatch.setattr(os, "memfd_create", refuse)
    return name


def test_a_handshake_leaves_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no descriptor, and the context as it was."""
    monkeypatch.chdir(tmp_path)
    context = client_context()
    exchange(context)
    before = len(list(Path("/proc/self/fd").iterdir()))
    exchange(context)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert context.keylog_filename is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("kind")
def test_a_keylog_of_the_users(tmp_path: Path) -> None:
    """Their file gets the lines of the handshake, and the context goes on to write there."""
    path = tmp_path / "keys"
    context = client_context(keylog_filename=str(path))
    exchange(context)
    assert context.keylog_filename == str(path)
    ours = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(ours) == 5
    assert len({line.split()[1] for line in ours}) == 1
    with peer(tls_peer(send_and_close(b"x"))) as sock, context.wrap_socket(sock, server_hostname="localhost") as tls:
        assert tls.recv(10) == b"x"
        tls.unwrap()
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert lines[:5] == ours
    assert len(lines) == 10


@pytest.mark.usefixtures("kind")
def test_a_keylog_of_a_version_that_is_refused(tmp_path: Path) -> None:
    """Their file gets the line of a handshake that we did not go on with, too."""
    path = tmp_path / "keys"
    context = client_context(keylog_filename=str(path))
    old = server_context(maximum_version=ssl.TLSVersion.TLSv1_2)
    with peer(tls_peer(lambda tls: None, old)) as sock, pytest.raises(TLSError):
        handshake(sock, context, server_hostname="localhost")
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert [line.split()[0] for line in lines] == ["CLIENT_RANDOM"]


def test_a_handshake_that_fails_puts_the_context_back(tmp_path: Path) -> None:
    """The user's keylog is the context's again whatever happens."""
    path = tmp_path / "keys"
    context = ssl.create_default_context()
    context.keylog_filename = str(path)
    with (
        pytest.raises(ssl.SSLError, match="UNKNOWN_CA"),
        peer(tls_peer(lambda tls: tls.recv(1))) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        handshake(sock, context, server_hostname="localhost")
    assert context.keylog_filename == str(path)


@pytest.mark.parametrize("server_side", [False, True])
@pytest.mark.usefixtures("kind")
def test_eight_at_once(server_side: bool) -> None:
    """On one context, with a start at the same time: each gets its own secrets, and its own data."""
    context = server_context() if server_side else client_context()
    start = threading.Barrier(8)
    found: dict[int, bytes] = {}

    def run(number: int) -> None:
        data = b"%d " % number * 2000
        with peer(tls_peer(send_and_close(data), server_side=not server_side)) as sock:
            start.wait(10)
            name = None if server_side else "localhost"
            made = handshake(sock, context, server_hostname=name, server_side=server_side)
            dsts = room(len(data) + 1)
            read_full_to_blocks(made.reader, dsts)
            made.writer.close_notify()
            if dsts.tobytes() == data + b"\xee":
                found[number] = data

    threads = [threading.Thread(target=run, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8))
    assert context.keylog_filename is None


@pytest.mark.usefixtures("kind")
def test_one_handshake_inside_another() -> None:
    """One that waits for its peer while others come and go on its context still finds its secrets."""
    context = client_context()
    go_on = threading.Event()

    def speak(sock: socket.socket) -> None:
        assert go_on.wait(10)
        tls_peer(send_and_close(b"late"))(sock)

    with peer(speak) as sock:
        made: list[Handoff] = []
        thread = threading.Thread(target=lambda: made.append(handshake(sock, context, server_hostname="localhost")))
        thread.start()
        for _ in range(3):
            exchange(context)
        go_on.set()
        thread.join()
        dsts = room(5)
        assert read_full_to_blocks(made[0].reader, dsts) == 4
        assert dsts.tobytes() == b"late\xee"
        made[0].writer.close_notify()
    assert context.keylog_filename is None


def test_key_updates_between_two_of_our_own_ends() -> None:
    """Both sides update and ask the other to; the data between is all there, and nothing is asked for ever."""
    said: dict[str, bytes] = {}

    def talk(made: Handoff, name: str) -> None:
        for number in range(20):
            made.writer.write_from_blocks(blocks(b"%d," % number))
            if number % 3 == 0:
                made.writer.update_keys(request_peer=number % 2 == 0)
            dsts = room(3 if number > 9 else 2)
            assert made.reader.read_at_least(dsts, dsts.num_bytes) == dsts.num_bytes
            said[name] = said.get(name, b"") + dsts.tobytes()

    server = server_context()
    with peer(lambda sock: talk(handshake(sock, server, server_side=True), "server")) as sock:
        talk(handshake(sock, client_context(), server_hostname="localhost"), "client")
    assert said["client"] == said["server"] == b"".join(b"%d," % number for number in range(20))


@pytest.mark.parametrize("request_peer", [False, True])
def test_the_writer_answers_what_the_reader_reads(request_peer: bool) -> None:
    """A request for new keys is a record before our next data, as far as it was one."""
    sent = []

    class Tap(socket.socket):
        def send(self, data: object, flags: int = 0) -> int:
            sent.append(super().send(data, flags))  # type: ignore[arg-type]
            return sent[-1]

    def speak(sock: socket.socket) -> None:
        made = handshake(sock, server_context(), server_side=True)
        made.writer.update_keys(request_peer)
        made.writer.write_from_blocks(blocks(b"a"))
        assert made.reader.read_at_least(room(2), 2) == 2

    with peer(speak) as sock, Tap(fileno=sock.detach()) as tap:
        tap.settimeout(10)
        made = handshake(tap, client_context(), server_hostname="localhost")
        assert made.reader.read_to_blocks(room(1)) == 1
        for _ in range(2):
            made.writer.write_from_blocks(blocks(b"b"))
    assert sent == [23 + 27 * request_peer, 23]


def test_key_updates_with_another_implementation() -> None:
    """It asks for new keys and gets them before our next data; we ask, and read on under its new ones."""
    api = pytest.importorskip("tlslite.api", reason="the peer is tlslite-ng")
    private = api.parsePEMKey(KEY, private=True)
    chain = api.X509CertChain()
    chain.parsePemList(CERTIFICATE)
    got = []

    def speak(sock: socket.socket) -> None:
        settings = api.HandshakeSettings()
        settings.cipherNames = ["aes128gcm"]
        settings.minVersion = (3, 4)
        tls = api.TLSConnection(sock)
        tls.handshakeServer(certChain=chain, privateKey=private, settings=settings)
        tls.write(b"one,")
        list(tls.send_keyupdate_request(1))
        tls.write(b"two,")
        got.append(tls.read(min=6, max=6))
        list(tls.send_keyupdate_request(0))
        tls.write(b"three,")
        got.append(tls.read(min=4, max=4))
        tls.write(b"four")
        tls.close()

    with peer(speak) as sock:
        made = handshake(sock, client_context(), server_hostname="localhost")
        assert made.suite.name == "TLS_AES_128_GCM_SHA256"
        dsts = room(18)
        assert made.reader.read_at_least(dsts, 8) == 8
        made.writer.write_from_blocks(blocks(b"answer"))
        assert made.reader.read_at_least(dsts.drop_first(8), 6) == 6
        made.writer.update_keys(request_peer=True)
        made.writer.write_from_blocks(blocks(b"more"))
        assert made.reader.read_at_least(dsts.drop_first(14), 4) == 4
        assert dsts.tobytes() == b"one,two,three,four"
        assert read_full_to_blocks(made.reader, room(1)) == 0
    assert got == [b"answer", b"more"]
