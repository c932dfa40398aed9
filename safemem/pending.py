"""PendingBytes: what a source has given and a destination has not taken yet."""

from __future__ import annotations

from safemem.block import Block
from safemem.block_seq import BlockSeq, copy_seq
from safemem.errors import TransferError, add_transferred, is_interrupt


class PendingBytes:
    """Bytes that were taken from a source and wait for a destination: what a fault must not lose.

    ``error`` is what the source raised along with them. It comes when they have all been delivered.
    """

    __slots__ = ("_data", "error")

    def __init__(self) -> None:
        self._data = b""
        self.error: BaseException | None = None

    def __bool__(self) -> bool:
        return bool(self._data) or self.error is not None

    def deliver(self, dsts: BlockSeq, data: bytes = b"") -> int:
        """Copy what is pending, then ``data``, into dsts and return how much; what does not fit stays.

        Raises HostFaultError if dsts faults, with the count, and the rest stays; ``error`` if nothing else is left.
        """
        if data:
            self._data += data
        elif not self._data and self.error is not None:
            error, self.error = self.error, None
            try:
                raise error
            finally:
                del error
        try:
            n = copy_seq(dsts, BlockSeq.of(Block(self._data)))
        except TransferError as exc:
            self._data = self._data[exc.transferred :]
            raise
        self._data = self._data[n:]
        return n

    def hold(self, error: BaseException | None, delivered: int) -> None:
        """Keep an error of the source's for when its bytes have been delivered; they are counted by then.

        Would-block is not kept: it says what was so at that moment. An interrupt is raised at once, with how many bytes
        were ``delivered``, and the others stay.
        """
        if error is None or isinstance(error, BlockingIOError):
            return
        count = getattr(error, "transferred", 0)
        if is_interrupt(error):
            add_transferred(error, delivered - count)
            try:
                raise error
            finally:
                del error
        add_transferred(error, -count)
        self.error = error.with_traceback(None)  # which would keep the destination exported
