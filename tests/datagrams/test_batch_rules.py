"""MessageBatch: what it refuses, and what any endpoint makes of it without the kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from queue_endpoint import ScriptedEndpoint
from safemem import Block, BlockSeq
from safemem.datagram import MessageBatch
from safemem.datagram.flags import MSG_DONTWAIT, MSG_PEEK, UIO_MAXIOV
from sample_blocks import blocks, room

A, B = ("127.0.0.1", 7), ("127.0.0.2", 8)
UNSAFE = BlockSeq([Block.from_address(4096, 1)])


def test_what_cannot_be_made() -> None:
    """Families, sizes, numbers of blocks, memory that may fault."""
    made: dict[str, Callable[[], object]] = {
        "family": lambda: MessageBatch([], family=77),
        "max_iov": lambda: MessageBatch([], max_iov=UIO_MAXIOV + 1),
        "max_iov must": lambda: MessageBatch([], max_iov=-1),
        "max_iov 1": lambda: MessageBatch([room(1, 1)], max_iov=1),
        "max_iov must lie": lambda: MessageBatch([room(*[1] * (UIO_MAXIOV + 1))]),
        "control_len": lambda: MessageBatch([room(1)], control_len=-1),
    }
    for message, make in made.items():
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(BufferError):
        MessageBatch([UNSAFE])
    assert MessageBatch([]).max_iov == 1
    assert MessageBatch([room(1, 1, 1), room(1)]).max_iov == 3


@pytest.mark.parametrize("bad", [UNSAFE, room(1, 1)])
def test_a_bind_that_fails_changes_nothing(bad: BlockSeq) -> None:
    """Neither the one message nor, in a ring, any."""
    first = [room(8), room(8)]
    batch = MessageBatch(first)
    with pytest.raises((ValueError, BufferError)):
        batch.bind(1, bad)
    with pytest.raises((ValueError, BufferError)):
        batch.bind_ring([room(2), bad], 0)
    with pytest.raises(ValueError, match="no slots"):
        batch.bind_ring([], 0)
    assert [batch.blocks(i) for i in range(2)] == first
    endpoint = ScriptedEndpoint()
    endpoint.incoming.extend([(b"12345", A)] * 2)
    assert endpoint.recvmmsg(batch) == 2
    assert batch.lengths() == [5, 5]


@pytest.mark.parametrize("i", [2, -3, 1 << 70])
def test_indices_outside(i: int) -> None:
    """IndexError, for each method."""
    batch = MessageBatch([room(1), room(1)])
    calls: list[Callable[[], object]] = [
        lambda: batch[i],
        lambda: batch.peer(i),
        lambda: batch.local(i),
        lambda: batch.ancillary(i),
        lambda: batch.blocks(i),
        lambda: batch.bind(i, room(1)),
        lambda: batch.set_peer(i, A),
    ]
    for call in calls:
        with pytest.raises(IndexError):
            call()


def test_indices_from_the_end() -> None:
    """As of a list."""
    batch = MessageBatch([room(1), room(1)])
    endpoint = ScriptedEndpoint()
    endpoint.incoming.extend([(b"1", A), (b"2", B)])
    endpoint.recvmmsg(batch)
    assert batch.peer(-1) == batch[-1].peer == B
    assert batch.local(-1) is None
    assert batch.ancillary(-1) == ()
    batch.set_peer(-1, A)
    assert batch.destination(1) == (A, None, ())
    batch.bind(-1, last := room(1))
    assert batch.blocks(1) is last


def test_counts_outside() -> None:
    """ValueError, for each method."""
    batch = MessageBatch([room(1), room(1)])
    endpoint = ScriptedEndpoint()
    for n in (-1, 3):
        for call in (batch.lengths, batch.datagram_lengths, batch.flags, batch.truncated, batch.peers):
            with pytest.raises(ValueError, match="must lie"):
                call(n)
        for move in (endpoint.recvmmsg, endpoint.sendmmsg):
            with pytest.raises(ValueError, match="vlen"):
                move(batch, n)
    assert not endpoint.calls


def test_a_destination_that_cannot_be_changes_nothing() -> None:
    """An address of another family, control data without room."""
    batch = MessageBatch([room(1)], control_len=16)
    batch.set_peer(0, A, B, [(1, 2, b"")])
    before = bytes(batch.headers._memory)
    calls: tuple[Callable[[], object], ...] = (
        lambda: batch.set_peer(0, ("::1", 1)),
        lambda: batch.set_peer(0, ("::1", 1), None, [(5, 6, b"7")]),
        lambda: batch.set_peer(0, B, ("::1", 1)),
        lambda: batch.set_peer(0, B, None, [(1, 2, bytes(100))]),
        lambda: batch.set_peer(0, B, None, [(1 << 40, 2, b"")]),
    )
    for bad in calls:
        with pytest.raises(ValueError):
            bad()
    assert batch.destination(0) == (A, B, ((1, 2, b""),))
    assert bytes(batch.headers._memory) == before


def test_read_only_memory() -> None:
    """Can be sent; a receive that would reach it is refused before it begins."""
    batch = MessageBatch([room(4), blocks(b"const")])
    endpoint = ScriptedEndpoint()
    endpoint.incoming.extend([(b"1", A)] * 3)
    with pytest.raises(TypeError, match="message 1"):
        endpoint.recvmmsg(batch)
    assert not endpoint.calls
    assert endpoint.recvmmsg(batch, 1) == 1
    assert endpoint.sendmmsg(batch) == 2
    batch.bind(1, room(4))
    assert endpoint.recvmmsg(batch) == 2


def test_one_call_at_a_time() -> None:
    """What another thread, or the call itself, does with the batch meanwhile is refused; afterwards it is free."""
    batch = MessageBatch([room(4)])
    other = MessageBatch([room(4)])
    errors: list[str] = []

    def meanwhile() -> None:
        calls: list[Callable[[], object]] = [
            lambda: endpoint.recvmmsg(batch),
            lambda: endpoint.sendmmsg(batch),
            lambda: batch.bind(0, room(1)),
            lambda: batch.bind_ring([room(1)], 0),
            lambda: batch.set_peer(0, A),
        ]
        for call in calls:
            try:
                call()
            except RuntimeError as exc:
                errors.append(str(exc))
        endpoint.sendmmsg(other)

    def in_a_thread() -> None:
        thread = threading.Thread(target=meanwhile, daemon=True)
        thread.start()
        thread.join(10)

    endpoint = ScriptedEndpoint()
    endpoint.incoming.append((b"1", A))
    endpoint.receive_faults.append(in_a_thread)
    assert endpoint.recvmmsg(batch) == 1
    assert errors == ["the batch is in use"] * 5
    endpoint.receive_faults.append(LookupError("mine"))
    with pytest.raises(LookupError):
        endpoint.recvmmsg(batch)
    batch.bind(0, room(1))


def test_an_emulated_receive() -> None:
    """Waits for the first alone; an error behind it comes next; entries not reached stay."""
    endpoint = ScriptedEndpoint()
    endpoint.incoming.extend([(b"one", A), (b"two", B), (b"three", A)])
    batch = MessageBatch([room(4) for _ in range(4)], control_len=24)
    assert endpoint.recvmmsg(batch, 2, 0x4000) == 2
    assert endpoint.calls == [("recvmsg", 0x4000, 24), ("recvmsg", 0x4000 | MSG_DONTWAIT, 24)]
    fault = OSError(5, "held")
    endpoint.receive_faults.extend([None, fault])
    assert endpoint.recvmmsg(batch) == 1
    assert batch.peers(2) == [A, B]
    assert batch.datagram_lengths(2) == [5, 3]
    assert batch.lengths() == [4]
    with pytest.raises(OSError, match="held") as caught:
        endpoint.recvmmsg(batch)
    assert caught.value is fault
    assert batch.count == 1
    with pytest.raises(BlockingIOError):
        endpoint.recvmmsg(batch)
    assert endpoint.recvmmsg(batch, 0) == batch.count == 0
    assert (batch.lengths(), batch.peers(), batch.truncated()) == ([], [], [])
    endpoint.incoming.append((b"peek", A))
    assert endpoint.recvmmsg(batch, 3, MSG_PEEK) == 3
    assert batch.peers() == [A] * 3
    assert endpoint.pending() == 4


@pytest.mark.parametrize("fault", [OSError(5, "no"), BlockingIOError(), ValueError("odd")])
def test_an_emulated_send(fault: Exception) -> None:
    """Stops at the first that does not go, and says how many went; again from there tells why."""
    endpoint = ScriptedEndpoint()
    batch = MessageBatch([blocks(b"1"), blocks(), blocks(b"3")], control_len=24)
    batch.set_peer(1, A, B, [(1, 2, b"3")])
    assert endpoint.sendmmsg(batch, 0) == 0
    endpoint.send_faults.extend([None, None, fault])
    assert endpoint.sendmmsg(batch, flags=64) == 2
    assert endpoint.sent == [(b"1", None, None), (b"", A, B)]
    assert [call[1:] for call in endpoint.calls] == [(64, 0), (64, 1), (64, 0)]
    endpoint.send_faults.append(fault)
    with pytest.raises(type(fault)) as caught:
        endpoint.sendmmsg(batch)
    assert caught.value is fault


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(), MemoryError()])
def test_an_interrupt_behind_the_first_message(interrupt: BaseException) -> None:
    """It comes out of this call and of no later one, and the batch has the messages before it."""
    endpoint = ScriptedEndpoint()
    endpoint.incoming.extend([(b"1", A), (b"2", B)])
    endpoint.receive_faults.extend([None, interrupt])
    batch = MessageBatch([room(4), room(4)])
    with pytest.raises(type(interrupt)) as caught:
        endpoint.recvmmsg(batch)
    assert caught.value is interrupt
    assert (batch.count, batch.lengths()) == (1, [1])
    assert endpoint.recvmmsg(batch) == 1
    assert batch.blocks(0).tobytes()[:1] == b"2"


def test_two_receivers_share_a_held_error() -> None:
    """It is raised once, however the threads run."""
    for _ in range(50):
        endpoint = ScriptedEndpoint()
        endpoint.hold_error(LookupError("once"))
        start = threading.Barrier(2)
        raised: list[BaseException] = []

        def receive(endpoint: ScriptedEndpoint = endpoint, start: threading.Barrier = start) -> None:
            start.wait(10)
            try:
                endpoint.recvmsg(room(1))
            except (LookupError, BlockingIOError, TypeError) as exc:
                raised.append(exc)  # noqa: B023

        threads = [threading.Thread(target=receive, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(type(exc).__name__ for exc in raised) == ["BlockingIOError", "LookupError"]
