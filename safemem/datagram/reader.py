"""DatagramReader and DatagramWriter: a message-oriented Reader and Writer over any endpoint.

Source: gVisor pkg/sentry/socket (EndpointReader); Linux net/ipv4/udp.c, udp_recvmsg.
"""

from __future__ import annotations

from typing import Literal

from safemem.block_seq import EMPTY, BlockSeq
from safemem.datagram.address import Address
from safemem.datagram.cmsg import Ancillary
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.errors import BadBlocksError
from safemem.datagram.flags import MSG_PEEK
from safemem.datagram.message import Message
from safemem.errors import HostFaultError

FaultPolicy = Literal["keep", "linux"]
"""What happens to a datagram whose destination is not writable: it stays queued, or is lost as in Linux."""


class DatagramReader:
    """Reads one datagram a call. 0 is an empty datagram; BlockingIOError means that there is none.

    After a call ``received`` says whether there was one, and ``message`` is the last that came: ``msg_len`` its length,
    ``flags`` MSG_TRUNC if some of it found no room and is gone, ``peer``, ``local`` and ``ancillary`` what came too.
    ``room`` is how many bytes the blocks had, None before the first call, and ``faulted`` whether they faulted.
    Descriptors among ``ancillary`` are the caller's, even if the call raises BadBlocksError.
    """

    message_oriented = True
    message: Message | None = None
    received: bool = False
    msg_len: int = 0
    flags: int = 0
    peer: Address | None = None
    local: Address | None = None
    ancillary: tuple[Ancillary, ...] = ()
    room: int | None = None
    faulted: bool = False

    def __init__(
        self,
        endpoint: DatagramEndpoint,
        flags: int = 0,
        wanted: int | None = None,
        fault_policy: FaultPolicy = "keep",
        ancbufsize: int = 0,
    ) -> None:
        """``flags`` go to each receive.

        ``wanted`` is how many bytes the caller asked for, where the blocks may be fewer because memory behind them
        cannot be written. A datagram that would have needed that memory is then BadBlocksError, and stays
        (``"keep"``), or is cut and lost (``"linux"``). Keeping it takes a look first: two threads that receive from
        one endpoint may each look at the same datagram.
        """
        self._endpoint = endpoint
        self._flags = flags
        self._wanted = wanted
        self._keep = fault_policy == "keep"
        self._ancbufsize = ancbufsize

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Receive one datagram into dsts, and return how many bytes of it are there.

        Raises BadBlocksError if ``wanted`` says that dsts should have been longer and this datagram needs that;
        HostFaultError if dsts faults; BlockingIOError and other errors of the endpoint.
        """
        self.received = self.faulted = False
        room = self.room = dsts.num_bytes
        wanted = room if self._wanted is None else self._wanted
        if wanted > room and self._keep:
            length = self._endpoint.recvmsg(EMPTY, self._flags | MSG_PEEK).length
            if length > room:
                raise BadBlocksError(length, room, wanted)
        try:
            self.message = self._endpoint.recvmsg(dsts, self._flags, self._ancbufsize)
        except HostFaultError:
            self.faulted = True
            raise
        message = self.message
        self.received = True
        self.msg_len = message.length
        self.flags = message.flags
        self.peer = message.peer
        self.local = message.local
        self.ancillary = message.ancillary
        moved = message.data.num_bytes
        if wanted > room and message.length > room:
            exc = BadBlocksError(message.length, room, wanted, lost=not self._flags & MSG_PEEK)
            exc.transferred = moved
            try:
                raise exc
            finally:
                del exc
        return moved


class DatagramWriter:
    """Sends each sequence of blocks as one datagram, an empty one too."""

    message_oriented = True

    def __init__(
        self,
        endpoint: DatagramEndpoint,
        peer: Address | None = None,
        local: Address | None = None,
        flags: int = 0,
        ancdata: tuple[Ancillary, ...] = (),
    ) -> None:
        """To ``peer`` and from ``local``, where the endpoint can do that."""
        self._endpoint = endpoint
        self._peer = peer
        self._local = local
        self._flags = flags
        self._ancdata = ancdata

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Send srcs as one datagram, and return its length. Raises as DatagramEndpoint.sendmsg."""
        return self._endpoint.sendmsg(srcs, self._peer, self._local, self._flags, self._ancdata)
