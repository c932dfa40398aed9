"""Waiting for a socket, as its timeout says, around calls that do not wait themselves.

Readiness is a hint: poll reports POLLERR as long as an entry lies in the error queue, which a plain receive neither
sees nor waits for. So a receive that would block though the socket is ready waits for the next *edge* (EPOLLET): for
something new. A send to a full peer that is named has no edges, since poll knows nothing of that queue: it pauses.

Source: socket(7), SO_RCVTIMEO; epoll(7); Linux net/core/datagram.c (__skb_wait_for_more_packets, datagram_poll).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Final, TypeVar

from safemem.datagram.flags import MSG_DONTWAIT, MSG_ERRQUEUE, MSG_PEEK
from safemem.errors import error, would_block

_T = TypeVar("_T")
POLLIN: Final = int(getattr(select, "POLLIN", 1))
POLLOUT: Final = int(getattr(select, "POLLOUT", 4))
_POLLRDHUP: Final = int(getattr(select, "POLLRDHUP", 0))
_SHUT: Final = int(getattr(select, "POLLHUP", 0)) | _POLLRDHUP
_PAUSES: Final = 0.00005, 0.005  # between two calls that block though the socket is ready: the first, the longest
_MILLISECOND: Final = 0.001
_LONGEST: Final = 86_400  # seconds in one poll, which counts in an int; a wait may be for longer
_FD_SETSIZE: Final = 1024
_TIMEVAL: Final = struct.Struct("ll")


def may_wait(sock: socket.socket, flags: int) -> bool:
    """Whether a call that would block waits: not if the socket's timeout is 0, and never for the error queue.

    Without a timeout O_NONBLOCK says it: others may have set it, who share the open file, and Python does not know.
    """
    if flags & (MSG_DONTWAIT | MSG_ERRQUEUE):
        return False
    timeout = sock.gettimeout()
    return os.get_blocking(_fileno(sock)) if timeout is None else timeout > 0


def until_ready(sock: socket.socket, flags: int, event: int, call: Callable[..., _T], *args: Any) -> _T:
    """``call(*args, flags | MSG_DONTWAIT)``, again and again while it would block, as long as the socket waits.

    Raises BlockingIOError where it does not wait, what :func:`waits` raises, and what the call raises. (On a host
    without MSG_DONTWAIT the call itself waits.) Who has tried once before it calls this saves 0.4 us.
    """
    try:
        return call(*args, flags | MSG_DONTWAIT)
    except BlockingIOError:
        if not may_wait(sock, flags):
            raise
    with closing(waits(sock, event)) as waiting:
        for _ in waiting:
            try:
                return call(*args, flags | MSG_DONTWAIT)
            except BlockingIOError:
                continue
    raise would_block()


def waits(sock: socket.socket, event: int, timeout: float | None = None) -> Generator[None, None, None]:
    """Yield whenever a call that would have blocked is worth another try. Close the generator.

    Raises TimeoutError after ``timeout`` seconds, or the socket's; BlockingIOError after its SO_RCVTIMEO or
    SO_SNDTIMEO, if there is no timeout; OSError (EBADF) if it is closed, and BrokenPipeError if it is shut down and
    nothing is left to receive.
    """
    end, expired = _limit(sock, event, timeout)
    edges: Any = None
    try:
        pause = 0.0
        while True:
            left = None if end is None else min(max(end - time.monotonic(), 0), _LONGEST)
            if left == 0:
                raise expired
            if edges is not None:
                found = _poll(edges, edges.fileno(), event, left, 1)
            else:
                if pause:
                    time.sleep(pause if left is None else min(pause, left))
                poll = select.poll()
                poll.register(_fileno(sock), event | (_POLLRDHUP if event == POLLIN else 0))
                found = _poll(poll, _fileno(sock), event, left, 1000)
            if not found:
                continue
            yield
            if found and found[0][1] & _SHUT:
                raise error(errno.EPIPE, "the socket is shut down")
            pause = min(max(2 * pause, _PAUSES[0]), _PAUSES[1])
            if edges is None and event == POLLIN:
                edges = _edges(_fileno(sock))
    finally:
        del expired
        if edges is not None:
            edges.close()


def _poll(poll: Any, fd: int, event: int, left: float | None, units: int) -> list[Any]:
    """``poll.poll``, for so many seconds, given to it in units of a second; it may find nothing before their end.

    It counts in milliseconds and rounds up, so the rest of one is left to select, which is exact.
    """
    if left is not None:
        whole = left // _MILLISECOND
        if not whole and fd < _FD_SETSIZE:
            select.select([fd] if event == POLLIN else [], [fd] if event == POLLOUT else [], [], left)
        left = (whole - 0.5) * _MILLISECOND * units if whole else 0 if fd < _FD_SETSIZE else left * units
    return list(poll.poll(left))


def _fileno(sock: socket.socket) -> int:
    fd = sock.fileno()
    if fd < 0:
        raise error(errno.EBADF, "the socket is closed")
    return fd


def _limit(sock: socket.socket, event: int, timeout: float | None) -> tuple[float | None, OSError]:
    """When a wait that begins now ends, and what ends it. In a mode that waits, the host's own limits count."""
    if timeout is None:
        timeout = sock.gettimeout()
    if timeout is not None:
        return time.monotonic() + timeout, TimeoutError(errno.ETIMEDOUT, "timed out")
    _fileno(sock)
    option = socket.SO_RCVTIMEO if event == POLLIN else socket.SO_SNDTIMEO
    packed = sock.getsockopt(socket.SOL_SOCKET, option, _TIMEVAL.size)
    seconds, micros = _TIMEVAL.unpack(packed) if len(packed) == _TIMEVAL.size else (0, 0)
    return time.monotonic() + seconds + micros / 1e6 if seconds or micros else None, would_block()


def _edges(fd: int) -> Any:
    """What polls for news of a descriptor; None where the host has no such thing, or no descriptor to spare."""
    try:
        edges = select.epoll(1)
    except (AttributeError, OSError):
        return None
    try:
        edges.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
    except OSError:
        edges.close()
        return None
    return edges


def next_length(sock: socket.socket) -> int | None:
    """The length of the datagram that comes next; None if there is none. A peek would take an error off the socket.

    ``sock`` is one that Python does not wait for. One that is shut down is ready for ever: if that is no error, a peek
    tells an empty datagram from none.
    """
    from fcntl import ioctl
    from termios import FIONREAD

    poll = select.poll()
    poll.register(_fileno(sock), POLLIN | _POLLRDHUP)
    found = sum(events for _, events in poll.poll(0))
    if not found & POLLIN:
        return None
    (length,) = struct.unpack("i", ioctl(_fileno(sock), FIONREAD, bytes(4)))
    if not length and found & _SHUT and not found & select.POLLERR:
        try:
            sock.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:
            return None
    return int(length)
