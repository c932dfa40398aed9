"""PendingBytes: what a source has given and a destination has not taken yet."""

from __future__ import annotations

from safemem.block import Block
from safemem.block_seq import BlockSeq, copy_seq
from safemem.errors import TransferError


class PendingBytes:
    """Bytes that were taken from a source and wait for a destination: what a fault must not lose."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    def __len__(self) -> int:
        return len(self._data)

    def deliver(self, dsts: BlockSeq, data: bytes = b"") -> int:
        """Copy what is pending, then ``data``, into dsts and return how much; what does not fit stays.

        Raises HostFaultError if dsts faults, with the count; the rest stays.
        """
        if data:
            self._data += data
        try:
            n = copy_seq(dsts, BlockSeq.of(Block(self._data)))
        except TransferError as exc:
            self._data = self._data[exc.transferred :]
            raise
        self._data = self._data[n:]
        return n
