"""Deframer and RecordLayer without a reader: records of the standard library's ssl, pushed in; and read_once."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from safemem import Block, BlockCursor
from safemem.tls import (
    SUITES,
    Alert,
    Deframer,
    RecordLayer,
    TLSError,
    TLSReader,
    TrafficSecret,
    any_length,
    engine,
)
from safemem.tls.record import MAX_CONTENT, MAX_RECORD
from sample_blocks import room
from tls_peers import client_context, plain_server
from tls_records import ALERT, CLOSE_NOTIFY, DATA, HANDSHAKE, KEY_UPDATE, SECRET, Record, Source, sealed, sealed_all
from tls_ssl_objects import VERSIONS, in_memory


def layer(size: int = MAX_RECORD) -> tuple[Deframer, RecordLayer]:
    """Both, for the records of the tests' secret."""
    deframer = Deframer(size)
    return deframer, RecordLayer(engine(), deframer, SECRET)


def decrypt_all(deframer: Deframer, records: RecordLayer) -> list[tuple[int, bytes]]:
    """The type and content of each whole record, and what is left moved to the front."""
    found = []
    while (record := deframer.pop()) is not None:
        with record:
            kind, content = records.decrypt(record)
            found.append((kind, bytes(content)))
        with pytest.raises(ValueError, match="released"):
            content.tobytes()
    deframer.discard()
    return found


def test_a_connection_of_the_standard_library(tmp_path: Path) -> None:
    """A handshake's records with their types on the wire, and then data, under the secret that was logged."""
    context = client_context(keylog_filename=str(tmp_path / "keys"), minimum_version=ssl.TLSVersion.TLSv1_3)
    server_in, server_out, client_in, client_out = (ssl.MemoryBIO() for _ in range(4))
    server = plain_server().wrap_bio(server_in, server_out, server_side=True)
    client = context.wrap_bio(client_in, client_out, server_hostname="localhost")
    deframer = Deframer(1 << 16, body_length=any_length)
    kinds = []
    for _ in range(3):
        with suppress(ssl.SSLWantReadError):
            client.do_handshake()
        server_in.write(client_out.read())
        with suppress(ssl.SSLWantReadError):
            server.do_handshake()
        wire = server_out.read()
        client_in.write(wire)
        assert deframer.push(wire) == len(wire)
        while (record := deframer.pop()) is not None:
            with record:
                kinds.append(record.kind)
                assert record.kind != HANDSHAKE or bytes(record.take(1) or b"") == b"\x02"  # ServerHello
        deframer.discard()
    assert kinds[:2] == [22, 20]
    assert set(kinds[2:]) == {23}
    cipher = server.cipher()
    assert cipher is not None
    (secret,) = [
        bytes.fromhex(line.split()[2])
        for line in (tmp_path / "keys").read_text().splitlines()
        if line.startswith("SERVER_TRAFFIC_SECRET_0")
    ]
    tickets = 2  # which OpenSSL sends behind the handshake
    deframer = Deframer(1 << 16)
    records = RecordLayer(engine(), deframer, TrafficSecret(SUITES[cipher[0]], secret, seq=tickets))
    found = []
    for content in (b"hello", bytes(20_000), b"bye"):
        server.write(content)
        deframer.push(server_out.read())
        found += decrypt_all(deframer, records)
    with suppress(ssl.SSLWantReadError):
        server.unwrap()
    deframer.push(server_out.read())
    expected = [(DATA, b"hello"), (DATA, bytes(MAX_CONTENT)), (DATA, bytes(20_000 - MAX_CONTENT)), (DATA, b"bye")]
    assert found + decrypt_all(deframer, records) == [*expected, (ALERT, CLOSE_NOTIFY)]


def test_records_in_pieces_and_new_keys() -> None:
    """However little is pushed; padding is taken off; after a key update the caller goes on with the next keys."""
    made = [Record(DATA, b"ab", 7), Record(HANDSHAKE, KEY_UPDATE), Record(99, b""), Record(DATA, b"")]
    deframer, records = layer()
    found = []
    for byte in sealed_all(*made):
        assert deframer.push(bytes([byte])) == 1
        found += decrypt_all(deframer, records)
        if found[-1:] == [(HANDSHAKE, KEY_UPDATE)] and records.seq == 2:
            assert records.update()
    assert found == [(record.kind, record.content) for record in made]


def test_a_push_that_does_not_fit() -> None:
    """It takes what there is space for, and says how much; a discard makes space."""
    contents = [bytes([i]) * 16_000 for i in range(3)]
    wire = memoryview(sealed_all(*(Record(DATA, content) for content in contents)))
    deframer, records = layer(20_000)
    found = []
    while wire:
        n = deframer.push(wire)
        assert n == min(len(wire), len(deframer.buffer) - deframer.buffered + n)
        assert deframer.push(wire[n:]) == 0
        wire = wire[n:]
        found += [content for _, content in decrypt_all(deframer, records)]
    assert found == contents


def test_a_record_that_is_not_authentic() -> None:
    """bad_record_mac, and nothing of it is left; one without a type is unexpected_message."""
    wire = bytearray(sealed(Record(DATA, b"secret"), SECRET.record_keys()))
    wire[-1] ^= 1
    deframer, records = layer()
    deframer.push(wire)
    record = deframer.pop()
    assert record is not None
    with record, pytest.raises(TLSError) as caught:
        records.decrypt(record)
    assert caught.value.alert is Alert.BAD_RECORD_MAC
    assert not any(deframer.buffer[5 : 5 + len(wire) - 5])
    deframer, records = layer()
    deframer.push(sealed(Record(0, b"", 3), SECRET.record_keys()))
    record = deframer.pop()
    assert record is not None
    with record, pytest.raises(TLSError) as caught:
        records.decrypt(record)
    assert caught.value.alert is Alert.UNEXPECTED_MESSAGE


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        (b"\x16\x03\x01\x40\x00", MAX_CONTENT),
        (b"\x16\x03\x01\x40\x01", Alert.RECORD_OVERFLOW),
        (b"\x17\x03\x03\x41\x00", MAX_CONTENT + 256),
        (b"\x17\x03\x03\x41\x01", Alert.RECORD_OVERFLOW),
        (b"\x17\x03\x03\x00\x00", 0),
        (b"\x15\x03\x03\x00\x02", 2),
        (b"\x14\x03\x03\x00\x01", 1),
        (b"\x18\x03\x03\x00\x01", Alert.UNEXPECTED_MESSAGE),
        (b"HTTP/", Alert.UNEXPECTED_MESSAGE),
    ],
)
def test_headers_of_any_type(header: bytes, answer: int | Alert) -> None:
    """RFC 8446 sections 5.1 and 5.2: each type's limit, and types that TLS does not have."""
    if not isinstance(answer, Alert):
        assert any_length(header) == answer
        return
    deframer = Deframer(MAX_RECORD, header, body_length=any_length)
    with pytest.raises(TLSError) as caught:
        deframer.pop()
    assert caught.value.alert is answer


def test_a_read_only_cursor() -> None:
    """It takes read-only memory, and its views cannot be written, whatever the memory is."""
    for memory in (b"abcdef", bytearray(b"abcdef")):
        cursor = BlockCursor(Block(memory), readonly=True)
        first, second = cursor.take(2), cursor.take(4)
        assert [bytes(view or b"") for view in (first, second, cursor.take(1))] == [b"ab", b"cdef", b""]
        assert cursor.left == 0
        assert first is not None
        with pytest.raises(TypeError, match="read-only"):
            first[:1] = b"x"


def test_one_receive_a_call() -> None:
    """Nothing may come of it, which is not the end; there is none while something is at hand."""
    wire = sealed_all(
        Record(DATA, b"abc"), Record(HANDSHAKE, KEY_UPDATE), Record(DATA, b"def"), Record(ALERT, CLOSE_NOTIFY)
    )
    first = len(sealed(Record(DATA, b"abc"), SECRET.record_keys()))
    source = Source(wire[:3], wire[3:first], wire[first : first + 27], BlockingIOError(), wire[first + 27 :])
    reader = TLSReader(source, SECRET)
    assert (reader.read_once(room(9)), source.calls, reader.eof) == (0, 1, False)
    assert (reader.read_once(room(2)), source.calls) == (2, 2)
    assert (reader.read_once(room(2)), source.calls) == (1, 2)
    assert (reader.read_once(room(2)), source.calls, reader.eof) == (0, 3, False)
    with pytest.raises(BlockingIOError):
        reader.read_once(room(9))
    assert (reader.read_once(room(9)), source.calls) == (3, 5)
    assert [(reader.read_once(room(9)), reader.eof) for _ in range(2)] == [(0, True)] * 2
    assert source.calls == 5


@pytest.mark.parametrize("version", VERSIONS)
def test_one_receive_a_call_of_ssl_objects(version: ssl.TLSVersion) -> None:
    """The same."""
    source, reader, _ = in_memory(version)
    wire = source.feed(b"abcdef")
    source.parts = [wire[:7], wire[7:]]
    before = source.calls
    assert (reader.read_once(room(9)), source.calls - before, reader.eof) == (0, 1, False)
    assert (reader.read_once(room(4)), source.calls - before) == (4, 2)
    assert (reader.read_once(room(4)), source.calls - before) == (2, 2)


def test_a_few_receives() -> None:
    """read_at_least stops at as many as it may make."""
    wire = sealed_all(*(Record(DATA, b"abc") for _ in range(4)))
    size = len(wire) // 4
    source = Source(*(wire[at : at + size] for at in range(0, len(wire), size)))
    reader = TLSReader(source, SECRET)
    assert reader.read_at_least(room(20), 9, receives=0) == 0
    assert reader.read_at_least(room(20), 9, receives=2) == 6
    assert reader.read_at_least(room(20), 6, receives=2) == 6
    assert source.calls == 4
