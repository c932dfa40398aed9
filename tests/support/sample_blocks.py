"""Block sequences to read into and to write from."""

from __future__ import annotations

from safemem import Block, BlockSeq


def room(*sizes: int) -> BlockSeq:
    """Blocks of these sizes to be filled, with 0xEE in every byte so that what was not touched shows."""
    return BlockSeq(Block(bytearray(b"\xee" * size)) for size in sizes)


def blocks(*parts: bytes) -> BlockSeq:
    """A sequence of these bytes, a block each."""
    return BlockSeq(map(Block, parts))
