"""LocalAddresses: the local addresses of a socket's messages, as their pktinfo tells and asks for them.

Source: ip(7), ipv6(7); OpenSSL crypto/bio/bss_dgram.c.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from safemem.datagram.address import Address
from safemem.datagram.cmsg import Ancillary, local_of, pktinfo_of, port_of
from safemem.datagram.errors import LocalAddressNotAvailableError
from safemem.datagram.flags import IP_PKTINFO, IPV6_RECVPKTINFO

_AF_INET: Final = int(socket.AF_INET)
_IPV4: Final = (int(socket.IPPROTO_IP), IP_PKTINFO)
_IPV6: Final = (int(socket.IPPROTO_IPV6), IPV6_RECVPKTINFO)


class LocalAddresses:
    """Whether a socket's messages carry local addresses (``enabled``), and what these are."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.enabled: bool = False

    def enable(self, on: bool) -> None:
        """Have messages carry them, or not. Raises LocalAddressNotAvailableError if the host refuses."""
        is_ipv4 = self._sock.family == _AF_INET
        try:
            self._sock.setsockopt(*(_IPV4 if is_ipv4 else _IPV6), int(on))
        except OSError as exc:
            raise LocalAddressNotAvailableError(f"the host refuses it: {exc}") from exc
        if not is_ipv4:
            with suppress(OSError):  # IPv4's broadcasts to a socket of both tell their interface by this alone
                self._sock.setsockopt(*_IPV4, int(on))
        self.enabled = bool(on)

    def check_enabled(self) -> None:
        """Raise LocalAddressNotAvailableError unless they are enabled."""
        if not self.enabled:
            raise LocalAddressNotAvailableError("enable local addresses first, by set_local_addr_enable(True)")

    def port(self) -> int:
        """The port of local addresses, now: disconnecting takes it from a socket that nobody bound."""
        return int(self._sock.getsockname()[1]) if self.enabled else 0

    def of(self, ancillary: Iterable[Ancillary]) -> Address | None:
        """The address that a message came to, if it is asked for and the control data tell."""
        return local_of(ancillary, self.port()) if self.enabled else None

    def control(self, local: Address) -> Ancillary:
        """The control data that send from a local address. Raises as :meth:`check`; ValueError if it is none."""
        control = pktinfo_of(int(self._sock.family), local)
        self.check(port_of(local))
        return control

    def check(self, port: Any) -> None:
        """Raise LocalAddressNotAvailableError unless messages can be sent from this port: the socket's own, or 0."""
        self.check_enabled()
        if port and port != (own := self.port()):
            reason = f"a local address must have port 0 or the socket's, {own}, and has {port}"
            raise LocalAddressNotAvailableError(reason)

    def sendable(self, messages: Iterable[tuple[int, Any]], vlen: int) -> int:
        """How many of ``vlen`` messages can go: up to an (index, port) that cannot. Raises if that is the first."""
        for i, port in messages:
            try:
                self.check(port)
            except LocalAddressNotAvailableError:
                if not i:
                    raise
                return i
        return vlen
