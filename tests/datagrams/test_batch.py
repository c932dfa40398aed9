"""MessageBatch: what the kernel fills and sends, by the calls themselves, on loopback sockets."""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from queue_endpoint import PlainSocketEndpoint
from safemem import BlockSeq
from safemem.datagram import MessageBatch
from safemem.datagram.flags import IP_PKTINFO, MSG_CTRUNC, MSG_DONTWAIT, MSG_TRUNC
from safemem.datagram.mmsg import is_native, load
from sample_blocks import blocks, room

pytestmark = pytest.mark.skipif(not is_native(), reason="needs Linux and words of 64 bits")
INET, INET6, UNIX = int(socket.AF_INET), int(socket.AF_INET6), int(socket.AF_UNIX)
IP = int(socket.IPPROTO_IP)


@contextmanager
def sockets(family: int, count: int = 2) -> Iterator[list[socket.socket]]:
    """Datagram sockets on loopback; those of AF_UNIX have abstract names of different lengths."""
    with ExitStack() as stack:
        made = [stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(count)]
        for i, sock in enumerate(made):
            sock.settimeout(5)
            if family == UNIX:
                sock.bind(b"\0%d-%d" % (os.getpid(), id(sock)) + b"+" * 10 * i)
            else:
                try:
                    sock.bind(("127.0.0.1" if family == INET else "::1", 0))
                except OSError as exc:
                    pytest.skip(f"no such family here: {exc}")
        yield made


def receive(sock: socket.socket, batch: MessageBatch, n: int) -> int:
    """As an endpoint does: prepare, call, note. It does not wait."""
    call = load("recvmmsg")
    assert not isinstance(call, OSError)
    batch.headers.prepare(True)
    done = call(sock.fileno(), batch.headers.address, n, MSG_DONTWAIT | MSG_TRUNC)
    batch.filled(done, sock.getsockname()[1] if batch.family != UNIX else 0)
    return done


def send(sock: socket.socket, batch: MessageBatch, n: int) -> int:
    """As an endpoint does."""
    call = load("sendmmsg")
    assert not isinstance(call, OSError)
    batch.headers.prepare(False)
    return call(sock.fileno(), batch.headers.address, n, MSG_DONTWAIT)


def texts(batch: MessageBatch, n: int | None = None) -> list[bytes]:
    """What arrived in each message."""
    return [batch.blocks(i).tobytes()[:length] for i, length in enumerate(batch.lengths(n))]


@pytest.mark.parametrize("family", [INET, INET6, UNIX])
def test_a_receive(family: int) -> None:
    """Scattered, cut, empty: lengths, flags and senders are the kernel's, by each method."""
    with sockets(family, 3) as (receiver, one, two):
        batch = MessageBatch([room(2, 3, 3), room(8), room(4), BlockSeq(), room(8)], family=family)
        to = receiver.getsockname()
        for sender, text in ((one, b"scatter"), (two, b""), (one, b"too long"), (two, b"no room")):
            sender.sendto(text, to)
        assert batch.count == 0
        assert receive(receiver, batch, 5) == batch.count == 4
        a, b = one.getsockname(), two.getsockname()
        assert texts(batch) == [b"scatter", b"", b"too ", b""]
        assert batch.lengths() == [7, 0, 4, 0]
        assert batch.datagram_lengths() == [7, 0, 8, 7]
        assert batch.flags() == [0, 0, MSG_TRUNC, MSG_TRUNC]
        assert batch.truncated() == [2, 3]
        assert batch.truncated(2) == []
        assert batch.peers() == [a, b, a, b]
        assert [batch.peer(i) for i in range(4)] == [a, b, a, b]
        assert batch.peers(2) == [a, b]
        assert batch.peers(5) == [a, b, a, b, None]
        message = batch[2]
        assert (message.data.tobytes(), message.length, message.peer) == (b"too ", 8, a)
        assert message.truncated
        assert not message.control_truncated
        assert (message.local, message.ancillary) == (None, ())
        assert batch[-2].length == 7
        assert len(batch) == 5
        assert batch.blocks(4).tobytes() == b"\xee" * 8


@pytest.mark.parametrize("family", [INET, INET6, UNIX])
def test_entries_that_were_not_reached(family: int) -> None:
    """Say what they said before: after fewer messages, none, a name set, and a send."""
    with sockets(family, 3) as (receiver, short, long):
        batch = MessageBatch([room(8) for _ in range(3)], family=family, control_len=64)
        to = receiver.getsockname()
        for sender in (short, long, short):
            sender.sendto(b"first", to)
        receive(receiver, batch, 3)
        expected = [short.getsockname(), long.getsockname(), short.getsockname()]
        assert batch.peers(3) == expected
        with pytest.raises(BlockingIOError):
            receive(receiver, batch, 3)
        assert batch.count == 3
        assert batch.peers() == expected
        long.sendto(b"second!", to)
        assert receive(receiver, batch, 3) == 1
        expected[0] = long.getsockname()
        assert batch.peers(3) == expected
        assert texts(batch, 3) == [b"second!", b"first", b"first"]
        batch.set_peer(2, to)
        short.sendto(b"third", to)
        assert receive(receiver, batch, 1) == 1
        expected[0] = short.getsockname()
        assert batch.peers(3) == expected
        batch.set_peer(0, to)
        assert send(long, batch, 1) == 1
        assert batch.peers(3) == expected
        assert [batch.ancillary(i) for i in range(3)] == [(), (), ()]
        assert receive(receiver, batch, 3) == 1
        expected[0] = long.getsockname()
        assert batch.peers(3) == expected


def test_unnamed_senders() -> None:
    """Are None, though another was named in the same place before."""
    with sockets(UNIX, 2) as (receiver, named), socket.socket(UNIX, socket.SOCK_DGRAM) as unnamed:
        batch = MessageBatch([room(4)], family=UNIX)
        for sender in (named, unnamed, named):
            sender.sendto(b"x", receiver.getsockname())
            receive(receiver, batch, 1)
            expected = None if sender is unnamed else named.getsockname()
            assert batch.peer(0) == expected
            assert batch.peers() == [expected]


@pytest.mark.parametrize("family", [INET, INET6, UNIX])
def test_no_names_asked_for(family: int) -> None:
    """None come, and none are written anywhere, however often; but they can be sent."""
    with sockets(family, 3) as (one, two, other):
        batch = MessageBatch([room(4), room(4)], family=family, peer=False, control_len=32)
        batch.set_peer(0, two.getsockname())
        batch.set_peer(1, two.getsockname(), None, [(IP, 4711, b"keep this")])
        for _ in range(3):
            other.sendto(b"x", one.getsockname())
            other.sendto(b"x", one.getsockname())
            before = bytes(batch.headers._memory)[batch.headers._names_in.start :]
            assert receive(one, batch, 2) == 2
            assert bytes(batch.headers._memory)[batch.headers._names_in.start :] == before
            assert batch.peers() == [None, None]
            assert batch[0].peer is None
        batch.set_peer(1, two.getsockname())
        assert send(one, batch, 2) == 2
        assert two.recvfrom(9) == (b"x\xee\xee\xee", one.getsockname())
        assert two.recvfrom(9) == (b"x\xee\xee\xee", one.getsockname())


def test_local_addresses_and_other_control_data() -> None:
    """IP_PKTINFO says which address a datagram came to; each message has its own, each time anew."""
    with sockets(INET) as (_, sender), socket.socket(INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("0.0.0.0", 0))
        port = receiver.getsockname()[1]
        receiver.setsockopt(IP, IP_PKTINFO, 1)
        receiver.setsockopt(IP, socket.IP_RECVTOS, 1)
        batch = MessageBatch([room(4) for _ in range(3)], local=True, control_len=32)
        assert batch.asks_local
        for hosts in ((1, 2, 3), (4,), (5, 6)):
            for host in hosts:
                sender.sendto(b"x", (f"127.0.0.{host}", port))
            n = receive(receiver, batch, 3)
            assert [batch.local(i) for i in range(n)] == [(f"127.0.0.{host}", port) for host in hosts]
        assert batch.local(2) == batch[2].local == ("127.0.0.3", port)
        assert (IP, int(socket.IP_TOS), b"\0") in batch.ancillary(0)
        assert not batch[0].control_truncated
        for enabled in (0, 1):
            receiver.setsockopt(IP, IP_PKTINFO, enabled)
            receiver.setsockopt(IP, socket.IP_RECVTOS, enabled)
            sender.sendto(b"x", ("127.0.0.1", port))
            receive(receiver, batch, 1)
            assert batch.flags() == [0]
            assert len(batch.ancillary(0)) == 2 * enabled
        small = MessageBatch([room(4)], control_len=8)
        sender.sendto(b"x", ("127.0.0.1", port))
        receive(receiver, small, 1)
        assert small.flags() == [MSG_CTRUNC]
        assert small.truncated() == []
        assert small[0].control_truncated
        assert small.local(0) is None


def test_sends() -> None:
    """To peers of their own, from addresses of their own, and where the socket is connected to; gathered and empty."""
    with sockets(INET, 3) as (one, two, _), socket.socket(INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("0.0.0.0", 0))
        port = sender.getsockname()[1]
        batch = MessageBatch([blocks(b"ga", b"ther"), blocks(), blocks(b"three")], max_iov=2)
        batch.set_peer(0, one.getsockname(), ("127.0.0.7", 0))
        batch.set_peer(1, two.getsockname(), None, [(IP, int(socket.IP_TTL), struct.pack("i", 3))])
        batch.set_peer(-1, one.getsockname())
        assert batch.destination(0) == (one.getsockname(), ("127.0.0.7", 0), ())
        assert send(sender, batch, 3) == 3
        assert one.recvfrom(9) == (b"gather", ("127.0.0.7", port))
        assert one.recvfrom(9) == (b"three", ("127.0.0.1", port))
        assert two.recvfrom(9) == (b"", ("127.0.0.1", port))
        batch.set_peer(0, None)
        batch.set_peer(1, None)
        sender.connect(two.getsockname())
        assert send(sender, batch, 2) == 2
        assert [two.recv(9), two.recv(9)] == [b"gather", b""]


def test_one_batch_in_both_directions() -> None:
    """An echo from where it came: what is received is never taken for what is sent."""
    with sockets(INET, 3) as (server, one, two):
        server.setsockopt(IP, IP_PKTINFO, 1)
        batch = MessageBatch([room(6), room(6)], local=True)
        for round_of in range(3):
            for client in (one, two):
                client.sendto(b"%d" % round_of, server.getsockname())
            assert receive(server, batch, 2) == 2
            for i in range(2):
                batch.set_peer(i, batch.peer(i), batch.local(i))
            assert send(server, batch, 2) == 2
            for client in (one, two):
                assert client.recv(9)[:1] == b"%d" % round_of


def test_a_ring() -> None:
    """Messages lie in its slots from anywhere on, around its end."""
    ring = [room(4) for _ in range(5)]
    batch = MessageBatch([room(9)] * 3)
    with sockets(INET) as (receiver, sender):
        for start in (0, 3, 4, -1, 12):
            batch.bind_ring(ring, start)
            for i in range(3):
                assert batch.blocks(i) is ring[(start + i) % 5]
                sender.sendto(b"%d-%d+" % (start, i), receiver.getsockname())
            receive(receiver, batch, 3)
            for i in range(3):
                assert ring[(start + i) % 5].tobytes() == (b"%d-%d+" % (start, i))[:4]
            assert batch.lengths() == [4, 4, 4]
    MessageBatch([]).bind_ring(ring, 2)


def test_binding_elsewhere() -> None:
    """More and fewer blocks, none, and smaller ones: lengths follow."""
    batch = MessageBatch([room(8), room(8)], max_iov=3)
    with sockets(INET) as (receiver, sender):
        for sizes in ((1, 1, 1), (8,), (), (2, 2)):
            batch.bind(1, room(*sizes))
            for _ in range(2):
                sender.sendto(b"12345", receiver.getsockname())
            receive(receiver, batch, 2)
            assert batch.lengths() == [5, min(5, sum(sizes))]
            assert batch[1].data.tobytes() == b"12345"[: sum(sizes)]


@pytest.mark.parametrize("family", [INET, UNIX])
def test_emulated_and_native_receives_in_turn(family: int) -> None:
    """Each entry says what the last receive that reached it has told."""
    with sockets(family, 3) as (receiver, one, two):
        receiver.setblocking(False)
        endpoint = PlainSocketEndpoint(receiver)
        batch = MessageBatch([room(8) for _ in range(3)], family=family)
        a, b = one.getsockname(), two.getsockname()
        expected: list[tuple[bytes, Any]] = [(b"", None)] * 3
        for count, sender, native in [(3, one, True), (2, two, False), (1, one, True), (3, two, False), (2, one, True)]:
            for i in range(count):
                sender.sendto(b"%d%d" % (count, i), receiver.getsockname())
                expected[i] = (b"%d%d" % (count, i), a if sender is one else b)
            assert (receive(receiver, batch, 3) if native else endpoint.recvmmsg(batch)) == count
            assert batch.count == count
            assert list(zip(texts(batch, 3), batch.peers(3), strict=True)) == expected
            assert [batch[i].peer for i in range(3)] == [peer for _, peer in expected]


def test_the_memory_stays_alive() -> None:
    """Of the messages and the batch's own, though nobody else refers to it."""
    with sockets(INET) as (receiver, sender):
        batch = MessageBatch([BlockSeq(list(room(1 << 16))) for _ in range(4)])
        gc.collect()
        for i in range(4):
            sender.sendto(bytes([i]) * 50_000, receiver.getsockname())
            assert receive(receiver, batch, 1) == 1
            assert batch[0].data.tobytes() == bytes([i]) * 50_000
