"""Host memory as blocks, and the streams that fill and drain them.

A :class:`Block` is a piece of host memory, a :class:`BlockSeq` an immutable sequence of blocks; :func:`copy_seq` moves
bytes between two of them. A :class:`Reader` fills blocks, a :class:`Writer` empties them; the adapters make them of
files, file descriptors and functions.
"""

from safemem import atomics as atomics
from safemem.adapters import (
    BlockSeqReader,
    BlockSeqWriter,
    FromIOReader,
    FromIOWriter,
    FromVecReaderFunc,
    FromVecWriterFunc,
)
from safemem.block import Block, BlockCursor, copy, zero
from safemem.block_seq import BlockSeq, copy_seq, zero_seq
from safemem.errors import AlignmentError, EndOfBlockSeqError, HostFaultError, TransferError
from safemem.fd import FDReader, FDWriter
from safemem.protocols import Reader, ReaderFunc, Writer, WriterFunc, read_full_to_blocks, write_full_from_blocks
from safemem.to_io import ToIOReader, ToIOWriter

__all__ = [
    "AlignmentError",
    "Block",
    "BlockCursor",
    "BlockSeq",
    "BlockSeqReader",
    "BlockSeqWriter",
    "EndOfBlockSeqError",
    "FDReader",
    "FDWriter",
    "FromIOReader",
    "FromIOWriter",
    "FromVecReaderFunc",
    "FromVecWriterFunc",
    "HostFaultError",
    "Reader",
    "ReaderFunc",
    "ToIOReader",
    "ToIOWriter",
    "TransferError",
    "Writer",
    "WriterFunc",
    "atomics",
    "copy",
    "copy_seq",
    "read_full_to_blocks",
    "write_full_from_blocks",
    "zero",
    "zero_seq",
]
