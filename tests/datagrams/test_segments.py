"""Segments that cross the kernel as one message, memory that faults, threads, and the ends of a socket's life."""

from __future__ import annotations

import errno
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagram_ends import bound, one, pair
from safemem import Block, BlockSeq, HostFaultError
from safemem.datagram import DatagramSocket, MessageBatch
from safemem.datagram.cmsg import Ancillary
from safemem.datagram.flags import MSG_TRUNC, UDP_SEGMENT
from safemem.datagram.segments import SegmentLimits
from sample_blocks import room
from usermem.testing.faulty_memory import FaultyMemory
from usermem.testing.operations import pattern


@settings(max_examples=40, deadline=None)
@given(
    segment_size=st.integers(1, 1500),
    count=st.integers(0, 300),
    more=st.integers(0, 1499),
    gro=st.booleans(),
    cuts=st.lists(st.integers(0, 5000), max_size=4),
    gso=st.booleans(),
)
def test_segments_arrive(
    segment_size: int,
    count: int,
    more: int,
    gro: bool,
    cuts: list[int],
    gso: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """However they are sent and received, cut up by the host or not: each once, in order, of the size that was said."""
    data = pattern(min(segment_size * count + more % segment_size, 100_000))
    places = sorted(min(cut, len(data)) for cut in cuts)
    blocks = BlockSeq(Block(data[a:b]) for a, b in zip([0, *places], [*places, len(data)], strict=True))
    with pair("inet", tmp_path_factory.mktemp("s")) as (receiver, sender):
        receiver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        receiver.gro = gro
        if not gso:
            sender._segments = SegmentLimits(False)
        memory = memoryview(bytearray(65_535))
        got: list[bytes] = []
        sent = 0
        while sent < len(data):
            sent += sender.send_segments(blocks.drop_first(sent).take_first(20 * segment_size), segment_size)
            while receiver.pending() is not None:
                segments = receiver.recv_segments(memory)
                assert (segments.peer, segments.flags & MSG_TRUNC) == (sender.socket.getsockname(), 0)
                assert sum(map(len, segments.views)) == segments.length
                assert gro or len(segments.views) == 1
                got += map(bytes, segments.views)
        assert got == [data[at : at + segment_size] for at in range(0, len(data), segment_size)]


def test_segments_are_joined(tmp_path: Path) -> None:
    """One receive for many, where the host can; and what finds no room is gone, and it says so."""
    with pair("inet", tmp_path) as (receiver, sender):
        receiver.gro = True
        if not (receiver.gro and sender.gso):
            pytest.skip("this host has no UDP_GRO")
        assert sender.send_segments(one(pattern(1000)), 100) == 1000
        segments = receiver.recv_segments(memoryview(bytearray(2000)))
        assert (len(segments.views), segments.size, segments.length) == (10, 100, 1000)
        sender.send_segments(one(pattern(1000)), 100)
        segments = receiver.recv_segments(memoryview(bytearray(250)))
        assert [len(view) for view in segments.views] == [100, 100, 50]
        assert segments.flags & MSG_TRUNC
        assert segments.length == 1000
        sender.sendmsg(one(b""))
        assert [len(view) for view in receiver.recv_segments(memoryview(bytearray(9))).views] == [0]
        receiver.gro = False
        assert not receiver.gro


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL, errno.EMSGSIZE])
def test_a_host_that_stops_cutting(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest goes one by one, and soon all that follows, unless the path was too narrow; nothing goes twice."""
    with pair("inet", tmp_path) as (receiver, sender):
        if not sender.gso:
            pytest.skip("this host has no UDP_SEGMENT")
        receiver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        right = sender._send
        asked: list[int] = []

        def send(views: list[memoryview], ancillary: list[Ancillary], peer: None, flags: int) -> int:
            if any(kind == UDP_SEGMENT for _, kind, _ in ancillary):
                asked.append(sum(map(len, views)))
                if len(asked) > 1:
                    raise OSError(code, "refused")
            return right(views, ancillary, peer, flags)

        monkeypatch.setattr(sender, "_send", send)
        data = pattern(2 * 128 * 100 + 30)
        for _ in range(3):
            assert sender.gso
            assert sender.send_segments(one(data), 100) == len(data)
            got = b""
            while receiver.pending() is not None:
                got += receiver.recvmsg(room(2000)).data.tobytes()
            assert got == data
        assert sender.gso is (code == errno.EMSGSIZE)


def test_cutting_by_hand_is_linear(tmp_path: Path) -> None:
    """Four times the blocks take four times as long, and not sixteen times."""
    with pair("inet", tmp_path) as (_, sender):
        sender._segments = SegmentLimits(False)
        sender.socket.setblocking(True)
        memory = memoryview(bytearray(16384 * 8))
        times: list[float] = []
        for count in (4096, 16384):
            blocks = BlockSeq(Block(memory[at : at + 8]) for at in range(0, count * 8, 8))
            taken = []
            for _ in range(3):
                started = time.thread_time()
                assert sender.send_segments(blocks, 80) == count * 8
                taken.append(time.thread_time() - started)
            times.append(min(taken))
        assert times[1] < 8 * times[0]


def test_the_size_of_segments(tmp_path: Path) -> None:
    """One at least; nothing to send is nothing sent."""
    with pair("inet", tmp_path) as (receiver, sender):
        with pytest.raises(ValueError, match="segment_size"):
            sender.send_segments(one(b"x"), 0)
        assert sender.send_segments(BlockSeq(), 5) == 0
        assert receiver.pending() is None
        with pytest.raises(TypeError, match="writable"):
            receiver.recv_segments(memoryview(b"x"))


@pytest.mark.parametrize("fits", [True, False])
def test_memory_that_faults(fits: bool, tmp_path: Path) -> None:
    """It is written as far as it goes, and the datagram stays for the next receive; or goes in, and is gone."""
    data = pattern(30)
    with pair("inet", tmp_path) as (receiver, sender):
        good = 40 if fits else 12
        dsts = BlockSeq.of(FaultyMemory("segv").block(good + 10, good))
        sender.sendmsg(one(data))
        if fits:
            assert receiver.recvmsg(dsts).data.tobytes() == data
            assert receiver.pending() is None
            return
        with pytest.raises(HostFaultError) as caught:
            receiver.recvmsg(dsts)
        assert caught.value.transferred == good
        assert receiver.recvmsg(room(30)).data.tobytes() == data
        with pytest.raises(HostFaultError):
            receiver.sendmsg(dsts, sender.socket.getsockname())
        assert sender.pending() is None


def test_batches_refuse_memory_that_faults() -> None:
    """The kernel would lose the datagram."""
    with pytest.raises(BufferError, match="fault"):
        MessageBatch([BlockSeq.of(FaultyMemory("segv").block(100, 100))])


def test_many_threads(tmp_path: Path) -> None:
    """Some send and some receive, batches and single messages, on one endpoint each: all arrive, once."""
    count = 400
    with pair("inet", tmp_path) as (receiver, sender):
        receiver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        receiver.socket.settimeout(0.5)
        sender.socket.settimeout(5)
        got: list[bytes] = []

        def send(who: int) -> None:
            for i in range(0, count, 4):
                messages = [one(b"%d:%d" % (who, i + k)) for k in range(4)]
                if i % 8:
                    done = 0
                    while done < 4:
                        done += sender.sendmmsg(MessageBatch(messages[done:]))
                else:
                    for message in messages:
                        sender.sendmsg(message)

        def receive(who: int) -> None:
            batch = MessageBatch([room(20) for _ in range(8)])
            try:
                while True:
                    if who % 2:
                        got.extend(batch[i].data.tobytes() for i in range(receiver.recvmmsg(batch)))
                    else:
                        got.append(receiver.recvmsg(room(20)).data.tobytes())
            except TimeoutError:
                pass

        threads = [threading.Thread(target=task, args=(who,)) for who in range(4) for task in (send, receive)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == sorted(b"%d:%d" % (who, i) for who in range(4) for i in range(count))


def test_what_is_no_datagram_socket() -> None:
    """A stream, and a backend that is none."""
    with socket.socket() as sock, pytest.raises(ValueError, match="SOCK_DGRAM"):
        DatagramSocket(sock)
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="backend"):
        DatagramSocket(sock, backend="fast")  # type: ignore[arg-type]


def test_families_must_agree(tmp_path: Path) -> None:
    """The names of a batch have the form of its family."""
    with pair("unix", tmp_path) as (receiver, sender):
        for call in (receiver.recvmmsg, sender.sendmmsg):
            with pytest.raises(ValueError, match="family"):
                call(MessageBatch([room(9)] * 5))


@pytest.mark.parametrize("count", [1, 5])
def test_read_only_memory(count: int, tmp_path: Path) -> None:
    """It is refused before anything is received."""
    with pair("inet", tmp_path) as (receiver, sender):
        sender.sendmsg(one(b"x"))
        batch = MessageBatch([*[room(9)] * (count - 1), one(b"read-only")])
        with pytest.raises(TypeError, match="writable"):
            receiver.recvmmsg(batch)
        with pytest.raises(TypeError, match="writable"):
            receiver.recvmsg(one(b"read-only"))
        assert receiver.pending() == 1


def test_closed(tmp_path: Path) -> None:
    """Twice is once; what comes then is an error of the host's."""
    with bound("inet", tmp_path) as sock:
        endpoint = DatagramSocket(sock)
        endpoint.close()
        endpoint.close()
        assert endpoint.fileno() == -1
        for call in (
            lambda: endpoint.recvmsg(room(9)),
            lambda: endpoint.sendmsg(one(b"x")),
            lambda: endpoint.recvmmsg(MessageBatch([room(9)] * 5)),
            lambda: endpoint.sendmmsg(MessageBatch([one(b"x")] * 5)),
        ):
            with pytest.raises(OSError, match="descriptor"):
                call()


def test_an_error_that_is_kept(tmp_path: Path) -> None:
    """It comes before what is there, once, in each kind of receive."""
    with pair("inet", tmp_path) as (receiver, sender):
        sender.sendmsg(one(b"x"))
        for call in (
            lambda: receiver.recvmsg(room(9)),
            lambda: receiver.recvmmsg(MessageBatch([room(9)] * 5)),
            lambda: receiver.recv_segments(memoryview(bytearray(9))),
        ):
            receiver.hold_error(KeyError("kept"))
            with pytest.raises(KeyError, match="kept"):
                call()
        assert receiver.recvmsg(room(9)).length == 1


def test_mtu(tmp_path: Path) -> None:
    """The path's, less the headers; what is always there, if there is no path; none on UNIX."""
    with pair("inet", tmp_path) as (receiver, sender):
        assert receiver.mtu == 576 - 28
        assert (sender.mtu or 0) > 10_000
    with pair("unix", tmp_path) as (receiver, _):
        assert receiver.mtu is None
