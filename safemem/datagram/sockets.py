"""DatagramSocket: real sockets as a DatagramEndpoint, many datagrams a system call.

Batches go through recvmmsg and sendmmsg by ctypes where the host has them and there are enough messages to pay for it;
else through recvmsg_into and sendmsg, or recvfrom_into and sendto where there are no others. A host that refuses a call
(ENOSYS, seccomp, gVisor's EINVAL) is asked the next simpler one, and no datagram is lost by that; only ENOSYS says that
it will never do it: see :mod:`safemem.datagram.capability`.

Source: recvmmsg(2), udp(7), ip(7); OpenSSL BIO_s_datagram(3).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from safemem.block import Block
from safemem.block_seq import BlockSeq
from safemem.buffers import check_count, check_positive, writable_view
from safemem.datagram.address import Address, zoned
from safemem.datagram.arrivals import Arrivals, Receive, recvfrom
from safemem.datagram.batch import MessageBatch
from safemem.datagram.capability import Capability
from safemem.datagram.cmsg import KERNEL_SPACE, Ancillary
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.flags import (
    MSG_DONTWAIT,
    MSG_ERRQUEUE,
    MSG_PEEK,
    MSG_TRUNC,
    UDP_GRO,
    UIO_MAXIOV,
)
from safemem.datagram.local_addr import LocalAddresses
from safemem.datagram.message import Message, payload
from safemem.datagram.mmsg import Call, load
from safemem.datagram.mtu import explained, least_mtu, path_mtu
from safemem.datagram.segments import SegmentLimits, Segments, can_cut, cut
from safemem.datagram.wait import POLLIN, POLLOUT, may_wait, next_length, until_ready, waits
from safemem.errors import error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

Backend = Literal["recvmmsg", "recvmsg", "recvfrom"]
BACKENDS: Final[tuple[Backend, ...]] = get_args(Backend)
"""The ways to move datagrams, the quickest first."""

_WORTH_IT: Final = 4  # fewer messages are moved quicker one by one
_BY_ICMP: Final = (errno.EACCES, errno.EOPNOTSUPP)
"""Which of these a peer may send: Linux net/ipv4/icmp.c (icmp_err_convert), net/ipv6/icmp.c (icmpv6_err_convert)."""
_REFUSED: Final = (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP)
_AF_INET6: Final = int(socket.AF_INET6)
_AF_UNIX: Final = int(getattr(socket, "AF_UNIX", 1))


def default_backend() -> Backend:
    """How this host moves many datagrams, as far as can be known without a socket."""
    if not isinstance(load("recvmmsg"), OSError):
        return "recvmmsg"
    return "recvmsg" if hasattr(socket.socket, "recvmsg_into") else "recvfrom"


class DatagramSocket(DatagramEndpoint):
    """A socket of type SOCK_DGRAM. It waits as the socket does: for ever, for its timeout, or not at all.

    Several threads may send and receive at once.
    """

    def __init__(self, sock: socket.socket, *, backend: Backend | Literal["auto"] = "auto") -> None:
        """Takes over the socket: close this, and not the socket. Its options and timeout may be set at any time.

        ``backend`` forces one way of moving datagrams. Raises ValueError for a socket that has none, and for a backend
        that is unknown; OSError (ENOSYS) if this host does not have it.
        """
        super().__init__()
        if sock.type & 0xF != socket.SOCK_DGRAM:
            raise ValueError(f"sock must be of type SOCK_DGRAM, not {sock.type!r}")
        if backend not in (*BACKENDS, "auto"):
            raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}, not {backend!r}")
        best = default_backend()
        if backend != "auto" and BACKENDS.index(backend) < BACKENDS.index(best):
            raise error(errno.ENOSYS, backend)
        self._sock = sock
        # The same socket to a Python that calls at once, and does not wait for it to be ready before: waiting is ours.
        self._direct = sock
        if MSG_DONTWAIT:
            self._direct = socket.socket(sock.family, sock.type, sock.proto, os.dup(sock.fileno()))
            if self._direct.gettimeout() is not None:  # by setdefaulttimeout
                self._direct.settimeout(None)
                sock.settimeout(sock.gettimeout())  # the host knows one mode for both
        self.family: int = int(sock.family)
        self._backend: Backend = best if backend == "auto" else backend
        self._forced = backend != "auto"
        self._recv: Receive = partial(recvfrom, self._direct)
        if self._backend != "recvfrom":
            self._recv = self._direct.recvmsg_into
        self._arrivals = Arrivals(sock)
        self._local = LocalAddresses(sock)
        self._own_space = 0  # the room for the control data that this package asks for, in bytes
        self._segments = SegmentLimits(can_cut(sock))
        self._many_in, self._many_out = Capability(), Capability()

    def close(self) -> None:
        """Close the socket, and the descriptors that came and were not delivered. A second call does nothing.

        A thread that waits in the socket is not woken by that, as with any socket: it waits on, and keeps the port
        bound. ``endpoint.socket.shutdown(SHUT_RDWR)`` before wakes it, on Linux (whatever it raises): BrokenPipeError.
        """
        self._arrivals.close()
        self._direct.close()
        self._sock.close()

    def fileno(self) -> int:
        """The descriptor, for poll and the like; -1 once it is closed."""
        return self._sock.fileno()

    @property
    def socket(self) -> socket.socket:
        """The socket, for its options, its name and its timeout."""
        return self._sock

    @property
    def backend(self) -> Backend:
        """How batches are moved: what was forced, or the best that the host does not refuse now."""
        if self._backend == "recvmmsg" and (self._many_in.given_up or self._many_out.given_up):
            return "recvmsg"
        return self._backend

    @property
    def max_iov(self) -> int:
        """The most blocks that one message may have."""
        return 1 if self._backend == "recvfrom" else UIO_MAXIOV

    @property
    def local_addr_cap(self) -> bool:
        """Whether local addresses can be enabled: for IPv4 and IPv6, where there is recvmsg."""
        return least_mtu(self.family) is not None and self._backend != "recvfrom"

    @property
    def local_addr_enabled(self) -> bool:
        """Whether messages tell the local address that they came to."""
        return self._local.enabled

    def set_local_addr_enable(self, enable: bool) -> None:
        """As any endpoint. Datagrams that came before it tell their address without the interface, or nothing.

        That of a broadcast or multicast datagram is the interface's, so that it can be answered from. To be sent from,
        an address must have port 0 or the socket's.
        """
        if self.local_addr_cap:
            self._local.enable(enable)
            self._own_space = KERNEL_SPACE if enable or self.gro else 0
        else:
            super().set_local_addr_enable(enable)

    @property
    def mtu(self) -> int | None:
        """The longest payload of the path, in bytes, if the socket is connected, else the least that IP promises."""
        found = path_mtu(self._sock)
        return least_mtu(self.family) if found is None else found

    def pending(self) -> int | None:
        """As any endpoint. An error that waits in the socket stays there, where poll() reports it.

        Raises an error that an earlier call has kept for the next receive, which poll() does not know of.
        """
        self._raise_held()
        length = self._arrivals.pending()
        return next_length(self._direct) if length is None else length

    def recvmsg(self, dsts: BlockSeq, flags: int = 0, ancbufsize: int = 0) -> Message:
        """As any endpoint. A datagram for blocks that may fault is peeked at and copied before it is received.

        With local addresses or :attr:`gro` other control data may come than ``ancbufsize`` has room for.
        Descriptors among the control data (SCM_RIGHTS) are the caller's from the return on, and on no account before:
        where this raises, the datagram and they are kept for the next receive. MSG_ERRQUEUE never waits, and MSG_PEEK
        keeps an entry of the error queue, which Linux would take.
        """
        if type(ancbufsize) is not int:
            ancbufsize = check_count(ancbufsize, "ancbufsize")
        return self._recv_for_batch(dsts, flags, ancbufsize + self._own_space)

    def _recv_for_batch(self, dsts: BlockSeq, flags: int, control_len: int) -> Message:
        self._raise_held()
        pieces: list[Any] = dsts.pieces()
        if not self._arrivals.concern(flags, control_len) and len(pieces) <= UIO_MAXIOV:
            try:  # a block among them is no buffer, which costs nothing to find out
                length, ancillary, result, peer = self._receive(pieces, flags, control_len)
                local = self._local.of(ancillary) if ancillary else None
                return Message(dsts.take_first(length), length, result, peer or None, local, tuple(ancillary))
            except (TypeError, ValueError):
                dsts.check_writable("dsts")
                if not dsts.need_safecopy:
                    raise
        return self._arrive(dsts, flags, control_len)

    def _arrive(self, dsts: BlockSeq, flags: int, space: int) -> Message:
        if self.family == _AF_UNIX:  # which has no error queue, and takes no notice of the flag
            flags &= ~MSG_ERRQUEUE
        if not self._local.enabled:  # descriptors have no local address
            return self._arrivals.receive(self._recv, dsts, flags, space)
        message = self._arrivals.receive(self._recv, dsts, flags, space)
        message.local = self._local.of(message.ancillary)
        return message

    def _receive(self, views: list[memoryview], flags: int, space: int) -> tuple[int, list[Ancillary], int, Any]:
        """One datagram: its length, control data, flags, peer, or something false where there is no peer."""
        flags |= MSG_TRUNC
        try:
            return self._recv(views, space, flags | MSG_DONTWAIT)
        except BlockingIOError:
            if not may_wait(self._sock, flags):
                raise
        return until_ready(self._sock, flags, POLLIN, self._recv, views, space)

    def sendmsg(
        self,
        srcs: BlockSeq,
        peer: Address | None = None,
        local: Address | None = None,
        flags: int = 0,
        ancdata: Iterable[Ancillary] = (),
    ) -> int:
        """As any endpoint. Blocks that may fault are copied first."""
        control = [*ancdata] if local is None else [*ancdata, self._local.control(local)]
        if self.family == _AF_INET6 and peer is not None and "%" in str(peer[0]):
            peer = zoned(peer)
        data: Sequence[Any] = srcs.pieces()
        try:
            if not 0 < len(data) <= UIO_MAXIOV:
                data = [payload(self._sock, srcs)]
            try:
                return self._send(data, control, peer, flags | MSG_DONTWAIT)
            except BlockingIOError:
                if not may_wait(self._sock, flags):
                    raise
            except (TypeError, ValueError):  # a block is no buffer
                if not srcs.need_safecopy:
                    raise
                data = [payload(self._sock, srcs)]
            return until_ready(self._sock, flags, POLLOUT, self._send, data, control, peer)
        except OSError as exc:
            raise explained(exc, self._sock, srcs.num_bytes) from None

    def _send(self, data: Sequence[ReadableBuffer], control: list[Ancillary], peer: Address | None, flags: int) -> int:
        if len(data) > 1 or control:
            if self._backend == "recvfrom":
                raise ValueError(f"{len(data)} blocks and {len(control)} control data: sendto takes one block alone")
            return self._direct.sendmsg(data, control, flags, peer)
        return self._direct.send(data[0], flags) if peer is None else self._direct.sendto(data[0], flags, peer)

    @property
    def gro(self) -> bool:
        """Whether the host may join the datagrams that arrive; set it, and see whether it can.

        What is received then may be several datagrams in one: by :meth:`recv_segments` or Message.segments they come
        apart; a MessageBatch needs ``control_len`` for their size.
        """
        try:
            return bool(self._sock.getsockopt(socket.IPPROTO_UDP, UDP_GRO))
        except OSError:
            return False

    @gro.setter
    def gro(self, on: bool) -> None:
        """Ask for it; a host that cannot stays as it is."""
        with suppress(OSError):
            self._sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, int(on))
            self._own_space = KERNEL_SPACE if on or self._local.enabled else 0

    @property
    def gso(self) -> bool:
        """Whether the host cuts up what :meth:`send_segments` sends, for all that is known: it does not refuse now."""
        return self._segments.can_cut

    def recv_segments(self, dst: WriteableBuffer, flags: int = 0, ancbufsize: int = 0) -> Segments:
        """Receive datagrams that have been joined, or one, into writable memory: 65,535 bytes hold any.

        Raises TypeError if it is read-only; as :meth:`recvmsg`.
        """
        self._raise_held()
        dst = writable_view(dst, "dst")
        space = check_count(ancbufsize, "ancbufsize") + KERNEL_SPACE * (self.family != _AF_UNIX)
        if self._arrivals.concern(flags, space):
            found = self._arrive(BlockSeq.of(Block(dst)), flags, space)
            return cut(dst, found.length, [*found.ancillary], found.flags, found.peer, found.local)
        length, ancillary, result, peer = self._receive([dst], flags, space)
        return cut(dst, length, ancillary, result, peer or None, self._local.of(ancillary))

    def send_segments(
        self,
        srcs: BlockSeq,
        segment_size: int,
        peer: Address | None = None,
        flags: int = 0,
        local: Address | None = None,
        ancdata: Iterable[Ancillary] = (),
    ) -> int:
        """Send the bytes of srcs as datagrams of ``segment_size`` bytes, the last may have fewer; returns how many.

        Each goes with the control data: its ECN mark, say, as (IPPROTO_IP, IP_TOS, an int of the host's).
        The host cuts them up. Where it refuses to, they go one by one, and if that is so several times running, without
        asking it for a while. A short count says that the rest could not go; asking again tells why. Raises ValueError
        for a size below 1; as :meth:`sendmsg` if nothing went.
        """
        segment_size = check_positive(segment_size, "segment_size")
        control = [*ancdata] if local is None else [*ancdata, self._local.control(local)]
        limits = self._segments if self._backend != "recvfrom" else SegmentLimits(False)

        def send(part: BlockSeq, size: list[Ancillary]) -> int:
            return self.sendmsg(part, peer, None, flags, control + size)

        return limits.send(self, send, srcs, segment_size)

    def waits(self, timeout: float | None = None, *, sending: bool = False) -> Generator[None, None, None]:
        """As any endpoint, asleep until the host says so: for the socket's own timeout if None."""
        with suppress(TimeoutError):
            yield from waits(self._sock, POLLOUT if sending else POLLIN, timeout)

    def _recv_many(self, batch: MessageBatch, vlen: int | None, flags: int) -> int:
        vlen = batch.checked_vlen(vlen, self.family)
        if batch.asks_local:
            vlen = batch.receivable(vlen, self._local.enabled)
        if self._arrivals.datagrams or flags & MSG_ERRQUEUE or not self._native(vlen, self._many_in):
            return super()._recv_many(batch, vlen, flags)
        with batch.in_use():
            self._raise_held()
            batch.check_writable(vlen)
            port = self._local.port() if batch.control_len else 0
            n = batch.receive(vlen, port, self._call, "recvmmsg", batch, vlen, flags | MSG_TRUNC, POLLIN)
        if n is not None:
            if self._many_in.refusals:
                self._many_in.worked()
            return n
        n = super()._recv_many(batch, vlen, flags)
        if not flags & MSG_PEEK:  # which gVisor refuses in recvmmsg, and nothing else
            self._many_in.refused()
        return n

    def _send_many(self, batch: MessageBatch, vlen: int | None, flags: int) -> int:
        """Linux sends at most 1,024 messages a call."""
        vlen = batch.checked_vlen(vlen, self.family)
        vlen = self._local.sendable(batch.locals_before(vlen), vlen)
        if not self._native(vlen, self._many_out):
            return super()._send_many(batch, vlen, flags)
        with batch.in_use():
            try:
                n = self._call("sendmmsg", batch, vlen, flags, POLLOUT)
            except OSError as exc:
                raise explained(exc, self._sock, batch.blocks(0).num_bytes) from None
        if n is not None:
            if self._many_out.refusals:
                self._many_out.worked()
            return n
        n = super()._send_many(batch, vlen, flags)
        self._many_out.refused()
        return n

    def _native(self, vlen: int, many: Capability) -> bool:
        if self._forced:
            return self._backend == "recvmmsg"
        return vlen >= _WORTH_IT and self._backend == "recvmmsg" and (not many.refusals or many.is_tried())

    def _call(self, name: str, batch: MessageBatch, vlen: int, flags: int, event: int) -> int | None:
        """recvmmsg or sendmmsg; None if the host refuses it, and it may be another way."""
        call = load(name)
        if isinstance(call, OSError):
            return None
        batch.headers.prepare(name == "recvmmsg")
        address = batch.headers.address
        again = partial(call, self._direct.fileno(), address, vlen)
        try:
            return until_ready(self._sock, flags, event, again)
        except OSError as exc:
            if self._forced or exc.errno not in _REFUSED:
                raise
            if exc.errno in _BY_ICMP and _takes_none(call, self._direct.fileno(), address, flags | MSG_DONTWAIT):
                raise
            if exc.errno == errno.ENOSYS:  # which says one thing only
                self._backend = "recvmsg"
            return None


def _takes_none(call: Call, fd: int, address: int, flags: int) -> bool:
    """Whether the host takes the call for no messages: then an error was the socket's own, and no refusal."""
    try:
        call(fd, address, 0, flags)
    except OSError:
        return False
    return True
