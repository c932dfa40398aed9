"""TLS 1.3 records into and out of blocks: readers, writers, keys, and the hand-over from the standard library's ssl.

:func:`handshake` makes a connection; :class:`TLSReader` and :class:`TLSWriter` move its bytes, and can be made from
keys alone. :class:`SSLObjectReader` and :class:`SSLObjectWriter` do the same over an ``ssl.SSLObject``, for every
version of TLS and without any engine.
"""

from safemem.tls.aead import engine
from safemem.tls.crypto_info import CryptoInfo
from safemem.tls.deframer import BorrowedRecord, Deframer, any_length, protected_length
from safemem.tls.errors import (
    Alert,
    EngineError,
    KeyExpiredError,
    ReceivedAlertError,
    StreamInterruptedError,
    TLSError,
    TruncationError,
)
from safemem.tls.handoff import Handoff, handshake
from safemem.tls.keys import SUITES, CipherSuite, RecordKeys, TrafficSecret
from safemem.tls.ktls import KernelTLSReader, Received
from safemem.tls.post_handshake import NewSessionTicket
from safemem.tls.reader import TLSReader
from safemem.tls.record import ContentType
from safemem.tls.record_layer import RecordLayer
from safemem.tls.ssl_object import SSLObjectReader, ssl_object_pair
from safemem.tls.ssl_object_writer import SSLObjectWriter
from safemem.tls.ssl_session import SSLSession
from safemem.tls.writer import TLSWriter

__all__ = [
    "SUITES",
    "Alert",
    "BorrowedRecord",
    "CipherSuite",
    "ContentType",
    "CryptoInfo",
    "Deframer",
    "EngineError",
    "Handoff",
    "KernelTLSReader",
    "KeyExpiredError",
    "NewSessionTicket",
    "Received",
    "ReceivedAlertError",
    "RecordKeys",
    "RecordLayer",
    "SSLObjectReader",
    "SSLObjectWriter",
    "SSLSession",
    "StreamInterruptedError",
    "TLSError",
    "TLSReader",
    "TLSWriter",
    "TrafficSecret",
    "TruncationError",
    "any_length",
    "engine",
    "handshake",
    "protected_length",
    "ssl_object_pair",
]
