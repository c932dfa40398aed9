"""Descriptors that came with a datagram (SCM_RIGHTS): whose they are, and how they are closed.

The kernel installs them as it hands out the message, so that each of them is somebody's from then on. One that is not
delivered is closed; nobody else can do that, since nobody knows its number.

Source: unix(7); Linux net/core/scm.c (scm_detach_fds, put_cmsg).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from safemem.datagram.cmsg import Ancillary
from safemem.datagram.flags import SCM_RIGHTS

_SOL_SOCKET: Final = int(socket.SOL_SOCKET)
FD_SIZE: Final = 4
"""The bytes of a descriptor among control data."""


def is_rights(level: int, kind: int) -> bool:
    """Whether a control message holds descriptors."""
    return level == _SOL_SOCKET and kind == SCM_RIGHTS


def descriptors_of(ancillary: Iterable[Ancillary]) -> list[int]:
    """The descriptors in control data, in their order."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if is_rights(level, kind):
            found += struct.unpack_from(f"={len(data) // FD_SIZE}i", data)
    return found


def fit_control(ancillary: Sequence[Ancillary], room: int) -> tuple[list[Ancillary], bool]:
    """The control messages that fit whole in ``room`` bytes, and whether some do not."""
    fitting: list[Ancillary] = []
    for level, kind, data in ancillary:
        room -= socket.CMSG_LEN(len(data))
        if room < 0:
            return fitting, True
        fitting.append((level, kind, data))
        room -= socket.CMSG_SPACE(len(data)) - socket.CMSG_LEN(len(data))
    return fitting, False


class Undelivered:
    """Owns descriptors until they are closed, which is when it is dropped, at the latest."""

    __slots__ = ("left",)

    def __init__(self, descriptors: Iterable[int] = ()) -> None:
        self.left: list[int] = [-1, *descriptors]
        """Those that are owned, behind a -1 that ends them."""

    def close(self) -> None:
        """Close them. A second call does nothing.

        An interrupt leaves none closed and owned, which would be closed twice: no handler runs in a map between taking
        one out and closing it.
        """
        while self.left:
            with suppress(OSError):
                for _ in map(os.close, iter(self.left.pop, -1)):
                    pass

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ended():
            self.close()
