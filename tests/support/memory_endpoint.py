"""MemoryEndpoint: the smallest datagram endpoint, over a list of what it received and one of what it sent."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from safemem import Block, BlockSeq
from safemem.block_seq import copy_seq
from safemem.datagram import Address, Ancillary, DatagramEndpoint, Message
from safemem.datagram.flags import MSG_CTRUNC, MSG_PEEK, MSG_TRUNC
from safemem.errors import would_block


@frozen
class Datagram:
    """One that waits to be received, or was sent."""

    data: bytes
    peer: Address | None = None
    local: Address | None = None
    ancillary: tuple[Ancillary, ...] = ()
    flags: int = 0


class MemoryEndpoint(DatagramEndpoint):
    """``queue`` is received from its start, ``sent`` grows; ``calls`` are the (flags, ancbufsize) of each receive.

    ``most`` is the longest datagram that it sends. ``arrivals`` are datagrams, or errors, that come only after so many
    receives have found nothing.
    """

    def __init__(self, queue: Iterable[Datagram] = (), family: int | None = None) -> None:
        super().__init__()
        self.queue = list(queue)
        self.sent: list[Datagram] = []
        self.calls: list[tuple[int, int]] = []
        self.most = 65507
        self.arrivals: list[tuple[int, Datagram]] = []
        self.failures: dict[int, OSError] = {}
        if family is not None:
            self.family = family

    @property
    def mtu(self) -> int | None:
        """See DatagramEndpoint."""
        return None

    def recvmsg(self, dsts: BlockSeq, flags: int = 0, ancbufsize: int = 0) -> Message:
        """See DatagramEndpoint."""
        self.calls.append((flags, ancbufsize))
        self._raise_held()
        if not self.queue:
            if self.arrivals:
                left, datagram = self.arrivals.pop(0)
                if left:
                    self.arrivals.insert(0, (left - 1, datagram))
                else:
                    self.queue.append(datagram)
            raise would_block()
        found = self.queue[0]
        n = copy_seq(dsts, BlockSeq.of(Block(found.data)))
        if not flags & MSG_PEEK:
            self.queue.pop(0)
        told = found.flags | (MSG_TRUNC if n < len(found.data) else 0)
        ancillary = found.ancillary
        if ancillary and not ancbufsize:
            ancillary = ()
            told |= MSG_CTRUNC
        return Message(dsts.take_first(n), len(found.data), told, found.peer, found.local, ancillary)

    def sendmsg(
        self,
        srcs: BlockSeq,
        peer: Address | None = None,
        local: Address | None = None,
        flags: int = 0,
        ancdata: Iterable[Ancillary] = (),
    ) -> int:
        """See DatagramEndpoint."""
        if len(self.sent) in self.failures:
            raise self.failures[len(self.sent)]
        data = srcs.tobytes()[: self.most]
        self.sent.append(Datagram(data, peer, local, tuple(ancdata), flags))
        return len(data)

    def pending(self) -> int | None:
        """See DatagramEndpoint."""
        return len(self.queue[0].data) if self.queue else None

    def close(self) -> None:
        """See DatagramEndpoint."""
