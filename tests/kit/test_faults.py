"""FaultyIO: the faults of a plan, exactly where it says, with everything that a real fault leaves and says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import MIPS, READ, READ_WRITE, WRITE, AccessType, AddrRange, AddrRangeSeq
from safemem import Block, BlockSeq, BlockSeqReader, BlockSeqWriter
from usermem import BytesIO, FaultError, FaultReason, copy_in_vec, copy_string_in
from usermem.observe import FaultPlan, FaultyIO
from usermem.testing import ModelBytes
from usermem.testing import strategies as guests
from usermem.testing.operations import CopyOut, describe, outcome, pattern

BYTES = pattern(64)
Call = Callable[[FaultyIO], int]


def faulty(*steps: int | None) -> FaultyIO:
    """64 bytes with a plan."""
    return FaultyIO(BytesIO(bytearray(BYTES)), FaultPlan(steps))


def ranges(*pairs: tuple[int, int]) -> AddrRangeSeq:
    """(addr, length) each."""
    return AddrRangeSeq([AddrRange(addr, addr + n) for addr, n in pairs])


def test_a_plan_is_followed_access_by_access() -> None:
    """None passes, a number faults there, and what comes after the plan passes."""
    io = faulty(None, 3, None)
    dst = bytearray(8)
    assert io.copy_in(8, dst) == 8
    with pytest.raises(FaultError) as caught:
        io.copy_in(8, dst)
    assert describe(caught.value) == "FaultError at 0xb after 3 bytes (r--, injected)"
    assert caught.value.reason is FaultReason.INJECTED
    assert io.copy_in(8, dst) == io.copy_in(8, dst) == 8
    assert [describe(fault) for fault in io.injected] == [describe(caught.value)]
    assert io.injected[0].__traceback__ is None  # which would keep the caller's buffers


@pytest.mark.parametrize("at", range(10))
def test_every_access_stops_where_it_should(at: int) -> None:
    """Bytes before the fault have arrived, none behind it; an access of no more bytes than the plan lets by passes."""
    ars = ranges((8, 3), (20, 0), (30, 5))
    dst = bytearray(8)
    calls: dict[AccessType, list[Call]] = {
        WRITE: [lambda io: io.copy_out(8, b"x" * 8), lambda io: io.zero_out(8, 8)],
        READ: [lambda io: io.copy_in(8, dst)],
    }
    for access, each in calls.items():
        for call in each:
            io = faulty(at)
            if at >= 8:
                assert call(io) == 8
                continue
            with pytest.raises(FaultError) as caught:
                call(io)
            fault = caught.value
            assert (fault.transferred, fault.address, fault.access) == (at, 8 + at, access)
            now = bytearray(64)
            io.copy_in(0, now)
            assert now[8 + at :] == BYTES[8 + at :]
            assert (now[8 : 8 + at] != BYTES[8 : 8 + at]) == (access is WRITE and at > 0)
    io = faulty(at, at)
    reader, writer = BlockSeqReader(BlockSeq.of(Block(b"x" * 99))), BlockSeqWriter(BlockSeq.of(Block(bytearray(99))))
    streams: list[Callable[[], int]] = [
        lambda: io.copy_out_from(ars, reader),
        lambda: io.copy_in_to(ars, writer),
    ]
    for stream in streams:
        if at >= 8:
            assert stream() == 8
            continue
        with pytest.raises(FaultError) as caught:
            stream()
        assert caught.value.transferred == at
        assert caught.value.address == (8 + at if at < 3 else 30 + at - 3)
    assert reader.blocks.num_bytes == writer.blocks.num_bytes == 99 - min(at, 8)


def test_atomics_fault_whatever_the_number() -> None:
    """Nothing is stored."""
    io = faulty(4, 0, 9)
    atomics: list[tuple[Callable[[], int], AccessType]] = [
        (lambda: io.swap_uint32(8, 1), READ_WRITE),
        (lambda: io.compare_and_swap_uint32(8, 1, 2), READ_WRITE),
        (lambda: io.load_uint32(8), READ),
    ]
    for atomic, access in atomics:
        with pytest.raises(FaultError) as caught:
            atomic()
        assert (caught.value.address, caught.value.transferred, caught.value.access) == (8, 0, access)
    assert io.load_uint32(8) == int.from_bytes(BYTES[8:12], "little")


def test_a_short_stream_does_not_reach_the_fault() -> None:
    """It stops before it: no fault, as before a hole; and a stream that fails keeps its own error."""
    io = faulty(6, 6)
    assert io.copy_out_from(ranges((0, 20)), BlockSeqReader(BlockSeq.of(Block(b"four")))) == 4
    assert io.injected == []


def test_the_memorys_own_fault_comes_first() -> None:
    """A plan never makes an access get further than it could."""
    calls: list[Call] = [
        lambda io: io.copy_in(60, bytearray(8)),
        lambda io: io.zero_out(60, 8),
        lambda io: io.copy_out_from(ranges((60, 8)), BlockSeqReader(BlockSeq.of(Block(b"x" * 8)))),
        lambda io: io.load_uint32(62),
    ]
    for call in calls:
        with pytest.raises(FaultError) as caught:
            call(faulty(6))
        assert caught.value.reason is FaultReason.UNMAPPED


def test_strings_and_vectors_meet_the_plan() -> None:
    """A FaultyIO has no quick ways past it, and belongs to the machine of what is inside."""
    with pytest.raises(FaultError) as caught:
        copy_string_in(faulty(5), 0, 60)
    assert caught.value.partial == BYTES[:5]
    with pytest.raises(FaultError) as caught:
        copy_in_vec(faulty(None, 1), ranges((0, 4), (8, 4)), bytearray(8))
    assert caught.value.transferred == 5
    assert FaultyIO(BytesIO(b"", MIPS), FaultPlan()).arch is MIPS


def test_bad_plans_and_counts() -> None:
    """They are told at once."""
    with pytest.raises(ValueError, match="steps"):
        FaultPlan((1, -1))
    with pytest.raises(TypeError, match="steps"):
        FaultPlan((1.5,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n must not be negative"):
        faulty(1).zero_out(0, -1)
    assert FaultPlan([None, 2]).steps == (None, 2)


@given(st.data())
def test_a_fault_is_a_cut(data: st.DataObject) -> None:
    """An access that faults leaves what the same access would, had it been asked for no more than came before."""
    plan = data.draw(guests.fault_plans(max_accesses=4, most=20))
    memory, model = bytearray(64), ModelBytes(bytes(64))
    io = FaultyIO(BytesIO(memory), plan)
    for _ in range(4):
        operation = data.draw(st.builds(CopyOut, guests.addresses(near=(0, 64)), guests.buffers(20)))
        before = len(io.injected)
        found = outcome(operation, io)
        done = operation
        if len(io.injected) > before:
            n = io.injected[-1].transferred
            assert found == f"FaultError at {operation.addr + n:#x} after {n} bytes (-w-, injected)"
            done = CopyOut(operation.addr, operation.src[:n], ignore_permissions=operation.ignore_permissions)
            assert outcome(done, model) == n
        else:
            assert found == outcome(done, model)
    assert memory == model.content(0, 64)
