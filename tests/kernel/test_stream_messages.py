"""recvmsg and sendmsg of stream sockets, ours and the kernel's: the same results, bytes, descriptors, what stays.

Two streams carry the same packets; the kernel's call takes from one into its memory, ours from the other into its twin.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from hostarch import mman
from kernel_messages import PAGE, RW, Header, Twins, kernel, needs_linux
from usermem import linux_result
from usermem.messages import recvmsg_stream_into_user, sendmsg_stream_from_user

pytestmark = needs_linux

HEADERS, TABLE, DATA, NAMES, CONTROL, PAGES = 0, 2, 3, 7, 9, 11
PEEK, WAITALL, DONTWAIT, TRUNC, NOSIGNAL, CLOEXEC = 0x2, 0x100, 0x40, 0x20, 0x4000, 0x4000_0000
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(scope="module")
def twins() -> Twins:
    """One memory for all tests."""
    return Twins(PAGES)


def unix() -> Pair:
    """A pair without names."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def packets() -> Pair:
    """A pair that keeps messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def connected(family: int, name: object) -> Pair:
    """A pair by a listener; its sender has a name."""
    with closing(socket.socket(family, socket.SOCK_STREAM)) as listener:
        listener.bind(name)  # type: ignore[arg-type]
        listener.listen()
        tx = socket.socket(family, socket.SOCK_STREAM)
        if family == socket.AF_UNIX:
            tx.bind(b"\0usermem-tx-%d" % os.getpid())
        else:
            tx.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tx.connect(listener.getsockname())
        return listener.accept()[0], tx


def named() -> Pair:
    """Unix sockets with names; a name is free again for the second pair once the first socket is closed."""
    return connected(socket.AF_UNIX, b"\0usermem-rx-%d" % os.getpid())


def tcp() -> Pair:
    """Sockets of the loopback."""
    return connected(socket.AF_INET, ("127.0.0.1", 0))


OPENERS: list[Callable[[], Pair]] = [unix, tcp, packets]


@contextmanager
def two(opener: Callable[[], Pair]) -> Iterator[tuple[Pair, Pair]]:
    """Two pairs that do not wait: the kernel's and ours."""
    theirs, ours = opener(), opener()
    for sock in (*theirs, *ours):
        sock.setblocking(False)
    try:
        yield theirs, ours
    finally:
        for sock in (*theirs, *ours):
            sock.close()


def ours_of(call: Callable[..., int], twins: Twins, sock: socket.socket, *args: int, **options: str) -> int:
    """Our result as a system call's."""
    try:
        return call(twins.space, sock, *args, **options)
    except OSError as exc:
        return linux_result(exc)


def receive(twins: Twins, pairs: tuple[Pair, Pair], *args: int) -> int:
    """One recvmsg of both."""
    theirs = kernel("recvmsg", pairs[0][0], *args)
    assert ours_of(recvmsg_stream_into_user, twins, pairs[1][0], *args, fault_policy="linux") == theirs
    return theirs


def what_stays(sock: socket.socket) -> bytes:
    """All that can still be received."""
    sock.setblocking(False)
    found = b""
    with suppress(BlockingIOError):
        while data := sock.recv(1 << 17):
            found += data
    return found


def near(page: int, step: int = 1) -> st.SearchStrategy[int]:
    """Offsets close to where a page begins."""
    return st.integers(-40, 40).map(lambda d: page * PAGE + d * step)


IOVECS = st.lists(
    st.tuples(near(DATA + 1), st.sampled_from([0, 1, 3, 5, 16, 40, 100, 2000, PAGE, 3 * PAGE])), max_size=4
).map(tuple)
HEADER = st.builds(
    Header,
    name=st.sampled_from([0, NAMES * PAGE, NAMES * PAGE + PAGE - 8]),
    namelen=st.sampled_from([0, 2, 8, 16, 110, 128, 1000, -1]),
    iov=IOVECS,
    control=st.one_of(st.just(0), near(CONTROL + 1, 8)),
    controllen=st.sampled_from([0, 0, 15, 16, 20, 24, 32, 100, 1 << 62]),
    iovlen=st.sampled_from([None] * 30 + [1025, 1 << 63]),
)
RIGHTS = st.sampled_from([RW, RW, RW, mman.PROT_READ, mman.PROT_NONE])
FLAGS = st.sampled_from([0, 0, 0, PEEK, TRUNC, WAITALL, PEEK | WAITALL, DONTWAIT, CLOEXEC, 1 << 31])


def placed(twins: Twins, header: Header) -> Header:
    """The header with addresses instead of offsets."""
    return evolve(
        header,
        name=header.name and twins.base + header.name,
        control=header.control and twins.base + header.control,
        iov=tuple((twins.base + start, length) for start, length in header.iov),
    )


def signed(flags: int) -> int:
    """Flags as an int of C's."""
    return flags - ((flags & 0x8000_0000) << 1)


@pytest.mark.parametrize("opener", OPENERS, ids=["unix", "tcp", "packets"])
def test_any_receives(twins: Twins, opener: Callable[[], Pair]) -> None:
    """Any packets, any headers over pages with any rights, to the end of the stream."""

    @settings(max_examples=settings().max_examples * 2)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        twins.reset()
        headers = data.draw(st.lists(HEADER, min_size=1, max_size=4), "headers")
        first = twins.page(1) - 8 * data.draw(st.integers(0, 8 * len(headers)), "first")
        twins.put(first, twins.page(TABLE), [placed(twins, header) for header in headers])
        for page in [*range(DATA, PAGES), *data.draw(st.sampled_from([[]] * 4 + [[0], [1], [2]]), "more pages")]:
            rights = data.draw(RIGHTS, f"rights of page {page}")
            if rights != RW:
                twins.protect(page, rights)
        with two(opener) as pairs:
            for i, length in enumerate(data.draw(st.lists(st.sampled_from([1, 5, 41, 100, 5000]), max_size=4))):
                for _, tx in pairs:
                    tx.send(bytes([i + 1]) * length)
            if data.draw(st.booleans(), "the end"):
                for _, tx in pairs:
                    tx.shutdown(socket.SHUT_WR)
            for _ in range(data.draw(st.integers(1, 4), "calls")):
                at = data.draw(st.integers(0, len(headers) - 1), "at")
                receive(twins, pairs, first + 64 * at, signed(data.draw(FLAGS, "flags")))
            assert twins.differences() == []
            assert what_stays(pairs[0][0]) == what_stays(pairs[1][0])

    check()


@pytest.mark.parametrize("opener", OPENERS, ids=["unix", "tcp", "packets"])
def test_any_sends(twins: Twins, opener: Callable[[], Pair]) -> None:
    """Any headers over pages with any rights."""

    @settings(max_examples=settings().max_examples * 2)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        twins.reset()
        headers = data.draw(st.lists(HEADER, min_size=1, max_size=4), "headers")
        headers = [evolve(header, controllen=header.controllen % 17 and 0) for header in headers]
        first = twins.page(1) - 8 * data.draw(st.integers(0, 8 * len(headers)), "first")
        twins.put(first, twins.page(TABLE), [placed(twins, header) for header in headers])
        for page in [*range(DATA, PAGES), *data.draw(st.sampled_from([[]] * 4 + [[0], [1], [2]]), "more pages")]:
            rights = data.draw(RIGHTS, f"rights of page {page}")
            if rights != RW:
                twins.protect(page, rights)
        with two(opener) as pairs:
            gone = data.draw(st.sampled_from([False] * 5 + [True]), "gone")
            for _ in range(data.draw(st.integers(1, 3), "calls")):
                at = first + 64 * data.draw(st.integers(0, len(headers) - 1), "at")
                if gone:
                    for _, tx in pairs:
                        tx.shutdown(socket.SHUT_WR)
                theirs = kernel("sendmsg", pairs[0][1], at, NOSIGNAL)
                assert ours_of(sendmsg_stream_from_user, twins, pairs[1][1], at, 0) == theirs
            assert what_stays(pairs[0][0]) == what_stays(pairs[1][0])
        assert twins.differences() == []

    check()


def one(twins: Twins, header: Header) -> int:
    """A single header."""
    twins.put(twins.page(0), twins.page(TABLE), [placed(twins, header)])
    return twins.page(0)


@pytest.mark.parametrize("opener", [unix, tcp], ids=["unix", "tcp"])
def test_a_fault_between_packets(twins: Twins, opener: Callable[[], Pair]) -> None:
    """Packets before the hole count, the one that meets it stays whole, and alone it is EFAULT."""
    twins.reset()
    header = one(twins, Header(iov=((PAGE * (DATA + 1) - 10, 100),)))
    twins.protect(DATA + 1, mman.PROT_READ)
    with two(opener) as pairs:
        for _, tx in pairs:
            tx.send(b"a" * 10)
            tx.send(b"b" * 10)
        receive(twins, pairs, header, 0)
        assert receive(twins, pairs, header, 0) in (-errno.EFAULT, 10)
        assert what_stays(pairs[0][0]) == what_stays(pairs[1][0])
    assert twins.differences() == []


def test_a_stream_that_is_full(twins: Twins) -> None:
    """A stream that is full takes a part, and then nothing; with the reader gone it is EPIPE."""
    twins.reset()
    header = one(twins, Header(iov=((PAGE * DATA, 4 * PAGE),) * 20))
    with two(unix) as pairs:
        for _ in range(6):
            theirs = kernel("sendmsg", pairs[0][1], header, NOSIGNAL)
            assert ours_of(sendmsg_stream_from_user, twins, pairs[1][1], header, 0) == theirs
        assert theirs == -errno.EAGAIN
        for rx, _ in pairs:
            rx.close()
        assert kernel("sendmsg", pairs[0][1], header, NOSIGNAL) == -errno.EPIPE
        assert ours_of(sendmsg_stream_from_user, twins, pairs[1][1], header, 0) == -errno.EPIPE


def test_names(twins: Twins) -> None:
    """The sender's name comes with a Unix stream, cut to its room; a name to send to is an error."""
    for namelen in (0, 1, 2, 20, 128):
        twins.reset()
        header = one(twins, Header(NAMES * PAGE, namelen, ((DATA * PAGE, 9),)))
        theirs = named()
        theirs[0].setblocking(False)
        theirs[1].send(b"0123456789")
        assert kernel("recvmsg", theirs[0], header, 0) == 9
        error = kernel("sendmsg", theirs[1], header, NOSIGNAL)
        for sock in theirs:
            sock.close()
        ours = named()
        ours[1].send(b"0123456789")
        assert recvmsg_stream_into_user(twins.space, ours[0], header) == 9
        assert twins.differences() == []
        assert ours_of(sendmsg_stream_from_user, twins, ours[1], header, 0) == error
        for sock in ours:
            sock.close()


def open_descriptors() -> set[int]:
    """Those of this process, as far as a test has any."""
    found = set()
    for fd in range(256):
        with suppress(OSError):
            os.fstat(fd)
            found.add(fd)
    return found


@pytest.mark.parametrize("room", [0, 15, 16, 20, 24, 28, 32, 100])
def test_descriptors(twins: Twins, room: int) -> None:
    """Descriptors end a packet; those that find no room are closed, and no more are open than the guest knows."""
    twins.reset()
    header = one(twins, Header(0, 0, ((DATA * PAGE, 100),), CONTROL * PAGE, room))
    with two(unix) as pairs:
        sent = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
        for _, tx in pairs:
            tx.send(b"before")
            socket.send_fds(tx, [b"with"], sent)
            tx.send(b"after")
        for fd in sent:
            os.close(fd)
        for _ in range(2):
            before = open_descriptors()
            theirs = kernel("recvmsg", pairs[0][0], header, 0)
            came = open_descriptors() - before
            for fd in came:
                os.close(fd)  # so that ours get the same numbers
            assert recvmsg_stream_into_user(twins.space, pairs[1][0], header) == theirs
            assert open_descriptors() - before == came
            for fd in came:
                os.close(fd)
            twins.write(twins.page(0) + 40, struct.pack("=Q", room))
        assert theirs == len(b"after")
    assert twins.differences() == []


def test_descriptors_are_sent(twins: Twins) -> None:
    """A guest's control data go as they are."""
    for control, result in (
        (struct.pack("=Qiii", 20, 1, 1, 0) + bytes(4), 4),
        (struct.pack("=Qiii", 20, 1, 1, 999_999) + bytes(4), -errno.EBADF),
        (struct.pack("=Qiii", 20, 1, 77, 0) + bytes(4), -errno.EINVAL),
        (struct.pack("=Qiii", 15, 1, 1, 0) + bytes(4), -errno.EINVAL),
    ):
        twins.reset()
        twins.write(twins.page(CONTROL), control)
        header = one(twins, Header(0, 0, ((DATA * PAGE, 4),), CONTROL * PAGE, len(control)))
        with two(unix) as pairs:
            assert kernel("sendmsg", pairs[0][1], header, NOSIGNAL) == result
            assert ours_of(sendmsg_stream_from_user, twins, pairs[1][1], header, 0) == result
            if result > 0:
                for rx, _ in pairs:
                    _, fds, _, _ = socket.recv_fds(rx, 10, 3)
                    assert len(fds) == 1
                    os.close(fds[0])


def test_sockets_that_are_not_connected(twins: Twins) -> None:
    """The socket's own errors, and memory that is missing."""
    twins.reset()
    for start in (DATA * PAGE, 1 << 40):
        header = one(twins, Header(iov=((start, 4),)))
        for family in (socket.AF_INET, socket.AF_UNIX):
            with closing(socket.socket(family, socket.SOCK_STREAM)) as sock:
                theirs = kernel("recvmsg", sock, header, 0), kernel("sendmsg", sock, header, NOSIGNAL)
                calls = (recvmsg_stream_into_user, sendmsg_stream_from_user)
                assert tuple(ours_of(call, twins, sock, header, 0) for call in calls) == theirs


def test_answers_that_cannot_be_stored(twins: Twins) -> None:
    """The bytes stay in the socket by the policy "keep", and are lost by "linux", as with the kernel."""
    for policy, left in (("linux", b""), ("keep", b"data")):
        twins.reset()
        header = one(twins, Header(iov=((DATA * PAGE, 9),)))
        twins.protect(0, mman.PROT_READ)
        with two(unix) as pairs:
            for _, tx in pairs:
                tx.send(b"data")
            assert kernel("recvmsg", pairs[0][0], header, 0) == -errno.EFAULT
            assert what_stays(pairs[0][0]) == b""
            result = ours_of(recvmsg_stream_into_user, twins, pairs[1][0], header, 0, fault_policy=policy)
            assert result == -errno.EFAULT
            assert what_stays(pairs[1][0]) == left
