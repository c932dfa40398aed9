"""MessageBatch: many messages for one call, laid out once and used again and again.

Source: OpenSSL's BIO_MSG; recvmmsg(2). The rules that make it quick were measured: results are read as strided views,
addresses are decoded once each, and flags are plain ints.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from safemem.block_seq import EMPTY, BlockSeq
from safemem.buffers import check_count, check_int
from safemem.datagram.address import NAME_SIZE, Address, AddressCache, pack_sockaddr, unpack_sockaddr
from safemem.datagram.cmsg import (
    KERNEL_SPACE,
    PKTINFO_SPACE,
    Ancillary,
    local_of,
    pack_cmsgs,
    pktinfo_of,
    port_of,
    unpack_cmsgs,
)
from safemem.datagram.errors import LocalAddressNotAvailableError
from safemem.datagram.flags import MSG_TRUNC, UIO_MAXIOV
from safemem.datagram.message import Message
from safemem.datagram.mmsg import MMsgHeaders
from safemem.fork import InUse, in_use_lock

_AF_INET: Final = int(socket.AF_INET)


class MessageBatch:
    """Room for ``len(batch)`` messages, each a BlockSeq, to receive into or to send.

    After a receive the methods tell what came: of the first ``n`` entries, or of as many as the last receive has
    filled. Entries that it did not reach say what they said before. One call
    uses a batch at a time: a second one meanwhile is a RuntimeError.
    """

    def __init__(
        self,
        messages: Sequence[BlockSeq],
        *,
        family: int = _AF_INET,
        peer: bool | Sequence[bool] = True,
        local: bool | Sequence[bool] = False,
        control_len: int = 0,
        max_iov: int | None = None,
    ) -> None:
        """``family`` is that of the addresses: AF_INET, AF_INET6, AF_UNIX.

        ``peer`` and ``local`` say whether receives ask for the addresses, all or each by itself; ``control_len`` is the
        room for other control data of a message, in bytes. ``max_iov`` is how many blocks a message may have: as many
        as the longest of these has, if None. Raises ValueError for what cannot be, BufferError for a block that needs
        safecopy.
        """
        if max_iov is None:
            max_iov = max((len(blocks) for blocks in messages), default=1)
        max_iov, control_len = check_int(max_iov, "max_iov"), check_count(control_len, "control_len")
        _check(family, max_iov)
        self.family: int = int(family)
        self._no_peers, self._no_locals = _unasked(peer, len(messages), "peer"), _unasked(local, len(messages), "local")
        self.asks_local: bool = len(self._no_locals) < len(messages) if messages else bool(local)
        self.control_len: int = control_len + KERNEL_SPACE * self.asks_local
        name_in, name_out = NAME_SIZE[family] if len(self._no_peers) < len(messages) else 0, NAME_SIZE[family]
        control_out = control_len + PKTINFO_SPACE
        self._headers = MMsgHeaders(len(messages), max_iov, name_in, name_out, self.control_len, control_out)
        self._guard = in_use_lock("the batch is in use")
        self._blocks = [EMPTY] * len(messages)
        self._capacities = [0] * len(messages)
        self._read_only: set[int] = set()
        self._least = 0  # no capacity is smaller
        self._to: dict[int, tuple[Address | None, Address | None, tuple[Ancillary, ...]]] = {}
        self._from_ports: dict[int, Any] = {}  # of the messages that are sent from a local address
        # What an endpoint told that knows no headers, instead of names and control data in them.
        self._told: dict[int, Message] = {}
        self._ports: dict[int, int] = {}
        self._cache = AddressCache(_unpack_key if family == _AF_INET else unpack_sockaddr)
        self.count: int = 0
        for i, blocks in enumerate(messages):
            self._bind(i, blocks)
        self._least = min(self._capacities, default=0)

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def max_iov(self) -> int:
        """The most blocks that a message of this batch may have."""
        return self._headers.max_iov

    def blocks(self, i: int) -> BlockSeq:
        """The memory of message i."""
        return self._blocks[i]

    def bind(self, i: int, blocks: BlockSeq) -> None:
        """Have message i lie in other blocks.

        Raises IndexError, ValueError if they are more than ``max_iov``, BufferError if one needs safecopy, RuntimeError
        while a call uses the batch.
        """
        with self.in_use():
            self._bind(range(len(self._blocks))[i], blocks)
            self._least = min(self._least, blocks.num_bytes)

    def bind_ring(self, ring: Sequence[BlockSeq], start: int) -> None:
        """Have the messages lie in the slots of a ring, from ``start`` on, around its end.

        Raises as :meth:`bind`, and ValueError if the ring has no slots; nothing is bound then.
        """
        if not ring:
            raise ValueError("the ring has no slots")
        with self.in_use():
            slots = [ring[(start + i) % len(ring)] for i in range(len(self._blocks))]
            for i, blocks in enumerate(slots):
                self.check_blocks(i, blocks)
            for i, blocks in enumerate(slots):
                self._bind(i, blocks)
            self._least = min(self._capacities, default=0)

    def _bind(self, i: int, blocks: BlockSeq) -> None:
        read_only = self.check_blocks(i, blocks)
        self._headers.point(i, blocks)
        self._blocks[i] = blocks
        self._capacities[i] = blocks.num_bytes
        (self._read_only.add if read_only else self._read_only.discard)(i)

    def set_peer(
        self, i: int, peer: Address | None, local: Address | None = None, ancdata: Iterable[Ancillary] = ()
    ) -> None:
        """Send message i to ``peer``, from ``local``, with control data. None is what the socket does by itself.

        Raises ValueError for an address that is none of the family, or control data that find no room, and IndexError.
        """
        with self.in_use():
            i = range(len(self._blocks))[i]
            ancillary = tuple(ancdata)
            control = [*ancillary, pktinfo_of(self.family, local)] if local is not None else ancillary
            name = b"" if peer is None else pack_sockaddr(self.family, peer)
            self._headers.set_control(i, pack_cmsgs(control))
            self._headers.set_name(i, name)
            self._to[i] = (peer, local, ancillary)
            self._from_ports.pop(i, None)
            if local is not None:
                self._from_ports[i] = port_of(local)

    def locals_before(self, vlen: int) -> list[tuple[int, Any]]:
        """Which of the first messages are to be sent from a local address, in order, and its port."""
        return sorted((i, port) for i, port in self._from_ports.items() if i < vlen) if self._from_ports else []

    def destination(self, i: int) -> tuple[Address | None, Address | None, tuple[Ancillary, ...]]:
        """(peer, local, control data) that message i is sent with."""
        return self._to.get(i, (None, None, ()))

    def lengths(self, n: int | None = None) -> list[int]:
        """How many bytes arrived in each message."""
        found = self._headers.lengths[: self._first(n)].tolist()
        if found and max(found) > self._least:
            self._least = min(self._capacities)
            return list(map(min, found, self._capacities))
        return found

    def datagram_lengths(self, n: int | None = None) -> list[int]:
        """How long each datagram was: more than arrived, if it was cut."""
        return self._headers.lengths[: self._first(n)].tolist()

    def flags(self, n: int | None = None) -> list[int]:
        """The flags of each message: MSG_TRUNC if it was cut, MSG_CTRUNC if its control data were."""
        return self._headers.flags[: self._first(n)].tolist()

    def truncated(self, n: int | None = None) -> list[int]:
        """Which messages were cut."""
        return [i for i, flags in enumerate(self.flags(n)) if flags & MSG_TRUNC]

    def peers(self, n: int | None = None) -> list[Address | None]:
        """Who sent each message. The quick way: some 70 ns each, 700 by :meth:`peer`."""
        n = self._first(n)
        headers = self._headers
        if (
            self.family == _AF_INET
            and headers.name_size
            and not self._told
            and not self._no_peers
            and headers.got_names[:n].tolist().count(headers.name_size) == n
        ):
            return list(map(self._cache.__getitem__, headers.name_keys[:n].tolist()))
        return [self.peer(i) for i in range(n)]

    def peer(self, i: int) -> Address | None:
        """Who sent message i; None if that is not known, or was not asked for."""
        i = range(len(self._blocks))[i]
        if i in self._no_peers:
            return None
        if i in self._told:
            return self._told[i].peer
        name = self._headers.name(i)
        if self.family == _AF_INET:
            return self._cache[int.from_bytes(name[:8], sys.byteorder)] if len(name) >= 8 else None
        return self._cache[name]

    def local(self, i: int) -> Address | None:
        """The address that message i came to; None if that is not known, or was not asked for."""
        i = range(len(self._blocks))[i]
        if i in self._no_locals and self.asks_local:
            return None
        if i in self._told:
            return self._told[i].local
        return local_of(self.ancillary(i), self._ports.get(i, 0))

    def ancillary(self, i: int) -> tuple[Ancillary, ...]:
        """The control data of message i, its local address too."""
        i = range(len(self._blocks))[i]
        if i in self._told:
            return self._told[i].ancillary
        return tuple(unpack_cmsgs(self._headers.control(i)))

    def __getitem__(self, i: int) -> Message:
        """All about message i."""
        i = range(len(self._blocks))[i]
        length = self._headers.lengths[i]
        data = self._blocks[i].take_first(length)
        return Message(data, length, self._headers.flags[i], self.peer(i), self.local(i), self.ancillary(i))

    def _first(self, n: int | None) -> int:
        if n is None:
            return self.count
        if type(n) is not int:
            n = check_int(n, "n")
        if not 0 <= n <= len(self._blocks):
            raise ValueError(f"n must lie in 0 to {len(self._blocks)}, not {n}")
        return n

    # What endpoints use.

    def in_use(self) -> InUse:
        """Have the batch to oneself in a ``with``. Raises RuntimeError, there, if somebody else has it."""
        return self._guard

    def checked_vlen(self, vlen: int | None, family: int | None = None) -> int:
        """How many messages a call is for. Raises ValueError if they are more than there are, or of another family."""
        if family is not None and self.family != family:
            raise ValueError(f"the batch is for addresses of family {self.family}, the socket's is {family}")
        size = len(self._blocks)
        if vlen is None:
            return size
        if type(vlen) is not int:
            vlen = check_int(vlen, "vlen")
        if not 0 <= vlen <= size:
            raise ValueError(f"vlen must lie in 0 to {size}, not {vlen}")
        return vlen

    def receivable(self, vlen: int, has_local: bool) -> int:
        """How many of the first messages an endpoint can receive: up to one that asks for a local address in vain.

        Raises LocalAddressNotAvailableError if that is the first.
        """
        if has_local or not self.asks_local:
            return vlen
        n = min({*range(vlen)} - self._no_locals, default=vlen)
        if vlen and not n:
            raise LocalAddressNotAvailableError("call set_local_addr_enable(True), or make the batch with local=False")
        return n

    def check_blocks(self, i: int, blocks: BlockSeq) -> bool:
        """Raise what binding message i to these blocks would; returns whether one is read-only."""
        count = 0
        read_only = False
        for block in blocks:
            if block.need_safecopy:
                raise BufferError(f"message {i} lies in memory that may fault: use memory that cannot, and copy")
            read_only |= block.readonly
            count += 1
        if count > self._headers.max_iov:
            raise ValueError(f"message {i} has {count} blocks, more than max_iov {self._headers.max_iov}")
        return read_only

    def check_writable(self, vlen: int) -> None:
        """Raise TypeError if one of the first messages is read-only memory."""
        if self._read_only and min(self._read_only) < vlen:
            raise TypeError(f"message {min(self._read_only)} must be writable, and is a block of read-only memory")

    @property
    def headers(self) -> MMsgHeaders:
        """The messages as Linux has them."""
        return self._headers

    def put(self, i: int, message: Message) -> None:
        """Note what has been received into message i by an endpoint that knows no headers."""
        self._headers.lengths[i] = message.length
        self._headers.flags[i] = message.flags
        self._told[i] = message
        self.count = i + 1

    def receive(self, vlen: int, port: int, call: Callable[..., int | None], *args: Any) -> int | None:
        """Have a call of the socket at this port fill the headers; returns what it does, and notes it.

        If it raises, ``count`` is as before; after an interrupt, how many messages had come, be it behind the call.
        """
        before, self.count = self.count, 0
        try:
            n = call(*args)
            if n is None:
                self.count = before
            else:
                self.filled(n, port)
            return n
        except BaseException as exc:
            came = self._headers.reached(vlen)
            if came:
                self.filled(came, port)
            elif isinstance(exc, OSError) and not self.count:
                self.count = before
            raise

    def filled(self, n: int, port: int) -> None:
        """Note that the headers tell what has been received into the first n messages, by a socket at this port.

        Doing it once more after an interrupt is right: the headers forget what came last of all.
        """
        self.count = n
        if self._told:
            for i in range(n):
                self._told.pop(i, None)
        if self.control_len:
            self._ports.update(dict.fromkeys(range(n), port))
        self._headers.note(n)


def _unasked(asked: bool | Sequence[bool], size: int, name: str) -> set[int]:
    """The messages that an address is not asked for."""
    if isinstance(asked, bool | int):
        return set() if asked else {*range(size)}
    if len(asked) != size:
        raise ValueError(f"{name} must be a bool or one for each of {size} messages, and has {len(asked)}")
    return {i for i, each in enumerate(asked) if not each}


def _check(family: int, max_iov: int) -> None:
    if family not in NAME_SIZE:
        raise ValueError(f"family must be AF_INET, AF_INET6 or AF_UNIX, not {family}")
    if not 0 <= max_iov <= UIO_MAXIOV:
        raise ValueError(f"max_iov must lie in 0 to {UIO_MAXIOV}, not {max_iov}")


def _unpack_key(key: int) -> Address | None:
    """The address in the first 8 bytes of an IPv4 name, as an int of the host's byte order."""
    return unpack_sockaddr(key.to_bytes(8, sys.byteorder))
