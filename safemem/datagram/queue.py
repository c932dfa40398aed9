"""DatagramQueue: messages one by one for its user, many a call for the endpoint.

The alternative that OpenSSL considered for BIO_sendmmsg (read callbacks, dequeue, write queue, flush), with rules for
its hazards: who has which buffer, what callbacks may do, and what closing gives back.

Source: OpenSSL doc/designs/quic-design/dgram-api.md, "Alternate API".
"""

from __future__ import annotations

import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import repeat
from typing import Final, Self, TypeVar
from weakref import WeakSet

from attrs import frozen

from safemem.block_seq import EMPTY, BlockSeq
from safemem.buffers import check_positive
from safemem.datagram.address import Address
from safemem.datagram.batch import MessageBatch
from safemem.datagram.callbacks import Callbacks, Done, Outcome, SendStatus, Told
from safemem.datagram.cmsg import KERNEL_SPACE
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.errors import DatagramTooLongError, NoBufferError
from safemem.datagram.flags import MSG_PEEK
from safemem.datagram.message import Message, Received
from safemem.datagram.spare_batches import SpareBatches
from safemem.errors import would_block

_AF_INET: Final = int(socket.AF_INET)
_IP: Final = (_AF_INET, int(socket.AF_INET6))
_T = TypeVar("_T")
_CLOSED: Final = "the queue is closed"


@frozen
class _Unsent:
    blocks: BlockSeq
    peer: Address | None
    local: Address | None
    done: Done | None

    def outcome(self, status: SendStatus, error: Exception | None = None) -> Told:
        return self.done, Outcome(status, self.blocks, self.peer, error)


class DatagramQueue:
    """Queues messages for an endpoint that it does not own: close it, or a queue over it, in any order.

    **Threads.** All methods may be called at any time from any thread, by a signal handler in the middle of each other,
    and in a forked child: there are no locks, and the endpoint and all callbacks are called with none held. Of two
    flushes at once each sends the messages that it took, so that those of one may overtake the other's; and so with
    two dequeues.

    **Done callbacks** run after the sending, in the thread that flushed or closed, one at a time, and may call any
    method: see :class:`Callbacks` for how they nest, and what becomes of their errors.

    **Buffers** are the queue's from ``recycle`` or ``on_buffer`` on, until ``dequeue`` or ``close`` returns them. Who
    still reads a message must not recycle its buffer yet.

    **Premature destruction.** A queue that is dropped, or left by ``with``, closes itself: done callbacks are told, and
    ``on_free`` gets the buffers that nobody else does.
    """

    _closed = True  # until it is whole

    def __init__(
        self,
        endpoint: DatagramEndpoint,
        buffers: Iterable[BlockSeq] = (),
        *,
        on_buffer: Callable[[], BlockSeq | None] | None = None,
        on_free: Callable[[BlockSeq], object] | None = None,
        size: int = 32,
        family: int | None = None,
        local: bool = False,
        max_iov: int = 8,
    ) -> None:
        """``buffers`` are the first of the pool, as by :meth:`recycle`. ``on_buffer`` is asked for more where a receive
        finds fewer than ``size``, until it returns None; it must not call dequeue. ``on_free`` is called with each
        buffer that is the queue's where it is dropped or left by ``with``; an error of its own ends that.

        ``size`` is how many messages one call moves, ``max_iov`` how many blocks a message may have. ``family`` is that
        of the addresses: the endpoint's if None, or AF_INET if it has none. ``local`` is whether receives ask for local
        addresses; other control data come from IP sockets, as far as 512 bytes hold them. Raises ValueError, and as
        :meth:`recycle`.
        """
        size = check_positive(size, "size")
        if family is None:
            family = getattr(endpoint, "family", _AF_INET)
        self._endpoint = endpoint
        self._on_buffer = on_buffer
        self._on_free = on_free
        # Each flush and each receive has a batch alone, while it lasts.
        empty = [EMPTY] * size
        self._outs = SpareBatches(partial(MessageBatch, empty, family=family, peer=False, max_iov=max_iov))
        room = KERNEL_SPACE if getattr(endpoint, "family", None) in _IP else 0
        incoming = partial(MessageBatch, empty, family=family, local=local, control_len=room, max_iov=max_iov)
        self._ins = SpareBatches(incoming)
        # Whoever takes something out of these has it alone: their methods are atomic.
        self._unsent: deque[_Unsent] = deque()
        self._unread: deque[Received] = deque()
        self._pool: deque[BlockSeq] = deque()
        self._held: dict[int, BlockSeq] = {}  # by identity: every buffer that is the queue's
        self._callbacks = Callbacks()
        self._asking: WeakSet[_Asking] = WeakSet()  # weak, for what an interrupt leaves there
        self._dequeued = self._closed = False
        for blocks in buffers:
            self.recycle(blocks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        found: list[BlockSeq] = []
        try:
            found = self.close()
        finally:
            found = found or self.close()  # of which a callback has kept us
            if self._on_free is not None:
                for blocks in found:
                    self._on_free(blocks)

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if not (self._closed or ended()):  # then modules are empty, and the process gives all back
            self.__exit__()

    @property
    def closed(self) -> bool:
        """Whether close has been called."""
        return self._closed

    @property
    def unsent(self) -> int:
        """How many messages wait for a flush."""
        return len(self._unsent)

    @property
    def unread(self) -> int:
        """How many messages have been received and wait for dequeue."""
        return len(self._unread)

    def queue(
        self, blocks: BlockSeq, peer: Address | None = None, local: Address | None = None, done: Done | None = None
    ) -> None:
        """Have the next flush send a message. The blocks must keep their bytes until ``done`` is called.

        Raises ValueError if there are too many blocks or the queue is closed, BufferError if one needs safecopy;
        ``done`` is not called then. An address that is none of the family is the message's own failure.
        """
        self._check_open()
        self._outs.any.check_blocks(0, blocks)
        self._unsent.append(_Unsent(blocks, peer, local, done))
        if self._closed:  # meanwhile, by another thread, which may not have seen this message
            self._callbacks.tell(self._given_back())

    def flush(self) -> int:
        """Send what is queued; returns with how many messages it is done: sent, or failed. 0: nothing was queued.

        A message that fails is told its error, and those behind it go on. Where the endpoint would block, the rest
        stays queued; raises BlockingIOError if that is so for the first. Messages queued meanwhile wait for the next
        flush. After an interrupt (KeyboardInterrupt) messages of the last call stay queued, and may be sent twice.
        """
        told: list[Told] = []
        try:
            self._send(told)
            return len(told)
        finally:
            self._callbacks.tell([*told, *(self._given_back() if self._closed else ())])

    def _send(self, told: list[Told]) -> None:
        left = len(self._unsent)
        batch = self._outs.take()
        used = 0
        try:
            while True:  # no condition: its jump back would have no handler (CPython 3.13)
                if not left:
                    break
                taken: list[_Unsent] = []
                done, error = 0, None
                try:
                    _take(self._unsent, min(left, len(batch)), taken)
                    used = max(used, len(taken))
                    done, error = self._send_some(batch, taken)
                    told += [item.outcome(SendStatus.SENT) for item in taken[:done]]
                    if isinstance(error, BlockingIOError | InterruptedError):
                        if not told:
                            try:
                                raise error
                            finally:
                                del error
                        return
                    if error is not None:
                        told.append(taken[done].outcome(SendStatus.FAILED, error))
                        done += 1
                finally:
                    try:
                        self._put_back(taken[done:])
                    finally:
                        self._put_back(taken[done:])
                left = 0 if self._closed or not taken else left - done
        finally:
            for i in range(used):
                batch.bind(i, EMPTY)
            self._outs.give(batch)

    def _put_back(self, items: list[_Unsent]) -> None:
        """Have these come first again, if they do not already: called twice, an interrupt in one does no harm."""
        if items and not (self._unsent and self._unsent[0] is items[0]):
            self._unsent.extendleft(items[::-1])

    def _send_some(self, batch: MessageBatch, taken: list[_Unsent]) -> tuple[int, Exception | None]:
        """How many of these were sent, and why the one behind them was not, if that is known."""
        n = 0
        try:
            for item in taken:
                batch.bind(n, item.blocks)
                if batch.destination(n)[:2] != (item.peer, item.local):
                    batch.set_peer(n, item.peer, item.local)
                n += 1
        except Exception as exc:
            if not n:
                return 0, exc.with_traceback(None)
        try:
            sent = self._endpoint.sendmmsg(batch, n) if n else 0
        except Exception as exc:
            return 0, exc.with_traceback(None)
        return sent, None if sent or not n else would_block()

    def _given_back(self) -> list[Told]:
        found: list[_Unsent] = []
        _take(self._unsent, len(self._unsent), found)
        return [item.outcome(SendStatus.GIVEN_BACK) for item in found]

    def dequeue(self, flags: int = 0) -> Received:
        """The next message. If none is there, as many as there are buffers are received, by one call with ``flags``.

        Raises BlockingIOError if none has arrived, NoBufferError if there is no buffer, ValueError if the queue is
        closed or ``flags`` have MSG_PEEK, and as the endpoint and ``on_buffer``; DatagramTooLongError (``no_trunc``)
        only if no buffer is long enough. All buffers stay in the pool then; what came before an interrupt stays unread.
        """
        if flags & MSG_PEEK:
            raise ValueError("a peek would queue a message that stays where it is")
        if any(each.thread == threading.get_ident() for each in self._asking):
            raise RuntimeError("dequeue was called by on_buffer")
        self._dequeued = True
        found: list[Received] = []
        longest = -1
        try:
            self._check_open()
            while True:
                _take(self._unread, 1, found)
                for message in found:
                    self._held.pop(id(message.buffer), None)
                    return message
                try:
                    self._receive(flags)
                except DatagramTooLongError as exc:
                    if exc.length <= longest or not self._bring_forward(exc.length):
                        raise
                    longest = exc.length
        except BaseException:
            for message in found:
                self._held[id(message.buffer)] = message.buffer
            self._unread.extendleft(found)
            raise

    def _receive(self, flags: int) -> None:
        self._ask_for_buffers()
        self._check_open()
        batch = self._ins.take()
        batch.count = 0
        taken: list[BlockSeq] = []
        try:
            _take(self._pool, len(batch), taken)
            if not taken:
                raise NoBufferError
            _bind(batch, taken)
            if not self._endpoint.recvmmsg(batch, len(taken), flags):
                raise would_block()
        finally:
            try:
                self._settle(batch, taken)
            finally:
                self._settle(batch, taken)  # what an interrupt left; else nothing
            self._ins.give(batch)
            if self._closed:
                self._ins.drop()

    def _settle(self, batch: MessageBatch, taken: list[BlockSeq]) -> None:
        """Put what came among the unread and the other buffers back. No handler runs between lines without a call."""
        n = batch.count
        came = [Received.of(batch[i], taken[i]) for i in range(n)]
        self._unread += came
        batch.count = 0
        del taken[:n]
        self._pool += taken
        del taken[:]

    def _ask_for_buffers(self) -> None:
        asking = _Asking(threading.get_ident())
        try:
            self._asking.add(asking)
            while True:  # no condition: its jump back would have no handler (CPython 3.13)
                if len(self._pool) >= len(self._ins.any) or self._on_buffer is None or self._closed:
                    break
                found = self._on_buffer()
                if found is None:
                    break
                self._keep(found)
        finally:
            self._asking.discard(asking)

    def _bring_forward(self, length: int) -> bool:
        """Have a buffer of at least so many bytes come first; returns whether there is one."""
        for blocks in [*self._pool]:
            if blocks.num_bytes >= length:
                with suppress(ValueError):  # taken meanwhile, by another thread
                    self._pool.remove(blocks)
                    self._pool.appendleft(blocks)
                return True
        return False

    def recycle(self, blocks: BlockSeq) -> None:
        """Put a buffer in the pool: a message's ``buffer``, not its ``data``, which may be less.

        Raises ValueError if it is there already, is empty, has too many blocks, or the queue is closed; TypeError if it
        is read-only, BufferError if it needs safecopy.
        """
        self._check_open()
        self._keep(blocks)

    def _keep(self, blocks: BlockSeq) -> None:
        if self._ins.any.check_blocks(0, blocks):
            raise TypeError("a buffer must be writable, and has a block of read-only memory")
        if not blocks:
            raise ValueError("a buffer must have bytes to receive into")
        if id(blocks) in self._held:
            raise ValueError("the buffer is in the queue already")
        self._held[id(blocks)] = blocks
        self._pool.append(blocks)

    def recvmsg(self, dsts: BlockSeq, flags: int = 0, ancbufsize: int = 0) -> Message:
        """Receive one message as the endpoint does. Raises RuntimeError once dequeue was called; ValueError: closed."""
        self._check_open()
        if self._dequeued:
            raise RuntimeError("messages are dequeued here: recvmsg would overtake those that are unread")
        return self._endpoint.recvmsg(dsts, flags, ancbufsize)

    def close(self) -> list[BlockSeq]:
        """Give back unsent messages, by their done callbacks, and return all buffers, of unread messages too.

        It does not wait: a flush or receive under way in another thread ends first. What such a flush has not sent is
        given back then; the buffers of such a receive, and all of them if a callback raised, are what another close
        returns. A second call does nothing else, and the endpoint stays open.
        """
        self._closed = True
        self._callbacks.tell(self._given_back())
        unread: list[Received] = []
        _take(self._unread, len(self._unread), unread)
        found = [message.buffer for message in unread]
        _take(self._pool, len(self._pool), found)
        for blocks in found:
            self._held.pop(id(blocks), None)
        self._ins.drop()
        return found

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(_CLOSED)


@frozen(eq=False)
class _Asking:
    """A thread that asks on_buffer."""

    thread: int


def _take(items: deque[_T], most: int, found: list[_T]) -> None:
    """Move up to so many items to a list of the caller's: each is in one of the two, even if an interrupt comes."""
    with suppress(IndexError):
        found += map(deque.popleft, repeat(items, most))


def _bind(batch: MessageBatch, buffers: list[BlockSeq]) -> None:
    """Have the batch's messages lie in these buffers."""
    for i, blocks in enumerate(buffers):
        if batch.blocks(i) is not blocks:
            batch.bind(i, blocks)
