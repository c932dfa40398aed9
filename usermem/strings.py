"""Strings of unknown length, and numbers in decimal, from user memory.

Source: gVisor pkg/usermem/usermem.go (CopyStringIn, CopyInt32StringsInVec); Linux lib/strncpy_from_user.c,
lib/strnlen_user.c.
"""

from __future__ import annotations

import re

from hostarch import AddrRangeSeq
from safemem.buffers import check_count, check_int
from safemem.errors import add_transferred
from usermem.errors import InvalidIntegerError, NameTooLongError, bytes_before, cut_short
from usermem.memory_io import IO, read_bytes, write_bytes
from usermem.scan import scan
from usermem.vec import copy_in_vec

_CHUNK = 4096
_PIECE = 1 << 16


def copy_string_in(io: IO, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
    """The bytes at addr up to the first NUL, which is not included but counts against maxlen.

    A NUL before a fault is found, however near the fault. Nothing past the page of the NUL is touched.

    Raises FaultError, or NameTooLongError if there is no NUL within maxlen bytes; both carry the bytes so far in
    ``partial``. ValueError if maxlen < 0. An IO that has a method of this name is asked for it.
    """
    try:
        string: bytes = io.copy_string_in(addr, maxlen, ignore_permissions=ignore_permissions)  # type: ignore[attr-defined]
    except AttributeError:
        if hasattr(io, "copy_string_in"):
            raise
        return copy_string_in_chunks(io, addr, maxlen, ignore_permissions=ignore_permissions)
    return string


def copy_string_in_chunks(
    io: IO, addr: int, maxlen: int, *, ignore_permissions: bool = False, first: int = 64
) -> bytes:
    """:func:`copy_string_in` by ``io.copy_in`` alone, in reads that start at ``first`` bytes and never cross 4 KiB."""
    addr = check_int(addr, "addr")
    maxlen = check_count(maxlen, "maxlen")
    parts: list[bytes] = []
    done = 0
    size = first
    while done < maxlen:
        start = addr + done
        n = min(size, maxlen - done, _CHUNK - start % _CHUNK)
        buffer = bytearray(n)
        fault: OSError | None = None
        try:
            scan(addr, 1, io.copy_in, start, buffer, ignore_permissions=ignore_permissions)
        except OSError as exc:
            fault = exc.with_traceback(None)
            buffer = buffer[: bytes_before(exc)]
        end = buffer.find(0)
        if end >= 0:
            parts.append(bytes(buffer[:end]))
            return b"".join(parts)
        parts.append(bytes(buffer))
        if fault is not None:
            cut_short(fault, b"".join(parts))
            add_transferred(fault, done)
            try:
                raise fault
            finally:
                del fault
        done += n
        size = min(2 * size, _CHUNK)
    raise NameTooLongError(b"".join(parts))


def strncpy_from_user(io: IO, addr: int, count: int, *, ignore_permissions: bool = False) -> bytes:
    """The bytes at addr up to the first NUL, at most ``count``: if it is ``count`` of them, no NUL was met.

    As Linux's function, of which the length is the result; with ``count`` 0 nothing is read. Use :func:`copy_string_in`
    where a string that is too long is an error. Raises FaultError as that; ValueError if count < 0.
    """
    try:
        return copy_string_in(io, addr, count, ignore_permissions=ignore_permissions)
    except NameTooLongError as exc:
        return bytes(exc.partial)


def strnlen_user(io: IO, addr: int, count: int, *, ignore_permissions: bool = False) -> int:
    """The size of the string at addr with its NUL, or ``count + 1`` if there is none in ``count`` bytes.

    As Linux's function, but for a fault, which is 0 there: raises FaultError as :func:`copy_string_in`. (Of a string
    that is too long Linux may return any size above ``count``.) 0 if count is 0; ValueError if it is negative.
    """
    count = check_count(count, "count")
    try:
        return len(copy_string_in(io, addr, count, ignore_permissions=ignore_permissions)) + 1
    except NameTooLongError:
        return count + 1 if count else 0


def copy_string_out(io: IO, addr: int, string: bytes, *, ignore_permissions: bool = False) -> int:
    """Store a string and its NUL at addr, and return how many bytes that are.

    Raises FaultError with the bytes before it, which are stored, in ``partial``; ValueError if a NUL is in the string.
    """
    if 0 in string:
        raise ValueError(f"string must not contain a NUL: {string!r}")
    return write_bytes(io, addr, string + b"\0", ignore_permissions=ignore_permissions)


_SPACE = b" \t\n\v\f\r"
# A token that Go's ParseInt(token, 10, 32) takes, up to ten digits that count, with the space before it.
_INT = re.compile(rb"[ \t-\r]*([+-]?)(?=[0-9])0*([0-9]{0,10})(?![^ \t-\r])")


def copy_int32_strings_in_vec(
    io: IO, ars: AddrRangeSeq, count: int, *, ignore_permissions: bool = False
) -> tuple[int, list[int]]:
    """Up to ``count`` decimal int32 values, separated by ASCII whitespace, from the memory at ars.

    Returns (bytes consumed, values): at least one value, trailing whitespace counted, as Linux's proc_dointvec. With
    count 0 nothing is read. All of ars is read before it is parsed: take_first what you are ready to spend.

    Raises InvalidIntegerError at a token that is no decimal int32, or if there is none. Raises FaultError if memory
    faults; what came before it is parsed, a cut number too, and is in ``partial`` as this function returns it, its
    consumed bytes in ``transferred``. ValueError if count < 0.
    """
    count = check_count(count, "count")
    if not count:
        return 0, []
    data, fault = _read_all(io, ars, ignore_permissions)
    values: list[int] = []
    consumed = 0
    while len(values) < count and consumed < len(data):
        number = _INT.match(data, consumed)
        value = int(number[1] + (number[2] or b"0")) if number is not None else 1 << 31
        if number is None or not -(1 << 31) <= value < 1 << 31:
            consumed = _start_of_token(data, consumed)
            if consumed == len(data):
                break
            raise InvalidIntegerError(consumed, values)
        values.append(value)
        consumed = number.end()
    consumed = _start_of_token(data, consumed)
    if fault is not None:
        cut_short(fault, (consumed, values))
        fault.transferred = consumed  # type: ignore[attr-defined]
        try:
            raise fault
        finally:
            del fault
    if not values:
        raise InvalidIntegerError(consumed, values)
    return consumed, values


def _start_of_token(data: bytes, start: int) -> int:
    """Where the white space that begins at ``start`` ends."""
    while start < len(data) and data[start] in _SPACE:
        start += 1
    return start


def _read_all(io: IO, ars: AddrRangeSeq, ignore_permissions: bool) -> tuple[bytes, OSError | None]:
    """The bytes at ars up to a fault, and that fault: piece by piece, since a guest may name more than a host has."""
    if len(ars.flat) == 2 and ars.window is None and 0 < ars.flat[1] <= _PIECE:  # as is usual, in a third of the time
        try:
            return read_bytes(io, *ars.flat, ignore_permissions=ignore_permissions), None
        except OSError as exc:
            return getattr(exc, "partial", b""), exc.with_traceback(None)
    pieces = []
    while True:
        left = ars.num_bytes
        piece = bytearray(left if 0 <= left < _PIECE else _PIECE)
        try:
            n = copy_in_vec(io, ars, piece, ignore_permissions=ignore_permissions)
        except OSError as exc:
            pieces.append(piece[: bytes_before(exc)])
            return b"".join(pieces), exc.with_traceback(None)
        pieces.append(piece)
        if n == left:
            return b"".join(pieces), None
        ars = ars.drop_first(n)


def copy_int32_string_in_vec(io: IO, ars: AddrRangeSeq, *, ignore_permissions: bool = False) -> tuple[int, int]:
    """(bytes consumed, the value): :func:`copy_int32_strings_in_vec` for one value."""
    consumed, values = copy_int32_strings_in_vec(io, ars, 1, ignore_permissions=ignore_permissions)
    return consumed, values[0]
