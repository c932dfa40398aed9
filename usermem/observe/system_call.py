"""SystemCall: what bounds one system call for all observers.

The innermost ``with`` counts: a call inside another is one of its own. A context variable holds it, so that each
thread and each asyncio task has its own. Threads that a handler starts are in no call; asyncio tasks that it starts are
in its call until that ends.
"""

from __future__ import annotations

import errno
import os
from contextvars import ContextVar
from reprlib import Repr
from types import TracebackType
from typing import Any, Final, Protocol, Self

from hostarch import AddrRangeSeq
from usermem.errors import linux_result

_CURRENT: Final[ContextVar[SystemCall | None]] = ContextVar("usermem_system_call", default=None)
_REPR: Final = Repr()  # what strace(1) does not show whole is cut, and a repr that raises does no harm
_REPR.maxstring = _REPR.maxother = 48


def current() -> SystemCall | None:
    """The system call in which this thread, or this asyncio task, is.

    A context that was copied while a call ran, or in which a generator began one and ended it in another context, does
    not learn that it has ended: so the call is asked.
    """
    call = _CURRENT.get()
    return call if call is not None and call.outer else None


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

    The options are for a DoubleFetchDetector. ``reads`` and ``writes``: the only ranges that the call may fetch, and
    write. ``refetches``: ranges that it may fetch more than once; True for all, as in execve(2), where the path and
    argv[0] may be one string and are fetched each for itself. ``late_fetches``: it may fetch after its visible effect,
    as recvmmsg(2) does, which fetches each header after it has filled the one before. Raises TypeError for ranges that
    are no AddrRangeSeq.
    """

    result: int | None = None
    error: str | None = None
    """The type of an exception that left the ``with`` and is no result of a system call."""
    waiting: bool = False
    """For a dispatcher to set before the ``with`` ends, if the call is not over: it goes on in another ``with``."""

    def __init__(
        self,
        name: str,
        args: tuple[object, ...] = (),
        *,
        reads: AddrRangeSeq | None = None,
        writes: AddrRangeSeq | None = None,
        refetches: AddrRangeSeq | bool | None = None,
        late_fetches: bool = False,
    ) -> None:
        self.name = name
        self.args = args
        self.reads: AddrRangeSeq | None = checked_ranges(reads, "reads")
        self.writes: AddrRangeSeq | None = checked_ranges(writes, "writes")
        self.refetches: AddrRangeSeq | bool | None = (
            refetches if isinstance(refetches, bool) else checked_ranges(refetches, "refetches")
        )
        self.late_fetches = late_fetches
        self.states: dict[Observer, Any] = {}  # what each observer knows of this call
        self.outer: list[SystemCall | None] = []
        """For each ``with`` of this call that has not ended, the call that it is in."""

    def __enter__(self) -> Self:
        self.waiting = False
        outer = _CURRENT.get()
        self.outer.append(outer)
        try:
            _CURRENT.set(self)
            return self
        except BaseException:  # an interrupt: the ``with`` does not begin, and nobody would end it
            _CURRENT.set(outer)
            self.outer.pop()
            raise

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        # First of all, since an interrupt may come at any line; and no reset by a token, because a generator may end
        # its ``with`` in another context than it began it.
        _CURRENT.set(self.outer[-1])
        self.outer.pop()
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
    return _REPR.repr(arg)


def checked_ranges(ranges: AddrRangeSeq | None, name: str) -> AddrRangeSeq | None:
    """The ranges. Raises TypeError, naming the argument, if they are neither None nor an AddrRangeSeq."""
    if ranges is not None and not isinstance(ranges, AddrRangeSeq):
        raise TypeError(f"{name} must be an AddrRangeSeq, not {type(ranges).__name__}")
    return ranges


def _returned(result: int | None) -> str:
    if result is None:
        return "?"
    if -_DECIMAL < result < 0:
        return f"-1 {errno.errorcode.get(-result, -result)} ({os.strerror(-result)})"
    return _shown(result)
