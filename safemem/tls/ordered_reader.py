"""OrderedReader: what readers of records have in common: the order of data, errors, the end, and receives.

Data that is there comes first, and no receive is made for it. What stopped the stream is told when there is no data
before it: an error of the transport's once, a final one again and again.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from copy import copy as copy_object

from safemem.block_seq import BlockSeq
from safemem.errors import add_transferred


class OrderedReader(ABC):
    """A Reader over what ``_deliver`` has and ``_receive`` brings. One call at a time."""

    def __init__(self) -> None:
        self._reading = threading.Lock()
        self._held: BaseException | None = None  # of the transport, for the next call
        self._error: OSError | None = None  # final
        self._eof = False
        self._closed = False

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Fill dsts with what is there; receive only if nothing is, and until something comes. 0 is the end.

        Raises the stream's own errors (see the class); BlockingIOError and other errors of the transport;
        HostFaultError if dsts faults, and then nothing is lost; RuntimeError if another read is under way.
        """
        return self.read_at_least(dsts, 1)

    def read_once(self, dsts: BlockSeq) -> int:
        """The same with one receive at the most, and none if something is there: 0 is the end only if ``eof`` says so.

        What it received may be half a record, or a session ticket. (Zig's readvAdvanced.)
        """
        return self.read_at_least(dsts, 1, receives=1)

    def read_at_least(self, dsts: BlockSeq, n: int, *, receives: int = -1) -> int:
        """The same, but until ``n`` bytes, or dsts, are there or the stream ends; with the fewest receives.

        Of these no more than ``receives``, if it is not negative: then less may be there, or nothing.
        """
        if not dsts:
            return 0
        dsts.check_writable("dsts")
        if not self._reading.acquire(blocking=False):
            raise RuntimeError("another read is under way")
        try:
            if self._closed:
                raise ValueError(f"the {type(self).__name__} is closed")
            return self._read(dsts, max(1, min(n, dsts.num_bytes)), receives)
        finally:
            self._reading.release()

    def _read(self, dsts: BlockSeq, least: int, receives: int) -> int:
        done = 0
        try:
            while True:
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
                    if not done:
                        raise
                    if not isinstance(exc, BlockingIOError):
                        self._held = exc.with_traceback(None)
                    return done
        except BaseException as exc:
            add_transferred(exc, done)
            raise

    def _nothing(self) -> int:
        """There is nothing to deliver, and this is why."""
        if self._held is not None:
            held, self._held = self._held, None
            try:
                raise held
            finally:
                del held
        if self._error is not None:
            raise copy_object(self._error)  # which a loop may add its count to
        return 0

    def _hold(self, error: BaseException | None) -> None:
        """Keep an error that came behind received bytes for when these have been read; raise what is no OSError."""
        if error is not None and not isinstance(error, OSError):
            try:
                raise error
            finally:
                del error
        if error is not None and not isinstance(error, BlockingIOError):
            self._held = error.with_traceback(None)

    @abstractmethod
    def _deliver(self, dsts: BlockSeq) -> int:
        """Fill dsts with what is there, and return how much that was. An error in it is kept as ``_error``."""

    @abstractmethod
    def _receive(self) -> None:
        """Receive once; the end of the transport is noted as ``_eof`` or ``_error``. Raises the transport's errors."""
