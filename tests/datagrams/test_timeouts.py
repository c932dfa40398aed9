"""A timeout per call: it ends when the datagram comes, or in time, asleep until then, whatever the endpoint is."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datagram_ends import one, pair
from memory_endpoint import Datagram
from memory_endpoint import MemoryEndpoint as PlainEndpoint
from safemem.datagram import DatagramEndpoint, DatagramPair, MemoryDatagram, MessageBatch, datagram_pair
from sample_blocks import room

KINDS = ["inet", "unix", "recvfrom", "pair", "memory"]
Ends = tuple[DatagramEndpoint, DatagramEndpoint]
SLACK = 0.0005  # seconds; of poll, which counts in milliseconds, 0.7 and more


@contextmanager
def ends(kind: str, folder: Path, waiting: bool = False) -> Iterator[Ends]:
    """(one that receives, one that sends to it)."""
    if kind == "memory":
        both = MemoryDatagram(2000)
        yield both, both
    elif kind == "pair":
        yield datagram_pair(2000)
    else:
        family, backend = ("inet", kind) if kind == "recvfrom" else (kind, "auto")
        with pair(family, folder, backend) as found:
            for end in found:
                end.socket.setblocking(waiting)
            yield found


def batch_for(endpoint: DatagramEndpoint, count: int = 1) -> MessageBatch:
    """Of the endpoint's family."""
    return MessageBatch([room(9) for _ in range(count)], family=getattr(endpoint, "family", socket.AF_INET))


def later(seconds: float, call: Callable[[], object]) -> threading.Thread:
    """Start a thread that calls it then."""
    thread = threading.Timer(seconds, call)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5])
def test_a_receive_ends_when_the_datagram_comes(
    kind: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the next look, and asleep until then; also where the endpoint does not wait by itself, or longer."""
    with ends(kind, tmp_path) as (receiver, sender):
        batch = batch_for(receiver, count)
        sent: list[float] = []
        late, burnt = [], time.process_time()

        looks: list[int] = []
        right = receiver._recv_many

        def look(batch: MessageBatch, vlen: int | None, flags: int) -> int:
            looks.append(flags)
            return right(batch, vlen, flags)

        monkeypatch.setattr(receiver, "_recv_many", look)

        def send() -> None:
            sent.append(time.monotonic())
            sender.sendmsg(one(b"x"))

        for _ in range(15):
            thread = later(0.023, send)
            assert receiver.recvmmsg(batch, timeout=5) == 1
            late.append(time.monotonic() - sent[-1])
            thread.join()
        assert len(looks) <= 4 * len(late)
        assert min(late) < 0.002
        assert time.process_time() - burnt < 0.2  # of a loop: 0.35 s


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("waiting", [False, True])
def test_a_timeout_ends_in_time(kind: str, waiting: bool, tmp_path: Path) -> None:
    """To the fraction of a millisecond, and not before; 0 does not wait; what is there comes at once."""
    with ends(kind, tmp_path, waiting) as (receiver, sender):
        batch = batch_for(receiver)
        for timeout in (0.0003, 0.0012, 0.0101):
            late = [1.0]
            while min(late) >= SLACK and len(late) < 100:  # others may have the machine
                started = time.monotonic()
                with pytest.raises(TimeoutError):
                    receiver.recvmmsg(batch, timeout=timeout)
                late.append(time.monotonic() - started - timeout)
            assert 0 <= min(late) < SLACK
        with pytest.raises(BlockingIOError):
            receiver.recvmmsg(batch, timeout=0)
        with pytest.raises(ValueError, match="timeout must not be negative"):
            receiver.recvmmsg(batch, timeout=-1)
        for timeout in (0, 0.5):
            sender.sendmsg(one(b"x"))
            assert receiver.recvmmsg(batch, timeout=timeout) == 1


@pytest.mark.parametrize("kind", ["unix", "pair", "memory"])
@pytest.mark.parametrize("count", [1, 5])
def test_a_send_waits_for_room(kind: str, count: int, tmp_path: Path) -> None:
    """Until a receive has made some; TimeoutError if none does."""
    with ends(kind, tmp_path) as (receiver, sender):
        batch = MessageBatch([one(b"0123456")] * count, family=getattr(sender, "family", socket.AF_INET))
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += sender.sendmmsg(batch)
        with pytest.raises(TimeoutError):
            sender.sendmmsg(batch, timeout=0.01)
        received: list[int] = []

        def drain() -> None:
            while receiver.pending() is not None:
                received.append(receiver.recvmsg(room(9)).length)

        thread = later(0.02, drain)
        sent += sender.sendmmsg(batch, timeout=5)
        thread.join()
        drain()
        assert received == [7] * sent


@pytest.mark.parametrize("end", ["close here", "close there", "drop there"])
def test_the_end_of_a_pair_wakes_who_waits(end: str) -> None:
    """BrokenPipeError, at once."""
    receiver, other = datagram_pair()
    others: list[DatagramPair] = [other]
    del other
    ways: dict[str, Callable[[], object]] = {
        "close here": receiver.close,
        "close there": others[0].close,
        "drop there": others.clear,
    }
    thread = later(0.02, ways.pop(end))
    ways.clear()
    started = time.monotonic()
    with pytest.raises(BrokenPipeError):
        receiver.recvmmsg(batch_for(receiver), timeout=5)
    assert time.monotonic() - started < 1
    thread.join()


def test_many_threads_wait(tmp_path: Path) -> None:
    """Each datagram wakes somebody who gets it; nothing is left of the waits."""
    receiver, sender = datagram_pair()
    got: list[bytes] = []

    def receive() -> None:
        batch = batch_for(receiver)
        while (receiver.recvmmsg(batch, timeout=5), batch[0].data.tobytes())[1] != b"end":
            got.append(batch[0].data.tobytes())

    threads = [threading.Thread(target=receive) for _ in range(4)]
    for thread in threads:
        thread.start()
    outgoing = [b"%d" % i for i in range(300)]
    for data in [*outgoing, *[b"end"] * 4]:
        sender.sendmmsg(MessageBatch([one(data)]), timeout=5)
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(outgoing)
    with pytest.raises(TimeoutError):
        receiver.recvmmsg(batch_for(receiver), timeout=0.001)
    assert not receiver._in.waiting
    assert not sender._in.waiting


def test_an_endpoint_that_cannot_wake_anybody() -> None:
    """Is looked at again and again, after pauses."""
    endpoint = PlainEndpoint()
    endpoint.arrivals = [(3, Datagram(b"late"))]
    assert endpoint.recvmmsg(batch_for(endpoint), timeout=5) == 1
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        endpoint.recvmmsg(batch_for(endpoint), timeout=0.0123)
    assert 0.0123 <= time.monotonic() - started < 0.03
    assert len(endpoint.calls) < 30


def test_an_error_behind_a_wait(tmp_path: Path) -> None:
    """Of the network, and of a batch that cannot be received into: it is raised, not waited out."""
    with ends("inet", tmp_path) as (receiver, sender):
        with pytest.raises(TypeError, match="writable"):
            receiver.recvmmsg(MessageBatch([one(b"read-only")] * 5), timeout=5)
        receiver.close()
        sender.sendmsg(one(b"x"))
        with pytest.raises(ConnectionRefusedError):
            sender.recvmmsg(batch_for(sender), timeout=5)
