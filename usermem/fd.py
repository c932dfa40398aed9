"""read(2) and its kin for a guest: bytes between a descriptor and user memory, by one system call and without a copy.

What these return and raise is what the system calls do; ``linux_result`` makes a handler of each one line. What Linux
looks at first comes first: a bad descriptor or offset before a bad address. What a fault cut short is a count, and what
lies behind the fault stays where it was: a pipe keeps it, and a file's position stands before it. The descriptor is any
int, as a guest's register has it; what is none of ours is EBADF. It stays the caller's.

read(2) loses what finds no room of a datagram: for such sockets there is :mod:`usermem.messages`.

Source: read(2), pread(2), readv(2); Linux fs/read_write.c.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeAlias

from safemem import FDReader, FDWriter
from safemem.buffers import check_int
from safemem.errors import error
from usermem.errors import FaultError
from usermem.io_sequence import IOSequence
from usermem.iovec import iovecs_io_sequence, single_io_sequence
from usermem.memory_io import IO

Sequence: TypeAlias = Callable[..., IOSequence]


def read_fd(io: IO, fd: int, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
    """read(2): move up to n bytes from a descriptor to addr, and return how many; 0 is the end.

    Raises FaultError if no byte can be stored, BlockingIOError if nothing is there now, and OSError as readv(2).
    """
    try:
        if not ignore_permissions and (view := io.cached_view(addr, n, True)) is not None:  # type: ignore[attr-defined]
            return os.readv(fd, (view,))
    except (AttributeError, OverflowError, TypeError):
        pass  # no IO of ours, or no descriptor, which is said below
    return _transfer(FDReader(fd), single_io_sequence, (io, addr, n), ignore_permissions)


def write_fd(io: IO, fd: int, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
    """write(2): move up to n bytes from addr to a descriptor, and return how many.

    Raises FaultError if no byte can be read, BlockingIOError if nothing can be taken now, and OSError as write(2).
    """
    try:
        if not ignore_permissions and (view := io.cached_view(addr, n, False)) is not None:  # type: ignore[attr-defined]
            return os.write(fd, view)
    except (AttributeError, OverflowError, TypeError):
        pass  # no IO of ours, or no descriptor, which is said below
    moved = _transfer(FDWriter(fd), single_io_sequence, (io, addr, n), ignore_permissions)
    return moved or os.write(check_int(fd, "fd"), b"")  # an empty datagram is sent


def pread_fd(io: IO, fd: int, addr: int, n: int, offset: int, *, ignore_permissions: bool = False) -> int:
    """pread(2): as :func:`read_fd`, from ``offset`` of the file on; its own position stays.

    Raises OSError too: EINVAL for an offset that is negative as an int64, ESPIPE for what has no offsets.
    """
    offset = _checked_offset(offset)
    try:
        if not ignore_permissions and (view := io.cached_view(addr, n, True)) is not None:  # type: ignore[attr-defined]
            return os.preadv(fd, (view,), offset)
    except (AttributeError, OverflowError, TypeError):
        pass  # no IO of ours, or no descriptor, which is said below
    return _transfer(FDReader(fd, offset), single_io_sequence, (io, addr, n), ignore_permissions)


def pwrite_fd(io: IO, fd: int, addr: int, n: int, offset: int, *, ignore_permissions: bool = False) -> int:
    """pwrite(2): as :func:`write_fd`, from ``offset`` of the file on; its own position stays. Raises as pread_fd."""
    offset = _checked_offset(offset)
    try:
        if not ignore_permissions and (view := io.cached_view(addr, n, False)) is not None:  # type: ignore[attr-defined]
            return os.pwrite(fd, view, offset)
    except (AttributeError, OverflowError, TypeError):
        pass  # no IO of ours, or no descriptor, which is said below
    return _transfer(FDWriter(fd, offset), single_io_sequence, (io, addr, n), ignore_permissions)


def readv_fd(io: IO, fd: int, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
    """readv(2): as :func:`read_fd`, into the n ranges of the iovec table at addr. Raises as iovecs_io_sequence too."""
    try:
        if not ignore_permissions and (views := io.cached_views(addr, n, True)):  # type: ignore[attr-defined]
            return os.readv(fd, views)
    except (AttributeError, OverflowError, TypeError):
        pass  # no IO of ours, or no descriptor, which is said below
    return _transfer(FDReader(fd), iovecs_io_sequence, (io, addr, n), ignore_permissions)


def writev_fd(io: IO, fd: int, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
    """writev(2): as :func:`write_fd`, out of the n ranges of the iovec table at addr. Raises as readv_fd."""
    try:
        if not ignore_permissions and (views := io.cached_views(addr, n, False)):  # type: ignore[attr-defined]
            return os.writev(fd, views)
    except (AttributeError, OverflowError, TypeError):
        pass  # no IO of ours, or no descriptor, which is said below
    return _transfer(FDWriter(fd), iovecs_io_sequence, (io, addr, n), ignore_permissions)


def preadv_fd(io: IO, fd: int, addr: int, n: int, offset: int, *, ignore_permissions: bool = False) -> int:
    """preadv(2): as :func:`readv_fd`, from ``offset`` of the file on; its own position stays. Raises as pread_fd."""
    offset = _checked_offset(offset)
    return _transfer(FDReader(fd, offset), iovecs_io_sequence, (io, addr, n), ignore_permissions)


def pwritev_fd(io: IO, fd: int, addr: int, n: int, offset: int, *, ignore_permissions: bool = False) -> int:
    """pwritev(2): as :func:`writev_fd`, from ``offset`` of the file on; its own position stays. Raises as pread_fd."""
    offset = _checked_offset(offset)
    return _transfer(FDWriter(fd, offset), iovecs_io_sequence, (io, addr, n), ignore_permissions)


def _transfer(
    stream: FDReader | FDWriter, sequence: Sequence, where: tuple[IO, int, int], ignore_permissions: bool
) -> int:
    """Move between a descriptor and what ``sequence(*where)`` finds, by way of the IO."""
    try:
        seq = sequence(*where, ignore_permissions=ignore_permissions)
        moved = seq.copy_out_from(stream) if isinstance(stream, FDReader) else seq.copy_in_to(stream)
    except OSError as exc:
        moved = _moved(exc, stream)
    return moved or stream.check()


def _moved(exc: OSError, stream: FDReader | FDWriter) -> int:
    """How much was moved before a fault. Else raises what the kernel says of the descriptor, or the error."""
    if isinstance(exc, FaultError) and exc.transferred and exc.partial is None:
        return exc.transferred
    stream.check()
    try:
        raise exc
    finally:
        del exc


def _checked_offset(offset: int) -> int:
    """The offset. Raises EINVAL for what is negative as an int64: to preadv2(2) -1 is the file's own position."""
    offset = check_int(offset, "offset")
    if not 0 <= offset < 1 << 63:
        raise error(errno.EINVAL, f"offset {offset:#x}")
    return offset
