"""SSLObject readers and writers to test, over a socket, and in memory with a server that only encrypts."""

from __future__ import annotations

import ssl
from contextlib import suppress

from safemem.tls import SSLObjectReader, SSLObjectWriter, SSLSession, ssl_object_pair
from tls_peers import (
    client_context,
    plain_client,
    plain_server,
)
from tls_records import Sink, Source

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
Pair = tuple[SSLObjectReader, SSLObjectWriter]


def pair(sock: object, server_side: bool = False, **options: object) -> Pair:
    """Our end, as a client of localhost or as a server."""
    context = plain_server() if server_side else plain_client()
    name = None if server_side else "localhost"
    return ssl_object_pair(sock, context, server_side=server_side, server_hostname=name, **options)  # type: ignore[arg-type]


class Encrypting(Source):
    """A Source that gives what its ``server`` has encrypted."""

    def __init__(self, server: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        super().__init__()
        self.server = server
        self.incoming = incoming
        self._outgoing = outgoing

    def feed(self, data: bytes = b"", *, close: bool = False) -> bytes:
        """Have the server write the data, and then close: all it has to send is the next part, and returned."""
        if data:
            self.server.write(data)
        if close:
            with suppress(ssl.SSLWantReadError):
                self.server.unwrap()
        encrypted = self._outgoing.read()
        self.parts.append(encrypted)
        return encrypted


def in_memory(version: ssl.TLSVersion, **options: object) -> tuple[Encrypting, SSLObjectReader, Sink]:
    """After a handshake: where ciphertext comes from, the client's reader, where its writer sends to."""
    server_in, server_out, client_in, client_out = (ssl.MemoryBIO() for _ in range(4))
    server = plain_server().wrap_bio(server_in, server_out, server_side=True)
    context = client_context(maximum_version=version)
    client = context.wrap_bio(client_in, client_out, server_hostname="localhost")
    for _ in range(4):
        for end in (client, server):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
            server_in.write(client_out.read())
            client_in.write(server_out.read())
    source, sink = Encrypting(server, server_in, server_out), Sink()
    reader = SSLObjectReader(source, SSLSession(sink, client, client_in, client_out), **options)  # type: ignore[arg-type]
    return source, reader, sink
