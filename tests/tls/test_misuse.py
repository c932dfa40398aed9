"""TLS between sources, sinks, callbacks and callers that do what they should not: nothing is lost and nothing hangs."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from safemem import Block, BlockSeq, ReaderFunc, WriterFunc, read_full_to_blocks
from safemem.tls import (
    CryptoInfo,
    KernelTLSReader,
    RecordKeys,
    StreamInterruptedError,
    TLSReader,
    TLSWriter,
    TruncationError,
    engine,
    handshake,
)
from safemem.tls.keys import TLS_CHACHA20_POLY1305_SHA256
from safemem.tls.transport import receiver, sender
from tls_peers import plain_client, plain_server
from tls_records import SECRET, Sink, data_of, opened
from tls_ssl_objects import VERSIONS, in_memory
from tls_wire import KEYS, Script, Sender, read, ticket
from usermem.testing.operations import pattern


def room(n: int) -> BlockSeq:
    """A block of n bytes."""
    return BlockSeq.of(Block(bytearray(n)))


@pytest.mark.parametrize("count", [-1, 1 << 30])
def test_counts_that_cannot_be(count: int) -> None:
    """A source's or sink's count is looked at before it is believed."""
    with pytest.raises(ValueError, match="the source returned"):
        TLSReader(ReaderFunc(lambda dsts: count), KEYS).read_to_blocks(room(9))
    tls = TLSWriter(WriterFunc(lambda srcs: count), SECRET)
    with pytest.raises(ValueError, match="the sink returned"):
        tls.write_from_blocks(BlockSeq.of(Block(b"data")))


def test_a_sink_without_memory() -> None:
    """It may have sent, and could not say how much: nothing is sent again, which the peer would not find authentic."""
    got = bytearray()

    def send(srcs: BlockSeq) -> int:
        got.extend(srcs.tobytes())
        raise MemoryError

    tls = TLSWriter(WriterFunc(send), SECRET)
    with pytest.raises(MemoryError) as caught:
        tls.write_from_blocks(BlockSeq.of(Block(b"data")))
    assert getattr(caught.value, "transferred", 0) == 4
    for _ in range(2):
        with pytest.raises(StreamInterruptedError):
            tls.flush()
    assert data_of(got) == b"data"


def test_an_ssl_object_is_read_by_one_at_a_time() -> None:
    """A second read meanwhile is refused, as by TLSReader: two would take each other's ciphertext."""
    source, reader, _ = in_memory(VERSIONS[1])
    refused: list[str] = []

    class Again:
        def read_to_blocks(self, dsts: BlockSeq) -> int:
            with pytest.raises(RuntimeError) as caught:
                reader.read_to_blocks(room(9))
            refused.append(str(caught.value))
            return source.read_to_blocks(dsts)

    again = Again()
    reader._source = receiver(again)
    source.feed(b"data")
    assert reader.read_to_blocks(room(9)) == 4
    assert refused == ["another read is under way"]


def test_the_count_of_a_loop_does_not_stay() -> None:
    """The error that comes again does not carry what whoever looped before had moved."""
    source, reader, _ = in_memory(VERSIONS[1])
    source.parts[:] = [source.feed(b"x" * 1000)]
    with pytest.raises(TruncationError) as caught:
        read_full_to_blocks(reader, room(2000))
    assert caught.value.transferred == 1000
    with pytest.raises(TruncationError) as again:
        reader.read_to_blocks(room(9))
    assert again.value.transferred == 0


class FailsWithBytes:
    """A source that moves bytes and raises in one call, and then goes on."""

    def __init__(self, wire: bytes, cut: int) -> None:
        self.parts = [wire[:cut], wire[cut:]]

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        part = self.parts.pop(0) if self.parts else b""
        dsts.head().view()[: len(part)] = part
        if len(self.parts) == 1:
            error = TimeoutError("slow")
            error.transferred = len(part)  # type: ignore[attr-defined]
            raise error
        return len(part)


Move = Callable[[BlockSeq], int]


def readers_of(cut: int) -> list[Move]:
    """Each of our readers, over a source that fails after ``cut`` bytes of a record."""
    wire = Sender().data(b"first")
    kernel = KernelTLSReader(FailsWithBytes(wire, cut), CryptoInfo(KEYS.record_keys()))
    source, over, _ = in_memory(VERSIONS[1])
    failing = FailsWithBytes(source.feed(b"first"), cut)

    def recvmsg(dsts: BlockSeq) -> int:
        return kernel.recvmsg(dsts).count

    over._source = receiver(failing)
    return [TLSReader(FailsWithBytes(wire, cut), KEYS).read_to_blocks, recvmsg, over.read_to_blocks]


@pytest.mark.parametrize("cut", [3, 9, 20])
@pytest.mark.parametrize("which", range(3), ids=["TLSReader", "KernelTLSReader", "SSLObjectReader"])
def test_ciphertext_that_comes_with_an_error(which: int, cut: int) -> None:
    """It is kept, and is not counted as data, by each reader."""
    move = readers_of(cut)[which]
    dsts = room(5)
    with pytest.raises(TimeoutError) as caught:
        move(dsts)
    assert not getattr(caught.value, "transferred", 0)
    assert (move(dsts), dsts.tobytes()) == (5, b"first")


@pytest.mark.parametrize("which", range(3), ids=["TLSReader", "KernelTLSReader", "SSLObjectReader"])
def test_a_whole_record_that_comes_with_an_error(which: int) -> None:
    """The data first, and the error at the next call, once."""
    move = readers_of(1000)[which]
    dsts = room(5)
    assert (move(dsts), dsts.tobytes()) == (5, b"first")
    with pytest.raises(TimeoutError) as caught:
        move(dsts)
    assert not getattr(caught.value, "transferred", 0)


def test_a_callback_that_raises_loses_no_other() -> None:
    """A ticket and a key update in one message stream, cut over two records: both callbacks run, the keys change."""
    peer = Sender()
    update = bytes([24, 0, 0, 1, 1])
    messages = ticket(b"a") + update
    wire = peer.handshake(messages[:-3]) + peer.handshake(messages[-3:])
    peer.use(KEYS.next())
    wire += peer.data(b"data")
    called: list[object] = []

    def refuse(*args: object) -> None:
        called.append(args[0])
        raise LookupError(str(len(called)))

    reader = TLSReader(Script(wire), KEYS, on_ticket=refuse, on_key_update=refuse)
    for _ in range(2):
        with pytest.raises(LookupError):
            reader.read_to_blocks(room(9))
    assert read(reader, 9) == b"data"
    assert called[1:] == [True]


def test_an_interrupt_between_records() -> None:
    """Records that were opened before it are counted, and are not opened again. The one that may be is found out."""
    peer = Sender()
    reader = TLSReader(Script(b"".join(peer.data(b"x" * 50) for _ in range(4))), KEYS)
    right = reader._layer._opener.open
    opened_so_far: list[int] = []

    def interrupted(*args: Any) -> bool:
        if len(opened_so_far) == 2:
            opened_so_far.append(-1)
            raise KeyboardInterrupt
        opened_so_far.append(args[0])
        return right(*args)

    reader._layer._opener.open = interrupted
    with pytest.raises(KeyboardInterrupt) as caught:
        reader.read_to_blocks(room(500))
    moved: int = caught.value.transferred  # type: ignore[attr-defined]
    assert moved == 100
    assert len(read(reader, 500)) == 100
    assert sorted(set(opened_so_far)) == [-1, 0, 1, 2, 3]
    assert opened_so_far.index(2) > opened_so_far.index(-1)


@pytest.mark.parametrize("size", [121, 150])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_interrupt_in_a_direct_record(which: int, size: int) -> None:
    """What was decrypted into user memory, and is not verified, does not stay there; nothing is lost."""
    peer = Sender()
    contents = [b"a" * 50, b"b" * 30, b"c" * 40]
    reader = TLSReader(Script(b"".join(map(peer.data, contents))), KEYS, release="direct")
    right = reader._layer._opener.open

    def interrupted(*args: Any) -> bool:
        authentic = right(*args)
        if args[0] == which:
            reader._layer._opener.open = right
            raise KeyboardInterrupt
        return authentic

    reader._layer._opener.open = interrupted
    dsts = room(size)
    with pytest.raises(KeyboardInterrupt) as caught:
        reader.read_to_blocks(dsts)
    before = b"".join(contents[:which])
    assert getattr(caught.value, "transferred", 0) == len(before)
    assert dsts.tobytes() == before.ljust(size, b"\0")
    assert read(reader, size) == b"".join(contents[which:])


def test_an_interrupt_in_a_record_that_does_not_fit() -> None:
    """In direct mode too it is opened apart: user memory behind the data before it stays."""
    peer = Sender()
    reader = TLSReader(Script(peer.data(b"a" * 50) + peer.data(b"b" * 50)), KEYS, release="direct")
    right = reader._layer._opener.open

    def interrupted(*args: Any) -> bool:
        if args[0]:
            raise KeyboardInterrupt
        return right(*args)

    reader._layer._opener.open = interrupted
    memory = bytearray(b"\xee" * 99)
    with pytest.raises(KeyboardInterrupt) as caught:
        reader.read_to_blocks(BlockSeq.of(Block(memory)))
    assert caught.value.transferred == 50  # type: ignore[attr-defined]
    assert memory == b"a" * 50 + b"\xee" * 49


def test_an_interrupt_between_records_that_are_written() -> None:
    """Those that were encrypted before it are counted, and go out once."""
    sink = Sink()
    tls = TLSWriter(sink, SECRET, record_size=10)
    right = tls._sealer.seal

    def interrupted(*args: Any) -> None:
        if args[0] == 3:
            tls._sealer.seal = right
            raise KeyboardInterrupt
        right(*args)

    tls._sealer.seal = interrupted
    data = pattern(95)
    with pytest.raises(KeyboardInterrupt) as caught:
        tls.write_from_blocks(BlockSeq([Block(data[:5]), Block(data[5:])]))
    moved: int = caught.value.transferred  # type: ignore[attr-defined]
    assert moved == 30
    assert tls.write_from_blocks(BlockSeq.of(Block(data[moved:]))) == 65
    assert data_of(sink.got) == data


def test_kernel_tls_is_polled_and_closed() -> None:
    """What is buffered is told; another cipher is refused; closed is EBADF."""
    peer = Sender()
    update = peer.data(b"four") + peer.key_update()
    kernel = KernelTLSReader(Script(update), CryptoInfo(KEYS.record_keys()))
    assert not kernel.readable()
    assert kernel.recvmsg(room(2)).count == 2
    assert kernel.readable()
    assert kernel.recvmsg(room(9)).count == 2
    assert kernel.recvmsg(room(9)).record_type == 22
    with pytest.raises(OSError, match="connection has") as caught:
        kernel.set_crypto_info(CryptoInfo(RecordKeys(TLS_CHACHA20_POLY1305_SHA256, bytes(32), bytes(12))))
    assert caught.value.errno == errno.EINVAL
    with kernel:
        kernel.set_crypto_info(CryptoInfo(KEYS.next().record_keys()))
    with pytest.raises(OSError) as closed:
        kernel.recvmsg(room(9))
    assert closed.value.errno == errno.EBADF


def test_a_writer_of_record_keys_is_rekeyed() -> None:
    """As kernel TLS: the guest sends the key update itself, and gives the new keys."""
    sink = Sink()
    tls = TLSWriter(sink, SECRET.record_keys())
    tls.answer_key_update()
    with pytest.raises(ValueError, match="RecordKeys"):
        tls.write_from_blocks(BlockSeq.of(Block(b"data")))
    tls.write_record(22, bytes([24, 0, 0, 1, 0]))
    tls.rekey(SECRET.next().record_keys())
    assert tls.write_from_blocks(BlockSeq.of(Block(b"data"))) == 4
    assert [record.content for record in opened(sink.got)] == [bytes([24, 0, 0, 1, 0]), b"data"]
    tls.close()
    assert tls._keys is None


def test_keys_may_be_any_bytes() -> None:
    """A bytearray, as a simulator has them, does with every engine; CryptoInfo reads from a view."""
    keys = RecordKeys(KEYS.suite, bytearray(16), bytearray(12))
    assert isinstance(keys.key, bytes)
    engine().opener(keys, memoryview(bytearray(100)))
    packed = CryptoInfo(keys).pack()
    assert CryptoInfo.parse(memoryview(packed)).keys == keys


class Splitting:
    """A socket whose first record is cut into records of 20 bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._first = True

    def sendall(self, data: bytes) -> None:
        """Send the ClientHello in pieces, and the rest as it is."""
        if self._first:
            self._first = False
            head, body = data[:3], data[5:]
            parts = [body[i : i + 20] for i in range(0, len(body), 20)]
            data = b"".join(head + len(part).to_bytes(2, "big") + part for part in parts)
        self._sock.sendall(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


def test_a_client_hello_in_many_records() -> None:
    """The secrets are found all the same, and the connection works."""
    ours, theirs = socket.socketpair()
    found: list[bytes] = []

    def serve() -> None:
        with handshake(theirs, plain_server(), server_side=True) as hand:
            found.append(read(hand.reader, 9))

    with ours, theirs:
        server = threading.Thread(target=serve)
        server.start()
        with handshake(Splitting(ours), plain_client(), server_hostname="localhost") as hand:  # type: ignore[arg-type]
            hand.writer._out._sink = sender(ours)
            hand.writer.write_from_blocks(BlockSeq.of(Block(b"data")))
            server.join()
    assert found == [b"data"]
