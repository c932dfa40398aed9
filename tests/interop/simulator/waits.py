"""Wait: what a system call that would block waits for.

A handler that may block is a generator. It yields a Wait; the kernel goes on with it when the Wait is over, and raises
InterruptedError in it when a signal comes first. So a handler keeps its deadline, or how much it has written, in local
variables, and what it does about a signal is an ``except``.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Generator, Mapping
from typing import TypeAlias

from attrs import field, frozen

Waiting: TypeAlias = Generator["Wait", None, int]
"""A system call under way."""


def never() -> bool:
    """Wait for a signal."""
    return False


@frozen
class Wait:
    """Until a host descriptor is ready (``events`` of poll(2)), it is ``deadline`` (monotonic), or ``done()``."""

    events: Mapping[int, int] = field(factory=dict)
    deadline: float | None = None
    done: Callable[[], bool] = never

    def is_over(self, ready: Mapping[int, int]) -> bool:
        """Whether it is over, where those descriptors are ready."""
        return (
            any(fd in ready for fd in self.events)
            or (self.deadline is not None and time.monotonic() >= self.deadline)
            or self.done()
        )


def poll_now(events: Mapping[int, int], timeout: float = 0) -> dict[int, int]:
    """Which descriptors are ready, after at most ``timeout`` seconds."""
    poll = select.poll()
    for fd, mask in events.items():
        poll.register(fd, mask)
    return dict(poll.poll(timeout * 1000))
