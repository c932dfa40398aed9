"""OrderedReader: what readers of records have in common: the order of data, errors, the end, and receives.

Data that is there comes first, and no receive is made for it. What stopped the stream is told when there is no data
before it: an error of the transport's once, a final one again and again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy as copy_object
from typing import TYPE_CHECKING

from safemem.block_seq import BlockSeq
from safemem.errors import TransferError, add_transferred
from safemem.protocols import Reader
from safemem.tls.one_call import OneCall
from safemem.tls.transport import receiver

if TYPE_CHECKING:
    import socket


class OrderedReader(ABC):
    """A Reader over what ``_deliver`` has and ``_receive`` brings. One call at a time."""

    def __init__(self, source: socket.socket | int | Reader, call: OneCall) -> None:
        """Raises TypeError if the source is none, ValueError if it is message-oriented."""
        self._source = receiver(source)
        self._call = call
        self._held: BaseException | None = None  # of the transport, for the next call
        self._error: OSError | None = None  # final
        self._eof = False
        self._closed = False

    def read_at_least(self, dsts: BlockSeq, n: int = 1, *, receives: int = -1) -> int:
        """Fill dsts with what is there; receive, as seldom as can be, until ``n`` bytes, or dsts, or the end are there.

        There are no more than ``receives`` receives, if that is not negative: then less may be there, or nothing.

        0 is the end. Raises the stream's own errors (see the class); BlockingIOError and other errors of the transport;
        HostFaultError if dsts faults, and then nothing is lost; RuntimeError if another read is under way;
        StreamInterruptedError after one that a signal handler's exception cut where the place in the stream was lost.
        """
        if not dsts:
            return 0
        dsts.check_writable("dsts")
        done = 0
        try:
            with self._call.alone:
                self._call.check()
                if self._closed:
                    raise ValueError(f"the {type(self).__name__} is closed")
                done = self._read(dsts, max(1, min(n, dsts.num_bytes)), receives)
                self._call.torn = False
            return done
        except BaseException as exc:
            if done:
                exc.transferred = done  # type: ignore[attr-defined]
            raise

    # A call less: an interrupt between them would lose the count.
    read_to_blocks = read_at_least

    def read_once(self, dsts: BlockSeq) -> int:
        """The same with one receive at the most, and none if something is there: 0 is the end only if ``eof`` says so.

        What it received may be half a record, or a session ticket. (Zig's readvAdvanced.)
        """
        return self.read_at_least(dsts, 1, receives=1)

    def _read(self, dsts: BlockSeq, least: int, receives: int) -> int:
        done = 0
        try:
            while True:
                self._call.torn = True
                n = self._deliver(dsts)
                done += n
                if done >= least:
                    return done
                if self._held is not None or self._error is not None or self._eof:
                    return done or self._nothing()
                if not receives:
                    return done
                receives -= 1
                dsts = dsts.drop_first(n)
                try:
                    self._receive()
                except OSError as exc:
                    if not done or self._call.torn:
                        raise
                    self._call.torn = True
                    if not isinstance(exc, BlockingIOError):
                        self._held = exc.with_traceback(None)
                    return done
        except TransferError as exc:  # a fault of dsts, or of the source
            add_transferred(exc, done)
            # One line: no handler runs in between.
            self._call.torn = False; raise  # fmt: skip # noqa: E702
        except BaseException as exc:
            if done:
                torn, self._call.torn = self._call.torn, True  # another interrupt would lose the count
                add_transferred(exc, done)
                self._call.torn = torn
            raise

    def _nothing(self) -> int:
        """There is nothing to deliver, and this is why."""
        if self._held is not None:
            self._call.torn = False
            try:
                raise self._held
            except OSError:
                self._held = None
                raise
        if self._error is not None:
            self._call.torn = False
            raise copy_object(self._error)  # which a loop may add its count to
        return 0

    def _bring(self, view: memoryview, note: Callable[[int], object]) -> int:
        """Receive once into the view, have ``note`` count what came, and return that; 0 is the end of the transport.

        An error that came behind received bytes is kept for when these have been read. One that came alone is raised,
        and so is what is no OSError.
        """
        n, error = self._source.move(view)
        try:
            note(n)
            if error is not None and not (n and isinstance(error, OSError)):
                self._call.torn = False
                raise error
            if error is not None and not isinstance(error, BlockingIOError):
                self._held = error.with_traceback(None)
            return n
        finally:
            del error

    @abstractmethod
    def _deliver(self, dsts: BlockSeq) -> int:
        """Fill dsts with what is there, and return how much that was. An error in it is kept as ``_error``."""

    @abstractmethod
    def _receive(self) -> None:
        """Receive once; the end of the transport is noted as ``_eof`` or ``_error``. Raises the transport's errors."""
