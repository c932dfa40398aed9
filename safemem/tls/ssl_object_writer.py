"""SSLObjectWriter: user memory to the peer of the standard library's own TLS. See :mod:`safemem.tls.ssl_object`."""

from __future__ import annotations

import errno
import ssl
from contextlib import suppress

from safemem.block import Block
from safemem.block_seq import BlockSeq, copy_seq
from safemem.errors import TransferError, error
from safemem.tls.record import MAX_CONTENT
from safemem.tls.ssl_session import BULK, SSLSession


class SSLObjectWriter:
    """A Writer over an SSLObject. A call counts what has been encrypted; what the transport does not take waits.

    Blocks are gathered into full records, and many records go by one send.
    """

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
        session = self._session
        try:
            with session.exclusive():
                if self._ended:
                    raise error(errno.EPIPE, "close_notify has been sent")
                session.flush()
                session.taken = 0
                try:
                    self._write(srcs)
                finally:
                    done = session.taken
            return done
        except BaseException as exc:
            exc.transferred = done  # type: ignore[attr-defined]  # no call: another interrupt would lose the count
            raise

    def pending(self) -> int:
        """How many bytes of ciphertext wait for the transport."""
        return self._session.unsent()

    def _write(self, srcs: BlockSeq) -> None:
        """Encrypt and send; the session's ``taken`` says how much."""
        session = self._session
        while srcs:
            view, fault = _gathered(srcs)
            if view:
                session.encrypt(view)
            srcs = srcs.drop_first(len(view))
            if srcs and fault is None and session.unsent() < BULK:
                continue  # one send takes many records
            sent = session.push_or_hold()
            if fault is not None:
                try:
                    raise fault
                finally:
                    del fault
            if not sent:
                break

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


def _gathered(srcs: BlockSeq) -> tuple[memoryview, TransferError | None]:
    """The next bytes in one piece: all full records that the first block has, or one record of several blocks.

    Where a block faults: the bytes before it, and the fault.
    """
    size, head = srcs.num_bytes, srcs.head()
    n = len(head) if len(head) == size else len(head) - len(head) % MAX_CONTENT
    if n and not head.need_safecopy:
        return head.take_first(min(n, BULK)).view(), None
    view = memoryview(bytearray(min(size, MAX_CONTENT)))
    try:
        copy_seq(BlockSeq.of(Block(view)), srcs)
    except TransferError as exc:
        return view[: exc.transferred], exc.with_traceback(None)
    return view, None
