"""Message: one datagram that was received, and all that is known of it."""

from __future__ import annotations

import errno
import socket
from typing import Final

from attrs import define, field

from safemem.block_seq import BlockSeq
from safemem.datagram.address import Address
from safemem.datagram.cmsg import Ancillary, segment_size_of
from safemem.datagram.flags import MSG_CTRUNC, MSG_TRUNC
from safemem.errors import error

_LARGEST_UDP: Final = 65_535


@define
class Message:
    """A datagram: ``data`` is what arrived, in the blocks that it was received into.

    ``length`` is the datagram's own, in bytes: more than ``data`` has, if it was cut. ``flags`` are MSG_TRUNC,
    MSG_CTRUNC and what else the endpoint tells. ``peer`` sent it to ``local``; each is None if it is not known.
    ``ancillary`` are other control data, as (level, type, bytes). A value, not to be changed; attrs does not enforce
    that, since one that does costs three times as much to make, and one is made for each datagram.
    """

    data: BlockSeq
    length: int
    flags: int = 0
    peer: Address | None = None
    local: Address | None = None
    ancillary: tuple[Ancillary, ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether some of the datagram found no room, and is gone."""
        return bool(self.flags & MSG_TRUNC)

    @property
    def control_truncated(self) -> bool:
        """Whether some of its control data found no room, and is gone."""
        return bool(self.flags & MSG_CTRUNC)

    def segments(self) -> list[BlockSeq]:
        """What arrived, as the datagrams that the host has joined in this one; ``data`` alone, if it has not.

        Their size is in ``ancillary``, which a receive must have room for, as queues do: see DatagramSocket.gro.
        """
        size = segment_size_of(self.ancillary) or self.length
        data = self.data
        found = []
        while data.num_bytes > size:
            found.append(data.take_first(size))
            data = data.drop_first(size)
        return [*found, data]


@define
class Received(Message):
    """A message, and ``buffer``, the whole of the memory that it was received into: what to recycle."""

    buffer: BlockSeq = field(kw_only=True)

    @classmethod
    def of(cls, found: Message, buffer: BlockSeq) -> Received:
        """A message that was received into the start of ``buffer``."""
        return cls(found.data, found.length, found.flags, found.peer, found.local, found.ancillary, buffer=buffer)


def payload(sock: socket.socket, srcs: BlockSeq) -> bytes:
    """A copy of srcs for one datagram. Raises EMSGSIZE, and copies nothing, if the socket never takes so much at once.

    Source: Linux net/ipv4/udp.c (udp_sendmsg), net/unix/af_unix.c (unix_dgram_sendmsg).
    """
    most = max(_LARGEST_UDP, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
    if srcs.num_bytes > most:
        raise error(errno.EMSGSIZE, f"{srcs.num_bytes} bytes, and the socket takes {most}")
    return srcs.tobytes()
