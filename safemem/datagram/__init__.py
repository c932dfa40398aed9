"""Datagrams between sockets, memory and blocks: many a call, with the fewest copies.

An endpoint (:class:`DatagramSocket`, :func:`datagram_pair`, :class:`MemoryDatagram`) moves single messages, or all
those of a :class:`MessageBatch`, straight into the caller's blocks.
"""

from safemem.datagram.address import Address
from safemem.datagram.batch import MessageBatch
from safemem.datagram.cmsg import Ancillary
from safemem.datagram.endpoint import DatagramEndpoint, Endpoint, FaultPolicy
from safemem.datagram.errors import (
    BadBlocksError,
    DatagramTooLongError,
    LocalAddressNotAvailableError,
    NoBufferError,
    PeerAddressNotAvailableError,
)
from safemem.datagram.message import Message, Received
from safemem.datagram.outcome import Outcome, SendStatus
from safemem.datagram.queue import DatagramQueue
from safemem.datagram.reader import DatagramReader, DatagramWriter
from safemem.datagram.segments import Segments
from safemem.datagram.sockets import BACKENDS, DatagramSocket

__all__ = [
    "BACKENDS",
    "Address",
    "Ancillary",
    "BadBlocksError",
    "DatagramEndpoint",
    "DatagramQueue",
    "DatagramReader",
    "DatagramSocket",
    "DatagramTooLongError",
    "DatagramWriter",
    "Endpoint",
    "FaultPolicy",
    "LocalAddressNotAvailableError",
    "Message",
    "MessageBatch",
    "NoBufferError",
    "Outcome",
    "PeerAddressNotAvailableError",
    "Received",
    "Segments",
    "SendStatus",
]
