"""TLSReader: the order of data, errors and the end; receives; parameters."""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import Literal

import pytest

from safemem import Block, BlockSeq, Reader, ReaderFunc, read_full_to_blocks
from safemem.tls import TLSError, TLSReader, TruncationError
from safemem.tls.record import MAX_CONTENT, MAX_RECORD
from sample_blocks import room
from tls_wire import ENGINES, KEYS, Part, Script, Sender, flat, read, read_all, ticket

Release = Literal["verified", "direct"]
RELEASES: list[Release] = ["verified", "direct"]
every_release = pytest.mark.parametrize("release", RELEASES)
every_engine = pytest.mark.parametrize("name", ENGINES)


def stream(*contents: bytes) -> bytes:
    """Records of data, and close_notify."""
    peer = Sender()
    return flat([[peer.data(content) for content in contents], [peer.close()]])


@every_release
def test_a_stream(release: Release) -> None:
    """As many records as fit come in one call and by one receive; the rest waits; then 0 for ever."""
    source = Script(stream(b"one", b"two", b"three") + b"garbage")
    reader = TLSReader(source, KEYS, release=release)
    assert (reader.pending(), reader.has_pending(), reader.eof) == (0, False, False)
    dsts = room(4, 0, 1, 2)
    assert reader.read_to_blocks(dsts) == 7
    assert dsts.tobytes() == b"onetwot"
    assert (reader.pending(), reader.has_pending(), reader.eof) == (4, True, False)
    assert read(reader, 3) == b"hre"
    assert (reader.pending(), reader.has_pending(), reader.eof) == (1, True, False)
    assert read(reader, 100) == b"e"
    assert (reader.pending(), reader.has_pending(), reader.eof) == (0, True, True)
    assert [read(reader, 100) for _ in range(3)] == [b"", b"", b""]
    assert source.receives == 1


@every_release
def test_what_comes_after_close_notify_is_ignored(release: Release) -> None:
    """Wrong headers, records that are not authentic, more data: they are not looked at, nor received."""
    for garbage in (b"HTTP", b"\x17\x03\x03\xff\xff", bytes(1000), Sender().data(b"more")):
        source = Script(stream(b"data") + garbage, garbage, ConnectionResetError())
        reader = TLSReader(source, KEYS, release=release)
        assert [read(reader, 100) for _ in range(3)] == [b"data", b"", b""]
        assert (reader.eof, source.receives, reader._layer._keys) == (True, 1, None)


def test_an_end_behind_data_that_waits() -> None:
    """It is the end only when all has been read."""
    reader = TLSReader(Script(stream(b"data")), KEYS)
    assert read(reader, 3) == b"dat"
    assert not reader.eof
    assert [read(reader, 9), read(reader, 9)] == [b"a", b""]
    assert reader.eof


@every_release
def test_an_empty_sequence_receives_nothing(release: Release) -> None:
    """Whatever waits, be it an error."""
    source = Script(Sender().data(b"data"), ConnectionResetError())
    reader = TLSReader(source, KEYS, release=release)
    for receives in (0, 1, 2):
        for empty in (BlockSeq(), BlockSeq([Block(bytearray())])):
            assert reader.read_to_blocks(empty) == reader.read_at_least(empty, 5) == 0
        assert source.receives == receives
        if receives == 0:
            assert read(reader, 2) == b"da"
        elif receives == 1:
            assert read(reader, 9) == b"ta"
            with pytest.raises(ConnectionResetError):
                read(reader, 9)


def test_read_only_memory() -> None:
    """It is refused before anything is received, wherever it is among the blocks."""
    source = Script(stream(b"data"))
    reader = TLSReader(source, KEYS)
    with pytest.raises(TypeError, match="dsts"):
        reader.read_to_blocks(BlockSeq([Block(bytearray(2)), Block(b"const")]))
    assert source.receives == 0
    assert read(reader, 9) == b"data"


@every_release
@pytest.mark.parametrize("inside", [False, True])
def test_truncation(inside: bool, release: Release) -> None:
    """Without close_notify the end is an error, for ever, and behind the data."""
    peer = Sender()
    wire = peer.data(b"data") + (peer.data(b"more")[:9] if inside else b"")
    source = Script(wire)
    reader = TLSReader(source, KEYS, release=release)
    assert read(reader, 100) == b"data"
    for _ in range(3):
        with pytest.raises(TruncationError) as caught:
            read(reader, 100)
        assert (caught.value.inside_record, caught.value.errno) == (inside, errno.ECONNRESET)
        assert ("inside a record" if inside else "between two records") in str(caught.value)
    assert (source.receives, reader.eof, reader.has_pending()) == (2, False, True)


def test_truncation_that_is_allowed() -> None:
    """Between two records it is the end; inside a record, or inside a message, it is an error at every place."""
    peer = Sender()
    first, second = peer.data(b"data"), peer.data(b"more")
    messages = [peer.handshake(ticket()[:9]), peer.handshake(ticket()[9:])]
    wire = first + second + b"".join(messages)
    ends = {0: 0, len(first): 4, len(first + second): 8, len(wire): 8}
    for place in range(len(wire) + 1):
        found, error = read_all(TLSReader(Script(wire[:place]), KEYS, allow_truncation=True))
        assert found == (b"datamore"[: max(n for end, n in ends.items() if end <= place)])
        assert isinstance(error, TruncationError) == (place not in ends)
    inside_message = len(wire) - len(messages[1])
    _, error = read_all(TLSReader(Script(wire[:inside_message]), KEYS, allow_truncation=True))
    assert isinstance(error, TruncationError)


def test_an_error_does_not_keep_a_count() -> None:
    """A loop that adds its count to the error does not change what the next call raises."""
    peer = Sender()
    for wire in (b"", b"\x14\x03\x03\x00\x01", peer.alert(40)):
        reader = TLSReader(Script(Sender().data(b"data")[:0] + wire), KEYS)
        for before in (0, 3, 0, 7, 0):
            with pytest.raises(OSError) as caught:
                read(reader, 9)
            assert caught.value.transferred == 0  # type: ignore[attr-defined]
            caught.value.transferred += before  # type: ignore[attr-defined]
    reader = TLSReader(Script(Sender().data(b"data")), KEYS)
    with pytest.raises(TruncationError) as caught_first:
        read_full_to_blocks(reader, room(100))
    assert caught_first.value.transferred == 4
    with pytest.raises(TruncationError) as caught_next:
        read_full_to_blocks(reader, room(100))
    assert (caught_next.value.transferred, caught_first.value.transferred) == (0, 4)


@every_release
def test_would_block_loses_nothing(release: Release) -> None:
    """Wherever the wire is cut and nothing is there for a while, in a header or in a record."""
    wire = stream(b"one", b"two")
    for place in range(1, len(wire)):
        source = Script(wire[:place], None, None, wire[place:])
        assert read_all(TLSReader(source, KEYS, release=release)) == (b"onetwo", None)
    reader = TLSReader(Script(None, None, wire), KEYS, release=release)
    for _ in range(2):
        with pytest.raises(BlockingIOError) as caught:
            read(reader, 9)
        assert caught.value.errno == errno.EAGAIN
    assert read(reader, 9) == b"onetwo"


@every_release
def test_transport_errors_come_after_data(release: Release) -> None:
    """At once if there is none, else at the next call; once, since the transport may go on."""
    peer = Sender()
    first = ConnectionResetError(errno.ECONNRESET, "first")
    source = Script(first, peer.data(b"one"), TimeoutError("second"), peer.data(b"two"), peer.close())
    reader = TLSReader(source, KEYS, release=release)
    with pytest.raises(ConnectionResetError) as caught:
        read(reader, 9)
    assert caught.value is first
    dsts = room(9)
    assert reader.read_at_least(dsts, 5) == 3
    assert (source.receives, reader.has_pending()) == (3, True)
    with pytest.raises(TimeoutError, match="second"):
        reader.read_at_least(dsts, 1)
    assert (source.receives, reader.has_pending()) == (3, False)
    assert [read(reader, 9), read(reader, 9)] == [b"two", b""]


def moved(error: Exception, n: int) -> Exception:
    """An error that counts n bytes."""
    error.transferred = n  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("error", [BlockingIOError, ConnectionResetError, TruncationError, ValueError])
def test_a_source_that_moves_bytes_and_fails(error: type[Exception]) -> None:
    """The ciphertext that its error counts has arrived: it is not lost, and does not count as data.

    What is no error of I/O comes at once, the others behind the data.
    """
    wire = stream(b"one", b"two")
    for place in range(len(wire)):
        given = [wire[:place], wire[place:]]

        def source(dsts: BlockSeq, given: list[bytes] = given) -> int:
            part = given.pop(0) if given else b""
            dsts.head().view()[: len(part)] = part
            if given:
                raise moved(TruncationError(True) if error is TruncationError else error(errno.EIO, "x"), len(part))
            return len(part)

        reader = TLSReader(ReaderFunc(source), KEYS)
        found = b""
        errors = 0
        while True:
            try:
                part = read(reader, 100)
            except error as exc:
                errors += 1
                assert not getattr(exc, "transferred", 0)
                assert found == (b"" if error is ValueError else b"one" * (place >= 25) + b"two" * (place >= 50))
            else:
                if not part:
                    break
                found += part
        assert found == b"onetwo"
        assert errors == (error is not BlockingIOError or not place)


@every_release
def test_read_at_least(release: Release) -> None:
    """It receives until as much is there, and not once more; what is there beyond that comes too."""
    peer = Sender()
    parts: list[Part] = [peer.data(b"%03d" % i) for i in range(10)]
    source = Script(*parts, peer.close())
    reader = TLSReader(source, KEYS, release=release)
    dsts = room(5, 5, 90)
    for least, receives, n in ((1, 1, 3), (0, 2, 3), (-1, 3, 3), (3, 4, 3), (4, 6, 6), (1000, 11, 12)):
        assert (reader.read_at_least(dsts, least), source.receives) == (n, receives)
    assert dsts.tobytes()[:12] == b"006007008009"
    assert (reader.read_at_least(dsts, 1000), source.receives) == (0, 11)
    reader = TLSReader(Script(*[Sender().data(b"data")]), KEYS, release=release)
    assert reader.read_at_least(room(2), 1000) == 2
    assert reader.read_at_least(room(9), 9) == 2


def test_read_at_least_with_nothing_there_for_a_while() -> None:
    """After some bytes it is a short count, without any it is an error."""
    peer = Sender()
    reader = TLSReader(Script(peer.data(b"one"), None, None, peer.data(b"two")), KEYS)
    assert reader.read_at_least(room(9), 9) == 3
    with pytest.raises(BlockingIOError):
        reader.read_at_least(room(9), 9)
    assert read(reader, 9) == b"two"


def test_control_records_alone_are_no_end() -> None:
    """The call goes on receiving until there is data."""
    peer = Sender()
    parts: list[Part] = [peer.handshake(ticket()), peer.data(), peer.key_update(), peer.alert(90), peer.data(b"data")]
    source = Script(*parts)
    assert read(TLSReader(source, KEYS), 9) == b"data"
    assert source.receives == 5


@every_engine
@every_release
@pytest.mark.parametrize("size", [MAX_RECORD, MAX_RECORD + 1, 2 * MAX_RECORD - 1])
def test_the_smallest_buffers(size: int, release: Release, name: str) -> None:
    """Records of 16 KiB, by large and small calls, however they come; no receive is asked to give nothing."""
    contents = [bytes([i]) * n for i, n in enumerate([MAX_CONTENT, 1, MAX_CONTENT - 1, MAX_CONTENT, 77, MAX_CONTENT])]
    wire = stream(*contents)
    for step in (1 << 20, MAX_RECORD - 1, 5003):
        for call in (1 << 17, MAX_CONTENT, MAX_CONTENT + 1, 7777):
            source = Script(*[wire[at : at + step] for at in range(0, len(wire), step)])
            reader = TLSReader(source, KEYS, release=release, engine_name=name, buffer_size=size)
            assert read_all(reader, (call,)) == (b"".join(contents), None)
            assert min(source.room) > 0
            assert max(source.room) <= size


def test_what_was_received_before() -> None:
    """It comes first, whole records, parts, more than the buffer, or an end."""
    wire = stream(b"one", b"t" * MAX_CONTENT, b"three")
    for place in [*range(40), len(wire) - 3, len(wire)]:
        source = Script(wire[place:])
        reader = TLSReader(source, KEYS, received=wire[:place], buffer_size=MAX_RECORD)
        assert reader.has_pending() == (place >= len(Sender().data(b"one")))
        assert read_all(reader) == (b"one" + b"t" * MAX_CONTENT + b"three", None)
        assert source.receives == (place < len(wire))
    reader = TLSReader(Script(), KEYS, received=b"\x15\x03\x03\x40\x00")
    assert reader.has_pending()
    with pytest.raises(TLSError):
        read(reader, 9)


@every_engine
def test_sockets_and_descriptors(name: str) -> None:
    """Both are read as they are, and stay open."""
    for kind in ("socket", "descriptor", "pipe"):
        if kind == "pipe":
            outlet, inlet = os.pipe()
            ours, theirs = os.fdopen(outlet, "rb", 0), os.fdopen(inlet, "wb", 0)
        else:
            one, two = socket.socketpair()
            ours, theirs = one, two  # type: ignore[assignment]
        with ours, theirs:
            os.write(theirs.fileno(), stream(b"data"))
            source = ours if kind == "socket" else ours.fileno()
            with TLSReader(source, KEYS, engine_name=name) as reader:  # type: ignore[arg-type]
                assert reader.engine_name == name
                assert [read(reader, 9), read(reader, 9)] == [b"data", b""]
            os.write(theirs.fileno(), b"x")
            assert os.read(ours.fileno(), 9) == b"x"


def test_a_socket_that_does_not_wait() -> None:
    """Nothing there is BlockingIOError, as of the socket itself."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        reader = TLSReader(ours, KEYS)
        wire = stream(b"data")
        for part in (wire[:7], wire[7:20]):
            theirs.sendall(part)
            with pytest.raises(BlockingIOError):
                read(reader, 9)
        theirs.sendall(wire[20:])
        theirs.shutdown(socket.SHUT_WR)
        assert [read(reader, 9), read(reader, 9)] == [b"data", b""]


class Datagrams(Script):
    """A source of messages."""

    message_oriented = True


def test_wrong_parameters() -> None:
    """Each says what it takes."""
    source: Reader = Script()
    with pytest.raises(ValueError, match="'verified' or 'direct', not 'fast'"):
        TLSReader(source, KEYS, release="fast")  # type: ignore[arg-type]
    for size in (0, MAX_RECORD - 1):
        with pytest.raises(ValueError, match="buffer_size must be at least 16645"):
            TLSReader(source, KEYS, buffer_size=size, received=bytes(MAX_RECORD))
    with pytest.raises(ValueError, match="engine must be one of"):
        TLSReader(source, KEYS, engine_name="none")
    with pytest.raises(ValueError, match="source is message-oriented"):
        TLSReader(Datagrams(), KEYS)
    for wrong in ("socket", b"bytes", None, 1.5):
        with pytest.raises(TypeError, match="a socket, a file descriptor or a Reader, not"):
            TLSReader(wrong, KEYS)  # type: ignore[arg-type]


def test_closed() -> None:
    """The keys are forgotten and the buffer is wiped; reading is an error, whatever waits."""
    wire = stream(b"secret plaintext", b"more")
    reader = TLSReader(Script(wire), KEYS)
    assert read(reader, 3) == b"sec"
    buffer = reader._deframer.buffer
    assert b"plaintext" in bytes(buffer)
    for _ in range(2):
        reader.close()
        assert not any(buffer)
        assert (reader.pending(), reader.has_pending(), reader.eof) == (0, False, False)
        for call in (lambda: read(reader, 9), lambda: reader.read_at_least(room(1), 1)):
            with pytest.raises(ValueError, match="closed"):
                call()
    with TLSReader(Script(wire), KEYS) as reader:
        read(reader, 3)
    with pytest.raises(ValueError, match="closed"):
        read(reader, 3)


def test_another_thread_meanwhile() -> None:
    """A second read is an error; the first one goes on."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        waiting = threading.Event()

        def receive(dsts: BlockSeq) -> int:
            waiting.set()
            return ours.recv_into(dsts.head().view())

        reader = TLSReader(ReaderFunc(receive), KEYS)
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(read(reader, 9)))
        thread.start()
        assert waiting.wait(10)
        with pytest.raises(RuntimeError, match="another read is under way"):
            read(reader, 9)
        theirs.sendall(stream(b"data"))
        thread.join(10)
        assert found == [b"data"]
        assert read(reader, 9) == b""
