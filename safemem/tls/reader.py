"""TLSReader: the application data of a TLS 1.3 connection, as a Reader.

One receive brings many records into a private buffer. Each is decrypted once: in place and copied to the caller's
blocks (``release="verified"``), or straight into them where it fits (``release="direct"``). What does not fit waits in
the buffer for the next call. Ciphertext is never received into user memory, and headers are read once, from private
memory: the guest cannot change what has been checked.

Source: RFC 8446 sections 5 and 6; the order of work is Zig's reader without its bugs, the buffer rustls'.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

from safemem.block import Piece, copy
from safemem.block_seq import BlockSeq
from safemem.errors import TransferError, add_transferred
from safemem.protocols import Reader
from safemem.tls.aead import engine
from safemem.tls.deframer import Deframer
from safemem.tls.errors import Alert, KeyExpiredError, ReceivedAlertError, TLSError, TruncationError
from safemem.tls.keys import Keys
from safemem.tls.one_call import OneCall
from safemem.tls.ordered_reader import OrderedReader
from safemem.tls.post_handshake import CloseNotify, KeyUpdate, NewSessionTicket, PostHandshake
from safemem.tls.record import HEADER, MAX_RECORD, TAG, ContentType
from safemem.tls.record_layer import RecordLayer

if TYPE_CHECKING:
    import socket

BUFFER_SIZE = (1 << 18) + MAX_RECORD
"""The default size of the private buffer: 256 KiB and a record."""

_NOWHERE = memoryview(bytearray(1))[:0]
_DATA = int(ContentType.APPLICATION_DATA)
_TYPE = 1  # the byte behind the content that tells its type


def check_options(release: str, buffer_size: int) -> None:
    """Raise ValueError for those that a TLSReader does not take."""
    if release not in ("verified", "direct"):
        raise ValueError(f"release must be 'verified' or 'direct', not {release!r}")
    if buffer_size < MAX_RECORD:
        raise ValueError(f"buffer_size must be at least {MAX_RECORD}, one record, not {buffer_size}")


class TLSReader(OrderedReader):
    """A Reader of what the peer sends, from the record that ``keys`` count from on.

    Data comes first and its error at the next call; errors are final, but for would-block, the transport's own and
    KeyExpiredError. 0 is the end: the peer's close_notify. One call at a time: a second one meanwhile, from another
    thread or a callback, is a RuntimeError. Reads raise TLSError, ReceivedAlertError, TruncationError, KeyExpiredError.
    """

    def __init__(
        self,
        source: socket.socket | int | Reader,
        keys: Keys,
        *,
        received: bytes = b"",
        release: Literal["verified", "direct"] = "verified",
        server_side: bool = False,
        allow_truncation: bool = False,
        on_ticket: Callable[[NewSessionTicket], object] | None = None,
        on_key_update: Callable[[bool], object] | None = None,
        buffer_size: int = BUFFER_SIZE,
        engine_name: str | None = None,
    ) -> None:
        """Read ``received``, ciphertext that has been received already, and then what the source gives.

        ``release="direct"`` decrypts into the caller's blocks where it can: user memory sees bytes that are not yet
        authenticated, and inside the blocks more than ``transferred`` bytes may be changed, to zeros. A failed record
        leaves zeros; so does one that is no plain data (tickets, key updates, padding), which is decrypted again in
        private memory. ``server_side`` is whether we are the server. With ``allow_truncation`` the transport may end
        between two records without close_notify. ``on_ticket`` gets session tickets; ``on_key_update`` is called when
        the peer has changed its keys, with whether we must change ours before we send again.

        Raises ValueError if a parameter is out of its range, TypeError if the source is none, EngineError.
        """
        check_options(release, buffer_size)
        super().__init__(source, OneCall("read"))
        self._engine = engine(engine_name)
        self._deframer = Deframer(buffer_size, received)
        self._direct = release == "direct"
        self._allow_truncation = allow_truncation
        self._on_ticket = on_ticket
        self._on_key_update = on_key_update
        self._post = PostHandshake(server_side)
        # Where in the buffer plaintext lies that has not been delivered.
        self._plain = 0
        self._plain_end = 0
        # The record behind it that was opened, is no plain data, and has not been looked at: see RecordLayer.run.
        self._odd: tuple[int, bool] | None = None
        self._layer = RecordLayer(self._engine, self._deframer, keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Wipe the keys and the buffer. The transport stays as it is. Later reads raise ValueError.

        Raises RuntimeError while a read is under way, be it that of the callback which calls this.
        """
        with self._call.alone:
            self._closed = True
            self._layer.forget()
            self._deframer.wipe()
            self._plain = self._plain_end = 0
            self._odd = None

    @property
    def eof(self) -> bool:
        """Whether all has been read up to the peer's close_notify, or to a truncation that is allowed."""
        return self._eof and self._plain == self._plain_end

    @property
    def engine_name(self) -> str:
        """The AEAD engine that is used."""
        return self._engine.name

    def pending(self) -> int:
        """How many decrypted bytes wait to be read."""
        return self._plain_end - self._plain

    def has_pending(self) -> bool:
        """Whether a read would have something to tell without a receive: do not wait for the transport then."""
        known = self._odd or self._error or self._held or self._eof or self._call.torn
        return bool(known or self.pending() or self._deframer.whole_record())

    def rekey(self, keys: Keys) -> None:
        """Give the peer's new keys, after a KeyExpiredError. Raises ValueError if they were not asked for, or if it is
        closed."""
        if self._closed:
            raise ValueError("the TLSReader is closed")
        if not isinstance(self._error, KeyExpiredError):
            raise ValueError("the peer's keys have not changed")
        self._layer.use(keys)
        self._error = None

    def _receive(self) -> None:
        deframer = self._deframer
        deframer.discard()
        if self._bring(deframer.space(), deframer.received):
            return
        if self._allow_truncation and not deframer.buffered and not self._post.joining:
            self._eof = True
        else:
            self._fail(TruncationError(deframer.buffered > 0))

    def _deliver(self, dsts: BlockSeq) -> int:
        """Fill dsts from the buffer: what waits there, then record by record. An error stops it and is kept."""
        done = 0
        wanted, buffer = dsts.num_bytes, self._deframer.buffer
        self._layer.whole = False
        run = self._layer.run_direct if self._direct else self._layer.run
        try:
            for piece in dsts.iter_pieces():
                at, size = 0, len(piece)
                start = self._plain
                end = start + size
                if end <= self._plain_end and type(piece) is memoryview:  # 0.6 us a page less than by what follows
                    piece[:] = buffer[start:end]
                    self._plain = end
                    done += size
                    continue
                view = piece if isinstance(piece, memoryview) else _NOWHERE
                while at < size:
                    odd = 0
                    if self._plain < self._plain_end:
                        n = self._copy_plain(piece, at)
                    elif self._odd is not None:
                        n, (odd, authentic), self._odd = 0, self._odd, None
                    elif self._error is not None or self._eof:
                        return done
                    elif size - at < self._deframer.length and not self._post.waiting:
                        if not self._run_ahead(wanted - done):
                            return done
                        continue
                    else:
                        # A record goes straight there, unless it must be looked at as its like may be too many by now.
                        room = _NOWHERE if self._post.waiting else view[at:]
                        n, odd, authentic = run(room)
                        if not n and not odd:
                            return done
                    at += n
                    done += n
                    if odd:
                        self._take(odd, authentic)
        except (TLSError, ReceivedAlertError) as exc:
            self._fail(exc)
            done += getattr(exc, "transferred", 0)
            exc.transferred = 0
        except BaseException as exc:
            add_transferred(exc, done)
            if self._layer.whole:
                self._call.torn = False
            raise
        return done

    def _run_ahead(self, wanted: int) -> bool:
        """Open as many records as are wanted where they lie, and join their data there; False if none is whole.

        So it is for pieces that are smaller than a record: opening records one by one takes 1 us a record longer.
        """
        start = self._deframer.start + HEADER
        n = 0
        try:
            n, odd, authentic = self._layer.run(self._deframer.buffer[start : start + wanted])
            self._odd = (odd, authentic) if odd else None
        except TLSError as exc:
            n, exc.transferred = exc.transferred, 0
            self._fail(exc)
            return True
        except BaseException as exc:
            whole, self._layer.whole = self._layer.whole, False  # until n is known, whatever interrupts this
            n = getattr(exc, "transferred", 0)
            exc.transferred, self._layer.whole = 0, whole  # type: ignore[attr-defined]  # they wait
            raise
        finally:
            self._plain, self._plain_end = start, start + n
        return n > 0 or self._odd is not None

    def _copy_plain(self, piece: Piece, at: int) -> int:
        """Deliver what waits to the piece, ``at`` bytes of which are filled, as far as it fits."""
        start = self._plain
        n = min(len(piece) - at, self._plain_end - start)
        data = self._deframer.buffer[start : start + n]
        if isinstance(piece, memoryview):
            piece[at : at + n] = data
        else:
            try:
                copy(piece.drop_first(at), data)
            except OSError as exc:
                self._plain = start + getattr(exc, "transferred", 0)
                raise
        self._plain = start + n
        return n

    def _take(self, at: int, authentic: bool) -> None:
        """Look at the record that was opened in the buffer last: content, type, padding of zeros."""
        length = self._deframer.length
        buffer = self._deframer.buffer
        if not authentic:
            buffer[at : at + length] = bytes(length)
            raise TLSError(Alert.BAD_RECORD_MAC, f"record {self._layer.seq - 1} is not authentic")
        length -= TAG
        end = at + length
        kind = buffer[end - 1] if length else 0
        if not kind:
            inner = bytes(buffer[at:end]).rstrip(b"\0")
            if not inner:
                raise TLSError(Alert.UNEXPECTED_MESSAGE, "a record without a type")
            end = at + len(inner)
            kind = inner[-1]
        end -= _TYPE
        if kind == _DATA:
            if end == at:
                self._post.empty_data()
            else:
                self._post.data()
                self._plain, self._plain_end = at, end
            return
        events = list(self._post.events(kind, bytes(buffer[at:end])))
        calls: list[Callable[[], object]] = []
        for event in events:
            if isinstance(event, CloseNotify):
                self._eof = True
                self._layer.forget()
            elif isinstance(event, KeyUpdate):
                if not self._layer.update():
                    self._error = KeyExpiredError()
                if self._on_key_update is not None:
                    calls.append(partial(self._on_key_update, event.update_requested))
            elif self._on_ticket is not None:
                calls.append(partial(self._on_ticket, event))
        if calls:
            self._call.torn = False
            _call_all(calls)
            self._call.torn = True

    def _fail(self, error: TransferError) -> None:
        self._error = error.with_traceback(None)
        self._layer.forget()


def _call_all(calls: list[Callable[[], object]]) -> None:
    """Make all calls, whichever of them raise, and raise what the first did."""
    with ExitStack() as stack:
        for call in reversed(calls):
            stack.callback(call)
