"""SSLObjectWriter: user memory to the peer of the standard library's own TLS. See :mod:`safemem.tls.ssl_object`."""

from __future__ import annotations

import errno
import ssl
from contextlib import suppress

from safemem.block import Block, Piece
from safemem.block_seq import BlockSeq, copy_seq
from safemem.errors import TransferError, add_transferred, error
from safemem.tls.ssl_session import BULK, SSLSession


class SSLObjectWriter:
    """A Writer over an SSLObject. A call counts what has been encrypted; what the transport does not take waits."""

    def __init__(self, session: SSLSession) -> None:
        self._session = session
        self._ended = False

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Raises BlockingIOError if what waits could not be sent; ssl.SSLError; the transport's errors.

        Those after some bytes come at the next call. HostFaultError if srcs faults, with what came before it sent;
        BrokenPipeError after close_notify.
        """
        if not srcs:
            return 0
        done = 0
        call = self._session.call
        try:
            with self._session.exclusive():
                if self._ended:
                    raise error(errno.EPIPE, "close_notify has been sent")
                self._session.flush()
                done = self._write(srcs)
                call.torn = False
            return done
        except BaseException as exc:
            if done:
                exc.transferred = done  # type: ignore[attr-defined]
            raise

    def pending(self) -> int:
        """How many bytes of ciphertext wait for the transport."""
        return self._session.unsent()

    def _write(self, srcs: BlockSeq) -> int:
        """Encrypt and send, and leave the call torn until the count is known."""
        done = 0
        session = self._session
        try:
            for piece in srcs.pieces():
                at = 0
                while at < len(piece):
                    view, fault = _readable(piece, at, min(len(piece) - at, BULK))
                    if view:
                        session.encrypt(view)
                    at += len(view)
                    done += len(view)
                    session.call.torn = False
                    sent = session.push_or_hold()
                    if fault is not None:
                        try:
                            raise fault
                        finally:
                            del fault
                    if not sent:
                        session.call.torn = True
                        return done
            session.call.torn = True
            return done
        except BaseException as exc:
            add_transferred(exc, done)
            raise

    def flush(self) -> None:
        """Send what waits, answers to the peer's messages too. Raises BlockingIOError if not all of it can go now."""
        with self._session.exclusive():
            self._session.flush()

    def close_notify(self) -> None:
        """Tell the peer that nothing more comes, and send what waits. Raises BlockingIOError as :meth:`flush`."""
        session = self._session
        with session.exclusive():
            # The peer's own close_notify is the reader's to find.
            nothing_yet = suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
            with session.lock, session.set_aside(), nothing_yet:
                session.tls.unwrap()
            self._ended = True
            session.flush()


def _readable(piece: Piece, at: int, n: int) -> tuple[memoryview, TransferError | None]:
    """n bytes of the piece from ``at`` on, or those before a fault and the fault, which counts no bytes."""
    if isinstance(piece, memoryview):
        return piece[at : at + n], None
    view = memoryview(bytearray(n))
    try:
        copy_seq(BlockSeq.of(Block(view)), BlockSeq.of(piece.drop_first(at)))
    except TransferError as exc:
        view, exc.transferred = view[: exc.transferred], 0
        return view, exc.with_traceback(None)
    return view, None
