"""Pairs in memory against a simple model, between threads, and through batches, readers and writers."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safemem import Block, BlockSeq
from safemem.datagram import (
    CAP_HANDLES_DST,
    CAP_HANDLES_SRC,
    CAP_PROVIDES_DST,
    DATAGRAM_OVERHEAD,
    BadBlocksError,
    DatagramPair,
    DatagramReader,
    DatagramTooLongError,
    DatagramWriter,
    LocalAddressNotAvailableError,
    MemoryDatagram,
    MessageBatch,
    datagram_pair,
)
from safemem.datagram.flags import MSG_PEEK, MSG_TRUNC
from safemem.protocols import is_message_oriented
from sample_blocks import blocks, room
from switching import quick_switches
from usermem.testing.faulty_memory import FaultyMemory

HERE, THERE = ("192.0.2.1", 1000), ("192.0.2.2", 2000)
SIZE = 1500


class Model:
    """Two lists and the rules of the documentation."""

    def __init__(self) -> None:
        self.sent: tuple[list[bytes], list[bytes]] = ([], [])
        self.no_trunc = [False, False]

    def used(self, half: int) -> int:
        """How much of a half's buffer is taken."""
        return sum(len(data) + DATAGRAM_OVERHEAD for data in self.sent[half])

    def send(self, half: int, data: bytes) -> object:
        """What a send returns, or the type of what it raises."""
        if len(data) + DATAGRAM_OVERHEAD > SIZE:
            return DatagramTooLongError
        if self.used(half) + len(data) + DATAGRAM_OVERHEAD > SIZE:
            return BlockingIOError
        self.sent[half].append(data)
        return len(data)

    def receive(self, half: int, size: int, flags: int) -> object:
        """What a receive returns, or the type of what it raises."""
        queue = self.sent[1 - half]
        if not queue:
            return BlockingIOError
        if self.no_trunc[half] and len(queue[0]) > size and not flags:
            return DatagramTooLongError
        data = queue[0] if flags else queue.pop(0)
        return data[:size], len(data), MSG_TRUNC if len(data) > size else 0


def attempt(act: Any) -> object:
    """What it returns, or the type of what it raises."""
    try:
        return act()
    except OSError as exc:
        return type(exc)


halves = st.integers(0, 1)
lengths = st.one_of(st.integers(0, 8), st.integers(0, SIZE))
pieces = st.lists(st.integers(0, 700), max_size=4)
steps = st.one_of(
    st.tuples(st.just("send"), halves, lengths, st.integers(1, 3)),
    st.tuples(st.just("receive"), halves, pieces, st.sampled_from([0, 0, 0, MSG_PEEK])),
    st.tuples(st.just("fault"), halves, pieces, st.just(0)),
    st.tuples(st.just("reset"), halves, st.just(0), st.just(0)),
    st.tuples(st.just("no_trunc"), halves, st.booleans(), st.just(0)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=40))
def test_a_pair_is_two_lists(script: list[tuple[str, int, Any, int]]) -> None:
    """Whatever the two halves do, they do as the model does."""
    pair = datagram_pair(SIZE, mtu=1)
    model = Model()
    for number, (what, half, much, more) in enumerate(script):
        end = pair[half]
        if what == "send":
            data = bytes((number + i) % 251 for i in range(much))
            cut = much // more
            assert attempt(lambda: end.sendmsg(blocks(data[:cut], data[cut:]))) == model.send(half, data)  # noqa: B023
        elif what == "receive":
            dsts = room(*much)
            found = attempt(lambda: end.recvmsg(dsts, more))  # noqa: B023
            if not isinstance(found, type):
                found = (found.data.tobytes(), found.length, found.flags)  # type: ignore[attr-defined]
            assert found == model.receive(half, sum(much), more)
        elif what == "fault":
            queue = model.sent[1 - half]
            if queue and len(queue[0]) > sum(much) and not model.no_trunc[half]:
                seq = BlockSeq([*room(*much), FAULTY.block(16, 0)])
                assert attempt(lambda: end.recvmsg(seq)).__name__ == "HostFaultError"  # type: ignore[attr-defined] # noqa: B023
        elif what == "reset":
            end.reset()
            model.sent[half].clear()
        else:
            end.no_trunc = model.no_trunc[half] = much
        for i in (0, 1):
            queue = model.sent[1 - i]
            assert pair[i].pending() == (len(queue[0]) if queue else None)
            free = SIZE - model.used(i) - DATAGRAM_OVERHEAD
            assert pair[i].write_guarantee() == max(free, 0)


FAULTY = FaultyMemory("segv")


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    with quick_switches(5e-6):
        yield


def patient(act: Any) -> object:
    """What it returns, or the type of what it raises; others have a turn if it would block."""
    found = attempt(act)
    if found is BlockingIOError:
        time.sleep(0)
    return found


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("growing", [False, True])
def test_threads_lose_and_double_nothing(growing: bool) -> None:
    """Eight of them send and receive at once, some into memory that faults; what one sent comes in its order."""
    queue = MemoryDatagram()
    one, other = (queue, queue) if growing else datagram_pair()
    each = 1000
    found: deque[tuple[int, int, int]] = deque()
    errors: list[BaseException] = []
    barrier = threading.Barrier(8)

    def send(who: int) -> None:
        for i in range(each):
            data = b"%d %d " % (who, i)
            data += bytes(i % 50)
            while patient(lambda: one.sendmsg(blocks(data[:3], data[3:]))) is BlockingIOError:  # noqa: B023
                pass

    def receive(who: int) -> None:
        faulty = BlockSeq([Block(bytearray(1)), FAULTY.block(90, 0)])
        at = 0
        while len(found) < 4 * each:
            at += 1
            dsts = faulty if who == 0 and at % 5 == 0 else room(100)
            message = patient(lambda: other.recvmsg(dsts))  # noqa: B023
            if not isinstance(message, type):
                sender, number, _ = message.data.tobytes().split(b" ")  # type: ignore[attr-defined]
                found.append((who, int(sender), int(number)))

    def run(target: Any, who: int) -> None:
        try:
            barrier.wait(10)
            target(who)
        except BaseException as exc:
            errors.append(exc)

    threads = [
        threading.Thread(target=run, args=(act, who), daemon=True) for act in (send, receive) for who in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert sorted(found_by[1:] for found_by in found) == [(who, i) for who in range(4) for i in range(each)]
    assert one.write_guarantee() > 9000
    assert other.pending() is None


@pytest.mark.usefixtures("hurried")
def test_one_sender_and_one_receiver_keep_order() -> None:
    """And the room that is taken comes back."""
    one, other = datagram_pair(2000, mtu=1)
    free = one.write_guarantee()
    found: list[int] = []

    def receive() -> None:
        while len(found) < 5000:
            message = patient(lambda: other.recvmsg(room(300)))
            if not isinstance(message, type):
                found.append(int(message.data.tobytes()))  # type: ignore[attr-defined]

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    for i in range(5000):
        while patient(lambda: one.sendmsg(blocks(b"%0*d" % (i % 200 + 4, i)))) is BlockingIOError:  # noqa: B023
            pass
    thread.join(20)
    assert found == list(range(5000))
    assert one.write_guarantee() == free


def batch(*sizes: int, **options: Any) -> MessageBatch:
    """Messages with room for these sizes."""
    return MessageBatch([room(size) for size in sizes], **options)


def test_batches() -> None:
    """Several messages a call: as many as fit, as many as are there; entries behind them stay."""
    one, other = datagram_pair(4 * (DATAGRAM_OVERHEAD + 100))
    sending = MessageBatch([blocks(bytes([i]) * 100) for i in range(6)])
    assert (one.sendmmsg(sending), one.sendmmsg(sending, 0)) == (4, 0)
    with pytest.raises(BlockingIOError):
        one.sendmmsg(sending)
    into = batch(100, 60, 100, 100, 100, 100)
    assert other.recvmmsg(into, 1, MSG_PEEK) == 1
    assert other.recvmmsg(into) == 4
    assert (into.lengths(), into.datagram_lengths()) == ([100, 60, 100, 100], [100] * 4)
    assert (into.truncated(), into.peers()) == ([1], [None] * 4)
    assert [into[i].data.tobytes() for i in range(4)] == [bytes([i]) * n for i, n in enumerate((100, 60, 100, 100))]
    assert into.blocks(4).tobytes() == b"\xee" * 100
    with pytest.raises(BlockingIOError):
        other.recvmmsg(into)
    assert other.recvmmsg(into, 0) == 0
    one.close()
    with pytest.raises(BrokenPipeError):
        other.recvmmsg(into)
    with pytest.raises(BrokenPipeError):
        other.sendmmsg(sending)


def test_batches_and_addresses() -> None:
    """A batch that asks for local addresses needs them enabled; what it does not reach is not touched."""
    one, other = datagram_pair()
    one.sendmsg(blocks(b"x"))
    into = batch(8, 8, local=True)
    with pytest.raises(LocalAddressNotAvailableError):
        other.recvmmsg(into)
    assert (other.recvmmsg(into, 0), other.pending(), into.blocks(0).tobytes()) == (0, 1, b"\xee" * 8)
    one.reset()
    for end in (one, other):
        end.caps = CAP_HANDLES_SRC | CAP_HANDLES_DST | CAP_PROVIDES_DST
    for end in (one, other):
        end.set_local_addr_enable(True)
    sending = MessageBatch([blocks(b"0"), blocks(b"1")])
    sending.set_peer(0, THERE, HERE)
    assert one.sendmmsg(sending) == 2
    assert other.recvmmsg(into) == 2
    assert (into.peers(), into.local(0), into.local(1)) == ([HERE, None], THERE, None)
    other.caps = 0
    sending.set_peer(0, None)
    sending.set_peer(1, THERE)
    assert one.sendmmsg(sending) == 1  # the second is refused, and says so when it comes first
    assert other.pending() == 1


def test_a_refusal_behind_the_first_message_is_forgotten() -> None:
    """A datagram that no_trunc refuses ends the batch and stays: only a receive that is too short again tells it."""
    one, other = datagram_pair()
    other.no_trunc = True
    for data in (b"a", b"too long"):
        one.sendmsg(blocks(data))
    assert other.recvmmsg(batch(4, 4)) == 1
    assert other.recvmsg(room(100)).data.tobytes() == b"too long"
    one.sendmsg(blocks(b"too long"))
    with pytest.raises(DatagramTooLongError):
        other.recvmmsg(batch(4, 4))
    assert other.recvmsg(room(100)).data.tobytes() == b"too long"


def two() -> tuple[DatagramPair, DatagramPair]:
    """A pair whose first half has a datagram of 10 bytes and one of 2 waiting."""
    one, other = datagram_pair()
    other.sendmsg(blocks(b"0123456789"))
    other.sendmsg(blocks(b"ab"))
    return one, other


def test_reader_and_writer() -> None:
    """One datagram a call, an empty one too; what came with it is on the reader."""
    one, other = two()
    reader, writer = DatagramReader(one), DatagramWriter(one)
    assert is_message_oriented(reader)
    assert is_message_oriented(writer)
    assert (reader.read_to_blocks(room(4)), reader.msg_len, reader.flags) == (4, 10, MSG_TRUNC)
    assert (reader.read_to_blocks(room(4)), reader.msg_len, reader.flags) == (2, 2, 0)
    with pytest.raises(BlockingIOError):
        reader.read_to_blocks(room(4))
    assert not reader.received
    assert [writer.write_from_blocks(seq) for seq in (blocks(b"x", b"yz"), blocks())] == [3, 0]
    assert [DatagramReader(other).read_to_blocks(room(9)) for _ in range(2)] == [3, 0]
    other.close()
    with pytest.raises(BrokenPipeError):
        reader.read_to_blocks(room(1))


@pytest.mark.parametrize("no_trunc", [False, True])
def test_policy_keep(no_trunc: bool) -> None:
    """A datagram that needs memory which cannot be written stays; one that does not is received."""
    one, _other = two()
    one.no_trunc = no_trunc
    with pytest.raises(BadBlocksError) as caught:
        DatagramReader(one, wanted=20).read_to_blocks(room(6))
    assert (caught.value.lost, caught.value.errno, one.pending()) == (False, errno.EFAULT, 10)
    assert DatagramReader(one, wanted=20).read_to_blocks(room(10)) == 10
    assert DatagramReader(one, wanted=20).read_to_blocks(room(6)) == 2


def test_policy_linux() -> None:
    """There it is lost, and the bytes before the hole are written."""
    one, _other = two()
    dsts = room(6)
    with pytest.raises(BadBlocksError) as caught:
        DatagramReader(one, wanted=20, fault_policy="linux").read_to_blocks(dsts)
    assert (caught.value.lost, caught.value.transferred, dsts.tobytes(), one.pending()) == (True, 6, b"012345", 2)


def test_as_a_socket_pair_does() -> None:
    """Lengths, flags and order are those of a pair of datagram sockets, cut and empty ones too."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one, other = datagram_pair()
    with left, right:
        right.setblocking(False)
        for size in (0, 1, 5, 6, 40):
            for dsts in (room(5), room(2, 3)):
                left.send(bytes(size))
                one.sendmsg(blocks(bytes(size)))
                n, _, flags, _ = right.recvmsg_into([bytearray(len(block)) for block in dsts])
                message = other.recvmsg(dsts)
                assert (message.data.num_bytes, message.flags) == (n, flags & MSG_TRUNC)
        with pytest.raises(BlockingIOError):
            right.recv(1)
        with pytest.raises(BlockingIOError):
            other.recvmsg(room(1))
