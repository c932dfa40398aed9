"""The tour's TLS stage: a file over a real TLS 1.3 connection on loopback, by readv into the guest's buffers.

The certificate beside this file is for nothing but this: its key is public. It is valid from 1950 to 9999, so that no
host's clock is wrong for it.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from pathlib import Path

from hostarch import AddrRangeSeq
from safemem import BlockSeq, Reader, WriterFunc
from safemem.tls import EngineError, handshake, ssl_object_pair
from usermem.address_space import AddressSpace
from usermem.terminal import Progress
from usermem.tour.guest import Say
from usermem.vec import zero_out_vec

_CERTIFICATE = Path(__file__).with_name("certificate.pem")
_NAME = "localhost"


def read_over_tls(space: AddressSpace, buffers: AddrRangeSeq, data: bytes, say: Say) -> str:
    """Have a server send the data, read it into the buffers, and return the SHA-256 of what they hold then.

    Without an AEAD engine the standard library decrypts.
    """
    say("\n7. readv(socket) over TLS 1.3")
    zero_out_vec(space, buffers, buffers.num_bytes)
    client = ssl.create_default_context(cafile=_CERTIFICATE)
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        server = threading.Thread(target=_serve, args=(listener, data))
        server.start()
        try:
            with socket.create_connection(listener.getsockname()[:2], timeout=30) as sock:
                reader: Reader
                try:
                    hand = handshake(sock, client, server_hostname=_NAME)
                    reader, who = hand.reader, f"{hand.suite.name}, decrypted by {hand.reader.engine_name}"
                except EngineError as exc:
                    say(f"   {exc}")
                    reader, _ = ssl_object_pair(sock, client, server_hostname=_NAME)
                    who = "decrypted by the standard library"
                rest, calls = _read_all(space, buffers, reader)
        finally:
            server.join()
    digest = hashlib.sha256()

    def update(srcs: BlockSeq) -> int:
        for block in srcs:
            digest.update(block.view())
        return srcs.num_bytes

    space.copy_in_to(buffers, WriterFunc(update))
    many = f"{calls} call{'s' * (calls != 1)}"
    say(f"   {buffers.num_bytes - rest.num_bytes} bytes in {many}, {who}")
    return digest.hexdigest()


def _read_all(space: AddressSpace, rest: AddrRangeSeq, reader: Reader) -> tuple[AddrRangeSeq, int]:
    """Read until the end, or until the buffers are full: what is left of them, and how many calls that took."""
    calls, size = 0, rest.num_bytes
    with Progress("readv(socket)", size) as show:
        while rest.num_bytes and (n := space.copy_out_from(rest, reader)):
            rest = rest.drop_first(n)
            calls += 1
            show(size - rest.num_bytes)
    return rest, calls


def _serve(listener: socket.socket, data: bytes) -> None:
    """Accept one connection and send the data over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_CERTIFICATE)
    sock, _ = listener.accept()
    sock.settimeout(30)
    with sock, context.wrap_socket(sock, server_side=True) as tls:
        tls.sendall(data)
