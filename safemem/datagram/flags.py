"""The numbers of datagram sockets, as plain ints: the enums of the socket module cost half a microsecond an operation.

Those that the socket module lacks are Linux's. Source: Linux include/linux/socket.h, include/uapi/linux/{in,in6,udp}.h.
"""

from __future__ import annotations

import socket
from typing import Final

MSG_PEEK: Final = int(socket.MSG_PEEK)
MSG_TRUNC: Final = int(getattr(socket, "MSG_TRUNC", 0x20))
MSG_CTRUNC: Final = int(getattr(socket, "MSG_CTRUNC", 0x08))
MSG_DONTWAIT: Final = int(getattr(socket, "MSG_DONTWAIT", 0))
"""0 where the host has none; sockets without a timeout wait there."""
MSG_ERRQUEUE: Final = int(getattr(socket, "MSG_ERRQUEUE", 0))
"""0 where the host has no error queue."""
MSG_WAITFORONE: Final = 0x10000

IP_PKTINFO: Final = 8
IPV6_RECVPKTINFO: Final = int(getattr(socket, "IPV6_RECVPKTINFO", 49))
IPV6_PKTINFO: Final = int(getattr(socket, "IPV6_PKTINFO", 50))
IP_MTU: Final = 14
IPV6_MTU: Final = 24
SCM_RIGHTS: Final = int(getattr(socket, "SCM_RIGHTS", 1))
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104

UIO_MAXIOV: Final = 1024
"""The most blocks one message may have, and the most messages Linux sends in one call."""
