"""KernelTLSReader: the receiving side of kernel TLS, for a simulator whose guest has set TLS_RX on a socket.

What the guest reads, and its errors, are Linux's: application data of as many records as fit, a record of another type
alone and with its type as control data, and after a key update nothing until the guest gives the new keys.

Source: net/tls/tls_sw.c (tls_sw_recvmsg, tls_rx_one_record), Documentation/networking/tls.rst.
"""

from __future__ import annotations

import errno
import threading
from copy import copy as copy_object
from typing import TYPE_CHECKING, NoReturn, Self

from attrs import frozen

from safemem.block import Block
from safemem.block_seq import BlockSeq, copy_seq
from safemem.errors import TransferError, error
from safemem.protocols import Reader
from safemem.tls.aead import engine
from safemem.tls.crypto_info import CryptoInfo
from safemem.tls.deframer import BorrowedRecord, Deframer
from safemem.tls.errors import EKEYEXPIRED, TLSError
from safemem.tls.reader import BUFFER_SIZE
from safemem.tls.record import TAG, ContentType
from safemem.tls.record_layer import RecordLayer
from safemem.tls.transport import receive, receiver

if TYPE_CHECKING:
    import socket

_DATA = int(ContentType.APPLICATION_DATA)
_KEY_UPDATE = 24
_VERSION = b"\x03\x03"


@frozen
class Received:
    """What one recvmsg gives: ``count`` bytes of records of one type; ``end_of_record`` is MSG_EOR."""

    count: int
    record_type: int
    end_of_record: bool


class KernelTLSReader:
    """recvmsg(2) on a socket with TLS_RX. One call at a time."""

    def __init__(
        self,
        source: socket.socket | int | Reader,
        info: CryptoInfo,
        *,
        received: bytes = b"",
        buffer_size: int = BUFFER_SIZE,
        engine_name: str | None = None,
    ) -> None:
        """``info`` is what the guest has set; ``received`` what had been received before, and not read.

        Raises ValueError if the buffer would hold no record, TypeError if the source is none, EngineError.
        """
        self._source = receiver(source)
        self._deframer = Deframer(buffer_size, received)
        self._lock = threading.Lock()
        self._type = 0
        self._plain = 0
        self._plain_end = 0
        self._error: OSError | None = None
        self._expired = False
        self._ended = False
        self._held: OSError | None = None  # of the transport, for when all before it has been read
        self._suite = info.keys.suite
        self._layer = RecordLayer(engine(engine_name), self._deframer, info.keys)

    def set_crypto_info(self, info: CryptoInfo) -> None:
        """The guest sets TLS_RX again, after a key update.

        Raises OSError as Linux: EBUSY if the keys have not changed meanwhile, EINVAL for another cipher.
        """
        if not self._expired:
            raise error(errno.EBUSY, "TLS_RX is set already, and the peer has not changed its keys")
        if info.keys.suite != self._suite:
            raise error(errno.EINVAL, f"the connection has {self._suite.name}, not {info.keys.suite.name}")
        self._layer.forget()
        self._layer.use(info.keys)
        self._expired = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Wipe the keys and the buffer. Later calls give EBADF. Raises RuntimeError while a read is under way."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("a read is under way")
        try:
            self._layer.forget()
            self._deframer.wipe()
            self._type = self._plain = self._plain_end = 0
            self._error = error(errno.EBADF, "the socket's TLS is closed")
        finally:
            self._lock.release()

    def readable(self) -> bool:
        """Whether a poll of the guest's must say so without looking at the transport: something is buffered."""
        waits = self._type and (self._type != _DATA or self._plain < self._plain_end)
        return bool(
            waits or self._error or self._held or self._ended or (not self._expired and self._deframer.whole_record())
        )

    def recvmsg(self, dsts: BlockSeq, has_control: bool = True) -> Received:
        """Fill dsts; an empty sequence is 0 at once. ``has_control`` is whether the guest gave room for control data,
        the record's type.

        A count of 0 is the end of the transport, or a record without content (``record_type`` tells: 0 is the end).

        Raises OSError as Linux: EIO for a record that is no data where there is no room for its type (it stays);
        EKEYEXPIRED after a key update; EMSGSIZE, EBADMSG, EINVAL for a record that is wrong, from then on always;
        what the transport raises, BlockingIOError too; HostFaultError if dsts faults, and then nothing is lost.
        """
        if not dsts:
            return Received(0, 0, False)
        dsts.check_writable("dsts")
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("another read is under way")
        try:
            return self._recvmsg(dsts, has_control)
        finally:
            self._lock.release()

    def _recvmsg(self, dsts: BlockSeq, has_control: bool) -> Received:
        done = 0
        kind = 0
        whole = False
        while dsts:
            try:
                if not self._next(may_receive=not done):
                    break
            except OSError:
                if done:  # the bytes first; the error is kept, or comes again
                    break
                raise
            if kind and kind != self._type:
                break
            if self._type != _DATA and not has_control:
                raise error(errno.EIO, f"a record of type {self._type}, and no control data to tell its type in")
            kind = self._type
            n, whole = self._copy(dsts, done)
            done += n
            dsts = dsts.drop_first(n)
            if kind != _DATA:
                break
        return Received(done, kind, whole)

    def _next(self, may_receive: bool) -> bool:
        """Have a record's plaintext at hand; False if there is none."""
        while not self._type or (self._type == _DATA and self._plain == self._plain_end):
            self._type = 0
            if self._error is not None:
                raise copy_object(self._error)  # each raise adds to an error's traceback
            if self._expired:
                raise error(EKEYEXPIRED, "the peer has changed its keys: set TLS_RX")
            if self._ended:
                return False
            try:
                record = self._deframer.pop()
            except TLSError as exc:
                self._fail(errno.EINVAL if exc.errno == errno.EPROTO else exc.errno, exc.reason)
            if record is not None:
                with record:
                    self._open(record)
            elif not may_receive:
                return False
            elif self._held is not None:
                held, self._held = self._held, None
                try:
                    raise held
                finally:
                    del held
            else:
                self._receive()
        return True

    def _receive(self) -> None:
        self._deframer.discard()
        n, error = receive(self._source, self._deframer.space())
        self._deframer.received(n)
        self._ended = not n
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            self._held = error.with_traceback(None)  # what came before it comes first
        elif error is not None and not isinstance(error, BlockingIOError):
            try:
                raise error
            finally:
                del error

    def _open(self, record: BorrowedRecord) -> None:
        version = record.header[1:3]
        if version != _VERSION:  # which RFC 8446 would have ignored, and Linux does not
            self._fail(errno.EINVAL, f"a record of version {version.hex()}")
        try:
            authentic = self._layer.open(record)
        except TLSError as exc:  # no more numbers
            self._fail(errno.EBADMSG, exc.reason)
        if not authentic:
            self._fail(errno.EBADMSG, f"record {self._layer.seq - 1} is not authentic")
        at = record.at
        inner = bytes(record.take(record.length - TAG) or b"").rstrip(b"\0")
        if not inner:
            self._fail(errno.EBADMSG, "a record without a type")
        self._type = inner[-1]
        self._plain, self._plain_end = at, at + len(inner) - 1
        if self._type == ContentType.HANDSHAKE and inner[0] == _KEY_UPDATE:
            self._expired = True

    def _copy(self, dsts: BlockSeq, done: int) -> tuple[int, bool]:
        """Deliver what waits, as far as it fits: how much that was, and whether the record ends with it."""
        source = Block.from_view(self._deframer.buffer, self._plain, self._plain_end - self._plain)
        try:
            n = copy_seq(dsts, BlockSeq.of(source))
        except TransferError as exc:
            self._plain += exc.transferred
            exc.transferred += done
            raise
        self._plain += n
        whole = self._plain == self._plain_end
        if whole:
            self._type = 0
        return n, whole

    def _fail(self, code: int | None, reason: str) -> NoReturn:
        self._error = error(code or errno.EINVAL, reason)
        self._layer.forget()
        raise copy_object(self._error)
