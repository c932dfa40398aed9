"""TLSWriter: bytes of user memory as the records of a TLS 1.3 connection, as a Writer.

Records are encrypted straight from the caller's blocks into a private send buffer, many of them, and sent by one call.
What the transport does not take stays there, encrypted once.

Source: RFC 8446 sections 4.6.3, 5 and 6.1.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from safemem.block import Piece, copy, part
from safemem.block_seq import BlockSeq
from safemem.errors import TransferError, error, would_block
from safemem.protocols import Writer
from safemem.tls.aead import engine
from safemem.tls.engines.engine import Sealer
from safemem.tls.errors import Alert
from safemem.tls.keys import Keys
from safemem.tls.outbox import SendBuffer
from safemem.tls.record import HEADER, MAX_CONTENT, MAX_SEQ, TAG, ContentType

if TYPE_CHECKING:
    import socket

_OVERHEAD = HEADER + 1 + TAG
_CONTROL = 5  # the longest message that is no data: a key update
_EXPECTED = (TransferError, OverflowError, ValueError)  # srcs faults, keys are used up, none are known
_AEAD_LIMIT = 1 << 24
"""How many records one AES-GCM key may encrypt, below the 2**24.5 of RFC 8446 section 5.5."""

_NOTHING = memoryview(b"")

BUFFER_SIZE = 1 << 18
"""The default size of the send buffer, in bytes."""


class TLSWriter:
    """A Writer whose bytes the peer reads, from the record that ``keys`` count from on.

    A call counts what has been encrypted. If the transport takes only part of that, the rest waits, and goes first in
    the next call or in :meth:`flush`; a call that finds the transport blocked and the buffer full raises
    BlockingIOError, and has taken nothing. One call at a time: a second one meanwhile is a RuntimeError.
    """

    def __init__(
        self,
        sink: socket.socket | int | Writer,
        keys: Keys,
        *,
        record_size: int = MAX_CONTENT,
        pad_to: int = 1,
        buffer_size: int = BUFFER_SIZE,
        engine_name: str | None = None,
    ) -> None:
        """Records carry up to ``record_size`` bytes, and are padded so that content and padding are a multiple of
        ``pad_to``, or all that a record holds. Raises ValueError if a parameter is out of its range, TypeError if the
        sink is none, EngineError.
        """
        if not 1 <= record_size <= MAX_CONTENT:
            raise ValueError(f"record_size must lie in 1 to {MAX_CONTENT}, not {record_size}")
        if not 1 <= pad_to <= MAX_CONTENT:
            raise ValueError(f"pad_to must lie in 1 to {MAX_CONTENT}, not {pad_to}")
        largest = MAX_CONTENT + _OVERHEAD
        if buffer_size < largest:
            raise ValueError(f"buffer_size must be at least {largest}, one record, not {buffer_size}")
        # Beside data its padding, a key update and an alert must always fit.
        self._out = SendBuffer(sink, buffer_size + pad_to + 2 * (_OVERHEAD + _CONTROL + pad_to))
        self._capacity = buffer_size
        self._engine = engine(engine_name)
        self._record_size = record_size
        self._pad_to = pad_to
        self._call = self._out.call
        self._update_owed = False
        self._ended = False
        self._closed = False
        self._sealer: Sealer
        self._seq = 0
        # How many bytes of data this call has encrypted. It moves with the record number and the buffer's end, so that
        # the count is right wherever an interrupt cuts the call.
        self._taken = 0
        self._use(keys)

    def _use(self, keys: Keys) -> None:
        record_keys = keys.record_keys()
        self._sealer = self._engine.sealer(record_keys, self._out.memory)
        self._own = self._sealer.source(self._out.memory)
        self._keys: Keys | None = keys
        self._seq = record_keys.seq

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Wipe the keys and the buffer; what was not sent is lost. Sends nothing: see :meth:`close_notify`.

        Raises RuntimeError while a write is under way.
        """
        if self._closed:
            return
        with self._call.alone:
            self._closed = True
            self._sealer.close()
            self._keys = None
            self._out.wipe()

    @property
    def engine_name(self) -> str:
        """The AEAD engine that is used."""
        return self._engine.name

    def pending(self) -> int:
        """How many bytes of ciphertext wait for the transport."""
        return len(self._out)

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Encrypt and send; returns how many bytes of srcs have been encrypted.

        Raises BlockingIOError if what waits could not be sent, and nothing was taken; the transport's other errors,
        those after some bytes at the next call; HostFaultError if srcs faults, with what came before it sent;
        BrokenPipeError after close_notify; ValueError if the peer has asked for new keys and there are only RecordKeys,
        until :meth:`rekey` gives some.
        """
        if not srcs:
            return 0
        done = 0
        try:
            with self._call.alone:
                self._check_open()
                self._out.flush()
                self._taken = 0
                try:
                    self._write(srcs)
                finally:
                    done = self._taken
            return done
        except BaseException as exc:
            exc.transferred = done  # type: ignore[attr-defined]  # no call: another interrupt would lose the count
            raise

    def _write(self, srcs: BlockSeq) -> None:
        """Encrypt and send; ``_taken`` says how much."""
        while srcs:
            before = self._taken
            try:
                self._encrypt(srcs)
            except _EXPECTED:  # what came before goes on its way
                self._out.push_or_hold()
                raise
            # From where it is: starting anew would walk over all blocks each time.
            srcs = srcs.drop_first(self._taken - before)
            sent = self._out.push_or_hold() if self._taken else self._out.push()
            if not sent:
                if not self._taken:
                    raise would_block()
                break

    def write_record(self, kind: int, content: bytes) -> None:
        """Send one record of another type, as kernel TLS does by TLS_SET_RECORD_TYPE. What it means is the caller's.

        Raises ValueError if the content does not fit a record, BlockingIOError if what waits could not be sent, and
        nothing was taken.
        """
        if len(content) > MAX_CONTENT or not 0 < kind < 256:
            raise ValueError(f"a record of type {kind} and {len(content)} bytes cannot be")
        with self._call.alone:
            self._check_open()
            self._out.flush()
            self._whole(partial(self._put, kind, content))
            self._out.push_or_hold()

    def flush(self) -> None:
        """Send what waits. Raises BlockingIOError if not all of it can go now."""
        with self._call.alone:
            self._check()
            self._out.flush()

    def answer_key_update(self) -> None:
        """The peer wants new keys of us: the next data comes under them. Asking several times is asking once."""
        self._update_owed = True

    def update_keys(self, request_peer: bool = False) -> None:
        """Go on with new keys, and with ``request_peer`` have the peer do so too.

        Raises ValueError if there is only a key and no secret that the next would follow from; BlockingIOError if
        what waits could not be sent, and nothing was done.
        """
        with self._call.alone:
            self._check_open()
            self._out.flush()
            self._whole(partial(self._update, request_peer))
            self._out.push_or_hold()

    def rekey(self, keys: Keys) -> None:
        """Go on with keys that were given, after a key update that the caller has sent by :meth:`write_record`.

        As kernel TLS's TLS_TX set anew. What the peer has asked for by its own key update is answered thereby.
        """
        with self._call.alone:
            self._check_open()
            self._whole(partial(self._rekey, keys))

    def _rekey(self, keys: Keys) -> None:
        self._sealer.close()
        self._use(keys)
        self._update_owed = False

    def close_notify(self) -> None:
        """Tell the peer that nothing more comes, and send what waits. A second call only sends what waits.

        Raises BlockingIOError if not all of it can go now: call :meth:`flush` later.
        """
        with self._call.alone:
            self._check()
            if not self._ended:
                self._whole(self._end)
            self._out.flush()

    def _end(self) -> None:
        self._put(ContentType.ALERT, bytes([1, Alert.CLOSE_NOTIFY]))
        self._ended = True

    def _whole(self, step: Callable[[], object]) -> None:
        """Take a step that must not end in its middle: if an interrupt cuts it, nothing can be written any more."""
        self._call.torn = True
        try:
            step()
        except _EXPECTED:
            self._call.torn = False
            raise
        self._call.torn = False

    def _check(self) -> None:
        """Raise StreamInterruptedError if a call was torn, ValueError if it is closed. Be alone."""
        self._call.check()
        if self._closed:
            raise ValueError("the TLSWriter is closed")

    def _check_open(self) -> None:
        self._check()
        if self._ended:
            raise error(errno.EPIPE, "close_notify has been sent")

    def _encrypt(self, srcs: BlockSeq) -> None:
        """Encrypt as much as the buffer has room for."""
        left = srcs.num_bytes
        pieces = srcs.iter_pieces()
        piece: Piece = _NOTHING  # what is left of the one that is being encrypted
        while left:
            self._make_way()
            wanted = min(self._record_size, left)
            n = min(wanted, self._capacity - self._out.end - _OVERHEAD)
            if n < wanted and self._out.end:
                break
            piece = piece or next(pieces)
            size = len(piece)
            if size < n or not isinstance(piece, memoryview):
                piece = self._gather(piece, pieces, n)
            else:
                source = self._sealer.source(piece)
                if n < self._record_size:
                    self._seal(ContentType.APPLICATION_DATA, source, 0, n)
                else:
                    n = self._seal_run(source, size)
                piece = piece[n:]
            left -= n

    def _gather(self, piece: Piece, pieces: Iterator[Piece], n: int) -> Piece:
        """Append a record with n bytes that lie in pieces, or may fault: they are gathered where they are encrypted.

        Returns what is left of the last piece.
        """
        memory = self._out.memory
        place = at = self._out.end + HEADER
        end = place + n
        try:
            while True:
                size = min(len(piece), end - at)
                head = piece if size == len(piece) else part(piece, 0, size)
                if type(head) is memoryview:
                    memory[at : at + size] = head  # a fifth of the time of copy()
                else:
                    copy(memory[at : at + size], head)
                at += size
                if at == end:
                    break
                piece = next(pieces)
        except TransferError as exc:
            if n := at - place + exc.transferred:
                self._seal(ContentType.APPLICATION_DATA, self._own, place, n)
            raise
        self._seal(ContentType.APPLICATION_DATA, self._own, place, n)
        return part(piece, size, len(piece) - size)

    def _make_way(self) -> None:
        """Before data: the key update that the peer waits for, or that the cipher needs by now."""
        if self._update_owed or (self._seq >= _AEAD_LIMIT and self._keys is not None and self._keys.next()):
            self._whole(partial(self._update, request_peer=False))

    def _update(self, request_peer: bool) -> None:
        following = self._keys.next() if self._keys is not None else None
        if following is None:
            raise ValueError("these are RecordKeys, from which no new keys follow: give a TrafficSecret")
        self._put(ContentType.HANDSHAKE, bytes([24, 0, 0, 1, request_peer]))
        self._sealer.close()
        self._use(following)
        self._update_owed = False

    def _seal_run(self, source: Any, size: int) -> int:
        """Append full records out of one block of a size, at least one, as many as fit; returns their bytes.

        A record costs 1 us less so than by _seal.
        """
        n = self._record_size
        tail = 1 + min(-n % self._pad_to, MAX_CONTENT - n)
        length = n + tail + TAG
        limit = max(_AEAD_LIMIT - self._seq, 1)
        count = max(1, min(size // n, (self._capacity - self._out.end) // (HEADER + length), limit))
        count = min(count, MAX_SEQ + 1 - self._seq)
        if count < 1:
            raise OverflowError("the sequence numbers are used up")
        header = b"\x17\x03\x03" + length.to_bytes(2, "big")
        behind = bytes([ContentType.APPLICATION_DATA]) + bytes(tail - 1)
        buffer, seal = self._out.memory, self._sealer.seal
        seq, end, offset, taken = self._seq, self._out.end, 0, self._taken
        try:
            for _ in range(count):
                start = end + HEADER
                buffer[end:start] = header
                buffer[start + n : start + n + tail] = behind
                seal(seq, header, start, n, tail, source, offset)
                # At once: no handler finds the one without the other.
                seq, end, offset = seq + 1, start + length, offset + n
        finally:  # what was sealed and not counted is sealed again, and was never sent
            self._seq, self._out.end, self._taken = seq, end, taken + offset
        return offset

    def _put(self, kind: int, content: bytes) -> None:
        place = self._out.end + HEADER
        self._out.memory[place : place + len(content)] = content
        self._seal(kind, self._own, place, len(content))

    def _seal(self, kind: int, source: Any, offset: int, n: int) -> None:
        """Append a record with n bytes of a source."""
        if self._seq > MAX_SEQ:
            raise OverflowError("the sequence numbers are used up")
        at, buffer = self._out.end, self._out.memory
        padding = min(-n % self._pad_to, MAX_CONTENT - n)
        tail = 1 + padding
        start = at + HEADER
        end = start + n + tail
        header = b"\x17\x03\x03" + (n + tail + TAG).to_bytes(2, "big")
        buffer[at:start] = header
        buffer[start + n] = kind
        if padding:
            buffer[start + n + 1 : end] = bytes(padding)
        taken = self._taken + (n if kind == ContentType.APPLICATION_DATA else 0)
        try:
            self._sealer.seal(self._seq, header, start, n, tail, source, offset)
        except BaseException:
            self._call.torn = False  # nothing has changed
            raise
        self._seq, self._out.end, self._taken = self._seq + 1, end + TAG, taken
