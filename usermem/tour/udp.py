"""The tour's UDP stage: a thousand datagrams on loopback, received many a call straight into a guest's pages."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator

from hostarch import WRITE, AddrRange, AddrRangeSeq, mman
from safemem import Block, BlockSeq
from safemem.datagram import DatagramSocket, MessageBatch
from usermem.address_space import AddressSpace
from usermem.tour.guest import Say

_COUNT = 1000
_SLOTS = 64
_SLOT = 1500
_TIMEOUT = 30


def receive_datagrams(space: AddressSpace, data: bytes, say: Say) -> bool:
    """Send pieces of the data to ourselves, and return whether the guest has got every byte of them, in order."""
    datagrams = list(_datagrams(data))
    rights = mman.PROT_READ | mman.PROT_WRITE
    ring = space.mmap(0, _SLOT * _SLOTS, rights, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    sent, received = hashlib.sha256(b"".join(datagrams)), hashlib.sha256()
    calls = lost = 0
    slots = [
        space.blocks(AddrRangeSeq.of(AddrRange(at, at + _SLOT)), WRITE)
        for at in range(ring, ring + _SLOT * _SLOTS, _SLOT)
    ]

    def take(slot: int, length: int) -> None:
        received.update(space.read_bytes(ring + slot * _SLOT, length))

    with _bound() as receiver, _bound() as sender:
        sender.socket.connect(receiver.socket.getsockname())
        batch = MessageBatch(slots)
        # As many at a time as there are slots: what finds the receiver's queue full, UDP drops.
        for start in range(0, _COUNT, _SLOTS):
            part = MessageBatch([BlockSeq.of(Block(datagram)) for datagram in datagrams[start : start + _SLOTS]])
            done = sender.sendmmsg(part)
            lost += len(part) - done
            calls += _receive(receiver, batch, done, take)
        backend = receiver.backend
    same = received.digest() == sent.digest() and not lost
    say(f"\n8. recvmmsg(socket) over UDP: {_COUNT} datagrams in {calls} calls, by {backend}")
    say(f"   the guest has {'every byte of them' if same else 'NOT ALL OF THEM'}")
    return same


def _receive(receiver: DatagramSocket, batch: MessageBatch, left: int, take: Callable[[int, int], object]) -> int:
    """Receive so many datagrams, and return how many calls that took; ``take`` gets each one's slot and length."""
    calls = 0
    while left > 0:
        n = receiver.recvmmsg(batch)
        for i, length in enumerate(batch.lengths(n)):
            take(i, length)
        left -= n
        calls += 1
    return calls


def _datagrams(data: bytes) -> Iterator[bytes]:
    """A thousand datagrams, each with its number and some of the data, 0 to 1,400 bytes."""
    for i in range(_COUNT):
        at = i * 997 % max(len(data), 1)
        yield b"%d:" % i + data[at : at + i * 7 % 1400]


def _bound() -> DatagramSocket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(_TIMEOUT)
        return DatagramSocket(sock)
    except BaseException:
        sock.close()
        raise
