"""Arrivals: datagrams that a socket has given out and nobody has got yet.

A receive goes through here where it might lose something: into memory that may fault, with descriptors beside the
data, and off the error queue. Three rules keep all of it:

- Into memory that may fault a datagram is peeked at and copied first, so that a fault leaves it in the socket, where
  poll() reports it. It is copied again only if another receiver has taken the one that was seen.
- What was received and cannot be delivered (a fault after all, an interrupt) is kept, with its descriptors, and the
  next receive gets it.
- The error queue has no peek: Linux takes an entry off with MSG_PEEK, too. A peek there keeps the entry.

No handler of a signal runs between the call that receives and the store of its result: both happen in one ``+=``.

Source: recvmsg(2), unix(7), ip(7) (IP_RECVERR); Linux net/ipv4/ip_sockglue.c (ip_recv_error).
"""

from __future__ import annotations

import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, Final

from safemem.block import Block
from safemem.block_seq import BlockSeq, copy_seq
from safemem.datagram.cmsg import Ancillary
from safemem.datagram.flags import MSG_CTRUNC, MSG_DONTWAIT, MSG_ERRQUEUE, MSG_PEEK, MSG_TRUNC, UIO_MAXIOV
from safemem.datagram.message import Message
from safemem.datagram.mtu import LARGEST
from safemem.datagram.rights import Undelivered, descriptors_of, fit_control
from safemem.datagram.wait import POLLIN, may_wait, waits

_ERROR_SPACE: Final = 1024
"""More control data than an entry of the error queue has: addresses, a cause, times."""

Found = tuple[int, list[Ancillary], int, Any]
"""A datagram's length, its control data, flags and peer, as socket.recvmsg_into tells them."""
Receive = Callable[[list[Any], int, int], Found]
"""``receive(views, space, flags)``."""


class _Arrival:
    """The memory for a datagram, and what came there: its owner until it is delivered, and of its descriptors."""

    __slots__ = ("found", "memory")

    def __init__(self, memory: BlockSeq) -> None:
        self.memory = memory
        self.found: list[Found] = []

    def receive(self, sock: socket.socket, call: Receive, space: int, flags: int) -> None:
        """Receive one datagram, waiting as the socket does."""
        views, flags = self.memory.pieces(), flags | MSG_TRUNC
        while not self.found:
            try:
                self.found += map(call, (views,), (space,), (flags | MSG_DONTWAIT,))
            except BlockingIOError:
                if not may_wait(sock, flags):
                    raise
                with closing(waits(sock, POLLIN)) as waiting:
                    for _ in waiting:
                        with suppress(BlockingIOError):
                            self.found += map(call, (views,), (space,), (flags | MSG_DONTWAIT,))
                            break

    def data(self) -> BlockSeq:
        """The bytes that are here."""
        return self.memory.take_first(self.found[0][0])

    def copy_to(self, dsts: BlockSeq, space: int, seen: bytes | None) -> Message:
        """The message in dsts, with so much control data as has space, if dsts has not ``seen`` it already."""
        length, ancillary, flags, peer = self.found[0]
        data = self.data()
        if self.memory is not dsts and (seen is None or data.tobytes() != seen):
            copy_seq(dsts, data)
        fitting, is_cut = fit_control(ancillary, space)
        flags |= MSG_TRUNC * (length > dsts.num_bytes) | MSG_CTRUNC * is_cut
        return Message(dsts.take_first(data.num_bytes), length, flags, peer or None, None, tuple(fitting))

    def deliver(self, message: Message) -> None:
        """Hand over to the message what is in it."""
        length, ancillary, flags, peer = self.found[0]
        self.found = [(length, ancillary[len(message.ancillary) :], flags, peer)]

    def leave(self, memory: BlockSeq) -> None:
        """Keep a copy of the bytes, if they are in this memory, which is the caller's."""
        if self.memory is memory:
            self.memory = BlockSeq.of(Block(self.data().tobytes()))

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if ended():  # modules are empty, and the process closes all by itself
            return
        for _, ancillary, _, _ in getattr(self, "found", ()):  # an interrupt may have come before it had any
            Undelivered(descriptors_of(ancillary)).close()


class Arrivals:
    """The receives of a socket that lose nothing, and what is kept for the next ones."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.datagrams: deque[_Arrival] = deque()
        """Those that are kept for the next receives; there is another such queue for the error queue."""
        self._errors: deque[_Arrival] = deque()
        self._is_unix = sock.family == getattr(socket, "AF_UNIX", None)  # which descriptors come by

    def kept(self, flags: int) -> deque[_Arrival]:
        """What receives with these flags get first."""
        return self._errors if flags & MSG_ERRQUEUE else self.datagrams

    def concern(self, flags: int, space: int) -> bool:
        """Whether a receive of this kind has something to lose, wherever it receives into."""
        return bool(self.datagrams or flags & MSG_ERRQUEUE or (space and self._is_unix))

    def pending(self) -> int | None:
        """The length of the first datagram that is kept; None if there is none."""
        with suppress(IndexError):
            return self.datagrams[0].found[0][0]
        return None

    def close(self) -> None:
        """Drop what is kept, and close its descriptors."""
        self.datagrams.clear()
        self._errors.clear()

    def receive(self, call: Receive, dsts: BlockSeq, flags: int, space: int) -> Message:
        """Receive one datagram into dsts. Raises as DatagramSocket.recvmsg; what has come by then is kept.

        A peek at a kept datagram leaves its descriptors out, and says so by MSG_CTRUNC.
        """
        dsts.check_writable("dsts")
        queue, peek, errors = self.kept(flags), flags & MSG_PEEK, flags & MSG_ERRQUEUE
        arrivals: list[_Arrival] = []
        found: list[Found] = []
        is_here = bool(errors or not peek)  # and not in the socket
        try:
            with suppress(IndexError):
                arrivals += map(deque.popleft, (queue,))
            if arrivals:
                is_here, seen = True, None
                space = 0 if peek and not errors else space
            else:
                seen = self._come(call, arrivals, dsts, flags, space)
            (arrival,) = arrivals
            message = arrival.copy_to(dsts, space, seen)
            found = arrival.found
            if peek and is_here:
                queue.appendleft(arrival)
            else:
                arrival.deliver(message)
            return message
        except BaseException:
            for arrival in arrivals:
                arrival.found = found or arrival.found
                if is_here and arrival.found and arrival not in queue:
                    arrival.leave(dsts)
                    queue.appendleft(arrival)
            raise

    def _come(self, call: Receive, arrivals: list[_Arrival], dsts: BlockSeq, flags: int, space: int) -> bytes | None:
        """Receive one datagram as ``arrivals[0]``; returns the bytes that are in dsts already, if any are."""
        seen = None
        if flags & MSG_ERRQUEUE:
            is_plain = False  # Linux tells the length of what it copied, and not that of the entry
            space, flags = max(space, _ERROR_SPACE), flags & ~MSG_PEEK
        else:
            is_plain = _is_plain(dsts)
            if not is_plain:
                seen = self._copy_first(call, dsts, flags)
        arrivals.append(_Arrival(dsts if is_plain else _bounce(len(seen or b""))))
        arrivals[0].receive(self._sock, call, space, flags)
        return seen

    def _copy_first(self, call: Receive, dsts: BlockSeq, flags: int) -> bytes:
        """Copy the next datagram into dsts and leave it in the socket; returns its bytes. Raises HostFaultError."""
        size = 0
        while True:
            look = _Arrival(_bounce(size))
            look.receive(self._sock, call, 0, flags | MSG_PEEK)
            size = look.found[0][0]
            if size <= look.memory.num_bytes:
                break
        copy_seq(dsts, look.data())
        return look.data().tobytes()


def recvfrom(sock: socket.socket, views: list[Any], space: int, flags: int) -> Found:
    """As recvmsg_into, on hosts that have none: into one block, and without control data."""
    if len(views) > 1:
        raise ValueError(f"{len(views)} blocks, and recvfrom takes one: see max_iov")
    view = views[0] if views else memoryview(bytearray())
    n, peer = sock.recvfrom_into(view, 0, flags)
    return n, [], MSG_TRUNC * (n > len(view)), peer


def _is_plain(dsts: BlockSeq) -> bool:
    """Whether the host can receive straight into these blocks."""
    return len(dsts.pieces()) <= UIO_MAXIOV and not dsts.need_safecopy


def _bounce(size: int) -> BlockSeq:
    """Memory for any IP datagram, and for one of ``size`` bytes."""
    return BlockSeq.of(Block(bytearray(max(size, LARGEST))))
