"""Waiting for a socket, as its timeout says, around calls that do not wait themselves."""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from safemem.datagram.flags import MSG_DONTWAIT
from safemem.errors import error

if TYPE_CHECKING:
    import socket

_T = TypeVar("_T")
POLLIN: Final = int(getattr(select, "POLLIN", 1))
POLLOUT: Final = int(getattr(select, "POLLOUT", 4))
_PAUSES: Final = 0.00005, 0.005  # between two calls that block though the socket is ready: the first, the longest


def may_wait(sock: socket.socket, flags: int) -> bool:
    """Whether a call with these flags that would block waits: not if the socket's timeout is 0."""
    return not flags & MSG_DONTWAIT and sock.gettimeout() != 0


def until_ready(sock: socket.socket, flags: int, event: int, call: Callable[..., _T], *args: Any) -> _T:
    """``call(*args, flags | MSG_DONTWAIT)``, again and again while it would block, as long as the socket waits.

    That is for ever, or for its timeout, or not at all; and with MSG_DONTWAIT in the flags not at all. Raises
    BlockingIOError, TimeoutError, OSError (EBADF) for a socket that is closed, and what the call raises. (On a host
    without MSG_DONTWAIT the call itself waits.) Who has tried once before it calls this saves 0.4 us.
    """
    deadline: float | None = None
    pause = 0.0
    while True:
        try:
            return call(*args, flags | MSG_DONTWAIT)
        except BlockingIOError:
            if not may_wait(sock, flags):
                raise
        left = None
        timeout = sock.gettimeout()
        if timeout is not None:
            now = time.monotonic()
            deadline = now + timeout if deadline is None else deadline
            left = deadline - now
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "timed out")
        fd = sock.fileno()
        if fd < 0:
            raise error(errno.EBADF, "the socket is closed")
        if pause:
            time.sleep(pause if left is None else min(pause, left))
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(None if left is None else left * 1000) and left is not None:
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        # Ready, and the call may block all the same: poll knows nothing of the queue of a peer that is named, or there
        # is an error in the queue of errors. Do not spin.
        pause = min(max(2 * pause, _PAUSES[0]), _PAUSES[1])
