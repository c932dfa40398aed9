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
from safemem.buffers import check_int
from safemem.datagram.address import Address
from safemem.datagram.cmsg import Ancillary
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.flags import UIO_MAXIOV
from usermem.cstruct import copy_uint32_out
from usermem.memory_io import IO, arch_of
from usermem.messages.control import copy_in_control, parse_control
from usermem.messages.header import checked_flags, copy_in_msghdr, count_nothing, layout_of, unreadable
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
        flags = checked_flags(flags, arch_of(io)) if flags else 0
        return _send(io, endpoint, msg_addr, flags, 0, ignore_permissions)[0]
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
        flags = checked_flags(flags, arch_of(io))
        layout = layout_of(io)
        msgvec_addr = check_int(msgvec_addr, "msgvec_addr")
        for i in range(min(check_int(vlen, "vlen") & 0xFFFF_FFFF, UIO_MAXIOV)):
            entry = msgvec_addr + i * layout.entry
            sent, size = _send(io, endpoint, entry, flags, _MSG_EOR, ignore_permissions)
            copy_uint32_out(io, entry + layout.msg_len, sent, ignore_permissions=ignore_permissions)
            done += 1
            if sent < size:
                break
    except OSError as exc:
        if not done:
            count_nothing(exc)
            raise
    return done


class _Gather:
    """A message writer that sends nothing unless it is given all ``size`` bytes, else ``room`` is what there was."""

    message_oriented = True

    def __init__(self, endpoint: DatagramEndpoint, flags: int, size: int) -> None:
        self._endpoint = endpoint
        self._flags = flags
        self._size = size
        self.peer: Address | None = None
        self.ancillary: tuple[Ancillary, ...] = ()
        self.room = 0
        self.sent: int | None = None

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        if srcs.num_bytes < self._size:
            self.room = srcs.num_bytes
            return 0
        self.sent = sent = self._endpoint.sendmsg(srcs, self.peer, None, self._flags, self.ancillary)
        return sent


def _send(
    io: IO, endpoint: DatagramEndpoint, addr: int, flags: int, allowed_flags: int, ignore_permissions: bool
) -> tuple[int, int]:
    """One datagram; returns how much of it went, and its length."""
    layout = layout_of(io)
    header = copy_in_msghdr(io, addr, layout, True, ignore_permissions=ignore_permissions)
    _, _, _, control, controllen, msg_flags, ranges, name = header
    size = ranges.num_bytes
    gather = _Gather(endpoint, flags | msg_flags & allowed_flags, size)
    packed = copy_in_control(io, control, controllen, ignore_permissions=ignore_permissions) if controllen else b""
    if name:
        gather.peer = unpack_name(name, family_of(endpoint), arch_of(io))
    if packed:
        gather.ancillary = parse_control(layout, packed)
    io.copy_in_to(ranges, gather, ignore_permissions=ignore_permissions)
    if not size:
        gather.write_from_blocks(EMPTY)
    if gather.sent is None:
        raise unreadable(io, ranges, gather.room, ignore_permissions=ignore_permissions)
    return gather.sent, size
