"""What a caller passes, checked: a buffer as a flat view of bytes, an integer as an int, or an error that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostarch.integers import check_count as check_count
from hostarch.integers import check_int as check_int

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
