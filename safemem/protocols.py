"""Reader and Writer: where the bytes that fill blocks come from, and where the bytes of blocks go.

A **stream** Reader or Writer moves what it can and returns how much, from 0 to ``num_bytes``. Short is progress. 0
for a sequence that is not empty is the end of the stream. Nothing to give now is BlockingIOError.

A **message** Reader or Writer (``message_oriented = True``: a datagram socket) moves one message a call: short is the
whole message, 0 is an empty message and never the end. Adapters that loop refuse it.

Either may raise. ``exc.transferred``, if it is there, says how many bytes had been moved by then. What was taken from
a source and could not be delivered stays pending there and comes first in the next call.

Source: gVisor pkg/safemem/io.go. There the end of a stream is an error (io.EOF); here, as in Python, it is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from safemem.block_seq import BlockSeq
from safemem.errors import short_count


class Reader(Protocol):
    """A source of bytes."""

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Move up to ``dsts.num_bytes`` bytes into dsts, front to back, and return how many."""
        ...


class Writer(Protocol):
    """A destination of bytes."""

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        """Move up to ``srcs.num_bytes`` bytes out of srcs, front to back, and return how many."""
        ...


class ReaderFunc:
    """A function as a Reader."""

    def __init__(self, function: Callable[[BlockSeq], int]) -> None:
        """``function(dsts)`` is called for each ``read_to_blocks(dsts)``."""
        self.read_to_blocks = function


class WriterFunc:
    """A function as a Writer."""

    def __init__(self, function: Callable[[BlockSeq], int]) -> None:
        """``function(srcs)`` is called for each ``write_from_blocks(srcs)``."""
        self.write_from_blocks = function


def is_message_oriented(stream: object) -> bool:
    """Whether a Reader or Writer moves one message a call."""
    return bool(getattr(stream, "message_oriented", False))


def refuse_messages(stream: object, name: str) -> None:
    """Raise ValueError, naming the argument, if a Reader or Writer is message-oriented."""
    if is_message_oriented(stream):
        raise ValueError(f"{name} is message-oriented: 0 is an empty message there, so a loop would never find its end")


def read_full_to_blocks(reader: Reader, dsts: BlockSeq) -> int:
    """Call the reader until dsts is full or the stream ends, and return how many bytes were moved.

    Raises ValueError if it is message-oriented. An error of the reader passes through with the whole count in
    ``transferred``; BlockingIOError after progress is a short count.
    """
    refuse_messages(reader, "reader")
    return _full(reader.read_to_blocks, dsts)


def write_full_from_blocks(writer: Writer, srcs: BlockSeq) -> int:
    """Call the writer until srcs is written or it takes nothing more. Returns and raises as read_full_to_blocks."""
    refuse_messages(writer, "writer")
    return _full(writer.write_from_blocks, srcs)


def _full(step: Callable[[BlockSeq], int], blocks: BlockSeq) -> int:
    done = 0
    while blocks:
        try:
            n = step(blocks)
        except BaseException as exc:
            return short_count(exc, done)
        if not n:
            break
        done += n
        blocks = blocks.drop_first(n)
    return done
