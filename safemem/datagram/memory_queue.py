"""MemoryQueue: the datagrams that are on their way from one end in memory to the other.

A deque of (bytes, source, destination, place) without a lock: a deque's own operations are safe between threads, and
how much is queued is read off its two ends.

Source: OpenSSL crypto/bio/bss_dgram_pair.c.
"""

from __future__ import annotations

import sys
import threading
import time
from _thread import LockType
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from typing import Final

from safemem.buffers import check_positive
from safemem.datagram.address import Address

DATAGRAM_OVERHEAD: Final = 232
"""What a queued datagram takes of the buffer beside its bytes: the size of OpenSSL's header, on 64-bit hosts."""

DEFAULT_MTU: Final = 1472
"""A UDP payload that fits in an Ethernet frame."""
DEFAULT_WRITE_BUF_SIZE: Final = 9 * (DATAGRAM_OVERHEAD + DEFAULT_MTU)
"""Room for nine datagrams of the default MTU."""
MIN_WRITE_BUF_SIZE: Final = 1024
"""The least that a buffer has; a smaller size is taken as this."""

Entry = tuple[bytes, Address | None, Address | None, int]
"""The bytes, source and destination of a datagram, and where it starts in all that was sent, overheads included."""


class MemoryQueue:
    """What goes one way. ``entries`` is None as soon as one of the ends is closed, and all that it held is gone."""

    __slots__ = ("entries", "limit", "mtu", "reader_caps", "waiting")

    def __init__(self, write_buf_size: int | None, mtu: int) -> None:
        self.entries: deque[Entry] | None = deque()
        self.limit: int = sys.maxsize
        if write_buf_size is not None:
            self.limit = max(check_positive(write_buf_size, "write_buf_size"), MIN_WRITE_BUF_SIZE)
        self.mtu: int = check_positive(mtu, "mtu")
        self.reader_caps: int = 0
        self.waiting: deque[LockType] = deque()  # a locked lock for each thread that waits

    def wake(self) -> None:
        """Wake all that wait for a datagram, for room, or for the end."""
        with suppress(IndexError):  # that there are no more
            # One step: no interrupt leaves one that was taken out asleep.
            deque(map(LockType.release, iter(self.waiting.popleft, None)), 0)

    def waits(self, timeout: float | None) -> Generator[None, None, None]:
        """Yield at once and whenever something has changed since, for ``timeout`` seconds, or for ever if None."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            lock = threading.Lock()
            lock.acquire()
            self.waiting.append(lock)
            try:
                yield
                left = -1 if end is None else min(max(end - time.monotonic(), 0), threading.TIMEOUT_MAX)
                if not lock.acquire(timeout=left):
                    return
            finally:
                with suppress(ValueError, IndexError):  # taken out, or changed meanwhile: then the next wake does it
                    self.waiting.remove(lock)


def ends(queue: deque[Entry]) -> tuple[int, int]:
    """The place where the next datagram starts, and how much is queued before it."""
    try:
        first, last = queue[0], queue[-1]
    except IndexError:
        return 0, 0
    end = last[3] + len(last[0]) + DATAGRAM_OVERHEAD
    return end, end - first[3]


def put_back(queue: deque[Entry], entry: Entry) -> None:
    """Have the entry come first again, right before what comes first now."""
    data, src, dst, _ = entry
    try:
        start = queue[0][3] - len(data) - DATAGRAM_OVERHEAD
    except IndexError:
        start = 0
    queue.appendleft((data, src, dst, start))
