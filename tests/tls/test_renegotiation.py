"""TLS 1.2's second handshake in the middle of a connection: what is written meanwhile waits for its end, and then goes.

IIS and Apache ask for it, to see a client's certificate. The standard library's server cannot; pyOpenSSL's can.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
from pathlib import Path
from typing import Any

import pytest

from safemem.tls import ssl_object_pair
from sample_blocks import blocks, room
from tls_peers import CERTIFICATE, KEY, client_context, peer

SSL = pytest.importorskip("OpenSSL.SSL", reason="the peer is pyOpenSSL")


def connection(sock: socket.socket) -> Any:
    """The server's end."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pem"
        path.write_text(CERTIFICATE + KEY, encoding="ascii")
        context.use_certificate_file(str(path))
        context.use_privatekey_file(str(path))
    sock.setblocking(True)
    found = SSL.Connection(context, sock)
    found.set_accept_state()
    found.do_handshake()
    return found


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("size", [14, 140_000])
def test_a_write_during_a_renegotiation(size: int, pieces: int) -> None:
    """One thread that writes, and then reads, comes on, as with an SSLSocket."""
    got = []

    def speak(sock: socket.socket) -> None:
        server = connection(sock)
        assert server.recv(9) == b"hi"
        server.renegotiate()
        server.do_handshake()
        server.sendall(b"ready")
        data = b""
        while len(data) < size:
            data += server.recv(1 << 16)
        got.append(data)
        server.sendall(b"thanks")

    client = client_context(maximum_version=ssl.TLSVersion.TLSv1_2)
    with peer(speak) as sock:
        reader, writer = ssl_object_pair(sock, client, server_hostname="localhost")
        assert writer.write_from_blocks(blocks(b"hi")) == 2
        dsts = room(5)
        assert reader.read_to_blocks(dsts) == 5
        assert dsts.tobytes() == b"ready"
        data = (bytes(range(251)) * (size // 251 + 1))[:size]
        cut = size // pieces
        assert writer.write_from_blocks(blocks(*(data[at : at + cut] for at in range(0, size, cut)))) == size
        assert reader.read_to_blocks(dsts) == 5
        assert dsts.tobytes() == b"thank"
        assert writer.pending() == 0
    assert got == [data]
