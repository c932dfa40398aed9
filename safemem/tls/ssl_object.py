"""SSLObjectReader and SSLObjectWriter: the contract of Reader and Writer over the standard library's own TLS.

They need no keys and no engine, and work with every version of TLS that the ssl module speaks. Ciphertext is received
in bulk, many records a call, and OpenSSL decrypts it straight into the caller's blocks.

Source: ssl.SSLObject, ssl.MemoryBIO.
"""

from __future__ import annotations

import ssl
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from safemem.block import Block, check_writable
from safemem.block_seq import BlockSeq, copy_seq
from safemem.errors import TransferError, add_transferred, would_block
from safemem.pending import PendingBytes
from safemem.protocols import Reader, Writer
from safemem.tls.errors import TruncationError
from safemem.tls.transport import receiver, sender

if TYPE_CHECKING:
    import socket

_BULK = 1 << 18
_RECORD = 1 << 14


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
        self._waiting = memoryview(b"")
        self._held: BaseException | None = None

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Raises BlockingIOError if what waits could not be sent; ssl.SSLError; the transport's errors.

        Those after some bytes come at the next call. HostFaultError if srcs faults, with what came before it sent.
        """
        if not srcs:
            return 0
        if not self._push():
            raise would_block()
        done = 0
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
                    fault.transferred = done
                    raise fault
                if not sent:
                    return done
        return done

    def flush(self) -> None:
        """Send what waits, answers to the peer's messages too. Raises BlockingIOError if not all of it can go now."""
        if not self._push():
            raise would_block()

    def close_notify(self) -> None:
        """Tell the peer that nothing more comes, and send what waits. Raises BlockingIOError as :meth:`flush`."""
        # The peer's own close_notify is the reader's to find.
        with self._lock, suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLSyscallError):
            self._tls.unwrap()
        self.flush()

    def _push(self) -> bool:
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
            except BlockingIOError as exc:
                self._waiting = self._waiting[getattr(exc, "transferred", 0) :]
                return False
            if not n:
                return False
            self._waiting = self._waiting[n:]

    def _push_or_hold(self) -> bool:
        try:
            return self._push()
        except OSError as exc:
            self._held = exc.with_traceback(None)
            return False


class SSLObjectReader:
    """A Reader over an SSLObject: data first and its error at the next call, 0 at the peer's close_notify."""

    def __init__(
        self,
        source: socket.socket | int | Reader,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        lock: threading.Lock,
        *,
        writer: SSLObjectWriter | None = None,
        allow_truncation: bool = False,
    ) -> None:
        """``incoming`` is the SSLObject's. ``writer`` sends the answers that what is read may call for."""
        self._receive_into = receiver(source)
        self._tls = tls
        self._incoming = incoming
        self._lock = lock
        self._writer = writer
        self._allow_truncation = allow_truncation
        self._buffer = memoryview(bytearray(_BULK))
        self._pending = PendingBytes()
        self._held: BaseException | None = None
        self._ended = False
        self.eof = False

    def pending(self) -> int:
        """How many decrypted bytes wait in the SSLObject."""
        return self._tls.pending()

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Fill dsts with what is there; receive only if nothing is, and until something comes.

        Raises ssl.SSLError, TruncationError, BlockingIOError and other errors of the transport; HostFaultError if dsts
        faults, and then nothing is lost.
        """
        if not dsts:
            return 0
        for block in dsts:
            check_writable(block, "dsts")
        if self._pending:
            return self._pending.deliver(dsts)
        while True:
            n = self._decrypt(dsts)
            if n or self.eof:
                return n
            if self._held is not None:
                raise self._held.with_traceback(None)
            self._receive()

    def _decrypt(self, dsts: BlockSeq) -> int:
        """Fill dsts from what has been received. An error, or the end, is kept for when it is all there is."""
        done = 0
        try:
            for block in dsts:
                n = self._fill(block)
                done += n
                if n < len(block):
                    break
        except TransferError as exc:
            add_transferred(exc, done)
            raise
        return done

    def _fill(self, block: Block) -> int:
        view = None if block.need_safecopy else block.view()
        size = len(block)
        read: Any = self._tls.read  # typeshed knows no count
        done = 0
        while done < size and self._held is None and not self.eof:
            target = self._buffer[:_RECORD] if view is None else view[done:]
            try:
                with self._lock:
                    n = read(len(target), target)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                n = 0
            except ssl.SSLError as exc:
                self._held = TruncationError(True) if isinstance(exc, ssl.SSLEOFError) else exc
                break
            if not n:
                self.eof = True
                break
            if view is None:
                try:
                    n = self._pending.deliver(BlockSeq.of(block.drop_first(done)), bytes(target[:n]))
                except TransferError as exc:
                    add_transferred(exc, done)
                    raise
                done += n
                if self._pending:
                    break
            else:
                done += n
        return done

    def _receive(self) -> None:
        if self._writer is not None:
            with suppress(BlockingIOError):
                self._writer.flush()
        n = self._receive_into(self._buffer)
        if n is None:
            raise would_block()
        if n:
            self._incoming.write(self._buffer[:n])
        elif self._allow_truncation and not self._incoming.pending:
            self.eof = True
        else:
            self._held = TruncationError(self._incoming.pending > 0)


def ssl_object_pair(
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    server_hostname: str | None = None,
    server_side: bool = False,
    allow_truncation: bool = False,
) -> tuple[SSLObjectReader, SSLObjectWriter]:
    """Do a handshake, of any version of TLS, on a connected socket that waits, and return who reads and writes then.

    Raises ssl.SSLError, after telling the peer; TruncationError if it went away; ValueError for a socket that does not
    wait.
    """
    if sock.gettimeout() == 0:
        raise ValueError("sock must wait, or have a timeout, until the handshake is done")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=server_hostname)
    lock = threading.Lock()
    writer = SSLObjectWriter(sock, tls, outgoing, lock)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.flush()
        except ssl.SSLError:
            writer.flush()  # the alert
            raise
        data = sock.recv(_BULK)
        if not data:
            raise TruncationError(incoming.pending > 0)
        incoming.write(data)
    writer.flush()
    return SSLObjectReader(sock, tls, incoming, lock, writer=writer, allow_truncation=allow_truncation), writer
