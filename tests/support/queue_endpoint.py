"""Endpoints for tests: one in memory that fails as it is told, and one over a socket by recvmsg_into and sendmsg."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable

from safemem import Block, BlockSeq, copy_seq
from safemem.datagram import Address, Ancillary, DatagramEndpoint, Message
from safemem.datagram.cmsg import local_of, pktinfo_of
from safemem.datagram.flags import MSG_PEEK, MSG_TRUNC
from safemem.errors import would_block

Fault = BaseException | Callable[[], object] | None


class ScriptedEndpoint(DatagramEndpoint):
    """Sends to a list and receives from a deque.

    Each send and each receive takes the next of its faults, if there are any: raises it, calls it, or, if it is None,
    goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[bytes, Address | None, Address | None]] = []
        self.incoming: deque[tuple[bytes, Address | None]] = deque()
        self.send_faults: deque[Fault] = deque()
        self.receive_faults: deque[Fault] = deque()
        self.calls: list[tuple[str, int, int]] = []
        self.closed = False

    @property
    def mtu(self) -> int | None:
        """Not known."""
        return None

    def recvmsg(self, dsts: BlockSeq, flags: int = 0, ancbufsize: int = 0) -> Message:
        """The next of ``incoming``."""
        self.calls.append(("recvmsg", flags, ancbufsize))
        self._raise_held()
        _meet(self.receive_faults)
        if not self.incoming:
            raise would_block()
        data, peer = self.incoming[0]
        n = copy_seq(dsts, BlockSeq([Block(data)]))
        if not flags & MSG_PEEK:
            self.incoming.popleft()
        return Message(dsts.take_first(n), len(data), MSG_TRUNC if n < len(data) else 0, peer)

    def sendmsg(
        self,
        srcs: BlockSeq,
        peer: Address | None = None,
        local: Address | None = None,
        flags: int = 0,
        ancdata: Iterable[Ancillary] = (),
    ) -> int:
        """To ``sent``."""
        self.calls.append(("sendmsg", flags, len(list(ancdata))))
        _meet(self.send_faults)
        self.sent.append((srcs.tobytes(), peer, local))
        return srcs.num_bytes

    def pending(self) -> int | None:
        """Of ``incoming``."""
        return len(self.incoming[0][0]) if self.incoming else None

    def close(self) -> None:
        """Only noted."""
        self.closed = True


def _meet(faults: deque[Fault]) -> None:
    fault = faults.popleft() if faults else None
    if isinstance(fault, BaseException):
        raise fault
    if fault is not None:
        fault()


class PlainSocketEndpoint(DatagramEndpoint):
    """A socket, a message a call. It is the test's to close."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        self.family = sock.family

    @property
    def mtu(self) -> int | None:
        """Not known."""
        return None

    def recvmsg(self, dsts: BlockSeq, flags: int = 0, ancbufsize: int = 0) -> Message:
        """By recvmsg_into, which tells how long a datagram was where MSG_TRUNC asks for it."""
        self._raise_held()
        length, ancillary, got, peer = self.sock.recvmsg_into(dsts.views(), ancbufsize, flags | MSG_TRUNC)
        port = self.sock.getsockname()[1] if self.sock.family != socket.AF_UNIX else 0
        local = local_of(ancillary, port)
        return Message(dsts.take_first(length), length, int(got), peer or None, local, tuple(ancillary))

    def sendmsg(
        self,
        srcs: BlockSeq,
        peer: Address | None = None,
        local: Address | None = None,
        flags: int = 0,
        ancdata: Iterable[Ancillary] = (),
    ) -> int:
        """By sendmsg."""
        control = [*ancdata, *([pktinfo_of(self.sock.family, local)] if local is not None else [])]
        return self.sock.sendmsg(srcs.views(), control, flags, peer)

    def pending(self) -> int | None:
        """By a peek."""
        try:
            return self.recvmsg(BlockSeq(), MSG_PEEK).length
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Nothing: the socket is the test's."""
