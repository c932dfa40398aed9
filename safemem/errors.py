"""The errors of a transfer: they are OSErrors, and say how far the transfer got.

An error that a frame keeps in a local while it passes through makes a cycle (error, traceback, frame, error), which
only the garbage collector ends: until then the caller's buffer stays exported and cannot be resized. So whoever raises
an error that it has in a local deletes the local: ``try: raise error``, ``finally: del error``.

Written by hand: attrs on an OSError breaks str(), errno and pickling.
"""

from __future__ import annotations

import errno
import os
import signal
from functools import cache
from typing import Any

from hostarch.integers import check_int


class TransferError(OSError):
    """A transfer stopped before its end. ``transferred`` is the number of bytes it had moved.

    The bytes before ``transferred`` have arrived, nothing after them was touched, and calling again from there
    resumes. Layers that had moved bytes before the call that failed add theirs as the error passes through.
    """

    transferred: int

    def __init__(self, errno_: int, strerror: str, transferred: int = 0) -> None:
        super().__init__(errno_, strerror)
        self.transferred = transferred

    def __str__(self) -> str:
        return f"{super().__str__()} ({self.transferred} bytes transferred)" if self.transferred else super().__str__()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self._init_args(), self.__dict__)

    def _init_args(self) -> tuple[Any, ...]:
        return (self.errno, self.strerror)


class HostFaultError(TransferError):
    """Host memory faulted when it was touched: gVisor's safecopy.SegvError and BusError.

    ``address`` is the host address of the first byte that cannot be accessed, ``signo`` the signal that touching it
    would have raised: SIGSEGV (not mapped, or not with that right) or SIGBUS (mapped beyond the end of its file).
    """

    def __init__(self, address: int, signo: int = signal.SIGSEGV, transferred: int = 0) -> None:
        super().__init__(errno.EFAULT, f"{os.strerror(errno.EFAULT)}: host address {address:#x}", transferred)
        self.address = address
        self.signo: signal.Signals = signal.Signals(signo)

    def _init_args(self) -> tuple[Any, ...]:
        return (self.address, self.signo)


class AlignmentError(TransferError):
    """An atomic operation was asked for at a host address that is not a multiple of its size.

    Nothing was touched. User memory's IO reports it as a FaultError, as gVisor does.
    """

    def __init__(self, address: int, alignment: int) -> None:
        super().__init__(errno.EFAULT, f"host address {address:#x} is not a multiple of {alignment}")
        self.address = address
        self.alignment = alignment

    def _init_args(self) -> tuple[Any, ...]:
        return (self.address, self.alignment)


class EndOfBlockSeqError(TransferError):
    """A write met the end of a fixed destination: ENOSPC, with what still fitted in ``transferred``."""

    def __init__(self, transferred: int = 0) -> None:
        super().__init__(errno.ENOSPC, "write beyond the end of the blocks", transferred)

    def _init_args(self) -> tuple[Any, ...]:
        return ()


def add_transferred(exc: BaseException, done: int) -> None:
    """Note on any exception that passes through that ``done`` bytes had been moved before the call that raised it.

    It adds: ``exc.transferred`` may already say how many the failing call itself moved.
    """
    if done:
        exc.transferred = getattr(exc, "transferred", 0) + done  # type: ignore[attr-defined]


def short_count(exc: BaseException, done: int) -> int:
    """What a loop returns when a step raised after ``done`` bytes: would-block after progress is a short count.

    Any other exception is raised again, the same object, with ``done`` added to its ``transferred``.
    """
    add_transferred(exc, done)
    if isinstance(exc, BlockingIOError) and (count := getattr(exc, "transferred", 0)):
        return int(count)
    try:
        raise exc
    finally:
        del exc


def is_interrupt(exc: BaseException) -> bool:
    """Whether an exception is no error of a stream's, and so must not wait for a later call.

    KeyboardInterrupt and SystemExit, which a signal handler may raise in the middle of anything, belong to this moment
    and this thread. A MemoryError says what was so at this moment.
    """
    return not isinstance(exc, Exception) or isinstance(exc, MemoryError)


_text_of = cache(os.strerror)  # which takes half as long as all else that an error does


def error(code: int, reason: str) -> OSError:
    """An OSError, of the subclass that belongs to its errno, with the errno's text and a reason."""
    return OSError(code, f"{_text_of(code)}: {reason}")


def would_block() -> BlockingIOError:
    """What a Reader raises that has nothing to give now, and a Writer that can take nothing now."""
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def moved_count(n: int | None, most: int, who: str) -> int:
    """The count ``who`` returned for ``most`` bytes. Raises BlockingIOError for None, ValueError for a wrong one."""
    if n is None:  # a raw file object that has nothing now
        raise would_block()
    if type(n) is not int:
        n = check_int(n, f"what {who} returned")
    if not 0 <= n <= most:
        raise ValueError(f"{who} returned {n} for {most} bytes")
    return n
