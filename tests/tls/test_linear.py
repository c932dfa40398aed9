"""The cost of TLS grows with the bytes and blocks it moves, and with nothing else."""

from __future__ import annotations

import time

import pytest

from counting_list import CountingList
from safemem import Block, BlockSeq, write_full_from_blocks
from safemem.block import Piece
from safemem.tls import Deframer, SSLObjectWriter, TLSReader, TLSWriter
from tls_peers import peer, receive_all, tls_peer
from tls_records import DATA, SECRET, Record, Sink, Source, opened, sealed_all
from tls_ssl_objects import VERSIONS, in_memory, pair


def many_blocks(size: int, block: int) -> tuple[BlockSeq, CountingList[Piece]]:
    """``size`` bytes in blocks, and the list of them, which counts."""
    memory = memoryview(bytearray(bytes(range(256)) * (size // 256)))
    pieces: CountingList[Piece] = CountingList(memory[at : at + block] for at in range(0, size, block))
    return BlockSeq.unchecked(pieces, size), pieces


@pytest.mark.parametrize("buffer_size", [1 << 15, 1 << 16, 1 << 20])
@pytest.mark.parametrize("record_size", [100, 1000, 1 << 14])
def test_writing_many_blocks(buffer_size: int, record_size: int) -> None:
    """Each block is looked at a few times, whatever the buffer and the records."""
    srcs, pieces = many_blocks(1 << 18, 16)
    sink = Sink()
    writer = TLSWriter(sink, SECRET, record_size=record_size, buffer_size=buffer_size)
    assert write_full_from_blocks(writer, srcs) == 1 << 18
    assert pieces.reads.items <= 8 * len(pieces) + 16 * (1 << 18) // record_size
    assert [len(record.content) for record in opened(sink.got)[:-1]] == [record_size] * (
        -(-(1 << 18) // record_size) - 1
    )


def test_writing_many_blocks_by_ssl_objects() -> None:
    """They go as full records, and by few sends."""
    srcs, pieces = many_blocks(1 << 18, 16)
    _, reader, sink = in_memory(VERSIONS[1])
    assert SSLObjectWriter(reader._session).write_from_blocks(srcs) == 1 << 18
    assert pieces.reads.items <= 5 * len(pieces)
    assert len(sink.calls) == 2  # 256 KiB of records are more than that, with their headers
    assert len(sink.got) == (1 << 18) + 16 * 22
    with peer(tls_peer(receive_all)) as sock:
        _, writer = pair(sock)
        assert writer.write_from_blocks(many_blocks(1 << 18, 16)[0]) == 1 << 18
        writer.close_notify()


def test_what_a_gathered_record_holds() -> None:
    """Full records of a large block go from where they are; the rest of it is joined to what follows."""
    sizes = [3, 16384, 40000, 5, 1, 60000]
    srcs = BlockSeq(Block(bytes([i]) * size) for i, size in enumerate(sizes))
    _, reader, sink = in_memory(VERSIONS[1])
    assert SSLObjectWriter(reader._session).write_from_blocks(srcs) == sum(sizes)
    found, at = [], 0
    while at < len(sink.got):
        length = int.from_bytes(sink.got[at + 3 : at + 5], "big")
        found.append(length - 17)
        at += 5 + length
    assert found == [1 << 14] * (sum(sizes) // (1 << 14)) + [sum(sizes) % (1 << 14)]
    assert len(sink.calls) == 1


def test_reading_into_many_blocks_with_many_receives() -> None:
    """Each block is looked at a few times, however many receives the data takes."""
    size = 1 << 16
    wire = sealed_all(*(Record(DATA, bytes(1024)) for _ in range(size // 1024)))
    dsts, pieces = many_blocks(size, 16)
    reader = TLSReader(Source(*(wire[at : at + 400] for at in range(0, len(wire), 400))), SECRET)
    assert reader.read_at_least(dsts, size) == size
    assert pieces.reads.items <= 8 * len(pieces)


def test_giving_back_borrowed_records() -> None:
    """n records that are borrowed together cost n to give back, not n squared: 16 times as many 16 times as much."""

    def cost(n: int) -> int:
        deframer = Deframer(1 << 19, (b"\x17\x03\x03\x00\x10" + bytes(16)) * n)
        records = []
        while (record := deframer.pop()) is not None:
            records.append(record)
        assert len(records) == n
        started = time.thread_time_ns()
        for record in records:
            record.release()
        took = time.thread_time_ns() - started
        deframer.discard()
        return took

    assert min(cost(16_000) for _ in range(3)) < 60 * min(cost(1000) for _ in range(3))
