"""Block sequences to read into and to write from."""

from __future__ import annotations

import mmap
import os

from safemem import Block, BlockSeq, safecopy


def room(*sizes: int) -> BlockSeq:
    """Blocks of these sizes to be filled, with 0xEE in every byte so that what was not touched shows."""
    return BlockSeq(Block(bytearray(b"\xee" * size)) for size in sizes)


def blocks(*parts: bytes) -> BlockSeq:
    """A sequence of these bytes, a block each."""
    return BlockSeq(map(Block, parts))


class FileMemory:
    """Memory of a file, as blocks that may fault; ``cut`` takes the memory away."""

    def __init__(self, size: int) -> None:
        self._fd = os.memfd_create("memory")
        os.truncate(self._fd, size)
        memory = mmap.mmap(self._fd, size)
        self.blocks = BlockSeq.of(Block.from_address(safecopy.address_of(memoryview(memory)), size, memory))

    def cut(self) -> None:
        """As another process may do at any time."""
        os.truncate(self._fd, 0)

    def __del__(self) -> None:
        os.close(self._fd)
