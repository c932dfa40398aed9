"""DatagramEndpoint: the contract of every datagram endpoint, and its batch calls on top of single messages.

A receive returns at least one message or raises, and so does a send. An error behind the first message of several waits
for the next receive. Sending and receiving at the same time needs no lock of the caller's.

Source: OpenSSL BIO_sendmmsg(3), BIO_s_dgram_pair(3); recvmmsg(2).
"""

from __future__ import annotations

import errno
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from typing import Final, Self

from safemem.block_seq import BlockSeq
from safemem.datagram.address import Address
from safemem.datagram.batch import MessageBatch
from safemem.datagram.cmsg import Ancillary
from safemem.datagram.errors import LocalAddressNotAvailableError
from safemem.datagram.flags import MSG_DONTWAIT
from safemem.datagram.message import Message
from safemem.errors import TransferError, is_interrupt

_PAUSES: Final = 0.00005, 0.005  # between two looks, in seconds: the first, the longest


class DatagramEndpoint(ABC):
    """One end of a datagram connection, or of none: a socket, or memory.

    Subclasses give mtu, recvmsg, sendmsg, pending and close; their recvmsg calls ``_raise_held`` first.
    """

    def __init__(self) -> None:
        self._held: deque[BaseException] = deque(maxlen=1)  # its pop is atomic: one of two receivers gets the error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def local_addr_cap(self) -> bool:
        """Whether local addresses can be enabled."""
        return False

    @property
    def local_addr_enabled(self) -> bool:
        """Whether messages may name the local address they come from, and tell the one they came to."""
        return False

    def set_local_addr_enable(self, enable: bool) -> None:
        """Have messages carry local addresses. Raises LocalAddressNotAvailableError if they cannot."""
        if enable:
            raise LocalAddressNotAvailableError("this endpoint has no local addresses")

    @property
    @abstractmethod
    def mtu(self) -> int | None:
        """How many bytes of payload surely go in one datagram; None if that is not known."""

    @abstractmethod
    def recvmsg(self, dsts: BlockSeq, flags: int = 0, ancbufsize: int = 0) -> Message:
        """Receive one datagram into dsts. What does not fit is gone, and MSG_TRUNC says so; MSG_PEEK leaves it queued.

        Raises BlockingIOError if none is there now, HostFaultError if dsts faults (the datagram stays), TypeError if
        dsts is read-only.
        """

    @abstractmethod
    def sendmsg(
        self,
        srcs: BlockSeq,
        peer: Address | None = None,
        local: Address | None = None,
        flags: int = 0,
        ancdata: Iterable[Ancillary] = (),
    ) -> int:
        """Send one datagram; returns its length. Raises BlockingIOError if it cannot go now, DatagramTooLongError."""

    @abstractmethod
    def pending(self) -> int | None:
        """The length of the datagram that comes next, which may be 0; None if there is none."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds. A second call does nothing."""

    def waits(self, timeout: float | None = None, *, sending: bool = False) -> Generator[None, None, None]:
        """Yield whenever a receive, or a send, that would have blocked is worth another try.

        Ends after ``timeout`` seconds, or never if None. Close the generator. The default looks again after pauses of
        up to 5 ms; an endpoint that knows when something comes does better.
        """
        end = None if timeout is None else time.monotonic() + timeout
        pause = _PAUSES[0]
        while True:
            yield
            left = pause if end is None else end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(pause, left))
            pause = min(2 * pause, _PAUSES[1])

    def _within(self, timeout: float, sending: bool, call: Callable[[], int]) -> int:
        """``call()``, again while it would block, for so many seconds."""
        if timeout < 0:
            raise ValueError(f"timeout must not be negative: {timeout}")
        try:
            return call()
        except BlockingIOError:
            if not timeout:
                raise
        with closing(self.waits(timeout, sending=sending)) as waiting:
            for _ in waiting:
                with suppress(BlockingIOError):
                    return call()
        raise TimeoutError(errno.ETIMEDOUT, "timed out")

    def recvmmsg(
        self, batch: MessageBatch, vlen: int | None = None, flags: int = 0, *, timeout: float | None = None
    ) -> int:
        """Receive up to ``vlen`` datagrams, all the batch's if None, of those that are there; returns how many.

        Waits for the first as the endpoint does, or for ``timeout`` seconds (TimeoutError; 0 does not wait), and never
        for another. An OSError behind the first is kept for the next receive, but for a TransferError, which leaves the
        datagram where it was. Anything else, an interrupt (KeyboardInterrupt, MemoryError, what a signal handler
        raises), is raised at once, and ``batch.count`` says how many datagrams came before it. Raises as
        :meth:`recvmsg`; RuntimeError if the batch is in use. Entries that were not reached stay as they were.
        """
        if timeout is None:
            return self._recv_many(batch, vlen, flags)
        return self._within(timeout, False, lambda: self._recv_many(batch, vlen, flags | MSG_DONTWAIT))

    def _recv_many(self, batch: MessageBatch, vlen: int | None, flags: int) -> int:
        with batch.in_use():
            vlen = batch.checked_vlen(vlen)
            if vlen:
                batch.check_writable(vlen)
            else:
                batch.filled(0, 0)
            for i in range(vlen):
                message = None
                try:
                    now = flags | (MSG_DONTWAIT if i else 0)
                    message = self._recv_for_batch(batch.blocks(i), now, batch.control_len)
                    batch.put(i, message)
                except BaseException as exc:
                    if not isinstance(exc, OSError) or message is not None:
                        batch.count = i
                        if message is not None:
                            batch.put(i, message)
                        raise
                    if not i:
                        raise
                    if not isinstance(exc, BlockingIOError | TransferError):
                        self.hold_error(exc)
                    return i
            return vlen

    def _recv_for_batch(self, dsts: BlockSeq, flags: int, control_len: int) -> Message:
        """As recvmsg, with room for so much control data, that of the local address included."""
        return self.recvmsg(dsts, flags, control_len)

    def sendmmsg(
        self, batch: MessageBatch, vlen: int | None = None, flags: int = 0, *, timeout: float | None = None
    ) -> int:
        """Send the first ``vlen`` messages of the batch, all if None; returns how many went.

        Waits as the endpoint does, or for ``timeout`` seconds until the first can go, as :meth:`recvmmsg`. Raises as
        :meth:`sendmsg`, if the first did not go; sending again from the one that did not tells why.
        """
        if timeout is None:
            return self._send_many(batch, vlen, flags)
        return self._within(timeout, True, lambda: self._send_many(batch, vlen, flags | MSG_DONTWAIT))

    def _send_many(self, batch: MessageBatch, vlen: int | None, flags: int) -> int:
        with batch.in_use():
            vlen = batch.checked_vlen(vlen)
            for i in range(vlen):
                peer, local, ancdata = batch.destination(i)
                try:
                    self.sendmsg(batch.blocks(i), peer, local, flags, ancdata)
                except Exception:
                    if not i:
                        raise
                    return i
            return vlen

    def hold_error(self, exc: BaseException) -> None:
        """Keep an error for the next receive, which raises it. An interrupt is raised at once."""
        if is_interrupt(exc):
            try:
                raise exc
            finally:
                del exc
        self._held.append(exc.with_traceback(None))

    def _raise_held(self) -> None:
        if self._held:
            try:
                held = self._held.pop()
            except IndexError:
                return
            try:
                raise held
            finally:
                del held
