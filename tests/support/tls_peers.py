"""The other end of a TLS connection: contexts for localhost, and a thread that speaks over a socketpair."""

from __future__ import annotations

import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

# A certificate for localhost, its own authority, valid from 2020 to 2120, and its key. For tests alone.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBgzCCASigAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCyXEjzbszlnXvSR
zA2XfMYcGj5oo3JMjG7oaA2Ae3k1spFFF9lWjq9iDckBycdO36znvVwzpAgvsrtZ
i5OB7dOjaTBnMBQGA1UdEQQNMAuCCWxvY2FsaG9zdDAPBgNVHRMBAf8EBTADAQH/
MB0GA1UdDgQWBBRKezDa4lpGtEgoNC1o2bxeBphqKDAfBgNVHSMEGDAWgBRKezDa
4lpGtEgoNC1o2bxeBphqKDAKBggqhkjOPQQDAgNJADBGAiEAuo2fNQSn1/hy0Vs3
D/1ibHTFl+DPa+IFd38RrDCTKQECIQCFvgfb3/dgLlfVkOZdbnn/8G6TjjELDPnO
oV+/Jty5qA==
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgaXwQtbvP4qrUyrow
z6noF2d55u2IcbDSHhqtC+2DeU+hRANCAAQslxI827M5Z170kcwNl3zGHBo+aKNy
TIxu6GgNgHt5NbKRRRfZVo6vYg3JAcnHTt+s571cM6QIL7K7WYuTge3T
-----END PRIVATE KEY-----
"""
TIMEOUT = 10
"""Seconds after which an end that waits for the other gives up."""


def client_context(**options: object) -> ssl.SSLContext:
    """A client's context that trusts the certificate. The options are set as attributes."""
    context = ssl.create_default_context(cadata=CERTIFICATE)
    for name, value in options.items():
        setattr(context, name, value)
    return context


def server_context(**options: object) -> ssl.SSLContext:
    """A server's context with the certificate, which it also trusts. The options are set as attributes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(cadata=CERTIFICATE)
    add_certificate(context)
    for name, value in options.items():
        setattr(context, name, value)
    return context


def add_certificate(context: ssl.SSLContext) -> None:
    """Give a context the certificate and its key, which must come from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pem"
        path.write_text(CERTIFICATE + KEY, encoding="ascii")
        context.load_cert_chain(path)


@cache
def plain_server() -> ssl.SSLContext:
    """A server's context that no test changes."""
    return server_context()


@cache
def plain_client() -> ssl.SSLContext:
    """A client's context that no test changes."""
    return client_context()


class Failures(list[BaseException]):
    """What was raised in threads."""


@contextmanager
def peer(speak: Callable[[socket.socket], object]) -> Iterator[socket.socket]:
    """Our end of a socketpair, while a thread speaks at the other end.

    At the end ours is closed and the thread joined. What it raised is raised, if nothing else was.
    """
    ours, theirs = socket.socketpair()
    failures = Failures()

    def run() -> None:
        try:
            with theirs:
                speak(theirs)
        except BaseException as exc:
            failures.append(exc)

    for end in (ours, theirs):
        end.settimeout(TIMEOUT)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        with ours:
            yield ours
    finally:
        thread.join(2 * TIMEOUT)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def tls_peer(
    speak: Callable[[ssl.SSLSocket], object], context: ssl.SSLContext | None = None, server_side: bool = True
) -> Callable[[socket.socket], object]:
    """For :func:`peer`: a standard library's end, a server if it is ``server_side``, which speaks after the handshake.

    Its socket is closed without a close_notify, unless what speaks sends one.
    """
    if context is None:
        context = plain_server() if server_side else plain_client()

    def run(sock: socket.socket) -> None:
        name = None if server_side else "localhost"
        with context.wrap_socket(
            sock, server_side=server_side, server_hostname=name, suppress_ragged_eofs=False
        ) as tls:
            speak(tls)

    return run


def send_and_close(data: bytes) -> Callable[[ssl.SSLSocket], object]:
    """An end that sends the data and close_notify, and waits for the other's end."""

    def speak(tls: ssl.SSLSocket) -> None:
        tls.sendall(data)
        tls.unwrap().close()

    return speak


def receive_all(tls: ssl.SSLSocket) -> bytes:
    """What the other end sends before its close_notify."""
    found = bytearray()
    while data := tls.recv(1 << 16):
        found += data
    return bytes(found)


class Wire:
    """A socket that counts its receives and sends, and gives and takes up to ``limit`` bytes a call."""

    def __init__(self, sock: socket.socket, limit: int = 1 << 20) -> None:
        self._sock = sock
        self._limit = limit
        self.received: list[int] = []
        self.sent: list[int] = []

    def recv_into(self, view: memoryview) -> int:
        """As the socket's."""
        n = self._sock.recv_into(view[: self._limit])
        self.received.append(n)
        return n

    def recv(self, size: int) -> bytes:
        """As the socket's."""
        data = self._sock.recv(min(size, self._limit))
        self.received.append(len(data))
        return data

    def send(self, data: memoryview) -> int:
        """As the socket's."""
        n = self._sock.send(data[: self._limit])
        self.sent.append(n)
        return n

    def sendall(self, data: bytes) -> None:
        """As the socket's."""
        self.sent.append(len(data))
        self._sock.sendall(data)

    def gettimeout(self) -> float | None:
        """As the socket's."""
        return self._sock.gettimeout()
