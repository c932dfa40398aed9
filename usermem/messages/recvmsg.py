"""recvmsg(2) and recvmmsg(2) for a guest: datagrams from any endpoint, straight into user memory.

What these return and raise is what the system calls do; ``linux_result`` makes a handler of either one line. A part of
a message is no result: their errors count no bytes as ``transferred``, whatever was written.

``fault_policy`` says what becomes of a datagram that meets memory which cannot be written, be it for its data, its name
or its control data. ``"keep"``: EFAULT, and it stays queued. That takes a look at the memory first, and at the datagram
if some cannot be written; where control data may come, all the room for them must be there. It is lost after all if
the memory goes away between the look and the writing. ``"linux"``: EFAULT, and it is lost; what was written by then
stays, control data that cannot be written are left out, and that is no error.

In both, memory behind the datagram's end does not matter.

Source: Linux net/socket.c (____sys_recvmsg, do_recvmmsg), net/ipv4/udp.c (udp_recvmsg).
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final, Literal

from hostarch import AddrRangeSeq
from safemem import BlockSeq, HostFaultError
from safemem.block_seq import EMPTY
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.errors import BadBlocksError
from safemem.datagram.flags import MSG_CTRUNC, MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, MSG_WAITFORONE
from safemem.datagram.reader import DatagramReader, FaultPolicy
from usermem.cstruct import copy_int32_out, copy_pointer_out, copy_uint32_out
from usermem.errors import FaultError, FaultReason
from usermem.memory_io import DEFAULT_OPTS, IO, IOOpts, arch_of
from usermem.messages.control import MOST_RECEIVED, control_of, put_control, room_at_endpoint
from usermem.messages.header import (
    MsgHeader,
    checked_flags,
    copy_in_msghdr,
    copy_in_timeout,
    copy_out_timeout,
    count_nothing,
    msg_layout,
    timeout_range,
    unwritable,
    whole_messages,
)
from usermem.messages.name import family_of, pack_name

TimeoutPolicy = Literal["deadline", "linux"]
"""What recvmmsg's timeout is: the time by which it returns, or what Linux makes of it."""

_CLOEXEC: Final = 0x4000_0000  # MSG_CMSG_CLOEXEC, which Linux reports as it was passed
_PAUSES: Final = 50_000, 5_000_000  # between two looks at an endpoint: the first and the longest, in ns


def recvmsg_into_user(
    io: IO,
    endpoint: DatagramEndpoint,
    msg_addr: int,
    flags: int = 0,
    *,
    fault_policy: FaultPolicy = "keep",
    opts: IOOpts = DEFAULT_OPTS,
) -> int:
    """Receive one datagram by the struct msghdr at ``msg_addr``; returns how many bytes of it were written.

    With MSG_TRUNC it returns how long the datagram is. MSG_PEEK leaves it queued, and MSG_DONTWAIT does not wait for
    it; without that the endpoint waits as it does. The name is that of the sender, cut to the room for it; msg_namelen
    becomes its whole length. msg_flags has MSG_TRUNC and MSG_CTRUNC where something found no room. The local address,
    if the endpoint tells it, comes as IP_PKTINFO or IPV6_PKTINFO.

    Raises FaultError; OSError: EINVAL for a negative length or a forbidden flag, EMSGSIZE for more than UIO_MAXIOV
    iovecs; BlockingIOError and other errors of the endpoint.
    """
    with whole_messages():
        flags = checked_flags(flags, arch_of(io))
        header = copy_in_msghdr(io, msg_addr, opts)
        return _receive(io, endpoint, header, flags, fault_policy, opts)


def recvmmsg_into_user(
    io: IO,
    endpoint: DatagramEndpoint,
    msgvec_addr: int,
    vlen: int,
    flags: int = 0,
    timeout_addr: int = 0,
    *,
    fault_policy: FaultPolicy = "keep",
    timeout_policy: TimeoutPolicy = "deadline",
    time64: bool = False,
    opts: IOOpts = DEFAULT_OPTS,
) -> int:
    """Receive up to ``vlen`` datagrams by the structs mmsghdr at ``msgvec_addr``; returns how many came.

    Each is received as by recvmsg, and its length stored as msg_len; entries that none came for are not touched. With
    MSG_WAITFORONE it waits for the first only. MSG_PEEK gives the same datagram to every entry. ``vlen`` has no limit.

    An error behind the first is kept, and the endpoint's next receive raises it; that there is none now is no error.

    ``timeout_addr``, if not 0, is a struct timespec; a 32-bit guest's has 64-bit fields with ``time64``. By the policy
    ``"deadline"`` the call waits no longer than that in all, and not at all for 0, for any endpoint; it takes without
    waiting what is there by then. By ``"linux"`` it does what Linux does, which recvmmsg(2) names a bug: the time is
    looked at only after each datagram, so that the call waits for ever if none comes, and is over after the first if
    the time is 0. If any came, the time that is left is stored there. Padding in 64-bit fields is not looked at.

    Raises as recvmsg_into_user; FaultError and OSError (EINVAL) for a bad timeout; FaultError if the time left cannot
    be stored, though datagrams have come (not by the policy "keep", which looks first).
    """
    with whole_messages():
        flags = checked_flags(flags, arch_of(io))
        left: int | None = None
        if timeout_addr:
            left = copy_in_timeout(io, timeout_addr, time64, opts)
            fault = unwritable(io, timeout_range(io, timeout_addr, time64), opts) if fault_policy == "keep" else None
            if fault is not None:
                raise fault
        clock = _Clock(left, timeout_policy)
        done = _receive_many(io, endpoint, msgvec_addr, vlen & 0xFFFF_FFFF, flags, clock, fault_policy, opts)
        if done and timeout_addr:
            copy_out_timeout(io, timeout_addr, clock.left(), time64, opts)
        return done


class _Clock:
    """The timeout of a call: None, or so many ns from now on."""

    def __init__(self, timeout: int | None, policy: TimeoutPolicy) -> None:
        self._end = None if timeout is None else time.monotonic_ns() + timeout
        self.is_deadline = timeout is not None and policy == "deadline"

    def left(self) -> int:
        """How many ns are left; 0 without a timeout."""
        return 0 if self._end is None else max(0, self._end - time.monotonic_ns())

    def ends_call(self) -> bool:
        """Whether Linux returns now, behind a datagram."""
        return self._end is not None and not self.is_deadline and not self.left()


def _receive_many(
    io: IO,
    endpoint: DatagramEndpoint,
    addr: int,
    vlen: int,
    flags: int,
    clock: _Clock,
    fault_policy: FaultPolicy,
    opts: IOOpts,
) -> int:
    layout = msg_layout(arch_of(io))
    done = 0
    try:
        if not vlen:
            _raise_held(endpoint)
        while done < vlen:
            entry = addr + done * layout.entry
            try:
                header = copy_in_msghdr(io, entry, opts)
            except OSError:
                if not done:
                    _raise_held(endpoint)
                raise
            if clock.is_deadline:
                length = _receive_by(clock, io, endpoint, header, flags, fault_policy, opts)
            else:
                length = _receive(io, endpoint, header, flags, fault_policy, opts, answers=4)
            copy_uint32_out(io, entry + layout.msg_len, length, opts)
            done += 1
            if flags & MSG_WAITFORONE:
                flags |= MSG_DONTWAIT
            if clock.ends_call():
                break
    except BaseException as exc:
        if not done:
            raise
        if not isinstance(exc, BlockingIOError):
            endpoint.hold_error(count_nothing(exc))
    return done


def _raise_held(endpoint: DatagramEndpoint) -> None:
    """Raise the error that the endpoint keeps, if it does: recvmmsg looks at that before all else."""
    if MSG_DONTWAIT:
        with suppress(BlockingIOError):
            endpoint.recvmsg(EMPTY, MSG_PEEK | MSG_DONTWAIT)


def _receive_by(
    clock: _Clock,
    io: IO,
    endpoint: DatagramEndpoint,
    header: MsgHeader,
    flags: int,
    fault_policy: FaultPolicy,
    opts: IOOpts,
) -> int:
    """:func:`_receive`, waiting by the clock, whether the endpoint waits or not."""
    pause, longest = _PAUSES
    while True:
        try:
            return _receive(io, endpoint, header, flags | MSG_DONTWAIT, fault_policy, opts, answers=4)
        except BlockingIOError:
            left = clock.left()
            if flags & MSG_DONTWAIT or not left:
                raise
            time.sleep(min(pause, left) / 1e9)
            pause = min(2 * pause, longest)


def _receive(
    io: IO,
    endpoint: DatagramEndpoint,
    header: MsgHeader,
    flags: int,
    fault_policy: FaultPolicy,
    opts: IOOpts,
    answers: int = 0,
) -> int:
    """One datagram, and all of the header's fields. ``answers`` bytes behind it will be written by the caller."""
    layout = header.layout
    family = family_of(endpoint)
    passed = flags & ~(MSG_TRUNC | MSG_WAITFORONE)
    room = min(header.controllen, MOST_RECEIVED) if header.control else 0
    if fault_policy == "keep":
        _check_answers(io, endpoint, header, room, passed, family, opts, answers)
    reader = _receive_data(io, endpoint, header, passed, fault_policy, room_at_endpoint(layout, room), opts)
    wanted = header.ranges.num_bytes

    def write(offset: int, data: bytes) -> bool:
        try:
            io.copy_out(header.control + offset, data, opts)
        except FaultError:
            return False
        return True

    used, cut = put_control(layout, room, control_of(reader, family), write)
    result = reader.flags & 0xFFFF_FFFF | flags & _CLOEXEC
    result |= MSG_CTRUNC * cut
    if header.name:
        name = pack_name(reader.peer, family, arch_of(io))
        copy_int32_out(io, header.addr + layout.namelen, len(name), opts)
        if name[: header.namelen]:
            io.copy_out(header.name, name[: header.namelen], opts)
    copy_uint32_out(io, header.addr + layout.flags, result, opts)
    copy_pointer_out(io, header.addr + layout.controllen, used, opts)
    return reader.msg_len if flags & MSG_TRUNC else min(reader.msg_len, wanted)


def _check_answers(
    io: IO,
    endpoint: DatagramEndpoint,
    header: MsgHeader,
    room: int,
    flags: int,
    family: int | None,
    opts: IOOpts,
    answers: int,
) -> None:
    """Raise the fault that what comes beside the data would meet. The datagram is looked at only if that depends."""
    layout = header.layout
    first = layout.namelen if header.name else layout.controllen
    last = layout.msg_len + answers if answers else layout.flags + 4
    fields = [header.addr + first, last - first]

    def fault_of(namelen: int, room: int) -> FaultError | None:
        pairs = [header.name, namelen] if namelen else []
        pairs += [header.control, room] if room else []
        return unwritable(io, AddrRangeSeq.from_pairs(pairs + fields), opts)

    if fault_of(header.namelen, room) is None:
        return
    message = endpoint.recvmsg(EMPTY, flags | MSG_PEEK)
    namelen = min(header.namelen, len(pack_name(message.peer, family, arch_of(io))))
    has_control = bool(control_of(message, family)) or message.control_truncated
    fault = fault_of(namelen, room if has_control else 0)
    if fault is not None:
        raise fault


class _Once:
    """A message reader that remembers its call: ``room`` bytes of blocks, and what it raised."""

    message_oriented = True

    def __init__(self, reader: DatagramReader) -> None:
        self._reader = reader
        self.called = False
        self.room = 0
        self.error: BaseException | None = None

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        self.called = True
        self.room = dsts.num_bytes
        try:
            return self._reader.read_to_blocks(dsts)
        except BaseException as exc:
            self.error = exc
            raise


def _receive_data(
    io: IO,
    endpoint: DatagramEndpoint,
    header: MsgHeader,
    flags: int,
    fault_policy: FaultPolicy,
    ancbufsize: int,
    opts: IOOpts,
) -> DatagramReader:
    """One datagram into the header's ranges; returns the reader, which knows the rest about it."""
    ranges = header.ranges
    reader = DatagramReader(endpoint, flags, ranges.num_bytes, fault_policy, ancbufsize)
    once = _Once(reader)
    try:
        try:
            io.copy_out_from(ranges, once, opts)
        except FaultError as fault:
            if isinstance(once.error, HostFaultError) and fault_policy == "linux":
                with suppress(BlockingIOError):
                    endpoint.recvmsg(EMPTY, flags | MSG_DONTWAIT)  # which endpoints keep, and Linux does not
            # Memory that was filled to the hole is fine if the datagram ends there, as is no memory for an empty one.
            if not reader.received and (once.called or fault.reason is FaultReason.OUTSIDE_RANGE):
                raise
        if not once.called:
            once.read_to_blocks(EMPTY)
    except BadBlocksError as exc:
        hole = unwritable(io, ranges.drop_first(once.room), opts)
        if hole is None:  # somebody has just mapped it, or the error is one that the endpoint has kept
            raise
        raise hole from exc
    return reader
