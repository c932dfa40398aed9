"""The guest's struct msghdr, mmsghdr and timespec: where their fields lie, and what Linux makes of them.

The layout (pointer width, byte order) is that of ``arch_of(io)``. It is the kernel's: where the C library has padding
of its own in these structs, it keeps to the same places.

Source: Linux include/linux/socket.h (user_msghdr, mmsghdr), include/net/compat.h (compat_msghdr), net/socket.c
(__copy_msghdr), include/uapi/linux/time_types.h.
"""

from __future__ import annotations

import errno
import struct
from functools import cache
from typing import Final

from hostarch import READ, WRITE, AddrRangeSeq, Arch
from safemem import BlockSeq, WriterFunc
from safemem.buffers import check_int
from safemem.errors import error
from usermem.cstruct import copy_struct_in, copy_struct_out
from usermem.errors import FaultError, FaultReason
from usermem.iovec import UIO_MAXIOV, copy_in_iovecs
from usermem.memory_io import IO, arch_of, read_bytes
from usermem.resolver import addr_at

NAME_MAX = 128
"""sizeof(struct sockaddr_storage): of a longer name Linux looks at so many bytes."""

MSG_CMSG_COMPAT = 0x8000_0000
"""What Linux marks the calls of 32-bit guests with. Nobody else may pass it."""


class MsgLayout:
    """Where the fields of a struct msghdr are, in bytes from its start, for words of ``word`` bytes in a byte order.

    ``answer`` are msg_controllen and msg_flags, which are neighbours. ``msg_len`` is the field of the mmsghdr, right
    behind the msghdr; the whole mmsghdr has ``entry`` bytes.
    """

    def __init__(self, word: int, order: str) -> None:
        """``order`` is that of a struct format."""
        self.packed: struct.Struct = struct.Struct(order + ("Qi4xQQQQI4x" if word == 8 else "IiIIIII"))
        self.answer: struct.Struct = struct.Struct(order + ("QI" if word == 8 else "II"))
        self.namelen = word
        self.controllen: int = 5 * word
        self.answers_end: int = self.controllen + self.answer.size
        self.msg_len: int = self.packed.size
        self.entry: int = self.packed.size + word
        self.word = word
        self.order = order


_LAYOUTS: Final = {
    (word, order): MsgLayout(word, sign) for word in (4, 8) for order, sign in (("little", "<"), ("big", ">"))
}


def layout_of(io: IO) -> MsgLayout:
    """The layout of the machine that an IO belongs to."""
    arch = arch_of(io)
    return _LAYOUTS[arch.pointer_size, arch.byte_order]


MsgHeader = tuple[int, int, int, int, int, int, AddrRangeSeq, bytes]
"""A struct msghdr as the guest passed it: (its address, name, namelen, control, controllen, flags, ranges, sent name).

``name`` and ``namelen`` are 0 if there is no place for a name, and ``namelen`` is at most NAME_MAX. ``ranges`` are the
memory of the data. (A tuple takes 0.04 us where the smallest class takes 0.3.)
"""


def copy_in_msghdr(io: IO, addr: int, layout: MsgLayout, has_name: bool, *, ignore_permissions: bool) -> MsgHeader:
    """The struct msghdr at addr, checked as Linux does, with its iovecs, and with the name itself by ``has_name``.

    Raises FaultError; OSError: EINVAL for a negative namelen or iovec length, EMSGSIZE for more than UIO_MAXIOV
    iovecs.
    """
    if type(addr) is not int:
        addr = check_int(addr, "msg_addr")
    packed = read_bytes(io, addr, layout.msg_len, ignore_permissions=ignore_permissions)
    name, namelen, iov, iovlen, control, controllen, flags = layout.packed.unpack(packed)
    sent_name = b""
    if not name:
        namelen = 0
    elif namelen < 0:
        raise error(errno.EINVAL, f"msg_namelen {namelen}")
    elif namelen:
        namelen = min(namelen, NAME_MAX)
        if has_name:
            buffer = bytearray(namelen)
            io.copy_in(name, buffer, ignore_permissions=ignore_permissions)
            sent_name = bytes(buffer)
    if iovlen > UIO_MAXIOV:
        raise error(errno.EMSGSIZE, f"{iovlen} iovecs")
    ranges = copy_in_iovecs(io, iov, iovlen, ignore_permissions=ignore_permissions)
    return addr, name, namelen, control, controllen, flags, ranges, sent_name


def count_nothing(exc: BaseException) -> BaseException:
    """The error, counting no bytes: a message goes whole or not at all, and a part of one is no result of a call."""
    if getattr(exc, "transferred", 0):
        exc.transferred = 0  # type: ignore[attr-defined]
    return exc


def checked_flags(flags: int, arch: Arch) -> int:
    """The flags of a call as an unsigned int. Raises OSError (EINVAL) for the one that Linux keeps for itself."""
    flags = check_int(flags, "flags") & 0xFFFF_FFFF
    if flags & MSG_CMSG_COMPAT and arch.pointer_size == 8:
        raise error(errno.EINVAL, "flag MSG_CMSG_COMPAT")
    return flags & ~MSG_CMSG_COMPAT


def unwritable(io: IO, ranges: AddrRangeSeq, *, ignore_permissions: bool) -> FaultError | None:
    """What a write to all of these ranges would raise, or None. Nothing is written."""
    look = _Look()
    try:
        io.copy_out_from(ranges, look, ignore_permissions=ignore_permissions)
        if look.seen == ranges.num_bytes:
            return None
        io.copy_out_from(ranges.drop_first(look.seen), _Look(), ignore_permissions=ignore_permissions)
    except FaultError as exc:
        return exc.with_traceback(None)
    return FaultError(addr_at(ranges.pairs(), look.seen), WRITE, FaultReason.UNMAPPED)  # somebody has just mapped it


class _Look:
    """A Reader that has nothing; ``seen`` is how many bytes it could have filled."""

    seen = 0

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        self.seen = dsts.num_bytes
        return 0


def unreadable(io: IO, ranges: AddrRangeSeq, done: int, *, ignore_permissions: bool) -> FaultError:
    """What reading on from byte ``done`` of the ranges raises, where no more could be read."""
    try:
        io.copy_in_to(ranges.drop_first(done), WriterFunc(lambda blocks: 0), ignore_permissions=ignore_permissions)
    except FaultError as exc:
        return exc.with_traceback(None)
    return FaultError(addr_at(ranges.pairs(), done), READ, FaultReason.UNMAPPED)


@cache
def _timespec(arch: Arch, time64: bool) -> struct.Struct:
    order = "<" if arch.byte_order == "little" else ">"
    return struct.Struct(order + ("qq" if time64 or arch.pointer_size == 8 else "ii"))


def copy_in_timeout(io: IO, addr: int, time64: bool, *, ignore_permissions: bool = False) -> int:
    """The struct timespec at addr, in ns. Raises FaultError, OSError (EINVAL) if it is no time to wait.

    ``time64``: a 32-bit guest has the struct of 64-bit ones. Linux does not look at the padding in it then.
    """
    arch = arch_of(io)
    sec, nsec = copy_struct_in(io, addr, _timespec(arch, time64), ignore_permissions=ignore_permissions)
    if time64 and arch.pointer_size == 4:
        nsec &= 0xFFFF_FFFF
    if sec < 0 or not 0 <= nsec < 1_000_000_000:
        raise error(errno.EINVAL, f"timeout of {sec} s {nsec} ns")
    return int(sec * 1_000_000_000 + nsec)


def timeout_range(io: IO, addr: int, time64: bool) -> AddrRangeSeq:
    """The memory of a struct timespec."""
    return AddrRangeSeq.from_pairs([addr, _timespec(arch_of(io), time64).size])


def copy_out_timeout(io: IO, addr: int, left: int, time64: bool, *, ignore_permissions: bool = False) -> None:
    """Store ``left`` ns as a struct timespec. Raises FaultError."""
    timespec = _timespec(arch_of(io), time64)
    copy_struct_out(io, addr, timespec, *divmod(left, 1_000_000_000), ignore_permissions=ignore_permissions)
