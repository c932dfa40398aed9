"""SSLObjectReader and SSLObjectWriter together: two threads, half-close, answers to the peer, the handshake."""

from __future__ import annotations

import socket
import ssl
import threading
from functools import partial

import pytest

from safemem import BlockSeq, WriterFunc, read_full_to_blocks, write_full_from_blocks
from safemem.tls import SSLObjectWriter, StreamInterruptedError, TruncationError, handshake, ssl_object_pair
from safemem.tls.transport import Transport, sender
from sample_blocks import blocks, room
from tls_peers import (
    peer,
    receive_all,
    send_and_close,
    server_context,
    tls_peer,
)
from tls_ssl_objects import VERSIONS, in_memory, pair
from usermem.testing.operations import pattern


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [100, 40_000])
def test_our_close_notify_keeps_what_the_peer_has_sent(version: ssl.TLSVersion, size: int) -> None:
    """Our end is not the peer's: what it has sent and sends is still read, of the record that was begun too."""
    source, reader, _ = in_memory(version)
    data = pattern(size)
    source.feed(data)
    dsts = room(size)
    assert reader.read_to_blocks(dsts.take_first(10)) == 10
    writer = SSLObjectWriter(reader._session)
    writer.close_notify()
    source.feed(b"more", close=True)
    assert read_full_to_blocks(reader, dsts.drop_first(10)) == size - 10
    assert dsts.tobytes() == data
    last = room(5)
    assert read_full_to_blocks(reader, last) == 4
    assert last.tobytes() == b"more\xee"


def test_two_threads() -> None:
    """One writes while the other reads, both a lot: nothing is lost, doubled or out of order."""
    data = pattern(1_500_000)

    def echo(tls: ssl.SSLSocket) -> None:
        while received := tls.recv(1 << 16):
            tls.sendall(received)
        tls.unwrap()

    with peer(tls_peer(echo)) as sock:
        reader, writer = pair(sock)
        failed: list[BaseException] = []

        def write() -> None:
            try:
                for at in range(0, len(data), 50_000):
                    assert write_full_from_blocks(writer, blocks(data[at : at + 50_000])) == 50_000
                writer.close_notify()
            except BaseException as exc:
                failed.append(exc)

        thread = threading.Thread(target=write)
        thread.start()
        dsts = room(len(data) + 1)
        n = read_full_to_blocks(reader, dsts)
        thread.join()
        assert not failed
        assert dsts.tobytes() == data + b"\xee"
        assert n == len(data)


def test_the_reader_does_not_take_the_writers_errors() -> None:
    """A peer that reads no more is the writer's to know: what it has sent is still read."""
    source, reader, sink = in_memory(VERSIONS[1])
    writer = SSLObjectWriter(reader._session)
    sink.script = [BrokenPipeError()]
    assert writer.write_from_blocks(blocks(b"abc")) == 3
    source.feed(b"last words", close=True)
    dsts = room(20)
    assert read_full_to_blocks(reader, dsts) == 10
    with pytest.raises(BrokenPipeError):
        writer.write_from_blocks(blocks(b"def"))


def test_two_threads_send_each_byte_once() -> None:
    """The reader sends what the SSLObject answers, but not what the writer is just sending."""
    _, reader, _ = in_memory(VERSIONS[1])
    writer = SSLObjectWriter(reader._session)
    sent: list[bytes] = []

    def read() -> None:
        with pytest.raises(TruncationError):
            reader.read_to_blocks(room(1))

    def send(view: memoryview) -> int:
        first = not sent
        sent.append(bytes(view))
        if first:
            reader._source = reader._source._replace(call=lambda view: 0)
            thread = threading.Thread(target=read)
            thread.start()
            thread.join(5)
            assert not thread.is_alive()
        return len(view)

    writer._session._sink = Transport(send, lambda view: view, "the sink")
    writer.write_from_blocks(blocks(b"abc"))
    assert len(sent) == 1


def test_the_reader_sends_answers() -> None:
    """What the SSLObject has to say goes out before the reader waits; where it cannot, the reader goes on."""
    source, reader, sink = in_memory(VERSIONS[1])
    writer = SSLObjectWriter(reader._session)
    sink.script = [3, BlockingIOError()]
    writer._session.outgoing.write(b"answer")
    source.feed(b"data")
    assert reader.read_to_blocks(room(4)) == 4
    assert bytes(sink.got) == b"ans"
    writer.flush()
    assert bytes(sink.got) == b"answer"


def test_key_updates_and_tickets() -> None:
    """Our own writer at the other end updates its keys and asks us to: the data is all there, and so is the answer."""
    server = server_context(num_tickets=3)

    def speak(sock: socket.socket) -> None:
        made = handshake(sock, server, server_side=True)
        for request in (False, True, True):
            made.writer.write_from_blocks(blocks(b"data"))
            made.writer.update_keys(request_peer=request)
        made.writer.close_notify()
        dsts = room(5)
        assert read_full_to_blocks(made.reader, dsts) == 4
        assert dsts.tobytes()[:4] == b"back"

    with peer(speak) as sock:
        reader, writer = pair(sock)
        dsts = room(20)
        assert read_full_to_blocks(reader, dsts) == 12
        assert dsts.tobytes()[:12] == b"data" * 3
        writer.write_from_blocks(blocks(b"back"))
        writer.close_notify()


def test_handshakes_that_fail() -> None:
    """A certificate that is not trusted, a peer that is gone, one that speaks no TLS, a socket that does not wait."""
    with (
        pytest.raises(ssl.SSLError, match="UNKNOWN_CA"),
        peer(tls_peer(receive_all)) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl_object_pair(sock, ssl.create_default_context(), server_hostname="localhost")
    with peer(lambda sock: sock.recv(1 << 16)) as sock, pytest.raises(TruncationError):
        pair(sock)
    with peer(lambda sock: sock.sendall(b"220 ready\r\n")) as sock, pytest.raises((ssl.SSLError, BrokenPipeError)):
        pair(sock)
    with peer(lambda sock: sock.recv(1)) as sock:
        sock.setblocking(False)
        with pytest.raises(ValueError, match="must wait"):
            pair(sock)


def test_data_that_comes_with_the_handshake() -> None:
    """A peer that speaks at once: its data is in the same receive as its last handshake message, and is not lost."""
    with peer(tls_peer(send_and_close(b"early" * 1000))) as sock:
        reader, writer = pair(sock)
        dsts = room(5001)
        assert read_full_to_blocks(reader, dsts) == 5000
        assert dsts.tobytes()[:5000] == b"early" * 1000
        writer.close_notify()


def test_a_close_notify_after_a_read_that_was_torn() -> None:
    """Does not make it whole."""
    source, reader, _ = in_memory(ssl.TLSVersion.TLSv1_3)
    source.feed(b"data")
    reader._call.torn = True  # as an interrupt leaves it
    SSLObjectWriter(reader._session).close_notify()
    with pytest.raises(StreamInterruptedError):
        reader.read_to_blocks(room(9))


def test_a_call_in_the_middle_of_a_write() -> None:
    """A signal handler's, say: it is refused, and does not wait for ever. A read there sends no answer."""
    source, reader, sink = in_memory(ssl.TLSVersion.TLSv1_3)
    writer = SSLObjectWriter(reader._session)
    source.feed(b"data")
    refused = []

    def again(srcs: BlockSeq) -> int:
        for call in (partial(writer.write_from_blocks, blocks(b"again")), writer.flush, writer.close_notify):
            with pytest.raises(RuntimeError, match="another write is under way"):
                call()
            refused.append(call)
        assert reader.read_to_blocks(room(9)) == 4
        return sink.write_from_blocks(srcs)

    reader._session._sink = sender(WriterFunc(again))
    assert writer.write_from_blocks(blocks(b"once")) == 4
    assert len(refused) == 3
    assert len(sink.calls) == 1


def test_a_handshake_that_fails_while_data_wait_for_it() -> None:
    """Each write says so, and none that it was interrupted."""
    _, reader, _ = in_memory(ssl.TLSVersion.TLSv1_2)
    errors: list[ssl.SSLError] = [ssl.SSLWantReadError()]

    class Renegotiating:
        def write(self, data: object) -> int:
            raise errors.pop() if errors else ssl.SSLError(1, "no renegotiation")

    reader._session.tls = Renegotiating()  # type: ignore[assignment]
    writer = SSLObjectWriter(reader._session)
    assert writer.write_from_blocks(blocks(b"data")) == 4
    for _ in range(3):
        with pytest.raises(ssl.SSLError, match="no renegotiation"):
            writer.write_from_blocks(blocks(b"more"))
