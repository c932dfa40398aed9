"""TLSReader and user memory: memory that faults, holes, and a guest that writes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW, one
from safemem import Block, BlockSeq, HostFaultError
from safemem.tls import KeyExpiredError, NewSessionTicket, RecordKeys, TLSError, TLSReader, engine
from safemem.tls.engines.engine import Engine, Opener, Sealer
from safemem.tls.record import HEADER
from sample_blocks import room
from tls_wire import ENGINES, KEYS, Script, Sender, flat, read, read_all, ticket
from usermem import AddressSpace, FaultError
from usermem.testing.faulty_memory import Fault, FaultyMemory
from usermem.testing.operations import pattern

Release = Literal["verified", "direct"]
RELEASES: list[Release] = ["verified", "direct"]
FAULTS: list[Fault] = ["segv", "bus"]
every_release = pytest.mark.parametrize("release", RELEASES)

SIZES = [3, 1, 20, 0, 9, 2]
STREAM = pattern(sum(SIZES))


def wire() -> bytes:
    """STREAM in records, with a ticket, padding and close_notify."""
    peer = Sender()
    parts = []
    at = 0
    for i, size in enumerate(SIZES):
        parts.append(peer.data(STREAM[at : at + size], 5 * (i == 2)) + (peer.handshake(ticket()) if i == 1 else b""))
        at += size
    return b"".join([*parts, peer.close()])


@every_release
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_fault_loses_nothing(before: int, fault: Fault, release: Release) -> None:
    """Wherever memory faults, behind good blocks or at once: an exact count, and the rest comes next."""
    for k in range(len(STREAM) - before):
        reader = TLSReader(Script(wire()), KEYS, release=release)
        memory = FaultyMemory(fault)
        dsts = room(before)
        blocks = BlockSeq([*dsts, memory.block(100, k), Block(bytearray(b"\xee" * 10))])
        with pytest.raises(HostFaultError) as caught:
            reader.read_to_blocks(blocks)
        assert caught.value.transferred == before + k
        assert (caught.value.address, dsts.tobytes() + memory.before_edge(k)) == (memory.edge, STREAM[: before + k])
        assert list(blocks)[-1].tobytes() == b"\xee" * 10
        assert read_all(reader) == (STREAM[before + k :], None)


def test_a_fault_after_several_receives() -> None:
    """The count is that of all of them."""
    peer = Sender()
    parts = [peer.data(STREAM[at : at + 6]) for at in range(0, 30, 6)]
    memory = FaultyMemory("segv")
    reader = TLSReader(Script(*parts), KEYS)
    dsts = room(8)
    with pytest.raises(HostFaultError) as caught:
        reader.read_at_least(BlockSeq([*dsts, memory.block(100, 9)]), 50)
    assert caught.value.transferred == 17
    assert dsts.tobytes() + memory.before_edge(9) == STREAM[:17]
    assert read(reader, 100) == STREAM[17:18]


@every_release
@pytest.mark.parametrize("name", ENGINES)
def test_holes_in_user_memory(name: str, release: Release) -> None:
    """As a guest's read() sees it: the bytes before the hole, and a fault; the rest comes to where there is room."""
    space = AddressSpace()
    space.mmap(BASE, PAGE, RW, FIXED)
    space.mmap(BASE + 2 * PAGE, PAGE, RW, FIXED)
    for k in range(1, len(STREAM)):
        reader = TLSReader(Script(wire()), KEYS, release=release, engine_name=name)
        with pytest.raises(FaultError) as caught:
            space.copy_out_from(one(BASE + PAGE - k, 1000), reader)
        assert (caught.value.address, caught.value.transferred) == (BASE + PAGE, k)
        assert space.read_bytes(BASE + PAGE - k, k) == STREAM[:k]
        assert space.copy_out_from(one(BASE + 2 * PAGE, 1000), reader) == len(STREAM) - k
        assert space.read_bytes(BASE + 2 * PAGE, len(STREAM) - k) == STREAM[k:]
        assert space.copy_out_from(one(BASE, 100), reader) == 0


def test_nothing_accessible_receives_nothing() -> None:
    """The reader is not asked."""
    source = Script(wire())
    with pytest.raises(FaultError):
        AddressSpace().copy_out_from(one(BASE, 10), TLSReader(source, KEYS))
    assert source.receives == 0


class Meddled:
    """An engine with a guest behind it, who writes to its memory as soon as something was decrypted there."""

    name = "meddled"

    def __init__(self, guest: Callable[[], None]) -> None:
        self._guest = guest
        self._right = engine(ENGINES[0])

    def version(self) -> str:
        """See engine.Engine."""
        return self._right.version()

    def opener(self, keys: RecordKeys, buffer: memoryview) -> Opener:
        """See engine.Engine."""
        opener = self._right.opener(keys, buffer)
        right = opener.open

        def meddled(*args: Any) -> bool:
            authentic = right(*args)
            self._guest()
            return authentic

        opener.open = meddled
        return opener

    def sealer(self, keys: RecordKeys, buffer: memoryview) -> Sealer:
        """See engine.Engine."""
        return self._right.sealer(keys, buffer)


def meddled_reader(
    monkeypatch: pytest.MonkeyPatch, wire: bytes, memory: bytearray, fill: bytes, tickets: list[NewSessionTicket]
) -> TLSReader:
    """A reader in direct mode over a guest that fills its memory again and again."""

    def guest() -> None:
        memory[:] = (fill * len(memory))[: len(memory)]

    meddled: Engine = Meddled(guest)
    monkeypatch.setattr("safemem.tls.reader.engine", lambda name: meddled)
    return TLSReader(Script(wire), KEYS.record_keys(), release="direct", on_ticket=tickets.append)


FORGED = {
    "close_notify": b"\x15\x01\x00",
    "a key update": b"\x18\0\0\x01\x01\x16",
    "a ticket": ticket(b"forged") + b"\x16",
    "a handshake message": b"\x16",
    "an alert": b"\x15",
    "padding": b"\0",
    "padding behind a handshake message": b"\x00\x16",
}


@pytest.mark.parametrize("fill", FORGED.values(), ids=FORGED)
def test_a_guest_cannot_forge_messages(fill: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it writes over data while that is looked at, it stays data: no ticket, no key update, no end."""
    memory = bytearray(b"\xee" * 4096)
    tickets: list[NewSessionTicket] = []
    for shift in range(len(fill)):
        peer = Sender()
        data = flat([[peer.data(pattern(50 + i)) for i in range(8)], [peer.handshake(ticket(b"right")), peer.close()]])
        turned = fill[shift:] + fill[:shift]
        reader = meddled_reader(monkeypatch, data, memory, turned, tickets)
        n = 0
        while part := reader.read_to_blocks(BlockSeq.of(Block(memory))):
            n += part
        assert n == sum(50 + i for i in range(8))
        assert reader.eof
        assert {one.ticket for one in tickets} == {b"right"}


def test_a_guest_cannot_change_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tickets and key updates are those that were authentic, whatever the guest writes over them."""
    memory = bytearray(b"\xee" * 4096)
    tickets: list[NewSessionTicket] = []
    peer = Sender()
    wire = peer.handshake(ticket(b"right" * 9)) + peer.data(b"data") + peer.key_update()
    reader = meddled_reader(monkeypatch, wire, memory, b"\x16", tickets)
    assert reader.read_to_blocks(BlockSeq.of(Block(memory))) == 4
    with pytest.raises(KeyExpiredError):
        reader.read_to_blocks(BlockSeq.of(Block(memory)))
    assert [one.ticket for one in tickets] == [b"right" * 9]


def test_a_guest_cannot_write_what_was_verified() -> None:
    """In verified mode nothing is decrypted in user memory, not even a record that is not authentic."""
    for flip in (0, 1):
        touched: list[bytes] = []
        memory = bytearray(b"\xee" * 100)
        wire = bytearray(Sender().data(b"plaintext"))
        wire[-1] ^= flip
        reader = TLSReader(Script(bytes(wire)), KEYS)
        right = reader._layer._opener.open

        def watched(
            *args: object,
            right: Callable[..., bool] = right,
            touched: list[bytes] = touched,
            memory: bytearray = memory,
        ) -> bool:
            authentic = right(*args)
            touched.append(bytes(memory))
            return authentic

        reader._layer._opener.open = watched
        if flip:
            with pytest.raises(TLSError):
                reader.read_to_blocks(BlockSeq.of(Block(memory)))
        else:
            assert reader.read_to_blocks(BlockSeq.of(Block(memory))) == 9
        assert touched == [b"\xee" * 100]
        assert memory.startswith(b"\xee" if flip else b"plaintext\xee")


def test_failed_records_leave_no_plaintext() -> None:
    """Nor do the keys stay: OpenSSL decrypts before it knows."""
    for release in RELEASES:
        wire = bytearray(Sender().data(b"secret plaintext"))
        wire[-1] ^= 1
        reader = TLSReader(Script(bytes(wire)), KEYS, release=release)
        dsts = room(100)
        with pytest.raises(TLSError):
            reader.read_to_blocks(dsts)
        assert not any(reader._deframer.buffer[HEADER : len(wire)])
        assert not dsts.tobytes().strip(b"\0\xee")
        assert reader._layer._keys is None
