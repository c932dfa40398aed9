"""recvmsg(2) and sendmsg(2) for a guest's stream sockets: bytes between a socket of the host's and user memory.

What these return and raise is what the system calls do, for the host's kernel itself does them: memory of the guest's
that cannot be accessed is passed on as memory that this process does not have. So a fault in the middle of the ranges
is a count, or EFAULT, as Linux has it: TCP and Unix sockets count whole packets, and what is not counted stays in the
socket, though some of it may have been stored. A message of a SOCK_SEQPACKET socket is lost by EFAULT.

A socket is a ``socket.socket`` of type SOCK_STREAM or SOCK_SEQPACKET, or has its family, recvmsg_into and sendmsg: one
of a simulator's own translates descriptors among the control data there. It waits as it does: a socket with a timeout
of its own waits that long despite MSG_DONTWAIT.

Source: Linux net/socket.c (____sys_recvmsg, ____sys_sendmsg), net/ipv4/tcp.c, net/unix/af_unix.c.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from hostarch import READ, WRITE, AccessType, AddrRangeSeq
from safemem import Block, BlockSeq, copy_seq
from safemem.block_seq import EMPTY
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.flags import MSG_WAITFORONE, UIO_MAXIOV
from safemem.datagram.message import Message
from safemem.datagram.reader import FaultPolicy
from safemem.errors import HostFaultError, error
from usermem.errors import FaultError
from usermem.iovec import MAX_RW_COUNT
from usermem.memory_io import IO, arch_of
from usermem.messages.control import copy_in_control, parse_control
from usermem.messages.header import checked_flags, copy_in_msghdr, count_nothing, layout_of, unreadable, unwritable
from usermem.messages.name import AF_UNIX, family_of
from usermem.messages.recvmsg import Call, receive_one
from usermem.vec import copy_in_vec

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_NOWHERE: Final = 8  # below vm.mmap_min_addr
_MOST_COPIED: Final = 1 << 20
_NOSIGNAL: Final = 0x4000  # MSG_NOSIGNAL: SIGPIPE is the guest's, and the simulator's to send


class StreamSocket(Protocol):
    """What is used of a ``socket.socket``."""

    @property
    def family(self) -> int:
        """The host's number of its address family."""
        ...

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = ..., flags: int = ..., /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        """Receive into several buffers."""
        ...

    def sendmsg(
        self,
        buffers: Iterable[ReadableBuffer],
        ancdata: Iterable[tuple[int, int, ReadableBuffer]] = ...,
        flags: int = ...,
        address: Any = ...,
        /,
    ) -> int:
        """Send out of several buffers."""
        ...


def recvmsg_stream_into_user(
    io: IO,
    sock: StreamSocket,
    msg_addr: int,
    flags: int = 0,
    *,
    fault_policy: FaultPolicy = "keep",
    ignore_permissions: bool = False,
) -> int:
    """Receive by the struct msghdr at ``msg_addr`` from a stream; returns how many bytes came, 0 at its end.

    MSG_PEEK, MSG_WAITALL, MSG_DONTWAIT and MSG_TRUNC do what the host has them do. Names, control data and descriptors
    are as for :func:`recvmsg_into_user`. By the policy ``"keep"`` bytes stay in the socket if the rest of the answer
    cannot be stored; by ``"linux"`` they are lost.

    Raises FaultError; OSError: EINVAL, EMSGSIZE as recvmsg_into_user; BlockingIOError and other errors of the socket.
    """
    return receive_one(_StreamCall, (io, sock, flags, fault_policy), msg_addr, ignore_permissions=ignore_permissions)


def sendmsg_stream_from_user(
    io: IO, sock: StreamSocket, msg_addr: int, flags: int = 0, *, ignore_permissions: bool = False
) -> int:
    """Send by the struct msghdr at ``msg_addr`` to a stream; returns how many bytes went. Nothing in it is written.

    A name is an error for Unix sockets (EISCONN, EOPNOTSUPP), and of no matter for others. This process gets no
    SIGPIPE; the guest should, where EPIPE comes without MSG_NOSIGNAL.

    Raises FaultError; OSError: EINVAL, EMSGSIZE and ENOBUFS as sendmsg_from_user; BlockingIOError, BrokenPipeError and
    other errors of the socket.
    """
    try:
        flags = checked_flags(flags, arch_of(io)) | _NOSIGNAL
        layout = layout_of(io)
        header = copy_in_msghdr(io, msg_addr, layout, True, ignore_permissions=ignore_permissions)
        _, _, _, control, controllen, _, ranges, name = header
        packed = copy_in_control(io, control, controllen, ignore_permissions=ignore_permissions) if controllen else b""
        ancillary = parse_control(layout, packed) if packed else ()
        args: list[Any] = [ancillary, flags]
        if name and family_of(cast(DatagramEndpoint, sock)) == AF_UNIX:
            args.append(b"\0name")
        gather = _Gather(sock, args, ranges.num_bytes)
        with suppress(FaultError):  # of which the host is told
            io.copy_in_to(ranges, gather, ignore_permissions=ignore_permissions)
        if gather.room is None:
            gather.write_from_blocks(EMPTY)
        if gather.sent is None:
            fault = _beyond(io, ranges.take_first(gather.room or 0), READ)
            raise fault or unreadable(io, ranges, gather.room or 0, ignore_permissions=ignore_permissions)
        return gather.sent
    except OSError as exc:
        count_nothing(exc)
        raise


class _Gather:
    """A Writer that sends once, ``room`` bytes and what is missing. ``sent`` stays None if that is an EFAULT."""

    message_oriented = True

    def __init__(self, sock: StreamSocket, args: list[Any], wanted: int) -> None:
        self._sock = sock
        self._args = args
        self._wanted = wanted
        self.room: int | None = None
        self.sent: int | None = None

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        self.room = srcs.num_bytes
        try:
            self.sent = self._sock.sendmsg(_Buffers(srcs, self._wanted - self.room).to_send(), *self._args)
        except OSError as exc:
            if exc.errno != errno.EFAULT:
                raise
            return 0
        return self.sent


class _Stream:
    """A socket as a call receives from it."""

    def __init__(self, sock: StreamSocket) -> None:
        self._sock = sock
        self.family = int(sock.family)

    def recvmsg(self, dsts: BlockSeq, flags: int = 0, ancbufsize: int = 0, missing: int = 0) -> Message:
        """Receive into dsts, and ``missing`` bytes behind them that are nowhere."""
        buffers = _Buffers(dsts, missing)
        length, ancillary, got, peer = self._sock.recvmsg_into(buffers.to_receive(), ancbufsize, flags)
        buffers.received(length)
        return Message(dsts.take_first(length), length, int(got), peer or None, None, tuple(ancillary))


class _StreamCall(Call):
    """A guest's call that receives from a stream."""

    def __init__(
        self, io: IO, sock: StreamSocket, flags: int, fault_policy: FaultPolicy, *, ignore_permissions: bool
    ) -> None:
        self._stream = _Stream(sock)
        endpoint = cast(DatagramEndpoint, self._stream)  # of which this call uses no more
        super().__init__(io, endpoint, flags, fault_policy, ignore_permissions=ignore_permissions)

    def receive_data(self, ranges: AddrRangeSeq) -> None:
        """Receive into the ranges, which the host is given in full."""
        self._wanted = ranges.num_bytes
        self.room = None
        with suppress(FaultError):  # of which the host is told
            self.io.copy_out_from(ranges, self, ignore_permissions=self.ignore_permissions)
        if self.room is None:
            self.read_to_blocks(EMPTY)
        if self.faulted:
            room = self.room or 0
            fault: OSError | None = _beyond(self.io, ranges.take_first(room), WRITE)
            if fault is None:
                fault = unwritable(self.io, ranges.drop_first(room), ignore_permissions=self.ignore_permissions)
            try:
                raise fault or error(errno.EFAULT, "memory that has been mapped since")
            finally:
                del fault

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        self.room = dsts.num_bytes
        flags = self.call_flags & ~MSG_WAITFORONE
        try:
            message = self._stream.recvmsg(dsts, flags, self._ancbufsize, (self._wanted or 0) - self.room)
        except OSError as exc:
            if exc.errno != errno.EFAULT:
                raise
            self.faulted = True
            return 0
        self.message = message
        self.msg_len, self.flags, self.peer, self.ancillary = (
            message.length,
            message.flags,
            message.peer,
            message.ancillary,
        )
        return min(message.length, self.room)


def _beyond(io: IO, ranges: AddrRangeSeq, access: AccessType) -> FaultError | None:
    """The fault in ranges that could be accessed before they were touched: of a file that has become shorter."""
    while True:
        left = ranges.num_bytes
        if not left:
            return None
        piece = bytearray(min(left, 1 << 16))
        try:
            copy_in_vec(io, ranges, piece, ignore_permissions=True)
        except FaultError as fault:
            return FaultError(fault.address, access, fault.reason)
        ranges = ranges.drop_first(len(piece))


@cache
def _all_memory() -> Any:
    import ctypes

    return ctypes.c_char * (2 * MAX_RW_COUNT)  # one type for all: each is kept for good


def _at(address: int, length: int) -> memoryview:
    """Memory by its host address, for the kernel alone to touch."""
    return memoryview(_all_memory().from_address(address)).cast("B")[:length]


class _Buffers:
    """Blocks as buffers for a system call, and behind them ``missing`` bytes, which EFAULT.

    Of more pieces than a call takes the last are moved by a copy, 1 MiB of it at most, so that a message of a
    SOCK_SEQPACKET socket goes whole.
    """

    def __init__(self, blocks: BlockSeq, missing: int) -> None:
        self._rest = EMPTY
        self._copied = bytearray()
        self._missing = missing
        if len(blocks.pieces()) + bool(missing) > UIO_MAXIOV:
            direct = blocks.take_blocks(UIO_MAXIOV - 2)
            rest = blocks.drop_first(direct.num_bytes)
            if rest.num_bytes > _MOST_COPIED:
                rest, self._missing = rest.take_first(_MOST_COPIED), 0
            blocks, self._rest, self._copied = direct, rest, bytearray(rest.num_bytes)
        self._direct = blocks

    def to_send(self) -> list[Any]:
        """The buffers, with the bytes that are sent."""
        try:
            copy_seq(BlockSeq.of(Block(self._copied)), self._rest)
        except HostFaultError as exc:
            self._copied = self._copied[: exc.transferred]
            self._missing = self._missing or 1
        return self.to_receive()

    def to_receive(self) -> list[Any]:
        """The buffers; :meth:`received` follows."""
        found: list[Any] = [
            _at(piece.address, len(piece)) if isinstance(piece, Block) else piece for piece in self._direct.pieces()
        ]
        if self._copied:
            found.append(self._copied)
        if self._missing:
            found.append(_at(_NOWHERE, self._missing))
        return found

    def received(self, length: int) -> None:
        """Store what came behind the first buffers, of ``length`` bytes in all. Raises HostFaultError."""
        if length > self._direct.num_bytes and self._copied:
            copy_seq(self._rest.take_first(length - self._direct.num_bytes), BlockSeq.of(Block(self._copied)))
