"""Pairs and queues of datagrams in memory: the cases of OpenSSL's tests, and what this library promises beyond them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest

from integer_kinds import KINDS, kind_of
from safemem import Block, BlockSeq
from safemem.block_seq import EMPTY
from safemem.datagram import (
    CAP_HANDLES_DST,
    CAP_HANDLES_SRC,
    CAP_PROVIDES_DST,
    CAP_PROVIDES_SRC,
    DATAGRAM_OVERHEAD,
    DEFAULT_WRITE_BUF_SIZE,
    Address,
    Ancillary,
    DatagramTooLongError,
    LocalAddressNotAvailableError,
    MemoryDatagram,
    MemoryEndpoint,
    PeerAddressNotAvailableError,
    datagram_pair,
)
from safemem.datagram.cmsg import pktinfo_of
from safemem.datagram.flags import MSG_PEEK, MSG_TRUNC
from safemem.errors import TransferError
from sample_blocks import blocks, room
from usermem.testing.faulty_memory import Fault

Ends = tuple[MemoryEndpoint, MemoryEndpoint]
ALL_CAPS = CAP_HANDLES_SRC | CAP_HANDLES_DST | CAP_PROVIDES_SRC | CAP_PROVIDES_DST
FAULTS: list[Fault] = ["segv", "bus"]
AF_INET, AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)
HERE, THERE = ("192.0.2.1", 1000), ("192.0.2.2", 2000)


def fixed() -> Ends:
    """A queue in memory of the default size, as both ends."""
    queue = MemoryDatagram(DEFAULT_WRITE_BUF_SIZE)
    return queue, queue


def growing() -> Ends:
    """A queue in memory that grows, as both ends."""
    queue = MemoryDatagram()
    return queue, queue


with_both = pytest.mark.parametrize("make", [datagram_pair, growing])
with_fixed = pytest.mark.parametrize("make", [datagram_pair, fixed])
with_all = pytest.mark.parametrize("make", [datagram_pair, fixed, growing])


def drain(end: MemoryEndpoint) -> list[bytes]:
    """All that can be received now."""
    found = []
    while end.pending() is not None:
        found.append(end.recvmsg(room(2048)).data.tobytes())
    return found


@with_fixed
def test_it_takes_nine_datagrams_and_then_none(make: Callable[[], Ends]) -> None:
    """Nine of the MTU fill it; the tenth is refused whole, and goes when one has been received. Order is kept."""
    out, into = make()
    sent = [bytes([i]) * 1472 for i in range(10)]
    for data in sent[:9]:
        assert out.write_guarantee() >= 1472
        assert out.sendmsg(blocks(data)) == 1472
    assert out.write_guarantee() == 0
    for data in (sent[9], b"x", b""):
        with pytest.raises(BlockingIOError) as caught:
            out.sendmsg(blocks(data))
        assert caught.value.errno == errno.EAGAIN
    assert into.recvmsg(room(1472)).data.tobytes() == sent[0]
    assert out.write_guarantee() == 1472
    assert out.sendmsg(blocks(sent[9])) == 1472
    assert drain(into) == sent[1:]
    with pytest.raises(BlockingIOError):
        into.recvmsg(room(1))
    assert out.write_guarantee() == DEFAULT_WRITE_BUF_SIZE - DATAGRAM_OVERHEAD


def test_one_that_grows_takes_a_mebibyte() -> None:
    """And gives it back, in order, whatever the lengths."""
    queue = MemoryDatagram()
    assert queue.write_buf_size is None
    sent = [i.to_bytes(4, "big") * (i % 400) for i in range(2000)]
    for data in sent:
        queue.sendmsg(blocks(data))
    assert sum(map(len, sent)) > 1 << 20
    assert queue.write_guarantee() > 1 << 40
    assert drain(queue) == sent


def test_sizes() -> None:
    """Of a small buffer 1024 bytes are there; each datagram takes its length and the overhead."""
    one, other = datagram_pair(1, mtu=100)
    assert (one.write_buf_size, other.write_buf_size, one.mtu, other.mtu) == (1024, 1024, 100, 100)
    assert one.write_guarantee() == 1024 - DATAGRAM_OVERHEAD
    one.sendmsg(blocks(bytes(300)))
    assert one.write_guarantee() == 1024 - 300 - 2 * DATAGRAM_OVERHEAD
    one.mtu = 1024 - 300 - 2 * DATAGRAM_OVERHEAD + 1
    assert (one.write_guarantee(), other.mtu) == (0, one.mtu)
    one.sendmsg(blocks(bytes(1024 - 300 - 2 * DATAGRAM_OVERHEAD)))
    with pytest.raises(BlockingIOError):
        one.sendmsg(EMPTY)
    for bad in (0, -1):
        with pytest.raises(ValueError, match="write_buf_size must be positive"):
            datagram_pair(bad)
        with pytest.raises(ValueError, match="mtu must be positive"):
            MemoryDatagram(mtu=bad)
        with pytest.raises(ValueError, match="mtu must be positive"):
            one.mtu = bad


def test_what_never_fits_is_told_apart_from_full() -> None:
    """A datagram longer than the buffer is DatagramTooLongError, full or empty."""
    one, other = datagram_pair(2000)
    most = 2000 - DATAGRAM_OVERHEAD
    for queued in ([], [bytes(most)]):
        for data in queued:
            one.sendmsg(blocks(data))
        with pytest.raises(DatagramTooLongError) as caught:
            one.sendmsg(blocks(bytes(most + 1)))
        assert (caught.value.length, caught.value.room) == (most + 1, most)
        assert drain(other) == queued


@with_all
def test_every_shape_of_blocks(make: Callable[[], Ends]) -> None:
    """Scattered, windowed and larger memory: the bytes arrive, nothing else is touched, and data is what arrived."""
    out, into = make()
    data = bytes(range(1, 31))
    memory = bytearray(b"\xee" * 40)
    window = BlockSeq([Block(memory)]).drop_first(3)
    places = {"one": room(30), "larger": room(50), "window": window, "many": room(1, 9, 20), "more": room(29, 10, 5)}
    sources = [blocks(data), blocks(data[:7], data[7:]), blocks(b"xx" + data + b"yy").drop_first(2).take_first(30)]
    for src in sources:
        for dsts in places.values():
            assert out.sendmsg(src) == 30
            message = into.recvmsg(dsts)
            assert (message.length, message.flags, message.data.tobytes()) == (30, 0, data)
            assert dsts.tobytes() == data + b"\xee" * (dsts.num_bytes - 30)
    assert memory == b"\xee" * 3 + data + b"\xee" * 7


@with_both
def test_a_window_across_blocks(make: Callable[[], Ends]) -> None:
    """A window that starts inside a block, and is as long as that block, is not that block."""
    out, into = make()
    out.sendmsg(blocks(b"abcd", b"efgh").drop_first(2).take_first(4))
    dsts = room(4, 4)
    assert into.recvmsg(dsts.drop_first(2).take_first(4)).data.tobytes() == b"cdef"
    assert dsts.tobytes() == b"\xee\xeecdef\xee\xee"


@with_all
def test_cutting_shows(make: Callable[[], Ends]) -> None:
    """What finds no room is gone, and the message says so; so is all of it where there is no room at all."""
    out, into = make()
    for dsts in (room(5), room(2, 3), EMPTY):
        out.sendmsg(blocks(b"0123456789"))
        message = into.recvmsg(dsts)
        assert (message.length, message.flags, message.truncated) == (10, MSG_TRUNC, True)
        assert message.data.tobytes() == b"0123456789"[: dsts.num_bytes]
        assert into.pending() is None


@with_all
def test_empty_datagrams(make: Callable[[], Ends]) -> None:
    """They are datagrams: 0 pending is one, None is none, and they fit in no memory."""
    out, into = make()
    assert into.pending() is None
    assert out.sendmsg(EMPTY) == 0
    out.sendmsg(blocks(b"x"))
    assert into.pending() == 0
    for dsts in (room(4), EMPTY):
        message = into.recvmsg(dsts, MSG_PEEK)
        assert (message.length, message.flags, message.data.num_bytes) == (0, 0, 0)
    into.recvmsg(EMPTY)
    assert into.pending() == 1


@with_all
def test_looking_takes_nothing(make: Callable[[], Ends]) -> None:
    """MSG_PEEK gives the same datagram again, cut or whole."""
    out, into = make()
    out.sendmsg(blocks(b"abc"))
    for dsts in (room(3), room(2), EMPTY, room(1, 5)):
        message = into.recvmsg(dsts, MSG_PEEK)
        assert (message.length, message.truncated) == (3, dsts.num_bytes < 3)
        assert message.data.tobytes() == b"abc"[: dsts.num_bytes]
    assert drain(into) == [b"abc"]


@with_all
def test_no_trunc(make: Callable[[], Ends]) -> None:
    """With it a short receive is an error of its own and takes nothing; a look is allowed; without it, it cuts."""
    out, into = make()
    assert not into.no_trunc
    into.no_trunc = True
    out.sendmsg(blocks(bytes(64)))
    out.sendmsg(blocks(b"next"))
    for dsts in (room(32), room(16, 16), EMPTY):
        with pytest.raises(DatagramTooLongError) as caught:
            into.recvmsg(dsts)
        assert (caught.value.length, caught.value.room) == (64, dsts.num_bytes)
        assert set(dsts.tobytes()) <= {0xEE}
        assert into.pending() == 64
    assert into.recvmsg(EMPTY, MSG_PEEK).length == 64
    into.no_trunc = False
    assert into.recvmsg(room(32)).truncated
    into.no_trunc = True
    assert drain(into) == [b"next"]


@with_both
def test_caps_and_addresses(make: Callable[[], Ends]) -> None:
    """A destination needs the other end's HANDLES_DST, a local address one's own leave, which needs the other's two."""
    out, into = make()
    for end in (out, into):
        assert (end.caps, end.effective_caps, end.local_addr_cap, end.local_addr_enabled) == (0, 0, False, False)
    with pytest.raises(PeerAddressNotAvailableError):
        out.sendmsg(blocks(b"x"), THERE)
    for caps in (CAP_HANDLES_DST, CAP_HANDLES_SRC, CAP_PROVIDES_DST, ALL_CAPS & ~CAP_HANDLES_SRC):
        into.caps = caps
        assert (into.caps, out.effective_caps, out.local_addr_cap) == (caps, caps, False)
        with pytest.raises(LocalAddressNotAvailableError):
            out.set_local_addr_enable(True)
        out.set_local_addr_enable(False)
        if not caps & CAP_HANDLES_DST:
            with pytest.raises(PeerAddressNotAvailableError):
                out.sendmsg(blocks(b"x"), THERE)
    into.caps = ALL_CAPS
    out.caps = ALL_CAPS
    with pytest.raises(LocalAddressNotAvailableError):
        out.sendmsg(blocks(b"x"), local=HERE)
    assert into.pending() is None
    out.sendmsg(blocks(b"1"), THERE)
    assert into.recvmsg(room(1)).local is None  # not enabled there
    for end in (out, into):
        assert end.local_addr_cap
        end.set_local_addr_enable(True)
        assert end.local_addr_enabled
    out.sendmsg(blocks(b"2"), THERE, HERE)
    out.sendmsg(blocks(b"3"))
    out.set_local_addr(HERE)
    out.sendmsg(blocks(b"4"))
    out.sendmsg(blocks(b"5"), local=THERE)
    out.set_local_addr(None)
    out.sendmsg(blocks(b"6"))
    found = [into.recvmsg(room(1)) for _ in range(5)]
    assert [(m.peer, m.local) for m in found] == [
        (HERE, THERE),
        (None, None),
        (HERE, None),
        (THERE, None),
        (None, None),
    ]
    with pytest.raises(ValueError, match="four CAP_ flags"):
        out.caps = 16


@with_both
def test_control_data_are_refused(make: Callable[[], Ends]) -> None:
    """They have no way to go along: EINVAL, and nothing is sent."""
    out, into = make()
    with pytest.raises(TransferError, match="leave ancdata out") as caught:
        out.sendmsg(blocks(b"x"), ancdata=[(1, 1, b"")])
    assert (caught.value.errno, into.pending()) == (errno.EINVAL, None)
    assert out.sendmsg(blocks(b"x"), ancdata=iter(())) == 1


@with_both
def test_local_addresses_as_control_data(make: Callable[[], Ends]) -> None:
    """They are what ``local`` is; its port is that of set_local_addr, and the unspecified address names none."""
    out, into = make()
    out.caps = into.caps = ALL_CAPS
    control = pktinfo_of(AF_INET, ("10.0.0.1", 0))
    with pytest.raises(LocalAddressNotAvailableError):
        out.sendmsg(blocks(b"x"), ancdata=[control])
    out.set_local_addr_enable(True)
    into.set_local_addr_enable(True)
    control6 = pktinfo_of(AF_INET6, ("fe80::1", 0, 0, 3))
    with pytest.raises(TransferError, match="leave ancdata out"):
        out.sendmsg(blocks(b"x"), ancdata=[control, (1, 1, b"")])
    with pytest.raises(TransferError, match="leave ancdata out"):
        out.sendmsg(blocks(b"x"), ancdata=[(control[0], control[1], control[2][:-1])])
    assert into.pending() is None
    sent: list[tuple[Address | None, list[Ancillary], Address | None, Address | None]] = [
        (None, [control], None, ("10.0.0.1", 0)),
        (None, [control6], None, ("fe80::1", 0, 0, 3)),
        (HERE, [control], None, HERE),
        (None, [pktinfo_of(AF_INET, ("0.0.0.0", 0))], None, None),
        (None, [control], ("10.0.0.5", 7), ("10.0.0.1", 7)),
        (None, [pktinfo_of(AF_INET6, ("::", 0))], ("10.0.0.5", 7), ("10.0.0.5", 7)),
    ]
    for local, ancdata, default, peer in sent:
        out.set_local_addr(default)
        out.sendmsg(blocks(b"x"), THERE, local, 0, iter(ancdata))
        message = into.recvmsg(room(1))
        assert (message.peer, message.local) == (peer, THERE)


def test_reset_drops_ones_own() -> None:
    """What this half has sent is gone and its room is free; what it has not received yet stays."""
    one, other = datagram_pair()
    one.sendmsg(blocks(bytes(1000)))
    other.sendmsg(blocks(b"stays"))
    one.reset()
    assert (other.pending(), one.write_guarantee()) == (None, DEFAULT_WRITE_BUF_SIZE - DATAGRAM_OVERHEAD)
    assert drain(one) == [b"stays"]


@with_both
def test_a_held_error_comes_first(make: Callable[[], Ends]) -> None:
    """Once, and the datagram after it."""
    out, into = make()
    out.sendmsg(blocks(b"x"))
    into.hold_error(OSError(errno.EIO, "held"))
    with pytest.raises(OSError, match="held"):
        into.recvmsg(room(1))
    assert drain(into) == [b"x"]


def test_what_is_sent_is_a_copy() -> None:
    """Memory that changes after the call changes nothing."""
    one, other = datagram_pair()
    memory = bytearray(b"before")
    one.sendmsg(BlockSeq.of(Block(memory)))
    memory[:] = b"after!"
    assert drain(other) == [b"before"]


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_any_integer(kind: str) -> None:
    """They are kept as plain ints."""
    like = kind_of(kind)
    here, there = datagram_pair(like(5000), mtu=like(100))
    assert (type(here.mtu), here.mtu, here.write_buf_size) == (int, 100, 5000)
    there.mtu = like(90)
    assert (type(here.mtu), here.mtu) == (int, 90)
    assert MemoryDatagram(like(5000), mtu=like(100)).mtu == 100
    for wrong in ("5", 1.5):
        with pytest.raises(TypeError, match="mtu must be an int"):
            datagram_pair(mtu=wrong)  # type: ignore[arg-type]
