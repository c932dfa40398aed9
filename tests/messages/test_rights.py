"""Descriptors that a guest's message brings: it gets those that are stored in its memory, and the others are closed."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import safemem.datagram.arrivals
import safemem.datagram.reader
import safemem.datagram.rights
import safemem.datagram.sockets
import usermem.messages.control
import usermem.messages.recvmsg
from datagram_ends import one, pair, with_errors
from each_line import Event, interrupt
from guest_messages import BASE, CONTROL, DATA, HOLE, NAME, PAGE, Guest
from hostarch import AMD64, I386, Arch
from safemem.datagram import DatagramSocket
from safemem.datagram.flags import MSG_CTRUNC, MSG_DONTWAIT, MSG_ERRQUEUE, MSG_PEEK, MSG_TRUNC
from sample_blocks import room
from usermem import FaultError, linux_result
from usermem.messages import FaultPolicy, recvmmsg_into_user, recvmsg_into_user

pytestmark = pytest.mark.skipif(not hasattr(socket, "send_fds"), reason="needs descriptors that are sent")
COUNT = 5
POLICIES: list[FaultPolicy] = ["keep", "linux"]
MODULES = [
    safemem.datagram.arrivals,
    safemem.datagram.reader,
    safemem.datagram.rights,
    safemem.datagram.sockets,
    usermem.messages.control,
    usermem.messages.recvmsg,
]
Ends = tuple[DatagramSocket, DatagramSocket]


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[Ends]:
    """A receiver and a sender of AF_UNIX."""
    with pair("unix", tmp_path) as ends:
        yield ends


def open_ones() -> set[int]:
    """The descriptors of this process."""
    return {int(each.name) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()}


def send(sender: DatagramSocket, count: int = COUNT, data: bytes = b"hello") -> None:
    """Send so many descriptors of /dev/null."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    sender.sendmsg(one(data), ancdata=[(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{count}i", *fds))])
    for fd in fds:
        os.close(fd)


def got(guest: Guest, addr: int = BASE, control: int = CONTROL) -> list[int]:
    """The descriptors that a guest finds in its memory."""
    word = guest.arch.pointer_size
    if guest.get(addr, "controllen") < word + 8:
        return []
    count = (guest.number(control, word) - word - 8) // 4
    return [guest.number(control + word + 8 + 4 * i, 4) for i in range(count)]


@pytest.mark.parametrize("policy", ["keep", "linux"])
@pytest.mark.parametrize("arch", [AMD64, I386])
def test_rooms(arch: Arch, policy: FaultPolicy, unix: Ends) -> None:
    """Whole ones, as many as there is room for; none for the header alone. The rest is closed: scm_detach_fds."""
    receiver, sender = unix
    head = arch.pointer_size + 8
    before = open_ones()
    for room_for in range(head + 4 * COUNT + 9):
        guest = Guest(arch)
        send(sender)
        guest.put([(DATA, 16)], control=CONTROL, controllen=room_for)
        assert recvmsg_into_user(guest.space, receiver, BASE, fault_policy=policy) == 5
        fds = got(guest)
        assert len(fds) == min(max(room_for - head, 0) // 4, COUNT)
        assert open_ones() == before | {*fds}
        assert bool(guest.get(BASE, "flags") & MSG_CTRUNC) is (len(fds) < COUNT)
        for fd in fds:
            os.close(fd)


BAD: dict[str, dict[str, Any]] = {
    "data": {"ranges": [(HOLE, 16)]},
    "control data": {"control": HOLE},
    "half of the control data": {"control": HOLE - 24},
    "name": {"name": HOLE, "namelen": 110},
}


@pytest.mark.parametrize("policy", ["keep", "linux"])
@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("many", [False, True])
def test_memory_that_cannot_be_written(what: str, policy: FaultPolicy, many: bool, unix: Ends) -> None:
    """The message stays, with all of them; or it is lost, or goes without them, and they are closed."""
    receiver, sender = unix
    before = open_ones()
    guest = Guest()
    send(sender)
    guest.put(
        **{"ranges": [(DATA, 16)], "control": CONTROL, "controllen": 64, "name": NAME, "namelen": 110, **BAD[what]}
    )
    result = 5
    try:
        if many:
            result = recvmmsg_into_user(guest.space, receiver, BASE, 1, fault_policy=policy)
        else:
            result = recvmsg_into_user(guest.space, receiver, BASE, fault_policy=policy)
    except FaultError as exc:
        result = linux_result(exc)
    is_left_out = "control" in what and policy == "linux"
    assert result == ((1 if many else 5) if is_left_out else -errno.EFAULT)
    assert open_ones() == before
    if is_left_out:
        assert guest.get(BASE, "flags") & MSG_CTRUNC
        assert guest.get(BASE, "controllen") == 0
    if policy == "keep":
        ((_, _, data),) = receiver.recvmsg(room(9), 0, 64).ancillary
        for fd in struct.unpack(f"{COUNT}i", data):
            os.close(fd)
    else:
        assert receiver.pending() is None


def test_a_msg_len_that_cannot_be_stored(unix: Ends) -> None:
    """Then the message does not count."""
    receiver, sender = unix
    guest = Guest()
    before = open_ones()
    last = HOLE - 56  # its msg_len is in the hole
    for count in (1, 2):
        send(sender)
        if count == 2:
            guest.put([(DATA, 16)], last - 64, control=CONTROL, controllen=64)
            send(sender)
        guest.put_number(last + 16, guest._tables, 8)
        guest.space.copy_out(last, bytes(56))
        for offset, value in ((32, CONTROL + PAGE), (40, 64)):
            guest.put_number(last + offset, value, 8)
        addr = last - 64 * (count - 1)
        try:
            assert recvmmsg_into_user(guest.space, receiver, addr, count, fault_policy="linux") == 1
            fds = got(guest, addr)
            assert open_ones() == before | {*fds}
            for fd in fds:
                os.close(fd)
            with pytest.raises(FaultError):
                receiver.recvmsg(room(1))
        except FaultError:
            assert count == 1
        assert open_ones() == before
        assert receiver.pending() is None


def test_peeks(unix: Ends) -> None:
    """Each installs its own, as Linux does; those that do not fit are closed."""
    receiver, sender = unix
    guest = Guest()
    before = open_ones()
    send(sender)
    for flags in (MSG_PEEK, MSG_PEEK, 0):
        guest.put([(DATA, 16)], control=CONTROL, controllen=24)
        recvmsg_into_user(guest.space, receiver, BASE, flags)
        fds = got(guest)
        assert open_ones() == before | {*fds}
        assert len(fds) == 2
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("many", [False, True])
def test_interrupts(many: bool, unix: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any line: this call or the next receives the message, or it is gone and its descriptors are closed.

    Those that come in a destructor are lost, as Python has it, and what it was to close.
    """
    receiver, sender = unix
    in_destructors: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: in_destructors.append(args.exc_type))
    guest = Guest()
    before = open_ones()
    done = False
    at = lost = 0
    while not done:
        at += 1
        send(sender)
        guest.put([(DATA, 16)], control=CONTROL, controllen=24)
        event = Event(MODULES, at, interrupt)
        result = None
        received = 0

        def call() -> None:
            nonlocal result
            if many:
                result = recvmmsg_into_user(guest.space, receiver, BASE, 1, MSG_DONTWAIT)
            else:
                result = recvmsg_into_user(guest.space, receiver, BASE, MSG_DONTWAIT)

        try:
            event.during(call)
            done = event.lines < at
        except KeyboardInterrupt as exc:
            received = getattr(exc, "received", 0)
        if result is None and not received:
            if receiver.pending() is None:
                while in_destructors and (left := open_ones() - before):
                    in_destructors.clear()
                    for fd in left:
                        os.close(fd)
                assert open_ones() == before, event.where
                lost += 1
                continue
            recvmsg_into_user(guest.space, receiver, BASE)
        fds = got(guest)
        assert len(fds) == 2, event.where
        assert open_ones() == before | {*fds}, event.where
        for fd in fds:
            os.close(fd)
    assert lost < at  # what was stored for the guest when it was interrupted


@pytest.mark.parametrize("flags", [MSG_ERRQUEUE, MSG_ERRQUEUE | MSG_PEEK, MSG_ERRQUEUE | MSG_TRUNC])
@pytest.mark.parametrize("where", [DATA, HOLE - 4])
def test_the_error_queue(flags: int, where: int) -> None:
    """A guest's MSG_PEEK changes nothing there, as in Linux: no entry comes twice. Its length is that of the copy."""
    guest = Guest()
    with with_errors(2, 5, 10) as receiver:
        for policy in POLICIES:
            guest.put([(where, 4)])
            assert recvmsg_into_user(guest.space, receiver, BASE, flags, fault_policy=policy) == 4
            assert guest.get(BASE, "flags") == MSG_ERRQUEUE | MSG_TRUNC | MSG_CTRUNC
        with pytest.raises(BlockingIOError):
            recvmsg_into_user(guest.space, receiver, BASE, flags)


def test_a_family_without_an_error_queue(unix: Ends) -> None:
    """Linux takes no notice of MSG_ERRQUEUE there: it receives, or peeks, and waits."""
    receiver, sender = unix
    guest = Guest()
    send(sender)
    receiver.socket.settimeout(0.01)
    for flags in (MSG_ERRQUEUE | MSG_PEEK, MSG_ERRQUEUE):
        assert receiver.socket.recv(9, MSG_PEEK | flags) == b"hello"
        guest.put([(DATA, 16)])
        assert recvmsg_into_user(guest.space, receiver, BASE, flags) == 5
        assert guest.get(BASE, "flags") == MSG_CTRUNC
    with pytest.raises(TimeoutError):
        recvmsg_into_user(guest.space, receiver, BASE, MSG_ERRQUEUE)
