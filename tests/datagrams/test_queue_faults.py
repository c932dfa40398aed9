"""DatagramQueue under random faults, and over real sockets: no callback and no buffer is lost, or comes twice."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_endpoint import Fault, PlainSocketEndpoint, ScriptedEndpoint
from safemem import BlockSeq
from safemem.datagram import DatagramEndpoint, DatagramQueue, DatagramSocket, NoBufferError, Outcome, SendStatus
from safemem.datagram.flags import MSG_DONTWAIT
from sample_blocks import blocks, room

A = ("127.0.0.1", 7)
PEERS = [None, A, ("127.0.0.2", 8), "nonsense"]


def new_fault(kind: int) -> Fault:
    """A fault by number; most are none."""
    return {
        0: BlockingIOError(errno.EAGAIN, "later"),
        1: OSError(errno.EPERM, "no"),
        2: KeyboardInterrupt(),
        3: TypeError("odd"),
        4: InterruptedError(errno.EINTR, "interrupted"),
    }.get(kind)


class Run:
    """A queue, what was given to it, and what came back."""

    def __init__(self, size: int, pool: int) -> None:
        self.endpoint = ScriptedEndpoint()
        self.given = [room(4) for _ in range(pool)]
        self.back: Counter[int] = Counter()
        self.mine: list[BlockSeq] = []
        self.told: Counter[int] = Counter()
        self.sent: Counter[int] = Counter()
        self.queued = 0
        self.arrived: list[bytes] = []
        self.got: list[bytes] = []
        self.makes = 0
        self.queue = DatagramQueue(self.endpoint, self.given[:], on_buffer=self.make, size=size)

    def make(self) -> BlockSeq | None:
        """on_buffer: sometimes one, sometimes none, sometimes an error."""
        self.makes += 1
        if self.makes % 7 == 3:
            raise LookupError("no memory")
        if self.makes % 2:
            return None
        self.given.append(room(4))
        return self.given[-1]

    def send(self, peer: int, then: int) -> None:
        """Queue a message whose callback does something more."""
        number = self.queued

        def done(outcome: Outcome) -> None:
            self.told[number] += 1
            self.sent[number] += outcome.status is SendStatus.SENT
            if then == 1:
                raise LookupError(number)
            if then == 2 and self.queued < 200 and not self.queue.closed:
                self.send(0, 0)
                self.queue.flush()
            if then == 3:
                self.end()
            if then == 4:
                raise KeyboardInterrupt

        self.queue.queue(blocks(b"%d" % number), PEERS[peer], None, done)  # not counted if it is refused
        self.queued += 1

    def end(self) -> None:
        """Close, and keep what comes back."""
        self.back.update(map(id, self.queue.close()))

    def step(self, step: tuple[int, int, int]) -> None:
        """One step of a run. Errors are part of it."""
        kind, first, second = step
        endpoint = self.endpoint
        with suppress(OSError, ExceptionGroup, LookupError, KeyboardInterrupt, TypeError, ValueError):
            if kind < 3:
                self.send(first % len(PEERS), second % 12)
            elif kind == 3:
                endpoint.send_faults.extend([None] * (second % 3) + [new_fault(first)])
            elif kind == 4:
                endpoint.receive_faults.extend([None] * (second % 3) + [new_fault(first)])
            elif kind == 5:
                data = b"%d" % len(self.arrived)
                self.arrived.append(data)
                endpoint.incoming.append((data, A))
            elif kind == 6:
                message = self.queue.dequeue()
                self.got.append(message.data.tobytes())
                self.mine.append(message.buffer)
            elif kind == 7 and self.mine:
                self.queue.recycle(self.mine[-1])
                self.mine.pop()
            else:
                self.queue.flush()


steps = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 20)), max_size=60)


@given(st.integers(1, 4), st.integers(0, 4), steps)
def test_nothing_is_lost_and_nothing_comes_twice(size: int, pool: int, run_of: list[tuple[int, int, int]]) -> None:
    """Every message is told once; every buffer comes back once; what arrives is dequeued in order, without gaps."""
    run = Run(size, pool)
    for step in run_of:
        run.step(step)
    for _ in range(2):
        with suppress(ExceptionGroup, KeyboardInterrupt):
            run.end()
    assert run.told == Counter(range(run.queued))
    sent = Counter(int(data) for data, _, _ in run.endpoint.sent)
    assert all(sent[number] >= times for number, times in run.sent.items())
    run.back.update(map(id, run.mine))
    assert run.back == Counter(map(id, run.given))
    assert run.got == run.arrived[: len(run.got)]
    assert run.queue.unsent == run.queue.unread == 0


def _recycle(queue: DatagramQueue, buffer: BlockSeq, _: Outcome) -> None:
    queue.recycle(buffer)


@contextmanager
def socket_pair(family: int, tmp: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two bound datagram sockets that do not wait."""
    with socket.socket(family, socket.SOCK_DGRAM) as one, socket.socket(family, socket.SOCK_DGRAM) as two:
        for name, sock in (("one", one), ("two", two)):
            sock.setblocking(False)
            sock.bind(f"{tmp}/{name}" if family == socket.AF_UNIX else ("127.0.0.1", 0))
        yield one, two


@pytest.mark.parametrize("endpoint", [PlainSocketEndpoint, DatagramSocket])
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_over_sockets(
    family: int, endpoint: Callable[[socket.socket], DatagramEndpoint], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Messages and their senders arrive; each echo goes back from the buffer that it came in."""
    folder = str(tmp_path_factory.mktemp("q"))
    with socket_pair(family, folder) as (one, two), endpoint(one) as near, endpoint(two) as far:
        client = DatagramQueue(near, [room(8) for _ in range(4)], family=family, size=4)
        server = DatagramQueue(far, on_buffer=lambda: room(3, 5), family=family, size=4)
        told: list[SendStatus] = []
        for text in (b"one", b"", b"three33", b"too long: cut"):
            client.queue(
                blocks(text[:2], text[2:]), two.getsockname(), done=lambda outcome: told.append(outcome.status)
            )
        assert client.flush() == 4
        assert told == [SendStatus.SENT] * 4
        seen = []
        for _ in range(4):
            message = server.dequeue(MSG_DONTWAIT)
            seen.append((message.data.tobytes(), message.length, message.truncated))
            assert message.peer == one.getsockname()
            server.queue(message.data, message.peer, done=partial(_recycle, server, message.buffer))
        assert seen == [(b"one", 3, False), (b"", 0, False), (b"three33", 7, False), (b"too long", 13, True)]
        with pytest.raises(BlockingIOError):
            server.dequeue()
        assert server.flush() == 4
        assert [client.dequeue().data.tobytes() for _ in range(4)] == [text for text, _, _ in seen]
        with pytest.raises(NoBufferError):
            client.dequeue()
        assert client.close() == []
        assert len(server.close()) == 8


def test_a_full_socket_and_a_bad_message(tmp_path_factory: pytest.TempPathFactory) -> None:
    """EMSGSIZE and ENOENT are a message's own; EAGAIN keeps the rest until there is room."""
    with socket_pair(socket.AF_UNIX, str(tmp_path_factory.mktemp("q"))) as (one, two):
        to = two.getsockname()
        queue = DatagramQueue(PlainSocketEndpoint(one), family=socket.AF_UNIX, size=4)
        told: list[tuple[SendStatus, int | None]] = []

        def done(outcome: Outcome) -> None:
            told.append((outcome.status, getattr(outcome.error, "errno", None)))

        queue.queue(blocks(b"x"), to, done=done)
        queue.queue(blocks(bytes(1 << 22)), to, done=done)
        queue.queue(blocks(b"y"), to + "-nobody", done=done)
        queue.queue(blocks(b"z"), to, done=done)
        assert queue.flush() == 4
        sent = (SendStatus.SENT, None)
        assert told == [sent, (SendStatus.FAILED, errno.EMSGSIZE), (SendStatus.FAILED, errno.ENOENT), sent]
        for _ in range(3000):
            queue.queue(blocks(b"many"), to, done=done)
        rounds = got = 0
        receiver = DatagramQueue(PlainSocketEndpoint(two), [room(8)], family=socket.AF_UNIX)
        while queue.unsent and rounds < 3000:
            rounds += 1
            with suppress(BlockingIOError):
                queue.flush()
            with suppress(BlockingIOError):
                while True:
                    receiver.recycle(receiver.dequeue().buffer)
                    got += 1
        assert rounds > 1
        assert told[4:] == [sent] * 3000
        assert got == 3002
