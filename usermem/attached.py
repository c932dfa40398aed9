"""Attached: a buffer of the caller's behind guest addresses, without a copy.

The buffer is exported as long as something refers to its pages: a bytearray cannot be resized meanwhile, an mmap object
not be closed. One that maps a file, which somebody may cut, is only ever copied with care.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from hostarch import mman
from safemem import Block
from safemem.buffers import readable_view
from safemem.safecopy import address_of, mapping_at

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NEVER_CUT = ("/dev/zero", "[anon_shmem", "/SYSV")  # what shared anonymous memory is called


class AttachedPiece:
    """``[start, end)`` of a view."""

    __slots__ = ("_view", "end", "memory", "start")

    def __init__(self, view: memoryview, memory: mmap.mmap | None, start: int, end: int) -> None:
        """``memory`` is the mmap object whose bytes the view has, if it is one that is quick to slice."""
        self._view = view
        self.memory = memory
        self.start = start
        self.end = end

    def split(self, at: int) -> tuple[AttachedPiece, AttachedPiece]:
        """The parts before and from an offset strictly inside."""
        return (
            AttachedPiece(self._view, self.memory, self.start, at),
            AttachedPiece(self._view, self.memory, at, self.end),
        )

    def view(self) -> memoryview:
        """All of it."""
        return self._view[self.start : self.end]

    def block(self, offset: int, length: int) -> Block:
        """A block of it."""
        return Block.from_view(self._view, self.start + offset, length)


class FilePiece(AttachedPiece):
    """The same where a file is mapped that may be cut: the block has an address and no view."""

    def block(self, offset: int, length: int) -> Block:
        """A block of it."""
        return Block.from_address(address_of(self._view) + self.start + offset, length, self._view)

    def split(self, at: int) -> tuple[FilePiece, FilePiece]:
        """The parts before and from an offset strictly inside."""
        return FilePiece(self._view, None, self.start, at), FilePiece(self._view, None, at, self.end)


class Attached:
    """A MappedObject that is a buffer."""

    def __init__(self, buffer: ReadableBuffer) -> None:
        """Raises TypeError if it is no buffer, ValueError if its bytes are not contiguous."""
        self._view = readable_view(buffer, "buffer")
        self._kind = FilePiece if _maps_a_file(self._view) else AttachedPiece
        self._memory = buffer if isinstance(buffer, mmap.mmap) and self._kind is AttachedPiece else None
        self.max_prot = mman.PROT_READ | mman.PROT_EXEC | mman.PROT_WRITE * (not self._view.readonly)

    def size(self) -> int:
        """How many bytes it has, always."""
        return len(self._view)

    room = size
    """How many bytes there are to be mapped."""

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        data = self._view[offset : offset + len(dst)]
        dst[: len(data)] = data
        return len(data)

    def piece(self, start: int, end: int) -> AttachedPiece:
        """The memory of [start, end), which lies inside."""
        return self._kind(self._view, self._memory, start, end)


def _maps_a_file(view: memoryview) -> bool:
    """Whether the memory behind a view is a mapping of a file: then it may become shorter than it looks."""
    found = mapping_at(address_of(view)) if view.nbytes else []
    return bool(found) and found[4] != "0" and not "".join(found[5:]).startswith(_NEVER_CUT)
