"""DatagramSocket: waits that must end, sockets that are closed or set up late, and memory that is odd."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datagram_ends import FAMILIES, bound, every_backend, one, pair
from safemem import Block, BlockSeq, HostFaultError, safecopy
from safemem.datagram import DatagramReader, DatagramSocket, DatagramTooLongError, DatagramWriter, MessageBatch
from safemem.datagram.flags import MSG_CTRUNC, MSG_DONTWAIT
from safemem.datagram.sockets import Backend
from sample_blocks import room
from usermem.testing.faulty_memory import FaultyMemory
from usermem.testing.operations import pattern

SO_TIMESTAMP = 29


@every_backend
def test_a_full_peer_that_is_named(backend: Backend, tmp_path: Path) -> None:
    """poll calls the sender ready all the time: it waits for its timeout, no longer, and does not spin."""
    with pair("unix", tmp_path, backend) as (receiver, _):
        name = receiver.socket.getsockname()
        with DatagramSocket(bound("unix", tmp_path), backend=backend) as sender:
            sender.socket.settimeout(0.3)
            busy, started = time.thread_time(), time.monotonic()
            sent = 0
            with pytest.raises(TimeoutError):
                while True:
                    started, busy = time.monotonic(), time.thread_time()
                    sender.sendmsg(one(b"x"), name)
                    sent += 1
            assert time.monotonic() - started > 0.29
            assert time.thread_time() - busy < 0.15
            timer = threading.Timer(0.05, receiver.recvmsg, [room(9)])
            timer.start()
            assert sender.sendmsg(one(b"y"), name) == 1
            timer.join()
        assert sent > 0


def test_sockets_that_wait_by_default(tmp_path: Path) -> None:
    """setdefaulttimeout is for sockets that are made then: ours wait as theirs does, and stay in its mode."""
    with bound("inet", tmp_path) as sock, bound("inet", tmp_path) as other:
        sock.setblocking(False)
        socket.setdefaulttimeout(30)
        try:
            with DatagramSocket(sock) as endpoint, DatagramSocket(other) as patient:
                started = time.monotonic()
                assert endpoint.pending() is None
                with pytest.raises(BlockingIOError):
                    endpoint.recvmsg(room(1))
                with pytest.raises(BlockingIOError):
                    patient.recvmsg(room(1), MSG_DONTWAIT)
                assert time.monotonic() - started < 20
                assert (sock.gettimeout(), os.get_blocking(sock.fileno())) == (0, False)
                assert (other.gettimeout(), os.get_blocking(other.fileno())) == (None, True)
        finally:
            socket.setdefaulttimeout(None)


@every_backend
@pytest.mark.parametrize("timeout", [None, 5.0])
def test_a_socket_that_its_owner_closed(backend: Backend, timeout: float | None, tmp_path: Path) -> None:
    """EBADF, where the endpoint would wait; and it can be closed."""
    with bound("inet", tmp_path) as sock:
        sock.settimeout(timeout)
        with DatagramSocket(sock, backend=backend) as endpoint:
            sock.close()
            with pytest.raises(OSError, match="closed"):
                endpoint.recvmsg(room(1))
            with pytest.raises(OSError, match="closed"):
                endpoint.recvmmsg(MessageBatch([room(1)] * 5))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that interrupt")
@every_backend
def test_interrupts(backend: Backend, tmp_path: Path) -> None:
    """A handler that raises ends a wait, one that does not lets it go on; the batch is free again, nothing is lost."""

    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    with pair("inet", tmp_path, backend) as (receiver, sender):
        receiver.socket.settimeout(20)
        batch = MessageBatch([room(9) for _ in range(5)])
        old = signal.signal(signal.SIGALRM, interrupt)
        try:
            waits: tuple[Callable[[], object], ...] = (
                lambda: receiver.recvmsg(room(9)),
                lambda: receiver.recvmmsg(batch),
            )
            for wait in waits:
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pytest.raises(Interrupt):
                    wait()
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            timer = threading.Timer(0.1, sender.sendmsg, [one(b"whole")])
            timer.start()
            assert receiver.recvmmsg(batch) == 1
            timer.join()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        assert batch[0].data.tobytes() == b"whole"


def test_a_port_that_came_later() -> None:
    """Local addresses have the socket's port, though it was bound after they were enabled."""
    for native in (False, True):
        with (
            DatagramSocket(socket.socket(type=socket.SOCK_DGRAM)) as receiver,
            socket.socket(type=socket.SOCK_DGRAM) as sender,
        ):
            receiver.set_local_addr_enable(True)
            receiver.socket.bind(("127.0.0.1", 0))
            receiver.socket.settimeout(5)
            here = receiver.socket.getsockname()
            batch = MessageBatch([room(9)] * 5, local=True)
            sender.sendto(b"x", here)
            if native:
                receiver.recvmmsg(batch)
                assert batch.local(0) == here
            else:
                assert receiver.recvmsg(room(9)).local == here


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("control_len", [0, 15, 20, 64, 200])
def test_backends_agree_on_control_data(enabled: bool, local: bool, control_len: int, tmp_path: Path) -> None:
    """Times, TOS and local addresses: which of them a batch has room for, and that the others are missing."""
    told = []
    for backend in ("recvmmsg", "recvmsg"):
        with pair("inet", tmp_path, backend) as (receiver, sender):
            receiver.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
            receiver.socket.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            receiver.set_local_addr_enable(enabled)
            outgoing = MessageBatch([one(b"x")] * 5, control_len=48)
            for i in range(5):
                outgoing.set_peer(i, None, None, [(0, int(socket.IP_TOS), struct.pack("i", 4 * i))])
            assert sender.sendmmsg(outgoing) == 5
            batch = MessageBatch([room(9)] * 5, local=local and enabled, control_len=control_len)
            assert receiver.recvmmsg(batch) == 5
            kinds = [[(a[0], a[1], len(a[2])) for a in batch.ancillary(i)] for i in range(5)]
            told.append((kinds, batch.flags(), [batch.local(i) is not None for i in range(5)]))
            if control_len == 200:
                assert not any(flags & MSG_CTRUNC for flags in batch.flags())
                assert [a[2] for i in range(5) for a in batch.ancillary(i) if a[1] == socket.IP_TOS] == [
                    bytes([4 * i]) for i in range(5)
                ]
    assert told[0] == told[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 10, 49, 50, 51, 65_535, 65_536, 1 << 40])
def test_segments_in_each_family(family: str, size: int, tmp_path: Path) -> None:
    """Cut up here where the host would not; a size that nothing reaches is one datagram."""
    data = pattern(50)
    with pair(family, tmp_path) as (receiver, sender):
        sender.socket.settimeout(5)
        got: list[bytes] = []

        def receive() -> None:
            receiver.socket.settimeout(5)
            while sum(map(len, got)) < len(data):
                got.append(receiver.recvmsg(room(100)).data.tobytes())

        thread = threading.Thread(target=receive)
        thread.start()
        assert sender.send_segments(one(data), size) == 50
        thread.join()
        assert got == [data[at : at + size] for at in range(0, 50, size)]
        assert not (sender.gso and family == "unix")
        if family != "unix":
            with pytest.raises(DatagramTooLongError):
                sender.send_segments(one(bytes(70_000)), 1 << 40)


def test_segments_in_memory_of_other_items(tmp_path: Path) -> None:
    """Bytes are counted, whatever the memory is made of."""
    with pair("inet", tmp_path) as (receiver, sender):
        receiver.gro = True
        sender.sendmsg(one(pattern(100)))
        memory = memoryview(array("I", bytes(80)))
        segments = receiver.recv_segments(memory)
        assert b"".join(segments.views) == pattern(100)[:80]
        assert memory.tobytes() == pattern(100)[:80]


@pytest.mark.parametrize("backend", ["recvmmsg", "recvmsg"])
def test_more_blocks_than_the_host_takes(backend: Backend, tmp_path: Path) -> None:
    """Single messages go by a copy then."""
    blocks = BlockSeq([Block(bytearray(pattern(1500)[i : i + 1])) for i in range(1500)])
    with pair("inet", tmp_path, backend) as (receiver, sender):
        assert sender.sendmsg(blocks) == 1500
        dsts = BlockSeq([Block(bytearray(1)) for _ in range(1500)])
        message = receiver.recvmsg(dsts)
        assert (message.data.tobytes(), message.length) == (pattern(1500), 1500)
        assert receiver.pending() is None


def test_another_takes_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receive into memory that may fault looks first. It gets what it takes, not what it saw."""
    with pair("inet", tmp_path) as (receiver, sender):
        for data in (b"first, long", b"second"):
            sender.sendmsg(one(data))
        right = receiver._recv
        stolen: list[bytes | None] = []

        def receive(views: list[memoryview], space: int, flags: int) -> Any:
            found = right(views, space, flags)
            if not stolen:
                stolen.append(None)
                stolen.append(receiver.recvmsg(room(20)).data.tobytes())
            return found

        monkeypatch.setattr(receiver, "_recv", receive)
        message = receiver.recvmsg(BlockSeq.of(FaultyMemory("segv").block(30, 20)))
        assert stolen == [None, b"first, long"]
        assert (message.data.tobytes(), message.length) == (b"second", 6)
        sender.sendmsg(one(pattern(25)))
        with pytest.raises(HostFaultError):
            receiver.recvmsg(BlockSeq.of(FaultyMemory("segv").block(30, 20)))
        assert receiver.pending() == 25


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_receives(tmp_path: Path) -> None:
    """It shares the socket with its parent, and not what the parent's batch tells."""
    with pair("inet", tmp_path) as (receiver, sender):
        batch = MessageBatch([room(20) for _ in range(5)])
        sender.sendmsg(one(b"parent"))
        assert receiver.recvmmsg(batch) == 1
        sender.sendmsg(one(b"to the child"))
        child = os.fork()
        if not child:
            try:
                os._exit(receiver.recvmmsg(batch) != 1 or batch.lengths() != [12])
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert (batch.lengths(), batch[0].data.tobytes()) == ([6], b"parent")
        assert receiver.pending() is None


def test_control_data_of_streams(tmp_path: Path) -> None:
    """A writer sends them with each message, and a reader tells those that it has room for."""
    tos = (int(socket.IPPROTO_IP), int(socket.IP_TOS), struct.pack("i", 8))
    with pair("inet", tmp_path) as (receiver, sender):
        receiver.socket.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        writer = DatagramWriter(sender, ancdata=(tos,))
        reader = DatagramReader(receiver, ancbufsize=24)
        for _ in range(2):
            writer.write_from_blocks(one(b"x"))
            assert reader.read_to_blocks(room(9)) == 1
            assert reader.ancillary == ((*tos[:2], b"\x08"),)
            assert not reader.flags & MSG_CTRUNC


def file_memory(data: bytes) -> tuple[int, BlockSeq, mmap.mmap]:
    """A file in memory, and as much of it as that as blocks that may fault."""
    fd = os.memfd_create("memory")
    os.truncate(fd, mmap.PAGESIZE)
    memory = mmap.mmap(fd, mmap.PAGESIZE)
    return fd, BlockSeq.of(Block.from_address(safecopy.address_of(memoryview(memory)), len(data), memory)), memory


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs files in memory")
def test_memory_that_goes_away_behind_the_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The datagram arrived there whole, and so it is received; one that others have not taken is not copied twice."""
    with pair("inet", tmp_path) as (receiver, sender):
        fd, dsts, memory = file_memory(b"precious")
        sender.sendmsg(one(b"precious"))
        right = receiver._recv
        arrived: list[bytes] = []

        def receive(views: list[memoryview], space: int, flags: int) -> Any:
            found = right(views, space, flags)
            if not flags & socket.MSG_PEEK:
                arrived.append(memory[:8])
                os.truncate(fd, 0)
            return found

        monkeypatch.setattr(receiver, "_recv", receive)
        message = receiver.recvmsg(dsts)
        assert (arrived, message.length, message.data.num_bytes) == ([b"precious"], 8, 8)
        assert receiver.pending() is None
        os.close(fd)


@pytest.mark.skipif(not hasattr(socket, "send_fds"), reason="needs descriptors that are sent")
def test_descriptors_beside_memory_that_may_fault(tmp_path: Path) -> None:
    """They are opened once, though the datagram is looked at before it is received."""
    with pair("unix", tmp_path) as (receiver, sender):
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", receiver.fileno()))
        sender.sendmsg(one(b"data"), ancdata=[rights])
        before = len(list(Path("/proc/self/fd").iterdir()))
        message = receiver.recvmsg(BlockSeq.of(FaultyMemory("segv").block(30, 30)), ancbufsize=socket.CMSG_SPACE(4))
        ((_, _, data),) = message.ancillary
        opened = len(list(Path("/proc/self/fd").iterdir())) - before
        assert (opened, len(data)) == (1, 4)
        os.close(*struct.unpack("i", data))
