"""Deframer: the records of a stream, however it is cut, and what is borrowed of them."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem.tls import Alert, Deframer, TLSError
from safemem.tls.deframer import BorrowedRecord
from safemem.tls.record import HEADER, MAX_BODY, MAX_RECORD, TAG
from tls_wire import cut


def record(body: bytes) -> bytes:
    """A record with this body, encrypted by nobody."""
    return b"\x17\x03\x03" + len(body).to_bytes(2, "big") + body


def feed(deframer: Deframer, part: bytes) -> None:
    """Receive these bytes."""
    deframer.space()[: len(part)] = part
    deframer.received(len(part))


def pop_all(deframer: Deframer) -> list[bytes]:
    """The bodies of all whole records."""
    found = []
    while (popped := deframer.pop()) is not None:
        with popped:
            found.append(bytes(popped.take(popped.length) or b""))
    return found


lengths = st.one_of(st.integers(TAG, 40), st.sampled_from([TAG, 1000, MAX_BODY - 1, MAX_BODY]))


@given(st.lists(lengths, max_size=6), st.lists(st.integers(0, 1 << 16), max_size=20), st.integers(0, 1 << 15))
def test_any_chunking(sizes: list[int], places: list[int], more: int) -> None:
    """Each record comes once, in order and whole, as soon as its last byte is there."""
    bodies = [bytes([i + 1]) * size for i, size in enumerate(sizes)]
    deframer = Deframer(MAX_RECORD + more)
    found: list[bytes] = []
    fed = 0
    for part in cut(b"".join(map(record, bodies)), places):
        while part:
            n = min(len(part), len(deframer.space()))
            feed(deframer, part[:n])
            part = part[n:]
            fed += n
            whole = deframer.whole_record()
            new = pop_all(deframer)
            assert whole == bool(new)
            found += new
            assert deframer.buffered == fed - sum(HEADER + len(body) for body in found)
            deframer.discard()
            assert deframer.space()
    assert found == bodies
    assert (deframer.buffered, deframer.pop()) == (0, None)


def test_every_cut_of_two_records() -> None:
    """Byte by byte, and without a discard between them, while there is room."""
    wire = record(b"a" * TAG) + record(b"b" * 20)
    for place in range(len(wire) + 1):
        deframer = Deframer(MAX_RECORD)
        feed(deframer, wire[:place])
        found = pop_all(deframer)
        feed(deframer, wire[place:])
        assert found + pop_all(deframer) == [b"a" * TAG, b"b" * 20]


def test_what_lay_there_is_not_read() -> None:
    """A header that a discard has left behind the end is none."""
    deframer = Deframer(MAX_RECORD)
    feed(deframer, record(bytes(TAG)) * 3)
    for place in (HEADER, 2 * HEADER + TAG):
        popped = deframer.pop()
        assert popped is not None
        with popped:
            assert (popped.at, popped.length) == (place, TAG)
    deframer.discard()
    assert len(pop_all(deframer)) == 1
    deframer.discard()
    assert (deframer.pop(), deframer.whole_record(), deframer.buffered) == (None, False, 0)
    feed(deframer, b"\x17\x03\x03\x00")
    assert (deframer.pop(), deframer.whole_record()) == (None, False)


def test_a_full_buffer() -> None:
    """A record that fills all of it, and the end of memory behind it."""
    deframer = Deframer(MAX_RECORD)
    small, large = MAX_RECORD - 2 * HEADER - MAX_BODY, MAX_BODY
    feed(deframer, record(bytes(large)) + record(bytes(small)))
    assert len(deframer.space()) == 0
    assert [len(body) for body in pop_all(deframer)] == [large, small]
    assert deframer.pop() is None
    assert not deframer.whole_record()
    deframer.discard()
    assert len(deframer.space()) == MAX_RECORD


WRONG = {
    "change_cipher_spec": (b"\x14\x03\x03\x00\x01\x01", Alert.UNEXPECTED_MESSAGE),
    "an alert": (b"\x15\x03\x03\x00\x02\x02\x28", Alert.UNEXPECTED_MESSAGE),
    "a handshake message": (b"\x16\x03\x03\x00\x20", Alert.UNEXPECTED_MESSAGE),
    "heartbeat": (b"\x18\x03\x03\x00\x20", Alert.UNEXPECTED_MESSAGE),
    "type 0": (b"\x00\x03\x03\x00\x20", Alert.UNEXPECTED_MESSAGE),
    "another protocol": (b"HTTP/1.1 400", Alert.UNEXPECTED_MESSAGE),
    "no tag": (b"\x17\x03\x03\x00\x00", Alert.BAD_RECORD_MAC),
    "half a tag": (b"\x17\x03\x03\x00\x0f", Alert.BAD_RECORD_MAC),
    "a byte too much": (b"\x17\x03\x03" + (MAX_BODY + 1).to_bytes(2, "big"), Alert.RECORD_OVERFLOW),
    "the most a header may say, which is too much": (b"\x17\x03\x03\x41\x00", Alert.RECORD_OVERFLOW),
    "more than a header may say": (b"\x17\x03\x03\x41\x01", Alert.RECORD_OVERFLOW),
    "the most it can say": (b"\x17\x03\x03\xff\xff", Alert.RECORD_OVERFLOW),
}


@pytest.mark.parametrize(("header", "alert"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("before", [b"", record(bytes(TAG))], ids=["first", "second"])
def test_headers_that_cannot_be_right(header: bytes, alert: Alert, before: bytes) -> None:
    """They are refused as soon as they are there, again and again, and behind what came before them."""
    deframer = Deframer(MAX_RECORD)
    feed(deframer, before)
    feed(deframer, header[: HEADER - 1])
    assert len(pop_all(deframer)) == bool(before)
    assert not deframer.whole_record()
    feed(deframer, header[HEADER - 1 :])
    for _ in range(2):
        assert deframer.whole_record()
        with pytest.raises(TLSError) as caught:
            deframer.pop()
        assert caught.value.alert is alert
    expected = {Alert.BAD_RECORD_MAC: errno.EBADMSG, Alert.RECORD_OVERFLOW: errno.EMSGSIZE}
    assert caught.value.errno == expected.get(alert, errno.EPROTO)


@pytest.mark.parametrize("version", [b"\x03\x01", b"\x03\x04", b"\x00\x00", b"\xff\xff"])
def test_the_version_is_not_looked_at(version: bytes) -> None:
    """RFC 8446 section 5.1."""
    deframer = Deframer(MAX_RECORD)
    feed(deframer, b"\x17" + version + b"\x00\x10" + bytes(TAG))
    assert pop_all(deframer) == [bytes(TAG)]


def pop(deframer: Deframer) -> BorrowedRecord:
    """A record that is there."""
    popped = deframer.pop()
    assert popped is not None
    return popped


def test_what_is_borrowed_stays() -> None:
    """Until all that was borrowed is back, nothing is moved; then it is. What was taken lives together."""
    deframer = Deframer(MAX_RECORD)
    feed(deframer, record(b"a" * 20) + record(b"b" * 20) + b"\x17\x03")
    with pop(deframer) as first:
        with pop(deframer) as second:
            content, tag, rest = first.take(4), first.take(TAG), second.take(3)
            assert content is not None
            assert tag is not None
            assert rest is not None
            assert (bytes(content), bytes(tag), bytes(rest)) == (b"aaaa", b"a" * TAG, b"bbb")
            assert (first.take(1), first.left, second.left) == (None, 0, 17)
            assert first.header == second.header == record(bytes(20))[:HEADER]
            with pytest.raises(BufferError, match="borrowed"):
                deframer.discard()
        with pytest.raises(BufferError, match="borrowed"):
            deframer.discard()
        content[:1], tag[-1:] = b"A", b"Z"
        assert bytes(deframer.buffer[first.at : first.at + 20]) == b"A" + b"a" * 18 + b"Z"
    for view in (content, tag, rest):
        with pytest.raises(ValueError, match="released"):
            view.tobytes()
    with pytest.raises(ValueError, match="released"):
        first.take(0)
    first.release()
    deframer.discard()
    assert (bytes(deframer.buffer[:2]), deframer.buffered) == (b"\x17\x03", 2)


def test_what_is_borrowed_comes_back_with_an_error() -> None:
    """Whoever borrowed it may raise."""
    deframer = Deframer(MAX_RECORD)
    feed(deframer, record(bytes(TAG)))
    with pytest.raises(ZeroDivisionError), pop(deframer):
        raise ZeroDivisionError
    deframer.discard()


def test_wiping() -> None:
    """Nothing is left, and it can be used again."""
    deframer = Deframer(MAX_RECORD)
    feed(deframer, record(b"s" * 100) * 2)
    pop(deframer).release()
    deframer.wipe()
    assert (deframer.buffered, deframer.pop(), deframer.whole_record()) == (0, None, False)
    assert not any(deframer.buffer)
    feed(deframer, record(b"t" * 100))
    assert pop_all(deframer) == [b"t" * 100]


@pytest.mark.parametrize("size", [-1, 0, MAX_RECORD - 1])
def test_it_holds_a_record(size: int) -> None:
    """The longest that a header may announce."""
    with pytest.raises(ValueError, match="at least 16645, one record"):
        Deframer(size)
