"""The ends of TLS writers and readers: sinks that end, writing after close_notify, closing twice, what waits."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest

from safemem import Block, BlockSeq, WriterFunc
from safemem.tls import TLSWriter, TrafficSecret
from safemem.tls.keys import TLS_AES_128_GCM_SHA256
from tls_peers import plain_server
from tls_ssl_objects import VERSIONS, in_memory, pair

KEYS = TrafficSecret(TLS_AES_128_GCM_SHA256, bytes(32))
DATA = BlockSeq.of(Block(b"data"))


def test_a_sink_that_ends() -> None:
    """A Writer's 0 is its end, and not a moment to wait for: the next call says so."""
    tls = TLSWriter(WriterFunc(lambda srcs: 0), KEYS)
    assert tls.write_from_blocks(DATA) == 4
    for _ in range(2):
        with pytest.raises(BrokenPipeError, match="takes nothing more"):
            tls.write_from_blocks(DATA)


def test_closing_twice() -> None:
    """The second does nothing; a write says that it is closed; closing during a write is refused."""
    refused: list[str] = []

    def close(srcs: BlockSeq) -> int:
        try:
            tls.close()
        except RuntimeError as exc:
            refused.append(str(exc))
        return srcs.num_bytes

    tls = TLSWriter(WriterFunc(close), KEYS)
    assert tls.write_from_blocks(DATA) == 4
    assert refused == ["another write is under way"]
    tls.close()
    tls.close()
    with pytest.raises(ValueError, match="closed"):
        tls.write_from_blocks(DATA)


def test_an_ssl_object_after_close_notify() -> None:
    """Nothing more can be written, as by a TLSWriter."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def serve() -> None:
            with plain_server().wrap_socket(theirs, server_side=True) as tls:
                assert tls.recv(10) == b"data"
                assert tls.recv(10) == b""

        server = threading.Thread(target=serve)
        server.start()
        _, writer = pair(ours)
        assert writer.write_from_blocks(DATA) == 4
        writer.close_notify()
        assert writer.pending() == 0
        with pytest.raises(BrokenPipeError, match="close_notify"):
            writer.write_from_blocks(DATA)
        server.join()


@pytest.mark.parametrize("version", VERSIONS)
def test_what_waits_is_told(version: ssl.TLSVersion) -> None:
    """After a read that filled its blocks exactly, more may wait where no poll of the transport would tell."""
    source, reader, _ = in_memory(version)
    both = source.feed(b"first") + source.feed(b"second")
    source.parts[:] = [both]
    dsts = BlockSeq.of(Block(bytearray(5)))
    assert reader.read_to_blocks(dsts) == 5
    assert reader.has_pending()
    assert reader.read_to_blocks(BlockSeq.of(Block(bytearray(6)))) == 6
    assert not reader.has_pending()
