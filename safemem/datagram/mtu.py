"""The longest payload of a socket's path. Source: ip(7), ipv6(7)."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

from safemem.datagram.flags import IP_MTU, IPV6_MTU

LARGEST: Final = 65_535
"""The bytes of the longest IP packet. A datagram of AF_UNIX may be longer."""

_PATHS: Final = {  # the option that tells, the least that IP promises, the headers of IP and UDP
    int(socket.AF_INET): ((int(socket.IPPROTO_IP), IP_MTU), 576, 28),
    int(socket.AF_INET6): ((int(socket.IPPROTO_IPV6), IPV6_MTU), 1280, 48),
}


def path_mtu(sock: socket.socket) -> int | None:
    """In bytes, of the path if the socket is connected, else the least that IP promises; None if it is not of IP."""
    if sock.family not in _PATHS:
        return None
    option, whole, overhead = _PATHS[int(sock.family)]
    with suppress(OSError):
        whole = sock.getsockopt(*option)
    return min(whole, LARGEST) - overhead
