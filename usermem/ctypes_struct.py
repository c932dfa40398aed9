"""ctypes' structures, unions and arrays in user memory.

ctypes lays types out for the host, so a type is refused where the guest's layout is another: in another byte order,
with pointers of another size, or with fields at other offsets. Use ``BigEndianStructure`` for a big-endian guest,
``c_uint32`` for a 32-bit guest's pointers, and ``_pack_`` where the guest aligns less. A structure that names the byte
order that the host has not is taken as it is: networks have such. ``c_long`` has the host's size, for ctypes does not
distinguish it from ``c_int64``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from hostarch import HOST_BYTE_ORDER, Arch
from usermem.memory_io import IO, arch_of, read_bytes, write_bytes

if TYPE_CHECKING:
    from ctypes import Array, Structure, Union

    CType = Structure | Union | Array[Any]
    C = TypeVar("C", bound=CType)
else:
    C = TypeVar("C")


def copy_ctypes_in(io: IO, addr: int, kind: type[C], *, ignore_permissions: bool = False) -> C:
    """A new structure, union or array of this type, with the bytes at addr.

    Raises FaultError with the bytes before the fault in ``partial``; TypeError if the guest has another layout, or the
    type has objects or typed pointers in it, which the interpreter would follow.
    """
    import ctypes  # 2 ms

    _check(kind, arch_of(io))
    data = read_bytes(io, addr, ctypes.sizeof(kind), ignore_permissions=ignore_permissions)
    value: C = kind.from_buffer_copy(data)  # type: ignore[assignment]  # typeshed: the bound, not C
    return value


def copy_ctypes_out(io: IO, addr: int, value: CType, *, ignore_permissions: bool = False) -> int:
    """Store a structure, union or array at addr, padding too, and return its size in bytes.

    Raises FaultError with the bytes before it, which are stored, in ``partial``; TypeError as :func:`copy_ctypes_in`.
    """
    _check(type(value), arch_of(io))
    return write_bytes(io, addr, memoryview(value).tobytes(), ignore_permissions=ignore_permissions)


def _check(kind: Any, arch: Arch) -> None:
    """Raise TypeError if this type is no ctypes type, or has another layout in the guest."""
    import ctypes

    try:
        here = ctypes.sizeof(kind)  # which changes if a structure gets its fields later
    except TypeError:
        here = 0
    _check_layout(kind, arch, here)


@lru_cache(256)  # to go through a structure takes 2 us a field
def _check_layout(kind: Any, arch: Arch, here: int) -> None:
    import ctypes

    if not isinstance(kind, type) or not issubclass(kind, ctypes.Structure | ctypes.Union | ctypes.Array):
        raise TypeError(f"a ctypes structure, union or array is needed, not {kind!r}")
    size, _ = _guest_layout(kind, arch)
    if size != here:
        raise TypeError(f"{kind.__name__} has {size} bytes in {arch.name}, {here} here: set _pack_")


def _guest_layout(kind: Any, arch: Arch) -> tuple[int, int]:
    """The size and alignment a ctypes type has in the guest. Raises TypeError as :func:`_check`."""
    import ctypes

    if issubclass(kind, ctypes.Array):
        size, align = _guest_layout(kind._type_, arch)
        return size * kind._length_, align
    if not issubclass(kind, ctypes.Structure | ctypes.Union):
        return _simple_layout(kind, arch)
    size, align = 0, 1
    for base in reversed(kind.__mro__):
        for name, inner, *bits in base.__dict__.get("_fields_", ()):
            inner_size, inner_align = _guest_layout(inner, arch)
            inner_align = min(inner_align, getattr(kind, "_pack_", 0) or inner_align)
            align = max(align, inner_align)
            start = 0 if issubclass(kind, ctypes.Union) else -(-size // inner_align) * inner_align
            there = getattr(kind, name).offset
            if start != there and not bits:
                raise TypeError(f"{kind.__name__}.{name} is at {start} in {arch.name}, at {there} here: set _pack_")
            size = max(size, there + inner_size)
        size = -(-size // align) * align
    return size, align


def _simple_layout(kind: Any, arch: Arch) -> tuple[int, int]:
    import ctypes

    code = getattr(kind, "_type_", None)
    size = ctypes.sizeof(kind)
    if not isinstance(code, str) or code in "OzZg":
        use = f"c_uint{8 * arch.pointer_size} for a pointer"
        raise TypeError(f"{kind.__name__} is a pointer for the interpreter, or the host's own: use {use}")
    if code == "P" and size != arch.pointer_size:
        raise TypeError(f"{kind.__name__} has {size} bytes, pointers of {arch.name} have {arch.pointer_size}")
    # A type of the other byte order is a class of its own, whose __ctype_le__ (or be) is the host's.
    native = kind is getattr(kind, f"__ctype_{HOST_BYTE_ORDER[0]}e__", kind)
    if size > 1 and native and arch.byte_order != HOST_BYTE_ORDER:
        other = arch.byte_order.capitalize()
        raise TypeError(f"{kind.__name__} is {HOST_BYTE_ORDER}-endian: use {other}EndianStructure for {arch.name}")
    return size, min(ctypes.alignment(kind), arch.max_align)
