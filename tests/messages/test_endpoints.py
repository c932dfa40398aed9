"""A guest's recvmsg and sendmsg over the endpoints that there are: sockets, memory; and queues over them."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from datagram_ends import FAMILIES, one, pair
from hostarch import mman
from safemem import Block, BlockSeq
from safemem.datagram import (
    DatagramEndpoint,
    DatagramQueue,
    DatagramSocket,
    MemoryDatagram,
    Message,
    Outcome,
    SendStatus,
    datagram_pair,
)
from safemem.datagram.cmsg import pktinfo_of, unpack_cmsgs
from safemem.datagram.flags import IP_PKTINFO, MSG_DONTWAIT
from sample_blocks import room
from usermem import AddressSpace, FaultError
from usermem.messages import recvmmsg_into_user, recvmsg_into_user, sendmmsg_from_user, sendmsg_from_user

MSGHDR = struct.Struct("<QI4xQQQQI4xI4x")
KINDS = ["inet", "inet6", "unix", "recvfrom", "pair", "memory"]
HOLE = 0x10


@contextmanager
def ends(kind: str, folder: Path) -> Iterator[tuple[DatagramEndpoint, DatagramEndpoint]]:
    """(one that receives, one that sends to it); neither waits."""
    if kind == "memory":
        both = MemoryDatagram()
        yield both, both
    elif kind == "pair":
        yield datagram_pair()
    elif kind == "recvfrom":
        with pair("inet", folder, "recvfrom") as found:
            yield found
    else:
        with pair(kind, folder) as found:
            yield found


class Guest:
    """A guest's memory, with structs mmsghdr at ``table``."""

    def __init__(self) -> None:
        self.space = AddressSpace()
        rights = mman.PROT_READ | mman.PROT_WRITE
        self.base = self.space.mmap(0, 1 << 16, rights, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        self.table = self.base + 0x1000
        self.name = self.base + 0x8000
        self.control = self.base + 0x9000

    def buffer(self, i: int) -> int:
        """Where the data of message i may lie."""
        return self.base + 0xA000 + 256 * i

    def put(self, i: int, iovecs: list[tuple[int, int]], namelen: int = 0, controllen: int = 0) -> int:
        """Entry i of the table; returns its address."""
        iov = self.base + 256 * i
        self.space.write_bytes(iov, b"".join(struct.pack("<QQ", *each) for each in iovecs))
        packed = MSGHDR.pack(
            self.name * bool(namelen), namelen, iov, len(iovecs), self.control * bool(controllen), controllen, 0, 0
        )
        self.space.write_bytes(self.table + MSGHDR.size * i, packed)
        return self.table + MSGHDR.size * i

    def msg_len(self, i: int) -> int:
        """The length that entry i tells."""
        return int.from_bytes(self.space.read_bytes(self.table + MSGHDR.size * i + 56, 4), "little")


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways(kind: str, tmp_path: Path) -> None:
    """What a guest sends another receives, an empty one too."""
    guest = Guest()
    texts = [b"first", b"", b"third of them"]
    with ends(kind, tmp_path) as (receiver, sender):
        for i, text in enumerate(texts):
            guest.space.write_bytes(guest.buffer(i), text)
            guest.put(i, [(guest.buffer(i), len(text))])
        assert sendmmsg_from_user(guest.space, sender, guest.table, 3) == 3
        assert sendmsg_from_user(guest.space, sender, guest.table) == 5
        for i in range(5):
            guest.put(i, [(guest.buffer(8 + i), 100)])
        assert recvmmsg_into_user(guest.space, receiver, guest.table, 5, MSG_DONTWAIT) == 4
        for i, text in enumerate([*texts, texts[0]]):
            assert guest.space.read_bytes(guest.buffer(8 + i), guest.msg_len(i)) == text
        with pytest.raises(BlockingIOError):
            recvmsg_into_user(guest.space, receiver, guest.table, MSG_DONTWAIT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("waiting", [False, True])
def test_a_deadline_is_slept_through(kind: str, waiting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A datagram that comes before it wakes the call at once: there is no look in between."""
    guest = Guest()
    with ends(kind, tmp_path) as (receiver, sender):
        if isinstance(receiver, DatagramSocket):
            receiver.socket.setblocking(waiting)
        calls: list[tuple[object, ...]] = []
        right = receiver.recvmsg

        def recvmsg(*args: Any) -> Message:
            calls.append(args)
            return right(*args)

        monkeypatch.setattr(receiver, "recvmsg", recvmsg)
        thread = threading.Timer(0.1, sender.sendmsg, [one(b"late")])
        thread.start()
        guest.put(0, [(guest.buffer(0), 9)])
        guest.space.write_bytes(guest.control, struct.pack("qq", 5, 0))
        assert recvmmsg_into_user(guest.space, receiver, guest.table, 1, 0, guest.control) == 1
        thread.join()
        assert len(calls) <= 4
        left = struct.unpack("qq", guest.space.read_bytes(guest.control, 16))
        assert 4 <= left[0] + left[1] / 1e9 < 4.99
        guest.space.write_bytes(guest.control, struct.pack("qq", 0, 1_300_000))
        calls.clear()
        started = time.monotonic()
        with pytest.raises(BlockingIOError):
            recvmmsg_into_user(guest.space, receiver, guest.table, 1, 0, guest.control)
        assert time.monotonic() - started >= 0.0013
        assert len(calls) <= 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["keep", "linux"])
def test_a_fault_behind_the_first(kind: str, policy: str, tmp_path: Path) -> None:
    """It is kept, and comes next; the datagram stays or is lost as the policy says."""
    guest = Guest()
    with ends(kind, tmp_path) as (receiver, sender):
        for text in (b"one", b"two", b"three"):
            sender.sendmsg(one(text))
        guest.put(0, [(guest.buffer(0), 100)])
        guest.put(1, [(HOLE, 100)])

        def receive(n: int) -> int:
            return recvmmsg_into_user(guest.space, receiver, guest.table, n, MSG_DONTWAIT, fault_policy=policy)  # type: ignore[arg-type]

        assert receive(2) == 1
        assert guest.space.read_bytes(guest.buffer(0), 3) == b"one"
        with pytest.raises(FaultError) as caught:
            receive(2)
        assert caught.value.address == HOLE
        assert receiver.pending() == (3 if policy == "keep" else 5)
        assert receive(1) == 1
        assert guest.msg_len(0) == (3 if policy == "keep" else 5)


@pytest.mark.parametrize("family", ["inet", "inet6"])
def test_local_addresses(family: str, tmp_path: Path) -> None:
    """They come as control data, and the same control data send from there; the sender's name answers to it."""
    guest = Guest()
    with pair(family, tmp_path) as (receiver, sender):
        receiver.set_local_addr_enable(True)
        receiver.socket.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        sender.sendmsg(one(b"ping"))
        header = guest.put(0, [(guest.buffer(0), 2), (guest.buffer(1), 2)], 128, 256)
        assert recvmsg_into_user(guest.space, receiver, header) == 4
        _, namelen, _, _, _, controllen, flags, _ = MSGHDR.unpack(guest.space.read_bytes(header, MSGHDR.size))
        control = list(unpack_cmsgs(guest.space.read_bytes(guest.control, controllen)))
        here = pktinfo_of(FAMILIES[family], receiver.socket.getsockname())
        assert flags == 0
        assert here[:2] in [each[:2] for each in control]
        if family == "inet":
            assert [len(data) for _, kind, data in control if kind != IP_PKTINFO] == [1]
            control = [each for each in control if each[1] == IP_PKTINFO]
            controllen = 28
        header = guest.put(0, [(guest.buffer(0), 2), (guest.buffer(1), 2)], namelen, controllen)
        assert sendmsg_from_user(guest.space, receiver, header) == 4
        message = sender.recvmsg(room(9))
        assert (message.data.tobytes(), message.peer) == (b"ping", receiver.socket.getsockname())


@pytest.mark.parametrize(("hosts", "family"), [(("10.0.0.1", "10.0.0.2"), "inet"), (("fd00::1", "fd00::2"), "inet6")])
def test_local_addresses_in_memory(hosts: tuple[str, str], family: str) -> None:
    """As over a socket: control data tell the destination in both places, and the same control data send from there."""
    guest = Guest()
    here, there = datagram_pair()
    here.caps = there.caps = 15
    for end in (here, there):
        end.set_local_addr_enable(True)
    here.set_local_addr((hosts[0], 7))
    here.sendmsg(one(b"ping"), (hosts[1], 9))
    header = guest.put(0, [(guest.buffer(0), 4)], 128, 256)
    assert recvmsg_into_user(guest.space, there, header) == 4
    _, namelen, _, _, _, controllen, _, _ = MSGHDR.unpack(guest.space.read_bytes(header, MSGHDR.size))
    [(_, _, data)] = unpack_cmsgs(guest.space.read_bytes(guest.control, controllen))
    packed = socket.inet_pton(FAMILIES[family], hosts[1])
    assert data == (bytes(4) + packed + packed if family == "inet" else packed + bytes(4))
    header = guest.put(0, [(guest.buffer(0), 4)], namelen, controllen)
    assert sendmsg_from_user(guest.space, there, header) == 4
    message = here.recvmsg(room(9))
    assert (message.data.tobytes(), message.peer[:2], message.local[:2]) == (b"ping", (hosts[1], 0), (hosts[0], 7))  # type: ignore[index]


def test_an_error_of_the_network(tmp_path: Path) -> None:
    """ECONNREFUSED behind nothing is the call's own."""
    guest = Guest()
    with pair("inet", tmp_path) as (receiver, sender):
        receiver.close()
        sender.sendmsg(one(b"x"))
        guest.put(0, [(guest.buffer(0), 9)])
        with pytest.raises(ConnectionRefusedError):
            recvmmsg_into_user(guest.space, sender, guest.table, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_queues(kind: str, tmp_path: Path) -> None:
    """A queue takes its family from the endpoint, sends all, and gets all into a few buffers that come back."""
    told: list[Outcome] = []
    got: list[bytes] = []
    with ends(kind, tmp_path) as (receiver, sender):
        buffers = [BlockSeq.of(Block(bytearray(20))) for _ in range(3)]
        with DatagramQueue(sender, size=4) as out, DatagramQueue(receiver, buffers, size=4) as incoming:
            for i in range(50):
                out.queue(one(b"%d" % i), done=told.append)
            while len(got) < 50:
                if out.unsent:
                    try:
                        out.flush()
                    except BlockingIOError:
                        assert incoming.unread == 0
                try:
                    while True:
                        message = incoming.dequeue(MSG_DONTWAIT)
                        got.append(message.data.tobytes())
                        incoming.recycle(message.buffer)
                except BlockingIOError:
                    pass
            assert sorted(map(id, incoming.close())) == sorted(map(id, buffers))
    assert got == [b"%d" % i for i in range(50)]
    assert [outcome.status for outcome in told] == [SendStatus.SENT] * 50


def test_segments_from_an_address(tmp_path: Path) -> None:
    """They are sent from it, and tell where they came to."""
    with DatagramSocket(socket.socket(type=socket.SOCK_DGRAM)) as sender, pair("inet", tmp_path) as (receiver, _):
        receiver.gro = True
        receiver.set_local_addr_enable(True)
        receiver.socket.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        sender.socket.bind(("0.0.0.0", 0))
        sender.set_local_addr_enable(True)
        name = receiver.socket.getsockname()
        assert sender.send_segments(one(b"abcdefgh"), 3, name, local=("127.0.0.5", 0)) == 8
        got: list[bytes] = []
        while receiver.pending() is not None:
            segments = receiver.recv_segments(bytearray(100), ancbufsize=24)
            got += map(bytes, segments.views)
            assert segments.peer == ("127.0.0.5", sender.socket.getsockname()[1])
            assert segments.local == name
            assert (socket.IPPROTO_IP, socket.IP_TOS, b"\0") in segments.ancillary
        assert got == [b"abc", b"def", b"gh"]
