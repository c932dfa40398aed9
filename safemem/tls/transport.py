"""Where ciphertext comes from and goes to: sockets, file descriptors, and Readers and Writers, as two functions."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from safemem.block import Block
from safemem.block_seq import BlockSeq
from safemem.errors import error, moved_count
from safemem.protocols import Reader, Writer, refuse_messages

if TYPE_CHECKING:
    import socket


def receiver(source: socket.socket | int | Reader) -> Callable[[memoryview], int]:
    """``receive(view)``: fill the start of a view with what is there, and return how much; 0 is the end.

    Raises TypeError if the source is none, ValueError if it is message-oriented.
    """
    if isinstance(source, int):
        fd = source
        return lambda view: os.readv(fd, [view])
    if hasattr(source, "read_to_blocks"):
        refuse_messages(source, "source")
        read = source.read_to_blocks
        return lambda view: read(BlockSeq.of(Block(view)))
    receive = getattr(source, "recv_into", None)
    if receive is None:
        raise TypeError(f"source must be a socket, a file descriptor or a Reader, not {type(source).__name__}")
    return receive  # type: ignore[no-any-return]


def receive(receive_into: Callable[[memoryview], int | None], view: memoryview) -> tuple[int, BaseException | None]:
    """One receive: how many bytes came, and the error that came behind them. An error that came alone is raised.

    Raises BlockingIOError for None, ValueError for a count that cannot be.
    """
    try:
        n = receive_into(view)
    except BaseException as exc:
        moved: int = getattr(exc, "transferred", 0)
        if not moved:
            raise
        exc.transferred = 0  # type: ignore[attr-defined]  # those were bytes of ciphertext, not of data
        return moved_count(moved, len(view), "the source"), exc.with_traceback(None)
    return moved_count(n, len(view), "the source"), None


def sink_ended() -> OSError:
    """What is raised where a sink takes nothing more: a Writer's 0."""
    return error(errno.EPIPE, "the sink takes nothing more")


def sender(sink: socket.socket | int | Writer) -> Callable[[memoryview], int]:
    """``send(view)``: send the start of a view, and return how much. Raises BlockingIOError if nothing can go now.

    Raises TypeError if the sink is none, ValueError if it is message-oriented or counts what cannot be.
    """
    call: Any
    if isinstance(sink, int):
        fd = sink
        return lambda view: os.write(fd, view)
    if hasattr(sink, "write_from_blocks"):
        refuse_messages(sink, "sink")
        write = sink.write_from_blocks
        return lambda view: moved_count(write(BlockSeq.of(Block(view))), len(view), "the sink")
    call = getattr(sink, "send", None)
    if call is None:
        raise TypeError(f"sink must be a socket, a file descriptor or a Writer, not {type(sink).__name__}")
    return lambda view: moved_count(call(view), len(view), "the sink")
