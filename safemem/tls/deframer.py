"""Deframer: the private buffer that ciphertext is received into, and the records in it.

The buffer is [ used | records and a part of the next | free ]. ``pop`` borrows the next whole record, which is
decrypted where it lies; ``discard`` moves what is left to the front, once per receive and not per record. Who needs
every nanosecond, RecordLayer.run, walks over the records by ``start``, ``header`` and ``length`` and borrows none.

Source: rustls (msgs/deframer); RFC 8446 section 5.1, 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from safemem.block import Block, BlockCursor
from safemem.buffers import readable_view
from safemem.tls.errors import Alert, TLSError
from safemem.tls.record import HEADER, MAX_BODY, MAX_CONTENT, MAX_RECORD, TAG, ContentType

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def protected_length(header: bytes) -> int:
    """The length of a protected record's body. Its version is not looked at (RFC 8446 section 5.1)."""
    kind = header[0]
    if kind != ContentType.APPLICATION_DATA:
        raise TLSError(Alert.UNEXPECTED_MESSAGE, f"a record of type {kind} where all are protected")
    length = int.from_bytes(header[3:], "big")
    if length > MAX_BODY:
        raise TLSError(Alert.RECORD_OVERFLOW, f"a record of {length} bytes, more than {MAX_CONTENT} and their overhead")
    if length < TAG:
        raise TLSError(Alert.BAD_RECORD_MAC, f"a record of {length} bytes, too short for its tag")
    return length


def any_length(header: bytes) -> int:
    """The length of the body of a record of any type, protected or not: those of a handshake. Its version is not
    looked at. Raises TLSError for a type that TLS does not have, and for more than RFC 8446 sections 5.1 and 5.2 allow.
    """
    kind = header[0]
    if kind not in ContentType.__members__.values():
        raise TLSError(Alert.UNEXPECTED_MESSAGE, f"a record of type {kind}")
    length = int.from_bytes(header[3:], "big")
    limit = MAX_RECORD - HEADER if kind == ContentType.APPLICATION_DATA else MAX_CONTENT
    if length > limit:
        raise TLSError(Alert.RECORD_OVERFLOW, f"a record of type {kind} and {length} bytes, more than {limit}")
    return length


class BorrowedRecord(BlockCursor):
    """A record's body in a Deframer's buffer, which stays where it is until this is released: use it as a context
    manager. ``take`` cuts it into views, content and tag say, that live as long. ``at`` is its place in the buffer,
    ``length`` its size in bytes, ``header`` what came before it, ``kind`` the type that the header has.
    """

    def __init__(self, deframer: Deframer, at: int, length: int) -> None:
        """``length`` bytes at ``at`` of the buffer, which lie inside."""
        super().__init__(Block.from_view(deframer.buffer, at, length))
        self.at = at
        self.length = length
        self.header: bytes = deframer.header
        self.kind: int = self.header[0]
        self._taken: list[memoryview] = []
        self._deframer = deframer
        deframer._borrowed.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def take(self, n: int) -> memoryview | None:
        """The next n bytes as BlockCursor.take gives them. Raises ValueError once it is released."""
        view = super().take(n)
        if view is not None:
            self._taken.append(view)
        return view

    def wipe(self) -> None:
        """Overwrite the body with zeros."""
        self._view[:] = bytes(self.length)

    def release(self) -> None:
        """Give it back: what was taken cannot be used any more. A second call does nothing."""
        for view in (*self._taken, self._view):
            view.release()
        self._deframer._borrowed.discard(self)


class Deframer:
    """Finds the records in a byte stream.

    ``buffer`` is its memory, writable, and ``memory`` the same as a bytearray. What has been received and not popped
    lies from ``start`` to ``end``; ``header`` is the one that was read last, and ``length`` that of its body.
    """

    def __init__(
        self, size: int, received: bytes = b"", *, body_length: Callable[[bytes], int] = protected_length
    ) -> None:
        """The buffer grows to hold ``received``, if it must. ``body_length`` finds the length of a record's body in its
        header, and raises TLSError for one that cannot be right: :func:`protected_length`, :func:`any_length`.

        Raises ValueError if ``size`` would hold no record.
        """
        if size < MAX_RECORD:
            raise ValueError(f"buffer_size must be at least {MAX_RECORD}, one record, not {size}")
        self.memory: bytearray = bytearray(received).ljust(size, b"\0")
        self.buffer: memoryview = memoryview(self.memory)
        self.start: int = 0
        self.end: int = len(received)
        self.header: bytes = b""
        self.length: int = 0
        self._borrowed: set[BorrowedRecord] = set()
        self._body_length = body_length

    @property
    def buffered(self) -> int:
        """How many received bytes have not been popped."""
        return self.end - self.start

    def pop(self) -> BorrowedRecord | None:
        """The next record, or None if no whole one is there.

        Raises TLSError as soon as a header is there that cannot be right.
        """
        if self.end - self.start < HEADER:
            return None
        self.read_header()
        at = self.start + HEADER
        if at + self.length > self.end:
            return None
        self.start = at + self.length
        return BorrowedRecord(self, at, self.length)

    def read_header(self) -> None:
        """Read the header at ``start``, which must be there whole. Raises TLSError if it cannot be right."""
        header = self.memory[self.start : self.start + HEADER]
        if header != self.header:
            self.length = self._body_length(bytes(header))
            self.header = bytes(header)

    def whole_record(self) -> bool:
        """Whether ``pop`` would find a record, or a header that cannot be right."""
        start = self.start
        if self.end - start < HEADER:
            return False
        try:
            return self.end - start >= HEADER + self._body_length(bytes(self.memory[start : start + HEADER]))
        except TLSError:
            return True

    def discard(self) -> None:
        """Forget what was popped, and move the rest to the front. Raises BufferError while a record is borrowed."""
        if self._borrowed:
            raise BufferError("a record is still borrowed")
        left = self.end - self.start
        if self.start:
            self.buffer[:left] = self.buffer[self.start : self.end]
            self.start, self.end = 0, left

    def space(self) -> memoryview:
        """The free part of the buffer, to receive into. Never empty after a discard: a record fits."""
        return self.buffer[self.end :]

    def received(self, n: int) -> None:
        """Note that the first n bytes of ``space()`` have been filled."""
        self.end += n

    def push(self, data: ReadableBuffer) -> int:
        """Append a copy of what was received, as far as there is space, and return how many bytes that was."""
        view = readable_view(data, "data")
        n = min(len(view), len(self.buffer) - self.end)
        self.buffer[self.end : self.end + n] = view[:n]
        self.end += n
        return n

    def wipe(self) -> None:
        """Forget everything, and overwrite it."""
        self.buffer[:] = bytes(len(self.buffer))
        self.start = self.end = 0
