"""Local addresses, segments and marks beside each other and beside whatever else a socket's options ask for."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datagram_ends import Pair, one, pair
from safemem import BlockSeq
from safemem.datagram import (
    Ancillary,
    DatagramEndpoint,
    DatagramQueue,
    DatagramSocket,
    LocalAddressNotAvailableError,
    MessageBatch,
    datagram_pair,
)
from safemem.datagram.flags import IP_PKTINFO, MSG_CTRUNC, UDP_GRO, UDP_SEGMENT
from safemem.datagram.segments import SegmentLimits
from sample_blocks import room
from usermem.testing.operations import pattern

IP, IPV6, UDP = int(socket.IPPROTO_IP), int(socket.IPPROTO_IPV6), int(socket.IPPROTO_UDP)
LO = socket.if_nametoindex("lo")
TIMESTAMPING = 37, 0x2 | 0x8 | 0x10 | 0x40 | 0x80  # software and hardware, of receives and sends
OPTIONS: dict[str, list[tuple[int, int, int]]] = {  # (level, option, value)
    "none": [],
    "SO_TIMESTAMP": [(socket.SOL_SOCKET, 29, 1)],
    "SO_TIMESTAMPNS": [(socket.SOL_SOCKET, 35, 1)],
    "SO_TIMESTAMPING": [(socket.SOL_SOCKET, *TIMESTAMPING)],
    "SO_RCVMARK": [(socket.SOL_SOCKET, 75, 1)],
    "IP_RECVTOS": [(IP, socket.IP_RECVTOS, 1)],
    "all": [
        *[(socket.SOL_SOCKET, option, 1) for option in (29, 35, 40, 41, 75, 82)],  # drops, Wi-Fi, priority too
        (socket.SOL_SOCKET, *TIMESTAMPING),
        *[(IP, option, 1) for option in (6, 12, socket.IP_RECVTOS, 20, 23)],  # options, TTL, destination, checksum
    ],
}
every_option = pytest.mark.parametrize("option", OPTIONS)


def switch_on(receiver: DatagramSocket, option: str) -> None:
    """Skips the test where the host has no such option, unless it is one of many."""
    for level, number, value in OPTIONS[option]:
        try:
            receiver.socket.setsockopt(level, number, value)
        except OSError as exc:
            if option != "all":
                pytest.skip(f"{option}: {exc}")


def joining(ends: Pair) -> Pair:
    """With GRO; skips the test where the host has none."""
    receiver, sender = ends
    receiver.gro = True
    if not (receiver.gro and sender.gso):
        pytest.skip("this host has no UDP_GRO")
    return ends


def segments_by_batch(receiver: DatagramSocket, local: bool, count: int) -> list[BlockSeq]:
    """A MessageBatch with room for control data, of one message or of several."""
    batch = MessageBatch([room(2000) for _ in range(count)], local=local, control_len=512)
    assert receiver.recvmmsg(batch) == 1
    assert batch.flags() == [0]
    return batch[0].segments()


RECEIVES: dict[str, Callable[[DatagramSocket, bool], list[Any]]] = {
    "recv_segments": lambda receiver, local: receiver.recv_segments(bytearray(2000)).views,
    "recvmsg": lambda receiver, local: receiver.recvmsg(room(2000)).segments(),
    "batch": lambda receiver, local: segments_by_batch(receiver, local, 5),
    "emulated batch": lambda receiver, local: segments_by_batch(receiver, local, 1),
    "queue": lambda receiver, local: DatagramQueue(receiver, [room(2000)] * 1, local=local).dequeue().segments(),
}


@every_option
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("receive", RECEIVES)
def test_segments_come_apart(option: str, local: bool, receive: str, tmp_path: Path) -> None:
    """Whatever other control data come before their size, and by whatever call they are received."""
    with pair("inet", tmp_path) as ends:
        receiver, sender = joining(ends)
        receiver.set_local_addr_enable(local)
        switch_on(receiver, option)
        for length in (1030, 100, 7):
            data = pattern(length)
            assert sender.send_segments(one(data), 100) == length
            found = [bytes(s) if isinstance(s, memoryview) else s.tobytes() for s in RECEIVES[receive](receiver, local)]
            assert found == [data[at : at + 100] for at in range(0, length, 100)]


def test_segments_without_room_for_their_size(tmp_path: Path) -> None:
    """A batch that asks for no control data is told that some were cut; with local addresses off again, it is exact."""
    with pair("inet", tmp_path) as ends:
        receiver, sender = joining(ends)
        for on in (True, False):
            receiver.set_local_addr_enable(on)
        for count in (1, 5):
            sender.send_segments(one(bytes(1000)), 100)
            batch = MessageBatch([room(2000) for _ in range(count)])
            receiver.recvmmsg(batch)
            assert (batch.flags(), batch.ancillary(0)) == ([MSG_CTRUNC], ())
            assert [len(each.tobytes()) for each in batch[0].segments()] == [1000]
        sender.send_segments(one(bytes(1000)), 100)
        message = receiver.recvmsg(room(250))
        assert [each.num_bytes for each in message.segments()] == [100, 100, 50]
        assert message.ancillary == ((UDP, UDP_GRO, struct.pack("i", 100)),)
        receiver.gro = False
        receiver.socket.setsockopt(IP, socket.IP_RECVTOS, 1)
        sender.sendmsg(one(b"x"))
        message = receiver.recvmsg(room(9))
        assert (message.ancillary, message.flags, len(message.segments())) == ((), MSG_CTRUNC, 1)


@every_option
@pytest.mark.parametrize("backend", ["recvmmsg", "recvmsg"])
@pytest.mark.parametrize("family", ["inet", "inet6"])
def test_local_addresses(option: str, backend: str, family: str, tmp_path: Path) -> None:
    """They are told whatever else is, in single receives, in batches and in queues."""
    with pair(family, tmp_path, backend) as (receiver, sender):
        receiver.set_local_addr_enable(True)
        switch_on(receiver, option)
        here = receiver.socket.getsockname()
        right = here if family == "inet" else (*here[:3], LO)
        for _ in range(8):
            sender.sendmsg(one(b"x"))
        batch = MessageBatch([room(4) for _ in range(5)], family=receiver.family, local=True)
        assert receiver.recvmmsg(batch) == 5
        found = [batch.local(i) for i in range(5)]
        message = receiver.recvmsg(room(4))
        found += [message.local, receiver.recv_segments(bytearray(4)).local]
        found.append(DatagramQueue(receiver, [room(4)], local=True).dequeue().local)
        assert found == [right] * 8
        assert message.flags == 0


@pytest.mark.parametrize("to", ["127.0.0.1", "127.0.0.5", "127.255.255.255", "224.1.1.1"])
@pytest.mark.parametrize("mapped", [False, True])
def test_broadcast_and_multicast_can_be_answered(to: str, mapped: bool) -> None:
    """Their local address is the interface's (ipi_spec_dst), to sockets of IPv6 too; the header's is control data."""
    family, prefix = (socket.AF_INET6, "::ffff:") if mapped else (socket.AF_INET, "")
    with socket.socket(family, socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        try:
            receiver.bind(("", 0))
        except OSError as exc:
            pytest.skip(f"no IPv6 here: {exc}")
        lo = socket.inet_aton("127.0.0.1")
        receiver.setsockopt(IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.1.1.1") + lo)
        receiver.settimeout(5)
        sender.bind(("127.0.0.1", 0))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.setsockopt(IP, socket.IP_MULTICAST_IF, lo)
        sender.settimeout(5)
        endpoint = DatagramSocket(receiver)
        endpoint.set_local_addr_enable(True)
        port = receiver.getsockname()[1]
        batch = MessageBatch([room(9) for _ in range(5)], family=endpoint.family, local=True)
        for by_batch in (False, True):
            sender.sendto(b"question", (to, port))
            message = batch[endpoint.recvmmsg(batch) - 1] if by_batch else endpoint.recvmsg(room(9))
            local = to if to.startswith("127.0.0.") else "127.0.0.1"
            assert message.local is not None
            assert message.local[:2] == (prefix + local, port)
            sent_to = [data[8:] for level, kind, data in message.ancillary if (level, kind) == (IP, IP_PKTINFO)]
            assert sent_to == [socket.inet_aton(to)]
            assert endpoint.sendmsg(one(b"answer"), message.peer, message.local) == 6
            assert sender.recvfrom(9) == (b"answer", (local, port))
        endpoint.close()


def multicast_interface(receiver: socket.socket, sender: socket.socket) -> int:
    """Where ff01::7, which leaves no machine, gets from the sender to the receiver; skips the test if nowhere."""
    for index, _ in socket.if_nameindex():
        try:
            group = socket.inet_pton(socket.AF_INET6, "ff01::7") + struct.pack("I", index)
            receiver.setsockopt(IPV6, socket.IPV6_JOIN_GROUP, group)
            sender.sendto(b"early", ("ff01::7", receiver.getsockname()[1], 0, index))
            assert receiver.recv(9) == b"early"
        except OSError:
            continue
        return index
    pytest.skip("no IPv6 multicast here")


def test_ipv6_multicast_can_be_answered() -> None:
    """It tells which interface it came by, and the kernel chooses the address."""
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("::", 0))
        receiver.settimeout(1)
        sender.settimeout(5)
        interface = multicast_interface(receiver, sender)
        endpoint = DatagramSocket(receiver)
        endpoint.set_local_addr_enable(True)
        port = receiver.getsockname()[1]
        sender.sendto(b"question", ("ff01::7", port, 0, interface))
        message = endpoint.recvmsg(room(9))
        assert message.local == ("::", port, 0, interface)
        assert endpoint.sendmsg(one(b"answer"), message.peer, message.local) == 6
        assert sender.recv(9) == b"answer"
        endpoint.close()


@pytest.mark.parametrize("family", ["inet", "inet6"])
def test_the_port_of_local_addresses(family: str, tmp_path: Path) -> None:
    """It is 0 or the socket's: with another a message does not go, and those behind it neither."""
    with pair(family, tmp_path) as (receiver, sender):
        to = receiver.socket.getsockname()
        host, port = sender.socket.getsockname()[:2]
        wrong = (host, port % 65535 + 1)
        with pytest.raises(LocalAddressNotAvailableError, match="enable"):
            sender.sendmsg(one(b"x"), to, (host, port))
        sender.set_local_addr_enable(True)
        calls: list[Callable[[], object]] = [
            lambda: sender.sendmsg(one(b"x"), to, wrong),
            lambda: sender.send_segments(one(b"xyz"), 1, to, local=wrong),
        ]
        for count in (1, 5):
            batch = MessageBatch([one(b"x")] * count, family=sender.family)
            batch.set_peer(0, to, wrong)
            calls.append(lambda batch=batch: sender.sendmmsg(batch))  # type: ignore[misc]
        for call in calls:
            with pytest.raises(LocalAddressNotAvailableError, match=f"{port}, and has {wrong[1]}"):
                call()
        assert receiver.pending() is None
        for count, bad in ((5, 4), (3, 1)):
            batch = MessageBatch([one(b"%d" % i) for i in range(count)], family=sender.family)
            for i in range(count):
                batch.set_peer(i, to, wrong if i >= bad else (host, port * (i % 2)))
            assert sender.sendmmsg(batch) == bad
            batch.set_peer(bad, to)
            assert sender.sendmmsg(batch, bad + 1) == bad + 1
            got = [receiver.recvmsg(room(9)).data.tobytes() for _ in range(2 * bad + 1)]
            assert got == [b"%d" % i for i in [*range(bad), *range(bad + 1)]]
        told: list[Any] = []
        queue = DatagramQueue(sender)
        for local in (None, wrong, (host, 0)):
            queue.queue(one(b"x"), to, local, told.append)
        queue.flush()
        assert [type(outcome.error) for outcome in told] == [type(None), LocalAddressNotAvailableError, type(None)]


def test_the_port_that_a_socket_gets_later() -> None:
    """Unbound it has none to send from; once a send has bound it, it has."""
    with socket.socket(type=socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sock:
        receiver.bind(("127.0.0.1", 0))
        endpoint = DatagramSocket(sock)
        endpoint.set_local_addr_enable(True)
        with pytest.raises(LocalAddressNotAvailableError, match="port 0"):
            endpoint.sendmsg(one(b"x"), receiver.getsockname(), ("127.0.0.1", 9))
        assert endpoint.sendmsg(one(b"x"), receiver.getsockname(), ("127.0.0.3", 0)) == 1
        assert endpoint.sendmsg(one(b"x"), receiver.getsockname(), ("127.0.0.4", sock.getsockname()[1])) == 1
        endpoint.close()


@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("gro", [True, False])
def test_marks_on_segments(gso: bool, gro: bool, tmp_path: Path) -> None:
    """Each has its ECN mark, its size and its source, whether the host cuts them up or not."""
    mark: Ancillary = (IP, int(socket.IP_TOS), struct.pack("i", 2))
    with pair("inet", tmp_path) as (receiver, sender):
        receiver.gro = gro
        receiver.socket.setsockopt(IP, socket.IP_RECVTOS, 1)
        sender.set_local_addr_enable(True)
        if not gso:
            sender._segments = SegmentLimits(False)
        name, port = receiver.socket.getsockname(), sender.socket.getsockname()[1]
        sent: list[list[Ancillary]] = []
        send = sender._send
        sender._send = lambda data, control, *args: sent.append(control) or send(data, control, *args)  # type: ignore[method-assign,func-returns-value]
        assert sender.send_segments(one(bytes(250)), 100, name, local=("127.0.0.9", port), ancdata=iter([mark])) == 250
        assert any(kind == UDP_SEGMENT for each in sent for _, kind, _ in each) == sender.gso
        got = []
        while receiver.pending() is not None:
            segments = receiver.recv_segments(bytearray(2000), ancbufsize=64)
            assert (IP, int(socket.IP_TOS), b"\2") in segments.ancillary
            assert segments.peer == ("127.0.0.9", port)
            got += [len(view) for view in segments.views]
        assert got == [100, 100, 50]


def test_named_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interface's name is the scope wherever an address goes. (The socket module looks it up and forgets it.)"""
    scoped, named = ("fe80::77", 9, 0, LO), ("fe80::77%lo", 9)
    went: list[Any] = []
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock, DatagramSocket(sock) as endpoint:
        monkeypatch.setattr(endpoint, "_send", lambda data, control, peer, flags: went.append(peer) or 1)  # type: ignore[func-returns-value]
        for peer in (named, ("fe80::77%1", 9), ("fe80::77%lo", 9, 0, 0)):
            assert endpoint.sendmsg(one(b"x"), peer) == 1
        assert went == [scoped, ("fe80::77", 9, 0, 1), scoped]
        told: list[Any] = []
        queue = DatagramQueue(endpoint)
        queue.queue(one(b"x"), named, done=told.append)
        queue.flush()
        assert told[0].error is None
        assert went[3:] == [scoped]
        with pytest.raises(OSError, match="no interface"):
            endpoint.sendmsg(one(b"x"), ("fe80::77%no-such-zone", 9))
    batch = MessageBatch([one(b"x")] * 2, family=socket.AF_INET6)
    batch.set_peer(0, named, ("fe80::1%lo", 0))
    batch.set_peer(1, scoped, ("fe80::1", 0, 0, LO))
    headers = batch.headers
    for part, size in ((headers._names_out, 28), (headers._controls_out, 40)):
        first, second = (headers._memory[part.at(i) :][:size] for i in range(2))
        assert first == second


@pytest.mark.parametrize("kind", ["inet", "emulated", "pair"])
def test_addresses_of_single_messages(kind: str, tmp_path: Path) -> None:
    """Each message asks for its own; one that asks for a local address where there is none ends a receive before it."""
    count = 3 if kind == "emulated" else 6
    asked = [i % 3 for i in range(count)]  # for nothing, the peer, the local address
    with pair("inet", tmp_path) as (receiver, sender):
        ends: tuple[DatagramEndpoint, DatagramEndpoint] = (receiver, sender)
        peer, local = sender.socket.getsockname(), receiver.socket.getsockname()
        if kind == "pair":
            here, there = ends = datagram_pair()
            here.caps = there.caps = 15
            there.set_local_addr(peer)
        for _ in range(3):
            for _ in range(count):
                ends[1].sendmsg(one(b"x"), local)
        ends[0].set_local_addr_enable(False)
        batch = MessageBatch(
            [room(1) for _ in range(count)], peer=[n == 1 for n in asked], local=[n == 2 for n in asked]
        )
        assert ends[0].recvmmsg(batch) == 2
        with pytest.raises(LocalAddressNotAvailableError):
            ends[0].recvmmsg(MessageBatch([room(1)], local=[True]))
        ends[0].set_local_addr_enable(True)
        assert ends[0].recvmmsg(batch, 0) == 0
        for _ in range(2):
            assert ends[0].recvmmsg(batch) == count
        assert batch.peers() == [peer if n == 1 else None for n in asked]
        assert [batch[i].local for i in range(count)] == [local if n == 2 else None for n in asked]
        with pytest.raises(ValueError, match="peer must be a bool or one for each of 2"):
            MessageBatch([room(1), room(1)], peer=[True])
