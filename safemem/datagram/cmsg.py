"""Control data: what comes beside a datagram, as (level, type, data), in the layout of cmsghdr.

Source: cmsg(3), ip(7), ipv6(7), udp(7).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

from safemem.datagram.address import Address, zoned
from safemem.datagram.flags import IP_PKTINFO, IPV6_PKTINFO, UDP_GRO

Ancillary = tuple[int, int, bytes]
"""(level, type, data), as in socket.recvmsg."""

_IP: Final = int(socket.IPPROTO_IP)
_IPV6: Final = int(socket.IPPROTO_IPV6)
_AF_INET: Final = int(socket.AF_INET)
_UDP: Final = int(socket.IPPROTO_UDP)
_INT: Final = struct.Struct("=i")
_PKTINFO: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16sI")
PKTINFO_SPACE: Final = 40
"""CMSG_SPACE of an in6_pktinfo, which is more than that of an in_pktinfo."""
KERNEL_SPACE: Final = 512
"""Room for the local address and the size of segments, in bytes, and for all that Linux stores before them.

Those are timestamps, the count of drops, the mark, the priority, the state of Wi-Fi: 224 bytes with all of them on.
Source: net/socket.c (__sock_recv_cmsgs), net/ipv4/udp.c (udp_recvmsg), net/ipv4/ip_sockglue.c (ip_cmsg_recv_offset).
"""


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


def port_of(local: Address) -> Any:
    """The port of a local address; 0, any port, if it has none."""
    return local[1] if len(local) > 1 else 0


def local_of(ancillary: Iterable[Ancillary], port: int) -> Address | None:
    """The local address that a datagram came to, if its control data tell; the port is the socket's.

    It can be answered from: for broadcast and multicast it is the interface's, as ipi_spec_dst has it; IPv6 tells only
    which interface, and "::" with that as its scope leaves the address to the kernel.
    """
    found: tuple[str, int, int, int] | None = None
    for level, kind, data in ancillary:
        if level == _IP and kind == IP_PKTINFO and len(data) >= _PKTINFO.size:
            _, spec_dst, sent_to = _PKTINFO.unpack_from(data)
            host = socket.inet_ntop(socket.AF_INET, spec_dst if any(spec_dst) else sent_to)
            return (host, port) if found is None else (f"::ffff:{host}", *found[1:])
        if level == _IPV6 and kind == IPV6_PKTINFO and len(data) >= _PKTINFO6.size:
            packed, scope = _PKTINFO6.unpack_from(data)
            found = "::" if packed[0] == 0xFF else socket.inet_ntop(socket.AF_INET6, packed), port, 0, scope
    return found


def segment_size_of(ancillary: Iterable[Ancillary]) -> int | None:
    """The size of the datagrams that the host has joined in one, if its control data tell."""
    for level, kind, data in ancillary:
        if level == _UDP and kind == UDP_GRO and len(data) >= _INT.size:
            return int(_INT.unpack_from(data)[0])
    return None


def pktinfo_of(family: int, local: Address) -> Ancillary:
    """What sends from a local address, and what tells of one. Raises ValueError if it is none of this family."""
    try:
        if family == _AF_INET:
            packed = socket.inet_pton(family, local[0])  # type: ignore[arg-type]
            return _IP, IP_PKTINFO, _PKTINFO.pack(0, packed, packed)
        host, _, _, scope = zoned((local[0], 0, *local[2:]))
        return _IPV6, IPV6_PKTINFO, _PKTINFO6.pack(socket.inet_pton(family, host), scope)
    except (OSError, TypeError, ValueError, IndexError, struct.error) as exc:
        raise ValueError(f"{local!r} is no local address of family {family}: {exc}") from None
