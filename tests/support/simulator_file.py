"""A file of the simulator's, in memory: a WritableObject."""

from __future__ import annotations


class SimulatorFile:
    """``data`` are its bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def size(self) -> int:
        """See MappedObject."""
        return len(self.data)

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        part = self.data[offset : offset + len(dst)]
        dst[: len(part)] = part
        return len(part)

    def write_at(self, offset: int, src: memoryview) -> object:
        """See WritableObject."""
        self.data[offset : offset + len(src)] = src
        return len(src)
