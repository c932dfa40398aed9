"""What a host is taken to refuse: after several errors that another way makes good, for a while, by no peer's doing."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from datagram_ends import IP_RECVERR, one, pair, rooms
from safemem.datagram import DatagramSocket, MessageBatch, sockets
from safemem.datagram.capability import Capability
from safemem.datagram.flags import UDP_SEGMENT
from safemem.datagram.mmsg import load
from safemem.datagram.segments import SegmentLimits


def test_it_is_asked_again() -> None:
    """After a pause, which doubles while it refuses, and forgets that once it works."""
    capability = Capability()
    pauses = []
    for _ in range(12):
        assert capability.is_tried()
        capability.refused()
        pause = 0
        while capability.given_up:
            assert not capability.is_tried()
            pause += 1
        pauses.append(pause)
    assert pauses == [0, 0, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024]
    capability.worked()
    for _ in range(2):
        capability.refused()
    assert not capability.given_up


def test_refusals_with_success_between() -> None:
    """They never add up."""
    capability = Capability()
    for _ in range(100):
        capability.refused()
        capability.refused()
        capability.worked()
        assert capability.is_tried()


def test_segments_that_are_refused_again() -> None:
    """The most of them at once, and then the fewer, each by itself; both come back."""
    limits = SegmentLimits(True)
    assert limits.tries() == [128, 64, 1]
    limits.note([128], 64)
    assert limits.tries() == [64, 1]
    assert limits.can_cut
    for _ in range(3):
        limits.note([128, 64], 1)
    assert (limits.tries(), limits.can_cut) == ([1], False)
    while not limits.can_cut:
        limits.tries()
    assert 64 in limits.tries()
    assert not SegmentLimits(False).can_cut


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL])
@pytest.mark.parametrize("name", ["sendmmsg", "recvmmsg"])
def test_transient_errors(code: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a firewall's EPERM: the simpler way does it, and the quick one is used again."""
    calls: list[str] = []
    left = [1]

    def loaded(which: str) -> Any:
        def call(*args: Any) -> int:
            calls.append(which)
            if which == name and left[0]:
                left[0] -= 1
                raise OSError(code, "refused")
            return load(which)(*args)  # type: ignore[operator]

        return call

    with pair("inet", tmp_path) as (receiver, sender):
        if receiver.backend != "recvmmsg":
            pytest.skip("needs recvmmsg")
        monkeypatch.setattr(sockets, "load", loaded)
        batch = MessageBatch([one(b"x")] * 5)
        for _ in range(5):
            assert sender.sendmmsg(batch) == 5
            assert receiver.recvmmsg(MessageBatch(rooms(*[9] * 5))) == 5
        assert (receiver.backend, sender.backend) == ("recvmmsg", "recvmmsg")
        assert calls == ["sendmmsg", "recvmmsg"] * 5


def test_one_way_refused_leaves_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that refuses sendmmsg again and again is asked for recvmmsg all the same, and for both after a while."""
    calls: list[str] = []

    def loaded(which: str) -> Any:
        def call(*args: Any) -> int:
            calls.append(which)
            if which == "sendmmsg" and len(calls) < 20:
                raise OSError(errno.EPERM, "refused")
            return load(which)(*args)  # type: ignore[operator]

        return call

    with pair("inet", tmp_path) as (receiver, _):
        if receiver.backend != "recvmmsg":
            pytest.skip("needs recvmmsg")
        monkeypatch.setattr(sockets, "load", loaded)
        receiver.socket.connect(receiver.socket.getsockname())
        batch, into = MessageBatch([one(b"x")] * 5), MessageBatch(rooms(*[9] * 5))
        backends = []
        for _ in range(40):
            assert receiver.sendmmsg(batch) == 5
            assert receiver.recvmmsg(into) == 5
            backends.append(receiver.backend)
        assert calls.count("recvmmsg") == 40
        assert backends[:3] == ["recvmmsg", "recvmmsg", "recvmsg"]
        assert backends[-1] == "recvmmsg"


def icmp(sock: socket.socket, kind: int, code: int) -> None:
    """Have a router say so of what a connected socket on loopback has sent. Skips the test without raw sockets."""
    ports = struct.pack("!HHHH", sock.getsockname()[1], sock.getpeername()[1], 8, 0)
    if sock.family == socket.AF_INET6:
        host, protocol = "::1", socket.IPPROTO_ICMPV6
        inner = struct.pack("!IHBB", 6 << 28, len(ports), 17, 64) + socket.inet_pton(socket.AF_INET6, host) * 2
    else:
        host, protocol = "127.0.0.1", socket.IPPROTO_ICMP
        inner = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + socket.inet_aton(host) * 2
    packet = struct.pack("!BBHI", kind, code, 0, 0) + inner + ports
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    checksum = ~(total + (total >> 16)) & 0xFFFF  # which the kernel makes itself for ICMPv6
    try:
        with socket.socket(sock.family, socket.SOCK_RAW, protocol) as raw:
            raw.sendto(packet[:2] + struct.pack("!H", checksum) + packet[4:], (host, 0))
    except PermissionError:
        pytest.skip("needs raw sockets")


UNREACHABLE = {
    errno.EACCES: ("inet6", 1, 1),  # administratively prohibited
    errno.EOPNOTSUPP: ("inet", 3, 5),  # source route failed
    errno.ENOPROTOOPT: ("inet", 3, 2),  # protocol unreachable
}


@pytest.mark.parametrize("call", ["recvmmsg", "sendmmsg", "send_segments"])
@pytest.mark.parametrize("code", UNREACHABLE)
def test_errors_that_a_router_sends(code: int, call: str, tmp_path: Path) -> None:
    """They are the socket's own, whatever they say: each is raised, by this call or the next receive; none is lost."""
    family, kind, unreachable = UNREACHABLE[code]
    with pair(family, tmp_path) as (_, end):
        if family == "inet":
            end.socket.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        tries = end._segments.tries()
        icmp(end.socket, kind, unreachable)
        batch = MessageBatch(rooms(*[9] * 5), family=end.family)
        with pytest.raises(OSError) as caught:
            if call == "send_segments":
                end.send_segments(one(bytes(1000)), 100)
            elif call == "sendmmsg":
                end.sendmmsg(batch)
            end.recvmmsg(batch)
        assert caught.value.errno == code
        assert not (end._many_in.refusals or end._many_out.refusals)
        assert end._segments.tries() == tries


DESTINATIONS = [("127.0.0.1", 0), ("240.0.0.1", 9), ("255.255.255.255", 9)]


@pytest.mark.parametrize("peer", DESTINATIONS)
def test_a_destination_that_cannot_be(peer: tuple[str, int], tmp_path: Path) -> None:
    """A peer may name it as its own (source port 0): it says nothing of the host, however often."""
    with pair("inet", tmp_path) as (receiver, _), DatagramSocket(socket.socket(type=socket.SOCK_DGRAM)) as sender:
        if not sender.gso:
            pytest.skip("this host has no UDP_SEGMENT")
        for _ in range(10):
            with suppress(OSError):
                sender.send_segments(one(bytes(1000)), 100, peer)
            assert sender.gso
        with pytest.raises(OSError, match="not supported"):
            sender.send_segments(one(bytes(1000)), 100, receiver.socket.getsockname(), socket.MSG_OOB)
        sent: list[bool] = []
        right = sender._send

        def send(data: Any, control: Any, peer: Any, flags: int) -> int:
            sent.append(any(kind == UDP_SEGMENT for _, kind, _ in control))
            return right(data, control, peer, flags)

        sender._send = send  # type: ignore[method-assign]
        assert sender.send_segments(one(bytes(1000)), 100, receiver.socket.getsockname()) == 1000
        assert sent == [True]
