"""sendmsg(2) and sendmmsg(2) for a guest: datagrams straight out of user memory, to any endpoint.

What these return and raise is what the system calls do; ``linux_result`` makes a handler of either one line. A datagram
goes whole or not at all: if some of its memory cannot be read, nothing is sent, and errors count no bytes as
``transferred``.

Source: Linux net/socket.c (____sys_sendmsg, __sys_sendmmsg), net/ipv4/udp.c (udp_sendmsg).
"""

from __future__ import annotations

from typing import Final

from safemem import BlockSeq
from safemem.block_seq import EMPTY
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.flags import UIO_MAXIOV
from usermem.cstruct import copy_uint32_out
from usermem.memory_io import IO, arch_of
from usermem.messages.control import copy_in_control, parse_control
from usermem.messages.header import checked_flags, copy_in_msghdr, count_nothing, msg_layout, unreadable
from usermem.messages.name import family_of, unpack_name

_MSG_EOR: Final = 0x80  # the only flag that sendmmsg takes from a msg_flags


def sendmsg_from_user(
    io: IO, endpoint: DatagramEndpoint, msg_addr: int, flags: int = 0, *, ignore_permissions: bool = False
) -> int:
    """Send one datagram by the struct msghdr at ``msg_addr``; returns its length. Nothing in the struct is written.

    An empty one is sent too. The name, if there is one, is an address of the endpoint's ``family``, or of its own if
    the endpoint tells none. Control data go to the endpoint as they are.

    Raises FaultError; OSError: EINVAL for a negative length, a bad name, bad control data or a forbidden flag,
    EAFNOSUPPORT for a name of another family, EMSGSIZE for more than UIO_MAXIOV iovecs, ENOBUFS for too many control
    data; BlockingIOError and other errors of the endpoint. Memory that cannot be read comes before what the endpoint
    says (no destination, too long); in Linux it is the other way round.
    """
    try:
        return _Call(io, endpoint, flags, ignore_permissions).send(msg_addr)
    except OSError as exc:
        count_nothing(exc)
        raise


def sendmmsg_from_user(
    io: IO,
    endpoint: DatagramEndpoint,
    msgvec_addr: int,
    vlen: int,
    flags: int = 0,
    *,
    ignore_permissions: bool = False,
) -> int:
    """Send ``vlen`` datagrams, at most UIO_MAXIOV, by the structs mmsghdr at ``msgvec_addr``; returns how many went.

    Each goes as by sendmsg, and its length is stored as msg_len. It ends at the first that does not go, or whose
    msg_len cannot be stored, which has gone but does not count. Raises that one's error if it is the first; else the
    error is forgotten, and sending again from there tells it.
    """
    done = 0
    try:
        call = _Call(io, endpoint, flags, ignore_permissions)
        for i in range(min(vlen & 0xFFFF_FFFF, UIO_MAXIOV)):
            entry = msgvec_addr + i * call.layout.entry
            sent = call.send(entry, _MSG_EOR)
            copy_uint32_out(io, entry + call.layout.msg_len, sent, ignore_permissions=ignore_permissions)
            done += 1
            if sent < call.size:
                break
    except OSError as exc:
        if not done:
            count_nothing(exc)
            raise
    return done


class _Call:
    """A guest's call. As a message writer it sends nothing unless it is given all ``size`` bytes of the datagram."""

    message_oriented = True

    def __init__(self, io: IO, endpoint: DatagramEndpoint, flags: int, ignore_permissions: bool) -> None:
        self.layout = msg_layout(arch_of(io))
        self.size = 0
        self._io = io
        self._endpoint = endpoint
        self._flags = checked_flags(flags, self.layout) if flags else 0
        self._ignore_permissions = ignore_permissions

    def send(self, addr: int, allowed_flags: int = 0) -> int:
        """One datagram of ``size`` bytes, by the struct msghdr at addr; returns how much of it went."""
        io, layout, ignore = self._io, self.layout, self._ignore_permissions
        name = bytearray()
        _, _, _, control, length, flags, ranges = copy_in_msghdr(io, addr, layout, name, ignore_permissions=ignore)
        packed = copy_in_control(io, control, length, ignore_permissions=ignore) if length else b""
        self._message_flags = self._flags | flags & allowed_flags
        self._peer = unpack_name(bytes(name), family_of(self._endpoint), arch_of(io)) if name else None
        self._ancillary = parse_control(layout, packed) if packed else ()
        self.size = ranges.num_bytes
        self._room = 0
        self._sent: int | None = None
        io.copy_in_to(ranges, self, ignore_permissions=ignore)
        if not self.size:
            self.write_from_blocks(EMPTY)
        if self._sent is None:
            raise unreadable(io, ranges, self._room, ignore_permissions=ignore)
        return self._sent

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        self._room = srcs.num_bytes
        if self._room < self.size:
            return 0
        self._sent = self._endpoint.sendmsg(srcs, self._peer, None, self._message_flags, self._ancillary)
        return self._sent
