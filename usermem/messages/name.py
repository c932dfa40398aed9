"""Socket addresses in a guest's memory: its byte order, Linux's numbers of families, and what Linux refuses.

Source: Linux net/ipv4/udp.c (udp_sendmsg), net/ipv6/udp.c (udpv6_sendmsg), net/unix/af_unix.c (unix_validate_addr).
"""

from __future__ import annotations

import errno
import socket
from typing import Any, Final

from hostarch import Arch
from hostarch.arch import HOST_BYTE_ORDER
from safemem.datagram.address import Address, pack_sockaddr, unpack_sockaddr
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.errors import error

AF_UNSPEC: Final = 0
AF_UNIX: Final = 1
AF_INET: Final = 2
AF_INET6: Final = 10
"""Linux's numbers of families, whatever the host's are."""

_HOST: Final = {
    AF_UNIX: int(getattr(socket, "AF_UNIX", 1)),
    AF_INET: int(socket.AF_INET),
    AF_INET6: int(socket.AF_INET6),
}
_LINUX: Final = {host: linux for linux, host in _HOST.items()}
_INET_SIZE: Final = 16
_INET6_LEAST: Final = 24  # SIN6_LEN_RFC2133: without a scope
_INET6_SIZE: Final = 28
_UNIX_SIZE: Final = 110


def family_of(endpoint: DatagramEndpoint) -> int | None:
    """Linux's number of an endpoint's address family, if it has a ``family``; else None."""
    family: Any = getattr(endpoint, "family", None)
    return None if family is None else _LINUX.get(int(family), int(family))


def family_by_form(address: Address) -> int:
    """Linux's number of the family that an address has by its form."""
    if isinstance(address, str | bytes):
        return AF_UNIX
    return AF_INET6 if len(address) > 2 or ":" in str(address[0]) else AF_INET


def pack_name(address: Address | None, family: int | None, arch: Arch) -> bytes:
    """The sockaddr of an address for a guest. Without a family the address's form tells which it is.

    Empty if there is no address. Raises ValueError if it is none.
    """
    if not address:
        return b""
    if family is None:
        family = family_by_form(address)
    packed = pack_sockaddr(_HOST.get(family, family), address)
    name = family.to_bytes(2, arch.byte_order) + packed[2:]
    return _scope_swapped(name, family, arch)


def unpack_name(name: bytes, family: int | None, arch: Arch) -> Address | None:
    """The address in a guest's sockaddr, for an endpoint of a family; None where a connected socket's own is meant.

    Without a family the name's own tells. Raises OSError as Linux: EINVAL for one of a wrong size or port,
    EAFNOSUPPORT or EINVAL for one of another family.
    """
    given = int.from_bytes(name[:2], arch.byte_order) if len(name) >= 2 else None
    if family is None:
        if given not in (AF_UNIX, AF_INET, AF_INET6):
            raise error(errno.EINVAL if given is None else errno.EAFNOSUPPORT, f"address of family {given}")
        family = given
    if family == AF_UNIX:
        if not 2 < len(name) <= _UNIX_SIZE or given != AF_UNIX:
            raise error(errno.EINVAL, f"address of {len(name)} bytes and family {given}")
        return _unpacked(AF_UNIX, name)
    if family == AF_INET:
        if len(name) < _INET_SIZE:
            raise error(errno.EINVAL, f"address of {len(name)} bytes")
        if given not in (AF_INET, AF_UNSPEC):
            raise error(errno.EAFNOSUPPORT, f"address of family {given}")
        return _with_port(_unpacked(AF_INET, name[:_INET_SIZE]))
    if family != AF_INET6:
        raise error(errno.EAFNOSUPPORT, f"endpoint of family {family}")
    if given == AF_UNSPEC:
        return None
    if given == AF_INET and len(name) >= _INET_SIZE:
        host, port = _with_port(_unpacked(AF_INET, name[:_INET_SIZE]))
        return f"::ffff:{host}", port, 0, 0
    if given != AF_INET6 or len(name) < _INET6_LEAST:
        raise error(errno.EINVAL, f"address of {len(name)} bytes and family {given}")
    whole = _scope_swapped(name[:_INET6_SIZE].ljust(_INET6_SIZE, b"\0"), AF_INET6, arch)
    return _with_port(_unpacked(AF_INET6, whole))


def _unpacked(family: int, name: bytes) -> Address | None:
    return unpack_sockaddr(_HOST[family].to_bytes(2, HOST_BYTE_ORDER) + name[2:])


def _with_port(address: Address | None) -> tuple[Any, ...]:
    if not isinstance(address, tuple) or not address[1]:
        raise error(errno.EINVAL, "port 0")
    return address


def _scope_swapped(name: bytes, family: int, arch: Arch) -> bytes:
    """The name with its scope in the other one's byte order: the only other number that is not the network's."""
    if family != AF_INET6 or arch.byte_order == HOST_BYTE_ORDER:
        return name
    return name[:24] + name[24:28][::-1] + name[28:]
