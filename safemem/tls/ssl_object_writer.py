"""SSLObjectWriter: user memory to the peer of the standard library's own TLS. See :mod:`safemem.tls.ssl_object`."""

from __future__ import annotations

import errno
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from safemem.block import Block
from safemem.block_seq import BlockSeq, copy_seq
from safemem.errors import TransferError, add_transferred, would_block
from safemem.protocols import Writer
from safemem.tls.transport import sender, sink_ended

if TYPE_CHECKING:
    import socket

    from safemem.tls.ssl_object import SSLObjectReader

_BULK = 1 << 18


class SSLObjectWriter:
    """A Writer over an SSLObject. A call counts what has been encrypted; what the transport does not take waits."""

    def __init__(
        self, sink: socket.socket | int | Writer, tls: ssl.SSLObject, outgoing: ssl.MemoryBIO, lock: threading.Lock
    ) -> None:
        """``outgoing`` is the SSLObject's; ``lock`` is held whenever it is used, by whoever else uses it too."""
        self._send = sender(sink)
        self._tls = tls
        self._outgoing = outgoing
        self._lock = lock
        self._sending = threading.Lock()  # the reader sends too
        self._waiting = memoryview(b"")
        self._held: BaseException | None = None
        self._ended = False
        self._reader: SSLObjectReader | None = None

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Raises BlockingIOError if what waits could not be sent; ssl.SSLError; the transport's errors.

        Those after some bytes come at the next call. HostFaultError if srcs faults, with what came before it sent;
        BrokenPipeError after close_notify.
        """
        if not srcs:
            return 0
        with self._exclusive():
            if self._ended:
                raise BrokenPipeError(errno.EPIPE, f"{os.strerror(errno.EPIPE)}: close_notify has been sent")
            if not self._push():
                raise would_block()
            return self._write(srcs)

    def pending(self) -> int:
        """How many bytes of ciphertext wait for the transport."""
        with self._lock:
            return len(self._waiting) + self._outgoing.pending

    def _write(self, srcs: BlockSeq) -> int:
        done = 0
        try:
            for block in srcs:
                at = 0
                while at < len(block):
                    n = min(len(block) - at, _BULK)
                    fault: TransferError | None = None
                    if block.need_safecopy:
                        view = memoryview(bytearray(n))
                        try:
                            copy_seq(BlockSeq.of(Block(view)), BlockSeq.of(block.drop_first(at)))
                        except TransferError as exc:
                            fault, view = exc, view[: exc.transferred]
                    else:
                        view = block.view()[at : at + n]
                    if view:
                        with self._lock:
                            self._tls.write(view)
                    at += len(view)
                    done += len(view)
                    sent = self._push_or_hold()
                    if fault is not None:
                        fault.transferred = 0
                        raise fault
                    if not sent:
                        return done
        except BaseException as exc:
            add_transferred(exc, done)
            raise
        return done

    def flush(self) -> None:
        """Send what waits, answers to the peer's messages too. Raises BlockingIOError if not all of it can go now."""
        with self._exclusive():
            if not self._push():
                raise would_block()

    def close_notify(self) -> None:
        """Tell the peer that nothing more comes, and send what waits. Raises BlockingIOError as :meth:`flush`."""
        with self._exclusive():
            with self._lock, ExitStack() as stack:
                if self._reader is not None:
                    stack.enter_context(self._reader._set_aside())
                # The peer's own close_notify is the reader's to find.
                stack.enter_context(suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLSyscallError))
                self._tls.unwrap()
            self._ended = True
            if not self._push():
                raise would_block()

    def _answer(self) -> None:
        """Send what the peer's messages call for, unless somebody is sending. An error waits for the next write.

        The reader must not wait here for a large write to go: the peer may be waiting for the reader.
        """
        while self._held is None and (self._waiting or self._has_output()) and self._sending.acquire(blocking=False):
            try:
                if not self._push_or_hold():
                    break
            finally:
                self._sending.release()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._sending:
            yield
        if not self._waiting:
            self._answer()  # it came while we were sending

    def _has_output(self) -> bool:
        with self._lock:
            return self._outgoing.pending > 0

    def _push(self) -> bool:
        """Send what waits; whether all of it went."""
        if self._held is not None:
            held, self._held = self._held, None
            raise held
        while True:
            if not self._waiting:
                with self._lock:
                    self._waiting = memoryview(self._outgoing.read(_BULK))
                if not self._waiting:
                    return True
            try:
                n = self._send(self._waiting)
            except BaseException as exc:
                n = getattr(exc, "transferred", 0)
                self._waiting = self._waiting[n:]
                if isinstance(exc, BlockingIOError):
                    return False
                add_transferred(exc, -n)  # they are ciphertext, and none of the caller's bytes
                raise
            if not n:
                raise sink_ended()
            self._waiting = self._waiting[n:]

    def _push_or_hold(self) -> bool:
        try:
            return self._push()
        except OSError as exc:
            self._held = exc.with_traceback(None)
            return False
