"""IOSequence: an IO and the ranges in it that an operation is about; and user memory as file objects.

Source: gVisor pkg/usermem/usermem.go (IOSequence, IOSequenceReadWriter, IOReadWriter).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define, field

from hostarch import READ, WRITE, AddrRangeSeq
from safemem import Reader, Writer
from safemem.buffers import check_int, readable_view, writable_view
from safemem.raw_stream import RawStream
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
    """User memory as a raw file object: a short count now, the error at the next call.

    Raising after a part was read would lose that part in io.BufferedReader.
    """

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True


def _moved(exc: OSError) -> int:
    """How many bytes were moved before an error, as the count of this call. Raises the error if there were none."""
    n: int = getattr(exc, "transferred", 0)
    if not n:
        raise exc
    return n


class IOSequenceReadWriter(_UserMemoryFile):
    """An IOSequence as a raw binary file object: works under io.BufferedReader, shutil.copyfileobj and struct.

    Reading past the end gives 0, as at the end of a file; writing past it raises ENOSPC.
    """

    def __init__(self, sequence: IOSequence) -> None:
        self._sequence = sequence

    @property
    def num_bytes(self) -> int:
        """The bytes left. (gVisor's Len.)"""
        return self._sequence.num_bytes

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer from the current position and return how much."""
        with writable_view(buffer, "buffer") as view:
            return self._move(self._sequence.copy_in, view)

    def write(self, data: ReadableBuffer) -> int:
        """Write the bytes at the current position and return how many were written."""
        with readable_view(data, "data") as view:
            n = self._move(self._sequence.copy_out, view)
            if not n and view:
                raise OSError(errno.ENOSPC, "write beyond the end of the IOSequence")
            return n

    def _move(self, copy: Callable[[memoryview], int], view: memoryview) -> int:
        self._begin()
        try:
            n = copy(view)
        except OSError as exc:
            self._sequence = self._sequence.drop_first(getattr(exc, "transferred", 0))
            return _moved(exc)
        self._sequence = self._sequence.drop_first(n)  # by 0 too, which passes an empty range
        return n


class IOReadWriter(_UserMemoryFile):
    """User memory from an address on, as a raw binary file object. There is no end but a fault.

    ``addr`` is the position, and moves with each read and write. At 2**64 both raise FaultError.
    """

    def __init__(self, io: IO, addr: int, *, ignore_permissions: bool = False) -> None:
        self._io = io
        self.addr = check_int(addr, "addr")
        self.ignore_permissions = ignore_permissions

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer from the current position and return how much."""
        if type(buffer) is bytearray:  # the view that others need takes as long as the copy
            return self._readinto(buffer)
        with writable_view(buffer, "buffer") as view:
            return self._readinto(view)

    def write(self, data: ReadableBuffer) -> int:
        """Write the bytes at the current position and return how many were written."""
        if type(data) is bytes:
            return self._write(data)
        with readable_view(data, "data") as view:
            return self._write(view)

    def _readinto(self, buffer: bytearray | memoryview) -> int:
        if self._error is not None or self.closed:
            self._begin()
        try:
            if self.addr >= _TOP and buffer:
                raise FaultError(self.addr, READ, FaultReason.OUTSIDE_RANGE)
            n = self._io.copy_in(self.addr, buffer, ignore_permissions=self.ignore_permissions)
        except OSError as exc:
            n = _moved(exc)
        self.addr += n
        return n

    def _write(self, data: bytes | memoryview) -> int:
        if self._error is not None or self.closed:
            self._begin()
        try:
            if self.addr >= _TOP and data:
                raise FaultError(self.addr, WRITE, FaultReason.OUTSIDE_RANGE)
            n = self._io.copy_out(self.addr, data, ignore_permissions=self.ignore_permissions)
        except OSError as exc:
            n = _moved(exc)
        self.addr += n
        return n
