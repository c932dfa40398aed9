"""TLSReader into pieces smaller than a record: records are opened ahead, and nobody can tell."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemem import Block, BlockSeq
from safemem.tls import ReceivedAlertError, TLSError, TLSReader
from sample_blocks import room
from tls_wire import KEYS, Script, Sender, cut, ticket
from usermem.testing.faulty_memory import FaultyMemory

Release = Literal["verified", "direct"]
every_release = pytest.mark.parametrize("release", ["verified", "direct"])
KINDS = ["data", "data", "data", "padded", "empty", "ticket", "update"]


def wire_of(kinds: list[str], sizes: list[int]) -> tuple[bytes, bytes]:
    """The records of these kinds, and their data."""
    peer, wire, data = Sender(), b"", b""
    for number, (kind, size) in enumerate(zip(kinds, sizes, strict=False)):
        content = bytes([number + 1]) * size
        if kind == "ticket":
            wire += peer.handshake(ticket(bytes([number + 1])))
        elif kind == "update":
            wire += peer.key_update()
        elif kind == "empty":
            wire += peer.data()
        else:
            data += content
            wire += peer.data(content, 5 if kind == "padded" else 0)
    return wire + peer.close(), data


@given(
    kinds=st.lists(st.sampled_from(KINDS), max_size=12),
    sizes=st.lists(st.sampled_from([1, 2, 40, 40, 40, 41]), min_size=12, max_size=12),
    places=st.lists(st.integers(0, 900), max_size=4),
    reads=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6), min_size=1, max_size=4),
    least=st.sampled_from([1, 10, 1000]),
    release=st.sampled_from(["verified", "direct"]),
)
def test_any_pieces(
    kinds: list[str], sizes: list[int], places: list[int], reads: list[list[int]], least: int, release: Release
) -> None:
    """The same data and the same events, in order, whatever the pieces, and then the end."""
    wire, data = wire_of(kinds, sizes)
    events: list[str] = []
    reader = TLSReader(
        Script(*cut(wire, places)),
        KEYS,
        release=release,
        on_ticket=lambda _: events.append("ticket"),
        on_key_update=lambda _: events.append("update"),
    )
    found = b""
    for number in range(2000):
        dsts = room(*reads[number % len(reads)])
        n = reader.read_at_least(dsts, least)
        assert dsts.tobytes()[n:] == b"\xee" * (dsts.num_bytes - n) or release == "direct"
        found += dsts.tobytes()[:n]
        if not n:
            break
    assert (found, reader.eof) == (data, True)
    assert events == [kind for kind in kinds[: len(sizes)] if kind in ("ticket", "update")]


@every_release
@pytest.mark.parametrize("wrong", ["header", "record", "alert"])
@pytest.mark.parametrize("pieces", [2, 10, 20])
def test_data_before_an_error_comes_first(wrong: str, release: Release, pieces: int) -> None:
    """All of it, in however many reads, and has_pending says so."""
    peer = Sender()
    wire = b"".join(peer.data(bytes([i]) * 100) for i in range(5))
    wire += {"header": b"HTTP/", "record": b"\x17\x03\x03\x00\x20" + bytes(32), "alert": peer.alert(40)}[wrong]
    source = Script(wire)
    reader = TLSReader(source, KEYS, release=release)
    found = b""
    while len(found) < 500:
        dsts = room(*[50] * pieces)
        n = reader.read_to_blocks(dsts)
        assert n
        assert reader.has_pending()
        found += dsts.tobytes()[:n]
    assert found == b"".join(bytes([i]) * 100 for i in range(5))
    assert source.receives == 1
    for _ in range(2):
        with pytest.raises(ReceivedAlertError if wrong == "alert" else TLSError):
            reader.read_to_blocks(room(30, 30))


@every_release
def test_what_was_opened_ahead_is_not_lost_by_a_fault(release: Release) -> None:
    """The next read goes on from there, over the record that follows too."""
    peer = Sender()
    wire = peer.data(b"a" * 100) + peer.data(b"b" * 100) + peer.data(b"c" * 50, 9) + peer.data(b"d" * 100)
    reader = TLSReader(Script(wire), KEYS, release=release)
    assert reader.read_to_blocks(room(60)) == 60
    memory = FaultyMemory("segv")
    with pytest.raises(OSError, match="Bad address") as caught:
        reader.read_to_blocks(BlockSeq([Block(bytearray(20)), *room(40), memory.block(50, 10), *room(90, 90)]))
    assert getattr(caught.value, "transferred", 0) == 70
    dsts = room(100, 150)
    assert reader.read_at_least(dsts, 220) == 220
    assert dsts.tobytes()[:220] == b"b" * 70 + b"c" * 50 + b"d" * 100


def test_no_more_is_opened_than_is_wanted() -> None:
    """A record that is wanted whole later still goes straight there, and keys are used no sooner than they must be."""
    peer = Sender()
    wire = b"".join(peer.data(bytes([i]) * 100) for i in range(10))
    reader = TLSReader(Script(wire), KEYS)
    assert reader.read_to_blocks(room(100)) == 100
    assert reader.read_to_blocks(room(30, 30, 30, 30)) == 120
    assert reader.pending() == 80
    assert reader._layer.seq == 3
