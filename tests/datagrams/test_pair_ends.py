"""Pairs in memory whose halves go, and memory that faults: errors, never a crash, and no datagram lost on the way."""

from __future__ import annotations

import errno
import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from safemem import Block, BlockSeq, HostFaultError
from safemem.block_seq import EMPTY
from safemem.datagram import (
    CAP_HANDLES_DST,
    CAP_HANDLES_SRC,
    CAP_PROVIDES_DST,
    CAP_PROVIDES_SRC,
    MemoryDatagram,
    MemoryEndpoint,
    datagram_pair,
)
from safemem.datagram.flags import MSG_PEEK
from sample_blocks import blocks, room
from usermem.testing.faulty_memory import Fault, FaultyMemory

Ends = tuple[MemoryEndpoint, MemoryEndpoint]
ALL_CAPS = CAP_HANDLES_SRC | CAP_HANDLES_DST | CAP_PROVIDES_SRC | CAP_PROVIDES_DST
FAULTS: list[Fault] = ["segv", "bus"]


def fixed() -> Ends:
    """A queue in memory, as both ends."""
    queue = MemoryDatagram(5000, mtu=100)
    return queue, queue


with_both = pytest.mark.parametrize("make", [datagram_pair, fixed])


def drain(end: MemoryEndpoint) -> list[bytes]:
    """All that can be received now."""
    found = []
    while end.pending() is not None:
        found.append(end.recvmsg(room(2048)).data.tobytes())
    return found


def part(one: MemoryEndpoint, how: str) -> None:
    """Close an end by one of the ways to do that."""
    if how == "with":
        with one:
            pass
    else:
        one.close()


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_a_half_without_the_other(how: str) -> None:
    """Nothing can be sent, nothing received, even what was queued; all else answers."""
    one, other = datagram_pair()
    one.caps = ALL_CAPS
    other.set_local_addr_enable(True)
    one.sendmsg(blocks(b"queued"))
    other.sendmsg(blocks(b"queued"))
    assert not other.eof
    if how == "drop":
        del one
    else:
        part(one, how)
        one.close()
        for act in (lambda: one.recvmsg(room(1)), lambda: one.sendmsg(EMPTY)):
            with pytest.raises(BrokenPipeError, match="this half is closed"):
                act()
    for act in (lambda: other.recvmsg(room(9)), lambda: other.sendmsg(EMPTY), lambda: other.recvmsg(EMPTY, MSG_PEEK)):
        with pytest.raises(BrokenPipeError, match="the other half is gone") as caught:
            act()
        assert caught.value.errno == errno.EPIPE
    assert (other.eof, other.pending(), other.effective_caps, other.local_addr_cap) == (True, None, 0, False)
    assert other.write_guarantee() == 0
    other.reset()
    other.close()
    other.close()


def test_halves_keep_nothing_alive() -> None:
    """A half that is dropped goes at once, though the other lives and datagrams were queued; in a cycle too."""
    one, other = datagram_pair()
    other.sendmsg(blocks(b"x"))
    one.sendmsg(blocks(b"x"))
    seen = weakref.ref(one)
    del one
    assert seen() is None
    one, other = datagram_pair()
    cycle: list[object] = [one]
    cycle.append(cycle)
    del one, cycle
    gc.collect()
    assert other.eof


def test_a_closed_queue() -> None:
    """Its contents are gone; a queue that is open never ends."""
    queue = MemoryDatagram()
    assert not queue.eof
    queue.sendmsg(blocks(b"x"))
    queue.close()
    queue.close()
    assert (queue.eof, queue.pending()) == (True, None)
    for act in (lambda: queue.recvmsg(room(1)), lambda: queue.sendmsg(EMPTY)):
        with pytest.raises(BrokenPipeError, match="this is closed"):
            act()


class Snatched(deque[Any]):
    """A queue whose datagram another thread takes right after one has looked whether there is one."""

    def __bool__(self) -> bool:
        return True


def test_a_datagram_that_another_thread_takes() -> None:
    """Between the look and the grip there is nothing left: that is what an empty queue is."""
    queue = MemoryDatagram()
    queue._in.entries = Snatched()
    assert queue.pending() is None
    for flags in (0, MSG_PEEK):
        with pytest.raises(BlockingIOError) as caught:
            queue.recvmsg(room(4), flags)
        assert caught.value.errno == errno.EAGAIN
    queue.sendmsg(blocks(b"x"))
    assert drain(queue) == [b"x"]


def poll(end: MemoryEndpoint, started: threading.Event, errors: list[OSError]) -> None:
    """Receive until that is an error other than that nothing is there."""
    while not errors:
        try:
            end.recvmsg(room(16))
        except BlockingIOError:
            started.set()
        except OSError as exc:
            errors.append(exc)


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_reader_whose_other_half_goes(how: str) -> None:
    """A thread that polls gets BrokenPipeError."""
    for _ in range(20):
        one, other = datagram_pair()
        started = threading.Event()
        ends: list[OSError] = []

        thread = threading.Thread(target=poll, args=(other, started, ends))
        thread.start()
        assert started.wait(5)
        one.sendmsg(blocks(b"hello"))
        if how == "close":
            one.close()
        del one
        thread.join(5)
        assert [type(exc) for exc in ends] == [BrokenPipeError]


@with_both
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("valid", [0, 3])
def test_a_destination_that_faults(make: Callable[[], Ends], fault: Fault, valid: int) -> None:
    """The datagram stays in front, the fault is told exactly, and the room that is taken stays right."""
    out, into = make()
    memory = FaultyMemory(fault)
    for data in (b"gone", b"0123456789", b"next"):
        out.sendmsg(blocks(data))
    into.recvmsg(room(4))
    free = out.write_guarantee()
    for flags in (0, MSG_PEEK, 0):
        dsts = BlockSeq([Block(bytearray(2)), memory.block(20, valid)])
        with pytest.raises(HostFaultError) as caught:
            into.recvmsg(dsts, flags)
        assert (caught.value.transferred, caught.value.address) == (2 + valid, memory.edge)
        assert memory.before_edge(valid) == b"23456789"[:valid]
        assert (into.pending(), out.write_guarantee()) == (10, free)
    into.recvmsg(BlockSeq([Block(bytearray(10)), memory.block(4, 0)]))  # the datagram ends before the fault
    assert drain(into) == [b"next"]


@with_both
def test_the_last_datagram_comes_back_too(make: Callable[[], Ends]) -> None:
    """One that was alone in the queue, and would be again."""
    out, into = make()
    out.sendmsg(blocks(b"abc"))
    free = out.write_guarantee()
    with pytest.raises(HostFaultError):
        into.recvmsg(BlockSeq.of(FaultyMemory("segv").block(8, 0)))
    assert out.write_guarantee() == free
    assert drain(into) == [b"abc"]


@with_both
@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_that_faults(make: Callable[[], Ends], fault: Fault) -> None:
    """Nothing is sent."""
    out, into = make()
    memory = FaultyMemory(fault)
    with pytest.raises(HostFaultError) as caught:
        out.sendmsg(BlockSeq([Block(b"ab"), memory.block(9, 4)]))
    assert (caught.value.transferred, caught.value.address, into.pending()) == (6, memory.edge, None)
    assert out.sendmsg(BlockSeq.of(memory.block(4, 4, b"fine"))) == 4
    assert drain(into) == [b"fine"]


@with_both
def test_read_only_destinations(make: Callable[[], Ends]) -> None:
    """TypeError before a byte moves, and the datagram stays."""
    out, into = make()
    out.sendmsg(blocks(b"abcd"))
    writable = bytearray(2)
    for dsts in (blocks(b"1234"), BlockSeq([Block(writable), Block(b"34")])):
        with pytest.raises(TypeError, match="must be writable"):
            into.recvmsg(dsts)
    assert writable == bytes(2)
    assert drain(into) == [b"abcd"]
