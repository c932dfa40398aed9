"""What the kernel makes of a socket's state, and DatagramSocket with it: each is asked beside the other."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from datagram_ends import bound, every_backend, one, pair, rooms, with_errors
from safemem.datagram import DatagramSocket, MessageBatch
from safemem.datagram.flags import MSG_DONTWAIT, MSG_ERRQUEUE, MSG_PEEK
from sample_blocks import FileMemory, room


@every_backend
def test_a_descriptor_that_does_not_wait(backend: Any, tmp_path: Path) -> None:
    """O_NONBLOCK counts, of which Python does not know who else set it: a receive, a batch and a send do not wait."""
    with pair("unix", tmp_path, backend) as (receiver, sender):
        for end in (receiver, sender):
            end.socket.settimeout(None)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # for which it would wait
                end.socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 2, 0))
            os.set_blocking(end.fileno(), False)
        started = time.monotonic()
        with pytest.raises(BlockingIOError):
            receiver.socket.recv(1)
        batch = MessageBatch(rooms(*[9] * 5), family=socket.AF_UNIX)
        for call in (lambda: receiver.recvmsg(room(9)), lambda: receiver.recvmmsg(batch)):
            with pytest.raises(BlockingIOError):
                call()
        with pytest.raises(BlockingIOError):
            while True:
                sender.sendmsg(one(b"x"))
        with pytest.raises(BlockingIOError):
            sender.sendmmsg(batch)
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("kind", ["plain", "may fault", "batch", "segments"])
def test_a_family_without_an_error_queue(kind: str, tmp_path: Path) -> None:
    """AF_UNIX takes no notice of MSG_ERRQUEUE: a peek leaves the datagram to the next receive, which may wait."""
    with pair("unix", tmp_path) as (receiver, sender):
        batch = MessageBatch(rooms(*[9] * 5), family=socket.AF_UNIX)
        memory = FileMemory(4096)

        def receive(flags: int) -> bytes:
            if kind == "batch":
                receiver.recvmmsg(batch, 1, flags)
                return batch[0].data.tobytes()
            if kind == "segments":
                return bytes(receiver.recv_segments(bytearray(9), flags).views[0])
            return receiver.recvmsg(memory.blocks if kind == "may fault" else room(9), flags).data.tobytes()

        for data in (b"one", b"two"):
            sender.sendmsg(one(data))
            assert receiver.socket.recv(9, MSG_ERRQUEUE | MSG_PEEK) == data
            for flags in (MSG_ERRQUEUE | MSG_PEEK, MSG_ERRQUEUE):
                assert receiver.pending() == 3
                assert receive(flags) == data
        receiver.socket.settimeout(0.01)
        with pytest.raises(TimeoutError):
            receive(MSG_ERRQUEUE)


@pytest.mark.parametrize("flags", [0, MSG_PEEK])
def test_the_length_of_an_entry_of_the_error_queue(flags: int) -> None:
    """It is the entry's own, as of any message, where Linux tells that of the copy."""
    with with_errors(1, 0, 10) as receiver:
        message = receiver.recvmsg(room(4), MSG_ERRQUEUE | flags)
        assert (message.data.num_bytes, message.length, message.truncated) == (4, 10, True)


@pytest.mark.parametrize("family", ["inet", "inet6", "unix"])
def test_pending_behind_a_shutdown(family: str, tmp_path: Path) -> None:
    """The socket is ready for ever then, as with an empty datagram: pending() tells the two apart."""
    with pair(family, tmp_path) as (receiver, sender):
        receiver.socket.settimeout(5)  # as long as Python's own receive would take to see that nothing is there
        receiver.socket.connect(sender.socket.getsockname())
        for data in (b"", b"", b"data"):
            sender.sendmsg(one(data))
        receiver.socket.shutdown(socket.SHUT_RD)
        started = time.monotonic()
        for length in (0, 0, 4):
            assert receiver.pending() == length
            assert receiver.recvmsg(room(9)).length == length
        assert receiver.pending() is None
        assert time.monotonic() - started < 2
        with pytest.raises(BlockingIOError):
            receiver.recvmsg(room(9), MSG_DONTWAIT)


@pytest.mark.parametrize("seconds", [10**7, 10**12])
def test_a_long_timeout_of_the_host(seconds: int, tmp_path: Path) -> None:
    """SO_RCVTIMEO may be longer than a poll can count to, and a timeout of a call endless."""
    with pair("inet", tmp_path) as (receiver, sender):
        receiver.socket.settimeout(None)
        receiver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))
        for batch in (None, MessageBatch(rooms(*[9] * 5))):
            child = os.fork()
            if not child:
                time.sleep(0.02)
                sender.sendmsg(one(b"x"))
                os._exit(0)
            if batch is None:
                assert receiver.recvmsg(room(9)).length == 1
            else:
                assert receiver.recvmmsg(batch, timeout=float("inf")) == 1
            os.waitpid(child, 0)


@every_backend
def test_the_port_behind_a_disconnect(backend: Any, tmp_path: Path) -> None:
    """A socket that nobody bound gives its port back and gets another: local addresses have the one of now."""
    if backend == "recvfrom":
        pytest.skip("has no local addresses")
    sock = socket.socket(type=socket.SOCK_DGRAM)
    with DatagramSocket(sock, backend=backend) as receiver:
        receiver.set_local_addr_enable(True)
        batch = MessageBatch(rooms(*[9] * 5), local=True)
        for _ in range(3):
            with bound("inet", tmp_path) as sender:
                sock.connect(sender.getsockname())
                for _ in range(2):
                    sender.sendto(b"x", sock.getsockname())
                assert receiver.recvmsg(room(9)).local == sock.getsockname()
                assert receiver.recvmmsg(batch) == 1
                assert batch.local(0) == sock.getsockname()
            unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
            assert not ctypes.CDLL(None).connect(sock.fileno(), unspecified, len(unspecified))
            assert sock.getsockname()[1] == 0
