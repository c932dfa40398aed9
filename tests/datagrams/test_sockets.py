"""DatagramSocket over real sockets: each backend, each family, what the kernel says, and hosts that refuse."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagram_ends import FAMILIES, bound, every_backend, every_family, one, pair, rooms
from safemem import Block, BlockSeq
from safemem.datagram import (
    BACKENDS,
    DatagramSocket,
    DatagramTooLongError,
    LocalAddressNotAvailableError,
    MessageBatch,
    PeerAddressNotAvailableError,
    sockets,
)
from safemem.datagram.flags import MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC
from safemem.datagram.mmsg import load
from safemem.datagram.sockets import Backend
from sample_blocks import room


@every_backend
@every_family
def test_single_messages(backend: Backend, family: str, tmp_path: Path) -> None:
    """Data, length, peer; cut where there is no room; looked at; empty; and none."""
    with pair(family, tmp_path, backend) as (receiver, sender):
        assert receiver.backend == backend
        peer = sender.socket.getsockname()
        with pytest.raises(BlockingIOError):
            receiver.recvmsg(room(9))
        assert receiver.pending() is None
        for data in (b"hello", b"", b"longer than there is room"):
            assert sender.sendmsg(one(data)) == len(data)
        assert receiver.pending() == 5
        for flags in (MSG_PEEK, 0):
            message = receiver.recvmsg(room(9), flags)
            assert (message.data.tobytes(), message.length, message.peer) == (b"hello", 5, peer)
            assert not message.truncated
        assert receiver.pending() == 0
        assert receiver.recvmsg(room(9)).length == 0
        message = receiver.recvmsg(room(6))
        assert (message.data.tobytes(), message.length, message.truncated) == (b"longer", 25, True)
        sender.sendmsg(one(b"gone"))
        assert receiver.recvmsg(BlockSeq()).truncated
        assert receiver.pending() is None


@every_backend
@every_family
def test_batches(backend: Backend, family: str, tmp_path: Path) -> None:
    """Many at once, both ways: what came, how long it was, from whom; what was not reached stays."""
    with pair(family, tmp_path, backend) as (receiver, sender):
        payloads = [b"a" * 3, b"", b"c" * 30, b"d", b"e" * 10]
        outgoing = MessageBatch([one(data) for data in payloads], family=FAMILIES[family])
        assert sender.sendmmsg(outgoing) == 5
        batch = MessageBatch(rooms(*[10] * 8), family=FAMILIES[family])
        with pytest.raises(ValueError, match="vlen"):
            receiver.recvmmsg(batch, 9)
        assert receiver.recvmmsg(batch, 0) == 0
        assert receiver.recvmmsg(batch, 4) == 4
        assert batch.lengths() == [3, 0, 10, 1]
        assert batch.datagram_lengths() == [3, 0, 30, 1]
        assert batch.truncated() == [2]
        assert [flags & MSG_TRUNC for flags in batch.flags()] == [0, 0, MSG_TRUNC, 0]
        peer = sender.socket.getsockname()
        assert batch.peers() == [peer] * 4
        assert [batch[i].data.tobytes() for i in range(4)] == [b"aaa", b"", b"c" * 10, b"d"]
        assert receiver.recvmmsg(batch) == 1
        assert (batch.lengths(), batch.lengths(4)) == ([10], [10, 0, 10, 1])
        assert batch.peer(3) == peer
        with pytest.raises(BlockingIOError):
            receiver.recvmmsg(batch)


@every_family
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=10),
    layout=st.lists(st.lists(st.integers(0, 12), max_size=4), min_size=1, max_size=6)
    | st.lists(st.lists(st.integers(0, 12), max_size=1), min_size=1, max_size=6),
)
def test_backends_agree(
    family: str, lengths: list[int], layout: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same traffic into the same layouts: what one backend tells, the others tell (recvfrom into single blocks)."""
    told = []
    for backend in BACKENDS:
        if backend == "recvfrom" and max(map(len, layout)) > 1:
            continue
        with pair(family, tmp_path_factory.mktemp("s"), backend) as (receiver, sender):
            for i, length in enumerate(lengths):
                sender.sendmsg(one(bytes([i + 1]) * length))
            batch = MessageBatch(
                [BlockSeq([Block(bytearray(b"\xee" * size)) for size in sizes]) for sizes in layout],
                family=FAMILIES[family],
                max_iov=4,
            )
            seen: list[object] = []
            while True:
                try:
                    n = receiver.recvmmsg(batch)
                except BlockingIOError:
                    break
                seen += [batch.lengths(), batch.datagram_lengths(), batch.truncated()]
                seen += [peer == sender.socket.getsockname() for peer in batch.peers()]
                seen += [batch.blocks(i).tobytes() for i in range(n)]
            told.append(seen)
    assert all(seen == told[0] for seen in told)


def test_peers_and_many_senders(tmp_path: Path) -> None:
    """Each message tells its own; a destination goes with each that is sent."""
    with pair("inet", tmp_path) as (receiver, _):
        senders = [bound("inet", tmp_path) for _ in range(5)]
        for i, sender in enumerate(senders):
            sender.sendto(bytes([i]), receiver.socket.getsockname())
        batch = MessageBatch(rooms(*[9] * 5))
        assert receiver.recvmmsg(batch) == 5
        assert batch.peers() == [sender.getsockname() for sender in senders]
        answers = MessageBatch([one(b"to %d" % i) for i in range(5)])
        with pytest.raises(PeerAddressNotAvailableError):
            receiver.sendmmsg(answers)
        for i in range(5):
            answers.set_peer(i, batch.peer(i))
        assert receiver.sendmmsg(answers) == 5
        for i, sender in enumerate(senders):
            assert sender.recvfrom(9) == (b"to %d" % i, receiver.socket.getsockname())
            sender.close()


def test_one_without_a_destination_stops_a_batch(tmp_path: Path) -> None:
    """What went before it went; from it on, the error."""
    with pair("inet", tmp_path) as (receiver, sender):
        batch = MessageBatch([one(b"%d" % i) for i in range(6)])
        for i in range(4):
            batch.set_peer(i, sender.socket.getsockname())
        assert receiver.sendmmsg(batch) == 4
        with pytest.raises(PeerAddressNotAvailableError):
            receiver.sendmsg(batch.blocks(4))


@every_backend
def test_too_long(backend: Backend, tmp_path: Path) -> None:
    """EMSGSIZE, alone and first in a batch."""
    with pair("inet", tmp_path, backend) as (_, sender):
        long = one(bytes(70_000))
        with pytest.raises(DatagramTooLongError) as caught:
            sender.sendmsg(long)
        assert (caught.value.errno, caught.value.length) == (errno.EMSGSIZE, 70_000)
        with pytest.raises(DatagramTooLongError):
            sender.sendmmsg(MessageBatch([long] * 5))


@every_backend
def test_nobody_listens(backend: Backend, tmp_path: Path) -> None:
    """ECONNREFUSED by ICMP comes at the next call, and once."""
    with pair("inet", tmp_path, backend) as (receiver, sender):
        receiver.close()
        sender.sendmsg(one(b"x"))
        batch = MessageBatch(rooms(*[9] * 5))
        with pytest.raises(ConnectionRefusedError):
            sender.recvmmsg(batch)
        with pytest.raises(BlockingIOError):
            sender.recvmmsg(batch)
        sender.sendmsg(one(b"x"))
        assert sender.pending() is None  # which has taken the error out of the socket, and keeps it
        with pytest.raises(ConnectionRefusedError):
            sender.recvmsg(room(9))


@every_backend
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_it_waits_for_the_first_only(backend: Backend, timeout: float | None, tmp_path: Path) -> None:
    """As the socket does, for ever or for its timeout, but never for a second."""
    with pair("inet", tmp_path, backend) as (receiver, sender):
        receiver.socket.settimeout(timeout)
        batch = MessageBatch(rooms(*[9] * 5))
        with pytest.raises(BlockingIOError):
            receiver.recvmmsg(batch, flags=MSG_DONTWAIT)
        timer = threading.Timer(0.05, lambda: sender.sendmsg(one(b"late")))
        timer.start()
        assert receiver.recvmmsg(batch) == 1
        timer.join()
        assert batch[0].data.tobytes() == b"late"


@every_backend
def test_timeouts(backend: Backend, tmp_path: Path) -> None:
    """TimeoutError, not before its time; the endpoint goes on."""
    with pair("inet", tmp_path, backend) as (receiver, sender):
        receiver.socket.settimeout(0.05)
        batch = MessageBatch(rooms(*[9] * 5))
        for call in (lambda: receiver.recvmsg(room(9)), lambda: receiver.recvmmsg(batch)):
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                call()
            assert time.monotonic() - started > 0.04
        sender.sendmsg(one(b"still"))
        assert receiver.recvmsg(room(9)).length == 5


@pytest.mark.parametrize("family", ["inet", "inet6"])
@pytest.mark.parametrize("backend", ["recvmmsg", "recvmsg"])
def test_local_addresses(family: str, backend: Backend, tmp_path: Path) -> None:
    """Enabled, a message tells where it came to, and is sent from where one says; before, neither."""
    with pair(family, tmp_path, backend) as (receiver, sender):
        here, there = receiver.socket.getsockname(), sender.socket.getsockname()
        outgoing = MessageBatch([one(b"a"), one(b"b")], family=FAMILIES[family])
        outgoing.set_peer(1, None, there)
        asking = MessageBatch(rooms(9, 9), family=FAMILIES[family], local=True)
        with pytest.raises(LocalAddressNotAvailableError):
            sender.sendmsg(one(b"x"), local=there)
        assert sender.sendmmsg(outgoing) == 1
        with pytest.raises(LocalAddressNotAvailableError):
            receiver.recvmmsg(asking)
        assert receiver.recvmsg(room(9)).local is None
        for end in (receiver, sender):
            assert end.local_addr_cap
            end.set_local_addr_enable(True)
            assert end.local_addr_enabled
        assert sender.sendmmsg(outgoing) == 2
        assert receiver.recvmmsg(asking) == 2
        for i in range(2):
            local = asking.local(i)
            assert local is not None
            assert tuple(local[:2]) == here[:2]
            assert asking[i].local == local
        sender.sendmsg(one(b"x"), local=there)
        message = receiver.recvmsg(room(9))
        assert message.local is not None
        assert tuple(message.local[:2]) == here[:2]
        receiver.set_local_addr_enable(False)
        sender.sendmsg(one(b"x"))
        assert receiver.recvmsg(room(9)).local is None


def test_no_local_addresses(tmp_path: Path) -> None:
    """A UNIX socket has none, and recvfrom tells none."""
    with pair("unix", tmp_path) as (receiver, _):
        assert not receiver.local_addr_cap
        with pytest.raises(LocalAddressNotAvailableError):
            receiver.set_local_addr_enable(True)
        receiver.set_local_addr_enable(False)
    with pair("inet", tmp_path) as (_, sender):
        batch = MessageBatch([one(b"x")])
        batch.set_peer(0, None, ("127.0.0.1", 0))
        assert sender.sendmmsg(batch, 0) == 0
        with pytest.raises(LocalAddressNotAvailableError):
            sender.sendmmsg(batch)
    with pair("inet", tmp_path, "recvfrom") as (receiver, _):
        assert not receiver.local_addr_cap
        assert receiver.max_iov == 1


def test_recvfrom_takes_one_block(tmp_path: Path) -> None:
    """More are refused, before anything is received."""
    with pair("inet", tmp_path, "recvfrom") as (receiver, sender):
        sender.sendmsg(one(b"whole"))
        two = BlockSeq([Block(bytearray(2)), Block(bytearray(3))])
        with pytest.raises(ValueError, match="max_iov"):
            receiver.recvmsg(two)
        with pytest.raises(ValueError, match="one block"):
            sender.sendmsg(two)
        assert receiver.recvmsg(room(9)).data.tobytes() == b"whole"


def refusing(code: int, flags: int = -1) -> Callable[[str], object]:
    """A ``load`` for calls that the host refuses, all of them or those with some flag."""
    real: Any = load

    def loaded(name: str) -> object:
        def call(fd: int, address: int, n: int, given: int) -> int:
            if flags == -1 or given & flags:
                raise OSError(code, "refused")
            return real(name)(fd, address, n, given)  # type: ignore[no-any-return]

        return call

    return loaded


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EACCES, errno.EOPNOTSUPP])
def test_a_host_that_refuses(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simpler way, and soon without asking; nothing is lost, in either direction."""
    monkeypatch.setattr(sockets, "load", refusing(code))
    with pair("inet", tmp_path) as (receiver, sender):
        assert (receiver.backend, sender.backend) == ("recvmmsg", "recvmmsg")
        batch = MessageBatch(rooms(*[9] * 6))
        with pytest.raises(BlockingIOError):
            receiver.recvmmsg(batch)
        for _ in range(3):
            assert sender.sendmmsg(MessageBatch([one(b"%d" % i) for i in range(5)])) == 5
            assert receiver.recvmmsg(batch) == 5
            assert [batch[i].data.tobytes() for i in range(5)] == [b"%d" % i for i in range(5)]
            assert batch.peers() == [sender.socket.getsockname()] * 5
        assert (receiver.backend, sender.backend) == ("recvmsg", "recvmsg")
    with pair("inet", tmp_path, "recvmmsg") as (receiver, _), pytest.raises(OSError, match="refused"):
        receiver.recvmmsg(batch)


def test_a_host_that_refuses_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gVisor's recvmmsg takes no MSG_PEEK: that is done otherwise, and the rest as before."""
    monkeypatch.setattr(sockets, "load", refusing(errno.EINVAL, MSG_PEEK))
    with pair("inet", tmp_path) as (receiver, sender):
        sender.sendmsg(one(b"x"))
        batch = MessageBatch(rooms(*[9] * 5))
        assert receiver.recvmmsg(batch, flags=MSG_PEEK) == 5
        assert receiver.recvmmsg(batch) == 1
        assert receiver.backend == "recvmmsg"


def test_a_host_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says which it has, and does not take another."""
    monkeypatch.setattr(sockets, "load", lambda name: OSError(errno.ENOSYS, name))
    assert sockets.default_backend() == "recvmsg"
    with pair("inet", tmp_path) as (receiver, sender):
        assert receiver.backend == "recvmsg"
        sender.sendmmsg(MessageBatch([one(b"x")] * 5))
        assert receiver.recvmmsg(MessageBatch(rooms(*[9] * 5))) == 5
    with bound("inet", tmp_path) as sock, pytest.raises(OSError, match="recvmmsg"):
        DatagramSocket(sock, backend="recvmmsg")
