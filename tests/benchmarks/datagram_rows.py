"""The rows of ``datagram``: datagrams on loopback into guest pages, against a ``recvfrom_into`` and ``sendto`` loop.

The queue is filled before the clock starts; the contenders take turns. Time is this thread's CPU time, for a datagram:
the wall clock of a shared machine says little.
"""

from __future__ import annotations

import mmap
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from attrs import define, frozen

from datagram_peers import asyncio_loop, c_loop
from hostarch import WRITE, AddrRange, AddrRangeSeq, mman
from safemem import Block, BlockSeq
from safemem.datagram import DatagramSocket, MessageBatch, datagram_pair
from usermem import AddressSpace

_COUNT = 2048
_ROUNDS = 25
_SLOT = 2048
_SLOTS = 64
_SIZES = (64, 512, 1400)
_BARS = {
    "recvmmsg 64, lengths and flags": (1.75, 1.6, 1.45),
    "recvmmsg 64, peers too": (1.45, 1.35, 1.3),
    "GRO, a view per segment": (5.0, 4.5, 3.0),
    "recvmmsg 8, lengths and flags": (1.2, 1.2, 1.2),
}
_SEND_BARS = (4.5, 3.5, 2.5)


@frozen
class DatagramRow:
    """How many times as quick as the loop something is, and the least it should be; 0 for what is shown beside."""

    name: str
    ns: float
    ratio: float
    bar: float


@define
class Contender:
    """Somebody who moves ``_COUNT`` datagrams after ``prepare`` has been called."""

    prepare: Callable[[], object]
    move: Callable[[], object]
    best: float = float("inf")

    def turn(self) -> None:
        """Let it move them once, and note the time for one."""
        self.prepare()
        started = time.thread_time_ns()
        self.move()
        self.best = min(self.best, (time.thread_time_ns() - started) / _COUNT)


def _race(contenders: dict[str, Contender]) -> dict[str, float]:
    for _ in range(_ROUNDS):
        for contender in contenders.values():
            contender.turn()
    return {name: contender.best for name, contender in contenders.items()}


def _pair() -> tuple[socket.socket, socket.socket]:
    """(receiver, sender connected to it), with room for all."""
    receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for option, plain in ((33, socket.SO_RCVBUF), (32, socket.SO_SNDBUF)):
        for sock in (receiver, sender):
            try:
                sock.setsockopt(socket.SOL_SOCKET, option, 64 << 20)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, plain, 64 << 20)
    receiver.bind(("127.0.0.1", 0))
    sender.connect(receiver.getsockname())
    receiver.settimeout(5)
    return receiver, sender


def _guest_blocks(count: int, size: int) -> list[BlockSeq]:
    """``count`` slots of ``size`` bytes, one behind the other in a guest's pages."""
    space = AddressSpace()
    start = space.mmap(0, size * count, mman.PROT_READ | mman.PROT_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    space.zero_out(start, size * count)
    starts = range(start, start + size * count, size)
    return [space.blocks(AddrRangeSeq.of(AddrRange(at, at + size)), WRITE) for at in starts]


def _sends(sender: socket.socket, size: int) -> Callable[[], None]:
    datagram = bytes(size)

    def send() -> None:
        for _ in range(_COUNT):
            sender.send(datagram)

    return send


def _recvfrom_loop(size: int) -> Contender:
    receiver, sender = _pair()
    memory = memoryview(mmap.mmap(-1, _SLOT * _SLOTS))
    views = [memory[at : at + _SLOT] for at in range(0, _SLOT * _SLOTS, _SLOT)]

    def loop() -> None:
        receive = receiver.recvfrom_into
        for _ in range(_COUNT // _SLOTS):
            for view in views:
                receive(view)

    return Contender(_sends(sender, size), loop)


def _batched(size: int, count: int, peers: bool) -> Contender:
    receiver, sender = _pair()
    endpoint = DatagramSocket(receiver)
    batch = MessageBatch(_guest_blocks(count, _SLOT))

    def receive() -> None:
        done = 0
        while done < _COUNT:
            n = endpoint.recvmmsg(batch)
            batch.lengths(n)
            batch.flags(n)
            if peers:
                batch.peers(n)
            done += n

    return Contender(_sends(sender, size), receive)


def _joined(size: int) -> Contender | None:
    """Segments, or None if this host does not join any."""
    receiver, sender = (DatagramSocket(sock) for sock in _pair())
    receiver.gro = True
    if not receiver.gro:
        return None
    (blocks,) = _guest_blocks(1, 1 << 16)
    room = blocks.head().view()
    whole = BlockSeq.of(Block(bytes(size * _COUNT)))

    def receive() -> None:
        done = 0
        while done < _COUNT:
            done += len(receiver.recv_segments(room).views)

    return Contender(lambda: sender.send_segments(whole, size), receive)


def _drained(receiver: socket.socket) -> Callable[[], None]:
    receiver.settimeout(0)

    def drain() -> None:
        with suppress(BlockingIOError):
            while True:
                receiver.recv(1 << 16)

    return drain


def _sendto_loop(size: int) -> Contender:
    receiver, sender = _pair()
    name = receiver.getsockname()
    sender.connect(name)
    datagram = bytes(size)

    def loop() -> None:
        send = sender.sendto
        for _ in range(_COUNT):
            send(datagram, name)

    return Contender(_drained(receiver), loop)


def _segmented(size: int) -> Contender:
    receiver, sender = _pair()
    endpoint = DatagramSocket(sender)
    # As much as goes in one message, again and again: the loop, too, sends what is in the cache.
    count = min(128, 65_487 // size)  # what IP leaves: one segment more would be a message of its own
    (blocks,) = _guest_blocks(1, size * count)

    def send() -> None:
        done = 0
        while done < _COUNT:
            done += endpoint.send_segments(blocks.take_first((_COUNT - done) * size), size) // size

    return Contender(_drained(receiver), send)


def _receiving(size: int) -> Iterator[DatagramRow]:
    contenders = {
        "recvfrom_into": _recvfrom_loop(size),
        "recvmmsg 64, lengths and flags": _batched(size, 64, peers=False),
        "recvmmsg 64, peers too": _batched(size, 64, peers=True),
        "recvmmsg 8, lengths and flags": _batched(size, 8, peers=False),
    }
    joined = _joined(size)
    if joined is not None:
        contenders["GRO, a view per segment"] = joined
    for name, make in (("asyncio DatagramProtocol", asyncio_loop), ("recvmmsg 64 in C", c_loop)):
        receiver, sender = _pair()
        move = make(receiver, _COUNT)
        if move is not None:
            contenders[name] = Contender(_sends(sender, size), move)
    times = _race(contenders)
    for name in [name for name in contenders if name not in _BARS and name != "recvfrom_into"]:
        yield DatagramRow(f"({name}, {size})", times[name], times["recvfrom_into"] / times[name], 0)
    for name, bars in _BARS.items():
        if name in times:
            bar = bars[_SIZES.index(size)]
            yield DatagramRow(f"{name}, {size}", times[name], times["recvfrom_into"] / times[name], bar)


def _sending(size: int) -> DatagramRow:
    times = _race({"sendto": _sendto_loop(size), "GSO": _segmented(size)})
    return DatagramRow(
        f"GSO send, {size}", times["GSO"], times["sendto"] / times["GSO"], _SEND_BARS[_SIZES.index(size)]
    )


def _pair_in_memory() -> DatagramRow:
    """Sending and receiving one by one, against an AF_UNIX socketpair."""
    datagram = bytes(64)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    room = bytearray(64)

    def by_socket() -> None:
        send, receive = left.send, right.recv_into
        for _ in range(_COUNT):
            send(datagram)
            receive(room)

    here, there = datagram_pair()
    srcs = BlockSeq.of(Block(datagram))
    (dsts,) = _guest_blocks(1, 64)

    def in_memory() -> None:
        send, receive = here.sendmsg, there.recvmsg
        for _ in range(_COUNT):
            send(srcs)
            receive(dsts)

    times = _race({"socketpair": Contender(lambda: None, by_socket), "pair": Contender(lambda: None, in_memory)})
    return DatagramRow("pair in memory, 64", times["pair"], times["socketpair"] / times["pair"], 2.0)


def rows(only: str) -> Iterator[DatagramRow]:
    """Receiving and sending at each size, and the pair in memory; those whose name contains ``only``."""
    for size in _SIZES:
        yield from (row for row in _receiving(size) if only in row.name)
    for size in _SIZES:
        if only in f"GSO send, {size}":
            yield _sending(size)
    if only in "pair in memory, 64":
        yield _pair_in_memory()
