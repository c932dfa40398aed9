"""Readers and Writers as Python's raw file objects.

Source: gVisor pkg/safemem/io.go (ToIOReader, ToIOWriter).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from safemem.block import Block
from safemem.block_seq import BlockSeq
from safemem.buffers import readable_view, writable_view
from safemem.errors import EndOfBlockSeqError, add_transferred, is_interrupt
from safemem.protocols import Reader, Writer, refuse_messages
from safemem.raw_stream import RawStream, is_buffered

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class ToIOReader(RawStream):
    """A Reader as a raw binary file object: io.BufferedReader, shutil.copyfileobj and struct work over it."""

    def __init__(self, reader: Reader) -> None:
        """Raises ValueError if the reader is message-oriented."""
        refuse_messages(reader, "reader")
        self._reader = reader
        self._last = b""  # the last byte before an error, kept from a buffered file

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        """Fill the buffer and return how much: 0 at the end, None if nothing is there now.

        An error after some bytes is raised by the next call, so that no byte is lost.
        """
        view = writable_view(buffer, "buffer")
        self._begin()
        if not view:
            return 0
        buffered = is_buffered(buffer)
        try:
            n = self._read(view, buffered)
        except Exception as exc:
            if not (buffered and self._midway):
                raise
            self._hold(exc)
            return None
        self._midway = buffered and bool(n)
        return n

    def _read(self, view: memoryview, buffered: bool) -> int | None:
        """How much the reader gave, None for nothing now; an error after some bytes is held."""
        if self._last:
            view[:1], self._last = self._last, b""
            return 1
        self._raise_held()
        try:
            return self._reader.read_to_blocks(BlockSeq.of(Block(view)))
        except BaseException as exc:
            done: int = getattr(exc, "transferred", 0)
            if isinstance(exc, BlockingIOError):
                return done or None
            if not done or is_interrupt(exc):
                raise
            add_transferred(exc, -done)
            self._hold(exc)
        if buffered and done > 1:  # it goes alone, as in usermem.io_sequence
            done -= 1
            self._last = bytes(view[done : done + 1])
        return done

    def write(self, data: ReadableBuffer) -> int:
        """Raises io.UnsupportedOperation."""
        raise io.UnsupportedOperation("not writable")


class ToIOWriter(RawStream):
    """A Writer as a raw binary file object: io.BufferedWriter, shutil.copyfileobj, pickle and zipfile work over it."""

    def __init__(self, writer: Writer) -> None:
        """Raises ValueError if the writer is message-oriented."""
        refuse_messages(writer, "writer")
        self._writer = writer

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: ReadableBuffer) -> int | None:
        """Write all bytes and return how many. Fewer, or None, only if the writer would block, as io has it.

        Raises the writer's own error, and ENOSPC if the writer is at its end, with the count in ``transferred``;
        io.BufferedWriter gets that count first, and the error at its next call.
        """
        view = readable_view(data, "data")
        self._begin()
        self._raise_held()
        done = 0
        try:
            for n in self._writes(view):
                done += n
        except BaseException as exc:
            add_transferred(exc, done)
            done = getattr(exc, "transferred", 0)
            if isinstance(exc, BlockingIOError):
                return done or None
            if not done or not is_buffered(data) or is_interrupt(exc):
                raise
            add_transferred(exc, -done)
            self._hold(exc)
        return done

    def _writes(self, view: memoryview) -> Iterator[int]:
        """Write all of it; what each call of the writer took."""
        while view:
            n = self._writer.write_from_blocks(BlockSeq.of(Block(view)))
            if not n:
                raise EndOfBlockSeqError
            yield n
            view = view[n:]

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Raises io.UnsupportedOperation."""
        raise io.UnsupportedOperation("not readable")
