"""How long a datagram may be: for a path, and for a socket.

Source: ip(7), ipv6(7) (IP_MTU); Linux net/ipv4/udp.c (udp_sendmsg), net/unix/af_unix.c (unix_dgram_sendmsg).
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from safemem.datagram.errors import DatagramTooLongError, PeerAddressNotAvailableError
from safemem.datagram.flags import IP_MTU, IPV6_MTU

LARGEST: Final = 65_535
"""The bytes of the longest IP packet. A datagram of AF_UNIX may be longer."""

_AF_INET: Final = int(socket.AF_INET)
_AF_INET6: Final = int(socket.AF_INET6)
_OVERHEAD: Final = {_AF_INET: 28, _AF_INET6: 48}  # of IP and UDP
_LEAST: Final = {_AF_INET: 576, _AF_INET6: 1280}  # what IP promises
_MOST: Final = {_AF_INET: LARGEST - 28, _AF_INET6: LARGEST - 8}  # of a payload, whatever the path
_OPTION: Final = {_AF_INET: (socket.IPPROTO_IP, IP_MTU), _AF_INET6: (socket.IPPROTO_IPV6, IPV6_MTU)}


def path_mtu(sock: socket.socket) -> int | None:
    """The longest payload of the path, in bytes; None if the socket is not connected, or of no IP family."""
    family = int(sock.family)
    if family not in _OPTION:
        return None
    try:
        return min(sock.getsockopt(*_OPTION[family]), LARGEST) - _OVERHEAD[family]
    except OSError:
        return None


def least_mtu(family: int) -> int | None:
    """The longest payload that goes on any path; None for a family that is not IP's."""
    return _LEAST[family] - _OVERHEAD[family] if family in _LEAST else None


def explained(exc: OSError, sock: socket.socket, length: int) -> OSError:
    """The error of a send of ``length`` bytes, with what is known of it: how many would go."""
    if exc.errno == errno.EDESTADDRREQ:
        return PeerAddressNotAvailableError("the socket is not connected, and no peer was given")
    if exc.errno != errno.EMSGSIZE:
        return exc
    most = _MOST.get(int(sock.family))
    if most is None:
        return DatagramTooLongError(length, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32)
    return DatagramTooLongError(length, most if length > most else path_mtu(sock))
