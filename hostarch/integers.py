"""Integers that a caller or a guest passes, as ints: NumPy's and ctypes' too, before any arithmetic.

Fixed-width integers wrap or raise OverflowError in arithmetic, so a public function converts what it is passed first.
Where even the call of :func:`check_int` is too slow, a quick way computes with :data:`PAGE_SHIFT` instead.
"""

from __future__ import annotations

import operator
import sys
from typing import Final


class _ForIntsOnly(int):
    """An int with which NumPy's scalars refuse to compute: ``scalar >> this`` is a TypeError, without a cost for ints.

    (NumPy's ``__array_ufunc__ = None``: binary operators return NotImplemented.)
    """

    __array_ufunc__ = None


PAGE_SHIFT: Final = _ForIntsOnly(12)
"""``addr >> PAGE_SHIFT`` is the 4 KiB page of an int; a TypeError for NumPy's, ctypes' and other integers."""


def check_int(value: int, name: str) -> int:
    """The value as an int, NumPy's and ctypes' too. Raises TypeError, naming the argument, if it is none."""
    if type(value) is int:
        return value
    try:
        return operator.index(value)
    except TypeError:
        found = _ctypes_value(value)
        if found is None:
            raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None
        return found


def _ctypes_value(value: object) -> int | None:
    """The value of a ctypes integer, which has no ``__index__``; None for anything else."""
    ctypes = sys.modules.get("ctypes")  # who has one has imported it
    if ctypes is None or not isinstance(value, ctypes._SimpleCData):
        return None
    if isinstance(value, ctypes.c_void_p):
        return value.value or 0
    return value.value if isinstance(value.value, int) else None


def check_positive(n: int, name: str) -> int:
    """The size as an int. Raises ValueError, naming the argument, if it is not positive; TypeError if it is no int."""
    n = check_int(n, name)
    if n <= 0:
        raise ValueError(f"{name} must be positive: {n}")
    return n


def check_count(n: int, name: str) -> int:
    """The count as an int. Raises ValueError, naming the argument, if it is negative, and TypeError if it is no int."""
    if type(n) is not int:
        n = check_int(n, name)
    if n < 0:
        raise ValueError(f"{name} must not be negative: {n}")
    return n
