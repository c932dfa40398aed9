"""FaultPlan and Fault: which accesses fault, where, with which error, and how often. Values that repr() replays."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from attrs import field, frozen

from hostarch import READ_WRITE, AccessType, Arch
from safemem.buffers import check_count, check_int, check_positive
from usermem.observe.access import Access
from usermem.observe.observed import unseen
from usermem.observe.shown import checked, shown


@frozen(kw_only=True, repr=False)
class Fault:
    """A fault of the accesses that meet all of its conditions. Raises ValueError for numbers that make none.

    Where: before byte ``byte`` of the access; or, with ``addr``, before its first byte in [addr, addr + length): a
    page is ``Fault(addr=page, length=4096)``. An atomic faults as a whole. When: accesses that do what ``access`` says
    and for which ``when(access)`` is true; of those (with ``addr``: that touch the range) only the ``nth``, counted
    from 0; each with a ``probability``, drawn from ``seed``. How often: ``times`` (1: transient), or always, if None
    (sticky).

    ``errno`` EFAULT is a FaultError with the reason ``injected``; any other is the OSError of its errno, with the same
    exact ``transferred``.
    """

    addr: int | None = checked(check_count, "addr", None)
    length: int = checked(check_positive, "length", 1)
    byte: int = checked(check_count, "byte", 0)
    access: AccessType = field(default=READ_WRITE, converter=AccessType)
    when: Callable[[Access], bool] | None = None
    nth: int | None = checked(check_count, "nth", None)
    probability: float = field(default=1.0, converter=float)
    seed: int = checked(check_int, "seed", 0)
    times: int | None = checked(check_positive, "times", None)
    errno: int = checked(check_positive, "errno", errno.EFAULT)

    def __attrs_post_init__(self) -> None:
        if self.when is not None and not callable(self.when):
            raise TypeError(f"when must be a function of an Access, not {type(self.when).__name__}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must lie between 0 and 1: {self.probability}")

    def __repr__(self) -> str:
        return shown(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


def _checked_steps(steps: Iterable[int | None]) -> tuple[int | None, ...]:
    return tuple(None if step is None else check_count(step, "steps") for step in steps)


def _checked_faults(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    found = tuple(faults)
    for each in found:
        if not isinstance(each, Fault):
            raise TypeError(f"faults must be Faults, not {type(each).__name__}")
    return found


@frozen(repr=False)
class FaultPlan:
    """``steps``: for each access to come, in order, None lets it pass, a number n makes it fault before its byte n.

    An access of n bytes or fewer passes. An atomic faults whatever the number. Accesses past the end of the steps pass.
    A step n of the ith access is short for ``Fault(nth=i, byte=n)``. ``faults`` come beside them; where several meet
    in an access, the one at the lowest byte comes. Raises ValueError for a negative number.
    """

    steps: tuple[int | None, ...] = field(default=(), converter=_checked_steps)
    faults: tuple[Fault, ...] = field(default=(), converter=_checked_faults)

    def armed(self, arch: Arch) -> list[Armed]:
        """The steps and the faults, each to be asked once for each access to come."""
        faults = [ArmedFault(fault, arch) for fault in self.faults]
        return [ArmedSteps(self.steps), *faults] if self.steps else [*faults]

    def __repr__(self) -> str:
        return shown(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


class Armed(Protocol):
    """A part of a plan in use, which counts accesses. ``errno`` is that of its faults."""

    errno: int

    def offset(self, access: Access) -> int | None:
        """Before which of its bytes an access faults; None if it passes. To be asked once for each access."""
        ...

    def injected(self) -> None:
        """Count a fault that was raised."""
        ...

    def heal(self) -> None:
        """End the fault, because what was missing is there; one that is drawn goes on with the next access."""
        ...


class ArmedSteps(Armed):
    """Steps in use: all of them in one, because plans have thousands."""

    errno: int = errno.EFAULT

    def __init__(self, steps: tuple[int | None, ...]) -> None:
        self._steps = iter(steps)

    def offset(self, access: Access) -> int | None:
        return next(self._steps, None)

    def injected(self) -> None:
        """A step is over in any case."""

    def heal(self) -> None:
        """A step is over in any case."""


class ArmedFault(Armed):
    """A Fault in use: what it has counted and drawn so far.

    Counters are iterators, each step of which is one instruction to other threads. Threads that meet a fault at the
    same time may all have it, though it had one ``times`` left.
    """

    def __init__(self, fault: Fault, arch: Arch) -> None:
        self.fault = fault
        self.errno: int = fault.errno
        self._arch = arch
        self._addr = None if fault.addr is None else arch.untagged(fault.addr)
        self._seen = itertools.count()
        self._left = fault.times
        self._draw: Callable[[], float] | None = None
        if fault.probability < 1:
            import random  # 5 ms, and few need it

            self._draw = random.Random(fault.seed).random

    def offset(self, access: Access) -> int | None:
        fault = self.fault
        if not fault.access & access.access or (fault.when is not None and not unseen(fault.when, access)):
            return None
        found: int | None = fault.byte
        if self._addr is not None and (found := self._reached(access, self._addr)) is None:
            return None
        nth = next(self._seen)
        if fault.nth not in (None, nth) or (self._draw is not None and self._draw() >= fault.probability):
            return None
        return None if self._left == 0 else found

    def _reached(self, access: Access, addr: int) -> int | None:
        """How many bytes of an access come before the first one in the fault's range; None if it has none there."""
        done = 0
        end = addr + self.fault.length
        for start, stop in access.spans(self._arch):
            if start < end and addr < stop:
                return done + max(addr - start, 0)
            done += stop - start
        return None

    def injected(self) -> None:
        if self._left:
            self._left -= 1

    def heal(self) -> None:
        if self._draw is None:
            self._left = 0
