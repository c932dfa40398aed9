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
from safemem.datagram.reader import DatagramWriter
from usermem.cstruct import copy_uint32_out
from usermem.memory_io import IO, arch_of
from usermem.messages.control import copy_in_control, parse_control
from usermem.messages.header import checked_flags, copy_in_msghdr, msg_layout, unreadable, whole_messages
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
    with whole_messages():
        return _send(io, endpoint, msg_addr, checked_flags(flags, arch_of(io)), 0, ignore_permissions)[0]


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
    with whole_messages():
        flags = checked_flags(flags, arch_of(io))
        layout = msg_layout(arch_of(io))
        done = 0
        try:
            for i in range(min(vlen & 0xFFFF_FFFF, UIO_MAXIOV)):
                entry = msgvec_addr + i * layout.entry
                sent, size = _send(io, endpoint, entry, flags, _MSG_EOR, ignore_permissions)
                copy_uint32_out(io, entry + layout.msg_len, sent, ignore_permissions=ignore_permissions)
                done += 1
                if sent < size:
                    break
        except OSError:
            if not done:
                raise
        return done


class _Gather:
    """A message writer that sends nothing unless it is given all ``size`` bytes; ``room`` is how many it was given."""

    message_oriented = True

    def __init__(self, writer: DatagramWriter, size: int) -> None:
        self._writer = writer
        self._size = size
        self.room = 0
        self.sent: int | None = None

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        self.room = srcs.num_bytes
        if self.room < self._size:
            return 0
        self.sent = self._writer.write_from_blocks(srcs)
        return self.sent


def _send(
    io: IO, endpoint: DatagramEndpoint, addr: int, flags: int, allowed_flags: int, ignore_permissions: bool
) -> tuple[int, int]:
    """One datagram; returns how much of it went, and its length."""
    arch = arch_of(io)
    name = bytearray()
    header = copy_in_msghdr(io, addr, name, ignore_permissions=ignore_permissions)
    flags |= header.flags & allowed_flags
    control = copy_in_control(io, header, ignore_permissions=ignore_permissions)
    peer = unpack_name(bytes(name), family_of(endpoint), arch) if name else None
    ancillary = parse_control(header.layout, control)
    size = header.ranges.num_bytes
    gather = _Gather(DatagramWriter(endpoint, peer, None, flags, ancillary), size)
    io.copy_in_to(header.ranges, gather, ignore_permissions=ignore_permissions)
    if not size:
        gather.write_from_blocks(EMPTY)
    if gather.sent is None:
        raise unreadable(io, header.ranges, gather.room, ignore_permissions=ignore_permissions)
    return gather.sent, size
