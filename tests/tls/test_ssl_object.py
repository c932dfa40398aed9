"""SSLObjectReader and SSLObjectWriter: the contract of Reader and Writer, for every version of TLS."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from safemem import Block, BlockSeq, HostFaultError, Writer, read_full_to_blocks, write_full_from_blocks
from safemem.tls import SSLObjectReader, SSLObjectWriter, TruncationError
from sample_blocks import blocks, room
from tls_peers import (
    Wire,
    client_context,
    peer,
    receive_all,
    server_context,
    tls_peer,
)
from tls_ssl_objects import VERSIONS, in_memory, pair
from usermem.testing import check_reader, check_writer
from usermem.testing.faulty_memory import Fault, FaultyMemory
from usermem.testing.operations import pattern

FAULTS: list[Fault] = ["segv", "bus"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("server_side", [False, True])
def test_data_goes_both_ways(version: ssl.TLSVersion, server_side: bool) -> None:
    """What we write comes back, over many records; each side's end is seen by the other."""
    theirs = (client_context if server_side else server_context)(maximum_version=version)
    data = pattern(100_000)

    def echo(tls: ssl.SSLSocket) -> None:
        assert tls.version() == version.name.replace("_", ".")
        found = b""
        while len(found) < len(data):
            found += tls.recv(1 << 16)
        tls.sendall(found)
        assert tls.recv(1) == b""
        tls.unwrap()

    with peer(tls_peer(echo, theirs, server_side=not server_side)) as sock:
        reader, writer = pair(sock, server_side)
        assert write_full_from_blocks(writer, blocks(data[:77], data[77:])) == len(data)
        dsts = room(60_000, 39_999, 1)
        assert read_full_to_blocks(reader, dsts) == len(data)
        assert dsts.tobytes() == data
        writer.close_notify()
        assert [reader.read_to_blocks(room(1)) for _ in range(3)] == [0] * 3
        assert reader.eof


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cut", [None, 700])
def test_the_reader_conforms(version: ssl.TLSVersion, cut: int | None) -> None:
    """However it is asked and however the ciphertext comes: the same bytes, and then the end."""
    stream = pattern(9000)

    def make() -> SSLObjectReader:
        source, reader, _ = in_memory(version)
        for at in range(0, len(stream), 1000):
            source.server.write(stream[at : at + 1000])
        source.feed(close=True)
        if cut:
            (whole,) = source.parts
            assert isinstance(whole, bytes)
            source.parts = [
                part for at in range(0, len(whole), cut) for part in (BlockingIOError(), whole[at : at + cut])
            ]
        return reader

    check_reader(make, stream)


@pytest.mark.parametrize("limit", [None, 700])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_writer_conforms(version: ssl.TLSVersion, limit: int | None) -> None:
    """However the stream is cut, and whatever the transport takes: what was counted is what the peer decrypts."""
    with ExitStack() as stack:

        def make() -> tuple[Writer, Callable[[], bytes]]:
            found = bytearray()
            ready = threading.Condition()

            def collect(tls: ssl.SSLSocket) -> None:
                while data := tls.recv(1 << 16):
                    with ready:
                        found.extend(data)
                        ready.notify()

            sock = stack.enter_context(peer(tls_peer(collect, server_context(maximum_version=version))))
            _, writer = pair(sock)
            stack.callback(writer.close_notify)
            written = 0

            class Counted:
                def write_from_blocks(self, srcs: BlockSeq) -> int:
                    nonlocal written
                    try:
                        n = writer.write_from_blocks(srcs)
                    except HostFaultError as exc:
                        written += exc.transferred
                        raise
                    written += n
                    return n

            def arrived() -> bytes:
                with ready:
                    ready.wait_for(lambda: len(found) >= written, timeout=5)
                    return bytes(found)

            if limit:
                wire = Wire(sock, limit)
                writer._session._sink = writer._session._sink._replace(call=wire.send)
            return Counted(), arrived

        check_writer(make)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_receive_brings_many_records(version: ssl.TLSVersion) -> None:
    """200 records of 1000 bytes take a few receives; SSLSocket takes two each."""
    source, reader, _ = in_memory(version)
    for _ in range(200):
        source.server.write(bytes(1000))
    source.feed()
    dsts = room(200_000)
    assert reader.read_to_blocks(dsts) == 200_000
    assert source.calls == 1


def test_a_write_is_one_send() -> None:
    """Many records go by one send."""
    with peer(tls_peer(receive_all)) as sock:
        wire = Wire(sock)
        _, writer = pair(wire)
        wire.sent.clear()
        assert writer.write_from_blocks(blocks(bytes(100_000))) == 100_000
        assert sum(wire.sent) > 100_000
        writer.close_notify()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("allow", [False, True])
def test_truncation(version: ssl.TLSVersion, allow: bool) -> None:
    """The transport ends after every so many bytes: in a record always an error, between two unless it is allowed."""
    source, _, _ = in_memory(version)
    size = len(source.feed(b"x" * 100))
    for end in [0, 1, 4, 5, 6, size - 1, size, size + 1, size + 5, size + 6, 2 * size]:
        source, reader, _ = in_memory(version, allow_truncation=allow)
        whole = source.feed(b"x" * 100) + source.feed(b"y" * 100)
        source.parts = [whole[:end]] if end else []
        dsts = room(300)
        inside = end % size != 0
        for _ in range(end // size):
            assert reader.read_to_blocks(dsts) == end // size * 100
            break
        for _ in range(2):
            if allow and not inside:
                assert reader.read_to_blocks(dsts) == 0
                assert reader.eof
                continue
            with pytest.raises(TruncationError) as caught:
                reader.read_to_blocks(dsts)
            assert caught.value.inside_record == inside


@pytest.mark.parametrize("version", VERSIONS)
def test_a_record_that_is_not_authentic(version: ssl.TLSVersion) -> None:
    """Data first, then the error, again and again; the peer is sent an alert."""
    source, reader, sink = in_memory(version)
    good = source.feed(b"good")
    bad = bytearray(source.feed(b"evil"))
    bad[-1] ^= 1
    source.parts = [good + bytes(bad)]
    dsts = room(10)
    assert reader.read_to_blocks(dsts) == 4
    for _ in range(2):
        with pytest.raises(ssl.SSLError):
            reader.read_to_blocks(dsts)
    assert dsts.tobytes() == b"good" + b"\xee" * 6
    assert len(sink.calls) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_would_block(version: ssl.TLSVersion) -> None:
    """Nothing there, or half a record; an error of the transport passes, and is not for ever."""
    source, reader, _ = in_memory(version)
    whole = source.feed(b"data")
    source.parts = [BlockingIOError(), whole[:9], BlockingIOError(), ConnectionResetError(), whole[9:]]
    dsts = room(4)
    for error in (BlockingIOError, BlockingIOError, ConnectionResetError):
        with pytest.raises(error):
            reader.read_to_blocks(dsts)
    assert reader.read_to_blocks(dsts) == 4
    assert dsts.tobytes() == b"data"


def test_a_writer_that_blocks() -> None:
    """What was encrypted is counted and waits; with something waiting nothing more is taken."""
    _, reader, sink = in_memory(VERSIONS[1])
    writer = SSLObjectWriter(reader._session)
    sink.script = [7, BlockingIOError(), BlockingIOError(), ConnectionResetError()]
    assert writer.write_from_blocks(blocks(b"abc")) == 3
    with pytest.raises(BlockingIOError):
        writer.write_from_blocks(blocks(b"def"))
    assert writer.write_from_blocks(BlockSeq()) == 0
    with pytest.raises(ConnectionResetError):
        writer.flush()
    assert writer.write_from_blocks(blocks(b"def")) == 3
    sink.script = [ConnectionResetError()]
    assert writer.write_from_blocks(blocks(b"ghi")) == 3
    with pytest.raises(ConnectionResetError):
        writer.write_from_blocks(blocks(b"jkl"))
    writer.flush()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("k", [0, 1, 5, 6])
def test_a_faulting_destination_loses_nothing(version: ssl.TLSVersion, fault: Fault, k: int) -> None:
    """For some k: 2 + k bytes arrive, and the rest comes next, however it is asked for."""
    source, reader, _ = in_memory(version)
    source.feed(b"abcdefghijkl")
    source.feed(b"mnop", close=True)
    memory = FaultyMemory(fault)
    before = bytearray(2)
    dsts = BlockSeq([Block(before), memory.block(7, k), Block(bytearray(4))])
    with pytest.raises(HostFaultError) as caught:
        reader.read_to_blocks(dsts)
    assert (caught.value.transferred, caught.value.address) == (2 + k, memory.edge)
    assert before + memory.before_edge(k) == b"abcdefghijkl"[: 2 + k]
    assert reader.pending() == 10 - k
    rest = room(3, 100)
    n = read_full_to_blocks(reader, rest)
    assert rest.tobytes()[:n] == b"abcdefghijklmnop"[2 + k :]


def test_blocks_that_may_fault_between_others() -> None:
    """The order is kept whatever blocks follow each other, though a record is longer than a block."""
    source, reader, _ = in_memory(VERSIONS[1])
    source.server.write(bytes(range(100)))
    source.server.write(bytes(range(100, 150)))
    source.feed()
    one, two = FaultyMemory("segv"), FaultyMemory("bus")
    dsts = BlockSeq([Block(bytearray(5)), one.block(7, 7), *room(20), two.block(30, 30), *room(100)])
    assert read_full_to_blocks(reader, dsts.take_first(150)) == 150
    assert dsts.tobytes()[:150] == bytes(range(150))


@pytest.mark.parametrize("version", VERSIONS)
def test_read_at_least(version: ssl.TLSVersion) -> None:
    """It receives until there is enough, or dsts are full, or something stops it; what stops it comes the next time."""
    source, reader, _ = in_memory(version)
    for part in (b"one", b"two", b"three"):
        source.feed(part)
    calls = source.calls
    dsts = room(100)
    assert (reader.read_at_least(dsts, 4), source.calls - calls) == (6, 2)
    assert dsts.take_first(7).tobytes() == b"onetwo\xee"
    assert reader.read_at_least(room(3), 1000) == 3
    assert reader.read_at_least(room(0), 0) == 0
    source.parts += [BlockingIOError()]
    assert reader.read_at_least(room(9), 9) == 2
    for least in (0, -1):  # 0 would say that the stream has ended
        source.feed(b"any")
        assert reader.read_at_least(room(9), least) == 3
    source.parts += [BlockingIOError()]
    with pytest.raises(BlockingIOError):
        reader.read_at_least(room(9), 9)
    source.feed(b"last")
    source.parts += [ConnectionResetError(104, "reset")]
    assert reader.read_at_least(room(9), 9) == 4
    assert reader.has_pending()
    with pytest.raises(ConnectionResetError):
        reader.read_at_least(room(9), 9)
    source.feed(b"end", close=True)
    assert [reader.read_at_least(room(9), 9) for _ in range(3)] == [3, 0, 0]
    assert reader.read_at_least(room(0), 9) == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_read_at_least_before_an_error(version: ssl.TLSVersion) -> None:
    """What there is comes first, be it less than was asked for; then the error, again and again."""
    for flip, error in ((1, ssl.SSLError), (0, TruncationError)):
        source, reader, _ = in_memory(version)
        good, more = source.feed(b"good"), bytearray(source.feed(b"evil"))
        more[-1] ^= flip
        source.parts = [good, bytes(more)]
        assert reader.read_at_least(room(20), 20) == (4 if flip else 8)
        for _ in range(2):
            with pytest.raises(error) as caught:
                reader.read_at_least(room(20), 20)
            assert not getattr(caught.value, "transferred", 0)


def test_a_fault_after_several_receives() -> None:
    """The count is that of all of them, and the rest comes next."""
    source, reader, _ = in_memory(VERSIONS[1])
    data = pattern(30)
    for at in range(0, 30, 6):
        source.feed(data[at : at + 6])
    memory = FaultyMemory("segv")
    dsts = room(8)
    with pytest.raises(HostFaultError) as caught:
        reader.read_at_least(BlockSeq([*dsts, memory.block(100, 9)]), 50)
    assert caught.value.transferred == 17
    assert dsts.tobytes() + memory.before_edge(9) == data[:17]
    rest = room(13)
    assert (reader.read_at_least(rest, 13), rest.tobytes()) == (13, data[17:])


class OddError(OSError):
    """One that cannot be copied: it is not made of its args."""

    def __init__(self, *, what: str) -> None:
        super().__init__(5, what)


def test_an_error_behind_data_is_the_one_that_was_raised() -> None:
    """The transport's own object comes, once, after the data."""
    source, reader, _ = in_memory(VERSIONS[1])
    source.feed(b"data")
    error = OddError(what="odd")
    source.parts += [error]
    assert reader.read_at_least(room(9), 9) == 4
    with pytest.raises(OddError) as caught:
        reader.read_to_blocks(room(9))
    assert caught.value is error
    source.feed(b"more")
    assert reader.read_to_blocks(room(9)) == 4
