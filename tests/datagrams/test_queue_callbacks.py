"""DatagramQueue: callbacks that raise, that call the queue again, and threads."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from queue_endpoint import ScriptedEndpoint
from safemem import BlockSeq
from safemem.datagram import DatagramQueue, Outcome, SendStatus
from sample_blocks import blocks, room

SENT, GIVEN_BACK = SendStatus.SENT, SendStatus.GIVEN_BACK
A = ("127.0.0.1", 7)


def raising(exc: BaseException) -> Callable[[Outcome], None]:
    """A callback that raises this."""

    def done(outcome: Outcome) -> None:
        raise exc

    return done


def meeting(reached: threading.Event, go_on: threading.Event) -> Callable[[], object]:
    """What an endpoint calls where a test wants to meet it."""

    def meet() -> None:
        reached.set()
        go_on.wait(10)

    return meet


@pytest.mark.parametrize("close", [False, True])
def test_callbacks_that_raise(close: bool) -> None:
    """All are called, all messages go, and then comes what was raised."""
    endpoint = ScriptedEndpoint()
    buffer = room(1)
    queue = DatagramQueue(endpoint, [buffer], size=2)
    errors = [LookupError("1"), ValueError("2")]
    told: list[Outcome] = []
    queue.queue(blocks(b"1"), done=raising(errors[0]))
    queue.queue(blocks(b"2"), done=told.append)
    queue.queue(blocks(b"3"), done=raising(errors[1]))
    queue.queue(blocks(b"4"), done=told.append)
    with pytest.raises(ExceptionGroup) as caught:
        if close:
            queue.close()
        else:
            queue.flush()
    assert list(caught.value.exceptions) == errors
    assert [outcome.status for outcome in told] == [GIVEN_BACK if close else SENT] * 2
    assert len(endpoint.sent) == (0 if close else 4)
    assert queue.close() == [buffer]


def test_an_interrupt_in_a_callback() -> None:
    """Is raised by itself, after the other callbacks."""
    queue = DatagramQueue(ScriptedEndpoint())
    told: list[Outcome] = []
    stop = KeyboardInterrupt()
    for done in (raising(LookupError()), raising(stop), told.append):
        queue.queue(blocks(b"1"), done=done)
    with pytest.raises(KeyboardInterrupt) as caught:
        queue.flush()
    assert caught.value is stop
    assert len(told) == 1


def test_a_callback_that_raises_where_the_endpoint_blocks() -> None:
    """What is queued stays so."""
    endpoint = ScriptedEndpoint()
    endpoint.send_faults.extend([None, BlockingIOError()])
    queue = DatagramQueue(endpoint, size=1)
    told: list[Outcome] = []
    queue.queue(blocks(b"1"), done=raising(LookupError()))
    queue.queue(blocks(b"2"), done=told.append)
    with pytest.raises(ExceptionGroup):
        queue.flush()
    assert queue.unsent == 1
    assert queue.flush() == len(told) == 1


def test_a_callback_queues_and_flushes() -> None:
    """At once; what comes of it is told when the callback has returned, and calls do not pile up."""
    endpoint = ScriptedEndpoint()
    queue = DatagramQueue(endpoint, size=2)
    events: list[str] = []
    most = 2000

    def done(outcome: Outcome) -> None:
        number = int(outcome.blocks.tobytes())
        events.append(f"begin {number}")
        if number < most:
            queue.queue(blocks(b"%d" % (number + 1)), done=done)
            assert queue.flush() == 1
            assert len(endpoint.sent) == number + 1
        events.append(f"end {number}")

    queue.queue(blocks(b"1"), done=done)
    assert queue.flush() == 1
    assert events == [f"{what} {i}" for i in range(1, most + 1) for what in ("begin", "end")]


def test_a_callback_only_queues() -> None:
    """That waits for the next flush: a flush ends."""
    endpoint = ScriptedEndpoint()
    queue = DatagramQueue(endpoint, size=2)

    def done(outcome: Outcome) -> None:
        if not queue.closed:  # which it is when it is dropped
            queue.queue(outcome.blocks, done=done)

    for _ in range(5):
        queue.queue(blocks(b"1"), done=done)
    assert queue.flush() == queue.unsent == 5


def test_a_callback_closes() -> None:
    """What was left is given back, after the callback; its flush goes on as if nothing were."""
    endpoint = ScriptedEndpoint()
    buffers = [room(1)]
    queue = DatagramQueue(endpoint, buffers, size=1)
    endpoint.send_faults.extend([None, BlockingIOError()])
    told: list[SendStatus] = []
    left: list[BlockSeq] = []

    def done(outcome: Outcome) -> None:
        left.extend(queue.close())
        assert not told
        with pytest.raises(ValueError, match="closed"):
            queue.queue(blocks(b"3"))
        assert queue.flush() == 0
        told.append(outcome.status)

    queue.queue(blocks(b"1"), done=done)
    queue.queue(blocks(b"2"), done=lambda outcome: told.append(outcome.status))
    assert queue.flush() == 1
    assert told == [SENT, GIVEN_BACK]
    assert left == buffers


def test_a_callback_of_close_closes_again() -> None:
    """And gets the buffers, as the first to ask."""
    buffers = [room(1)]
    queue = DatagramQueue(ScriptedEndpoint(), buffers)
    left: list[BlockSeq] = []
    queue.queue(blocks(b"1"), done=lambda _: left.extend(queue.close()))
    assert queue.close() == []
    assert left == buffers


def test_on_buffer_may_call_all_but_dequeue() -> None:
    """Sending, recycling and closing; a receive inside a receive is refused."""
    endpoint = ScriptedEndpoint()
    endpoint.incoming.append((b"1", A))
    spare, late = room(4), room(4)
    left: list[BlockSeq] = []

    def first() -> BlockSeq | None:
        with pytest.raises(RuntimeError, match="on_buffer"):
            queue.dequeue()
        if not endpoint.sent:
            queue.recycle(spare)
            queue.queue(blocks(b"x"))
            assert queue.flush() == 1
        return None

    queue = DatagramQueue(endpoint, on_buffer=first)
    assert queue.dequeue().buffer is spare

    def closing() -> BlockSeq:
        left.extend(queue.close())
        return late

    queue = DatagramQueue(endpoint, [spare], on_buffer=closing, size=2)
    with pytest.raises(ValueError, match="closed"):
        queue.dequeue()
    assert left == [spare]
    assert queue.close() == [late]


def test_queueing_while_another_thread_closes() -> None:
    """The message is given back, whoever finds it."""
    told: list[SendStatus] = []
    queue = DatagramQueue(ScriptedEndpoint())
    queue._outs.any.check_blocks = lambda *_: bool(queue.close())  # type: ignore[method-assign]
    queue.queue(blocks(b"1"), done=lambda outcome: told.append(outcome.status))
    assert told == [GIVEN_BACK]


def test_closing_while_another_thread_sends() -> None:
    """Does not wait; what that flush has not sent is given back when it ends."""
    endpoint = ScriptedEndpoint()
    sending, go_on = threading.Event(), threading.Event()
    endpoint.send_faults.append(meeting(sending, go_on))
    endpoint.send_faults.append(BlockingIOError())
    queue = DatagramQueue(endpoint, size=2)
    told: list[tuple[bytes, SendStatus, int]] = []

    def done(outcome: Outcome) -> None:
        told.append((outcome.blocks.tobytes(), outcome.status, threading.get_ident()))

    for name in (b"1", b"2", b"3"):
        queue.queue(blocks(name), done=done)
    thread = threading.Thread(target=queue.flush, daemon=True)
    thread.start()
    assert sending.wait(10)
    queue.close()
    assert [each[:2] for each in told] == [(b"3", GIVEN_BACK)]
    go_on.set()
    thread.join(10)
    assert [each[:2] for each in told[1:]] == [(b"1", SENT), (b"2", GIVEN_BACK)]
    assert told[0][2] == threading.get_ident() != told[1][2]


def test_closing_while_another_thread_receives() -> None:
    """Does not wait; that receive gives its message, and another close its other buffers."""
    endpoint = ScriptedEndpoint()
    endpoint.incoming.extend([(b"1", A), (b"2", A)])
    receiving, go_on = threading.Event(), threading.Event()
    endpoint.receive_faults.append(meeting(receiving, go_on))
    buffers = [room(4) for _ in range(4)]
    queue = DatagramQueue(endpoint, buffers[:3], size=3)
    got: list[BlockSeq] = []
    thread = threading.Thread(target=lambda: got.append(queue.dequeue().buffer), daemon=True)
    thread.start()
    assert receiving.wait(10)
    queue.recycle(buffers[3])
    assert queue.close() == buffers[3:]
    go_on.set()
    thread.join(10)
    assert got == buffers[:1]
    assert [each.tobytes()[:1] for each in got] == [b"1"]
    assert set(map(id, queue.close())) == set(map(id, buffers[1:3]))


def test_one_thread_sends_and_one_receives() -> None:
    """At the same time and without a lock; all of it comes, in order, and every callback once."""
    endpoint = ScriptedEndpoint()
    count = 2000
    queue = DatagramQueue(endpoint, [room(8) for _ in range(10)], size=8)
    told: list[bytes] = []
    got: list[bytes] = []

    def send() -> None:
        for i in range(count):
            queue.queue(blocks(b"%d" % i), A, done=lambda outcome: told.append(outcome.blocks.tobytes()))
            if i % 5 == 4:
                queue.flush()

    def receive() -> None:
        end = time.monotonic() + 10
        while len(got) < count and time.monotonic() < end:
            try:
                message = queue.dequeue()
            except BlockingIOError:
                continue
            got.append(message.data.tobytes())
            queue.recycle(message.buffer)

    threads = [threading.Thread(target=send, daemon=True), threading.Thread(target=receive, daemon=True)]
    for thread in threads:
        thread.start()
    for i in range(count):
        endpoint.incoming.append((b"%d" % i, A))
    for thread in threads:
        thread.join(15)
    expected = [b"%d" % i for i in range(count)]
    assert told == expected == [data for data, _, _ in endpoint.sent]
    assert got == expected
    assert len(queue.close()) == 10


def test_two_threads_flush() -> None:
    """They take turns: every message goes once."""
    endpoint = ScriptedEndpoint()
    queue = DatagramQueue(endpoint, size=4)
    told: list[bytes] = []

    def send(first: int) -> None:
        for i in range(first, first + 500):
            queue.queue(blocks(b"%d" % i), done=lambda outcome: told.append(outcome.blocks.tobytes()))
            queue.flush()

    threads = [threading.Thread(target=send, args=(first,), daemon=True) for first in (0, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    expected = sorted(b"%d" % i for i in (*range(500), *range(1000, 1500)))
    assert sorted(told) == sorted(data for data, _, _ in endpoint.sent) == expected


@pytest.mark.parametrize("way", ["dropped", "in a cycle", "with", "with an error"])
def test_premature_destruction(way: str) -> None:
    """Done callbacks are told and buffers freed, unread ones too, once each; not those that close has returned."""
    told: list[Outcome] = []
    freed: list[BlockSeq] = []
    endpoint = ScriptedEndpoint()
    endpoint.incoming.extend([(b"1", A)] * 2)
    buffers = [room(4) for _ in range(4)]
    queue = DatagramQueue(endpoint, buffers, on_free=freed.append)
    mine = queue.dequeue().buffer
    queue.queue(blocks(b"1"), A, None, told.append)
    queue.queue(blocks(b"2"), A)
    if way.startswith("with"):
        with suppress(LookupError), queue:
            if way == "with an error":
                raise LookupError
        queue.close()
    elif way == "in a cycle":
        queue.cycle = queue  # type: ignore[attr-defined]
    del queue
    gc.collect()
    assert [(outcome.status, outcome.blocks.tobytes()) for outcome in told] == [(GIVEN_BACK, b"1")]
    assert sorted(map(id, freed)) == sorted(id(each) for each in buffers if each is not mine)
    assert not endpoint.closed


def test_a_queue_that_was_closed_frees_nothing() -> None:
    """Its buffers are the caller's; and a callback that raises keeps none of them from being freed."""
    freed: list[BlockSeq] = []
    buffers = [room(4), room(4)]
    queue = DatagramQueue(ScriptedEndpoint(), buffers, on_free=freed.append)
    assert queue.close() == buffers
    del queue
    assert freed == []
    with pytest.raises(ExceptionGroup), DatagramQueue(ScriptedEndpoint(), buffers, on_free=freed.append) as queue:
        queue.queue(blocks(b"1"), A, None, raising(ValueError()))
    assert freed == buffers
    with pytest.raises(ValueError, match="size"):
        DatagramQueue(ScriptedEndpoint(), size=0)
