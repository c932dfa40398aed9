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
from contextlib import closing, suppress
from typing import Any, Final, Literal

from hostarch import AddrRangeSeq
from safemem.block_seq import EMPTY
from safemem.buffers import check_int
from safemem.datagram.cmsg import Ancillary
from safemem.datagram.endpoint import DatagramEndpoint
from safemem.datagram.errors import BadBlocksError
from safemem.datagram.flags import (
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_ERRQUEUE,
    MSG_PEEK,
    MSG_TRUNC,
    MSG_WAITFORONE,
    UIO_MAXIOV,
)
from safemem.datagram.message import Message
from safemem.datagram.reader import DatagramReader, FaultPolicy
from safemem.datagram.rights import Undelivered, descriptors_of
from usermem.cstruct import copy_uint32_out
from usermem.errors import FaultError, FaultReason
from usermem.memory_io import IO, arch_of
from usermem.messages.control import MOST_RECEIVED, control_of, put_control, room_at_endpoint
from usermem.messages.header import (
    MsgHeader,
    MsgLayout,
    checked_flags,
    copy_in_msghdr,
    copy_in_timeout,
    copy_out_timeout,
    count_nothing,
    layout_of,
    timeout_range,
    unwritable,
)
from usermem.messages.name import AF_INET, AF_INET6, family_of, pack_name

TimeoutPolicy = Literal["deadline", "linux"]
"""What recvmmsg's timeout is: the time by which it returns, or what Linux makes of it."""

_CLOEXEC: Final = 0x4000_0000  # MSG_CMSG_CLOEXEC, which Linux reports as it was passed


def recvmsg_into_user(
    io: IO,
    endpoint: DatagramEndpoint,
    msg_addr: int,
    flags: int = 0,
    *,
    fault_policy: FaultPolicy = "keep",
    ignore_permissions: bool = False,
) -> int:
    """Receive one datagram by the struct msghdr at ``msg_addr``; returns how many bytes of it were written.

    With MSG_TRUNC it returns how long the datagram is. MSG_PEEK leaves it queued, and MSG_DONTWAIT does not wait for
    it; without that the endpoint waits as it does. The name is that of the sender, cut to the room for it; msg_namelen
    becomes its whole length. msg_flags has MSG_TRUNC and MSG_CTRUNC where something found no room. The local address,
    if the endpoint tells it, comes as IP_PKTINFO or IPV6_PKTINFO. Descriptors (SCM_RIGHTS) that are not stored whole in
    the guest's memory are closed, as are all of them if the call raises. With MSG_ERRQUEUE, which only IP sockets
    know, it never waits, takes the entry even with MSG_PEEK, and returns how many bytes it wrote.

    Raises FaultError; OSError: EINVAL for a negative length or a forbidden flag, EMSGSIZE for more than UIO_MAXIOV
    iovecs; BlockingIOError and other errors of the endpoint.
    """
    return receive_one(Call, (io, endpoint, flags, fault_policy), msg_addr, ignore_permissions=ignore_permissions)


def receive_one(
    kind: type[Call], arguments: tuple[IO, Any, int, FaultPolicy], msg_addr: int, *, ignore_permissions: bool
) -> int:
    """One message by the struct msghdr at ``msg_addr``, by a kind of call; descriptors that were not stored go."""
    try:
        call = kind(*arguments, ignore_permissions=ignore_permissions)
        header = copy_in_msghdr(call.io, msg_addr, call.layout, False, ignore_permissions=ignore_permissions)
        try:
            length = call.receive(header, call.call_flags)
            call.keep_descriptors(call.stored)
            return length
        except BaseException:
            call.keep_descriptors([])
            raise
    except OSError as exc:
        count_nothing(exc)
        raise


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
    ignore_permissions: bool = False,
) -> int:
    """Receive up to ``vlen`` datagrams by the structs mmsghdr at ``msgvec_addr``; returns how many came.

    Each is received as by recvmsg, and its length stored as msg_len; entries that none came for are not touched. With
    MSG_WAITFORONE it waits for the first only. MSG_PEEK gives the same datagram to every entry, to UIO_MAXIOV of
    them at most: Linux would go on to the end of memory. Without it ``vlen`` has no limit.

    An OSError behind the first is kept, and the endpoint's next receive raises it; that there is none now is no error.
    Anything else (KeyboardInterrupt, MemoryError) is raised at once, and its ``received`` is how many datagrams came.

    ``timeout_addr``, if not 0, is a struct timespec; a 32-bit guest's has 64-bit fields with ``time64``. By the policy
    ``"deadline"`` the call waits no longer than that in all, and not at all for 0, for any endpoint; it takes without
    waiting what is there by then. By ``"linux"`` it does what Linux does, which recvmmsg(2) names a bug: the time is
    looked at only after each datagram, so that the call waits for ever if none comes, and is over after the first if
    the time is 0. If any came, the time that is left is stored there. Padding in 64-bit fields is not looked at.

    Raises as recvmsg_into_user; FaultError and OSError (EINVAL) for a bad timeout; FaultError if the time left cannot
    be stored, though datagrams have come (not by the policy "keep", which looks first).
    """
    call = Call(io, endpoint, flags, fault_policy, ignore_permissions=ignore_permissions)
    try:
        timeout_addr = check_int(timeout_addr, "timeout_addr")
        clock = _Clock(call.timeout(timeout_addr, time64) if timeout_addr else None, timeout_policy)
        vlen = check_int(vlen, "vlen") & 0xFFFF_FFFF
        call.receive_many(check_int(msgvec_addr, "msgvec_addr"), vlen, clock)
        if call.done and timeout_addr:
            copy_out_timeout(io, timeout_addr, clock.left(), time64, ignore_permissions=ignore_permissions)
        return call.done
    except BaseException as exc:
        if not isinstance(exc, OSError):
            exc.received = call.done  # type: ignore[attr-defined]
        count_nothing(exc)
        raise


class _Clock:
    """The timeout of a call: None, or so many ns from now on."""

    def __init__(self, timeout: int | None, policy: TimeoutPolicy) -> None:
        self._end = None if timeout is None else time.monotonic_ns() + timeout
        self.is_deadline: bool = timeout is not None and policy == "deadline"

    def left(self) -> int:
        """How many ns are left; 0 without a timeout."""
        return 0 if self._end is None else max(0, self._end - time.monotonic_ns())

    def ends_call(self) -> bool:
        """Whether Linux returns now, behind a datagram."""
        return self._end is not None and not self.is_deadline and not self.left()


class Call(DatagramReader):
    """A guest's call. It is the reader of its datagrams, too, which is one object less to make."""

    message: Message | None

    def __init__(
        self, io: IO, endpoint: DatagramEndpoint, flags: int, fault_policy: FaultPolicy, *, ignore_permissions: bool
    ) -> None:
        super().__init__(endpoint, 0, None, fault_policy)
        self.io = io
        self.layout: MsgLayout = layout_of(io)
        self.call_flags: int = checked_flags(flags, arch_of(io)) if flags else 0
        if self.call_flags & MSG_ERRQUEUE:  # which Linux has no peek at, and for IP alone
            self.call_flags &= ~(MSG_PEEK if family_of(endpoint) in (AF_INET, AF_INET6) else MSG_ERRQUEUE)
        self.ignore_permissions = ignore_permissions
        self.done: int = 0
        self.stored: list[Ancillary] = []
        self._owned: list[int] = []

    def timeout(self, addr: int, time64: bool) -> int:
        """The struct timespec at addr, in ns. By the policy "keep" it must be writable, too."""
        timeout = copy_in_timeout(self.io, addr, time64, ignore_permissions=self.ignore_permissions)
        if self._keep:
            fault = unwritable(
                self.io, timeout_range(self.io, addr, time64), ignore_permissions=self.ignore_permissions
            )
            if fault is not None:
                try:
                    raise fault
                finally:
                    del fault
        return timeout

    def receive_many(self, addr: int, vlen: int, clock: _Clock) -> None:
        """Up to ``vlen`` datagrams by the structs mmsghdr at addr; ``done`` is how many came."""
        if self.call_flags & MSG_PEEK:
            vlen = min(vlen, UIO_MAXIOV)  # for one datagram a guest would hold the host up for hours
        try:
            if not vlen:
                self.raise_held()
            self._receive_each(addr, vlen, clock)
        except BaseException as exc:
            self.keep_descriptors([])
            if not self.done or not isinstance(exc, OSError):
                raise
            if not isinstance(exc, BlockingIOError):
                self._endpoint.hold_error(count_nothing(exc))

    def keep_descriptors(self, stored: list[Ancillary]) -> None:
        """Close the descriptors of the message, but those that are stored in the guest's memory.

        Nobody else knows the others. An interrupt leaves each owned by the message, this call or the simulator.
        """
        if self.message is None or not self.message.ancillary:
            owned = self._owned
        else:
            owned = descriptors_of(self.message.ancillary)
        if owned:
            kept = descriptors_of(stored)
            rest = Undelivered()
            others = [-1, *(fd for fd in owned if fd not in kept)]
            self.message, self._owned, rest.left = None, kept, others  # no handler runs in the middle of this
            rest.close()

    def _receive_each(self, addr: int, vlen: int, clock: _Clock) -> None:
        """The loop of :meth:`receive_many`: of its own, lest an interrupt at its jump back passes the clean-up by."""
        layout, flags, ignore = self.layout, self.call_flags, self.ignore_permissions
        while self.done < vlen:
            entry = addr + self.done * layout.entry
            try:
                header = copy_in_msghdr(self.io, entry, layout, False, ignore_permissions=ignore)
            except OSError:
                if not self.done:
                    self.raise_held()
                raise
            if clock.is_deadline:
                length = self.receive_by(clock, header, flags)
            else:
                length = self.receive(header, flags, has_msg_len=True)
            copy_uint32_out(self.io, entry + layout.msg_len, length, ignore_permissions=ignore)
            self.keep_descriptors(self.stored)
            self.done, self._owned = self.done + 1, []  # at once: they are the guest's if the message counts
            if flags & MSG_WAITFORONE:
                flags |= MSG_DONTWAIT
            if clock.ends_call():
                break

    def raise_held(self) -> None:
        """Raise the error that the endpoint keeps, if it does: recvmmsg looks at that before all else."""
        if MSG_DONTWAIT:
            with suppress(BlockingIOError):
                self._endpoint.recvmsg(EMPTY, MSG_PEEK | MSG_DONTWAIT)

    def receive_by(self, clock: _Clock, header: MsgHeader, flags: int) -> int:
        """:meth:`receive`, waiting by the clock, whether the endpoint waits or not."""
        now = flags | MSG_DONTWAIT
        with suppress(BlockingIOError):
            return self.receive(header, now, has_msg_len=True)
        if not flags & (MSG_DONTWAIT | MSG_ERRQUEUE):
            with closing(self._endpoint.waits(clock.left() / 1e9)) as waiting:
                for _ in waiting:
                    with suppress(BlockingIOError):
                        return self.receive(header, now, has_msg_len=True)
        return self.receive(header, now, has_msg_len=True)  # what is there by the end

    def receive(self, header: MsgHeader, flags: int, has_msg_len: bool = False) -> int:
        """One datagram, and all of the header's fields. The caller stores ``msg_len``, if the guest has one."""
        addr, name, namelen, control, controllen, _, ranges, _ = header
        io, layout, ignore = self.io, self.layout, self.ignore_permissions
        room = min(controllen, MOST_RECEIVED) if control else 0
        self._flags = flags & ~(MSG_TRUNC | MSG_WAITFORONE)
        self._ancbufsize = room_at_endpoint(layout, room) if room else 0
        if self._keep:
            self.check_answers(header, room, has_msg_len)
        self.receive_data(ranges)
        used, cut = 0, False
        self.stored = []
        if self.ancillary or self.local is not None:
            used, cut = self.store_control(control, room)
        if name:
            arch = arch_of(io)
            packed = pack_name(self.peer, family_of(self._endpoint), arch)
            io.copy_out(addr + layout.namelen, len(packed).to_bytes(4, arch.byte_order), ignore_permissions=ignore)
            if packed and namelen:
                io.copy_out(name, packed[:namelen], ignore_permissions=ignore)
        answer = layout.answer.pack(used, self.flags & 0xFFFF_FFFF | flags & _CLOEXEC | MSG_CTRUNC * cut)
        if self._keep:  # all of it can be written, for all that is known
            io.copy_out(addr + layout.controllen, answer, ignore_permissions=ignore)
        else:  # Linux stores the flags first, and a fault there leaves the length as it was
            io.copy_out(addr + layout.controllen + layout.word, answer[layout.word :], ignore_permissions=ignore)
            io.copy_out(addr + layout.controllen, answer[: layout.word], ignore_permissions=ignore)
        return self.msg_len if flags & (MSG_TRUNC | MSG_ERRQUEUE) == MSG_TRUNC else min(self.msg_len, ranges.num_bytes)

    def check_answers(self, header: MsgHeader, room: int, has_msg_len: bool) -> None:
        """Raise the fault that what comes beside the data would meet. Peeks at the datagram only if that depends."""
        addr, name, namelen, control, _, _, _, _ = header
        layout = self.layout
        first = layout.namelen if name else layout.controllen
        last = layout.msg_len + 4 if has_msg_len else layout.answers_end
        has_peeked = False
        while True:
            pairs = [name, namelen] if namelen else []
            if room:
                pairs += (control, room)
            pairs += (addr + first, last - first)
            ranges = AddrRangeSeq.unchecked(pairs, namelen + room + last - first)
            fault = unwritable(self.io, ranges, ignore_permissions=self.ignore_permissions)
            if fault is None:
                return
            if has_peeked:
                try:
                    raise fault
                finally:
                    del fault
            message = self._endpoint.recvmsg(EMPTY, self._flags | MSG_PEEK)
            has_peeked = True
            family = family_of(self._endpoint)
            namelen = min(namelen, len(pack_name(message.peer, family, arch_of(self.io))))
            if not control_of(message, family) and not message.control_truncated:
                room = 0

    def receive_data(self, ranges: AddrRangeSeq) -> None:
        """One datagram into the ranges."""
        self._wanted = ranges.num_bytes
        self.room: int | None = None
        try:
            try:
                self.io.copy_out_from(ranges, self, ignore_permissions=self.ignore_permissions)
            except FaultError as fault:
                if self.faulted and not self._keep:
                    with suppress(BlockingIOError):
                        # which endpoints keep, and Linux does not
                        self._endpoint.recvmsg(EMPTY, self._flags | MSG_DONTWAIT)
                # Memory that was filled to the hole is fine if the datagram ends there, as is none for an empty one.
                if self.room is None and fault.reason is FaultReason.OUTSIDE_RANGE:
                    raise
                if self.room is not None and not self.received:
                    raise
            if self.room is None:
                self.read_to_blocks(EMPTY)
        except BadBlocksError as exc:
            hole = unwritable(self.io, ranges.drop_first(self.room or 0), ignore_permissions=self.ignore_permissions)
            if hole is None:  # somebody has just mapped it, or the error is one that the endpoint has kept
                raise
            try:
                raise hole from exc
            finally:
                del hole

    def store_control(self, addr: int, room: int) -> tuple[int, bool]:
        """Store the control data that came, where they can be; returns their length, and whether some were cut."""

        def write(offset: int, data: bytes) -> bool:
            try:
                self.io.copy_out(addr + offset, data, ignore_permissions=self.ignore_permissions)
            except FaultError:
                return False
            return True

        found = control_of(self, family_of(self._endpoint))
        used, cut, self.stored = put_control(self.layout, room, found, write)
        return used, cut
