"""Each of the planted bugs is found by one of the observers, within seconds; none of them fires at the right twin."""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, given, settings

import planted_bugs as bugs
from hostarch import AccessType, AddrRange, AddrRangeSeq, mman
from usermem import AddressSpace, copy_out_iovecs, copy_uint32_out
from usermem.observe import DoubleFetchDetector, Fault, FaultPlan, FaultyIO, FindingKind, Race, RacingIO, TracingIO
from usermem.testing import strategies as guests

PAGE = 4096
BASE = 0x10000
TABLE, NAME, DATA, LENGTH, OTHER = BASE + 0x100, BASE + 0x200, BASE + PAGE, BASE + 0x300, BASE + 0x340
PARTS = (10, 0, 20)  # the guest's iovecs at DATA
WHOLE = sum(PARTS)
Handler = Callable[..., int]


def guest() -> AddressSpace:
    """Two pages, a msghdr at BASE, a table of iovecs, a path at NAME, a length at LENGTH."""
    space = AddressSpace()
    flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
    space.mmap(BASE, 2 * PAGE, mman.PROT_READ | mman.PROT_WRITE, flags)
    starts = [DATA + 100 * i for i in range(len(PARTS))]
    ars = AddrRangeSeq([AddrRange(at, at + n) for at, n in zip(starts, PARTS, strict=True)])
    copy_out_iovecs(space, TABLE, ars)
    bugs.put_msghdr(space, BASE, NAME, 16, TABLE, len(PARTS))
    space.copy_out(NAME, b"/etc/hosts".ljust(70, b"/") + b"\0")
    copy_uint32_out(space, LENGTH, 16)
    return space


def content(space: AddressSpace) -> bytes:
    """All of the guest's memory."""
    return space.read_bytes(BASE, 2 * PAGE)


# --- what the detector finds in one call

Arguments = Callable[[], tuple[Any, ...]]

DETECTED: dict[str, tuple[Handler, Handler, Arguments, FindingKind, int]] = {
    "a header fetched twice": (
        bugs.recvmsg_header_fetched_twice,
        bugs.recvmsg,
        lambda: (BASE, b"data" * 10),
        FindingKind.DOUBLE_FETCH,
        BASE + bugs.NAMELEN,
    ),
    "a length checked twice": (
        bugs.getsockname_length_checked_twice,
        bugs.getsockname,
        lambda: (NAME, LENGTH),
        FindingKind.DOUBLE_FETCH,
        LENGTH,
    ),
    "a string read twice": (
        bugs.access_string_read_twice,
        bugs.access,
        lambda: (NAME,),
        FindingKind.DOUBLE_FETCH,
        NAME,
    ),
    "a table of iovecs read again": (
        bugs.writev_table_read_twice,
        bugs.writev,
        lambda: (io.BytesIO(), TABLE, len(PARTS)),
        FindingKind.DOUBLE_FETCH,
        TABLE,
    ),
    "a fetch after the guest's memory was written": (
        bugs.sigprocmask_fetches_late,
        bugs.sigprocmask,
        lambda: (LENGTH, OTHER),
        FindingKind.LATE_FETCH,
        LENGTH,
    ),
    "a fetch after a message was sent": (
        bugs.sendto_sends_first,
        bugs.sendto,
        lambda: ([], NAME),
        FindingKind.LATE_FETCH,
        NAME,
    ),
    "kernel bytes leaked": (bugs.uname_leaks, bugs.uname, lambda: (DATA,), FindingKind.LEAK, DATA + 6),
    "a write past what was asked": (
        bugs.getcwd_writes_past,
        bugs.getcwd,
        lambda: (DATA, 8),
        FindingKind.STRAY_WRITE,
        DATA + 8,
    ),
}


def detected(handler: Handler, args: tuple[Any, ...], writes: AddrRangeSeq | None) -> DoubleFetchDetector:
    """One call under the detector."""
    detector = DoubleFetchDetector(guest())
    with detector.call(handler.__name__, writes=writes) as call:
        call.result = bugs.run(handler, detector, *args)
    return detector


@pytest.mark.parametrize("name", DETECTED)
def test_the_detector_finds_it_in_the_first_call(name: str) -> None:
    """The kind, the bytes and the place; nothing at the right twin."""
    wrong, right, arguments, kind, addr = DETECTED[name]
    writes = AddrRangeSeq([AddrRange(DATA, DATA + 8)]) if kind is FindingKind.STRAY_WRITE else None
    found = detected(wrong, arguments(), writes).findings
    assert {finding.kind for finding in found} == {kind}
    assert found[0].range.start == addr
    assert found[0].call == wrong.__name__
    file, _, function = found[0].place.lines[0]
    assert (file, function) == (bugs.__file__, wrong.__name__)
    assert not detected(right, arguments(), writes).findings


# --- a double fetch becomes a wrong result


def raced(handler: Handler, races: list[Race]) -> tuple[int, bytes, list[tuple[int, int, int]]]:
    """One call under races: its result, the memory after it, and what was changed."""
    space = guest()
    racing = RacingIO(space, races)
    with racing.call("recvmsg"):
        result = bugs.run(handler, racing, BASE, b"data" * 10)
    return result, content(space), list(racing.raced)


def in_turn(handler: Handler, changes: list[tuple[int, int, int]]) -> list[tuple[int, bytes]]:
    """What the call may give: the changes come all before it, or all after it."""
    outcomes = []
    for before in (True, False):
        space = guest()
        for change in (before, not before):
            if change:
                for addr, _, value in changes:
                    space.copy_out(addr, bytes([value]))
            else:
                result = bugs.run(handler, space, BASE, b"data" * 10)
        outcomes.append((result, content(space)))
    return outcomes


def test_a_race_turns_a_double_fetch_into_a_wrong_result() -> None:
    """The guest gets the kernel's secret. The race that does it is shrunk, and its repr replays it."""
    smallest: list[list[Race]] = []

    @given(guests.races())
    @settings(database=None, derandomize=True, max_examples=200)
    def never_wrong(races: list[Race]) -> None:
        result, memory, changes = raced(bugs.recvmsg_header_fetched_twice, races)
        smallest[:] = [races] if (result, memory) not in in_turn(bugs.recvmsg, changes) else smallest
        assert (result, memory) in in_turn(bugs.recvmsg, changes)

    started = time.monotonic()
    with pytest.raises(AssertionError):
        never_wrong()
    assert time.monotonic() - started < 10
    (races,) = smallest
    assert len(races) == 1 and races[0].refetch == 0
    replayed = raced(bugs.recvmsg_header_fetched_twice, eval(repr(races)))
    assert bugs.SECRET[:1] in replayed[1] and replayed[2]


@given(guests.races(max_races=4))
@settings(max_examples=100)
def test_races_do_nothing_to_the_right_twin(races: list[Race]) -> None:
    """It fetches no byte twice, so that none is changed."""
    result, memory, changes = raced(bugs.recvmsg, races)
    assert not changes
    assert [(result, memory)] * 2 == in_turn(bugs.recvmsg, [])


# --- what faults and a trace find

READ_BUGS = {
    "the count forgotten": bugs.readv_forgets_the_count,
    "a fault swallowed": bugs.readv_swallows_the_fault,
    "bytes lost behind a fault": bugs.readv_loses_bytes,
    "started again from the beginning": bugs.readv_starts_again,
}


def check_read(handler: Handler, plan: FaultPlan) -> None:
    """The result is what was stored in the guest's memory, and what is gone from the file. Raises AssertionError."""
    trace = TracingIO(guest())
    memory = FaultyIO(trace, plan)
    file = io.BytesIO(bytes(range(1, 100)))
    with memory.call("readv") as call:
        call.result = bugs.run(handler, memory, file, TABLE, len(PARTS))
    stored = sum(access.moved for access in trace.accesses_of(call) if access.access.write)
    assert max(call.result, 0) == stored == file.tell(), trace.line(call)


def check_write(handler: Handler, plan: FaultPlan) -> None:
    """The result is what came to the file. Raises AssertionError."""
    memory = FaultyIO(guest(), plan)
    file = io.BytesIO()
    result = bugs.run(handler, memory, file, TABLE, len(PARTS))
    assert max(result, 0) == file.tell()


def fails(check: Callable[[Handler, FaultPlan], None], handler: Handler) -> bool:
    """Whether plans are found with which the check fails, within 10 s."""
    places = (DATA, DATA + PARTS[0], DATA + 200, DATA + 200 + PARTS[2])

    @given(guests.fault_plans(max_accesses=4, most=WHOLE, near=places))
    @settings(database=None, derandomize=True, max_examples=300, phases=[Phase.generate])
    def never(plan: FaultPlan) -> None:
        check(handler, plan)

    started = time.monotonic()
    try:
        never()
    except AssertionError:
        assert time.monotonic() - started < 10
        return True
    return False


@pytest.mark.parametrize("name", READ_BUGS)
def test_faults_find_it(name: str) -> None:
    """By a plan with which count, memory and file do not agree."""
    assert fails(check_read, READ_BUGS[name])


def test_faults_find_a_lost_count() -> None:
    """The file has bytes of which the guest hears nothing."""
    assert fails(check_write, bugs.writev_loses_the_count)


def test_faults_find_nothing_at_the_right_twins() -> None:
    """Whatever the plan."""
    assert not fails(check_read, bugs.readv)
    assert not fails(check_write, bugs.writev)


@pytest.mark.parametrize(("handler", "wrong"), [(bugs.getrandom_copies_before_check, True), (bugs.getrandom, False)])
def test_a_trace_finds_a_copy_before_the_check(handler: Handler, wrong: bool) -> None:
    """A call that fails has stored nothing."""
    trace = TracingIO(guest())
    with trace.call("getrandom", DATA, 8, 0x80) as call:
        call.result = bugs.run(handler, trace, DATA, 8, 0x80)
    assert call.result == -errno.EINVAL
    assert any(access.access.write for access in trace.accesses_of(call)) == wrong
    assert trace.line(call).startswith("getrandom(0x11000, 8, 128) = -1 EINVAL (Invalid argument)")
    assert ("out 0x11000+8" in trace.line(call)) == wrong


def test_a_transient_fault_that_is_healed_is_no_fault() -> None:
    """A pager brings the page in; the right handler never knows."""
    memory = FaultyIO(guest(), FaultPlan(faults=(Fault(addr=DATA, length=PAGE),)))
    asked: list[int] = []

    def page_in(addr: int, access: AccessType) -> bool:
        asked.append(addr)
        return True

    memory.on_fault = page_in
    assert bugs.run(bugs.readv, memory, io.BytesIO(bytes(99)), TABLE, len(PARTS)) == WHOLE
    assert asked == [DATA] and not memory.injected
