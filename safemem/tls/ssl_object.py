"""SSLObjectReader and SSLObjectWriter: the contract of Reader and Writer over the standard library's own TLS.

They need no keys and no engine, and work with every version of TLS that the ssl module speaks. Ciphertext is received
in bulk, many records a call, and OpenSSL decrypts it straight into the caller's blocks.

Source: ssl.SSLObject, ssl.MemoryBIO.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from safemem.block import Block, copy
from safemem.block_seq import BlockSeq
from safemem.errors import TransferError, add_transferred
from safemem.protocols import Reader
from safemem.tls.errors import TruncationError
from safemem.tls.ordered_reader import OrderedReader
from safemem.tls.record_boundaries import RecordBoundaries
from safemem.tls.ssl_object_writer import SSLObjectWriter
from safemem.tls.ssl_session import BULK, SSLSession, last_flight, wrap_memory

if TYPE_CHECKING:
    import socket

_RECORD = 1 << 14


class SSLObjectReader(OrderedReader):
    """A Reader over an SSLObject: data first and its error at the next call, 0 at the peer's close_notify.

    Reads raise ssl.SSLError, TruncationError.
    """

    def __init__(
        self, source: socket.socket | int | Reader, session: SSLSession, *, allow_truncation: bool = False
    ) -> None:
        """The session's ``incoming`` holds whole records. Answers that what is read may call for go to its sink.

        With ``allow_truncation`` the transport may end between two records without close_notify.
        """
        super().__init__(source, session.reading)
        self._session = session
        self._allow_truncation = allow_truncation
        self._memory = bytearray(BULK)
        self._buffer = memoryview(self._memory)
        self._boundaries = RecordBoundaries()

    @property
    def eof(self) -> bool:
        """Whether all has been read up to the peer's close_notify, or to a truncation that is allowed."""
        return self._eof

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """The SSLObject, for its cipher(), getpeercert(), selected_alpn_protocol()."""
        return self._session.tls

    def pending(self) -> int:
        """How many decrypted bytes wait."""
        with self._session.lock:
            return self._session.unread()

    def has_pending(self) -> bool:
        """Whether a read would have something to tell without a receive: do not wait for the transport then."""
        with self._session.lock:
            whole_record = self._session.incoming.pending > self._boundaries.unfinished
            known = self._error or self._held or self._eof or self._call.torn
            return bool(known or self._session.unread() or whole_record)

    def _deliver(self, dsts: BlockSeq) -> int:
        """Fill dsts from what has been received. An error, or the end, is kept for when it is all there is."""
        done = 0
        try:
            for piece in dsts.iter_pieces():
                n = self._read_into(piece) if isinstance(piece, memoryview) else self._fill(piece)
                done += n
                if n < len(piece):
                    break
        except TransferError as exc:
            add_transferred(exc, done)
            raise
        return done

    def _fill(self, block: Block) -> int:
        """Fill a block that may fault, by a buffer."""
        size = len(block)
        done = 0
        while done < size:
            target = self._buffer[: min(_RECORD, size - done)]
            n = self._read_into(target)
            try:
                copy(block.drop_first(done), target[:n])
            except TransferError as exc:
                self._session.early = bytes(target[exc.transferred : n]) + self._session.early
                add_transferred(exc, done)
                raise
            done += n
            if n < len(target):
                break
        return done

    def _read_into(self, view: memoryview) -> int:
        """Fill a view as far as there is something. Notes the end, and an error."""
        done = 0
        size = len(view)
        session = self._session
        read: Any = session.tls.read  # typeshed knows no count
        try:
            with session.lock:
                if session.early:
                    done = session.take_early(view)
                if self._error is not None or self._eof:
                    return done
                while True:  # no condition: its jump back would have no handler (CPython 3.13)
                    if done == size:
                        break
                    if not (n := read(size, view[done:])):  # the view says how much
                        self._eof = True
                        break
                    done += n
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._eof = True
        except ssl.SSLError as exc:
            self._error = TruncationError(True) if isinstance(exc, ssl.SSLEOFError) else exc.with_traceback(None)
            session.answer()  # the alert
        return done

    def _receive(self) -> None:
        self._session.answer()
        if self._bring(self._buffer, self._decrypt):
            return
        if self._allow_truncation and not self._boundaries.inside:
            self._eof = True
        else:
            self._error = TruncationError(self._boundaries.inside)

    def handshake(self) -> None:
        """Do the handshake, of any version of TLS, over a transport that waits.

        Raises ssl.SSLError, after telling the peer; TruncationError if it went away.
        """
        while True:
            try:
                self._session.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._session.flush()
            except ssl.SSLError:
                with suppress(OSError):  # the peer may be gone; this is why it failed
                    self._session.flush()
                raise
            if not self._bring(self._buffer, self._decrypt):
                raise TruncationError(self._boundaries.inside)
        with last_flight(self._session.tls):
            self._session.flush()

    def _decrypt(self, n: int) -> None:
        """Give the SSLObject what has come."""
        self._boundaries.follow(self._memory, n)
        with self._session.lock:
            self._session.incoming.write(self._buffer[:n])


def ssl_object_pair(
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    server_hostname: str | None = None,
    server_side: bool = False,
    session: ssl.SSLSession | None = None,
    allow_truncation: bool = False,
) -> tuple[SSLObjectReader, SSLObjectWriter]:
    """Do a handshake, of any version of TLS, on a connected socket that waits, and return who reads and writes then.

    ``context`` and what goes with it are those of ``SSLContext.wrap_socket``. The session to resume later is
    ``reader.ssl_object.session``, once a ticket has been read.

    Raises ssl.SSLError, after telling the peer; TruncationError if it went away; ValueError for a socket that does not
    wait, or if the context checks host names and none is given.
    """
    if sock.gettimeout() == 0:
        raise ValueError("sock must wait, or have a timeout, until the handshake is done")
    made = SSLSession(sock, *wrap_memory(context, server_hostname, server_side, session))
    reader = SSLObjectReader(sock, made, allow_truncation=allow_truncation)
    reader.handshake()
    return reader, SSLObjectWriter(made)
