"""Scans: reads that look for a zero, of a string or a table of pointers, and may read past it to the end of a page.

What lies behind the zero is read and not used. Observers that ask which bytes a handler used (usermem.observe) learn
from SCAN which reads these are, however many other observers lie between.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

SCAN: Final[ContextVar[tuple[int, int] | None]] = ContextVar("usermem_scan", default=None)
"""Where what is read began, and the size of its units, one of which is zero; None while this thread scans nothing."""


def scan(start: int, unit: int, read: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call ``read`` for the next piece of a string, or a table, that begins at ``start``."""
    before = SCAN.get()
    try:
        SCAN.set((start, unit))
        return read(*args, **kwargs)
    finally:
        SCAN.set(before)  # an interrupt could lose the token for a reset
