"""What a simulator can map: the Protocols of its own files."""

from __future__ import annotations

from typing import Protocol


class MappedObject(Protocol):
    """Something that can be mapped: a file of the simulator's."""

    def size(self) -> int:
        """How many bytes it has now. Pages that lie wholly beyond them cannot be accessed."""
        ...

    def read_at(self, offset: int, dst: memoryview) -> int:
        """Fill dst with the bytes at offset and return how many there were; what is left stays zero."""
        ...


class WritableObject(MappedObject, Protocol):
    """One into which shared mappings are written back."""

    def write_at(self, offset: int, src: memoryview) -> object:
        """Take the bytes at offset, which lie inside, from src."""
        ...
