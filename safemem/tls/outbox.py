"""Outbox: ciphertext on its way to a transport. Bytes that the transport does not take wait, and go first next time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from safemem.errors import would_block
from safemem.protocols import Writer
from safemem.tls.one_call import OneCall
from safemem.tls.transport import sender, sink_ended

if TYPE_CHECKING:
    import socket


class Outbox(ABC):
    """Sends what ``waiting`` gives. One thread at a time pushes."""

    def __init__(self, sink: socket.socket | int | Writer) -> None:
        """Raises TypeError if the sink is none, ValueError if it is message-oriented."""
        self._sink = sender(sink)
        self.call: OneCall = OneCall("write")
        self._held: OSError | None = None

    @abstractmethod
    def waiting(self) -> memoryview:
        """The ciphertext to send next; empty if there is none."""

    @abstractmethod
    def sent(self, n: int) -> None:
        """Drop the first n bytes of what waits: the transport has taken them."""

    def push(self) -> bool:
        """Send what waits; returns whether all of it went. Raises the error that is held, or the transport's.

        After StreamInterruptedError nothing can be sent any more.
        """
        self.call.check()
        if self._held is not None:
            try:
                raise self._held
            except OSError:
                self._held = None
                raise
        while True:
            self.call.torn = True
            view = self.waiting()
            if view:
                n, error = self._sink.move(view)
                self.sent(n)
            self.call.torn = False
            if not view:
                return True
            try:
                if isinstance(error, BlockingIOError):
                    return False
                if error is not None:
                    raise error
            finally:
                del error
            if not n:
                raise sink_ended()

    def push_or_hold(self) -> bool:
        """The same after bytes of the caller's have been taken: hold an error for the next push."""
        try:
            return self.push()
        except OSError as exc:
            self._held = exc.with_traceback(None)
            return False

    def flush(self) -> None:
        """Send what waits. Raises BlockingIOError if not all of it can go now, and as :meth:`push`."""
        if not self.push():
            raise would_block()


class SendBuffer(Outbox):
    """An Outbox over memory of its own: ``memory[:end]`` has been filled, and what has not been sent of it waits."""

    def __init__(self, sink: socket.socket | int | Writer, size: int) -> None:
        super().__init__(sink)
        self.memory: memoryview = memoryview(bytearray(size))
        self.end: int = 0
        self._start = 0

    def __len__(self) -> int:
        return self.end - self._start

    def waiting(self) -> memoryview:
        return self.memory[self._start : self.end]

    def sent(self, n: int) -> None:
        self._start += n
        if self._start >= self.end:
            self._start = self.end = 0

    def wipe(self) -> None:
        """Forget what waits, and overwrite it."""
        self.memory[:] = bytes(len(self.memory))
        self._start = self.end = 0
