"""recvmsg and recvmmsg into a guest's memory, and the running kernel's into its own: the same results and bytes.

Both get the same datagrams and the same memory, with pages that cannot be written or read between good ones.
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign import times
from hostarch import mman
from kernel_messages import PAGE, RW, Header, Twins, drain, kernel, needs_linux
from memory_endpoint import Datagram, MemoryEndpoint
from safemem.datagram import Address, Ancillary
from usermem import linux_result
from usermem.messages import recvmmsg_into_user, recvmsg_into_user

pytestmark = needs_linux

HEADERS, TABLE, DATA, NAMES, CONTROL, TIME, PAGES = 0, 2, 3, 7, 9, 11, 12
PEEK, CTRUNC, TRUNC, DONTWAIT, WAITFORONE, CLOEXEC, COMPAT = 2, 8, 0x20, 0x40, 0x10000, 0x4000_0000, 0x8000_0000
LENGTHS = [0, 0, 1, 5, 16, 100, PAGE, PAGE + 1, 2 * PAGE, 9000]


@pytest.fixture(scope="module")
def twins() -> Twins:
    """One memory for all tests."""
    return Twins(PAGES)


Wire = tuple[socket.socket, socket.socket, Datagram, int]
"""The receiving socket, the sending one, a datagram with what comes beside each, and the family."""


@contextmanager
def inet() -> Iterator[Wire]:
    """Two sockets of the loopback, the receiver with IP_PKTINFO and IP_RECVTTL: two control messages."""
    with (
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as rx,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as tx,
    ):
        rx.setsockopt(socket.IPPROTO_IP, 8, 1)
        rx.setsockopt(socket.IPPROTO_IP, 12, 1)
        rx.bind(("127.0.0.1", 0))
        tx.bind(("127.0.0.1", 0))
        yield from with_sample(rx, tx)


@contextmanager
def unix(path: Address, credentials: bool) -> Iterator[Wire]:
    """Two Unix sockets, the sender at this path."""
    with (
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as rx,
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as tx,
    ):
        rx.bind(b"\0usermem-rx-%d" % os.getpid())
        rx.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, credentials)
        if path:
            tx.bind(path)
        yield from with_sample(rx, tx)


def with_sample(rx: socket.socket, tx: socket.socket) -> Iterator[Wire]:
    """Send one datagram, and see what comes beside it."""
    rx.setblocking(False)
    tx.sendto(b"", rx.getsockname())
    _, ancillary, _, peer = rx.recvmsg(1, 512)
    beside: tuple[Ancillary, ...] = tuple((level, kind, bytes(data)) for level, kind, data in ancillary)
    yield rx, tx, Datagram(b"", peer or None, None, beside), rx.family


def compare(twins: Twins, wire: Wire, lengths: list[int], calls: list[tuple[str, tuple[int, ...]]]) -> None:
    """The calls of both, one after the other; then the memory, and what is still queued."""
    rx, tx, sample, family = wire
    datagrams = [bytes((i + 7 * k) % 251 for k in range(length)) for i, length in enumerate(lengths)]
    for data in datagrams:
        tx.sendto(data, rx.getsockname())
    endpoint = MemoryEndpoint([evolve(sample, data=data) for data in datagrams], family)
    for i, (name, args) in enumerate(calls):
        theirs = kernel(name, rx, *args)
        try:
            if name == "recvmsg":
                ours = recvmsg_into_user(twins.space, endpoint, *args, fault_policy="linux")
            else:
                ours = recvmmsg_into_user(twins.space, endpoint, *args, fault_policy="linux", timeout_policy="linux")
        except OSError as exc:
            ours = linux_result(exc)
        assert ours == theirs, f"call {i} of {calls}"
    assert twins.differences() == []
    assert drain(rx) == [datagram.data for datagram in endpoint.queue]


def near(page: int, pages: int, step: int = 1) -> st.SearchStrategy[int]:
    """Offsets in some pages, mostly close to where two of them meet."""
    edge = st.builds(lambda i, d: (page + i) * PAGE + d * step, st.integers(0, pages - 1), st.integers(-40, 40))
    return st.one_of(edge, st.integers(page * PAGE // step, (page + pages) * PAGE // step - 1).map(lambda n: n * step))


IOVECS = st.lists(
    st.tuples(near(DATA + 1, 3), st.sampled_from([0, 1, 3, 5, 16, 40, 100, 2000, PAGE, 3 * PAGE])), max_size=4
).map(tuple)
HEADER = st.builds(
    Header,
    name=st.one_of(st.just(0), near(NAMES + 1, 1)),
    namelen=st.sampled_from([0, 1, 2, 8, 16, 16, 110, 128, 128, 129, 1000, 1000, -1]),
    iov=IOVECS,
    control=st.one_of(st.just(0), near(CONTROL + 1, 1, 8)),
    controllen=st.sampled_from([0, 0, 8, 15, 16, 20, 28, 31, 32, 40, 47, 48, 52, 56, 300, 1 << 62]),
    iovlen=st.sampled_from([None] * 30 + [1025, 1 << 63]),
)
RIGHTS = st.sampled_from([RW, RW, RW, mman.PROT_READ, mman.PROT_NONE])
FLAGS = st.sampled_from([0, 0, 0, PEEK, TRUNC, PEEK | TRUNC, DONTWAIT, WAITFORONE, CLOEXEC, COMPAT, COMPAT | PEEK])


def placed(twins: Twins, header: Header) -> Header:
    """The header with addresses instead of offsets."""
    return evolve(
        header,
        name=header.name and twins.base + header.name,
        control=header.control and twins.base + header.control,
        iov=tuple((twins.base + start, length) for start, length in header.iov),
    )


WIRES = [inet, lambda: unix(b"\0usermem-tx-%d" % os.getpid(), True), lambda: unix("", False)]


@pytest.mark.parametrize("open_wire", WIRES, ids=["inet", "unix-abstract", "unix-unnamed"])
def test_any_calls(twins: Twins, open_wire: object) -> None:
    """Any datagrams, any headers over pages with any rights, received by any calls."""

    @settings(max_examples=settings().max_examples * times(1, 3))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        twins.reset()
        lengths = data.draw(st.lists(st.sampled_from(LENGTHS), max_size=6), "lengths")
        headers = data.draw(st.lists(HEADER, min_size=1, max_size=5), "headers")
        # The headers, 64 bytes each, lie where two pages meet.
        first = twins.page(1) - 8 * data.draw(st.integers(0, 8 * len(headers)), "first")
        twins.put(first, twins.page(TABLE), [placed(twins, header) for header in headers])
        calls: list[tuple[str, tuple[int, ...]]] = []
        for _ in range(data.draw(st.integers(1, 4), "calls")):
            flags = data.draw(FLAGS, "flags")
            at = data.draw(st.integers(0, len(headers) - 1), "at")
            if data.draw(st.booleans(), "single"):
                signed = flags - ((flags & 0x8000_0000) << 1)
                calls.append(("recvmsg", (first + 64 * at, signed)))
            else:
                signed = flags - ((flags & 0x8000_0000) << 1)
                vlen = data.draw(st.integers(0, len(headers) - at), "vlen")
                calls.append(("recvmmsg", (first + 64 * at, vlen, signed, 0)))
        for page in [
            *range(DATA, TIME),
            *data.draw(st.sampled_from([[]] * 4 + [[0], [1], [0], [1], [2]]), "more pages"),
        ]:
            rights = data.draw(RIGHTS, f"rights of page {page}")
            if rights != RW:
                twins.protect(page, rights)
        with open_wire() as wire:  # type: ignore[operator]
            compare(twins, wire, lengths, calls)

    check()


def test_a_name_that_is_a_path(twins: Twins) -> None:
    """A path ends with a NUL, which counts; each shorter room gets its part."""
    with tempfile.TemporaryDirectory() as folder:
        for namelen in (0, 1, 3, 20, 110):
            twins.reset()
            twins.put(twins.page(0), twins.page(TABLE), [placed(twins, Header(NAMES * PAGE, namelen))])
            with unix(str(Path(folder) / f"tx{namelen}"), False) as wire:
                compare(twins, wire, [3], [("recvmsg", (twins.page(0), 0))])


@pytest.mark.parametrize(
    ("sec", "nsec"), [(0, 0), (0, 1), (100, 0), (-1, 0), (0, -1), (0, 999_999_999), (0, 10**9), (1 << 62, 0)]
)
@pytest.mark.parametrize("rights", [RW, mman.PROT_READ, mman.PROT_NONE])
def test_timeouts(twins: Twins, sec: int, nsec: int, rights: int) -> None:
    """Bad times, times that are over, and memory for the time left that cannot be written."""
    twins.reset()
    header = placed(twins, Header(iov=((DATA * PAGE, 10),)))
    twins.put(twins.page(0), twins.page(TABLE), [header] * 3)
    twins.write(twins.page(TIME), struct.pack("=qq", sec, nsec))
    if rights != RW:
        twins.protect(TIME, rights)
    with inet() as (rx, tx, sample, family):
        for data in (b"one", b"two"):
            tx.sendto(data, rx.getsockname())
        endpoint = MemoryEndpoint([evolve(sample, data=data) for data in (b"one", b"two")], family)
        args = (twins.page(0), 3, 0, twins.page(TIME))
        theirs = kernel("recvmmsg", rx, *args)
        try:
            ours = recvmmsg_into_user(twins.space, endpoint, *args, fault_policy="linux", timeout_policy="linux")
        except OSError as exc:
            ours = linux_result(exc)
        assert ours == theirs
        assert {addr // PAGE for addr, _, _ in twins.differences()} <= {TIME}  # the time left depends on the day
        assert drain(rx) == [datagram.data for datagram in endpoint.queue]


def test_many(twins: Twins) -> None:
    """More entries than a send may have: a receive has no limit. (There are fewer datagrams.)"""
    twins.reset()
    twins.put(twins.page(0), twins.page(TABLE), [placed(twins, Header(iov=((DATA * PAGE, 10),)))] * 5)
    with inet() as wire:
        compare(twins, wire, [4] * 5, [("recvmmsg", (twins.page(0), 1500, 0, 0))])


def test_a_difference_is_seen(twins: Twins) -> None:
    """The comparison fails where the kernel got another datagram."""
    twins.reset()
    twins.put(twins.page(0), twins.page(TABLE), [placed(twins, Header(iov=((DATA * PAGE, 10),)))])
    with inet() as wire:
        wire[1].sendto(b"odd", wire[0].getsockname())
        with pytest.raises(AssertionError):
            compare(twins, wire, [3], [("recvmsg", (twins.page(0), 0))])
