"""Segmentation offload: many datagrams of one size cross the kernel as one, and are cut up or joined at its edge.

A sender gives one long message and the size of its segments (UDP_SEGMENT); a receiver with UDP_GRO gets datagrams that
came so, or that the network card has joined, in one piece with their size. Nothing else makes so much of a system call.

Source: udp(7); Linux Documentation/networking/segmentation-offloads.rst, net/ipv4/udp.c.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

from attrs import frozen

from safemem.block_seq import BlockSeq
from safemem.datagram.address import Address
from safemem.datagram.capability import Capability
from safemem.datagram.cmsg import Ancillary, segment_size_of
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.flags import UDP_SEGMENT

_UDP: Final = int(socket.IPPROTO_UDP)
MAX_SEGMENTS: Final = (128, 64)
"""How many segments one message may have, in newer kernels and in older ones."""
_MAX_BYTES: Final = 65_487  # what IP leaves of 65,535 bytes, for IPv6 too
_SIZE: Final = struct.Struct("=H")
_REFUSED: Final = (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EMSGSIZE)
"""How a host refuses to cut up a message."""
_BY_ICMP: Final = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)
"""Which of these a peer may send: such an error is the socket's own, and told once."""


@frozen
class Segments:
    """Datagrams that came together, from one sender: ``views`` are their bytes, in the memory that was given.

    Each has ``size`` bytes, but the last may have fewer. ``length`` is that of all; ``flags`` has MSG_TRUNC if not all
    of them found room. ``local`` is the address they came to, if that is enabled, ``ancillary`` all control data.
    """

    views: list[memoryview]
    size: int
    length: int
    flags: int
    peer: Address | None
    local: Address | None = None
    ancillary: tuple[Ancillary, ...] = ()


def can_cut(sock: socket.socket) -> bool:
    """Whether the host knows segments of this socket: those that do not ignore the request, and send one datagram."""
    try:
        sock.getsockopt(_UDP, UDP_SEGMENT)
    except OSError:
        return False
    return sys.platform == "linux"


Send = Callable[[BlockSeq, list[Ancillary]], int]
"""``send(bytes, the size of segments or nothing)`` -> how many went."""


class SegmentLimits:
    """How many segments the host takes in one message, for all that is known."""

    def __init__(self, can_cut: bool) -> None:
        # Fewer are worth nearly as much as more, and so are tried at once: each refusal costs a system call.
        self._limits = {n: Capability(patience=3 if n == MAX_SEGMENTS[-1] else 1) for n in MAX_SEGMENTS * can_cut}

    @property
    def can_cut(self) -> bool:
        """Whether one message of several segments is worth trying."""
        return not all(limit.given_up for limit in self._limits.values())

    def tries(self) -> list[int]:
        """The numbers of segments to try, the best first; 1 is the last, which always works."""
        return [*(n for n, limit in self._limits.items() if limit.is_tried()), 1]

    def note(self, refused: list[int], worked: int) -> None:
        """Note that the host refused these, and did the same thing with messages of ``worked`` segments."""
        for n in refused:
            self._limits[n].refused()
        if worked > 1:
            self._limits[worked].worked()

    def send(self, endpoint: DatagramEndpoint, call: Send, srcs: BlockSeq, segment_size: int) -> int:
        """Send the bytes of srcs as segments, by as few calls as the host takes; returns how many went.

        An error that came by ICMP, of what was sent before, is kept for the endpoint's next receive. Raises what the
        first call does.
        """
        tries = self.tries()
        whole = most(segment_size, tries[0])
        done, total = 0, srcs.num_bytes
        refused: list[int] = []
        told: list[OSError] = []
        while done < total:
            part = min(whole, total - done)
            try:
                sent = call(srcs.take_first(part), [segment_cmsg(segment_size)] if part > segment_size else [])
                done, srcs = done + sent, srcs.drop_first(sent)
            except OSError as exc:
                if part <= segment_size or exc.errno not in _REFUSED:
                    if done:
                        return done
                    raise
                if exc.errno in _BY_ICMP and not told:
                    told.append(exc.with_traceback(None))
                    continue
                told.clear()  # it came again, and so is the host's
                # A path that is too narrow says nothing of the host; what one datagram meets, too, it will say.
                if exc.errno != errno.EMSGSIZE and (exc.errno != errno.EINVAL or segment_size <= (endpoint.mtu or 0)):
                    refused.append(tries[0])
                del tries[0]
                whole = most(segment_size, tries[0])
        for error in told:
            endpoint.hold_error(error)
        self.note(refused, tries[0] if total > segment_size else 1)
        return done


def most(segment_size: int, max_segments: int) -> int:
    """How many bytes of segments one message may have."""
    return max(min(max_segments, _MAX_BYTES // segment_size), 1) * segment_size


def segment_cmsg(segment_size: int) -> Ancillary:
    """What has a message cut up into segments of a size, less than 65,536."""
    return _UDP, UDP_SEGMENT, _SIZE.pack(segment_size)


def cut(
    view: memoryview,
    length: int,
    ancillary: list[Ancillary],
    flags: int,
    peer: Address | None,
    local: Address | None,
) -> Segments:
    """A message of ``length`` bytes that was received into a view, as the segments that its control data tell."""
    size = segment_size_of(ancillary) or length
    arrived = min(length, len(view))
    views = [view[at : at + size] for at in range(0, arrived - size, size)] if size < length else []
    views.append(view[len(views) * size : arrived])
    return Segments(views, size, length, flags, peer, local, tuple(ancillary))
