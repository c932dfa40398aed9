"""DatagramQueue: messages one by one for its user, many a call for the endpoint.

The alternative that OpenSSL considered for BIO_sendmmsg (read callbacks, dequeue, write queue, flush), with rules for
its hazards: who has which buffer, what callbacks may do, and what closing gives back.

Source: OpenSSL doc/designs/quic-design/dgram-api.md, "Alternate API".
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, Self, TypeVar

from attrs import frozen

from safemem.block_seq import EMPTY, BlockSeq
from safemem.datagram.address import Address
from safemem.datagram.batch import MessageBatch
from safemem.datagram.callbacks import Callbacks, Done, Outcome, SendStatus, Told
from safemem.datagram.cmsg import KERNEL_SPACE
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.errors import NoBufferError
from safemem.datagram.flags import MSG_PEEK
from safemem.datagram.message import Message, Received
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

    **Threads.** All methods may be called at any time from any thread; two flushes take turns, and so do two dequeues.

    **Done callbacks** run after the sending, in the thread that flushed or closed, one at a time, with no lock held,
    and may call any method: see :class:`Callbacks` for how they nest, and what becomes of their errors.

    **Buffers** are the queue's from ``recycle`` or ``on_buffer`` on, until ``dequeue`` or ``close`` returns them. Who
    still reads a message must not recycle its buffer yet.

    **Premature destruction.** A queue that is dropped, or left by ``with``, closes itself: done callbacks are told, and
    ``on_free`` gets the buffers that nobody else does.
    """

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
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        if family is None:
            family = getattr(endpoint, "family", _AF_INET)
        self._endpoint = endpoint
        self._on_buffer = on_buffer
        self._on_free = on_free
        self._out = MessageBatch([EMPTY] * size, family=family, peer=False, max_iov=max_iov)
        control_len = KERNEL_SPACE if getattr(endpoint, "family", None) in _IP else 0
        self._in = MessageBatch([EMPTY] * size, family=family, local=local, control_len=control_len, max_iov=max_iov)
        self._send_lock = threading.Lock()
        self._receive_lock = threading.RLock()
        # Whoever takes something out of these has it alone: their methods are atomic.
        self._unsent: deque[_Unsent] = deque()
        self._unread: deque[Received] = deque()
        self._pool: deque[BlockSeq] = deque()
        self._held: dict[int, BlockSeq] = {}  # by identity: every buffer that is the queue's
        self._callbacks = Callbacks()
        self._receiving = self._dequeued = self._closed = False
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

    def __del__(self) -> None:
        with suppress(AttributeError):  # __init__ raised
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
        self._out.check_blocks(0, blocks)
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
            with self._send_lock:
                self._send(told)
            return len(told)
        finally:
            self._callbacks.tell([*told, *(self._given_back() if self._closed else ())])

    def _send(self, told: list[Told]) -> None:
        left = len(self._unsent)
        used = 0
        try:
            while left:
                taken = _take(self._unsent, min(left, len(self._out)))
                used = max(used, len(taken))
                done, error = 0, None
                try:
                    done, error = self._send_some(taken)
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
                    self._unsent.extendleft(reversed(taken[done:]))
                left = 0 if self._closed or not taken else left - done
        finally:
            for i in range(used):
                self._out.bind(i, EMPTY)

    def _send_some(self, taken: list[_Unsent]) -> tuple[int, Exception | None]:
        """How many of these were sent, and why the one behind them was not, if that is known."""
        n = 0
        try:
            for item in taken:
                self._out.bind(n, item.blocks)
                if self._out.destination(n)[:2] != (item.peer, item.local):
                    self._out.set_peer(n, item.peer, item.local)
                n += 1
        except Exception as exc:
            if not n:
                return 0, exc.with_traceback(None)
        try:
            sent = self._endpoint.sendmmsg(self._out, n) if n else 0
        except Exception as exc:
            return 0, exc.with_traceback(None)
        return sent, None if sent or not n else would_block()

    def _given_back(self) -> list[Told]:
        return [item.outcome(SendStatus.GIVEN_BACK) for item in _take(self._unsent, len(self._unsent))]

    def dequeue(self, flags: int = 0) -> Received:
        """The next message. If none is there, as many as there are buffers are received, by one call with ``flags``.

        Raises BlockingIOError if none has arrived, NoBufferError if there is no buffer, ValueError if the queue is
        closed or ``flags`` have MSG_PEEK, and as the endpoint and ``on_buffer``. All buffers stay in the pool then.
        """
        if flags & MSG_PEEK:
            raise ValueError("a peek would queue a message that stays where it is")
        with self._receive_lock:
            if self._receiving:
                raise RuntimeError("dequeue was called by on_buffer")
            self._check_open()
            self._dequeued = True
            if not self._unread:
                self._receiving = True
                try:
                    self._receive(flags)
                finally:
                    self._receiving = False
            for message in _take(self._unread, 1):
                self._held.pop(id(message.buffer), None)
                return message
            raise ValueError(_CLOSED)  # meanwhile, by another thread, which took what was unread

    def _receive(self, flags: int) -> None:
        while len(self._pool) < len(self._in) and self._on_buffer is not None and not self._closed:
            found = self._on_buffer()
            if found is None:
                break
            self._keep(found)
        self._check_open()
        taken = _take(self._pool, len(self._in))
        n = 0
        try:
            if not taken:
                raise NoBufferError
            for i, blocks in enumerate(taken):
                if self._in.blocks(i) is not blocks:
                    self._in.bind(i, blocks)
            came = self._endpoint.recvmmsg(self._in, len(taken), flags)
            if not came:
                raise would_block()
            self._unread.extend([_received(self._in[i], taken[i]) for i in range(came)])
            n = came
        finally:
            self._pool.extendleft(reversed(taken[n:]))

    def recycle(self, blocks: BlockSeq) -> None:
        """Put a buffer in the pool: a message's ``buffer``, not its ``data``, which may be less.

        Raises ValueError if it is there already, is empty, has too many blocks, or the queue is closed; TypeError if it
        is read-only, BufferError if it needs safecopy.
        """
        self._check_open()
        self._keep(blocks)

    def _keep(self, blocks: BlockSeq) -> None:
        if self._in.check_blocks(0, blocks):
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
        found = [message.buffer for message in _take(self._unread, len(self._unread))]
        found += _take(self._pool, len(self._pool))
        for blocks in found:
            self._held.pop(id(blocks), None)
        if self._receive_lock.acquire(blocking=False):
            try:
                self._in.bind_ring([EMPTY], 0)
            finally:
                self._receive_lock.release()
        return found

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(_CLOSED)


def _received(message: Message, buffer: BlockSeq) -> Received:
    return Received(
        message.data, message.length, message.flags, message.peer, message.local, message.ancillary, buffer=buffer
    )


def _take(items: deque[_T], most: int) -> list[_T]:
    found: list[_T] = []
    while len(found) < most:
        try:
            found.append(items.popleft())
        except IndexError:
            break
    return found
