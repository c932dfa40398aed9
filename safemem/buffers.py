"""A caller's buffer as a flat view of bytes, or an error that names the argument."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


def readable_view(buffer: ReadableBuffer, name: str) -> memoryview:
    """A flat view of the buffer's bytes, format ``B``.

    Raises TypeError if it is no buffer and ValueError if its bytes are not contiguous; both name the argument.
    """
    try:
        view = memoryview(buffer)
    except TypeError:
        raise TypeError(f"{name} must be a bytes-like object, not {type(buffer).__name__}") from None
    except BufferError as exc:
        raise ValueError(f"{name} must be a contiguous buffer: {exc}") from None
    if not view.c_contiguous:
        raise ValueError(f"{name} must be a contiguous buffer")
    if view.ndim == 1 and view.format == "B":
        return view
    if not view.nbytes:  # cast() refuses a zero in the shape
        return memoryview(bytearray())
    return view.cast("B")


def writable_view(buffer: WriteableBuffer, name: str) -> memoryview:
    """As :func:`readable_view`; raises TypeError too if the buffer is read-only."""
    view = readable_view(buffer, name)
    if view.readonly:
        raise TypeError(f"{name} must be a writable bytes-like object, not read-only {type(buffer).__name__}")
    return view


def check_int(value: int, name: str) -> int:
    """The value as an int, NumPy's and the like too. Raises TypeError, naming the argument, if it is none."""
    if type(value) is int:
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None


def check_count(n: int, name: str) -> None:
    """Raise ValueError, naming the argument, if a count is negative, and TypeError if it is no int."""
    if check_int(n, name) < 0:
        raise ValueError(f"{name} must not be negative: {n}")
