"""IOSequence: an IO and the ranges in it that an operation is about; and user memory as file objects.

Source: gVisor pkg/usermem/usermem.go (IOSequence, IOSequenceReadWriter, IOReadWriter).
"""

from __future__ import annotations

import errno
import io
import os
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define, field

from hostarch import READ, WRITE, AddrRangeSeq
from safemem import Reader, TransferError, Writer
from safemem.buffers import check_int, readable_view, writable_view
from safemem.raw_stream import RawStream, is_buffered
from usermem.errors import FaultError, FaultReason
from usermem.memory_io import IO
from usermem.vec import copy_in_vec, copy_out_vec, zero_out_vec

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_TOP = 1 << 64


@define(unsafe_hash=True)  # not frozen: making one takes a third of the time
class IOSequence:
    """The arguments of a read or write system call: where the bytes are. A value, not to be changed."""

    io: IO
    addrs: AddrRangeSeq
    ignore_permissions: bool = field(default=False, kw_only=True)

    @property
    def num_bytes(self) -> int:
        """The bytes in all ranges. It may be 0 with ranges left, which are of zero length."""
        return self.addrs.num_bytes

    def drop_first(self, n: int) -> IOSequence:
        """The sequence without its first n bytes; see AddrRangeSeq.drop_first."""
        return IOSequence(self.io, self.addrs.drop_first(n), ignore_permissions=self.ignore_permissions)

    def take_first(self, n: int) -> IOSequence:
        """The sequence cut after n bytes; see AddrRangeSeq.take_first."""
        return IOSequence(self.io, self.addrs.take_first(n), ignore_permissions=self.ignore_permissions)

    def copy_out(self, src: ReadableBuffer) -> int:
        """copy_out_vec to the ranges: as much of src as they hold."""
        return copy_out_vec(self.io, self.addrs, src, ignore_permissions=self.ignore_permissions)

    def copy_in(self, dst: WriteableBuffer) -> int:
        """copy_in_vec from the ranges: as much as dst and they hold."""
        return copy_in_vec(self.io, self.addrs, dst, ignore_permissions=self.ignore_permissions)

    def zero_out(self, n: int) -> int:
        """zero_out_vec of the ranges: at most n bytes."""
        return zero_out_vec(self.io, self.addrs, n, ignore_permissions=self.ignore_permissions)

    def copy_out_from(self, reader: Reader) -> int:
        """IO.copy_out_from over the ranges."""
        return self.io.copy_out_from(self.addrs, reader, ignore_permissions=self.ignore_permissions)

    def copy_in_to(self, writer: Writer) -> int:
        """IO.copy_in_to over the ranges."""
        return self.io.copy_in_to(self.addrs, writer, ignore_permissions=self.ignore_permissions)

    def reader(self) -> IOSequenceReadWriter:
        """A file object that reads the ranges from their start."""
        return IOSequenceReadWriter(self)

    def writer(self) -> IOSequenceReadWriter:
        """A file object that writes the ranges from their start."""
        return IOSequenceReadWriter(self)


class _UserMemoryFile(RawStream):
    """User memory as a raw file object. A fault is met again at each call, so no error is held."""

    def readable(self) -> bool:
        """True."""
        return True

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position, and return it. It may lie past the end, where nothing is read or written.

        Raises OSError (EINVAL) if it would be negative, io.UnsupportedOperation for SEEK_END where there is no end.
        """
        self._begin()
        position, whence = check_int(offset, "offset"), check_int(whence, "whence")
        if whence == os.SEEK_CUR:
            position += self._where()
        elif whence == os.SEEK_END:
            position += self._end()
        elif whence != os.SEEK_SET:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        if position < 0:
            raise OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: seek to {position}")
        self._go(position)
        return position

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        """Fill the buffer from the position on and return how much. A short count says that a fault follows."""
        with writable_view(buffer, "buffer") as view:
            self._begin()
            n, error = _counted(self._copy_in, view)
            try:
                buffered = is_buffered(buffer)
                if buffered and n > 1:
                    # The last byte before a fault goes alone. So the buffered file's own buffer is empty when the fault
                    # is met, and the call that meets it has bytes to return just if it has read some in that call.
                    if n == len(view):
                        _, error = _counted(lambda one: self._copy_in(one, n), memoryview(bytearray(1)))
                    n -= error is not None
                if error is not None and not n:
                    if buffered and self._midway:
                        return None
                    raise error
                self._go(self._where() + n)
                self._midway = buffered and n > 0
                return n
            finally:
                del error

    def write(self, data: ReadableBuffer) -> int:
        """Write the bytes at the position and return how many.

        Raises OSError if not all could be written, with the count in ``transferred``; the position is behind them.
        io.BufferedWriter gets a short count first.
        """
        with readable_view(data, "data") as view:
            self._begin()
            n, error = _counted(self._copy_out, view)
            try:
                self._go(self._where() + n)
                if error is not None and not (n and is_buffered(data)):
                    raise error
                return n
            finally:
                del error

    def _hold(self, error: BaseException) -> None:
        pass

    @abstractmethod
    def _where(self) -> int:
        """The position."""

    @abstractmethod
    def _end(self) -> int:
        """The position of the end. Raises io.UnsupportedOperation if there is none."""

    @abstractmethod
    def _go(self, position: int) -> None:
        """Set the position."""

    @abstractmethod
    def _copy_in(self, view: memoryview, ahead: int = 0) -> int:
        """Fill the view with what lies ``ahead`` bytes behind the position. 0 at the end."""

    @abstractmethod
    def _copy_out(self, view: memoryview) -> int:
        """Write the view at the position."""


def _counted(copy: Callable[[memoryview], int], view: memoryview) -> tuple[int, OSError | None]:
    """How many bytes a copy moved, and what stopped it."""
    try:
        return copy(view), None
    except OSError as exc:
        return getattr(exc, "transferred", 0), exc


class IOSequenceReadWriter(_UserMemoryFile):
    """An IOSequence as a raw binary file object of its size: for io's buffered files, shutil, struct and zipfile.

    Reading past the end gives 0, as at the end of a file; writing past it raises ENOSPC.
    """

    def __init__(self, sequence: IOSequence) -> None:
        self._sequence = sequence
        self._left = sequence
        self._position = 0

    @property
    def num_bytes(self) -> int:
        """The bytes left. (gVisor's Len.)"""
        return self._left.num_bytes

    def _where(self) -> int:
        return self._position

    def _end(self) -> int:
        return self._sequence.num_bytes

    def _go(self, position: int) -> None:
        moved = position - self._position
        # Dropping 0 passes an empty range.
        self._left = self._left.drop_first(moved) if moved >= 0 else self._sequence.drop_first(position)
        self._position = position

    def _copy_in(self, view: memoryview, ahead: int = 0) -> int:
        return (self._left.drop_first(ahead) if ahead else self._left).copy_in(view)

    def _copy_out(self, view: memoryview) -> int:
        n = self._left.copy_out(view)
        if n < len(view):
            raise TransferError(errno.ENOSPC, "write beyond the end of the IOSequence", n)
        return n


class IOReadWriter(_UserMemoryFile):
    """User memory from an address on, as a raw binary file object. There is no end but a fault.

    ``addr`` is the position, which seek() sets and tell() gives; it moves with each read and write. At 2**64 both
    raise FaultError.
    """

    def __init__(self, io: IO, addr: int, *, ignore_permissions: bool = False) -> None:
        self._io = io
        self.addr: int = check_int(addr, "addr")
        self.ignore_permissions = ignore_permissions

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        """Fill the buffer from the position on and return how much. A short count says that a fault follows."""
        if type(buffer) is not bytearray or self._closed:
            return super().readinto(buffer)
        # The view that others need takes as long as the copy.
        try:
            n = self._copy_in(buffer)
        except OSError as exc:
            n = getattr(exc, "transferred", 0)
            if not n:
                raise
        self.addr += n
        return n

    def write(self, data: ReadableBuffer) -> int:
        if type(data) is not bytes or self._closed:
            return super().write(data)
        try:
            n = self._copy_out(data)
        except OSError as exc:
            self.addr += getattr(exc, "transferred", 0)
            raise
        self.addr += n
        return n

    def _where(self) -> int:
        return self.addr

    def _end(self) -> int:
        raise io.UnsupportedOperation("user memory has no end to seek from: use an IOSequence")

    def _go(self, position: int) -> None:
        self.addr = position

    def _copy_in(self, view: bytearray | memoryview, ahead: int = 0) -> int:
        addr = self.addr + ahead
        if addr >= _TOP and view:
            raise FaultError(addr, READ, FaultReason.OUTSIDE_RANGE)
        return self._io.copy_in(addr, view, ignore_permissions=self.ignore_permissions)

    def _copy_out(self, view: bytes | memoryview) -> int:
        if self.addr >= _TOP and view:
            raise FaultError(self.addr, WRITE, FaultReason.OUTSIDE_RANGE)
        return self._io.copy_out(self.addr, view, ignore_permissions=self.ignore_permissions)
