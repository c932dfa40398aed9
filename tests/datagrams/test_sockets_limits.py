"""DatagramSocket at its limits: what a host takes at once, what it refuses, and how much of it went."""

from __future__ import annotations

import errno
import mmap
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from datagram_ends import every_backend, one, pair, rooms
from host_figures import peak
from safemem import Block, BlockSeq
from safemem.datagram import (
    DatagramEndpoint,
    DatagramSocket,
    DatagramTooLongError,
    LocalAddressNotAvailableError,
    MemoryDatagram,
    MessageBatch,
    datagram_pair,
    sockets,
)
from safemem.datagram.cmsg import Ancillary
from safemem.datagram.flags import MSG_CTRUNC, UDP_SEGMENT
from safemem.datagram.mmsg import load
from safemem.safecopy import address_of
from sample_blocks import room
from usermem.testing.faulty_memory import FaultyMemory
from usermem.testing.operations import pattern


class SegmentLimit:
    """What stands for a sender's ``_send``: it refuses messages of more segments than a host takes."""

    def __init__(self, sender: DatagramSocket, most: int, code: int) -> None:
        self._right = sender._send
        self._most = most
        self._code = code
        self.refused = 0

    def __call__(self, views: Sequence[Any], ancillary: list[Ancillary], peer: Any, flags: int) -> int:
        """Refuse, or send."""
        for _, kind, data in ancillary:
            size = int.from_bytes(data, "little")
            if kind == UDP_SEGMENT and sum(map(len, views)) > size * self._most:
                self.refused += 1
                raise OSError(self._code, "refused")
        return self._right(views, ancillary, peer, flags)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_host_that_takes_fewer_segments(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for that many from then on, and for no more: it goes on cutting."""
    with pair("inet", tmp_path) as (receiver, sender):
        if not sender.gso:
            pytest.skip("this host has no UDP_SEGMENT")
        receiver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        limit = SegmentLimit(sender, 64, code)
        monkeypatch.setattr(sender, "_send", limit)
        data = pattern(300 * 10)
        for _ in range(2):
            assert sender.send_segments(one(data), 10) == len(data)
        assert limit.refused == 1
        assert sender.gso
        got = b""
        while receiver.pending() is not None:
            got += receiver.recvmsg(room(100)).data.tobytes()
        assert got == data * 2


def test_segments_too_long_for_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a host does not cut those says nothing about others."""
    with pair("inet", tmp_path) as (receiver, sender):
        if not sender.gso:
            pytest.skip("this host has no UDP_SEGMENT")
        limit = SegmentLimit(sender, 1, errno.EINVAL)
        monkeypatch.setattr(sender, "_send", limit)
        monkeypatch.setattr(DatagramSocket, "mtu", 50)
        assert sender.send_segments(one(bytes(200)), 51) == 200
        for _ in range(3):
            assert sender.gso
            assert sender.send_segments(one(bytes(200)), 50) == 200
        assert not sender.gso
        assert receiver.pending() == 51


def test_a_short_count_of_segments(tmp_path: Path) -> None:
    """What went has gone; asking for the rest tells why it could not."""
    with pair("unix", tmp_path) as (receiver, sender):
        blocks = one(pattern(5 * 1000))
        sent = sender.send_segments(blocks, 5)
        assert 0 < sent < 5000
        with pytest.raises(BlockingIOError):
            sender.send_segments(blocks.drop_first(sent), 5)
        got = b""
        while receiver.pending() is not None:
            got += receiver.recvmsg(room(9)).data.tobytes()
        assert got == pattern(5000)[:sent]


def test_joined_segments_and_local_addresses(tmp_path: Path) -> None:
    """There is room for both to be told."""
    with pair("inet", tmp_path) as (receiver, sender):
        receiver.gro = True
        receiver.set_local_addr_enable(True)
        sender.send_segments(one(pattern(95)), 10)
        got = []
        while receiver.pending() is not None:
            segments = receiver.recv_segments(bytearray(200))
            assert not segments.flags & MSG_CTRUNC
            got += [bytes(view) for view in segments.views]
        assert got == [pattern(95)[at : at + 10] for at in range(0, 95, 10)]


@pytest.mark.parametrize("family", ["inet", "inet6"])
def test_the_mtu_can_be_sent(family: str, tmp_path: Path) -> None:
    """Loopback's is more than a datagram can have."""
    with pair(family, tmp_path) as (receiver, sender):
        receiver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        mtu = sender.mtu
        assert mtu is not None
        sender.socket.settimeout(5)
        assert sender.sendmsg(one(bytes(mtu))) == mtu
        assert receiver.pending() == mtu


@pytest.mark.parametrize("many", [False, True])
def test_cut_by_a_copy(many: bool, tmp_path: Path) -> None:
    """It says so, as elsewhere."""
    with pair("inet", tmp_path) as (receiver, sender):
        if many:
            dsts = BlockSeq([Block(bytearray(1)) for _ in range(1030)])
        else:
            dsts = BlockSeq.of(FaultyMemory("segv").block(30, 30))
        room_for = dsts.num_bytes
        for length in (room_for, room_for + 1):
            sender.sendmsg(one(pattern(length)))
            message = receiver.recvmsg(dsts)
            assert message.data.tobytes() == pattern(length)[:room_for]
            assert (message.length, message.truncated) == (length, length > room_for)
        assert receiver.pending() is None


@every_backend
def test_fewer_than_up_to_a_local_address(backend: str, tmp_path: Path) -> None:
    """As many as was asked for go, though the next that may not go is further on."""
    with pair("inet", tmp_path, backend) as (receiver, sender):
        batch = MessageBatch([one(b"%d" % i) for i in range(8)])
        batch.set_peer(7, None, ("127.0.0.1", 0))
        assert sender.sendmmsg(batch, 5) == 5
        assert receiver.recvmmsg(MessageBatch(rooms(*[9] * 8))) == 5
        assert sender.sendmmsg(batch) == 7


def test_local_addresses_disabled_again(tmp_path: Path) -> None:
    """They are refused as before they were enabled."""
    with pair("inet", tmp_path) as (receiver, _):
        receiver.set_local_addr_enable(True)
        receiver.set_local_addr_enable(False)
        assert not receiver.local_addr_enabled
        with pytest.raises(LocalAddressNotAvailableError):
            receiver.recvmmsg(MessageBatch(rooms(9, 9), local=True))


def test_a_host_that_has_one_of_the_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are sent one by one where the C library has recvmmsg and no sendmmsg."""

    def loaded(name: str) -> object:
        return load(name) if name == "recvmmsg" else OSError(errno.ENOSYS, name)

    monkeypatch.setattr(sockets, "load", loaded)
    with pair("inet", tmp_path) as (receiver, sender):
        assert sender.sendmmsg(MessageBatch([one(b"x")] * 5)) == 5
        assert receiver.recvmmsg(MessageBatch(rooms(*[9] * 5))) == 5


@pytest.mark.parametrize("backend", ["recvmsg", "recvfrom"])
def test_enobufs(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error behind the first is no loss: the count, and then the error from there."""
    with pair("inet", tmp_path, backend) as (receiver, sender):
        right = sender._send
        left = [2]

        def send(*args: Any) -> int:
            if not left[0]:
                raise OSError(errno.ENOBUFS, "no buffers")
            left[0] -= 1
            return right(*args)

        monkeypatch.setattr(sender, "_send", send)
        batch = MessageBatch([one(b"%d" % i) for i in range(5)])
        assert sender.sendmmsg(batch) == 2
        with pytest.raises(OSError, match="no buffers"):
            sender.sendmmsg(batch)
        assert receiver.recvmmsg(MessageBatch(rooms(*[9] * 5))) == 2


def test_thousands_at_once(tmp_path: Path) -> None:
    """The host sends 1,024 a call; receives have no such limit."""
    with pair("inet", tmp_path) as (receiver, sender):
        receiver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        sent = 0
        while sent < 3000:
            sent += sender.sendmmsg(MessageBatch([one(b"%d" % i) for i in range(sent, 3000)]))
        batch = MessageBatch([room(9) for _ in range(4000)])
        got: list[bytes] = []
        while receiver.pending() is not None:
            got += [batch[i].data.tobytes() for i in range(receiver.recvmmsg(batch))]
        # How many a socket keeps is the host's to limit; those that it kept came in order.
        assert got == [b"%d" % i for i in range(len(got))]
        assert len(got) > 200


def test_unnamed_senders(tmp_path: Path) -> None:
    """Have no address, by each way."""
    for backend in ("recvmmsg", "recvmsg", "recvfrom"):
        with (
            pair("unix", tmp_path, backend) as (receiver, _),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        ):
            for _ in range(2):
                sender.sendto(b"x", receiver.socket.getsockname())
            assert receiver.recvmsg(room(9)).peer is None
            batch = MessageBatch(rooms(*[9] * 5), family=socket.AF_UNIX)
            assert receiver.recvmmsg(batch) == 1
            assert batch.peers() == [None]


@pytest.mark.skipif(sys.platform != "linux", reason="memory that may fault is copied on Linux only")
@pytest.mark.parametrize("kind", ["udp", "unix", "pair", "queue"])
def test_what_is_too_long_is_not_copied_first(kind: str) -> None:
    """A GiB of memory that may fault, of which nothing was touched, is refused by its length, and stays untouched."""
    memory = mmap.mmap(-1, 1 << 30)
    srcs = BlockSeq.of(Block.from_address(address_of(memoryview(memory)), 1 << 30, memory))
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    udp = socket.socket(type=socket.SOCK_DGRAM)
    udp.connect(("127.0.0.1", 9))
    halves = datagram_pair()
    endpoint: DatagramEndpoint
    if kind in ("udp", "unix"):
        endpoint = DatagramSocket(udp if kind == "udp" else ends[0])
    else:
        endpoint = halves[0] if kind == "pair" else MemoryDatagram(4096)
    before = peak()
    with pytest.raises(DatagramTooLongError):
        endpoint.sendmsg(srcs)
    assert peak() - before < 64 << 20
    for sock in (endpoint, udp, *ends):
        sock.close()
