"""Transport: where ciphertext comes from and goes to: sockets, file descriptors, and Readers and Writers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from safemem.block import Block
from safemem.block_seq import BlockSeq
from safemem.errors import error, moved_count, would_block
from safemem.protocols import Reader, Writer, refuse_messages

if TYPE_CHECKING:
    import socket


class Transport(NamedTuple):
    """What a transport is asked by: ``call(argument(view))`` moves bytes, and returns how many."""

    call: Callable[[Any], int | None]
    argument: Callable[[memoryview], object]
    who: str

    def move(self, view: memoryview) -> tuple[int, BaseException | None]:
        """Fill a view, or take it: how many bytes were moved, and what was raised behind them or alone.

        That may be an interrupt, which loses no count: Readers and Writers have it in ``transferred``. Raises
        ValueError for a count that cannot be, and a MemoryError, after which the count is not known.
        """
        argument = self.argument(view)
        counts: list[int | None] = []
        try:
            # One step: when a handler can run, the count is here.
            counts.extend(map(self.call, (argument,)))
        except MemoryError:
            raise
        except BaseException as exc:
            if not counts:
                counts.append(getattr(exc, "transferred", 0))
            if counts[0]:
                exc.transferred = 0  # type: ignore[attr-defined]  # those were bytes of ciphertext, not of data
            return min(counts[0] or 0, len(view)), exc
        (n,) = counts
        return (0, would_block()) if n is None else (moved_count(n, len(view), self.who), None)


def receiver(source: socket.socket | int | Reader) -> Transport:
    """A Transport that receives. 0 is its end.

    Raises TypeError if the source is none, ValueError if it is message-oriented.
    """
    if isinstance(source, int):
        return Transport(partial(os.readv, source), _vector, "the source")
    if hasattr(source, "read_to_blocks"):
        refuse_messages(source, "source")
        return Transport(source.read_to_blocks, _blocks, "the source")
    receive = getattr(source, "recv_into", None)
    if receive is None:
        raise TypeError(f"source must be a socket, a file descriptor or a Reader, not {type(source).__name__}")
    return Transport(receive, _view, "the source")


def sender(sink: socket.socket | int | Writer) -> Transport:
    """A Transport that sends. Raises TypeError if the sink is none, ValueError if it is message-oriented."""
    if isinstance(sink, int):
        return Transport(partial(os.write, sink), _view, "the sink")
    if hasattr(sink, "write_from_blocks"):
        refuse_messages(sink, "sink")
        return Transport(sink.write_from_blocks, _blocks, "the sink")
    send = getattr(sink, "send", None)
    if send is None:
        raise TypeError(f"sink must be a socket, a file descriptor or a Writer, not {type(sink).__name__}")
    return Transport(send, _view, "the sink")


def _vector(view: memoryview) -> list[memoryview]:
    return [view]


def _blocks(view: memoryview) -> BlockSeq:
    return BlockSeq.of(Block(view))


def _view(view: memoryview) -> memoryview:
    return view


def sink_ended() -> OSError:
    """What is raised where a sink takes nothing more: a Writer's 0."""
    return error(errno.EPIPE, "the sink takes nothing more")
