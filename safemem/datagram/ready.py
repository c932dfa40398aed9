"""Waiting for a socket, as its timeout says, around calls that do not wait themselves."""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from safemem.datagram.flags import MSG_DONTWAIT

if TYPE_CHECKING:
    import socket

_T = TypeVar("_T")
POLLIN: Final = int(getattr(select, "POLLIN", 1))
POLLOUT: Final = int(getattr(select, "POLLOUT", 4))


def until_ready(sock: socket.socket, flags: int, event: int, call: Callable[[int], _T]) -> _T:
    """``call(flags | MSG_DONTWAIT)``, again and again while it would block, as long as the socket waits.

    That is for ever, or for its timeout, or not at all; and with MSG_DONTWAIT in the flags not at all. Raises
    BlockingIOError, TimeoutError, and what the call raises. (On a host without MSG_DONTWAIT the call itself waits.)
    """
    deadline: float | None = None
    while True:
        try:
            return call(flags | MSG_DONTWAIT)
        except BlockingIOError:
            timeout = sock.gettimeout()
            if flags & MSG_DONTWAIT or timeout == 0:
                raise
        left = None
        if timeout is not None:
            now = time.monotonic()
            deadline = now + timeout if deadline is None else deadline
            left = max(deadline - now, 0)
        poll = select.poll()
        poll.register(sock.fileno(), event)
        if not poll.poll(None if left is None else left * 1000) and left is not None:
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
