"""Foreign code may release the views it is given: the count stays right, and the next call has views of its own."""

from __future__ import annotations

from collections.abc import Sequence

from safemem import (
    Block,
    BlockSeq,
    FromIOReader,
    FromIOWriter,
    FromVecReaderFunc,
    read_full_to_blocks,
    write_full_from_blocks,
)


class _File:
    def readinto(self, buffer: memoryview) -> int:
        """Three bytes, by a view that it releases."""
        with buffer:
            n = min(3, len(buffer))
            buffer[:n] = b"abc"[:n]
            return n

    def write(self, data: memoryview) -> int:
        """All, by a view that it releases."""
        with data:
            return len(data)


def _fill(buffers: Sequence[memoryview]) -> int:
    for buffer in buffers:
        with buffer:
            buffer[:2] = b"zz"
    return 4


def test_views_that_are_released() -> None:
    """Files and functions over lists."""
    memory = bytearray(10)
    assert read_full_to_blocks(FromIOReader(_File()), BlockSeq.of(Block(memory))) == 10
    assert memory == b"abcabcabca"
    blocks = BlockSeq([Block(bytearray(2)), Block(bytearray(2)), Block(bytearray(4))])
    assert read_full_to_blocks(FromVecReaderFunc(_fill), blocks) == 8
    assert write_full_from_blocks(FromIOWriter(_File()), BlockSeq([Block(b"ab"), Block(b"cd")])) == 4
