"""Endpoints in memory: :func:`datagram_pair`, two halves that talk to each other, and :class:`MemoryDatagram`.

There is no lock: see :mod:`safemem.datagram.memory_queue`. So nothing can deadlock, in a signal handler or a finalizer
either, and it is quick: to send and receive 64 bytes takes 0.7 µs, and a lock for the senders alone would add 0.2. The
price: threads that send from one half at the same instant may each get past the last free bytes, and a receive that
fails puts its datagram back in front, though other threads may have taken later ones meanwhile.

Source: OpenSSL BIO_s_dgram_pair(3), BIO_s_dgram_mem(3), crypto/bio/bss_dgram_pair.c.
"""

from __future__ import annotations

import errno
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable
from typing import Final

from safemem.block_seq import BlockSeq
from safemem.buffers import check_int, check_positive
from safemem.datagram.address import Address
from safemem.datagram.batch import MessageBatch
from safemem.datagram.cmsg import Ancillary, local_of, port_of
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.errors import (
    DatagramTooLongError,
    LocalAddressNotAvailableError,
    PeerAddressNotAvailableError,
)
from safemem.datagram.flags import MSG_PEEK, MSG_TRUNC
from safemem.datagram.memory_queue import (
    DATAGRAM_OVERHEAD,
    DEFAULT_MTU,
    DEFAULT_WRITE_BUF_SIZE,
    MemoryQueue,
    ends,
    put_back,
)
from safemem.datagram.message import Message
from safemem.errors import TransferError, error, would_block

CAP_HANDLES_SRC: Final = 1
"""This end makes use of the source addresses of what it receives."""
CAP_HANDLES_DST: Final = 2
"""This end makes use of destination addresses: the other may name one with what it sends."""
CAP_PROVIDES_SRC: Final = 4
"""This end gives source addresses with what it sends."""
CAP_PROVIDES_DST: Final = 8
"""This end gives destination addresses with what it sends."""

_ALL_CAPS: Final = 15
_LOCAL_CAPS: Final = CAP_HANDLES_SRC | CAP_PROVIDES_DST

_UNSPECIFIED: Final = ("0.0.0.0", "::")
_new: Final = object.__new__


class MemoryEndpoint(DatagramEndpoint):
    """What :class:`DatagramPair` and :class:`MemoryDatagram` share. It never waits.

    Any thread may call anything at any time. Of ``flags`` MSG_PEEK counts; the length of a datagram that was cut is
    always in the Message. Only addresses go along with the bytes, no other control data; the local one may come as
    IP_PKTINFO or IPV6_PKTINFO, as a guest gives it.
    """

    def __init__(self, incoming: MemoryQueue, outgoing: MemoryQueue) -> None:
        super().__init__()
        self._in = incoming
        self._out = outgoing
        self._local_enabled = False
        self._default_source: Address | None = None
        self._closed = False
        self.no_trunc = False
        """Whether a receive refuses to cut a datagram: DatagramTooLongError, and it stays. False at first.

        A look (MSG_PEEK) loses nothing, and so is never refused. OpenSSL tells this refusal like an empty queue.
        """

    @property
    def mtu(self) -> int:
        """The longest datagram that one plans to send, for both ends: it limits nothing but :meth:`write_guarantee`."""
        return self._out.mtu

    @mtu.setter
    def mtu(self, mtu: int) -> None:
        """Set it for both ends. Raises ValueError if it is not positive."""
        self._in.mtu = self._out.mtu = check_positive(mtu, "mtu")

    @property
    def write_buf_size(self) -> int | None:
        """How much can be queued to be received by the other end, in bytes and overheads; None if it grows."""
        return None if self._out.limit == sys.maxsize else self._out.limit

    @property
    def caps(self) -> int:
        """What this end says that it can do with addresses: some of the CAP_ flags. None of them at first.

        The other end's are :attr:`effective_caps`: CAP_HANDLES_DST lets it name destinations, and CAP_HANDLES_SRC with
        CAP_PROVIDES_DST lets it enable local addresses.
        """
        return self._in.reader_caps

    @caps.setter
    def caps(self, caps: int) -> None:
        """Say so. Raises ValueError for flags that are none of the four."""
        caps = check_int(caps, "caps")
        if caps & ~_ALL_CAPS:
            raise ValueError(f"caps must be made of the four CAP_ flags, not {caps:#x}")
        self._in.reader_caps = caps

    @property
    def effective_caps(self) -> int:
        """The ``caps`` of whoever receives what this end sends; 0 if nobody does any more."""
        return self._out.reader_caps if self._out.entries is not None else 0

    @property
    def local_addr_cap(self) -> bool:
        """Whether local addresses can be enabled: the other end has CAP_HANDLES_SRC and CAP_PROVIDES_DST."""
        return self.effective_caps & _LOCAL_CAPS == _LOCAL_CAPS

    @property
    def local_addr_enabled(self) -> bool:
        """Whether a send may name the address it comes from, and a receive tells the one that it was sent to."""
        return self._local_enabled

    def set_local_addr_enable(self, enable: bool) -> None:
        """Have messages carry local addresses. Raises LocalAddressNotAvailableError if the other end cannot."""
        if enable and not self.local_addr_cap:
            raise LocalAddressNotAvailableError("the other end must have CAP_HANDLES_SRC and CAP_PROVIDES_DST")
        self._local_enabled = bool(enable)

    def set_local_addr(self, address: Address | None) -> None:
        """Have what is sent come from this address, where a send names no other; from none if it is None."""
        self._default_source = address

    @property
    def eof(self) -> bool:
        """Whether nothing can ever be received again: an end is closed. An empty queue is no end."""
        return self._in.entries is None

    def write_guarantee(self) -> int:
        """How long a datagram surely can be sent now; 0 if that is less than :attr:`mtu`."""
        queue = self._out.entries
        if queue is None:
            return 0
        free = self._out.limit - ends(queue)[1] - DATAGRAM_OVERHEAD
        return free if free >= self._out.mtu else 0

    def pending(self) -> int | None:
        """The length of the datagram that comes next, in bytes; None if there is none, or the end is closed."""
        try:
            return len(self._in.entries[0][0]) if self._in.entries else None
        except (IndexError, TypeError):  # taken, or closed, at this moment
            return None

    def reset(self) -> None:
        """Drop what this end has sent and nobody has received yet."""
        queue = self._out.entries
        if queue is not None:
            queue.clear()
            self._out.wake()

    def close(self) -> None:
        """Close both directions and drop what is queued in them. A second call does nothing."""
        self._closed = True
        self._in.entries = self._out.entries = None
        for queue in (self._in, self._out):
            queue.wake()

    def recvmsg(self, dsts: BlockSeq, flags: int = 0, ancbufsize: int = 0) -> Message:
        """Receive one datagram into dsts. MSG_TRUNC in the Message says that some found no room and is gone.

        Raises BlockingIOError if none is there; BrokenPipeError if an end is closed, whatever was queued;
        DatagramTooLongError if ``no_trunc`` forbids to cut it; HostFaultError if dsts faults, after ``transferred``
        bytes; TypeError if dsts is read-only. In all of these the datagram stays.
        """
        if self._held:
            self._raise_held()
        incoming = self._in
        queue = incoming.entries
        if queue is None:
            raise self._gone()
        peek = flags & MSG_PEEK
        try:
            data, src, dst, _ = entry = queue[0] if peek else queue.popleft()
        except IndexError:
            raise would_block() from None
        try:
            message = _new(Message)  # and its fields one by one: 60 ns less than calling it
            message.flags = 0
            filled = dsts.fill(data)
            if filled is None:
                if self.no_trunc and not peek:
                    raise DatagramTooLongError(len(data), dsts.num_bytes)
                message.flags = MSG_TRUNC
                filled = dsts
                dsts.fill(data[: dsts.num_bytes])
            message.data = filled
            message.length = len(data)
            message.peer = src
            message.local = dst if self._local_enabled else None
            message.ancillary = ()
            if incoming.waiting:
                incoming.wake()
        except BaseException as exc:
            if not peek:
                put_back(queue, entry)
            if isinstance(exc, TypeError):
                dsts.check_writable("dsts")
            raise
        return message

    def sendmsg(
        self,
        srcs: BlockSeq,
        peer: Address | None = None,
        local: Address | None = None,
        flags: int = 0,
        ancdata: Iterable[Ancillary] = (),
    ) -> int:
        """Send one datagram, which may be empty, and return its length.

        Raises BlockingIOError if there is no room for all of it now; DatagramTooLongError if there never will be;
        BrokenPipeError if an end is closed; PeerAddressNotAvailableError or LocalAddressNotAvailableError for an
        address that cannot go along (see :attr:`caps`); TransferError (EINVAL) for other control data; HostFaultError
        if srcs faults, after ``transferred`` bytes. In all of these nothing is sent.
        """
        out = self._out
        queue = out.entries
        if queue is None:
            raise self._gone()
        if local is not None or peer is not None or ancdata:
            local = self._checked_extras(peer, local, ancdata)
        n = srcs.num_bytes
        end, used = ends(queue) if queue else (0, 0)
        if used + n + DATAGRAM_OVERHEAD > out.limit:
            if n + DATAGRAM_OVERHEAD > out.limit:
                raise DatagramTooLongError(n, out.limit - DATAGRAM_OVERHEAD)
            raise would_block()
        data = srcs.tobytes()
        try:
            queue.append((data, self._default_source if local is None else local, peer, end))
            if out.waiting:
                out.wake()
        except BaseException:  # an interrupt: it may be on its way, and nobody woken
            out.wake()
            raise
        return n

    def _checked_extras(
        self, peer: Address | None, local: Address | None, ancdata: Iterable[Ancillary]
    ) -> Address | None:
        """The local address, which may be in the control data. Its port is that of set_local_addr then, or 0."""
        for control in ancdata:
            default = self._default_source
            found = local_of((control,), port_of(default) if isinstance(default, tuple) else 0)
            if found is None:
                reason = "control data cannot be sent through memory, but for a local address: leave ancdata out"
                raise TransferError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: {reason}")
            if local is None and found[0] not in _UNSPECIFIED:
                local = found
        if local is not None and not self._local_enabled:
            raise LocalAddressNotAvailableError("call set_local_addr_enable(True) before naming one")
        if peer is not None and not self.effective_caps & CAP_HANDLES_DST:
            raise PeerAddressNotAvailableError("the other end has no CAP_HANDLES_DST: name no peer")
        return local

    def waits(self, timeout: float | None = None, *, sending: bool = False) -> Generator[None, None, None]:
        """As any endpoint, asleep until the other end has sent, received or closed."""
        return (self._out if sending else self._in).waits(timeout)

    def _recv_many(self, batch: MessageBatch, vlen: int | None, flags: int) -> int:
        """Raises LocalAddressNotAvailableError if the batch asks for what is not enabled."""
        vlen = batch.receivable(batch.checked_vlen(vlen), self._local_enabled)
        return super()._recv_many(batch, vlen, flags)

    @abstractmethod
    def _gone(self) -> OSError:
        """Why nothing can be sent or received any more."""


class DatagramPair(MemoryEndpoint):
    """Half of a pair: what one half sends the other receives, in order. Made by :func:`datagram_pair`.

    A half that is closed, or that nobody refers to any more, takes what is queued in both directions with it; the other
    half then raises BrokenPipeError, and does not keep it alive. (OpenSSL's BIO_s_dgram_pair; halves that have been
    parted cannot be paired again: make a new pair.)
    """

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ended():
            self.close()

    def _gone(self) -> OSError:
        reason = "this half is closed" if self._closed else "the other half is gone"
        return error(errno.EPIPE, f"{reason}: make a new pair")


def datagram_pair(
    write_buf_size: int = DEFAULT_WRITE_BUF_SIZE, *, mtu: int = DEFAULT_MTU
) -> tuple[DatagramPair, DatagramPair]:
    """Two halves that talk to each other, each with room for ``write_buf_size`` bytes on their way to the other.

    Each datagram takes its length and DATAGRAM_OVERHEAD. Keep both: a half that is dropped is closed. Raises ValueError
    if a size is not positive. (OpenSSL's BIO_new_bio_dgram_pair.)
    """
    there, back = MemoryQueue(write_buf_size, mtu), MemoryQueue(write_buf_size, mtu)
    return DatagramPair(back, there), DatagramPair(there, back)


class MemoryDatagram(MemoryEndpoint):
    """A queue of datagrams: what it sends it receives, in order. (OpenSSL's BIO_s_dgram_mem.)

    It is its own other end: ``caps`` and ``effective_caps`` are the same.
    """

    def __init__(self, write_buf_size: int | None = None, *, mtu: int = DEFAULT_MTU) -> None:
        """It grows, or has room for ``write_buf_size`` bytes: of each datagram its length and DATAGRAM_OVERHEAD.

        Raises ValueError if a size is not positive.
        """
        queue = MemoryQueue(write_buf_size, mtu)
        super().__init__(queue, queue)

    def _gone(self) -> OSError:
        return error(errno.EPIPE, "this is closed: make a new one")
