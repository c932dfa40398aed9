"""DatagramQueue: what is queued is sent or given back, and told once; buffers come and go and none is lost."""

from __future__ import annotations

import errno
import weakref

import pytest

from queue_endpoint import ScriptedEndpoint
from safemem import Block, BlockSeq
from safemem.datagram import DatagramQueue, NoBufferError, Outcome, Received, SendStatus
from safemem.datagram.flags import MSG_PEEK
from sample_blocks import blocks, room

SENT, FAILED, GIVEN_BACK = SendStatus.SENT, SendStatus.FAILED, SendStatus.GIVEN_BACK
A = ("127.0.0.1", 7)
B = ("127.0.0.2", 8)


class Told(list[tuple[SendStatus, bytes]]):
    """A done callback that notes what it is told."""

    def __call__(self, outcome: Outcome) -> None:
        assert (outcome.error is None) == (outcome.status is not FAILED)
        self.append((outcome.status, outcome.blocks.tobytes()))


def test_sends_in_batches_and_tells_each() -> None:
    """In order, to where each goes; a second flush has nothing to do."""
    endpoint, told = ScriptedEndpoint(), Told()
    with DatagramQueue(endpoint, size=2) as queue:
        queue.queue(blocks(b"on", b"e"), A, None, told)
        queue.queue(blocks(b"two"), B, A, told)
        queue.queue(blocks(), None, None, told)
        queue.queue(blocks(b"four"), A)
        assert not endpoint.sent
        assert not told
        assert queue.unsent == 4
        assert queue.flush() == 4
        assert queue.flush() == queue.unsent == 0
    assert endpoint.sent == [(b"one", A, None), (b"two", B, A), (b"", None, None), (b"four", A, None)]
    assert told == [(SENT, b"one"), (SENT, b"two"), (SENT, b"")]
    assert not endpoint.closed


def test_the_blocks_are_let_go() -> None:
    """Before done is called: nothing of the queue keeps them alive."""
    queue = DatagramQueue(ScriptedEndpoint())
    owner = Sentinel(blocks(b"x"))
    seen = weakref.ref(owner)
    queue.queue(Holding(owner))
    del owner
    assert seen() is not None
    queue.flush()
    assert seen() is None


class Sentinel:
    """Something to refer to weakly."""

    def __init__(self, message: BlockSeq) -> None:
        self.message = message


class Holding(BlockSeq):
    """A sequence that keeps something alive."""

    def __init__(self, owner: Sentinel) -> None:
        super().__init__(owner.message)
        self.owner = owner


@pytest.mark.parametrize("at", range(5))
def test_an_error_is_one_messages_own(at: int) -> None:
    """Those before and behind it go."""
    endpoint, told = ScriptedEndpoint(), Told()
    queue = DatagramQueue(endpoint, size=3)
    fault = OSError(errno.EPERM, "no")
    errors = []
    # The endpoint keeps to itself why a message behind the first did not go, and is asked again.
    first_of_a_call = at % 3 == 0
    endpoint.send_faults.extend([*[None] * at, fault, *([] if first_of_a_call else [fault])])

    def done(outcome: Outcome) -> None:
        told(outcome)
        errors.append(outcome.error)

    for i in range(5):
        queue.queue(blocks(b"%d" % i), A, None, done)
    assert queue.flush() == 5
    assert sorted(told, key=lambda each: each[1]) == [(FAILED if i == at else SENT, b"%d" % i) for i in range(5)]
    assert [error for error in errors if error] == [fault]
    assert [data for data, _, _ in endpoint.sent] == [b"%d" % i for i in range(5) if i != at]


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("kind", [BlockingIOError, InterruptedError])
def test_would_block_leaves_the_rest(at: int, kind: type[OSError]) -> None:
    """Queued, in order; it is raised only if nothing was done."""
    endpoint, told = ScriptedEndpoint(), Told()
    queue = DatagramQueue(endpoint, size=3)
    fault = kind()
    endpoint.send_faults.extend([*[None] * at, fault, *([fault] if at % 3 else [])])
    for i in range(4):
        queue.queue(blocks(b"%d" % i), A, None, told)
    if at:
        assert queue.flush() == at
    else:
        with pytest.raises(kind) as caught:
            queue.flush()
        assert caught.value is fault
    assert queue.unsent == 4 - at
    assert queue.flush() == 4 - at
    assert told == [(SENT, b"%d" % i) for i in range(4)]


def test_an_address_that_is_none_fails_its_message() -> None:
    """And no other, wherever it stands in the batch."""
    endpoint, told = ScriptedEndpoint(), Told()
    queue = DatagramQueue(endpoint, size=2)
    for peer in ("nonsense", A, ("::1", 1), A, "nonsense"):
        queue.queue(blocks(b"x"), peer, None, told)
    queue.queue(blocks(b"y"), A, ("::1", 1), told)
    assert queue.flush() == 6
    assert [status for status, _ in told] == [FAILED, SENT, FAILED, SENT, FAILED, FAILED]


def test_failures_without_a_callback_are_raised() -> None:
    """Together, after the others have gone."""
    endpoint, told = ScriptedEndpoint(), Told()
    queue = DatagramQueue(endpoint)
    faults = [OSError(errno.EPERM, "1"), OSError(errno.EPERM, "2")]
    endpoint.send_faults.extend(faults)
    queue.queue(blocks(b"1"))
    queue.queue(blocks(b"2"))
    queue.queue(blocks(b"3"), None, None, told)
    with pytest.raises(ExceptionGroup) as caught:
        queue.flush()
    assert list(caught.value.exceptions) == faults
    assert told == [(SENT, b"3")]
    assert queue.flush() == 0


def test_what_cannot_be_queued() -> None:
    """Is refused at once, and its callback is not called."""
    told = Told()
    queue = DatagramQueue(ScriptedEndpoint(), max_iov=2)
    with pytest.raises(ValueError, match="max_iov"):
        queue.queue(blocks(b"1", b"2", b"3"), done=told)
    with pytest.raises(BufferError):
        queue.queue(BlockSeq([Block.from_address(4096, 1)]), done=told)
    with pytest.raises(ValueError, match="size"):
        DatagramQueue(ScriptedEndpoint(), size=0)
    with pytest.raises(ValueError, match="family"):
        DatagramQueue(ScriptedEndpoint(), family=77)
    assert queue.unsent == 0
    assert queue.close() == []
    assert not told


def test_an_interrupt_leaves_messages_queued() -> None:
    """Those of the call that it met; those before are told."""
    endpoint, told = ScriptedEndpoint(), Told()
    endpoint.send_faults.extend([None, KeyboardInterrupt()])
    queue = DatagramQueue(endpoint, size=1)
    queue.queue(blocks(b"1"), done=told)
    queue.queue(blocks(b"2"), done=told)
    with pytest.raises(KeyboardInterrupt):
        queue.flush()
    assert told == [(SENT, b"1")]
    assert queue.flush() == 1
    assert told == [(SENT, b"1"), (SENT, b"2")]


class ZeroSent(ScriptedEndpoint):
    """Breaks its promise: it returns 0."""

    def sendmmsg(self, *_: object, **__: object) -> int:
        """Nothing."""
        return 0

    def recvmmsg(self, *_: object, **__: object) -> int:
        """Nothing."""
        return 0


def test_an_endpoint_that_does_nothing_blocks() -> None:
    """A queue does not spin over it."""
    buffer = room(4)
    queue = DatagramQueue(ZeroSent(), [buffer])
    queue.queue(blocks(b"1"))
    with pytest.raises(BlockingIOError):
        queue.flush()
    with pytest.raises(BlockingIOError):
        queue.dequeue()
    assert queue.unsent == 1
    assert queue.close() == [buffer]


def test_receives_many_by_one_call() -> None:
    """And gives them one by one, each with its buffer, its sender and its length."""
    endpoint = ScriptedEndpoint()
    endpoint.incoming.extend([(b"one", A), (b"", None), (b"three", B)])
    buffers = [room(2, 2), room(4), room(4), room(4)]
    queue = DatagramQueue(endpoint, buffers)
    first = queue.dequeue()
    assert isinstance(first, Received)
    assert queue.unread == 2
    assert not endpoint.incoming
    second, third = queue.dequeue(), queue.dequeue()
    assert [m.data.tobytes() for m in (first, second, third)] == [b"one", b"", b"thre"]
    assert [m.length for m in (first, second, third)] == [3, 0, 5]
    assert [m.truncated for m in (first, second, third)] == [False, False, True]
    assert [m.peer for m in (first, second, third)] == [A, None, B]
    assert [m.buffer for m in (first, second, third)] == buffers[:3]
    with pytest.raises(BlockingIOError):
        queue.dequeue()
    assert queue.close() == buffers[3:]


def test_recycling() -> None:
    """A buffer serves again and again; two of them serve in turn."""
    endpoint = ScriptedEndpoint()
    queue = DatagramQueue(endpoint, [room(4)])
    for i in range(5):
        endpoint.incoming.append((b"%d" % i, A))
        message = queue.dequeue()
        assert message.data.tobytes() == b"%d" % i
        with pytest.raises(NoBufferError):
            queue.dequeue()
        queue.recycle(message.buffer)
        with pytest.raises(ValueError, match="already"):
            queue.recycle(message.buffer)


def test_buffers_on_demand() -> None:
    """As many as a call takes, until there are none; those not filled are asked for no more."""
    endpoint = ScriptedEndpoint()
    made: list[BlockSeq | None] = [room(4), room(4), None]
    calls = iter(made)
    queue = DatagramQueue(endpoint, on_buffer=lambda: next(calls), size=5)
    endpoint.incoming.extend([(b"1", A)])
    assert queue.dequeue().buffer is made[0]
    assert next(calls, "all asked for") == "all asked for"
    calls = iter([None])
    endpoint.incoming.extend([(b"2", A)])
    assert queue.dequeue().buffer is made[1]
    calls = iter([None])
    with pytest.raises(NoBufferError):
        queue.dequeue()
    many = DatagramQueue(endpoint, on_buffer=lambda: room(1), size=3)
    endpoint.incoming.extend([(b"1", A)] * 4)
    many.dequeue()
    assert (many.unread, len(endpoint.incoming)) == (2, 1)
    assert len(many.close()) == 2


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (BlockSeq([Block(b"read-only")]), TypeError),
        (BlockSeq(), ValueError),
        (room(1, 1, 1), ValueError),
        (BlockSeq([Block.from_address(4096, 8)]), BufferError),
    ],
)
def test_buffers_that_cannot_be(bad: BlockSeq, error: type[Exception]) -> None:
    """Are refused however they come, and leave the queue as it was."""
    endpoint = ScriptedEndpoint()
    endpoint.incoming.append((b"1", A))
    good = room(4)
    with pytest.raises(error):
        DatagramQueue(endpoint, [bad], max_iov=2)
    queue = DatagramQueue(endpoint, [good], on_buffer=lambda: bad, max_iov=2)
    with pytest.raises(error):
        queue.recycle(bad)
    with pytest.raises(error):
        queue.dequeue()
    assert len(endpoint.incoming) == 1
    assert queue.close() == [good]


def test_an_error_keeps_the_buffers() -> None:
    """A receive's, and one of on_buffer; an error behind a message comes with the next receive."""
    endpoint = ScriptedEndpoint()
    buffers = [room(4), room(4)]
    faults = [OSError(errno.EPERM, "first"), None, OSError(errno.EPERM, "second")]
    endpoint.receive_faults.extend(faults)
    endpoint.incoming.extend([(b"1", A), (b"2", A)])
    queue = DatagramQueue(endpoint, buffers)
    with pytest.raises(OSError, match="first"):
        queue.dequeue()
    message = queue.dequeue()
    assert message.data.tobytes() == b"1"
    assert message.buffer is buffers[0]
    with pytest.raises(OSError, match="second"):
        queue.dequeue()
    assert queue.dequeue().data.tobytes() == b"2"
    queue.recycle(buffers[0])
    endpoint.receive_faults.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        queue.dequeue()
    assert queue.close() == buffers[:1]

    def raising() -> BlockSeq | None:
        raise LookupError("none")

    queue = DatagramQueue(endpoint, buffers, on_buffer=raising)
    with pytest.raises(LookupError):
        queue.dequeue()
    assert queue.close() == buffers


def test_plain_receives_until_the_first_dequeue() -> None:
    """Even one that raised: what it fills later would be overtaken."""
    endpoint = ScriptedEndpoint()
    endpoint.incoming.append((b"12", A))
    queue = DatagramQueue(endpoint, [room(4)])
    assert queue.recvmsg(room(4)).data.tobytes() == b"12"
    with pytest.raises(BlockingIOError):
        queue.dequeue()
    with pytest.raises(RuntimeError, match="overtake"):
        queue.recvmsg(room(4))


def test_flags_of_a_receive() -> None:
    """Go to the endpoint; a peek would fill all buffers with one message."""
    endpoint = ScriptedEndpoint()
    queue = DatagramQueue(endpoint, [room(4)])
    with pytest.raises(ValueError, match="peek"):
        queue.dequeue(MSG_PEEK)
    with pytest.raises(BlockingIOError):
        queue.dequeue(0x4000)
    assert endpoint.calls == [("recvmsg", 0x4000, 0)]


def test_close() -> None:
    """Gives back messages and buffers, once, and is the end."""
    endpoint, told = ScriptedEndpoint(), Told()
    endpoint.incoming.extend([(b"1", A)] * 2)
    buffers = [room(4) for _ in range(3)]
    queue = DatagramQueue(endpoint, buffers)
    mine = queue.dequeue().buffer
    queue.queue(blocks(b"1"), A, None, told)
    queue.queue(blocks(b"2"), A)
    queue.queue(blocks(b"3"), A, None, told)
    assert not queue.closed
    left = queue.close()
    assert queue.closed
    assert left == buffers[1:]
    assert mine is buffers[0]
    assert told == [(GIVEN_BACK, b"1"), (GIVEN_BACK, b"3")]
    assert queue.close() == []
    assert queue.flush() == 0
    assert len(told) == 2
    assert not endpoint.sent
    for refused in (
        lambda: queue.queue(blocks(b"x"), done=told),
        lambda: queue.recycle(mine),
        queue.dequeue,
        lambda: queue.recvmsg(mine),
    ):
        with pytest.raises(ValueError, match="closed"):
            refused()


def test_a_closed_queue_lets_buffers_go() -> None:
    """It keeps none of them alive."""
    owner = Sentinel(room(4))
    seen = weakref.ref(owner)
    endpoint = ScriptedEndpoint()
    queue = DatagramQueue(endpoint, [Holding(owner)])
    with pytest.raises(BlockingIOError):
        queue.dequeue()
    del owner
    assert seen() is not None
    assert len(queue.close()) == 1
    assert seen() is None
