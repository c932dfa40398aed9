"""KernelTLSReader: the receiving side of kernel TLS, for a simulator whose guest has set TLS_RX on a socket.

What the guest reads, and its errors, are Linux's: application data of as many records as fit, a record of another type
alone and with its type as control data, and after a key update nothing until the guest gives the new keys.

Source: net/tls/tls_sw.c (tls_sw_recvmsg, tls_rx_one_record), Documentation/networking/tls.rst.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from copy import copy as copy_object
from typing import Self

from attrs import define, frozen

from safemem.block import Block
from safemem.block_seq import BlockSeq, copy_seq
from safemem.errors import TransferError, add_transferred, error, would_block
from safemem.fork import in_use_lock
from safemem.protocols import Reader
from safemem.tls.aead import engine
from safemem.tls.crypto_info import CryptoInfo
from safemem.tls.deframer import BorrowedRecord, Deframer
from safemem.tls.errors import EKEYEXPIRED, Alert, TLSError
from safemem.tls.reader import BUFFER_SIZE
from safemem.tls.record import MAX_BODY, TAG, ContentType
from safemem.tls.record_layer import RecordLayer
from safemem.tls.transport import receiver

_DATA = int(ContentType.APPLICATION_DATA)
_KEY_UPDATE = 24
_ERRNOS = {Alert.RECORD_OVERFLOW: errno.EMSGSIZE, Alert.PROTOCOL_VERSION: errno.EINVAL}
_VERSION = b"\x03\x03"
_ERRQUEUE = 0x2000  # MSG_ERRQUEUE
_INTERRUPTED = error(errno.ECONNABORTED, "a read was interrupted, and the place in the stream is lost")


@frozen
class Received:
    """What one recvmsg gives: ``count`` bytes of records of one type; ``end_of_record`` is MSG_EOR.

    As in Linux, MSG_EOR says that a record ended somewhere in these bytes, not that the last one did.
    """

    count: int
    record_type: int
    end_of_record: bool


@define
class _Record:
    """A decrypted record. ``begin`` is the place of its first byte among all bytes ever read."""

    kind: int
    begin: int
    content: memoryview


class KernelTLSReader:
    """recvmsg(2) on a socket with TLS_RX. One call at a time.

    ``_read``, how many bytes have been read in all, is the one position: a record's own is relative to it, so that an
    interrupt at any point finds both right.
    """

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
        self._deframer = Deframer(buffer_size, received, body_length=_body_length)
        self._lock = in_use_lock("another read is under way")
        self._rx_list: deque[_Record] = deque()  # decrypted, and not read to their end
        self._read = 0
        self._moved = 0  # how much of that by this call
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
        with self._lock:
            self._layer.forget()
            self._deframer.wipe()
            for record in self._rx_list:
                record.content[:] = bytes(len(record.content))
            self._rx_list.clear()
            self._error = error(errno.EBADF, "the socket's TLS is closed")

    def readable(self) -> bool:
        """Whether a poll of the guest's must say so without looking at the transport: something is buffered."""
        found = self._rx_list or self._error or self._held or self._ended
        return bool(found or (not self._expired and self._deframer.whole_record()))

    def recvmsg(self, dsts: BlockSeq, has_control: bool = True, flags: int = 0) -> Received:
        """Fill dsts; an empty sequence is 0 at once. ``has_control`` is whether the guest gave room for control data,
        the record's type.

        ``flags`` are recv(2)'s: MSG_PEEK leaves the records for the next call, MSG_WAITALL receives until dsts is full
        or an error, the end or another type comes; others do nothing, and whether to wait is the source's to know.

        A count of 0 with a ``record_type`` of 0 is the end of the transport; with another, records without content.

        Raises OSError as Linux: EIO for a record that is no data where there is no room for its type (it stays);
        EKEYEXPIRED after a key update; EMSGSIZE, EBADMSG, EINVAL for a record that is wrong, from then on always
        (Linux reports a wrong header once, and then waits for the transport to end); what the transport raises,
        BlockingIOError too; HostFaultError if dsts faults, and then nothing is lost. After some bytes the error is
        the next call's.
        """
        if flags & _ERRQUEUE:
            raise would_block()  # which is empty
        if not dsts:
            return Received(0, 0, False)
        dsts.check_writable("dsts")
        peek, wait_all = bool(flags & socket.MSG_PEEK), bool(flags & socket.MSG_WAITALL)
        moved = 0
        try:
            with self._lock:
                self._moved = 0
                try:
                    found = self._recvmsg(dsts, has_control, peek, wait_all)
                finally:
                    moved = self._moved
            return found
        except BaseException as exc:
            if not peek:
                exc.transferred = moved  # type: ignore[attr-defined]  # no call: another interrupt would lose the count
            raise

    def _recvmsg(self, dsts: BlockSeq, has_control: bool, peek: bool, wait_all: bool) -> Received:
        target = dsts.num_bytes if wait_all else 1
        listed, index = len(self._rx_list), 0
        done = kind = 0
        whole = False
        try:
            while True:  # no condition: its jump back would have no handler (CPython 3.13)
                if not dsts:
                    break
                if index == len(self._rx_list) and not self._decrypt(done, target):
                    if not done:
                        self._raise_reason()
                    break
                record = self._rx_list[index]
                if kind and kind != record.kind:
                    break
                if record.kind != _DATA and not has_control:
                    raise error(errno.EIO, f"a record of type {record.kind}, and no control data to tell its type in")
                kind = record.kind
                n = self._copy(dsts, record, peek)
                done += n
                dsts = dsts.drop_first(n)
                if peek:
                    whole |= index < listed  # Linux's MSG_EOR: of what had been decrypted before
                    index += 1
                elif self._read == record.begin + len(record.content):
                    self._rx_list.popleft()
                    whole = True
                if kind != _DATA:
                    break
            return Received(done, kind, whole)
        except TransferError as exc:
            add_transferred(exc, done)  # of a peek; else the caller knows better
            raise

    def _copy(self, dsts: BlockSeq, record: _Record, peek: bool) -> int:
        """Deliver what is left of a record, as far as it fits, and return how much that was."""
        source = BlockSeq.of(Block(record.content[max(self._read - record.begin, 0) :]))
        try:
            n = copy_seq(dsts, source)
        except TransferError as exc:
            if not peek:
                self._read, self._moved = self._read + exc.transferred, self._moved + exc.transferred
            raise
        if not peek:
            self._read, self._moved = self._read + n, self._moved + n
        return n

    def _decrypt(self, done: int, target: int) -> bool:
        """Put the next record on the list; False if there is none, and the reason is kept. Receives up to a target."""
        while self._error is None and not self._expired and not self._ended:
            self._error = _INTERRUPTED  # until all that changes together has changed
            try:
                record = self._deframer.pop()
                if record is not None:
                    with record:
                        self._open(record)
                self._error = None
            except TLSError as exc:
                self._error = error(_ERRNOS.get(exc.alert, errno.EBADMSG), exc.reason)
                self._layer.forget()
                break
            if record is not None:
                return True
            if done >= target or self._held is not None:
                break
            try:
                self._receive()
            except BlockingIOError:
                if not done:
                    raise
                break
        return False

    def _receive(self) -> None:
        """Receive once. Errors of the transport are held, for when all before them has been read."""
        deframer = self._deframer
        for record in reversed(self._rx_list):
            if record.content.obj is not deframer.memory:
                break
            record.content = memoryview(bytearray(record.content))
        deframer.discard()
        self._error = _INTERRUPTED  # until what came is counted; an interrupt in the receive itself comes as its error
        n, error = self._source.move(deframer.space())
        try:
            deframer.received(n)
            self._ended = not n and error is None
            blocked = isinstance(error, BlockingIOError)
            if isinstance(error, OSError) and not blocked:
                self._held, error = error.with_traceback(None), None
            self._error = None
            if error is not None and not (n and blocked):
                raise error
        finally:
            del error

    def _open(self, record: BorrowedRecord) -> None:
        """Decrypt a record and put it on the list. Raises TLSError."""
        record.header = bytes([_DATA]) + record.header[1:]  # tls_make_aad: whatever type is on the wire
        kind, content = self._layer.decrypt(record)
        begin = self._read
        if self._rx_list:
            begin = self._rx_list[-1].begin + len(self._rx_list[-1].content)
        at, n = record.at, len(content)
        self._rx_list.append(_Record(kind, begin, self._deframer.buffer[at : at + n]))
        if kind == ContentType.HANDSHAKE and content[:1] == bytes([_KEY_UPDATE]):
            self._expired = True

    def _raise_reason(self) -> None:
        """There is nothing to read, and this is why: nothing is raised at the end of the transport."""
        if self._error is not None:
            raise copy_object(self._error)  # each raise adds to an error's traceback
        if self._expired:
            raise error(EKEYEXPIRED, "the peer has changed its keys: set TLS_RX")
        if self._held is not None:
            held, self._held = self._held, None
            try:
                raise held
            finally:
                del held


def _body_length(header: bytes) -> int:
    """The length of a record's body, or Linux's error: the record's type is not looked at (tls_rx_msg_size)."""
    length = int.from_bytes(header[3:], "big")
    if length > MAX_BODY:
        raise TLSError(Alert.RECORD_OVERFLOW, f"a record of {length} bytes")
    if length < TAG:
        raise TLSError(Alert.BAD_RECORD_MAC, f"a record of {length} bytes, too short for its tag")
    if header[1:3] != _VERSION:
        raise TLSError(Alert.PROTOCOL_VERSION, f"a record of version {header[1:3].hex()}")
    return length
