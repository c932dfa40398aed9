"""recvmsg and sendmsg of stream sockets for guests of all machines, and over memory of all kinds."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from guest_messages import ARCHES, CONTROL, DATA, HOLE, NAME, PAGE, Guest
from hostarch import Arch, mman
from usermem import FaultError, FaultReason
from usermem.messages import recvmsg_stream_into_user, sendmsg_stream_from_user

PEEK, WAITALL, TRUNC = 0x2, 0x100, 0x20
with_arches = pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two Unix streams."""
    one, two = socket.socketpair()
    with one, two:
        yield one, two


@with_arches
def test_there_and_back(arch: Arch, pair: tuple[socket.socket, socket.socket]) -> None:
    """A guest sends out of two ranges, and another receives into two others."""
    guest = Guest(arch)
    guest.space.copy_out(DATA, b"hello stream")
    header = guest.put([(DATA, 6), (DATA + 6, 6)])
    assert sendmsg_stream_from_user(guest.space, pair[0], header) == 12
    header = guest.put([(DATA + 100, 3), (DATA + 200, 50)], name=NAME, namelen=10, control=CONTROL, controllen=40)
    assert recvmsg_stream_into_user(guest.space, pair[1], header, PEEK) == 12
    assert recvmsg_stream_into_user(guest.space, pair[1], header) == 12
    assert guest.read(DATA + 100, 4) == b"hel\xee"
    assert guest.read(DATA + 200, 10) == b"lo stream\xee"
    assert guest.answers(header) == (0, 0, 0)
    pair[0].close()
    assert recvmsg_stream_into_user(guest.space, pair[1], header) == 0


class Translating:
    """A simulator's socket: its guest's descriptor 7 is another number of the host's."""

    def __init__(self, sock: socket.socket, host: int) -> None:
        self.sock = sock
        self.family = int(sock.family)
        self.host = host

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
        """Send the host's descriptor."""
        assert [data for _, _, data in ancdata] == [(7).to_bytes(4, "little")]
        return self.sock.sendmsg(buffers, [(1, 1, self.host.to_bytes(4, "little"))], flags)

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0) -> tuple[int, list[Any], int, Any]:
        """Tell the guest's."""
        n, ancillary, got, peer = self.sock.recvmsg_into(buffers, ancbufsize, flags)
        for _, _, data in ancillary:
            os.close(int.from_bytes(data, "little"))
        return n, [(1, 1, (1 << 20).to_bytes(4, "little"))] * len(ancillary), got, peer


@with_arches
def test_descriptors_of_a_guest(arch: Arch, pair: tuple[socket.socket, socket.socket]) -> None:
    """They are translated by the simulator's socket."""
    guest = Guest(arch)
    word = arch.pointer_size
    guest.put_number(CONTROL, word + 8 + 4, word)
    guest.put_number(CONTROL + word, 1, 4)
    guest.put_number(CONTROL + word + 4, 1, 4)
    guest.space.copy_out(CONTROL + word + 8, (7).to_bytes(4, "little") + bytes(4))
    header = guest.put([(DATA, 1)], control=CONTROL, controllen=word + 8 + 4)
    socks = [Translating(sock, os.dup(0)) for sock in pair]
    assert sendmsg_stream_from_user(guest.space, socks[0], header) == 1
    header = guest.put([(DATA, 9)], control=CONTROL + 100, controllen=24)
    assert recvmsg_stream_into_user(guest.space, socks[1], header) == 1
    assert guest.answers(header)[1] == (24 if word == 8 else 16)
    assert guest.read(CONTROL + 100 + word + 8, 4) == (1 << 20).to_bytes(4, "little")
    for sock in socks:
        os.close(sock.host)


def test_memory_that_may_fault(pair: tuple[socket.socket, socket.socket]) -> None:
    """A file that was truncated: what lies behind its end is missing, as other memory is."""
    guest = Guest()
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"f" * 2 * PAGE)
        flags = mman.MAP_SHARED
        addr = guest.space.mmap(0, 2 * PAGE, mman.PROT_READ | mman.PROT_WRITE, flags, file.fileno(), 0)
        header = guest.put([(addr + PAGE - 4, 8)])
        pair[0].send(b"12345678")
        assert recvmsg_stream_into_user(guest.space, pair[1], header) == 8
        assert guest.read(addr + PAGE - 5, 10) == b"f12345678f"
        assert sendmsg_stream_from_user(guest.space, pair[0], header) == 8
        file.truncate(PAGE)
        with pytest.raises(FaultError) as caught:
            recvmsg_stream_into_user(guest.space, pair[1], header)
        assert caught.value.reason is FaultReason.BEYOND_FILE
        assert caught.value.address == addr + PAGE
        assert pair[1].recv(100) == b"12345678"
        with pytest.raises(FaultError):
            sendmsg_stream_from_user(guest.space, pair[0], header)
        pair[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            pair[1].recv(100)


def test_faults_say_where(pair: tuple[socket.socket, socket.socket]) -> None:
    """The error has the first byte that is missing, and counts nothing."""
    guest = Guest()
    header = guest.put([(HOLE - 5, 10)])
    pair[0].send(b"0123456789")
    for call, sock in ((recvmsg_stream_into_user, pair[1]), (sendmsg_stream_from_user, pair[0])):
        with pytest.raises(FaultError) as caught:
            call(guest.space, sock, header)
        assert (caught.value.address, caught.value.transferred) == (HOLE, 0)
    assert pair[1].recv(100) == b"0123456789"
    header = guest.put([(1 << 63, 4)])
    for call, sock in ((recvmsg_stream_into_user, pair[1]), (sendmsg_stream_from_user, pair[0])):
        with pytest.raises(FaultError) as caught:
            call(guest.space, sock, header)
        assert caught.value.reason is FaultReason.OUTSIDE_RANGE


def test_no_signal_for_the_host(pair: tuple[socket.socket, socket.socket]) -> None:
    """EPIPE without a SIGPIPE to this process."""
    guest = Guest()
    pair[1].close()
    came: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: came.append(number))
    try:
        with pytest.raises(BrokenPipeError):
            sendmsg_stream_from_user(guest.space, pair[0], guest.put([(DATA, 4)]))
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert came == []


def test_bytes_that_are_thrown_away() -> None:
    """MSG_TRUNC of TCP stores nothing, so that memory that is missing does not matter, and counts all."""
    guest = Guest()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as tx:
        rx = listener.accept()[0]
        with rx:
            tx.sendall(b"0123456789")
            assert recvmsg_stream_into_user(guest.space, rx, guest.put([(HOLE - 4, 10)]), WAITALL | TRUNC) == 10


def test_wait_for_all(pair: tuple[socket.socket, socket.socket]) -> None:
    """MSG_WAITALL waits for the whole, or the end."""
    guest = Guest()
    header = guest.put([(DATA, 10)])
    pair[0].send(b"12345")
    later = threading.Timer(0.05, pair[0].send, (b"67890ab",))
    later.start()
    assert recvmsg_stream_into_user(guest.space, pair[1], header, WAITALL) == 10
    later.join()
    pair[0].close()
    assert recvmsg_stream_into_user(guest.space, pair[1], header, WAITALL) == 2
    assert guest.read(DATA, 11) == b"ab34567890\xee"


def test_a_message_that_meets_a_hole() -> None:
    """Of SOCK_SEQPACKET it is lost, as in Linux."""
    guest = Guest()
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        for message in (b"0123456789", b"next"):
            one.send(message)
        with pytest.raises(FaultError):
            recvmsg_stream_into_user(guest.space, two, guest.put([(HOLE - 5, 10)]))
        assert recvmsg_stream_into_user(guest.space, two, guest.put([(HOLE - 5, 10)])) == 4


@pytest.mark.parametrize("shrinks", [False, True])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_more_pieces_than_a_call_takes(kind: int, shrinks: bool) -> None:
    """Ranges over the ends of pages that lie apart: a message goes whole, and into them."""
    guest = Guest()
    base = guest.space.mmap(0, 4 * PAGE, 3, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, kind))
        files = [stack.enter_context(tempfile.TemporaryFile(buffering=0)) for _ in range(4)]
        for i, file in enumerate(files):
            file.write(bytes(PAGE))
            guest.space.mmap(base + i * PAGE, PAGE, 3, mman.MAP_SHARED | mman.MAP_FIXED, file.fileno(), 0)
        table = guest.space.mmap(0, 8 * PAGE, 3, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        for i in range(1024):  # 1,023 over the end of the first page, and one over that of the third
            guest.put_number(table + 16 * i, base + PAGE * (1 if i < 1023 else 3) - 1, 8)
            guest.put_number(table + 16 * i + 8, 2, 8)
        header = guest.put([], iov=table, iovlen=1024)
        guest.space.copy_out(base + PAGE - 1, b"ab")
        guest.space.copy_out(base + 3 * PAGE - 1, b"yz")
        whole = b"ab" * 1023 + b"yz"
        if shrinks:
            files[3].truncate(0)
            with pytest.raises(FaultError) as caught:
                sendmsg_stream_from_user(guest.space, one, header)
            assert caught.value.address == base + 3 * PAGE
            return
        assert sendmsg_stream_from_user(guest.space, one, header) == len(whole)
        assert two.recv(5000) == whole
        guest.space.zero_out(base, 4 * PAGE)
        one.send(whole)
        assert recvmsg_stream_into_user(guest.space, two, header) == len(whole)
        assert guest.read(base + PAGE - 1, 2) + guest.read(base + 3 * PAGE - 1, 2) == b"abyz"


def test_nothing_is_left_open(pair: tuple[socket.socket, socket.socket]) -> None:
    """Descriptors of a message whose answer cannot be stored are closed."""
    guest = Guest()
    socket.send_fds(pair[0], [b"x"], [0, 0])
    header = guest.put([(DATA, 9)], control=CONTROL, controllen=100)
    guest.space.mprotect(header & -PAGE, PAGE, mman.PROT_READ)
    spare = os.dup(0)
    os.close(spare)
    with pytest.raises(FaultError):
        recvmsg_stream_into_user(guest.space, pair[1], header, fault_policy="linux")
    found = os.dup(0)
    os.close(found)
    assert found == spare
