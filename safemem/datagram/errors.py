"""The errors of datagram endpoints.

Beside them BlockingIOError: nothing can be received or sent now; and BrokenPipeError: the other end is gone.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from safemem.errors import TransferError


class DatagramTooLongError(TransferError):
    """EMSGSIZE: a datagram of ``length`` bytes does not fit in ``room``. A received one stays where it was.

    ``room`` is None where that is not known: a path that is too narrow for a socket that is not connected.
    """

    def __init__(self, length: int, room: int | None) -> None:
        fit = "" if room is None else f" where {room} fit"
        super().__init__(errno.EMSGSIZE, f"{os.strerror(errno.EMSGSIZE)}: {length} bytes{fit}")
        self.length = length
        self.room = room

    def _init_args(self) -> tuple[Any, ...]:
        return (self.length, self.room)


class BadBlocksError(TransferError):
    """EFAULT: the datagram needs more of the receiver's memory than can be written: ``room`` bytes of ``wanted``.

    ``length`` is the datagram's, and ``lost`` whether it has been consumed, as Linux does.
    """

    def __init__(self, length: int, room: int, wanted: int, lost: bool = False) -> None:
        end = "is lost" if lost else "stays"
        super().__init__(
            errno.EFAULT,
            f"{os.strerror(errno.EFAULT)}: {room} of {wanted} bytes can be written, and a datagram of {length} {end}",
        )
        self.length = length
        self.room = room
        self.wanted = wanted
        self.lost = lost

    def _init_args(self) -> tuple[Any, ...]:
        return (self.length, self.room, self.wanted, self.lost)


class LocalAddressNotAvailableError(TransferError):
    """EADDRNOTAVAIL: a local address cannot be given or told here, or has not been enabled."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EADDRNOTAVAIL, f"{os.strerror(errno.EADDRNOTAVAIL)}: {reason}")
        self.reason = reason

    def _init_args(self) -> tuple[Any, ...]:
        return (self.reason,)


class PeerAddressNotAvailableError(TransferError):
    """EDESTADDRREQ: the message has no destination and needs one, or has one that the other end cannot take."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EDESTADDRREQ, f"{os.strerror(errno.EDESTADDRREQ)}: {reason}")
        self.reason = reason

    def _init_args(self) -> tuple[Any, ...]:
        return (self.reason,)


class NoBufferError(TransferError):
    """ENOBUFS: there is no memory to receive into. Nothing has been received."""

    def __init__(self) -> None:
        super().__init__(errno.ENOBUFS, f"{os.strerror(errno.ENOBUFS)}: recycle a buffer, or give on_buffer")

    def _init_args(self) -> tuple[Any, ...]:
        return ()
