"""DatagramEndpoint: what every endpoint of datagrams can do, and how one that moves single messages does the rest.

A receive returns at least one message or raises, and so does a send. An error behind the first message of several waits
for the next receive. Sending and receiving at the same time needs no lock of the caller's.

Source: OpenSSL BIO_sendmmsg(3), BIO_s_dgram_pair(3); recvmmsg(2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Protocol, Self

from safemem.block_seq import BlockSeq
from safemem.datagram.address import Address
from safemem.datagram.cmsg import Ancillary
from safemem.datagram.errors import LocalAddressNotAvailableError
from safemem.datagram.flags import MSG_DONTWAIT
from safemem.datagram.message import Message

if TYPE_CHECKING:
    from safemem.datagram.batch import MessageBatch
    from safemem.datagram.reader import DatagramReader, DatagramWriter

FaultPolicy = Literal["keep", "linux"]
"""What becomes of a datagram that meets memory which cannot be written: it stays queued, or is lost as in Linux."""


class DatagramEndpoint(Protocol):
    """One end of a datagram connection, or of none: a socket, or memory."""

    @property
    def local_addr_cap(self) -> bool:
        """Whether local addresses can be enabled."""
        ...

    @property
    def local_addr_enabled(self) -> bool:
        """Whether messages may name the local address they come from, and tell the one they came to."""
        ...

    def set_local_addr_enable(self, enable: bool) -> None:
        """Have messages carry local addresses. Raises LocalAddressNotAvailableError if they cannot."""
        ...

    @property
    def mtu(self) -> int | None:
        """How many bytes of payload surely go in one datagram, if that is known."""
        ...

    def recvmsg(self, dsts: BlockSeq, flags: int = 0, ancbufsize: int = 0) -> Message:
        """Receive one datagram into dsts. What does not fit is gone, and MSG_TRUNC says so; MSG_PEEK leaves it queued.

        Raises BlockingIOError if none is there now, HostFaultError if dsts faults (the datagram stays), TypeError if
        dsts is read-only.
        """
        ...

    def sendmsg(
        self,
        srcs: BlockSeq,
        peer: Address | None = None,
        local: Address | None = None,
        flags: int = 0,
        ancdata: Iterable[Ancillary] = (),
    ) -> int:
        """Send one datagram; returns its length. Raises BlockingIOError if it cannot go now, DatagramTooLongError."""
        ...

    def recvmmsg(self, batch: MessageBatch, vlen: int | None = None, flags: int = 0) -> int:
        """Receive up to ``vlen`` datagrams, all the batch's if None, of those that are there; returns how many.

        Waits for the first as the endpoint does, and never for another. An error behind the first is kept for the next
        receive. Raises as :meth:`recvmsg`; RuntimeError if the batch is in use. Entries that were not reached stay as
        they were.
        """
        ...

    def sendmmsg(self, batch: MessageBatch, vlen: int | None = None, flags: int = 0) -> int:
        """Send the first ``vlen`` messages of the batch, all if None; returns how many went.

        Raises as :meth:`sendmsg`, if the first did not go; sending again from the one that did not tells why.
        """
        ...

    def reader(
        self, flags: int = 0, wanted: int | None = None, fault_policy: FaultPolicy = "keep", ancbufsize: int = 0
    ) -> DatagramReader:
        """A Reader of single datagrams. See :class:`DatagramReader`."""
        ...

    def writer(
        self,
        peer: Address | None = None,
        local: Address | None = None,
        flags: int = 0,
        ancdata: tuple[Ancillary, ...] = (),
    ) -> DatagramWriter:
        """A Writer of single datagrams. See :class:`DatagramWriter`."""
        ...

    def pending(self) -> int | None:
        """The length of the datagram that comes next, which may be 0; None if there is none."""
        ...

    def hold_error(self, exc: BaseException) -> None:
        """Keep an error for the next receive, which raises it."""
        ...

    def close(self) -> None:
        """Give back what it holds. A second call does nothing."""
        ...


class Endpoint(ABC):
    """A DatagramEndpoint by the messages it moves: subclasses give recvmsg, sendmsg, pending and close.

    A subclass's receive calls ``_raise_held`` first.
    """

    def __init__(self) -> None:
        self._held: deque[BaseException] = deque(maxlen=1)  # its pop is atomic: one of two receivers gets the error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def local_addr_cap(self) -> bool:
        """See DatagramEndpoint."""
        return False

    @property
    def local_addr_enabled(self) -> bool:
        """See DatagramEndpoint."""
        return False

    def set_local_addr_enable(self, enable: bool) -> None:
        """See DatagramEndpoint."""
        if enable:
            raise LocalAddressNotAvailableError("this endpoint has no local addresses")

    @property
    @abstractmethod
    def mtu(self) -> int | None:
        """See DatagramEndpoint."""

    @abstractmethod
    def recvmsg(self, dsts: BlockSeq, flags: int = 0, ancbufsize: int = 0) -> Message:
        """See DatagramEndpoint."""

    @abstractmethod
    def sendmsg(
        self,
        srcs: BlockSeq,
        peer: Address | None = None,
        local: Address | None = None,
        flags: int = 0,
        ancdata: Iterable[Ancillary] = (),
    ) -> int:
        """See DatagramEndpoint."""

    @abstractmethod
    def pending(self) -> int | None:
        """See DatagramEndpoint."""

    @abstractmethod
    def close(self) -> None:
        """See DatagramEndpoint."""

    def recvmmsg(self, batch: MessageBatch, vlen: int | None = None, flags: int = 0) -> int:
        """See DatagramEndpoint."""
        with batch.in_use():
            vlen = batch.checked_vlen(vlen)
            if vlen:
                batch.check_writable(vlen)
            else:
                batch.filled(0, 0)
            for i in range(vlen):
                try:
                    now = flags | (MSG_DONTWAIT if i else 0)
                    batch.put(i, self._recv_for_batch(batch.blocks(i), now, batch.control_len))
                except BaseException as exc:
                    if not i:
                        raise
                    if not isinstance(exc, BlockingIOError):
                        self.hold_error(exc)
                    return i
            return vlen

    def _recv_for_batch(self, dsts: BlockSeq, flags: int, control_len: int) -> Message:
        """As recvmsg, with room for so much control data, that of the local address included."""
        return self.recvmsg(dsts, flags, control_len)

    def sendmmsg(self, batch: MessageBatch, vlen: int | None = None, flags: int = 0) -> int:
        """See DatagramEndpoint."""
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

    def reader(
        self, flags: int = 0, wanted: int | None = None, fault_policy: FaultPolicy = "keep", ancbufsize: int = 0
    ) -> DatagramReader:
        """See DatagramEndpoint."""
        from safemem.datagram.reader import DatagramReader

        return DatagramReader(self, flags, wanted, fault_policy, ancbufsize)

    def writer(
        self,
        peer: Address | None = None,
        local: Address | None = None,
        flags: int = 0,
        ancdata: tuple[Ancillary, ...] = (),
    ) -> DatagramWriter:
        """See DatagramEndpoint."""
        from safemem.datagram.reader import DatagramWriter

        return DatagramWriter(self, peer, local, flags, ancdata)

    def hold_error(self, exc: BaseException) -> None:
        """See DatagramEndpoint."""
        self._held.append(exc.with_traceback(None))

    def _raise_held(self) -> None:
        if self._held:
            try:
                held = self._held.pop()
            except IndexError:
                return
            raise held
