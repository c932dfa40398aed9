"""Single values, arrays and C structs in user memory, in the guest's byte order.

A layout is a ``struct.Struct``, which is what it says, or a format, which is laid out as the guest's C compiler does
(:meth:`hostarch.Arch.struct`): ``"iPq"`` is a struct, ``"100I"`` an array, which is read and written by one copy.

Source: gVisor pkg/marshal/primitive (CopyUint32In and kin); the standard library's struct formats.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import Any

from hostarch import ByteOrder
from safemem.buffers import check_count, check_int
from safemem.errors import add_transferred, error
from usermem.errors import cut_short
from usermem.memory_io import IO, arch_of, read_bytes, write_bytes

_Int = dict[ByteOrder, Struct]
_UINT8, _UINT16, _UINT32, _UINT64, _INT8, _INT16, _INT32, _INT64 = (
    _Int({"little": Struct("<" + code), "big": Struct(">" + code)}) for code in "BHIQbhiq"
)


def copy_struct_in(io: IO, addr: int, layout: Struct | str, *, ignore_permissions: bool = False) -> tuple[Any, ...]:
    """Unpack the struct at addr. Asks an IO's own method of this name.

    Raises FaultError, with the bytes before the fault in ``partial``.
    """
    if type(layout) is not Struct and isinstance(layout, str):  # in this order it costs 10 ns of 330, not 35
        layout = arch_of(io).struct(layout)
    found: tuple[Any, ...]
    try:
        if not ignore_permissions:  # a call with a keyword takes longer
            found = io.copy_struct_in(addr, layout)  # type: ignore[attr-defined]
        else:
            found = io.copy_struct_in(addr, layout, ignore_permissions=True)  # type: ignore[attr-defined]
    except AttributeError:
        if hasattr(io, "copy_struct_in"):
            raise
        return layout.unpack(read_bytes(io, addr, layout.size, ignore_permissions=ignore_permissions))
    return found


def copy_struct_out(io: IO, addr: int, layout: Struct | str, *values: Any, ignore_permissions: bool = False) -> int:
    """Pack values at addr and return the size in bytes. Raises struct.error if values do not fit.

    Raises FaultError with the bytes before the fault, which are stored, in ``partial``; so do the others.
    """
    if isinstance(layout, str):
        layout = arch_of(io).struct(layout)
    return write_bytes(io, addr, layout.pack(*values), ignore_permissions=ignore_permissions)


def copy_struct_from_user(
    io: IO, addr: int, size: int, layout: Struct | str, *, ignore_permissions: bool = False
) -> tuple[Any, ...]:
    """Unpack a struct that has ``size`` bytes at addr, as its version of the guest's has (clone3, openat2).

    What a shorter one lacks is zero; what a longer one has behind ``layout`` must be, and is looked at first. Raises
    OSError (E2BIG) if it is not, or for more than a page; FaultError as :func:`copy_struct_in`; ValueError if size is
    negative. (Linux's copy_struct_from_user, include/linux/uaccess.h.)
    """
    addr, size = check_int(addr, "addr"), check_count(size, "size")
    if isinstance(layout, str):
        layout = arch_of(io).struct(layout)
    known = min(size, layout.size)
    if size > arch_of(io).page_size:
        raise error(errno.E2BIG, f"a struct of {size} bytes")
    try:
        rest = read_bytes(io, addr + known, size - known, ignore_permissions=ignore_permissions)
    except OSError as exc:
        rest = getattr(exc, "partial", b"")
        if not any(rest):
            cut_short(exc, read_bytes(io, addr, known, ignore_permissions=ignore_permissions) + rest)
            add_transferred(exc, known)
            raise
    if any(rest):
        raise error(errno.E2BIG, f"a struct of {size} bytes, not all zero behind {known}")
    found = read_bytes(io, addr, known, ignore_permissions=ignore_permissions)
    return layout.unpack(found.ljust(layout.size, b"\0"))


def copy_uint8_in(io: IO, addr: int, *, ignore_permissions: bool = False) -> int:
    """The byte at addr. Raises FaultError; so do the others."""
    return _copy_int_in(io, addr, _UINT8, ignore_permissions)


def copy_uint16_in(io: IO, addr: int, *, ignore_permissions: bool = False) -> int:
    """The uint16 at addr."""
    return _copy_int_in(io, addr, _UINT16, ignore_permissions)


def copy_uint32_in(io: IO, addr: int, *, ignore_permissions: bool = False) -> int:
    """The uint32 at addr, at any alignment; not atomic (IO.load_uint32 is). Asks an IO's own method of this name."""
    try:
        value: int = io.copy_uint32_in(addr, ignore_permissions=ignore_permissions)  # type: ignore[attr-defined]
    except AttributeError:
        if hasattr(io, "copy_uint32_in"):
            raise
        return _copy_int_in(io, addr, _UINT32, ignore_permissions)
    return value


def copy_uint64_in(io: IO, addr: int, *, ignore_permissions: bool = False) -> int:
    """The uint64 at addr."""
    return _copy_int_in(io, addr, _UINT64, ignore_permissions)


def copy_int8_in(io: IO, addr: int, *, ignore_permissions: bool = False) -> int:
    """The int8 at addr."""
    return _copy_int_in(io, addr, _INT8, ignore_permissions)


def copy_int16_in(io: IO, addr: int, *, ignore_permissions: bool = False) -> int:
    """The int16 at addr."""
    return _copy_int_in(io, addr, _INT16, ignore_permissions)


def copy_int32_in(io: IO, addr: int, *, ignore_permissions: bool = False) -> int:
    """The int32 at addr."""
    return _copy_int_in(io, addr, _INT32, ignore_permissions)


def copy_int64_in(io: IO, addr: int, *, ignore_permissions: bool = False) -> int:
    """The int64 at addr."""
    return _copy_int_in(io, addr, _INT64, ignore_permissions)


def copy_pointer_in(io: IO, addr: int, *, ignore_permissions: bool = False) -> int:
    """The pointer at addr, as wide as the guest's are."""
    value: int = copy_struct_in(io, addr, arch_of(io).pointer, ignore_permissions=ignore_permissions)[0]
    return value


def copy_uint8_out(io: IO, addr: int, value: int, *, ignore_permissions: bool = False) -> int:
    """Store a byte at addr and return 1. Raises FaultError; OverflowError if it does not fit. So do the others."""
    return _copy_int_out(io, addr, value, 1, False, ignore_permissions)


def copy_uint16_out(io: IO, addr: int, value: int, *, ignore_permissions: bool = False) -> int:
    """Store a uint16 at addr and return 2."""
    return _copy_int_out(io, addr, value, 2, False, ignore_permissions)


def copy_uint32_out(io: IO, addr: int, value: int, *, ignore_permissions: bool = False) -> int:
    """Store a uint32 at addr and return 4."""
    return _copy_int_out(io, addr, value, 4, False, ignore_permissions)


def copy_uint64_out(io: IO, addr: int, value: int, *, ignore_permissions: bool = False) -> int:
    """Store a uint64 at addr and return 8."""
    return _copy_int_out(io, addr, value, 8, False, ignore_permissions)


def copy_int8_out(io: IO, addr: int, value: int, *, ignore_permissions: bool = False) -> int:
    """Store an int8 at addr and return 1."""
    return _copy_int_out(io, addr, value, 1, True, ignore_permissions)


def copy_int16_out(io: IO, addr: int, value: int, *, ignore_permissions: bool = False) -> int:
    """Store an int16 at addr and return 2."""
    return _copy_int_out(io, addr, value, 2, True, ignore_permissions)


def copy_int32_out(io: IO, addr: int, value: int, *, ignore_permissions: bool = False) -> int:
    """Store an int32 at addr and return 4."""
    return _copy_int_out(io, addr, value, 4, True, ignore_permissions)


def copy_int64_out(io: IO, addr: int, value: int, *, ignore_permissions: bool = False) -> int:
    """Store an int64 at addr and return 8."""
    return _copy_int_out(io, addr, value, 8, True, ignore_permissions)


def copy_pointer_out(io: IO, addr: int, value: int, *, ignore_permissions: bool = False) -> int:
    """Store a pointer at addr and return its size."""
    return _copy_int_out(io, addr, value, arch_of(io).pointer_size, False, ignore_permissions)


def _copy_int_in(io: IO, addr: int, kind: _Int, ignore_permissions: bool) -> int:
    value: int
    if not ignore_permissions:
        try:  # as copy_struct_in, without a call and arch_of, which are a fifth of the time
            (value,) = io.copy_struct_in(addr, kind[io.arch.byte_order])  # type: ignore[attr-defined]
            return value
        except AttributeError:
            if hasattr(io, "copy_struct_in") and hasattr(io, "arch"):
                raise
    (value,) = copy_struct_in(io, addr, kind[arch_of(io).byte_order], ignore_permissions=ignore_permissions)
    return value


def _copy_int_out(io: IO, addr: int, value: int, size: int, signed: bool, ignore_permissions: bool) -> int:
    data = check_int(value, "value").to_bytes(size, arch_of(io).byte_order, signed=signed)
    return write_bytes(io, addr, data, ignore_permissions=ignore_permissions)
