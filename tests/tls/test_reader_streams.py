"""TLSReader as a stream: its contract, any chunking, any flipped bit, any garbage; no bytes that are not authentic."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import Block, BlockSeq, Reader
from safemem.tls import Alert, ReceivedAlertError, TLSError, TLSReader, TruncationError
from safemem.tls.record import HEADER, MAX_CONTENT, MAX_RECORD
from sample_blocks import room
from tls_wire import ENGINES, KEYS, Part, Script, Sender, cut, flat, message, read, read_all, ticket
from usermem.testing import check_reader
from usermem.testing.operations import pattern

Release = Literal["verified", "direct"]
RELEASES: list[Release] = ["verified", "direct"]
every_release = pytest.mark.parametrize("release", RELEASES)
every_engine = pytest.mark.parametrize("name", ENGINES)


class Scrubbed:
    """A Reader in direct mode, without what that mode may do: the zeros behind its count are taken back."""

    def __init__(self, reader: TLSReader) -> None:
        self._reader = reader

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """Raises AssertionError if a byte behind the count is neither 0xEE, as before, nor 0."""
        safe = [block for block in dsts if not block.need_safecopy]
        before = [block.tobytes() for block in safe]
        n = 0
        try:
            n = self._reader.read_to_blocks(dsts)
        except OSError as exc:
            n = getattr(exc, "transferred", 0)
            raise
        finally:
            left = n
            for block, old in zip(safe, before, strict=True):
                start = min(left, len(block))
                left -= start
                view = block.view()[start:]
                assert not view.tobytes().translate(None, b"\0\xee")
                view[:] = old[start:]
        return n


SIZES = [1, 0, 40, 0, 300, 2, 0, 0, 17, 1000, 64, 5, 500]
STREAM = pattern(sum(SIZES))


def wire_of_all(close: bool = True) -> bytes:
    """STREAM in records, with whatever may come between them."""
    peer = Sender()
    between: Iterator[Callable[[], bytes]] = cycle(
        [
            lambda: peer.handshake(ticket(), 30),
            lambda: peer.data(b"", 100),
            lambda: peer.key_update(),
            lambda: peer.handshake(ticket()[:9]) + peer.handshake(ticket()[9:] + ticket()),
            lambda: b"",
            lambda: peer.handshake(ticket(b"t" * 500)) + peer.data(),
            lambda: peer.key_update(1) + peer.alert(90),
        ]
    )
    wire = b""
    at = 0
    for size, extra, padding in zip(SIZES, between, cycle((0, 7, 0, 0, 200)), strict=False):
        wire += extra() if size != 500 else b""
        wire += peer.data(STREAM[at : at + size], padding)
        at += size
    return wire + (peer.close() if close else b"")


WIRE = wire_of_all()


@every_engine
@every_release
@pytest.mark.parametrize("step", [1 << 20, 333, 20])
def test_the_contract_of_a_reader(step: int, release: Release, name: str) -> None:
    """However it is asked, the bytes come once and in order, and nothing behind them is touched; the end stays."""

    def make(wire: bytes, hesitate: bool) -> Reader:
        parts: list[Part] = []
        for at in range(0, len(wire), step):
            parts += [wire[at : at + step], None] if hesitate else [wire[at : at + step]]
        reader = TLSReader(Script(*parts), KEYS, release=release, engine_name=name, buffer_size=MAX_RECORD)
        return Scrubbed(reader) if release == "direct" else reader

    for hesitate in (False, True):
        check_reader(lambda: make(WIRE, hesitate), STREAM)  # noqa: B023
    check_reader(lambda: make(wire_of_all(close=False), False), STREAM, TruncationError)


def test_direct_touches_nothing_behind_plain_data() -> None:
    """Nor the byte that the type falls on: only records without data leave zeros."""
    peer = Sender()
    contents = [b"a" * 5, b"b", b"c" * 9, b"d" * 30]
    reader = TLSReader(Script(flat([[peer.data(one) for one in contents]])), KEYS, release="direct")
    dsts = room(7, 1, 2, 100)
    n = reader.read_to_blocks(dsts)
    assert dsts.tobytes() == b"".join(contents).ljust(110, b"\xee")
    assert n == 45


@pytest.mark.parametrize("flip", [0, 1])
def test_direct_leaves_zeros_or_what_was_there(flip: int) -> None:
    """Behind the data each byte is as it was or 0, be the record that was no data a ticket or not authentic."""
    for content in (b"", b"data"):
        peer = Sender()
        odd = bytearray(peer.data(content) if content else b"") + peer.handshake(ticket(b"ticket" * 3))
        odd[-1] ^= flip
        memory = bytearray(pattern(100))
        reader = TLSReader(Script(bytes(odd), None), KEYS, release="direct")
        try:
            n = reader.read_to_blocks(BlockSeq.of(Block(memory)))
        except OSError:
            n = 0
        assert n == len(content)
        assert memory.startswith(content)
        assert all(now in (0, then) for now, then in zip(memory[n:], pattern(100)[n:], strict=True))
        assert memory[-1] == pattern(100)[-1] != 0


pieces = st.lists(st.integers(0, 4000), max_size=12)
calls = st.lists(st.lists(st.one_of(st.integers(0, 60), st.integers(0, 3000)), min_size=1, max_size=4), min_size=1)
ENDS: dict[str, tuple[bytes, type[OSError] | None]] = {
    "close_notify": (WIRE, None),
    "truncation": (WIRE[:-30], TruncationError),
    "a flipped bit": (WIRE[:-1] + bytes([WIRE[-1] ^ 1]), TLSError),
    "no TLS": (WIRE[:-24] + b"HTTP/1.1", TLSError),
}


@every_release
@pytest.mark.parametrize("end", ENDS)
@given(places=pieces, sizes=calls, least=st.sampled_from([1, 1, 50, 100_000]), name=st.sampled_from(ENGINES))
def test_any_chunking(
    end: str, release: Release, places: list[int], sizes: list[list[int]], least: int, name: str
) -> None:
    """However the wire is cut and whatever is asked for: the same bytes, and then the same error."""
    wire, expected = ENDS[end]
    reader = TLSReader(Script(*cut(wire, places)), KEYS, release=release, engine_name=name, buffer_size=MAX_RECORD)
    found = b""
    error: OSError | None = None
    for call in cycle([*sizes, [100]]):
        dsts = room(*call)
        try:
            n = reader.read_at_least(dsts, least)
        except OSError as exc:
            assert getattr(exc, "transferred", 0) == 0
            error = exc
            break
        found += dsts.tobytes()[:n]
        assert not dsts.tobytes()[n:].strip(b"\xee" if release == "verified" else b"\xee\0")
        if not n and dsts:
            break
    assert type(error) is (expected or type(None))
    assert STREAM.startswith(found)
    assert len(found) == len(STREAM) or end == "truncation"


def _places_to_flip(wire: bytes) -> list[int]:
    generator = random.Random(1)
    starts = [0]
    while starts[-1] < len(wire):
        start = starts[-1]
        starts.append(start + HEADER + int.from_bytes(wire[start + 3 : start + HEADER], "big"))
    bits = [start * 8 + bit for start in starts[:-1] for bit in range(HEADER * 8)]
    return bits + generator.sample(range(len(wire) * 8), 300)


@every_engine
@every_release
def test_any_flipped_bit(release: Release, name: str) -> None:
    """What comes is a part of the stream from its start, then an error; no byte in user memory is from behind it."""
    for bit in _places_to_flip(WIRE):
        wire = bytearray(WIRE)
        wire[bit // 8] ^= 1 << bit % 8
        reader = TLSReader(Script(bytes(wire)), KEYS, release=release, engine_name=name, buffer_size=MAX_RECORD)
        dsts = room(700, 3, 2000)
        n = 0
        with pytest.raises((TLSError, TruncationError)) as caught:
            while True:
                n += reader.read_to_blocks(dsts.drop_first(n))
        memory = dsts.tobytes()
        assert memory[:n] == STREAM[:n]
        assert not memory[n:].strip(b"\xee" if release == "verified" else b"\xee\0")
        if isinstance(caught.value, TLSError):
            assert caught.value.alert in (Alert.BAD_RECORD_MAC, Alert.UNEXPECTED_MESSAGE, Alert.RECORD_OVERFLOW)
            assert caught.value.alert is Alert.BAD_RECORD_MAC or _in_header(bit // 8) in (0, 3, 4)
        else:
            assert _in_header(bit // 8) in (3, 4)


def _in_header(place: int) -> int | None:
    """Which byte of a record's header lies here."""
    start = 0
    while start <= place:
        if place < start + HEADER:
            return place - start
        start += HEADER + int.from_bytes(WIRE[start + 3 : start + HEADER], "big")
    return None


garbage = st.one_of(
    st.binary(max_size=300),
    st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=200)).map(
        lambda parts: b"\x17\x03\x03" + parts[0].to_bytes(2, "big") + parts[1]
    ),
)
kinds = st.sampled_from([0, 20, 21, 22, 22, 22, 23, 23, 24, 255])
authentic = st.tuples(
    kinds,
    st.one_of(
        st.binary(max_size=40),
        st.tuples(st.sampled_from([4, 4, 24, 0, 1]), st.binary(max_size=20)).map(lambda parts: message(*parts)),
        st.just(ticket()),
        st.sampled_from([b"\x01\x00", b"\x02\x28", b"\x01\x5a", b"\x18\0\0\1\0"]),
    ),
    st.integers(0, 30),
)


@every_release
@given(st.lists(garbage, max_size=3), st.lists(authentic, max_size=8), pieces, st.integers(1, 200))
def test_garbage(
    release: Release, ends: list[bytes], records: list[tuple[int, bytes, int]], places: list[int], size: int
) -> None:
    """Authentic or not, only the documented errors come, and data only from records of data."""
    peer = Sender()
    wire = flat([[peer.record(*record) for record in records], ends])
    found, error = read_all(TLSReader(Script(*cut(wire, places)), KEYS, release=release), (size,))
    assert error is None or type(error) in (TLSError, ReceivedAlertError, TruncationError)
    data = b"".join(content.rstrip(b"\0") if kind == 0 else content for kind, content, _ in records if kind in (0, 23))
    assert data.startswith(found) or any(kind == 0 for kind, *_ in records)


class Endless:
    """A Reader of whatever bytes it is given; then it would block."""

    wire = b""

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        """As many as fit."""
        if not self.wire:
            raise BlockingIOError
        n = min(dsts.num_bytes, len(self.wire))
        dsts.head().view()[:n] = self.wire[:n]
        self.wire = self.wire[n:]
        return n


@every_engine
@every_release
def test_memory_does_not_grow(release: Release, name: str) -> None:
    """Over 50,000 small records, and the keys of a hundred."""
    peer = Sender()
    batch = flat([[peer.data(b"small", i & 1) for i in range(500)]])
    source = Endless()
    reader = TLSReader(source, KEYS, release=release, engine_name=name)
    dsts = room(1 << 16)
    done = 0
    for round_ in range(100):
        source.wire = batch
        reader._layer.use(KEYS)  # the same records again, so the same numbers
        with suppress(BlockingIOError):
            while True:
                done += reader.read_to_blocks(dsts)
        if round_ == 10:
            gc.collect()
            before = sys.getallocatedblocks()
    gc.collect()
    assert done == 100 * 500 * 5
    assert sys.getallocatedblocks() - before < 100


def test_a_long_record_and_a_short_destination() -> None:
    """Each byte of it comes, by any steps, and of the next ones too."""
    contents = [pattern(MAX_CONTENT), b"", pattern(100)]
    peer = Sender()
    wire = flat([[peer.data(content) for content in contents], [peer.close()]])
    for release in RELEASES:
        for step in (999, 4096, MAX_CONTENT - 1, MAX_CONTENT, MAX_CONTENT + 1, MAX_CONTENT + 100):
            reader = TLSReader(Script(wire), KEYS, release=release)
            assert read_all(reader, (step // 2, step - step // 2)) == (b"".join(contents), None)
    view = memoryview(bytearray(3))
    assert read(TLSReader(Script(wire), KEYS), 1) == TLSReader(Script(wire), KEYS).read_to_blocks(
        BlockSeq.of(Block(view[:1]))
    ) * bytes(view[:1])
