"""Receives that might lose something: long datagrams, descriptors, the error queue, and waits around them."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datagram_ends import bound, every_backend, one, pair, with_errors
from safemem import Block, BlockSeq, HostFaultError
from safemem.datagram import DatagramQueue, DatagramSocket, DatagramTooLongError, MessageBatch, wait
from safemem.datagram.flags import MSG_CTRUNC, MSG_ERRQUEUE, MSG_PEEK
from sample_blocks import FileMemory, room
from usermem.testing.operations import pattern

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs files in memory, and Linux's sockets")
SOON = struct.pack("ll", 0, 100_000)


def descriptors() -> int:
    """How many this process has."""
    return len([*Path("/proc/self/fd").iterdir()])


def what_ends(call: Callable[[], object]) -> tuple[type[BaseException] | None, float]:
    """The error that ends a call, within 5 seconds, and after how many."""
    found: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except OSError as exc:
            found.append(exc)

    started = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it waits for ever"
    return type(found[0]) if found else None, time.monotonic() - started


def many_blocks(size: int) -> BlockSeq:
    """More blocks than one call takes."""
    return BlockSeq([Block(bytearray(64)) for _ in range(0, size, 64)])


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[tuple[DatagramSocket, DatagramSocket]]:
    """A receiver and a sender of AF_UNIX."""
    with pair("unix", tmp_path) as ends:
        yield ends


@pytest.mark.parametrize("kind", ["plain", "many", "file"])
@pytest.mark.parametrize("size", [100_000, 1 << 17])
def test_longer_than_ip_has(kind: str, size: int, unix: tuple[DatagramSocket, DatagramSocket]) -> None:
    """All of it arrives, or as much as there is room for, and it says how much that is."""
    receiver, sender = unix
    file = FileMemory(size)
    dsts = {"plain": room(size), "many": many_blocks(size), "file": file.blocks}[kind]
    for data in (pattern(100_000), pattern(140_000)):
        sender.sendmsg(one(data))
        message = receiver.recvmsg(dsts)
        assert message.data.tobytes() == data[: dsts.num_bytes]
        assert (message.length, message.truncated) == (len(data), len(data) > dsts.num_bytes)


def test_how_long_it_may_be(unix: tuple[DatagramSocket, DatagramSocket], tmp_path: Path) -> None:
    """The room of the error is what the socket takes, to the byte; none is named where none is known."""
    _, sender = unix
    with pytest.raises(DatagramTooLongError) as caught:
        sender.sendmsg(one(bytes(1 << 20)))
    assert caught.value.room is not None
    assert sender.sendmsg(one(bytes(caught.value.room))) == caught.value.room
    with pytest.raises(DatagramTooLongError):
        sender.sendmsg(one(bytes(caught.value.room + 1)))
    for family, most in (("inet", 65_507), ("inet6", 65_527)):
        with pair(family, tmp_path) as (receiver, sender):
            receiver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            for length in (most + 1, 1 << 20):
                with pytest.raises(DatagramTooLongError) as caught:
                    sender.sendmsg(one(bytes(length)))
                assert caught.value.room == most
            assert sender.sendmsg(one(bytes(most))) == most
    assert str(DatagramTooLongError(5, None)).endswith(": 5 bytes")


def send_descriptors(sender: DatagramSocket, count: int, data: bytes = b"hello") -> None:
    """Send some of /dev/null."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{count}i", *fds))
    sender.sendmsg(one(data), ancdata=[rights])
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("kind", ["plain", "many", "file"])
def test_descriptors_are_installed_once(kind: str, unix: tuple[DatagramSocket, DatagramSocket]) -> None:
    """The caller gets as many as have come, and they are all that there are."""
    receiver, sender = unix
    file = FileMemory(4096)
    dsts = {"plain": room(16), "many": many_blocks(1 << 17), "file": file.blocks}[kind]
    send_descriptors(sender, 3)
    before = descriptors()
    ((_, _, data),) = receiver.recvmsg(dsts, 0, 64).ancillary
    assert descriptors() == before + 3
    for fd in struct.unpack("3i", data):
        os.close(fd)


def test_a_fault_installs_none(unix: tuple[DatagramSocket, DatagramSocket]) -> None:
    """The datagram stays in the socket, where poll finds it, and its descriptors with it."""
    receiver, sender = unix
    file = FileMemory(4096)
    file.cut()
    before = descriptors()
    send_descriptors(sender, 3)
    with pytest.raises(HostFaultError):
        receiver.recvmsg(file.blocks, 0, 64)
    assert descriptors() == before + 0
    assert select.select([receiver], [], [], 0)[0]
    assert len(receiver.recvmsg(room(5), 0, 64).ancillary[0][2]) == 12


@pytest.mark.parametrize("ending", ["receive", "no room", "close", "drop"])
def test_what_faults_after_the_look_is_kept(
    ending: str, unix: tuple[DatagramSocket, DatagramSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another receiver took what was seen, and the memory went away: the next receive gets the datagram, once."""
    receiver, sender = unix
    file = FileMemory(4096)
    sender.sendmsg(one(b"seen"))
    send_descriptors(sender, 3, b"another")
    right = receiver._recv

    def receive(views: list[Any], space: int, flags: int) -> Any:
        if not flags & MSG_PEEK:
            monkeypatch.setattr(receiver, "_recv", right)
            assert receiver.socket.recv(9) == b"seen"
            file.cut()
        return right(views, space, flags)

    monkeypatch.setattr(receiver, "_recv", receive)
    before = descriptors()
    with pytest.raises(HostFaultError):
        receiver.recvmsg(file.blocks, 0, 64)
    assert descriptors() == before + 3
    assert receiver.pending() == 7
    peeked = receiver.recvmsg(room(3), MSG_PEEK, 64)
    assert (peeked.data.tobytes(), peeked.length, peeked.truncated, peeked.ancillary) == (b"ano", 7, True, ())
    assert peeked.flags & MSG_CTRUNC
    if ending == "receive":
        batch = MessageBatch([room(9)] * 5, family=socket.AF_UNIX, control_len=64)
        sender.sendmsg(one(b"later"))
        assert receiver.recvmmsg(batch) == 2
        assert batch.lengths() == [7, 5]
        for fd in struct.unpack("3i", batch.ancillary(0)[0][2]):
            os.close(fd)
        assert descriptors() == before
    elif ending == "no room":
        message = receiver.recvmsg(room(9), 0, 20)
        assert (message.data.tobytes(), message.ancillary) == (b"another", ())
        assert message.flags & MSG_CTRUNC
        assert descriptors() == before
    elif ending == "close":
        receiver.close()
        assert descriptors() == before - 2
    else:
        receiver._arrivals.datagrams.clear()
        assert descriptors() == before
    del peeked


@pytest.mark.parametrize("timeout", [None, 5.0, 0.0])
@pytest.mark.parametrize("has_data", [False, True])
def test_the_error_queue_never_waits(timeout: float | None, has_data: bool) -> None:
    """Whatever the socket's mode is and lies in the other queue, on every way to it."""
    with with_errors(0, timeout) as receiver, socket.socket(type=socket.SOCK_DGRAM) as other:
        if has_data:
            other.sendto(b"data", receiver.socket.getsockname())
        queue = DatagramQueue(receiver, [room(9)])
        file = FileMemory(4096)
        batch = MessageBatch([room(9)] * 8, control_len=512)
        ways: list[Callable[[], object]] = [
            lambda: receiver.recvmsg(room(9), MSG_ERRQUEUE, 512),
            lambda: receiver.recvmsg(room(9), MSG_ERRQUEUE | MSG_PEEK, 512),
            lambda: receiver.recvmsg(file.blocks, MSG_ERRQUEUE, 512),
            lambda: receiver.recvmmsg(batch, None, MSG_ERRQUEUE),
            lambda: receiver.recvmmsg(batch, 2, MSG_ERRQUEUE),
            lambda: receiver.recvmmsg(batch, None, MSG_ERRQUEUE | MSG_PEEK),
            lambda: receiver.recv_segments(bytearray(9), MSG_ERRQUEUE),
            lambda: queue.dequeue(MSG_ERRQUEUE),
        ]
        for way in ways:
            error, seconds = what_ends(way)
            assert error is BlockingIOError
            assert seconds < 2


def test_entries_of_the_error_queue_stay() -> None:
    """A peek leaves an entry, and so does a fault: each is received once, in order."""
    with with_errors(3, 0) as receiver:
        file = FileMemory(4096)
        for _ in range(2):
            message = receiver.recvmsg(room(9), MSG_ERRQUEUE | MSG_PEEK, 512)
            assert (message.data.tobytes(), len(message.ancillary)) == (b"0", 1)
        assert receiver.recvmsg(file.blocks, MSG_ERRQUEUE, 512).data.tobytes() == b"0"
        file.cut()
        with pytest.raises(HostFaultError):
            receiver.recvmsg(file.blocks, MSG_ERRQUEUE, 512)
        message = receiver.recvmsg(room(9), MSG_ERRQUEUE)
        assert (message.data.tobytes(), message.ancillary) == (b"1", ())
        assert message.flags & MSG_CTRUNC
        batch = MessageBatch([room(9)] * 5, control_len=512)
        assert receiver.recvmmsg(batch, None, MSG_ERRQUEUE) == 1
        assert batch[0].data.tobytes() == b"2"


@every_backend
def test_the_hosts_own_timeouts(backend: Any, tmp_path: Path) -> None:
    """SO_RCVTIMEO and SO_SNDTIMEO end a wait by EAGAIN, as those of the socket module; a timeout of Python's counts."""
    with pair("unix", tmp_path, backend) as (receiver, sender):
        receiver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, SOON)
        sender.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, SOON)
        receiver.socket.settimeout(None)
        sender.socket.settimeout(None)
        while True:
            try:
                sender.sendmsg(one(b"x"), flags=socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
        batch = MessageBatch([one(b"x")] * 5, family=socket.AF_UNIX)
        sends: list[Callable[[], object]] = [lambda: sender.sendmsg(one(b"x")), lambda: sender.sendmmsg(batch)]
        for send in sends:
            error, seconds = what_ends(send)
            assert error is BlockingIOError
            assert 0.09 < seconds < 2
        while receiver.pending() is not None:
            receiver.recvmsg(room(9))
        file = FileMemory(4096)
        into = MessageBatch([room(9)] * 5, family=socket.AF_UNIX)
        receives: list[Callable[[], object]] = [
            lambda: receiver.recvmsg(room(9)),
            lambda: receiver.recvmsg(file.blocks),
            lambda: receiver.recvmmsg(into),
        ]
        for receive in receives:
            error, seconds = what_ends(receive)
            assert error is BlockingIOError
            assert 0.09 < seconds < 2
        receiver.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            receiver.recvmsg(room(9))


@pytest.mark.parametrize("spare", [True, False])
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_an_unread_error_costs_no_polling(timeout: float | None, spare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receive sleeps until something new comes; where there is no descriptor to spare for that, it looks again."""
    if not spare:
        monkeypatch.setattr(wait, "_edges", lambda fd: None)
    with with_errors(1, timeout) as receiver, socket.socket(type=socket.SOCK_DGRAM) as other:
        right = receiver._recv
        tries = 0

        def receive(views: list[Any], space: int, flags: int) -> Any:
            nonlocal tries
            tries += 1
            return right(views, space, flags)

        monkeypatch.setattr(receiver, "_recv", receive)
        before = descriptors()
        timer = threading.Timer(0.3, other.sendto, [b"data", receiver.socket.getsockname()])
        timer.start()
        assert receiver.recvmsg(room(9)).data.tobytes() == b"data"
        timer.join()
        assert (tries <= 6) is spare
        assert tries < 200
        assert descriptors() == before


def refused() -> DatagramSocket:
    """A connected socket with an error that waits in it."""
    with socket.socket(type=socket.SOCK_DGRAM) as dead:
        dead.bind(("127.0.0.1", 0))
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.connect(dead.getsockname())
    sock.setblocking(False)
    sock.send(b"x")
    select.select([sock], [], [], 5)
    return DatagramSocket(sock)


def test_pending_leaves_an_error_where_it_is() -> None:
    """poll still says that it is there, and the next receive raises it."""
    with refused() as receiver:
        for _ in range(2):
            assert receiver.pending() is None
            assert select.select([receiver], [], [], 0)[0]
        with pytest.raises(ConnectionRefusedError):
            receiver.recvmsg(room(9))


@every_backend
def test_pending_tells_an_error_that_is_kept(backend: Any, tmp_path: Path) -> None:
    """poll knows nothing of that, so that an event loop would sleep on."""
    with pair("inet", tmp_path, backend) as (receiver, _):
        receiver.hold_error(OSError(errno.ECONNREFUSED, "refused"))
        with pytest.raises(ConnectionRefusedError):
            receiver.pending()
        assert receiver.pending() is None


@every_backend
@pytest.mark.parametrize("family", ["inet", "unix"])
def test_pending_beside_an_empty_datagram(backend: Any, family: str, tmp_path: Path) -> None:
    """Its length is 0, and that is no None."""
    with pair(family, tmp_path, backend) as (receiver, sender):
        for data in (b"", b"abc"):
            sender.sendmsg(one(data))
        assert receiver.pending() == 0
        receiver.recvmsg(room(9))
        assert receiver.pending() == 3
        receiver.recvmsg(room(9))
        assert receiver.pending() is None


@pytest.mark.parametrize("timeout", [None, 20.0])
@pytest.mark.parametrize("family", ["inet", "unix"])
def test_shutting_down_wakes_who_waits(timeout: float | None, family: str, tmp_path: Path) -> None:
    """close() does not, and says so; this is how."""
    with DatagramSocket(bound(family, tmp_path)) as receiver:
        receiver.socket.settimeout(timeout)
        found: list[BaseException] = []

        def wait_for_one() -> None:
            try:
                receiver.recvmsg(room(9))
            except OSError as exc:
                found.append(exc)

        thread = threading.Thread(target=wait_for_one, daemon=True)
        thread.start()
        time.sleep(0.1)
        try:
            receiver.socket.shutdown(socket.SHUT_RDWR)
        except OSError as exc:
            assert exc.errno == errno.ENOTCONN
        thread.join(5)
        assert [type(exc) for exc in found] == [BrokenPipeError]
