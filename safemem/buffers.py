"""What a caller passes, checked: a buffer as a flat view of bytes, an integer as an int, or an error that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostarch.integers import check_count as check_count
from hostarch.integers import check_int as check_int
from hostarch.integers import check_positive as check_positive

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


def readable_view(buffer: ReadableBuffer, name: str) -> memoryview:
    """A flat view of the buffer's bytes, format ``B``; read-only if the interpreter follows pointers that lie in it.

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
    if view.format == "B" and view.ndim == 1 and view.itemsize == 1:
        return view
    if _has_pointers(view):
        view = view.toreadonly()
    if not view.nbytes:  # cast() refuses a zero in the shape
        return memoryview(bytearray())
    return view.cast("B")


def writable_view(buffer: WriteableBuffer, name: str) -> memoryview:
    """As :func:`readable_view`; raises TypeError too if the buffer is read-only, or holds pointers."""
    view = readable_view(buffer, name)
    if view.readonly:
        kind = "read-only" if memoryview(buffer).readonly else "pointers to objects in"
        raise TypeError(f"{name} must be a writable bytes-like object, not {kind} {type(buffer).__name__}")
    return view


def _has_pointers(view: memoryview) -> bool:
    """Whether a buffer's items are pointers that the interpreter follows: bytes stored there would end it.

    NumPy's objects, by the format; ctypes' objects, strings, functions and typed pointers, in structures too, by the
    type: of packed structures and unions the format does not tell what they hold.
    """
    codes = "".join(view.format.split(":")[::2])  # the names of a structure's fields lie between colons
    return "O" in codes or (view.itemsize > 1 and _holds_pointers(type(view.obj)))


def _holds_pointers(kind: type) -> bool:
    """Whether items of a ctypes type are such pointers, or have some in them."""
    inner = getattr(kind, "_type_", None)
    if isinstance(inner, str):
        return inner in "OzZ"
    if isinstance(inner, type):
        return not hasattr(kind, "_length_") or _holds_pointers(inner)
    fields = [field for base in kind.__mro__ for field in base.__dict__.get("_fields_", ())]
    return any(_holds_pointers(field[1]) for field in fields) or hasattr(kind, "_restype_")
