"""KernelTLSReader: recvmsg(2) on a socket with TLS_RX, by Linux's rules."""

from __future__ import annotations

import errno
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import Block, BlockSeq, HostFaultError
from safemem.tls import SUITES, CryptoInfo, KernelTLSReader, RecordKeys
from safemem.tls.record import MAX_SEQ
from sample_blocks import room
from tls_kernel import END, INFO, KEYS, data, fails, reader, receive
from tls_records import (
    ALERT,
    CLOSE_NOTIFY,
    DATA,
    HANDSHAKE,
    KEY_UPDATE,
    SECRET,
    SUITE,
    Record,
    Source,
    sealed,
    sealed_all,
)
from usermem.testing.faulty_memory import Fault, FaultyMemory

FAULTS: list[Fault] = ["segv", "bus"]


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_each_cipher(suite: object) -> None:
    """With what setsockopt takes, from the sequence number on that it says."""
    assert suite in SUITES.values()
    keys = RecordKeys(suite, bytes(range(suite.key_length)), bytes(range(12)), 77)  # type: ignore[arg-type, attr-defined]
    info = CryptoInfo.parse(CryptoInfo(keys).pack())
    kernel = KernelTLSReader(Source(sealed(data(b"hello"), keys)), info)
    assert receive(kernel) == (b"hello", DATA, True)


def test_data_of_many_records_in_one_call() -> None:
    """As many as fit; a record goes on in the next call, and MSG_EOR tells that one has ended in this call."""
    kernel = reader(data(b"abc"), data(b"defghi", padding=9), data(b"hi"))
    assert receive(kernel, 5) == (b"abcde", DATA, True)
    assert receive(kernel, 2) == (b"fg", DATA, False)
    assert receive(kernel, 2) == (b"hi", DATA, True)
    assert receive(kernel) == (b"hi", DATA, True)
    assert receive(kernel) == (b"", 0, False)


def test_types_are_never_mixed() -> None:
    """A record that is no data comes alone, whatever is around it, and two of its kind do not join."""
    alert = Record(ALERT, CLOSE_NOTIFY)
    kernel = reader(data(b"ab"), data(b"cd"), alert, alert, data(b"ef"), Record(99, b"x"), data(b"gh"))
    expected = [(b"abcd", DATA), (CLOSE_NOTIFY, ALERT), (CLOSE_NOTIFY, ALERT), (b"ef", DATA), (b"x", 99), (b"gh", DATA)]
    assert [receive(kernel) for _ in expected] == [(content, kind, True) for content, kind in expected]


def test_a_short_buffer_for_another_type() -> None:
    """It goes on in the next calls, under its type, and is not joined to what follows."""
    kernel = reader(Record(HANDSHAKE, b"\x04ticket"), Record(HANDSHAKE, b"\x04other"))
    assert receive(kernel, 3) == (b"\x04ti", HANDSHAKE, False)
    fails(kernel, errno.EIO, has_control=False)
    assert receive(kernel) == (b"cket", HANDSHAKE, True)
    assert receive(kernel) == (b"\x04other", HANDSHAKE, True)


def test_no_room_for_the_type() -> None:
    """EIO, and the record stays for a call that has; data needs no control data."""
    kernel = reader(data(b"ab"), Record(ALERT, CLOSE_NOTIFY), data(b"cd"))
    assert receive(kernel, has_control=False) == (b"ab", DATA, True)
    fails(kernel, errno.EIO, has_control=False)
    assert receive(kernel) == (CLOSE_NOTIFY, ALERT, True)
    assert receive(kernel, has_control=False) == (b"cd", DATA, True)


def test_records_without_content() -> None:
    """They have a type and an end like others, and where nothing else comes the count is 0, which is not the end."""
    kernel = reader(data(b""), data(b"ab"), data(b"", padding=5), data(b"cd"), Record(99, b""), data(b""))
    assert receive(kernel) == (b"abcd", DATA, True)
    assert receive(kernel) == (b"", 99, True)
    assert receive(kernel) == (b"", DATA, True)
    assert receive(kernel) == (b"", 0, False)
    kernel = reader(data(b""), data(b"abcd"), data(b""), Record(99, b"x"))
    assert receive(kernel, 2) == (b"ab", DATA, True)
    assert receive(kernel, 2) == (b"cd", DATA, True)
    assert receive(kernel) == (b"", DATA, True)
    assert receive(kernel) == (b"x", 99, True)


def test_an_empty_record_before_would_block() -> None:
    """It is read, and then there is nothing, as Linux has it."""
    kernel = KernelTLSReader(Source(sealed_all(data(b"")), BlockingIOError()), INFO)
    with pytest.raises(BlockingIOError):
        kernel.recvmsg(room(9))
    assert receive(kernel) == (b"", 0, False)


@pytest.mark.parametrize("place", ["alone", "behind data"])
def test_a_key_update(place: str) -> None:
    """It is passed up; then nothing is decrypted until the guest has set the new keys, and those are used."""
    records = [Record(HANDSHAKE, KEY_UPDATE), data(b"new")]
    if place == "behind data":
        records.insert(0, data(b"old"))
    kernel = reader(*records)
    if place == "behind data":
        assert receive(kernel) == (b"old", DATA, True)
    fails(kernel, errno.EIO, has_control=False)
    assert receive(kernel) == (KEY_UPDATE, HANDSHAKE, True)
    fails(kernel, errno.EKEYEXPIRED)
    following = CryptoInfo(SECRET.next().record_keys())
    kernel.set_crypto_info(following)
    assert receive(kernel) == (b"new", DATA, True)
    assert receive(kernel) == (b"", 0, False)


def test_wrong_new_keys() -> None:
    """They are EBADMSG at the next record."""
    kernel = reader(Record(HANDSHAKE, KEY_UPDATE), data(b"new"))
    receive(kernel)
    kernel.set_crypto_info(INFO)
    fails(kernel, errno.EBADMSG)


def test_keys_that_have_not_changed() -> None:
    """Setting them is EBUSY, after a ticket too; nothing happens to the reader."""
    kernel = reader(Record(HANDSHAKE, b"\x04ticket"), Record(HANDSHAKE, b""), Record(24, b"\x18"), data(b"ab"))
    for expected in (b"\x04ticket", b"", b"\x18", b"ab"):
        with pytest.raises(OSError) as caught:
            kernel.set_crypto_info(INFO)
        assert caught.value.errno == errno.EBUSY
        assert receive(kernel)[0] == expected


def test_the_end_of_the_transport() -> None:
    """It is 0 for ever, between two records and inside one, with a close_notify and without: that is for the guest."""
    whole = sealed_all(data(b"ab"), Record(ALERT, CLOSE_NOTIFY))
    for end in range(len(whole) + 1):
        kernel = KernelTLSReader(Source(whole[:end]) if end else Source(), INFO)
        first = len(sealed_all(data(b"ab")))
        if end >= first:
            assert receive(kernel) == (b"ab", DATA, True)
        if end == len(whole):
            assert receive(kernel) == (CLOSE_NOTIFY, ALERT, True)
        assert [receive(kernel) for _ in range(3)] == [(b"", 0, False)] * 3


def test_what_the_transport_raises() -> None:
    """Would-block and other errors pass where nothing was read, and are not kept."""
    whole = sealed_all(data(b"abcdef"))
    kernel = KernelTLSReader(
        Source(BlockingIOError(), whole[:7], BlockingIOError(), ConnectionResetError(), whole[7:], BlockingIOError()),
        INFO,
    )
    for error in (BlockingIOError, BlockingIOError, ConnectionResetError):
        with pytest.raises(error):
            kernel.recvmsg(room(9))
    assert receive(kernel) == (b"abcdef", DATA, True)
    with pytest.raises(BlockingIOError):
        kernel.recvmsg(room(9))


def test_nothing_is_received_while_there_is_something() -> None:
    """A call with data in hand does not wait for more."""
    source = Source(sealed_all(data(b"abcdef")), b"")
    kernel = KernelTLSReader(source, INFO)
    assert receive(kernel, 3) == (b"abc", DATA, False)
    assert receive(kernel, 9) == (b"def", DATA, True)
    assert source.calls == 1


def test_an_empty_sequence() -> None:
    """It is 0, asks nothing of the transport, and takes no record."""
    source = Source(sealed_all(data(b"ab"), Record(99, b"")), BlockingIOError())
    kernel = KernelTLSReader(source, INFO)
    for _ in range(2):
        assert kernel.recvmsg(BlockSeq()) == END
    assert source.calls == 0
    assert receive(kernel) == (b"ab", DATA, True)
    assert kernel.recvmsg(BlockSeq(), False) == END
    assert receive(kernel) == (b"", 99, True)


def test_what_was_received_before() -> None:
    """Ciphertext that is there already comes first, and as much as there is."""
    records = [data(bytes([number]) * 1000) for number in range(40)]
    wire = sealed_all(*records)
    kernel = KernelTLSReader(Source(wire[30_000:]), INFO, received=wire[:30_000], buffer_size=16_645)
    dsts, done = room(40_000), 0
    while found := kernel.recvmsg(dsts.drop_first(done)):
        if not found.count:
            break
        done += found.count
    assert dsts.tobytes() == b"".join(record.content for record in records)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", [DATA, HANDSHAKE])
def test_a_faulting_destination_loses_nothing(kind: int, fault: Fault) -> None:
    """For every k: 2 + k bytes arrive, and the next call goes on from there."""
    for k in range(7):
        kernel = reader(Record(kind, b"\x04abcdefghijk"), data(b"behind"))
        memory = FaultyMemory(fault)
        before = bytearray(2)
        with pytest.raises(HostFaultError) as caught:
            kernel.recvmsg(BlockSeq([Block(before), memory.block(7, k)]))
        assert (caught.value.transferred, caught.value.address) == (2 + k, memory.edge)
        assert before + memory.before_edge(k) == b"\x04abcdefghijk"[: 2 + k]
        rest = b"\x04abcdefghijk"[2 + k :]
        assert receive(kernel) == ((rest + b"behind" if kind == DATA else rest), kind, True)


def test_a_fault_in_the_second_record() -> None:
    """The count is of both, and what is left is of the second."""
    kernel = reader(data(b"abc"), data(b"defg"))
    memory = FaultyMemory("segv")
    with pytest.raises(HostFaultError) as caught:
        kernel.recvmsg(BlockSeq.of(memory.block(20, 5)))
    assert (caught.value.transferred, memory.before_edge(5)) == (5, b"abcde")
    assert receive(kernel) == (b"fg", DATA, True)


def test_the_last_sequence_number() -> None:
    """It can be used, and nothing after it."""
    last = RecordKeys(SUITE, KEYS.key, KEYS.iv, MAX_SEQ)
    kernel = KernelTLSReader(Source(sealed(data(b"ab"), last) + sealed(data(b"cd"), KEYS)), CryptoInfo(last))
    assert receive(kernel) == (b"ab", DATA, True)
    fails(kernel, errno.EBADMSG)


def test_one_call_at_a_time() -> None:
    """A second one meanwhile, here from the transport, is a RuntimeError; so is no harm."""

    class Nosy(Source):
        def read_to_blocks(self, dsts: BlockSeq) -> int:
            with pytest.raises(RuntimeError, match="under way"):
                kernel.recvmsg(room(1))
            return super().read_to_blocks(dsts)

    kernel = KernelTLSReader(Nosy(sealed_all(data(b"ab"))), INFO)
    assert receive(kernel) == (b"ab", DATA, True)


def test_destinations_and_sources_that_cannot_be() -> None:
    """Blocks that refuse to be written, before anything is received; sources that are none; too small a buffer."""
    source = Source(sealed_all(data(b"ab")))
    kernel = KernelTLSReader(source, INFO)
    with pytest.raises(TypeError, match="read-only"):
        kernel.recvmsg(BlockSeq([*room(1), Block(b"xx")]))
    assert source.calls == 0
    with pytest.raises(TypeError, match="source"):
        KernelTLSReader("file", INFO)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="buffer_size"):
        KernelTLSReader(source, INFO, buffer_size=16_644)
    with pytest.raises(ValueError, match="buffer_size"):
        KernelTLSReader(source, INFO, buffer_size=1, received=bytes(20_000))


def test_a_socket() -> None:
    """The source may be a socket or its descriptor."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(sealed_all(data(b"ab")))
        kernel = KernelTLSReader(ours.fileno(), INFO)
        assert receive(kernel) == (b"ab", DATA, True)
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            kernel.recvmsg(room(1))


@given(
    records=st.lists(st.tuples(st.sampled_from([DATA, DATA, HANDSHAKE, 99]), st.binary(max_size=9)), max_size=12),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    cut=st.integers(1, 80),
)
def test_any_records_in_any_calls(records: list[tuple[int, bytes]], sizes: list[int], cut: int) -> None:
    """However it is asked and received: each record's bytes once and in order, and of one type a call."""
    made = [Record(kind, b"\x04" + content if kind == HANDSHAKE else content) for kind, content in records]
    wire = sealed_all(*made)
    kernel = KernelTLSReader(Source(*(wire[at : at + cut] for at in range(0, len(wire), cut))), INFO)
    found: list[tuple[int, bytes]] = []
    pieces, ended = b"", True
    for number in range(1000):
        content, kind, end = receive(kernel, sizes[number % len(sizes)])
        if not kind:
            break
        if kind == DATA and not content:  # records without content, and then another type or the end
            assert end
        elif kind == DATA:
            before = found.pop()[1] if found and found[-1][0] == DATA else b""
            found.append((DATA, before + content))
        else:
            pieces = (b"" if ended else pieces) + content
            ended = end
            if end:
                found.append((kind, pieces))
    expected: list[tuple[int, bytes]] = []
    for record in made:
        if record.kind != DATA:
            expected.append((record.kind, record.content))
        elif record.content and expected and expected[-1][0] == DATA:
            expected[-1] = (DATA, expected[-1][1] + record.content)
        elif record.content:
            expected.append((DATA, record.content))
    assert found == expected
