"""Control data in a guest's memory: struct cmsghdr by struct cmsghdr, cut as Linux cuts them.

What is in a message stays as it is: the guest gets the endpoint's bytes, numbers in the host's byte order and file
descriptors of the host included. A simulator that has such guests translates them in its endpoint.

Source: Linux net/core/scm.c (put_cmsg), net/compat.c (put_cmsg_compat), include/linux/socket.h (CMSG_OK).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from typing import Final

from safemem.datagram.cmsg import Ancillary, pack_cmsgs, pktinfo_of, unpack_cmsgs
from safemem.datagram.flags import IP_PKTINFO, IPV6_PKTINFO
from safemem.datagram.message import Message
from safemem.datagram.reader import DatagramReader
from safemem.datagram.rights import FD_SIZE, is_rights
from safemem.errors import error
from usermem.memory_io import IO
from usermem.messages.header import MsgLayout
from usermem.messages.name import AF_INET, AF_INET6, family_by_form

MOST_RECEIVED: Final = 1 << 16
"""The most bytes of control data that are received with one message, however much room a guest says it has."""

OPTMEM_MAX: Final = 131072
"""net.core.optmem_max: from so many bytes on, control data are not sent."""

_PKTINFO: Final = ((int(socket.IPPROTO_IP), IP_PKTINFO), (int(socket.IPPROTO_IPV6), IPV6_PKTINFO))


def header_size(layout: MsgLayout) -> int:
    """sizeof(struct cmsghdr)."""
    return layout.word + 8


def room_at_endpoint(layout: MsgLayout, room: int) -> int:
    """How many bytes of the endpoint's control data, laid out for 64 bits, ``room`` bytes of the guest's may be."""
    if layout.word == 8:
        return room
    return room + 8 * -(-room // header_size(layout))


def control_of(message: Message | DatagramReader, family: int | None) -> list[Ancillary]:
    """The control data that came with a message; the local address is one of them, as IP_PKTINFO or IPV6_PKTINFO."""
    found = list(message.ancillary)
    local = message.local
    if local is None or isinstance(local, str | bytes) or any((level, kind) in _PKTINFO for level, kind, _ in found):
        return found
    if family not in (AF_INET, AF_INET6):
        family = family_by_form(local)
    found.append(pktinfo_of(int(socket.AF_INET if family == AF_INET else socket.AF_INET6), local))
    return found


def put_control(
    layout: MsgLayout, room: int, ancillary: Iterable[Ancillary], write: Callable[[int, bytes], bool]
) -> tuple[int, bool, list[Ancillary]]:
    """Lay out control data in ``room`` bytes; returns how many are used, whether something was cut, and what is there.

    ``write(offset, data)`` stores them, and says whether it could: what could not be stored is left out, and its place
    is used again. A message for whose data the room ends is cut; one for whose header it does is left out. Padding is
    not written. Of descriptors whole ones go, or none; they count as cut where they could not be stored.
    """
    head = header_size(layout)
    used = 0
    cut = False
    stored: list[Ancillary] = []
    for level, kind, data in ancillary:
        left = room - used
        rights = is_rights(level, kind)
        if left < head + rights * FD_SIZE:
            cut = True
            continue
        if left < head + len(data):
            cut = True
            data = data[: left - head]
            if rights:
                data = data[: len(data) - len(data) % FD_SIZE]
        packed = pack_cmsgs([(level, kind, data)], layout.word, layout.order)
        if write(used, packed[:head]) and (not data or write(used + head, packed[head : head + len(data)])):
            used += min(len(packed), left)
            stored.append((level, kind, data))
        else:
            cut |= rights
    return used, cut, stored


def copy_in_control(io: IO, addr: int, length: int, *, ignore_permissions: bool) -> bytes:
    """The control data of a message to be sent. Raises FaultError; OSError (ENOBUFS) if they are too many."""
    if length >= OPTMEM_MAX:
        raise error(errno.ENOBUFS, f"{length} bytes of control data")
    control = bytearray(length)
    io.copy_in(addr, control, ignore_permissions=ignore_permissions)
    return bytes(control)


def parse_control(layout: MsgLayout, control: bytes) -> tuple[Ancillary, ...]:
    """The messages in control data. Raises OSError (EINVAL) if one has a length that cannot be."""
    found = tuple(unpack_cmsgs(control, layout.word, layout.order))
    end = sum(head + -head % layout.word for head in (header_size(layout) + len(data) for _, _, data in found))
    if end + header_size(layout) <= len(control):
        raise error(errno.EINVAL, f"control message at byte {end} of {len(control)}")
    return found
