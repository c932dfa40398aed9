"""TLSWriter: its records hold what was written, and its stream is one fixed stream whatever the transport does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import Block, BlockSeq, read_full_to_blocks, write_full_from_blocks
from safemem.tls import SUITES, EngineError, TLSReader, TLSWriter, TrafficSecret, engine
from sample_blocks import blocks, room
from tls_records import (
    ALERT,
    CLOSE_NOTIFY,
    DATA,
    HANDSHAKE,
    KEY_UPDATE,
    SECRET,
    Record,
    Sink,
    Source,
    data_of,
    opened,
)
from usermem.testing.faulty_memory import Fault, FaultyMemory

SMALLEST = 16406
FAULTS: list[Fault] = ["segv", "bus"]


@pytest.fixture(params=["cryptography", "libcrypto"])
def engine_name(request: pytest.FixtureRequest) -> str:
    """Each engine that can be used."""
    name: str = request.param
    try:
        engine(name)
    except EngineError as exc:
        pytest.skip(str(exc))
    return name


def stay(error: BaseException, transferred: int) -> BaseException:
    """The error, with the count of what was taken before it."""
    error.transferred = transferred  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_records_hold_what_was_written(engine_name: str, suite: object) -> None:
    """Records of up to record_size bytes from the number of the keys on, over the edges of blocks."""
    assert suite in SUITES.values()
    keys = TrafficSecret(suite, bytes(suite.hash_length), seq=300)  # type: ignore[arg-type, attr-defined]
    sink = Sink()
    with TLSWriter(sink, keys, record_size=4, engine_name=engine_name) as tls:
        assert tls.engine_name == engine_name
        assert tls.write_from_blocks(blocks(b"abcdefghi", b"jk", b"l")) == 12
        assert tls.write_from_blocks(blocks(b"m")) == 1
    contents = [b"abcd", b"efgh", b"ijkl", b"m"]
    assert opened(sink.got, keys) == [Record(DATA, content) for content in contents]


@given(
    parts=st.lists(st.binary(max_size=40), max_size=8),
    record_size=st.integers(1, 50),
    pad_to=st.sampled_from([1, 2, 7, 16, 100, 16384]),
    extra=st.integers(0, 300),
    unsafe=st.booleans(),
)
def test_any_blocks(parts: list[bytes], record_size: int, pad_to: int, extra: int, unsafe: bool) -> None:
    """Whatever the blocks and sizes: the data is what was written, and content and padding a multiple of pad_to."""
    sink = Sink()
    made = [Block(part) for part in parts]
    if unsafe:
        made.insert(1, FaultyMemory("segv").block(9, 9, b"123456789"))
    srcs = BlockSeq(made)
    with TLSWriter(sink, SECRET, record_size=record_size, pad_to=pad_to, buffer_size=SMALLEST + 1 + extra) as tls:
        assert write_full_from_blocks(tls, srcs) == srcs.num_bytes
        assert tls.pending() == 0
    records = opened(sink.got)
    assert b"".join(record.content for record in records) == srcs.tobytes()
    assert all(0 < len(record.content) <= record_size for record in records)
    assert all((len(record.content) + record.padding) % pad_to == 0 for record in records)


@pytest.mark.parametrize("pad_to", [1, 3, 10000, 16384])
@pytest.mark.parametrize("buffer_size", [SMALLEST, SMALLEST + 1, 40000, 1 << 18])
def test_full_records(pad_to: int, buffer_size: int) -> None:
    """Large writes with any padding and buffer: no record is longer than is allowed, and none is empty."""
    data = bytes(range(256)) * 160
    sink = Sink()
    with TLSWriter(sink, SECRET, pad_to=pad_to, buffer_size=buffer_size) as tls:
        tls.update_keys()
        tls.answer_key_update()
        assert tls.write_from_blocks(blocks(data)) == len(data)
        tls.close_notify()
    records = opened(sink.got)
    assert b"".join(record.content for record in records if record.kind == DATA) == data
    assert [record.kind for record in records if record.kind != DATA] == [HANDSHAKE, HANDSHAKE, ALERT]
    for record in records:
        length = len(record.content) + record.padding
        assert record.content
        assert length % pad_to == 0 or length == 1 << 14


def test_what_the_reader_reads(engine_name: str) -> None:
    """TLSReader gets the same bytes, over padding and key updates, and then the end."""
    sink = Sink()
    with TLSWriter(sink, SECRET, record_size=1000, pad_to=64, engine_name=engine_name) as tls:
        for _ in range(3):
            tls.write_from_blocks(blocks(bytes(range(256)) * 20))
            tls.update_keys()
        tls.close_notify()
    reader = TLSReader(Source(bytes(sink.got)), SECRET, server_side=True, engine_name=engine_name)
    dsts = room(20000)
    assert read_full_to_blocks(reader, dsts) == 15360
    assert dsts.tobytes()[:15360] == bytes(range(256)) * 60
    assert reader.eof


def test_many_records_go_by_one_send() -> None:
    """A send takes as many records as the buffer holds."""
    sink = Sink()
    with TLSWriter(sink, SECRET, record_size=1000) as tls:
        assert tls.write_from_blocks(blocks(bytes(200_000))) == 200_000
        assert len(sink.calls) == 1
        assert tls.write_from_blocks(blocks(bytes(300_000))) == 300_000
        assert len(sink.calls) == 3


def test_an_empty_sequence_sends_nothing() -> None:
    """It gives 0 whatever waits, and after the end too."""
    sink = Sink(BlockingIOError())
    tls = TLSWriter(sink, SECRET)
    assert tls.write_from_blocks(blocks(b"a")) == 1
    for _ in range(2):
        assert tls.write_from_blocks(BlockSeq()) == 0
        assert tls.write_from_blocks(blocks(b"")) == 0
    assert len(sink.calls) == 1
    tls.close_notify()
    assert tls.write_from_blocks(BlockSeq()) == 0


def one_stream(tls: TLSWriter) -> Iterator[Callable[[], object]]:
    """Calls that make a stream with a bit of everything."""
    yield lambda: tls.write_from_blocks(blocks(b"hello", b"world"))
    yield tls.answer_key_update
    yield lambda: tls.write_from_blocks(blocks(b"ab"))
    yield lambda: tls.write_record(99, b"other")
    yield lambda: tls.write_from_blocks(BlockSeq.of(FaultyMemory("bus").block(9, 9, b"safecopy!")))
    yield tls.close_notify


def full_stream() -> bytes:
    """What arrives when nothing is in the way."""
    sink = Sink()
    tls = TLSWriter(sink, SECRET, record_size=4, pad_to=3)
    for call in one_stream(tls):
        call()
    return bytes(sink.got)


def test_partial_sends_go_on_where_they_stopped() -> None:
    """A transport that takes k bytes a call, for every k, gets the same bytes: nothing is encrypted twice."""
    whole = full_stream()
    for k in chain(range(1, 40), [100, len(whole) - 1]):
        sink = Sink(*[k] * (len(whole) // k + 20))
        tls = TLSWriter(sink, SECRET, record_size=4, pad_to=3)
        for call in one_stream(tls):
            call()
        assert bytes(sink.got) == whole


@pytest.mark.parametrize("error", [BlockingIOError(), ConnectionResetError(), TimeoutError()], ids=repr)
def test_whatever_stops_the_transport_the_stream_is_the_same(error: OSError) -> None:
    """After every k bytes the transport stops once: what arrived is a prefix, and the rest comes with flush."""
    whole = full_stream()
    for k in range(1, len(whole) + 5, 3):
        sink = Sink(k, stay(type(error)(*error.args), k % 7), 1, stay(type(error)(*error.args), 0))
        tls = TLSWriter(sink, SECRET, record_size=4, pad_to=3)
        for call in [*one_stream(tls), tls.flush]:
            for _ in range(5):
                try:
                    call()
                except type(error) as exc:
                    assert not getattr(exc, "transferred", 0)
                else:
                    break
            assert whole.startswith(sink.got)
        assert (bytes(sink.got), tls.pending()) == (whole, 0)


def test_would_block() -> None:
    """What was encrypted is counted though it waits; with something waiting nothing more is taken."""
    sink = Sink(7, BlockingIOError(), BlockingIOError(), BlockingIOError())
    tls = TLSWriter(sink, SECRET)
    assert tls.write_from_blocks(blocks(b"abc")) == 3
    assert tls.pending() == 25 - 7
    with pytest.raises(BlockingIOError) as caught:
        tls.write_from_blocks(blocks(b"def"))
    assert not getattr(caught.value, "transferred", 0)
    with pytest.raises(BlockingIOError):
        tls.flush()
    assert tls.write_from_blocks(blocks(b"def")) == 3
    assert data_of(sink.got) == b"abcdef"


def test_would_block_in_the_middle_of_a_large_write() -> None:
    """The count is what the buffer took, not more."""
    sink = Sink(None, BlockingIOError())
    tls = TLSWriter(sink, SECRET, buffer_size=SMALLEST + 100)
    done = tls.write_from_blocks(blocks(bytes(50_000)))
    assert 16384 < done < 50_000
    tls.flush()
    assert data_of(sink.got) == bytes(done)


def test_a_key_update_that_fills_the_buffer_is_no_end_of_the_stream() -> None:
    """There is no room for data behind the key update, and it cannot go: that is would-block, and not 0."""
    sink = Sink(BlockingIOError())
    tls = TLSWriter(sink, SECRET, buffer_size=SMALLEST)
    tls.answer_key_update()
    try:
        assert tls.write_from_blocks(blocks(bytes(20_000))) > 0
    except BlockingIOError:
        assert tls.write_from_blocks(blocks(b"abc")) == 3
    tls.flush()
    assert opened(sink.got)[0] == Record(HANDSHAKE, KEY_UPDATE)


def test_errors_of_the_transport_wait_for_the_next_call() -> None:
    """After some bytes the count comes first; the next call raises the same object, once."""
    error = stay(ConnectionResetError("gone"), 7)
    sink = Sink(error)
    tls = TLSWriter(sink, SECRET)
    assert tls.write_from_blocks(blocks(b"abc")) == 3
    with pytest.raises(ConnectionResetError) as caught:
        tls.write_from_blocks(blocks(b"def"))
    assert caught.value is error
    assert not getattr(error, "transferred", 0)
    tls.flush()
    assert data_of(sink.got) == b"abc"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a broken sink")], ids=repr)
def test_other_exceptions_count_what_was_taken(error: BaseException) -> None:
    """They pass at once, with ``transferred``: what was encrypted must not be written again."""
    sink = Sink(error)
    tls = TLSWriter(sink, SECRET)
    with pytest.raises(type(error)) as caught:
        tls.write_from_blocks(blocks(b"abc"))
    assert getattr(caught.value, "transferred", 0) == 3
    assert tls.write_from_blocks(blocks(b"def")) == 3
    assert data_of(sink.got) == b"abcdef"


def test_close_notify() -> None:
    """It comes once, and then there is nothing to write; what waits can still be sent."""
    sink = Sink(BlockingIOError(), BlockingIOError(), 3, BlockingIOError())
    tls = TLSWriter(sink, SECRET)
    assert tls.write_from_blocks(blocks(b"abc")) == 3
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            tls.close_notify()
    for call in (
        lambda: tls.write_from_blocks(blocks(b"x")),
        lambda: tls.write_record(99, b"x"),
        tls.update_keys,
    ):
        with pytest.raises(BrokenPipeError):
            call()
    for _ in range(2):
        tls.close_notify()
    assert opened(sink.got) == [Record(DATA, b"abc"), Record(ALERT, CLOSE_NOTIFY)]


def test_write_record() -> None:
    """A record of another type between data; what no record can be is refused."""
    sink = Sink()
    tls = TLSWriter(sink, SECRET, pad_to=4)
    tls.write_record(HANDSHAKE, bytes(1 << 14))
    tls.write_record(255, b"")
    assert opened(sink.got) == [Record(HANDSHAKE, bytes(1 << 14)), Record(255, b"")]
    for kind, size in ((0, 1), (256, 1), (-1, 1), (22, (1 << 14) + 1)):
        with pytest.raises(ValueError, match="cannot be"):
            tls.write_record(kind, bytes(size))


def test_write_record_that_would_block_was_not_taken() -> None:
    """It can be called again: the record is there once. One that was taken waits, and raises nothing."""
    sink = Sink(BlockingIOError(), BlockingIOError())
    tls = TLSWriter(sink, SECRET)
    tls.write_record(99, b"one")
    with pytest.raises(BlockingIOError):
        tls.write_record(99, b"two")
    tls.write_record(99, b"two")
    assert opened(sink.got) == [Record(99, b"one"), Record(99, b"two")]
