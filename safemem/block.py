"""Block: a piece of host memory. The unit that all copying is made of.

Most blocks are *safe*: plain memory of this process, seen through a memoryview. A block that *needs safecopy* lies in
memory that may fault when it is touched (a file mapping that someone can truncate): it has an address and no view,
and is only ever copied by :mod:`safemem.safecopy`.

Source: gVisor pkg/safemem/block_unsafe.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from safemem import safecopy
from safemem.buffers import check_count, check_int, readable_view, writable_view

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ZEROS = memoryview(bytes(1 << 16))


class Block:
    """``len(block)`` bytes of host memory. A value: it always means the same bytes of memory, and equals what does.

    A block keeps the memory behind it alive.
    """

    __slots__ = ("_length", "_owner", "_start", "_view")

    _view: memoryview | None  # None: needs safecopy, and _start is a host address
    _start: int  # of the first byte: an offset into _view, or a host address
    _length: int
    _owner: object

    def __init__(self, buffer: ReadableBuffer) -> None:
        """A safe block over a buffer's bytes. Read-only memory can be a source, never a destination.

        Raises TypeError if it is no buffer, ValueError if it is not contiguous.
        """
        self._view = readable_view(buffer, "buffer")
        self._start = 0
        self._length = len(self._view)
        self._owner = None

    @classmethod
    def from_view(cls, view: memoryview, start: int, length: int) -> Block:
        """``length`` bytes of a flat byte view from ``start`` on, both known to lie inside. No checks."""
        block = cls.__new__(cls)
        block._view = view
        block._start = start
        block._length = length
        block._owner = None
        return block

    @classmethod
    def from_address(cls, address: int, length: int, owner: object = None) -> Block:
        """A block that needs safecopy: ``length`` bytes at a host address, which may fault when touched.

        ``owner`` is kept alive as long as the block is. Raises ValueError if the bytes leave the address space.
        """
        address, length = check_int(address, "address"), check_count(length, "length")
        if address < 0 or address + length > 1 << 64:
            raise ValueError(f"address: {length:#x} bytes at {address:#x} leave the address space")
        block = cls.__new__(cls)
        block._view = None
        block._start = address
        block._length = length
        block._owner = owner
        return block

    def __len__(self) -> int:
        return self._length

    @property
    def need_safecopy(self) -> bool:
        """Whether touching the memory may fault, so that it must be copied by safecopy."""
        return self._view is None

    @property
    def readonly(self) -> bool:
        """Whether the memory behind a safe block refuses to be written."""
        return self._view is not None and self._view.readonly

    @property
    def address(self) -> int:
        """The host address of the first byte."""
        return self._start if self._view is None else safecopy.address_of(self._view) + self._start

    def view(self) -> memoryview:
        """The memory itself. It stays valid as long as the view, or anything made from it, exists.

        Raises BufferError for a block that needs safecopy: touching that through a view could kill the process.
        """
        if self._view is None:
            raise BufferError(f"{self} may fault and has no view; use safemem.copy")
        return self._view[self._start : self._start + self._length]

    def _window(self, start: int, length: int) -> Block:
        block = Block.__new__(Block)
        block._view = self._view
        block._start = start
        block._length = length
        block._owner = self._owner
        return block

    def drop_first(self, n: int) -> Block:
        """The block without its first n bytes; an empty one if it has fewer. Raises ValueError if n < 0."""
        n = check_count(n, "n")
        n = min(n, self._length)
        return self._window(self._start + n, self._length - n)

    def take_first(self, n: int) -> Block:
        """The first n bytes; the whole block if it has fewer. Raises ValueError if n < 0."""
        n = check_count(n, "n")
        return self if n >= self._length else self._window(self._start, n)

    def tobytes(self) -> bytes:
        """A copy of the bytes. Raises HostFaultError if the memory faults."""
        if self._view is not None:
            return self.view().tobytes()
        out = bytearray(self._length)
        safecopy.copy_in(memoryview(out), self._start)
        return bytes(out)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Block):
            return NotImplemented
        return self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def _value(self) -> tuple[int, int, bool]:
        return self.address, self._length, self.need_safecopy

    def __repr__(self) -> str:
        mark = "*" if self._view is None else ""
        return f"<Block [{self.address:#x}-{self.address + self._length:#x}){mark}>"


Piece: TypeAlias = memoryview | Block
"""A piece of host memory as it is cheapest: a flat byte view; a Block where it needs safecopy."""


def part(piece: Piece, start: int, n: int) -> Piece:
    """The n bytes of a piece from ``start`` on, which lie inside."""
    return piece[start : start + n] if isinstance(piece, memoryview) else piece._window(piece._start + start, n)


def copy(dst: Piece, src: Piece) -> int:
    """Copy min(len(dst), len(src)) bytes and return how many. Pieces that overlap are copied as by memmove.

    Raises HostFaultError if memory faults (the source's fault if both do at the same byte), with the exact count;
    TypeError if dst is read-only.
    """
    n = min(len(dst), len(src))
    check_writable(dst, "dst")
    to, source = _view_of(dst, n), _view_of(src, n)
    if to is not None and source is not None:
        to[:] = source
        return n
    at, start = _address_of(dst), _address_of(src)
    if abs(at - start) >= n:
        if to is not None:
            return safecopy.copy_in(to, start)
        if source is not None:
            return safecopy.copy_out(at, source)
    return safecopy.copy(at, start, n)


def _view_of(piece: Piece, n: int) -> memoryview | None:
    """The first n bytes of plain memory; None if it needs safecopy."""
    if isinstance(piece, memoryview):
        return piece[:n]
    return None if piece._view is None else piece._view[piece._start : piece._start + n]


def _address_of(piece: Piece) -> int:
    return safecopy.address_of(piece) if isinstance(piece, memoryview) else piece.address


def zero(dst: Piece) -> int:
    """Set every byte to 0 and return how many. Raises as :func:`copy`."""
    check_writable(dst, "dst")
    view = _view_of(dst, len(dst))
    if view is None:
        return safecopy.zero_out(_address_of(dst), len(dst))
    for done in range(0, len(view), len(_ZEROS)):
        rest = view[done : done + len(_ZEROS)]
        rest[:] = _ZEROS[: len(rest)]
    return len(view)


def check_writable(piece: Piece, name: str) -> None:
    """Raise TypeError, naming the argument, if a piece is read-only memory."""
    if piece.readonly:
        raise TypeError(f"{name} must be writable, and is a block of read-only memory")


class BlockCursor:
    """Hands out the bytes of one safe block, front to back, as disjoint writable views that live together.

    After rustls' ReaderMut: a record is cut into header, body and tag, each of which can be written in place; with
    ``readonly``, after its Reader: nothing is written, and the block may be read-only memory.
    """

    def __init__(self, block: Block, *, readonly: bool = False) -> None:
        """Raises BufferError if the block needs safecopy; TypeError if it is read-only, unless that was asked for."""
        self._view = block.view().toreadonly() if readonly else writable_view(block.view(), "block")
        self._used = 0

    @property
    def used(self) -> int:
        """How many bytes have been taken."""
        return self._used

    @property
    def left(self) -> int:
        """How many bytes have not been taken."""
        return len(self._view) - self._used

    def take(self, n: int) -> memoryview | None:
        """The next n bytes; None if there are fewer, and the cursor stays where it was. Raises ValueError if n < 0."""
        n = check_count(n, "n")
        if n > self.left:
            return None
        start = self._used
        self._used += n
        return self._view[start : self._used]
