"""DoubleFetchDetector: what is a finding and what is none, places, allowances, leaks, and what it remembers."""

from __future__ import annotations

import _thread
import pickle
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from hostarch import ARM64, AddrRange, AddrRangeSeq, mman
from safemem import BlockSeq, WriterFunc
from usermem import (
    IO,
    AddressSpace,
    BytesIO,
    FaultError,
    copy_in_vector,
    copy_string_in,
    copy_struct_from_user,
    copy_utf16_in,
    copy_vector_out,
)
from usermem.observe import (
    DoubleFetchDetector,
    FaultPlan,
    FaultyIO,
    Finding,
    FindingKind,
    ObservedIO,
    SystemCall,
    TracingIO,
)
from usermem.observe.place import Place, here
from usermem.observe.poison import find_poison, poisoned

HERE = __file__


def ranges(*pairs: tuple[int, int]) -> AddrRangeSeq:
    """(addr, length) each."""
    return AddrRangeSeq([AddrRange(addr, addr + n) for addr, n in pairs])


def made(size: int = 256) -> DoubleFetchDetector:
    """Some bytes with a detector."""
    return DoubleFetchDetector(BytesIO(bytearray(size)))


def fetch(detector: IO, addr: int, n: int) -> None:
    """A copy in."""
    detector.copy_in(addr, bytearray(n))


def first_fetch(detector: DoubleFetchDetector) -> None:
    """A handler's part that checks."""
    fetch(detector, 8, 8)


def second_fetch(detector: DoubleFetchDetector) -> None:
    """A handler's part that uses."""
    fetch(detector, 12, 8)


def kinds(detector: DoubleFetchDetector) -> list[str]:
    """The kinds of its findings."""
    return [finding.kind.name for finding in detector.findings]


def test_both_places_and_the_bytes() -> None:
    """Of the bytes that overlap; the frames of the library are not shown."""
    detector = made()
    with detector.call("read"):
        first_fetch(detector)
        second_fetch(detector)
    (finding,) = detector.findings
    assert (finding.kind, finding.call, finding.range) == (FindingKind.DOUBLE_FETCH, "read", AddrRange(12, 16))
    assert finding.first is not None
    for place, part in ((finding.first, first_fetch), (finding.place, second_fetch)):
        assert [who for _, _, who in place.lines[:3]] == ["fetch", part.__name__, "test_both_places_and_the_bytes"]
        assert place.lines[0][0] == HERE
        assert place.lines[1][1] == part.__code__.co_firstlineno + 2
    first, then = str(finding).splitlines()[1:]
    assert first.startswith("  first  test_detector.py:") and "in first_fetch" in first
    assert then.startswith("  then   test_detector.py:") and "in second_fetch" in then


def test_calls_are_apart() -> None:
    """A byte may be fetched in each; outside of any nothing is looked at; one inside another is its own."""
    detector = made()
    for _ in range(2):
        with detector.call("read"):
            fetch(detector, 0, 8)
            with detector.call("inner"):
                fetch(detector, 0, 8)
    for _ in range(2):
        fetch(detector, 0, 8)
    assert not detector.findings


def test_one_access_fetches_a_byte_once() -> None:
    """Ranges that overlap are the guest's."""
    detector = made()
    with detector.call("writev"):
        detector.copy_in_to(ranges((0, 8), (4, 8)), WriterFunc(lambda srcs: srcs.num_bytes))
    assert not detector.findings


def test_only_what_moved_is_fetched() -> None:
    """A writer that would block has seen nothing that counts; one that stops short has what it took."""
    detector = made()

    def would_block(srcs: BlockSeq) -> int:
        raise BlockingIOError

    with detector.call("write"):
        with pytest.raises(BlockingIOError):
            detector.copy_in_to(ranges((0, 8)), WriterFunc(would_block))
        detector.copy_in_to(ranges((0, 8)), WriterFunc(lambda srcs: 4))
        detector.copy_in_to(ranges((4, 4)), WriterFunc(lambda srcs: 4))
        assert not detector.findings
        fetch(detector, 3, 1)
    assert kinds(detector) == ["DOUBLE_FETCH"]


def test_atomics_are_no_fetches() -> None:
    """A futex word is read again and again; a swap is an effect."""
    detector = made()
    with detector.call("futex"):
        fetch(detector, 0, 4)
        detector.load_uint32(0)
        detector.load_uint32(0)
        detector.compare_and_swap_uint32(4, 0, 1)
        detector.load_uint32(4)
        assert not detector.findings
        fetch(detector, 8, 4)
    assert kinds(detector) == ["LATE_FETCH"]


STACKS: dict[str, Callable[[IO], ObservedIO]] = {
    "alone": DoubleFetchDetector,
    "above": lambda io: DoubleFetchDetector(FaultyIO(TracingIO(io), FaultPlan())),
    "beneath": lambda io: TracingIO(FaultyIO(DoubleFetchDetector(io), FaultPlan())),
    "beneath a fault": lambda io: FaultyIO(DoubleFetchDetector(io), FaultPlan((5000,))),
}


@pytest.mark.parametrize("stack", STACKS)
def test_what_is_read_behind_a_string_is_not_fetched(stack: str) -> None:
    """Two strings and a struct that lie side by side, as in rename(2), in any stack; nor are pieces fetched twice."""
    guest = BytesIO(bytearray(1 << 14))
    guest.copy_out(0, b"x" * 5000 + b"\0" + b"other\0")
    io = STACKS[stack](guest)
    with io.call("rename") as call:
        assert len(copy_string_in(io, 0, 8000)) == 5000
        assert copy_string_in(io, 5001, 8000) == b"other"
        assert not any(copy_struct_from_user(io, 5007, 40, "QQ"))
        assert not found(call)
        fetch(io, 4999, 1)
        fetch(io, 5006, 1)
    assert [finding.range.start for finding in found(call)] == [4999, 5006]


def found(call: SystemCall) -> list[Finding]:
    """What the detectors of a stack have found in a call."""
    return [each for detector in call.states if isinstance(detector, DoubleFetchDetector) for each in detector.findings]


def test_what_is_read_behind_other_ends_is_not_fetched() -> None:
    """A string of 16-bit units, at an odd address, with a NUL across two; a table of pointers and its strings."""
    guest = BytesIO(bytearray(1 << 13))
    guest.copy_out(1, "aĀ".encode("utf-16-le") + b"\0\0" + b"next")
    copy_vector_out(guest, 0x100, [b"sh", b"-c", b"ls"], 0x120)
    detector = DoubleFetchDetector(guest)
    with detector.call("execve"):
        assert copy_utf16_in(detector, 1, 99) == "aĀ"
        fetch(detector, 7, 4)
        assert copy_in_vector(detector, 0x100, 4096, 4096) == [b"sh", b"-c", b"ls"]
        assert not detector.findings
        fetch(detector, 0x11F, 2)
    assert [finding.range for finding in detector.findings] == [AddrRange(0x11F, 0x121)]


@pytest.mark.parametrize("how", ["with", "with ranges", "option", "option for all"])
def test_refetches_that_are_allowed(how: str) -> None:
    """All, or those in ranges; others are found."""
    detector = made()
    option = {"option": ranges((4, 4)), "option for all": True}.get(how)
    with detector.call("ioctl", refetches=option):
        fetch(detector, 0, 16)
        if option:
            fetch(detector, 4, 4)
        else:
            with detector.allow_refetch(ranges((4, 4)) if how == "with ranges" else None):
                fetch(detector, 4, 4)
        assert not detector.findings
        if how == "with ranges":
            with detector.allow_refetch(ranges((4, 4))):
                fetch(detector, 2, 4)
        else:
            fetch(detector, 2, 2)
    assert [finding.range for finding in detector.findings] == [AddrRange(2, 4)] * (option is not True)
    with detector.allow_refetch():
        fetch(detector, 0, 1)  # outside of any call


def test_late_fetches() -> None:
    """After a write or an effect that the handler tells of; not where the call may."""
    for late, expected in ((False, ["LATE_FETCH"]), (True, [])):
        for effect in (True, False):
            detector = made()
            with detector.call("recvmmsg", late_fetches=late):
                fetch(detector, 0, 4)
                if effect:
                    detector.effect()
                else:
                    detector.zero_out(100, 4)
                fetch(detector, 8, 4)
            assert kinds(detector) == expected
    detector.effect()  # outside of any call


def test_a_write_of_nothing_is_no_effect() -> None:
    """One that faults at once, and a look whether memory can be written."""
    detector = made(64)
    with detector.call("recvmsg", writes=ranges()):
        with pytest.raises(FaultError):
            detector.copy_out(64, b"four")
        assert detector.copy_out_from(ranges((0, 4)), _Short(0)) == 0
        fetch(detector, 8, 4)
    assert not detector.findings


def test_stray_writes() -> None:
    """What lies outside the ranges, of each kind of write; what moved counts, not what was asked for."""
    detector = made()
    allowed = ranges((0, 8), (16, 4), (300, 4))
    with detector.call("read", writes=allowed, late_fetches=True):
        detector.copy_out(0, b"x" * 8)
        detector.zero_out(18, 2)
        detector.copy_out_from(ranges((4, 4), (16, 2)), _Short(6))
        detector.swap_uint32(16, 1)
        assert not detector.findings
        detector.copy_out(4, b"x" * 14)
        detector.zero_out(50, 10)
    assert {finding.kind for finding in detector.findings} == {FindingKind.STRAY_WRITE}
    assert [finding.range for finding in detector.findings] == [AddrRange(8, 16), AddrRange(50, 60)]


class _Short:
    def __init__(self, n: int) -> None:
        self.n = n

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        return self.n


def test_stray_fetches() -> None:
    """One byte more than was asked for, as behind the end of a page."""
    detector = made()
    with detector.call("write", reads=ranges((0, 8), (16, 4))):
        fetch(detector, 0, 8)
        fetch(detector, 18, 2)
        assert not detector.findings
        fetch(detector, 16, 5)
    assert (kinds(detector), detector.findings[0].range) == (["STRAY_FETCH", "DOUBLE_FETCH"], AddrRange(20, 21))


def test_ranges_with_pointer_tags() -> None:
    """The guest's pointer, as the handler was given it, says which bytes may be written."""
    space = AddressSpace(ARM64)
    addr = space.mmap(0, 4096, 3, mman.MAP_PRIVATE | ARM64.map_flags.anonymous)
    detector = DoubleFetchDetector(space)
    pointer = addr | 0x5A << 56
    allowed = ranges((pointer, 8))
    with detector.call("read", reads=allowed, writes=allowed, refetches=allowed):
        fetch(detector, pointer, 8)
        fetch(detector, addr, 8)
        detector.copy_out(pointer, bytes(8))
    assert not detector.findings


@pytest.mark.parametrize("how", ["swap", "compare", "load", "allowed"])
def test_a_word_that_is_fetched_and_swapped(how: str) -> None:
    """What is stored in between is lost; not where the swap compares, nor where nothing was fetched by a copy."""
    detector = made()
    with detector.call("futex", refetches=how == "allowed"):
        if how == "load":
            detector.load_uint32(0)
        else:
            first_fetch(detector)
        if how == "compare":
            detector.compare_and_swap_uint32(8, 0, 1)
        else:
            detector.swap_uint32(8, 1)
    assert kinds(detector) == ["LOST_UPDATE"] * (how == "swap")
    if detector.findings:
        assert detector.findings[0].range == AddrRange(8, 12)
        assert "in first_fetch" in str(detector.findings[0].first)


def test_an_effect_that_is_repeated() -> None:
    """A retry after a fault sends again; not a second effect elsewhere, nor a call that has many."""

    def send(detector: DoubleFetchDetector, times: int) -> None:
        for _ in range(times):
            detector.effect()

    detector = made()
    with detector.call("sendto"):
        send(detector, 1)
        detector.effect()
    with detector.call("sendmmsg", late_fetches=True):
        send(detector, 2)
    assert not detector.findings
    with detector.call("sendto"):
        send(detector, 2)
    assert kinds(detector) == ["REPEATED_EFFECT"]
    assert str(detector.findings[0]).startswith("sendto: visible effect again\n  at     test_detector.py:")


def test_findings_can_be_pickled() -> None:
    """As they are by the workers of a campaign."""
    detector = made()
    with detector.call("read"):
        first_fetch(detector)
        second_fetch(detector)
    again = pickle.loads(pickle.dumps(detector.findings))
    assert again == detector.findings
    assert str(again[0]) == str(detector.findings[0])


class TestLeaks:
    """Bytes of a poisoned buffer that were never stored."""

    @pytest.mark.parametrize("n", [4, 7, 8, 100, 5000])
    @pytest.mark.parametrize("shift", [0, 1, 5])
    def test_a_run_is_found_wherever_it_lies(self, n: int, shift: int) -> None:
        """Its first byte and its last."""
        detector = made(1 << 14)
        buffer = detector.buffer(n + 20)
        buffer[: 10 + shift] = bytes(10 + shift)
        buffer[10 + shift + n :] = b"x" * (10 - shift)
        with detector.call("ioctl"):
            detector.copy_out(33, buffer)
        (finding,) = detector.findings
        assert (finding.kind, finding.range) == (FindingKind.LEAK, AddrRange(43 + shift, 43 + shift + n))

    def test_by_a_reader_too(self) -> None:
        """Whoever stores it."""
        from safemem import Block, BlockSeqReader

        detector = made()
        reader = BlockSeqReader(BlockSeq.of(Block(detector.buffer(8))))
        with detector.call("read"):
            detector.copy_out_from(ranges((0, 2), (50, 6)), reader)
        assert [finding.range for finding in detector.findings] == [AddrRange(50, 56)]

    def test_what_was_filled_is_no_leak(self) -> None:
        """Nor what is not written out, nor fewer than four bytes."""
        detector = made()
        buffer = detector.buffer(64)
        with detector.call("ioctl"):
            detector.copy_out(0, buffer[:3])
            buffer[:] = bytes(range(64))
            detector.copy_out(0, buffer)
        assert not detector.findings
        with pytest.raises(ValueError, match="n must not be negative"):
            detector.buffer(-1)

    @pytest.mark.parametrize(("padding", "calls"), [(3, 2), (2, 2), (1, 4)])
    def test_short_padding_is_found_in_some_calls(self, padding: int, calls: int) -> None:
        """What no buffer has by chance each time; the handler's own bytes, the same in each call, are none."""
        detector = made()
        for number in range(1, calls + 1):
            with detector.call("fstat"):
                detector.buffer(99)
                data = detector.buffer(24)
                data[: 8 - padding] = b"\xf5" + bytes(7 - padding)
                data[8:] = random.Random(number).randbytes(16)
                detector.copy_out(33, bytes(data))
            assert len(detector.findings) == (number == calls)
        assert detector.findings[0].range == AddrRange(41 - padding, 41)

    def test_right_handlers_leak_nothing(self) -> None:
        """Whatever they store: random bytes, the same bytes, as many as they like."""
        detector, source = made(1 << 14), random.Random(1)
        same = poisoned(2) + bytes(6)
        for number in range(2000):
            with detector.call("read"):
                data = detector.buffer(256)
                data[:] = source.randbytes(256) if number % 2 else same * 32
                detector.copy_out(0, data)
        assert not detector.findings

    def test_a_buffer_that_is_used_again(self) -> None:
        """What an earlier call left in it is no part of the next one."""
        detector, buffer = made(), bytearray(64)
        for text in (b"a long secret", b"short"):
            with detector.call("ioctl"):
                detector.poison(buffer)
                buffer[: len(text)] = text
                detector.copy_out(0, memoryview(buffer)[: 13 if text == b"short" else len(text)])
        assert [finding.range for finding in detector.findings] == [AddrRange(5, 13)]
        with pytest.raises(TypeError, match="buffer must be a writable"):
            detector.poison(b"bytes")

    def test_the_search_alone(self) -> None:
        """Of any four bytes of the pattern."""
        for start in range(8):
            assert find_poison(b"abc" + poisoned(20)[start : start + 4] + b"abc") == (3, 7)
        assert find_poison(b"") is find_poison(bytes(99)) is None


@pytest.mark.parametrize(("limit", "most"), [(100, 3), (2, 2)])
def test_a_bug_counts_once(limit: int, most: int) -> None:
    """However often the call is made; the number of findings is limited, and each is told as it is found."""
    told: list[Finding] = []
    detector = DoubleFetchDetector(BytesIO(bytearray(64)), limit=limit, on_finding=told.append)
    for _ in range(5):
        with detector.call("read"):
            fetch(detector, 0, 4)
            fetch(detector, 0, 4)
            fetch(detector, 0, 4)
            fetch(detector, 0, 4)
    assert len(detector.findings) == most
    assert told == detector.findings


def test_what_a_callback_raises_comes_out_at_the_place() -> None:
    """A test stops there."""

    def stop(finding: Finding) -> None:
        raise AssertionError(str(finding))

    detector = DoubleFetchDetector(BytesIO(bytearray(64)), on_finding=stop)
    with pytest.raises(AssertionError, match="double fetch"), detector.call("read"):
        fetch(detector, 0, 4)
        fetch(detector, 0, 4)


def test_memory_that_is_unmapped_meanwhile_is_not_searched() -> None:
    """A leak is looked for in what is still there."""
    space = AddressSpace()
    addr = space.mmap(0, 4096, 3, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    detector = DoubleFetchDetector(space)
    buffer = detector.buffer(8)

    class Unmaps:
        def read_to_blocks(self, dsts: BlockSeq) -> int:
            dsts.fill(bytes(buffer))
            space.munmap(addr, 4096)
            return 8

    with detector.call("read"):
        assert detector.copy_out_from(ranges((addr, 8)), Unmaps()) == 8
    assert not detector.findings


def test_a_system_call_may_be_begun_by_anyone() -> None:
    """Without an observer at hand, too."""
    detector = made()
    with SystemCall("read", (3,)):
        fetch(detector, 0, 4)
        fetch(detector, 0, 4)
    assert kinds(detector) == ["DOUBLE_FETCH"]


def test_places_compare_by_caller() -> None:
    """Two calls on one line are two places; the same one in a loop is one."""
    one, two = here(0), here(0)
    assert one != two
    places = [here(0) for _ in range(2)]
    assert places[0] == places[1]


def test_places_have_up_to_five_callers() -> None:
    """All of them where there are fewer, as in a thread whose function is the handler."""

    def depth(n: int) -> int:
        return len(Place.of(here(0)).lines) if n == 0 else depth(n - 1)

    assert depth(0) == depth(9) == 5
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(depth, 0).result() == 5  # run, _worker, run, _bootstrap_inner come before it
    found: list[int] = []
    _thread.start_new_thread(lambda: found.append(depth(0)), ())
    limit = time.monotonic() + 10
    while not found and time.monotonic() < limit:
        time.sleep(0.01)
    assert found == [2]
