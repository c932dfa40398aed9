"""Control data: what comes beside a datagram, as (level, type, data), in the layout of cmsghdr.

Source: cmsg(3), ip(7), ipv6(7), udp(7).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from safemem.datagram.address import Address
from safemem.datagram.flags import IP_PKTINFO, IPV6_PKTINFO

Ancillary = tuple[int, int, bytes]
"""(level, type, data), as in socket.recvmsg."""

_IP: Final = int(socket.IPPROTO_IP)
_IPV6: Final = int(socket.IPPROTO_IPV6)
_AF_INET: Final = int(socket.AF_INET)
_PKTINFO: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16sI")
PKTINFO_SPACE: Final = 40
"""CMSG_SPACE of an in6_pktinfo, which is more than that of an in_pktinfo."""


def pack_cmsgs(ancillary: Iterable[Ancillary], word: int = 8, order: str = "=") -> bytes:
    """Control data as the kernel takes it, for a machine with words of ``word`` bytes in a struct byte order.

    Raises ValueError for a level or type that is no int of 32 bits.
    """
    header = struct.Struct(order + ("Qii" if word == 8 else "Iii"))
    packed = b""
    for level, kind, data in ancillary:
        body = bytes(memoryview(data))
        try:
            entry = header.pack(header.size + len(body), level, kind) + body
        except struct.error as exc:
            raise ValueError(f"level {level} and type {kind} must be ints of 32 bits: {exc}") from None
        packed += entry + bytes(-len(entry) % word)
    return packed


def unpack_cmsgs(control: bytes, word: int = 8, order: str = "=") -> Iterator[Ancillary]:
    """The messages in control data; one whose length cannot be right ends them."""
    header = struct.Struct(order + ("Qii" if word == 8 else "Iii"))
    at = 0
    while at + header.size <= len(control):
        length, level, kind = header.unpack_from(control, at)
        if length < header.size or at + length > len(control):
            return
        yield level, kind, control[at + header.size : at + length]
        at += length + -length % word


def local_of(ancillary: Iterable[Ancillary], port: int) -> Address | None:
    """The local address that a datagram came to, if its control data tell; the port is the socket's."""
    for level, kind, data in ancillary:
        if level == _IP and kind == IP_PKTINFO and len(data) >= _PKTINFO.size:
            return socket.inet_ntop(socket.AF_INET, _PKTINFO.unpack_from(data)[2]), port
        if level == _IPV6 and kind == IPV6_PKTINFO and len(data) >= _PKTINFO6.size:
            host, scope = _PKTINFO6.unpack_from(data)
            return socket.inet_ntop(socket.AF_INET6, host), port, 0, scope
    return None


def pktinfo_of(family: int, local: Address) -> Ancillary:
    """What sends from a local address. Raises ValueError if it is none of this family."""
    try:
        if family == _AF_INET:
            return _IP, IP_PKTINFO, _PKTINFO.pack(0, socket.inet_pton(family, local[0]), bytes(4))  # type: ignore[arg-type]
        scope = local[3] if len(local) > 3 else 0
        return _IPV6, IPV6_PKTINFO, _PKTINFO6.pack(socket.inet_pton(family, local[0]), scope)  # type: ignore[arg-type]
    except (OSError, TypeError, IndexError, struct.error) as exc:
        raise ValueError(f"{local!r} is no local address of family {family}: {exc}") from None
