"""Integers that are no plain ints as the counts and lengths of datagrams."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from integer_kinds import KINDS, Like, checked, kind_of, plain
from safemem import Block, BlockSeq
from safemem.datagram import (
    DatagramEndpoint,
    DatagramQueue,
    DatagramSocket,
    MemoryDatagram,
    MessageBatch,
    datagram_pair,
)


def _blocks(n: int) -> BlockSeq:
    return BlockSeq.of(Block(bytearray(n)))


def _local() -> tuple[DatagramSocket, DatagramSocket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return DatagramSocket(ours), DatagramSocket(theirs)


def _udp() -> tuple[DatagramSocket, DatagramSocket]:
    ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (ours, theirs):
        sock.bind(("127.0.0.1", 0))
    ours.connect(theirs.getsockname())
    return DatagramSocket(ours), DatagramSocket(theirs)


PAIRS: dict[str, Callable[[], tuple[DatagramEndpoint, DatagramEndpoint]]] = {
    "memory": datagram_pair,
    "local": _local,
    "UDP": _udp,
}


def exchange(pair: tuple[DatagramEndpoint, DatagramEndpoint], i: Like) -> object:
    """Batches and single messages, with every count of a kind."""
    with pair[0] as ours, pair[1] as theirs:
        family = getattr(ours, "family", int(socket.AF_INET))
        out = MessageBatch([_blocks(3)] * 4, family=family, max_iov=i(2))
        into = MessageBatch([_blocks(9)] * 4, family=family, control_len=i(64), max_iov=i(2))
        found = [ours.sendmmsg(out, i(3)), theirs.recvmsg(_blocks(9), 0, i(64)).length, theirs.recvmmsg(into, i(2))]
        told = into.lengths(i(2)), into.datagram_lengths(i(2)), into.flags(i(1)), into.truncated(i(2)), into.max_iov
        return found, *told, len(into.peers(i(2))), into.control_len


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pair", PAIRS)
def test_messages(pair: str, name: str) -> None:
    """The same as with ints, and ints are told."""
    assert checked(exchange(PAIRS[pair](), kind_of(name))) == checked(exchange(PAIRS[pair](), plain))


@pytest.mark.parametrize("name", KINDS)
def test_sizes(name: str) -> None:
    """What endpoints and queues are made with, and segments."""
    like = kind_of(name)
    with MemoryDatagram(like(5000), mtu=like(100)) as memory:
        assert checked([memory.write_buf_size, memory.mtu]) == [5000, 100]
        memory.mtu = like(90)
        memory.caps = like(3)
        assert checked([memory.mtu, memory.caps, memory.write_guarantee()]) == [90, 3, 5000 - 232]
        assert DatagramQueue(memory, size=like(3), max_iov=like(2)).flush() == 0
    ours, theirs = _udp()
    with ours, theirs:
        assert ours.send_segments(_blocks(250), like(100)) == 250
        assert len(theirs.recv_segments(bytearray(300), 0, like(64)).views) >= 1


def test_sizes_that_cannot_be() -> None:
    """An error that names the argument."""
    ours, theirs = datagram_pair()
    batch = MessageBatch([_blocks(3)])
    calls: dict[str, Callable[[], object]] = {
        "size": lambda: DatagramQueue(ours, size=0),
        "control_len": lambda: MessageBatch([], control_len=-1),
        "max_iov": lambda: MessageBatch([], max_iov=-1),
        "vlen": lambda: theirs.recvmmsg(batch, -1),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name} must"):
            call()
    with pytest.raises(TypeError, match=r"^vlen must be an int"):
        theirs.recvmmsg(batch, "1")  # type: ignore[arg-type]
