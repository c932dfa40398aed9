"""sendmsg and sendmmsg out of a guest's memory, and the kernel's out of its own: the same results and datagrams.

Both send by one socket to one receiver, first the kernel, then we; what arrived is compared in between.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign import times
from hostarch import mman
from kernel_messages import PAGE, RW, Header, Twins, drain, kernel, needs_linux
from queue_endpoint import PlainSocketEndpoint
from usermem import linux_result
from usermem.messages import sendmmsg_from_user, sendmsg_from_user

pytestmark = needs_linux

HEADERS, TABLE, DATA, NAMES, CONTROL, PAGES = 0, 2, 3, 7, 9, 11
EOR, DONTWAIT, COMPAT = 0x80, 0x40, 0x8000_0000
OPTMEM = 131072
# What the socket says before it looks at control data and data; we look at those before we ask the socket.
OF_THE_SOCKET = (-errno.EDESTADDRREQ, -errno.ENOTCONN, -errno.EINVAL)


@pytest.fixture(scope="module")
def twins() -> Twins:
    """One memory for all tests."""
    return Twins(PAGES)


Wire = tuple[socket.socket, socket.socket, list[bytes]]
"""The receiver, the sender, and names, good and bad, to send to."""


def inet_name(family: int, port: int) -> bytes:
    """A sockaddr_in of the loopback."""
    return struct.pack("=H", family) + struct.pack("!H", port) + socket.inet_aton("127.0.0.1") + bytes(8)


@contextmanager
def inet(connected: bool) -> Iterator[Wire]:
    """Two sockets of the loopback."""
    with (
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as rx,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as tx,
    ):
        rx.bind(("127.0.0.1", 0))
        rx.setblocking(False)
        if connected:
            tx.connect(rx.getsockname())
        port = rx.getsockname()[1]
        yield rx, tx, [inet_name(2, port)] * 4 + [inet_name(0, port), inet_name(1, port), inet_name(2, 0)]


@contextmanager
def unix() -> Iterator[Wire]:
    """Two Unix sockets."""
    with (
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as rx,
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as tx,
    ):
        rx.bind(b"\0um-%012d" % os.getpid())  # 16 bytes; the sockaddr has 18
        rx.setblocking(False)
        name = struct.pack("=H", 1) + rx.getsockname()
        yield rx, tx, [name] * 4 + [inet_name(2, 1), struct.pack("=H", 1) + b"/none\0" + bytes(10)]


def compare(twins: Twins, wire: Wire, name: str, *args: int) -> None:
    """One call of both: result, datagrams that arrived, memory."""
    rx, tx, _ = wire
    endpoint = PlainSocketEndpoint(tx)
    theirs = kernel(name, tx, *args)
    arrived = drain(rx)
    call: Callable[..., int] = sendmsg_from_user if name == "sendmsg" else sendmmsg_from_user
    try:
        ours = call(twins.space, endpoint, *args)
    except OSError as exc:
        ours = linux_result(exc)
    if ours in (-errno.EFAULT, -errno.EINVAL) and theirs in OF_THE_SOCKET:
        theirs = ours
    assert ours == theirs
    assert drain(rx) == arrived


def near(page: int, step: int = 1) -> st.SearchStrategy[int]:
    """Offsets close to where a page begins."""
    return st.integers(-40, 40).map(lambda d: page * PAGE + d * step)


PKTINFO = struct.pack("=Qii", 28, 0, 8) + struct.pack("=i4s4s", 0, socket.inet_aton("127.0.0.1"), bytes(4)) + bytes(4)
CONTROLS = [
    PKTINFO,
    PKTINFO,
    struct.pack("=Qii", 20, 0, 2) + bytes(8) + PKTINFO,  # IP_TTL 0 is EINVAL
    struct.pack("=Qiii", 20, 0, 2, 9) + bytes(4) + PKTINFO,
    struct.pack("=Qii", 15, 0, 8) + bytes(40),
    struct.pack("=Qii", 0, 0, 8) + bytes(40),
    struct.pack("=Qii", 1 << 63, 0, 8) + bytes(40),
    struct.pack("=Qii", 16, 0, 999) + bytes(40),
    struct.pack("=Qii", 16, 77, 999) + PKTINFO,
]
IOVECS = st.lists(st.tuples(near(DATA + 1), st.sampled_from([0, 1, 3, 5, 16, 40, 100, 2000, PAGE])), max_size=4).map(
    tuple
)
HEADER = st.builds(
    Header,
    name=st.sampled_from([0, 1, 2, 3]),
    namelen=st.sampled_from([0, 1, 2, 8, 15, 16, 18, 18, 18, 20, 110, 111, 128, 129, 1000, -1]),
    iov=IOVECS,
    control=st.one_of(st.just(0), near(CONTROL + 1)),
    controllen=st.sampled_from([0] * 20 + [8, 15, 16, 20, 28, 31, 32, 40, 47, 48, 52, 56, OPTMEM - 1, OPTMEM, 1 << 62]),
    iovlen=st.sampled_from([None] * 30 + [1025, 1 << 63]),
    flags=st.sampled_from([0, EOR, 0x5555_5555]),
)
WIRES: list[Callable[[], object]] = [lambda: inet(False), lambda: inet(True), unix]


@pytest.mark.parametrize("open_wire", WIRES, ids=["inet", "inet-connected", "unix"])
def test_any_calls(twins: Twins, open_wire: object) -> None:
    """Any headers over pages with any rights, sent by any call."""

    @settings(max_examples=settings().max_examples * times(1, 3))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        twins.reset()
        with open_wire() as wire:  # type: ignore[operator]
            headers = data.draw(st.lists(HEADER, min_size=1, max_size=5), "headers")
            # Names, and the control data, lie where two pages meet, or before.
            split = data.draw(st.integers(0, 16), "split")
            places = [twins.page(NAMES), twins.page(NAMES + 1) - split, twins.page(NAMES + 1) + 200]
            for place in places:
                twins.write(place, data.draw(st.sampled_from(wire[2]), "name") + bytes(112))
            control = data.draw(near(CONTROL + 1), "control")
            twins.write(twins.base + control, data.draw(st.sampled_from(CONTROLS), "control data"))
            placed = [
                evolve(
                    header,
                    name=header.name and places[header.name - 1],
                    control=header.control and twins.base + control,
                    iov=tuple((twins.base + start, length) for start, length in header.iov),
                )
                for header in headers
            ]
            first = twins.page(1) - 8 * data.draw(st.integers(0, 8 * len(headers)), "first")
            twins.put(first, twins.page(TABLE), placed)
            for page in [*range(DATA, PAGES), *data.draw(st.sampled_from([[]] * 4 + [[0], [1], [2]]), "more pages")]:
                rights = data.draw(st.sampled_from([RW, RW, RW, mman.PROT_READ, mman.PROT_NONE]), f"page {page}")
                if rights != RW:
                    twins.protect(page, rights)
            flags = data.draw(st.sampled_from([0, 0, DONTWAIT, COMPAT - (COMPAT << 1)]), "flags")
            if data.draw(st.booleans(), "single"):
                compare(twins, wire, "sendmsg", first, flags)
            else:
                compare(twins, wire, "sendmmsg", first, data.draw(st.integers(0, len(headers)), "vlen"), flags)
            assert twins.differences() == []

    check()


def test_the_longest(twins: Twins) -> None:
    """A datagram of 65507 bytes goes, and one byte more is EMSGSIZE."""
    for length in (65507, 65508):
        twins.reset()
        whole = ((twins.base, PAGE),) * (length // PAGE) + ((twins.page(DATA), length % PAGE),)
        twins.put(twins.page(0), twins.page(TABLE), [Header(iov=whole)])
        with inet(True) as wire:
            compare(twins, wire, "sendmsg", twins.page(0), 0)


def test_at_most_1024(twins: Twins) -> None:
    """More entries than that are not looked at."""
    large = Twins(20)
    large.put(large.page(0), large.page(18), [Header()] * 1100)
    with inet(True) as wire:
        wire[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        compare(large, wire, "sendmmsg", large.page(0), 1100, 0)
        assert large.differences() == []
