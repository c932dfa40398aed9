"""What becomes of queued messages, and the callbacks that are told."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum

from attrs import frozen

from safemem.block_seq import BlockSeq
from safemem.datagram.address import Address


class SendStatus(Enum):
    """What became of a queued message."""

    SENT = "sent"
    FAILED = "failed"
    GIVEN_BACK = "given back"


@frozen
class Outcome:
    """What a done callback is told, once a message. The queue does not use ``blocks`` any more.

    ``error`` is why it failed; None if it did not. GIVEN_BACK: the queue was closed before the message was sent.
    """

    status: SendStatus
    blocks: BlockSeq
    peer: Address | None
    error: Exception | None = None


Done = Callable[[Outcome], object]
"""A done callback."""

Told = tuple[Done | None, Outcome]
"""An outcome, and who is told: nobody, if None."""


class Callbacks:
    """Calls done callbacks, one at a time in each thread.

    They do not nest: what comes of a flush or close inside a callback is told when that has returned. If some raise,
    the others are called all the same, and then their errors are raised together, as an ExceptionGroup; one that is no
    Exception, KeyboardInterrupt say, by itself. Errors of messages that have no callback are in that group too.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def tell(self, outcomes: Iterable[Told]) -> None:
        """Call the callbacks; later, if one of this thread runs now. Raises what they raised."""
        waiting: deque[Told] | None = getattr(self._local, "waiting", None)
        if waiting is not None:
            waiting.extend(outcomes)
            return
        waiting = deque(outcomes)
        errors: list[BaseException] = []
        try:
            self._local.waiting = waiting
            while True:  # no condition: its jump back would have no handler (CPython 3.13)
                if not waiting:
                    break
                done, outcome = waiting.popleft()
                try:
                    if done is not None:
                        done(outcome)
                    elif outcome.error is not None:
                        errors.append(outcome.error)
                except BaseException as exc:
                    errors.append(exc)
        finally:
            self._local.waiting = None
            if waiting:  # an interrupt came between two callbacks
                self.tell(waiting)
        error = next((error for error in errors if not isinstance(error, Exception)), None)
        if errors and error is None:
            error = BaseExceptionGroup("messages failed, or their done callbacks", errors)
        if error is not None:
            try:
                raise error
            finally:
                del error, errors
