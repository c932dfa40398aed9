"""Interrupts in the middle of receives, sends and flushes: nothing that came is lost, nothing stays in use."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import safemem.datagram.batch
import safemem.datagram.callbacks
import safemem.datagram.endpoint
import safemem.datagram.memory_queue
import safemem.datagram.mmsg
import safemem.datagram.pair
import safemem.datagram.queue
import safemem.datagram.sockets
import safemem.datagram.wait
from datagram_ends import every_backend, one, pair, rooms
from each_line import Event, interrupt
from queue_endpoint import ScriptedEndpoint
from safemem import Block, BlockSeq
from safemem.datagram import (
    DatagramQueue,
    MemoryDatagram,
    Message,
    MessageBatch,
    Outcome,
    SendStatus,
    datagram_pair,
)
from sample_blocks import room

MODULES = [
    safemem.datagram.batch,
    safemem.datagram.callbacks,
    safemem.datagram.endpoint,
    safemem.datagram.mmsg,
    safemem.datagram.queue,
    safemem.datagram.sockets,
    safemem.datagram.wait,
]
COUNT = 6
DATA = [b"%d" % i * 3 for i in range(COUNT)]


def received(batch: MessageBatch) -> list[bytes]:
    """What a batch has."""
    return [batch[i].data.tobytes() for i in range(batch.count)]


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_a_batch_of_a_socket(between: bool, waits: bool, tmp_path: Path) -> None:
    """Before any line: ``count`` says what came, it is there, the rest is still to come, and the batch is free."""
    with pair("inet", tmp_path) as (receiver, sender):
        batch = MessageBatch(rooms(*[9] * COUNT), local=True, control_len=64)
        receiver.set_local_addr_enable(True)
        at = 0
        while True:
            at += 1
            if waits:
                receiver.socket.settimeout(0.001)
            else:
                for data in DATA:
                    sender.sendmsg(one(data))
            # No handler runs between an error that leaves a with block and its __exit__, where trace tells of a line.
            event = Event(MODULES[:-2] + MODULES[-1:] if waits else MODULES, at, interrupt, between=between)
            try:
                event.during(lambda: receiver.recvmmsg(batch))
            except (KeyboardInterrupt, TimeoutError) as exc:
                if isinstance(exc, TimeoutError) and event.lines < at:
                    break
                if waits:
                    continue
                came = received(batch) if event.lines == at else []
                receiver.socket.setblocking(False)
                while receiver.pending() is not None:
                    came.append(receiver.recvmsg(room(9)).data.tobytes())
                if "checked_vlen" not in event.where and batch.count != COUNT:
                    assert came == DATA or came[batch.count :] == DATA, event.where
                batch.count = 0
            else:
                assert received(batch) == DATA
                if event.lines < at:
                    break
        assert at > 10


def test_the_count_of_a_batch_is_of_this_call(tmp_path: Path) -> None:
    """From where the kernel is asked on, it is never that of the receive before."""
    with pair("inet", tmp_path) as (receiver, sender):
        batch = MessageBatch(rooms(*[9] * COUNT))
        for at in range(1, 200):
            for data in DATA[:5]:
                sender.sendmsg(one(data))
            assert receiver.recvmmsg(batch) == 5
            for data in DATA[:2]:
                sender.sendmsg(one(data))
            event = Event([safemem.datagram.mmsg, safemem.datagram.wait], at, interrupt)
            try:
                event.during(lambda: receiver.recvmmsg(batch))
            except KeyboardInterrupt:
                left = [] if receiver.pending() is None else DATA[:2]
                assert received(batch) + left == DATA[:2], event.where
                while receiver.pending() is not None:
                    receiver.recvmsg(room(9))
            else:
                return
        raise AssertionError("it does not end")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that interrupt")
@every_backend
def test_signals_at_random(backend: Any, tmp_path: Path) -> None:
    """As a timer's handler raises them: every datagram comes once, in order, but one at most for each interrupt."""
    lost = interrupts = 0
    armed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, handle)
    try:
        with pair("inet", tmp_path, backend) as (receiver, sender):
            batch = MessageBatch(rooms(*[9] * COUNT))
            deadline = time.monotonic() + 2
            number = 0
            while time.monotonic() < deadline:
                sent = [b"%d" % (number + i) for i in range(COUNT)]
                number += COUNT
                for data in sent:
                    sender.sendmsg(one(data))
                came: list[bytes] = []
                batch.count = 0
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + number % 40 * 1e-6)
                    receiver.recvmmsg(batch)
                    armed = False
                except KeyboardInterrupt:
                    interrupts += 1
                came = received(batch)
                while receiver.pending() is not None:
                    came.append(receiver.recvmsg(room(9)).data.tobytes())
                missing = [data for data in sent if data not in came]
                assert came == [data for data in sent if data not in missing]
                assert len(missing) <= (backend != "recvmmsg")
                lost += len(missing)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupts > 10


class Interrupted(MemoryDatagram):
    """One whose second receive is interrupted."""

    interrupt: BaseException = KeyboardInterrupt()
    receives = 0

    def recvmsg(self, dsts: BlockSeq, flags: int = 0, ancbufsize: int = 0) -> Message:
        """As any, but for the second."""
        self.receives += 1
        if self.receives == 2:
            raise self.interrupt
        return super().recvmsg(dsts, flags, ancbufsize)


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), SystemExit(1), MemoryError(), RuntimeError("a handler's")])
def test_what_is_no_error_of_the_endpoint_is_raised_at_once(exc: BaseException) -> None:
    """With the count, by a batch and by a queue; no later receive hears of it."""
    for is_queue in (False, True):
        endpoint = Interrupted()
        endpoint.interrupt = exc
        for data in DATA[:3]:
            endpoint.sendmsg(one(data))
        if is_queue:
            queue = DatagramQueue(endpoint, rooms(9, 9, 9))
            with pytest.raises(type(exc)):
                queue.dequeue()
            assert queue.unread == 1
            assert [queue.dequeue().data.tobytes() for _ in range(3)] == DATA[:3]
        else:
            batch = MessageBatch(rooms(9, 9, 9))
            with pytest.raises(type(exc)):
                endpoint.recvmmsg(batch)
            assert received(batch) == DATA[:1]
            assert endpoint.recvmmsg(batch) == 2
            assert received(batch) == DATA[1:3]


def _dequeue_one(queue: DatagramQueue, came: list[bytes]) -> None:
    came.append(queue.dequeue().data.tobytes())


def test_a_dequeue() -> None:
    """Wherever a handler may run: no message and no buffer is lost."""
    at = 0
    while True:
        at += 1
        out, into = datagram_pair()
        for data in DATA:
            out.sendmsg(one(data))
        buffers = rooms(*[9] * 4)
        queue = DatagramQueue(into, buffers, size=2)
        event = Event([safemem.datagram.queue], at, interrupt, between=True)
        came: list[bytes] = []
        try:
            event.during(partial(_dequeue_one, queue, came))
        except KeyboardInterrupt:
            came.clear()
        while True:
            try:
                message = queue.dequeue()
            except BlockingIOError:
                break
            came.append(message.data.tobytes())
            queue.recycle(message.buffer)
        assert came == DATA, event.where
        if event.lines < at:
            break
        assert len(queue.close()) == 4, event.where


def test_a_flush_that_is_interrupted() -> None:
    """What is not known to have gone stays queued, and each callback is called once at most."""
    at = 0
    while True:
        at += 1
        endpoint = ScriptedEndpoint()
        queue = DatagramQueue(endpoint, size=2)
        told: list[bytes] = []
        for data in DATA:
            queue.queue(one(data), done=lambda outcome, told=told: told.append(outcome.blocks.tobytes()))  # type: ignore[misc]
        event = Event([safemem.datagram.queue, safemem.datagram.callbacks], at, interrupt, between=True)
        try:
            event.during(queue.flush)
        except KeyboardInterrupt:
            queue.flush()
        assert {data for data, _, _ in endpoint.sent} == {*DATA}, event.where
        assert len(told) == len({*told}), event.where
        assert queue.unsent == 0
        told.clear()
        queue.queue(one(b"last"), done=lambda outcome, told=told: told.append(outcome.blocks.tobytes()))  # type: ignore[misc]
        queue.flush()
        assert told == [b"last"], event.where
        if event.lines < at:
            break


def test_a_flush_inside_a_flush() -> None:
    """As a signal handler does, or an endpoint: it sends what is queued by then, and nothing waits for ever."""
    endpoint = ScriptedEndpoint()
    queue = DatagramQueue(endpoint, size=2)
    flushed: list[int] = []

    def inside() -> None:
        queue.queue(one(b"more"))
        flushed.append(queue.flush())

    endpoint.send_faults.append(inside)
    for data in DATA[:3]:
        queue.queue(one(data))
    thread = threading.Thread(target=queue.flush, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert flushed == [2]
    assert sorted(data for data, _, _ in endpoint.sent) == sorted([*DATA[:3], b"more"])


def test_an_endpoint_that_waits_for_another_thread() -> None:
    """The queue holds no lock while it calls the endpoint: that other thread may flush, and dequeue, too."""
    for receives in (False, True):
        endpoint = ScriptedEndpoint()
        endpoint.incoming.extend((data, None) for data in DATA[:2])
        queue = DatagramQueue(endpoint, rooms(9, 9), size=1)
        use: Callable[[], object] = queue.dequeue if receives else queue.flush
        faults = endpoint.receive_faults if receives else endpoint.send_faults
        ended: list[bool] = []

        def meet(use: Callable[[], object] = use, ended: list[bool] = ended) -> None:
            thread = threading.Thread(target=use, daemon=True)
            thread.start()
            thread.join(10)
            ended.append(not thread.is_alive())

        faults.append(meet)
        for data in DATA[:2]:
            queue.queue(one(data))
        use()
        assert ended == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_in_the_middle(tmp_path: Path) -> None:
    """It can use the batch and the queue, which another thread used when it was forked."""
    endpoint = ScriptedEndpoint()
    inside, go_on = threading.Event(), threading.Event()

    def wait_inside() -> None:
        inside.set()
        go_on.wait(10)

    endpoint.receive_faults.append(wait_inside)
    endpoint.incoming.extend([(b"1", None), (b"2", None)])
    batch = MessageBatch(rooms(9, 9))
    thread = threading.Thread(target=endpoint.recvmmsg, args=[batch], daemon=True)
    thread.start()
    assert inside.wait(10)
    child = os.fork()
    if not child:
        try:
            os._exit(endpoint.recvmmsg(batch) != 2)
        finally:
            os._exit(2)
    with pytest.raises(RuntimeError, match="in use"):
        endpoint.recvmmsg(batch)
    go_on.set()
    thread.join(10)
    assert os.waitpid(child, 0)[1] == 0


def test_a_dropped_queue_tells() -> None:
    """Each message is given back, once; a queue that was closed has nothing to tell, nor one that was never made."""
    told: list[Outcome] = []
    for ending in ("drop", "close"):
        queue = DatagramQueue(ScriptedEndpoint())
        for data in DATA[:2]:
            queue.queue(one(data), done=told.append)
        if ending == "close":
            queue.close()
        del queue
        assert [(outcome.status, outcome.blocks.tobytes()) for outcome in told] == [
            (SendStatus.GIVEN_BACK, data) for data in DATA[:2]
        ]
        told.clear()
    with pytest.raises(ValueError, match="size"):
        DatagramQueue(ScriptedEndpoint(), size=0)


def test_a_longer_buffer_goes_on() -> None:
    """After no_trunc refused: one that is long enough is used, wherever it is in the pool; without one, it tells."""
    one_end, other = datagram_pair()
    other.no_trunc = True
    for size in (5, 40, 5):
        one_end.sendmsg(one(bytes(size)))
    queue = DatagramQueue(other, rooms(*[16] * 5), size=2)
    assert queue.dequeue().length == 5
    for _ in range(2):
        with pytest.raises(OSError, match="40 bytes where 16 fit"):
            queue.dequeue()
    assert other.pending() == 40
    queue.recycle(BlockSeq.of(Block(bytearray(64))))
    assert [queue.dequeue().length for _ in range(2)] == [40, 5]
    with pytest.raises(BlockingIOError):
        queue.dequeue()
    assert len(queue.close()) == 3


def test_a_queue_over_a_socket_that_waits(tmp_path: Path) -> None:
    """A dequeue that does not wait is not held up by one that does, in another thread."""
    with pair("inet", tmp_path) as (receiver, sender):
        receiver.socket.settimeout(10)
        queue = DatagramQueue(receiver, rooms(9, 9), size=1)
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(queue.dequeue().data.tobytes()), daemon=True)
        thread.start()
        time.sleep(0.05)
        started = time.monotonic()
        with pytest.raises(BlockingIOError):
            queue.dequeue(socket.MSG_DONTWAIT)
        assert time.monotonic() - started < 5
        sender.sendmsg(one(b"x"))
        thread.join(10)
        assert got == [b"x"]


@pytest.mark.parametrize("between", [False, True])
def test_a_send_in_memory_wakes_who_waits(between: bool) -> None:
    """An interrupt at any point of it: a datagram that is on its way has woken the other end."""
    modules = [safemem.datagram.memory_queue, safemem.datagram.pair]
    for at in range(1, 200):
        here, there = datagram_pair()
        batches = [MessageBatch(rooms(9)) for _ in range(2)]
        threads = [threading.Thread(target=partial(there.recvmmsg, batch, timeout=20)) for batch in batches]
        for thread in threads:
            thread.start()
        while len(there._in.waiting) < len(threads):
            time.sleep(0.0005)
        event = Event(modules, at, interrupt, between=between)
        with suppress(KeyboardInterrupt):
            event.during(partial(here.sendmsg, one(b"data")))
        if there.pending() is None and not any(batch.count for batch in batches):
            here.sendmsg(one(b"data"))  # that one was not sent
        end = time.monotonic() + 5
        while not any(batch.count for batch in batches):
            assert time.monotonic() < end, event.where
            time.sleep(0.0005)
        here.sendmsg(one(b"more"))  # for the other one
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive(), event.where
        if event.lines < at:
            break
    assert at > 5
