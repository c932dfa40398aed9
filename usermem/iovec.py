"""What a guest hands to readv, writev and execve: tables of ranges and of strings, in its own layout.

The layout (pointer width, byte order) is that of ``arch_of(io)``.

Source: gVisor pkg/sentry/kernel/task_usermem.go; Linux lib/iov_iter.c (import_iovec), fs/exec.c.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from contextlib import suppress

from hostarch import READ, WRITE, AddrRangeSeq, Arch
from safemem.buffers import check_count, check_int
from safemem.errors import add_transferred, error
from usermem.errors import FaultError, FaultReason, NameTooLongError, bytes_before, cut_short
from usermem.io_sequence import IOSequence
from usermem.memory_io import IO, arch_of, checked_start, read_bytes, write_bytes
from usermem.scan import scan
from usermem.strings import copy_string_in

MAX_RW_COUNT = 0x7FFF_F000
"""The most bytes one read or write system call moves: INT_MAX rounded down to a page."""

UIO_MAXIOV = 1024
"""The most ranges a guest may pass to readv or writev."""

_TABLE_CHUNK = 1024  # iovecs
_VECTOR_CHUNK = 256  # bytes of pointers
_PAGE = 4096
_ERRORS = (1 << 64) - 4095  # IS_ERR(), include/linux/err.h


def copy_in_iovecs(io: IO, addr: int, n: int, *, ignore_permissions: bool = False) -> AddrRangeSeq:
    """The n ranges of the iovec table at addr.

    Entries are read in order: an unreadable one raises FaultError, a length with its sign bit set OSError (EINVAL).
    Then one that leaves user space raises FaultError. Zero-length ranges are kept, and checked; nothing need be mapped.
    The total is cut to MAX_RW_COUNT after the checks, later ranges becoming empty. With n = 0 nothing is read.

    The faults carry the ranges before them in ``partial``. ValueError if n < 0.
    """
    if type(addr) is not int or type(n) is not int or n < 0:
        addr = check_int(addr, "addr")
        n = check_count(n, "n")
    arch = arch_of(io)
    entry, top = arch.iovec, arch.max_addr
    if addr < 0 or addr + n * entry.size > arch.addr_mask:
        outside = FaultError(addr, READ, FaultReason.OUTSIDE_RANGE)
        outside.partial = AddrRangeSeq()
        try:
            raise outside
        finally:
            del outside
    flat: list[int] = []
    left = MAX_RW_COUNT
    simple = True
    fault: OSError | None = None
    for first in range(0, n, _TABLE_CHUNK):
        count = n - first if n - first < _TABLE_CHUNK else _TABLE_CHUNK
        try:
            table = read_bytes(io, addr + first * entry.size, count * entry.size, ignore_permissions=ignore_permissions)
        except OSError as exc:
            fault = exc.with_traceback(None)
            table = getattr(exc, "partial", b"")
            table = table[: len(table) // entry.size * entry.size]
            add_transferred(fault, first * entry.size)
        for start, length in entry.iter_unpack(table):
            if start + length > top or length > left:
                simple = False
            flat.append(start)
            flat.append(length)
            left -= length
        if fault is not None:
            break
    ars = AddrRangeSeq.unchecked(flat, MAX_RW_COUNT - left if simple else _check_ranges(flat, arch))
    if fault is not None:
        cut_short(fault, ars)
        try:
            raise fault
        finally:
            del fault
    return ars


def _check_ranges(flat: list[int], arch: Arch) -> int:
    """Check ranges as Linux does, lengths before addresses, cut them to MAX_RW_COUNT in all, and return that total.

    Raises as copy_in_iovecs.
    """
    for length in flat[1::2]:
        if length > arch.addr_mask >> 1:
            raise error(errno.EINVAL, f"iovec length {length:#x}")
    left = MAX_RW_COUNT
    for i in range(0, len(flat), 2):
        try:
            flat[i] = checked_start(flat[i], flat[i + 1], arch)
        except FaultError as fault:
            fault.partial = AddrRangeSeq.unchecked(flat[:i], MAX_RW_COUNT - left)
            raise
        flat[i + 1] = min(flat[i + 1], left)
        left -= flat[i + 1]
    return MAX_RW_COUNT - left


def copy_out_iovecs(io: IO, addr: int, ars: AddrRangeSeq, *, ignore_permissions: bool = False) -> int:
    """Write the ranges as an iovec table at addr, entry by entry, and return its size in bytes.

    Raises FaultError; what was written before it stays, and is in ``partial`` as bytes, but a table that leaves the
    address space is not begun. ValueError, before anything is written, if a range does not fit the guest's layout.
    """
    addr = check_int(addr, "addr")
    arch = arch_of(io)
    entry = arch.iovec
    try:
        table = [entry.pack(start, length) for start, length in ars.pairs()]
    except struct.error:
        raise ValueError(f"ars: {ars} does not fit {8 * arch.pointer_size}-bit iovecs") from None
    if table and not 0 <= addr <= arch.addr_mask - len(table) * entry.size:
        raise FaultError(addr, WRITE, FaultReason.OUTSIDE_RANGE)
    done = 0
    for packed in table:  # one by one: those before one that leaves user space are written
        try:
            done += io.copy_out(addr + done, packed, ignore_permissions=ignore_permissions)
        except OSError as exc:
            add_transferred(exc, done)
            cut_short(exc, b"".join(table)[: bytes_before(exc)])
            raise
    return done


def copy_in_vector(
    io: IO, addr: int, max_elem_size: int, max_total_size: int, *, ignore_permissions: bool = False
) -> list[bytes]:
    """The strings that the NULL-terminated table of pointers at addr points to: argv, envp.

    Each string may have max_elem_size bytes with its NUL; each costs its length + 1 against max_total_size. Linux's
    execve allows 32 pages each and, by default, 2 MiB in all, of which it takes the pointers' own bytes off.

    As execve, this reads the whole table first, then the strings from the last to the first, and raises what it meets
    first: FaultError, or OSError (E2BIG) for a string that is too long, or for what is left of the total, and at once
    for more pointers than the total has bytes. ``partial`` has the strings of the table before the first that cannot
    be had, and none if they used the total up. ValueError if a limit is negative.
    """
    addr = check_int(addr, "addr")
    limits = check_count(max_elem_size, "max_elem_size"), check_count(max_total_size, "max_total_size")
    pointers: list[int] = []
    strings: list[bytes] = []
    try:
        _copy_in_pointers(io, addr, limits[1], pointers, ignore_permissions)
        _copy_in_strings(io, pointers[::-1], limits, strings, ignore_permissions)
    except OSError as exc:
        strings.clear()
        with suppress(OSError):
            _copy_in_strings(io, pointers, limits, strings, ignore_permissions)
        used_up = len(strings) < len(pointers) and sum(map(len, strings)) + len(strings) >= limits[1]
        exc.partial = [] if used_up else strings  # type: ignore[attr-defined]
        raise
    strings.reverse()
    return strings


def _copy_in_strings(
    io: IO, pointers: list[int], limits: tuple[int, int], strings: list[bytes], ignore_permissions: bool
) -> None:
    """Add the strings at ``pointers`` to ``strings``. Raises as copy_in_vector, and has added those before."""
    most, left = limits
    try:
        for pointer in pointers:
            string = copy_string_in(io, pointer, most, ignore_permissions=ignore_permissions)
            left -= len(string) + 1
            if left < 0:
                break
            strings.append(string)
        else:
            return
    except NameTooLongError:
        pass
    raise error(errno.E2BIG, f"the string at {pointer:#x} has over {most} bytes, or all have over {limits[1]}")


def _copy_in_pointers(io: IO, addr: int, most: int, pointers: list[int], ignore_permissions: bool) -> None:
    """Add the pointers at addr before the NULL one. Raises as copy_in_vector, and has added those before."""
    arch = arch_of(io)
    word = arch.pointer.size
    while True:
        n = max(min(_VECTOR_CHUNK, -addr % _PAGE) // word, 1) * word  # not beyond the page: a fault comes in its turn
        fault: OSError | None = None
        try:
            table = scan(addr, word, read_bytes, io, addr, n, ignore_permissions=ignore_permissions)
        except OSError as exc:
            fault = exc.with_traceback(None)
            table = getattr(exc, "partial", b"")
            table = table[: len(table) // word * word]
        for (pointer,) in arch.pointer.iter_unpack(table):
            if not pointer:
                return
            pointers.append(pointer)
            if pointer >= _ERRORS:  # to the kernel an errno: it looks at no string
                raise FaultError(pointer, READ, FaultReason.OUTSIDE_RANGE)
            if len(pointers) > most:
                raise error(errno.E2BIG, f"over {most} bytes of strings")
        if fault is not None:
            fault.transferred = bytes_before(fault) % word  # type: ignore[attr-defined]
            try:
                raise fault
            finally:
                del fault
        addr = (addr + n) & arch.addr_mask


def copy_vector_out(
    io: IO, addr: int, strings: Sequence[bytes], strings_addr: int, *, ignore_permissions: bool = False
) -> int:
    """Write what :func:`copy_in_vector` reads: argv, envp. Returns how many bytes the strings take with their NULs.

    First the strings go to ``strings_addr``, upwards and without gaps, by one copy; then the pointers to them and a
    NULL go to addr, by one copy. So a table that is there points to strings that are there.

    Raises FaultError; ``partial`` has the bytes of the strings and then of the table that are stored, ``transferred``
    their number. FaultError too, before anything is written, if the strings leave the address space; ValueError if one
    has a NUL in it.
    """
    addr, at = check_int(addr, "addr"), check_int(strings_addr, "strings_addr")
    arch = arch_of(io)
    data = b"".join([string + b"\0" for string in strings])
    if data.count(0) != len(strings):
        raise ValueError("strings must not contain a NUL")
    if not 0 <= at <= arch.addr_mask + 1 - len(data):
        raise FaultError(strings_addr, WRITE, FaultReason.OUTSIDE_RANGE)
    table = b""
    for string in strings:
        table += arch.pointer.pack(at)
        at += len(string) + 1
    write_bytes(io, strings_addr, data, ignore_permissions=ignore_permissions)
    try:
        write_bytes(io, addr, table + arch.pointer.pack(0), ignore_permissions=ignore_permissions)
    except OSError as exc:
        cut_short(exc, data + getattr(exc, "partial", b""))
        add_transferred(exc, len(data))
        raise
    return len(data)


def single_io_sequence(io: IO, addr: int, length: int, *, ignore_permissions: bool = False) -> IOSequence:
    """The buffer of read(2) or write(2): ``length`` bytes at addr, cut to MAX_RW_COUNT.

    Raises FaultError if it leaves user space, or if the length is negative as a guest's ssize_t.
    """
    if type(addr) is not int or type(length) is not int:  # the calls are a fifth of the time
        addr, length = check_int(addr, "addr"), check_int(length, "length")
    start = checked_start(addr, length, arch_of(io))  # of all of it, as access_ok() before the count is cut
    if length > MAX_RW_COUNT:
        length = MAX_RW_COUNT
    ars = AddrRangeSeq.unchecked([start, length], length)
    # A call with a keyword takes 100 ns longer, a sixth of the whole.
    return IOSequence(io, ars, ignore_permissions=True) if ignore_permissions else IOSequence(io, ars)


def iovecs_io_sequence(io: IO, addr: int, iovcnt: int, *, ignore_permissions: bool = False) -> IOSequence:
    """The buffers of readv(2) or writev(2): ``iovcnt`` iovecs at addr.

    Raises OSError (EINVAL) if iovcnt is negative or over UIO_MAXIOV, else as :func:`copy_in_iovecs`.
    """
    if type(iovcnt) is not int:
        iovcnt = check_int(iovcnt, "iovcnt")
    if not 0 <= iovcnt <= UIO_MAXIOV:
        raise error(errno.EINVAL, f"{iovcnt} iovecs")
    ars = copy_in_iovecs(io, addr, iovcnt, ignore_permissions=ignore_permissions)
    return IOSequence(io, ars, ignore_permissions=ignore_permissions)
