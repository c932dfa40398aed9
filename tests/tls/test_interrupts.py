"""An interrupt at each point of a read and of a write: the stream goes on, or ends with an error that says why.

Never is anything lost or given twice without an error, and nothing stays locked.
"""

from __future__ import annotations

import itertools
import socket
import ssl
from _thread import interrupt_main
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Literal

import pytest

from campaign import NIGHTLY
from each_line import Event, interrupt
from edge_layouts import pattern
from safemem import Block, BlockSeq, Reader, ReaderFunc
from safemem.tls import (
    CryptoInfo,
    KernelTLSReader,
    SSLObjectWriter,
    StreamInterruptedError,
    TLSReader,
    TLSWriter,
    deframer,
    ktls,
    one_call,
    ordered_reader,
    outbox,
    post_handshake,
    reader,
    record_layer,
    ssl_object,
    ssl_object_writer,
    ssl_session,
    transport,
    writer,
)
from safemem.tls.engines import cryptography as cryptography_engine
from safemem.tls.engines import libcrypto
from tls_records import SECRET, Opener
from tls_ssl_objects import in_memory
from tls_wire import ENGINES, KEYS, Sender

ENGINE = [libcrypto, cryptography_engine]
READING = [deframer, one_call, ordered_reader, post_handshake, reader, record_layer, transport, *ENGINE]
WRITING = [one_call, outbox, transport, writer, *ENGINE]
KERNEL_READING = [deframer, ktls, record_layer, transport, *ENGINE]
SSL_READING = [one_call, ordered_reader, ssl_object, ssl_session, transport]
SSL_WRITING = [one_call, outbox, ssl_object_writer, ssl_session, transport]
DATA = pattern(700)
OFTEN = 1 << 60 if NIGHTLY else 3  # how many runs of a line, or of an instruction, count
SIZES = (7, 150, 4, 33, 90)
Way = Literal["lines", "instructions", "twice"]
ways = pytest.mark.parametrize("way", ["lines", "instructions", "twice"])


def filled(data: bytes) -> socket.socket:
    """A socket that has data, and then its end."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data)
    return ours


class TwiceError(KeyboardInterrupt):
    """Behind it comes another: of two signals that come at once the second one's handler runs when the first raised."""

    __init__ = staticmethod(interrupt_main)


def interrupt_twice() -> None:
    """Ctrl-C, and again before the first one is dealt with."""
    raise TwiceError


def settle() -> None:
    """The second interrupt comes here, if it has not come before."""


def wire() -> bytes:
    """DATA in records of some sizes, among all that may come between them."""
    peer = Sender()
    found, at = b"", 0
    ticket = bytes([4, 0, 0, 15]) + bytes(8) + bytes([0, 0, 2]) + b"tt" + bytes(2)
    for i, size in enumerate((40, 1, 160, 200, 9, 290)):
        found += peer.record(23, DATA[at : at + size], padding=i % 3)
        found += (partial(peer.record, 22, ticket), partial(peer.record, 23), peer.key_update, bytes)[i % 4]()
        at += size
    return found + peer.record(21, b"\1\0")


def equal_records() -> bytes:
    """DATA in records that one receive brings and one loop opens, with a key update now and then."""
    peer = Sender()
    found = b""
    for i, at in enumerate(range(0, len(DATA), 25), 1):
        found += peer.data(DATA[at : at + 25]) + (b"" if i % 9 else peer.key_update())
    return found + peer.close()


def read_on(tls: Reader, event: Event, sizes: Collection[int] = SIZES) -> str:
    """Read to the end, with an interrupt on the way; how it ended."""
    found = bytearray()

    def read() -> None:
        for size in itertools.cycle(sizes):
            buffer = bytearray(b"\xee" * size)
            try:
                n = tls.read_to_blocks(BlockSeq([Block(memoryview(buffer)[:3]), Block(memoryview(buffer)[3:])]))
            except KeyboardInterrupt as exc:
                try:  # noqa: SIM105  # suppress() would be a call before its with
                    settle()
                except KeyboardInterrupt:
                    pass
                found.extend(buffer[: getattr(exc, "transferred", 0)])
                continue
            found.extend(buffer[:n])
            if not n:
                break

    try:
        event.during(read)
    except OSError as exc:
        assert DATA.startswith(found), event.where
        assert isinstance(exc, StreamInterruptedError), event.where
        with pytest.raises(StreamInterruptedError):  # and so it stays
            tls.read_to_blocks(BlockSeq.of(Block(bytearray(9))))
        return "ended"
    assert found == DATA, event.where
    return "went on"


def write_on(tls: TLSWriter | SSLObjectWriter, event: Event) -> str:
    """Write DATA and flush, with an interrupt on the way; how it ended."""
    at = 0

    def write() -> None:
        nonlocal at
        for size in itertools.cycle(SIZES):
            if at == len(DATA):
                break
            part = DATA[at : at + size]
            try:
                at += tls.write_from_blocks(BlockSeq([Block(part[:3]), Block(part[3:])]))
            except KeyboardInterrupt as exc:
                try:  # noqa: SIM105
                    settle()
                except KeyboardInterrupt:
                    pass
                at += getattr(exc, "transferred", 0)

    try:
        event.during(write)
        tls.flush()
    except StreamInterruptedError:
        with pytest.raises(StreamInterruptedError):
            tls.write_from_blocks(BlockSeq.of(Block(b"more")))
        return "ended"
    return "went on"


def at_each_point(modules: Collection[ModuleType], way: Way, run: Callable[[Event], str]) -> Counter[str]:
    """Run once for each point of the modules that is passed; how often it ended which way."""
    between = way != "lines"
    act = interrupt_twice if way == "twice" else interrupt
    counting = Event(modules, 0, often=OFTEN, between=between)
    run(counting)
    assert counting.lines > 50
    return Counter(run(Event(modules, at, act, OFTEN, between)) for at in range(1, counting.lines + 1))


# A destructor's interrupt is told of, and goes no further.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@ways
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("release", ["verified", "direct"])
def test_a_read(release: Literal["verified", "direct"], engine: str, way: Way) -> None:
    """Of a TLSReader, with tickets, key updates, empty records and padding in between."""
    records = wire()

    def run(event: Event) -> str:
        with filled(records) as sock:
            return read_on(TLSReader(sock, KEYS, release=release, engine_name=engine), event)

    ends = at_each_point(READING, way, run)
    assert ends["went on"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", ["instructions", "twice"])  # the lines that move a record's data and count it are one
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("release", ["verified", "direct"])
def test_a_read_of_many_records(release: Literal["verified", "direct"], engine: str, way: Way) -> None:
    """In the middle of a loop that has opened some."""
    records = equal_records()

    def run(event: Event) -> str:
        with filled(records) as sock:
            tls = TLSReader(sock, KEYS, release=release, engine_name=engine)
            return read_on(tls, event, (300, 7, 40, 26))

    ends = at_each_point(READING, way, run)
    assert ends["went on"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@ways
@pytest.mark.parametrize("engine", ENGINES)
def test_a_write(engine: str, way: Way) -> None:
    """Of a TLSWriter: the peer gets what was counted, in order, or the start of it before an error."""

    def run(event: Event) -> str:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            tls = TLSWriter(ours, SECRET, record_size=60, engine_name=engine)
            how = write_on(tls, event)
            ours.shutdown(socket.SHUT_WR)
            peer = Opener()
            stream = bytearray()
            while part := theirs.recv(1 << 16):
                stream += part
            peer.open(stream)
        assert DATA.startswith(peer.data) if how == "ended" else peer.data == DATA, event.where
        return how

    ends = at_each_point(WRITING, way, run)
    assert ends["went on"]


@ways
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_read_of_an_ssl_object(version: ssl.TLSVersion, way: Way) -> None:
    """Of an SSLObjectReader."""

    def run(event: Event) -> str:
        source, tls, _ = in_memory(version)
        for at in range(0, len(DATA), 100):
            source.feed(DATA[at : at + 100])
        source.feed(close=True)
        return read_on(tls, event)

    ends = at_each_point(SSL_READING, way, run)
    assert ends["went on"]


@ways
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_write_of_an_ssl_object(version: ssl.TLSVersion, way: Way) -> None:
    """Of an SSLObjectWriter: its peer decrypts what was sent."""

    def run(event: Event) -> str:
        source, tls, sink = in_memory(version)
        how = write_on(SSLObjectWriter(tls._session), event)
        source.incoming.write(bytes(sink.got))
        data = b""
        with suppress(ssl.SSLWantReadError):
            while part := source.server.read(1 << 14):
                data += part
        assert DATA.startswith(data) if how == "ended" else data == DATA, event.where
        return how

    ends = at_each_point(SSL_WRITING, way, run)
    assert ends["went on"]


class ByRecvmsg:
    """Kernel TLS's reader as a Reader."""

    def __init__(self, kernel: KernelTLSReader, flags: int) -> None:
        self._kernel = kernel
        self._flags = flags

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Fill dsts by one recvmsg."""
        try:
            return self._kernel.recvmsg(dsts, flags=self._flags).count
        except OSError as exc:
            if "interrupted" in str(exc):
                raise StreamInterruptedError("read") from None
            raise


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@ways
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flags", [0, int(socket.MSG_WAITALL)])
def test_a_read_of_kernel_tls(flags: int, engine: str, way: Way) -> None:
    """Of records that come in two receives."""
    peer = Sender()
    records = b"".join(peer.data(DATA[at : at + 60]) for at in range(0, len(DATA), 60))
    info = CryptoInfo(KEYS.record_keys())

    def run(event: Event) -> str:
        with filled(records) as sock:
            kernel = KernelTLSReader(ReaderFunc(partial(halves, sock)), info, engine_name=engine)
            return read_on(ByRecvmsg(kernel, flags), event)

    ends = at_each_point(KERNEL_READING, way, run)
    assert ends["went on"]


def halves(sock: socket.socket, dsts: BlockSeq) -> int:
    """Receive into the first 400 bytes of dsts."""
    (block,) = dsts
    return sock.recv_into(block.take_first(400).view())
