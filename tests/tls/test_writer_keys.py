"""TLSWriter's keys: key updates of its own and for the peer, the limits of a key; and sources that fault."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import Block, BlockSeq, HostFaultError, Writer
from safemem.tls import RecordKeys, TLSWriter, TrafficSecret, writer
from safemem.tls.record import MAX_SEQ
from sample_blocks import blocks
from tls_records import (
    ALERT,
    CLOSE_NOTIFY,
    DATA,
    HANDSHAKE,
    KEY_UPDATE,
    KEY_UPDATE_REQUESTED,
    SECRET,
    SUITE,
    Opener,
    Record,
    Sink,
    data_of,
    opened,
)
from usermem.testing import check_writer
from usermem.testing.faulty_memory import Fault, FaultyMemory

FAULTS: list[Fault] = ["segv", "bus"]
SMALLEST = 16406


def test_update_keys() -> None:
    """The notice under the old keys, what follows under the new, as often as one likes."""
    sink = Sink()
    tls = TLSWriter(sink, SECRET)
    for request in (False, True, False):
        tls.write_from_blocks(blocks(b"data"))
        tls.update_keys(request_peer=request)
    notices = [Record(HANDSHAKE, notice) for notice in (KEY_UPDATE, KEY_UPDATE_REQUESTED, KEY_UPDATE)]
    expected = [record for notice in notices for record in (Record(DATA, b"data"), notice)]
    assert opened(sink.got) == expected


def test_the_answer_comes_before_the_next_data() -> None:
    """Asked several times is once; it is sent with the data, not before, and not with other records."""
    sink = Sink()
    tls = TLSWriter(sink, SECRET)
    for _ in range(3):
        tls.answer_key_update()
    assert not sink.got
    tls.write_record(99, b"other")
    tls.write_from_blocks(blocks(b"abc"))
    tls.write_from_blocks(blocks(b"def"))
    tls.answer_key_update()
    tls.close_notify()
    assert opened(sink.got) == [
        Record(99, b"other"),
        Record(HANDSHAKE, KEY_UPDATE),
        Record(DATA, b"abc"),
        Record(DATA, b"def"),
        Record(ALERT, CLOSE_NOTIFY),
    ]


def test_an_answer_that_cannot_be_sent() -> None:
    """It fills the buffer and fails before any data was taken: the error comes at once."""
    sink = Sink(ConnectionResetError())
    tls = TLSWriter(sink, SECRET, buffer_size=SMALLEST)
    tls.answer_key_update()
    with pytest.raises(ConnectionResetError):
        tls.write_from_blocks(blocks(bytes(20_000)))
    assert tls.write_from_blocks(blocks(bytes(20_000))) == 20_000
    assert [record.kind for record in opened(sink.got)] == [HANDSHAKE, DATA, DATA]


def test_an_update_of_ones_own_is_an_answer_too() -> None:
    """The peer asked, and gets new keys: once is enough."""
    sink = Sink()
    tls = TLSWriter(sink, SECRET)
    tls.answer_key_update()
    tls.update_keys()
    tls.write_from_blocks(blocks(b"abc"))
    assert opened(sink.got) == [Record(HANDSHAKE, KEY_UPDATE), Record(DATA, b"abc")]


def test_update_keys_that_would_block_was_not_done() -> None:
    """It can be called again: the notice is there once. One that was taken waits, and raises nothing."""
    sink = Sink(BlockingIOError(), BlockingIOError())
    tls = TLSWriter(sink, SECRET)
    tls.write_from_blocks(blocks(b"abc"))
    with pytest.raises(BlockingIOError):
        tls.update_keys()
    tls.update_keys()
    assert opened(sink.got) == [Record(DATA, b"abc"), Record(HANDSHAKE, KEY_UPDATE)]


def test_a_key_alone_cannot_be_updated() -> None:
    """ValueError; if the peer has asked, no data may follow, and each write says so and sends nothing."""
    sink = Sink()
    tls = TLSWriter(sink, SECRET.record_keys())
    tls.write_from_blocks(blocks(b"abc"))
    with pytest.raises(ValueError, match="TrafficSecret"):
        tls.update_keys()
    tls.write_from_blocks(blocks(b"def"))
    tls.answer_key_update()
    for _ in range(2):
        with pytest.raises(ValueError, match="TrafficSecret"):
            tls.write_from_blocks(blocks(b"ghi"))
    tls.close_notify()
    kinds = [(record.kind, record.content) for record in opened(sink.got, SECRET.record_keys())]
    assert kinds == [(DATA, b"abc"), (DATA, b"def"), (ALERT, CLOSE_NOTIFY)]


def test_a_key_is_not_used_for_too_many_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit new keys come by themselves, in the middle of a write; a key alone goes on."""
    monkeypatch.setattr(writer, "_AEAD_LIMIT", 3)
    sink = Sink()
    tls = TLSWriter(sink, SECRET, record_size=1)
    assert tls.write_from_blocks(blocks(b"abcdefgh")) == 8
    kinds = [record.kind for record in opened(sink.got)]
    assert kinds == [DATA] * 3 + [HANDSHAKE] + [DATA] * 3 + [HANDSHAKE] + [DATA] * 2
    assert data_of(sink.got) == b"abcdefgh"
    sink = Sink()
    TLSWriter(sink, SECRET.record_keys(), record_size=1).write_from_blocks(blocks(b"abcdefgh"))
    assert data_of(sink.got, SECRET.record_keys()) == b"abcdefgh"


def test_the_last_sequence_number_of_a_secret() -> None:
    """It goes to the key update, and the next record is number 0 of the new keys."""
    last = TrafficSecret(SUITE, SECRET.secret, MAX_SEQ)
    sink = Sink()
    TLSWriter(sink, last).write_from_blocks(blocks(b"abc"))
    assert opened(sink.got, last) == [Record(HANDSHAKE, KEY_UPDATE), Record(DATA, b"abc")]


def test_the_last_sequence_number_of_a_key() -> None:
    """What still had a number is counted and sent; then each call raises, and no nonce comes twice."""
    keys = SECRET.record_keys()
    last = RecordKeys(SUITE, keys.key, keys.iv, MAX_SEQ - 1)
    sink = Sink()
    tls = TLSWriter(sink, last, record_size=2)
    with pytest.raises(OverflowError) as caught:
        tls.write_from_blocks(blocks(b"abcdef"))
    assert getattr(caught.value, "transferred", 0) == 4
    with pytest.raises(OverflowError):
        tls.write_from_blocks(blocks(b"ef"))
    with pytest.raises(OverflowError):
        tls.close_notify()
    tls.flush()
    assert data_of(sink.got, last) == b"abcd"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("record_size", [3, 16384])
def test_a_faulting_source_gives_what_came_before(fault: Fault, record_size: int) -> None:
    """For every k: 2 + k bytes are sent and counted, trying again sends nothing, and the writer goes on after it."""
    for k in range(8):
        memory = FaultyMemory(fault)
        sink = Sink()
        tls = TLSWriter(sink, SECRET, record_size=record_size)
        srcs = BlockSeq([Block(b"ab"), memory.block(8, k, b"cdefghij"), Block(b"behind")])
        with pytest.raises(HostFaultError) as caught:
            tls.write_from_blocks(srcs)
        assert (caught.value.transferred, caught.value.address) == (2 + k, memory.edge)
        assert data_of(sink.got) == b"abcdefghij"[: 2 + k]
        calls = len(sink.calls)
        with pytest.raises(HostFaultError) as again:
            tls.write_from_blocks(srcs.drop_first(2 + k))
        assert (again.value.transferred, len(sink.calls)) == (0, calls)
        tls.write_from_blocks(blocks(b"!"))
        assert data_of(sink.got) == b"abcdefghij"[: 2 + k] + b"!"


def test_a_fault_and_an_error_of_the_transport() -> None:
    """The fault comes first, with its count, and the transport's error at the next call."""
    sink = Sink(ConnectionResetError())
    tls = TLSWriter(sink, SECRET)
    with pytest.raises(HostFaultError) as caught:
        tls.write_from_blocks(BlockSeq([Block(b"ab"), FaultyMemory("segv").block(5, 0)]))
    assert caught.value.transferred == 2
    with pytest.raises(ConnectionResetError):
        tls.write_from_blocks(blocks(b"c"))
    tls.flush()
    assert data_of(sink.got) == b"ab"


@given(sizes=st.lists(st.integers(0, 9), max_size=8), record_size=st.integers(1, 20), k=st.integers(0, 30))
def test_any_blocks_before_a_fault(sizes: list[int], record_size: int, k: int) -> None:
    """Whatever lies before it, and whatever the records: the count is exact, and so is what arrives."""
    before = [Block(bytes(range(size))) for size in sizes]
    sink = Sink()
    tls = TLSWriter(sink, SECRET, record_size=record_size)
    memory = FaultyMemory("segv")
    with pytest.raises(HostFaultError) as caught:
        tls.write_from_blocks(BlockSeq([*before, memory.block(40, k, bytes(range(100, 140)))]))
    assert caught.value.transferred == sum(sizes) + k
    expected = b"".join(block.tobytes() for block in before) + bytes(range(100, 100 + k))
    assert data_of(sink.got) == expected


@pytest.mark.parametrize("limit", [None, 10, 1000])
@pytest.mark.parametrize("blocking", [False, True])
def test_the_writer_conforms(limit: int | None, blocking: bool) -> None:
    """However the stream is cut, and whatever the transport takes: what was counted is what the peer decrypts."""

    def make() -> tuple[Writer, object]:
        script: list[int | BaseException | None] = [limit] * (60 if limit else 0)
        if blocking:
            script = [entry for count in script for entry in (count, BlockingIOError())]
        sink = Sink(*script)
        tls = TLSWriter(sink, SECRET, record_size=700, pad_to=8, buffer_size=SMALLEST)
        opener = Opener()

        def arrived() -> bytes:
            while tls.pending():
                try:
                    tls.flush()
                except BlockingIOError:
                    continue
            opener.open(sink.got)
            return bytes(opener.data)

        return tls, arrived

    check_writer(make)  # type: ignore[arg-type]


def test_one_call_at_a_time() -> None:
    """A second call meanwhile, here from the transport, is a RuntimeError, and harms nothing."""
    refused: list[object] = []

    class Nosy(Sink):
        def write_from_blocks(self, srcs: BlockSeq) -> int:
            for call in (lambda: tls.write_from_blocks(blocks(b"x")), tls.flush, tls.close_notify, tls.update_keys):
                with pytest.raises(RuntimeError, match="under way"):
                    call()
                refused.append(call)
            tls.answer_key_update()
            return super().write_from_blocks(srcs)

    sink = Nosy()
    tls = TLSWriter(sink, SECRET)
    tls.write_from_blocks(blocks(b"abc"))
    tls.write_from_blocks(blocks(b"def"))
    assert data_of(sink.got) == b"abcdef"
    assert len(refused) == 8


def test_a_closed_writer() -> None:
    """Its buffer is wiped and nothing can be written; closing again is nothing."""
    sink = Sink(BlockingIOError())
    with TLSWriter(sink, SECRET) as tls:
        tls.write_from_blocks(blocks(b"abc"))
        assert tls.pending()
    tls.close()
    assert tls.pending() == 0
    for call in (lambda: tls.write_from_blocks(blocks(b"x")), tls.flush, tls.close_notify, tls.update_keys):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert not sink.got


def test_sinks() -> None:
    """A socket, its descriptor and a Writer take records; what is none of them is refused."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sink in (ours, ours.fileno()):
            TLSWriter(sink, SECRET).write_from_blocks(blocks(b"abc"))
            assert data_of(theirs.recv(100)) == b"abc"
        ours.setblocking(False)
        tls = TLSWriter(ours.fileno(), SECRET)
        with pytest.raises(BlockingIOError):
            while True:
                tls.write_from_blocks(blocks(bytes(100_000)))

    class Datagrams(Sink):
        message_oriented = True

    with pytest.raises(ValueError, match="message-oriented"):
        TLSWriter(Datagrams(), SECRET)
    with pytest.raises(TypeError, match="sink"):
        TLSWriter("file", SECRET)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("record_size", 0),
        ("record_size", 16385),
        ("pad_to", 0),
        ("pad_to", 16385),
        ("buffer_size", SMALLEST - 1),
        ("engine_name", "none"),
    ],
)
def test_parameters_out_of_their_range(name: str, value: object) -> None:
    """They are refused by name."""
    with pytest.raises(ValueError, match=name.removesuffix("_name")):
        TLSWriter(Sink(), SECRET, **{name: value})  # type: ignore[arg-type]
