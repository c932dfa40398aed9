"""What can go wrong with user memory, each as an OSError that says exactly what and where.

Written by hand: attrs on an OSError breaks str(), errno and pickling.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum, StrEnum
from typing import Any

from hostarch import AccessType
from hostarch.listed_enum import ListedEnumType
from safemem import TransferError
from safemem.buffers import check_int

# Linux include/uapi/asm-generic/siginfo.h
SEGV_MAPERR = 1
SEGV_ACCERR = 2
BUS_ADRALN = 1
BUS_ADRERR = 2


class Signal(IntEnum, metaclass=ListedEnumType):
    """The signals of a bad access, with Linux's generic numbers whatever the host: they are the guest's."""

    SIGBUS = 7
    SIGSEGV = 11


class FaultReason(StrEnum, metaclass=ListedEnumType):
    """Why an address could not be accessed."""

    UNMAPPED = "unmapped"
    PERMISSION = "permission"
    GUARD = "guard"
    BEYOND_FILE = "beyond-file"
    UNALIGNED = "unaligned"
    OUTSIDE_RANGE = "outside-range"
    INJECTED = "injected"
    NO_MEMORY = "no-memory"


_SIGNALS = {
    FaultReason.PERMISSION: (Signal.SIGSEGV, SEGV_ACCERR),
    FaultReason.BEYOND_FILE: (Signal.SIGBUS, BUS_ADRERR),
    FaultReason.UNALIGNED: (Signal.SIGBUS, BUS_ADRALN),
    FaultReason.NO_MEMORY: (Signal.SIGBUS, BUS_ADRERR),
}


class FaultError(TransferError):
    """User memory could not be accessed: EFAULT.

    ``address`` is the first byte that could not be accessed, ``access`` what was tried, ``reason`` why it failed and
    ``transferred`` how many bytes this call had moved by then. For one range ``address == start + transferred``.
    Where the call's result is no count, ``partial`` is the part of it that could be made of the bytes before the fault
    (a string's bytes, the strings of an argument vector, the count and values of parsed integers), else None.
    """

    # Without a dict one is made in two thirds of the time.
    __slots__ = ("access", "address", "reason", "transferred")

    # OSError's own fields stay empty, because parsing them and making the text takes 1.5 us, and most handlers look at
    # neither: these hide them.
    errno: int = errno.EFAULT
    partial: Any = None

    def __init__(self, address: int, access: AccessType, reason: FaultReason, transferred: int = 0) -> None:
        self.address: int = address
        self.access: AccessType = access
        self.reason: FaultReason = reason
        self.transferred: int = transferred

    @property
    def strerror(self) -> str:  # type: ignore[override]
        """What went wrong and where, for people."""
        return f"{os.strerror(errno.EFAULT)}: {self.address:#x} ({self.access}, {self.reason.value})"

    @property
    def args(self) -> tuple[Any, ...]:  # type: ignore[override]
        """errno and strerror, as every OSError has them."""
        return errno.EFAULT, self.strerror

    def __str__(self) -> str:
        moved = f" ({self.transferred} bytes transferred)" if self.transferred else ""
        return f"[Errno {errno.EFAULT}] {self.strerror}{moved}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.args}"

    @property
    def signo(self) -> Signal:
        """The signal the access would have raised had the guest made it itself: SIGSEGV or SIGBUS."""
        return _SIGNALS.get(self.reason, (Signal.SIGSEGV, SEGV_MAPERR))[0]

    @property
    def si_code(self) -> int:
        """The signal's si_code: SEGV_MAPERR, SEGV_ACCERR, BUS_ADRALN or BUS_ADRERR (sigaction(2))."""
        return _SIGNALS.get(self.reason, (Signal.SIGSEGV, SEGV_MAPERR))[1]

    def _init_args(self) -> tuple[Any, ...]:
        return (self.address, self.access, self.reason, self.transferred)


class NameTooLongError(OSError):
    """No NUL within the limit: ENAMETOOLONG. ``partial`` holds the bytes up to it."""

    def __init__(self, partial: Any = b"") -> None:
        super().__init__(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        self.partial = partial

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.partial,), self.__dict__)


class InvalidIntegerError(OSError):
    """A token is no decimal int32: EINVAL. ``consumed`` bytes came before it, which gave ``values``."""

    def __init__(self, consumed: int, values: list[int]) -> None:
        super().__init__(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: no decimal int32 at byte {consumed}")
        self.consumed = consumed
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.consumed, self.values), self.__dict__)


class BusyError(OSError):
    """The address space is in use, so that it cannot be had quiet: EBUSY. Nothing has changed.

    ``thread`` is the ident of the thread that is in the middle of something; None if blocks are still referred to.
    """

    def __init__(self, reason: str, thread: int | None = None) -> None:
        super().__init__(errno.EBUSY, f"{os.strerror(errno.EBUSY)}: {reason}")
        self.reason = reason
        self.thread = thread

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.reason, self.thread), self.__dict__)


def bytes_before(error: OSError) -> int:
    """How many bytes a call had moved when it raised; 0 if the error does not say."""
    moved: int = getattr(error, "transferred", 0)
    return moved


def cut_short(error: OSError, partial: Any) -> None:
    """Note on any error the part of a result that is no count: to linux_result it is the errno, whatever has moved."""
    error.partial = partial  # type: ignore[attr-defined]


def linux_result(outcome: int | BaseException) -> int:
    """What a Linux system call returns for a count or an error: the count if anything moved, else ``-errno``.

    A result other than a count that was cut short (``partial``: half a path, half a struct) is ``-errno`` as well.
    Raises TypeError for what is neither an int nor an exception, and for an exception before which nothing moved and
    that is no OSError with an errno: that is a bug, not a result.
    """
    if not isinstance(outcome, BaseException):
        return check_int(outcome, "outcome")
    moved: int = getattr(outcome, "transferred", 0)
    if moved and getattr(outcome, "partial", None) is None:
        return moved
    if isinstance(outcome, OSError) and outcome.errno:
        return -outcome.errno
    if isinstance(outcome, BlockingIOError):
        return -errno.EAGAIN
    raise TypeError(f"{outcome!r} has no errno, so no system call returns it") from outcome
