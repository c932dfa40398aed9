"""SystemCall: what bounds one system call for all observers.

The innermost ``with`` counts: a call inside another is one of its own. A context variable holds it, so that each
thread and each asyncio task has its own; threads that a handler starts are in no call.
"""

from __future__ import annotations

import errno
import os
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, Protocol, Self

from hostarch import AddrRangeSeq
from usermem.errors import linux_result

CURRENT: Final[ContextVar[SystemCall | None]] = ContextVar("usermem_system_call", default=None)
"""The system call in which this thread, or this asyncio task, is."""

_DECIMAL = 1 << 12  # integers below are shown in decimal, others are taken for addresses or flags


class Observer(Protocol):
    """What observes a system call."""

    def call_ended(self, call: SystemCall) -> None:
        """The ``with`` of the call has ended; the call has its result."""
        ...


class SystemCall:
    """A system call while it runs: ``with SystemCall("read", (fd, addr, n)) as call: call.result = ...``.

    Any observer's ``call("read", fd, addr, n)`` makes one; all observers that the memory is wrapped in see it.
    ``result`` is for the handler to set; an OSError that leaves the ``with`` sets it to what linux_result() gives.

    The options are for a DoubleFetchDetector. ``writes``: the only ranges that the call may write. ``refetches``:
    ranges that it may fetch more than once; True for all, as in execve(2), where the path and argv[0] may be one string
    and are fetched each for itself. ``late_fetches``: it may fetch after its visible effect, as recvmmsg(2) does, which
    fetches each header after it has filled the one before.
    """

    result: int | None = None
    error: str | None = None
    """The type of an exception that left the ``with`` and is no result of a system call."""
    waiting = False
    """For a dispatcher to set before the ``with`` ends, if the call is not over: it goes on in another ``with``."""

    def __init__(
        self,
        name: str,
        args: tuple[object, ...] = (),
        *,
        writes: AddrRangeSeq | None = None,
        refetches: AddrRangeSeq | bool | None = None,
        late_fetches: bool = False,
    ) -> None:
        self.name = name
        self.args = args
        self.writes = writes
        self.refetches = refetches
        self.late_fetches = late_fetches
        self.states: dict[Observer, Any] = {}  # what each observer knows of this call
        self._tokens: list[Token[SystemCall | None]] = []

    def __enter__(self) -> Self:
        self.waiting = False
        self._tokens.append(CURRENT.set(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        CURRENT.reset(self._tokens.pop())
        if exc is not None:
            try:
                self.result = linux_result(exc)
            except TypeError:
                self.error = type(exc).__name__
        if not self.waiting:
            for observer in tuple(self.states):
                observer.call_ended(self)

    def __str__(self) -> str:
        """``read(3, 0x10000, 48) = 48``, as strace(1) has it; ``= ?`` while there is no result."""
        args = ", ".join(map(_shown, self.args))
        return f"{self.name}({args}) = {self.error or _returned(self.result)}"


def _shown(arg: object) -> str:
    if isinstance(arg, int) and not isinstance(arg, bool):
        return str(int(arg)) if -_DECIMAL < arg < _DECIMAL else hex(arg)
    return repr(arg)


def _returned(result: int | None) -> str:
    if result is None:
        return "?"
    if -_DECIMAL < result < 0:
        return f"-1 {errno.errorcode.get(-result, -result)} ({os.strerror(-result)})"
    return _shown(result)
