"""Copies between one buffer and many ranges of user memory.

They move ``min(ars.num_bytes, size of the buffer)`` bytes: truncation is no error. Ranges are checked in order and
only as far as they are reached; a zero-length range in a bad place faults if it comes before the last byte.

An IO that has a faster copy_in_vec or, for more than one range, copy_out_vec of its own is asked for it. The former by
calling it, because looking it up first costs as much as a short copy (getattr and a bound method, 90 ns; a call that
finds it, nothing).

Source: gVisor pkg/usermem/usermem.go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hostarch import AddrRangeSeq
from safemem.buffers import check_count, readable_view, writable_view
from safemem.errors import add_transferred
from usermem.memory_io import IO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


def copy_out_vec(io: IO, ars: AddrRangeSeq, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
    """Copy the bytes of src to the memory at ars, and return how many. Raises FaultError."""
    if len(ars.flat) > 2 and hasattr(io, "copy_out_vec"):
        count: int = io.copy_out_vec(ars, src, ignore_permissions=ignore_permissions)
        return count
    with readable_view(src, "src") as view:
        return _each_part(ars, view, lambda addr, part: io.copy_out(addr, part, ignore_permissions=ignore_permissions))


def copy_in_vec(io: IO, ars: AddrRangeSeq, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
    """Fill dst with the bytes at ars, and return how many. Raises FaultError."""
    try:
        count: int = io.copy_in_vec(ars, dst, ignore_permissions=ignore_permissions)  # type: ignore[attr-defined]
    except AttributeError:
        if hasattr(io, "copy_in_vec"):
            raise
        return copy_in_ranges(io, ars, dst, ignore_permissions=ignore_permissions)
    return count


def copy_in_ranges(io: IO, ars: AddrRangeSeq, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
    """:func:`copy_in_vec` by ``io.copy_in`` alone."""
    with writable_view(dst, "dst") as view:
        return _each_part(ars, view, lambda addr, part: io.copy_in(addr, part, ignore_permissions=ignore_permissions))


def zero_out_vec(io: IO, ars: AddrRangeSeq, n: int, *, ignore_permissions: bool = False) -> int:
    """Set the first n bytes at ars to 0, and return how many. Raises FaultError; ValueError if n < 0."""
    n = check_count(n, "n")
    return _each(ars, n, lambda addr, _, length: io.zero_out(addr, length, ignore_permissions=ignore_permissions))


def _each_part(ars: AddrRangeSeq, view: memoryview, move: Callable[[int, memoryview], int]) -> int:
    """Call ``move(addr, part of view)`` for each range. No part outlives its call, even in an error's traceback."""

    def step(addr: int, done: int, n: int) -> int:
        with view[done : done + n] as part:
            return move(addr, part)

    return _each(ars, len(view), step)


def _each(ars: AddrRangeSeq, total: int, move: Callable[[int, int, int], int]) -> int:
    done = 0
    for addr, length in ars.pairs():
        if done >= total:
            break
        try:
            done += move(addr, done, min(length, total - done))
        except OSError as exc:
            add_transferred(exc, done)
            raise
    return done
