"""Datagrams between sockets, memory and blocks: many a call, with the fewest copies.

An endpoint (:class:`DatagramSocket`, :func:`datagram_pair`, :class:`MemoryDatagram`) moves single messages, or all
those of a :class:`MessageBatch`, straight into the caller's blocks.
"""

from safemem.datagram.address import Address
from safemem.datagram.batch import MessageBatch
from safemem.datagram.callbacks import Outcome, SendStatus
from safemem.datagram.cmsg import Ancillary
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.errors import (
    BadBlocksError,
    DatagramTooLongError,
    LocalAddressNotAvailableError,
    NoBufferError,
    PeerAddressNotAvailableError,
)
from safemem.datagram.memory_queue import DATAGRAM_OVERHEAD, DEFAULT_MTU, DEFAULT_WRITE_BUF_SIZE, MIN_WRITE_BUF_SIZE
from safemem.datagram.message import Message, Received
from safemem.datagram.pair import (
    CAP_HANDLES_DST,
    CAP_HANDLES_SRC,
    CAP_PROVIDES_DST,
    CAP_PROVIDES_SRC,
    DatagramPair,
    MemoryDatagram,
    MemoryEndpoint,
    datagram_pair,
)
from safemem.datagram.queue import DatagramQueue
from safemem.datagram.reader import DatagramReader, DatagramWriter, FaultPolicy
from safemem.datagram.segments import Segments
from safemem.datagram.sockets import BACKENDS, DatagramSocket

__all__ = [
    "BACKENDS",
    "CAP_HANDLES_DST",
    "CAP_HANDLES_SRC",
    "CAP_PROVIDES_DST",
    "CAP_PROVIDES_SRC",
    "DATAGRAM_OVERHEAD",
    "DEFAULT_MTU",
    "DEFAULT_WRITE_BUF_SIZE",
    "MIN_WRITE_BUF_SIZE",
    "Address",
    "Ancillary",
    "BadBlocksError",
    "DatagramEndpoint",
    "DatagramPair",
    "DatagramQueue",
    "DatagramReader",
    "DatagramSocket",
    "DatagramTooLongError",
    "DatagramWriter",
    "FaultPolicy",
    "LocalAddressNotAvailableError",
    "MemoryDatagram",
    "MemoryEndpoint",
    "Message",
    "MessageBatch",
    "NoBufferError",
    "Outcome",
    "PeerAddressNotAvailableError",
    "Received",
    "Segments",
    "SendStatus",
    "datagram_pair",
]
