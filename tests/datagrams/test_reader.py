"""DatagramReader and DatagramWriter: one message a call, and what becomes of it where memory is missing."""

from __future__ import annotations

import copy
import errno
import pickle
import socket
import subprocess
import sys

import pytest

from queue_endpoint import PlainSocketEndpoint, ScriptedEndpoint
from safemem import Block, BlockSeq, Reader, TransferError, Writer
from safemem.datagram import (
    BadBlocksError,
    DatagramReader,
    DatagramTooLongError,
    DatagramWriter,
    FaultPolicy,
    LocalAddressNotAvailableError,
    NoBufferError,
    PeerAddressNotAvailableError,
)
from safemem.datagram.flags import MSG_PEEK, MSG_TRUNC
from sample_blocks import blocks, room

A, B = ("127.0.0.1", 7), ("127.0.0.2", 8)
POLICIES: list[FaultPolicy] = ["keep", "linux"]


def incoming(*messages: bytes) -> ScriptedEndpoint:
    """An endpoint with these to receive."""
    endpoint = ScriptedEndpoint()
    endpoint.incoming.extend((message, A) for message in messages)
    return endpoint


@pytest.mark.parametrize("policy", POLICIES)
def test_one_message_a_call(policy: FaultPolicy) -> None:
    """Whole, empty, cut: with all that came beside it; then BlockingIOError."""
    endpoint = incoming(b"one", b"", b"too long")
    reader = DatagramReader(endpoint, fault_policy=policy)
    as_reader: Reader = reader
    assert as_reader is reader and reader.message_oriented
    assert not reader.received
    dsts = room(2, 3)
    assert reader.read_to_blocks(dsts) == 3
    assert dsts.tobytes() == b"one\xee\xee"
    assert (reader.received, reader.msg_len, reader.flags, reader.peer) == (True, 3, 0, A)
    assert (reader.local, reader.ancillary) == (None, ())
    assert reader.read_to_blocks(dsts) == reader.msg_len == 0
    assert reader.received
    assert reader.read_to_blocks(dsts) == 5
    assert (dsts.tobytes(), reader.msg_len, reader.flags) == (b"too l", 8, MSG_TRUNC)
    with pytest.raises(BlockingIOError):
        reader.read_to_blocks(dsts)
    assert not reader.received
    assert [call[1] for call in endpoint.calls] == [0] * 4


def test_flags_and_control_data_are_asked_for() -> None:
    """With each receive."""
    endpoint = incoming(b"one")
    reader = DatagramReader(endpoint, MSG_PEEK | 0x4000, ancbufsize=24)
    assert reader.read_to_blocks(room(3)) == 3
    assert reader.read_to_blocks(room(3)) == 3
    assert endpoint.calls == [("recvmsg", MSG_PEEK | 0x4000, 24)] * 2
    assert DatagramReader(endpoint, 5).read_to_blocks(room(3)) == 3
    assert endpoint.calls[-1] == ("recvmsg", 5, 0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("length", "room_of", "wanted"), [(4, 4, 8), (0, 0, 8), (3, 4, 5), (8, 4, 4), (8, 4, 3)])
def test_memory_that_is_not_needed(policy: FaultPolicy, length: int, room_of: int, wanted: int) -> None:
    """Does no harm if it cannot be written: the datagram fits, or is cut as the caller asked."""
    endpoint = incoming(b"x" * length)
    reader = DatagramReader(endpoint, wanted=wanted, fault_policy=policy)
    assert reader.read_to_blocks(room(room_of)) == min(length, room_of)
    assert (reader.msg_len, reader.flags) == (length, MSG_TRUNC if length > room_of else 0)
    assert not endpoint.incoming


@pytest.mark.parametrize(("length", "room_of", "wanted"), [(5, 4, 5), (8, 4, 5), (1, 0, 1), (8, 7, 100)])
def test_keep(length: int, room_of: int, wanted: int) -> None:
    """A datagram that needs the missing memory stays, and nothing is written."""
    endpoint = incoming(b"x" * length, b"next")
    reader = DatagramReader(endpoint, wanted=wanted)
    dsts = room(room_of)
    for _ in range(2):
        with pytest.raises(BadBlocksError) as caught:
            reader.read_to_blocks(dsts)
        error = caught.value
        assert (error.errno, error.length, error.room, error.wanted) == (errno.EFAULT, length, room_of, wanted)
        assert (error.lost, error.transferred) == (False, 0)
        assert "stays" in str(error)
    assert not reader.received
    assert dsts.tobytes() == b"\xee" * room_of
    assert reader.read_to_blocks(room(wanted)) == min(length, wanted)
    assert len(endpoint.incoming) == 1


@pytest.mark.parametrize(("length", "room_of", "wanted"), [(5, 4, 5), (8, 4, 5), (1, 0, 1), (8, 7, 100)])
def test_linux(length: int, room_of: int, wanted: int) -> None:
    """It is lost, and what there was room for is written: the error says so."""
    endpoint = incoming(b"x" * length, b"next")
    reader = DatagramReader(endpoint, wanted=wanted, fault_policy="linux")
    dsts = room(room_of)
    with pytest.raises(BadBlocksError) as caught:
        reader.read_to_blocks(dsts)
    error = caught.value
    assert (error.length, error.room, error.wanted, error.lost) == (length, room_of, wanted, True)
    assert error.transferred == room_of
    assert "is lost" in str(error)
    assert reader.received
    assert reader.msg_len == length
    assert dsts.tobytes() == b"x" * room_of
    assert endpoint.incoming[0][0] == b"next"


def test_a_peek_loses_nothing() -> None:
    """Under no policy."""
    endpoint = incoming(b"12345")
    with pytest.raises(BadBlocksError) as caught:
        DatagramReader(endpoint, MSG_PEEK, 9, "linux").read_to_blocks(room(2))
    assert not caught.value.lost
    assert len(endpoint.incoming) == 1


def test_another_thread_takes_what_was_looked_at() -> None:
    """Then the next one may need the memory after all, and the error says that it is lost."""
    endpoint = incoming(b"1", b"12345")
    endpoint.receive_faults.extend([None, endpoint.incoming.popleft])
    with pytest.raises(BadBlocksError) as caught:
        DatagramReader(endpoint, wanted=9).read_to_blocks(room(2))
    assert caught.value.lost
    assert caught.value.transferred == 2


def test_writing() -> None:
    """Each sequence is a message, an empty one too, to where the writer says."""
    endpoint = ScriptedEndpoint()
    writer = DatagramWriter(endpoint, A, B, 64)
    as_writer: Writer = writer
    assert as_writer.write_from_blocks(blocks(b"o", b"ne")) == 3
    assert writer.write_from_blocks(BlockSeq()) == 0
    assert writer.message_oriented
    DatagramWriter(endpoint, ancdata=((1, 2, b"3"),)).write_from_blocks(blocks(b"x"))
    assert endpoint.sent == [(b"one", A, B), (b"", A, B), (b"x", None, None)]
    assert endpoint.calls == [("sendmsg", 64, 0), ("sendmsg", 64, 0), ("sendmsg", 0, 1)]
    endpoint.send_faults.append(BlockingIOError())
    with pytest.raises(BlockingIOError):
        writer.write_from_blocks(blocks(b"x"))


def test_over_sockets() -> None:
    """A cut message shows by MSG_TRUNC and its length, and its sender is told."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        for sock in (one, two):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(5)
        writer = DatagramWriter(PlainSocketEndpoint(one), two.getsockname())
        reader = DatagramReader(PlainSocketEndpoint(two), wanted=6)
        for text in (b"1234", b"12345678", b""):
            assert writer.write_from_blocks(blocks(text[:2], text[2:])) == len(text)
        assert reader.read_to_blocks(room(4)) == 4
        assert reader.peer == one.getsockname()
        with pytest.raises(BadBlocksError, match="4 of 6"):
            reader.read_to_blocks(room(4))
        assert reader.read_to_blocks(room(3, 3)) == 6
        assert (reader.msg_len, reader.flags & MSG_TRUNC) == (8, MSG_TRUNC)
        assert reader.read_to_blocks(BlockSeq()) == 0
        assert (reader.received, reader.msg_len) == (True, 0)


def test_what_every_endpoint_has() -> None:
    """Local addresses that cannot be enabled; a context that closes."""
    with ScriptedEndpoint() as endpoint:
        assert not endpoint.local_addr_cap
        assert not endpoint.local_addr_enabled
        endpoint.set_local_addr_enable(False)
        with pytest.raises(LocalAddressNotAvailableError):
            endpoint.set_local_addr_enable(True)
        assert not endpoint.closed
    assert endpoint.closed


def test_a_read_only_destination() -> None:
    """TypeError, and the message stays."""
    endpoint = incoming(b"x")
    with pytest.raises(TypeError):
        DatagramReader(endpoint).read_to_blocks(BlockSeq([Block(b"const")]))
    assert endpoint.incoming


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DatagramTooLongError(9, 5), errno.EMSGSIZE, "9 bytes where 5 fit"),
        (BadBlocksError(9, 5, 7, True), errno.EFAULT, "5 of 7 bytes can be written, and a datagram of 9 is lost"),
        (LocalAddressNotAvailableError("why"), errno.EADDRNOTAVAIL, "why"),
        (PeerAddressNotAvailableError("why"), errno.EDESTADDRREQ, "why"),
        (NoBufferError(), errno.ENOBUFS, "recycle"),
    ],
)
def test_errors(error: TransferError, code: int, words: str) -> None:
    """Say what is wrong, by errno and in words, and survive pickling."""
    error.transferred = 3
    for again in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert again.errno == code
        assert words in str(again)
        assert vars(again) == vars(error)


@pytest.mark.parametrize("package", ["safemem", "usermem"])
def test_nobody_pays_who_does_not_ask(package: str) -> None:
    """The packages load neither datagrams nor sockets; safemem.datagram loads no TLS."""
    script = f"""
import sys
import {package}
assert not [name for name in sys.modules if name.startswith("safemem.datagram") or name in ("socket", "_socket")]
import safemem.datagram
assert not [name for name in sys.modules if name.startswith("safemem.tls") or name == "ssl"]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
