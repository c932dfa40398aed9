"""Faults by address, page, number, predicate and probability: where they come, how often, and how they heal."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from hostarch import AMD64, ARM64, READ, READ_WRITE, WRITE, AccessType, AddrRange, AddrRangeSeq, mman
from safemem import Block, BlockSeq, BlockSeqReader
from usermem import (
    AddressSpace,
    BytesIO,
    FaultError,
    abi,
    copy_in_iovecs,
    copy_in_vector,
    copy_int32_string_in_vec,
    copy_int32_strings_in_vec,
    copy_out_iovecs,
    copy_string_in,
    copy_string_out,
    copy_struct_from_user,
    copy_struct_in,
    copy_struct_out,
    copy_uint32_in,
    copy_uint32_out,
    copy_utf16_in,
    copy_vector_out,
    linux_result,
)
from usermem.observe import Access, Fault, FaultPlan, FaultyIO, Race, RacingIO
from usermem.observe import faulty as faulty_module
from usermem.testing import strategies as guests
from usermem.testing.operations import describe, pattern

BYTES = pattern(64)


def faulty(*faults: Fault) -> FaultyIO:
    """64 bytes with faults."""
    return FaultyIO(BytesIO(bytearray(BYTES)), FaultPlan(faults=faults))


def moved(call: Callable[[], int]) -> int | str:
    """The count, or how the access faulted."""
    try:
        return call()
    except FaultError as fault:
        return describe(fault)


def test_a_byte_faults_wherever_an_access_meets_it() -> None:
    """In a copy, in the range of a sequence that holds it, in a word; accesses beside it pass."""
    io = faulty(Fault(addr=20))
    ars = AddrRangeSeq([AddrRange(40, 44), AddrRange(18, 24)])
    assert moved(lambda: io.copy_in(16, bytearray(8))) == "FaultError at 0x14 after 4 bytes (r--, injected)"
    assert moved(lambda: io.copy_out(20, b"x")) == "FaultError at 0x14 after 0 bytes (-w-, injected)"
    assert moved(lambda: io.zero_out(10, 20)) == "FaultError at 0x14 after 10 bytes (-w-, injected)"
    reader = BlockSeqReader(BlockSeq.of(Block(b"x" * 10)))
    assert moved(lambda: io.copy_out_from(ars, reader)) == "FaultError at 0x14 after 6 bytes (-w-, injected)"
    assert reader.blocks.num_bytes == 4
    assert moved(lambda: io.load_uint32(18)) == "FaultError at 0x12 after 0 bytes (r--, injected)"
    assert moved(lambda: io.copy_in(21, bytearray(8))) == 8
    assert moved(lambda: io.copy_in(16, bytearray(4))) == 4
    assert len(io.injected) == 5


@pytest.mark.parametrize("addr", [-1, (1 << 64) - 4, 1 << 64, 1 << 70])
def test_what_leaves_64_bits_faults_by_itself(addr: int) -> None:
    """The memory's own fault; the hook is not asked for what is no address."""
    io = faulty(Fault(byte=2))
    asked: list[int] = []

    def ask(at: int, access: AccessType) -> bool:
        asked.append(at)
        return False

    io.on_fault = ask
    for call in (
        lambda: io.copy_in(addr, bytearray(8)),
        lambda: io.copy_out(addr, bytes(8)),
        lambda: io.zero_out(addr, 8),
    ):
        assert f"at {addr:#x} after 0 bytes" in str(moved(call))
    assert not io.injected and not asked


def test_a_page_and_an_access_type() -> None:
    """Only what is stored in the page faults."""
    space = AddressSpace()
    addr = space.mmap(0, 3 * 4096, READ_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    page = addr + 4096
    io = FaultyIO(space, FaultPlan(faults=(Fault(addr=page, length=4096, access=WRITE),)))
    assert moved(lambda: io.zero_out(addr, 3 * 4096)) == f"FaultError at {page:#x} after 4096 bytes (-w-, injected)"
    assert moved(lambda: io.zero_out(page + 4096, 4096)) == 4096
    assert moved(lambda: io.copy_in(addr, bytearray(3 * 4096))) == 3 * 4096
    assert moved(lambda: io.swap_uint32(page, 1)) == f"FaultError at {page:#x} after 0 bytes (rw-, injected)"
    assert moved(lambda: io.load_uint32(page)) == 0


def test_the_nth_access_is_of_those_that_meet_the_rest() -> None:
    """The second store to the byte, however many accesses come between."""
    io = faulty(Fault(addr=8, access=WRITE, nth=1))
    calls = [lambda: io.copy_out(8, b"x"), lambda: io.copy_in(8, bytearray(1)), lambda: io.copy_out(9, b"x")]
    assert [moved(call) for call in (*calls, *calls, *calls)][3:] == [
        "FaultError at 0x8 after 0 bytes (-w-, injected)",
        *[1] * 5,
    ]


def test_a_predicate_is_asked_unseen() -> None:
    """It gets the access, and may look at the memory."""
    asked: list[str] = []

    def when(access: Access) -> bool:
        asked.append(access.call)
        word = bytearray(1)
        return io.copy_in(0, word) == 1 and word == b"!"

    io = faulty(Fault(when=when))
    assert moved(lambda: io.copy_out(0, b"!")) == 1
    assert moved(lambda: io.copy_out(4, b"x")) == "FaultError at 0x4 after 0 bytes (-w-, injected)"
    assert asked == ["copy_out", "copy_out"]


def test_times_and_sticky() -> None:
    """A transient fault is over after so many; the retry from where it stopped goes on."""
    transient, sticky = faulty(Fault(addr=4, times=1)), faulty(Fault(addr=4))
    dst = bytearray(8)
    for io, again in ((transient, 4), (sticky, "FaultError at 0x4 after 0 bytes (r--, injected)")):
        assert moved(lambda io=io: io.copy_in(0, dst)) == "FaultError at 0x4 after 4 bytes (r--, injected)"  # type: ignore[misc]
        assert moved(lambda io=io: io.copy_in(4, memoryview(dst)[4:])) == again  # type: ignore[misc]
    assert (len(transient.injected), len(sticky.injected)) == (1, 2)


def test_a_stream_that_stops_before_does_not_use_it_up() -> None:
    """A transient fault waits for the access that gets there."""
    io = faulty(Fault(addr=4, times=1))
    ars = AddrRangeSeq([AddrRange(0, 8)])
    assert io.copy_out_from(ars, BlockSeqReader(BlockSeq.of(Block(b"xy")))) == 2
    assert moved(lambda: io.copy_in(0, bytearray(8))) == "FaultError at 0x4 after 4 bytes (r--, injected)"


def test_probability_is_drawn_from_the_seed() -> None:
    """The same seed gives the same faults, another one others; about so many as it says."""

    def drawn(seed: int) -> list[bool]:
        io = faulty(Fault(probability=0.25, seed=seed))
        return [moved(lambda: io.copy_in(0, bytearray(1))) != 1 for _ in range(400)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 60 < sum(drawn(1)) < 140
    assert not any(moved(lambda: faulty(Fault(probability=0)).copy_in(0, bytearray(1))) != 1 for _ in range(9))


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EIO, OSError), (errno.EAGAIN, BlockingIOError), (errno.EPERM, PermissionError)]
)
def test_another_errno(code: int, kind: type[OSError]) -> None:
    """The OSError of its errno, with the exact count."""
    io = faulty(Fault(addr=4, errno=code))
    with pytest.raises(kind) as caught:
        io.copy_in(0, bytearray(8))
    assert (caught.value.errno, caught.value.transferred) == (code, 4)  # type: ignore[attr-defined]
    assert linux_result(caught.value) == 4
    with pytest.raises(kind) as caught:
        io.copy_in(4, bytearray(8))
    assert linux_result(caught.value) == -code
    assert [exc.errno for exc in io.injected] == [code, code]


def test_the_fault_at_the_lowest_byte_comes() -> None:
    """Of steps and faults alike; each counts the access."""
    io = FaultyIO(BytesIO(bytearray(64)), FaultPlan((5, 1), (Fault(addr=3, nth=0), Fault(byte=6, nth=2))))
    answers = [moved(lambda: io.copy_in(0, bytearray(8))) for _ in range(4)]
    assert answers == [f"FaultError at {at:#x} after {at} bytes (r--, injected)" for at in (3, 1, 6)] + [8]


class TestHealing:
    """``on_fault``, as AddressSpace has it."""

    def test_a_pager_brings_in_what_is_missing(self) -> None:
        """Page by page, once each, before a byte moves; its own accesses are not faulted."""
        space = AddressSpace()
        addr = space.mmap(0, 2 * 4096, READ_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        pages = [Fault(addr=addr, length=4096), Fault(addr=addr + 4096, length=4096)]
        io = FaultyIO(space, FaultPlan(faults=tuple(pages)))
        asked: list[tuple[int, AccessType]] = []

        def page_in(at: int, access: AccessType) -> bool:
            asked.append((at, access))
            start = at - at % 4096
            return io.copy_out(start, b"p" * 4096) == 4096

        io.on_fault = page_in
        dst = bytearray(16)
        assert io.copy_in(addr + 4096 - 8, dst) == 16
        assert dst == b"p" * 16
        assert asked == [(addr + 4096 - 8, READ), (addr + 4096, READ)]
        assert io.copy_in(addr, bytearray(8192)) == 8192
        assert len(asked) == 2 and not io.injected

    def test_what_the_hook_does_not_heal_faults(self) -> None:
        """It is asked each time."""
        io = faulty(Fault(addr=4))
        asked: list[int] = []

        def refuse(at: int, access: AccessType) -> bool:
            asked.append(at)
            return False

        io.on_fault = refuse
        for _ in range(2):
            assert moved(lambda: io.copy_in(0, bytearray(8))) == "FaultError at 0x4 after 4 bytes (r--, injected)"
        assert asked == [4, 4]

    def test_a_word_heals(self) -> None:
        """As a whole."""
        io = faulty(Fault(addr=4))
        io.on_fault = lambda at, access: (at, access) == (4, READ_WRITE)
        assert io.swap_uint32(4, 7) == int.from_bytes(BYTES[4:8], "little")
        assert io.load_uint32(4) == 7

    def test_a_fault_that_is_drawn_comes_again(self) -> None:
        """The hook heals the access, not the chance."""
        io = faulty(Fault(probability=0.5))
        healed: list[int] = []

        def heal(at: int, access: AccessType) -> bool:
            healed.append(at)
            return True

        io.on_fault = heal
        assert all(io.copy_in(0, bytearray(1)) == 1 for _ in range(200))
        assert 60 < len(healed) < 140


@pytest.mark.parametrize(
    "bad",
    [
        {"length": 0},
        {"byte": -1},
        {"nth": -1},
        {"times": 0},
        {"probability": 1.5},
        {"errno": 0},
    ],
)
def test_bad_faults(bad: dict[str, int]) -> None:
    """They are told at once, by name."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        Fault(**bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="faults must be Faults"):
        FaultPlan(faults=((1,),))  # type: ignore[arg-type]


def test_the_repr_is_short() -> None:
    """Without what has its default."""
    assert repr(FaultPlan((None, 3))) == "FaultPlan(steps=(None, 3))"
    fault = Fault(addr=0x1000, length=4096, access=READ, when=test_the_repr_is_short, times=1)  # type: ignore[arg-type]
    assert repr(fault) == "Fault(addr=0x1000, length=4096, access=AccessType(1), when=test_the_repr_is_short, times=1)"


@given(guests.fault_plans(near=(0, 32, 64)), st.data())
def test_a_plan_is_replayed_by_its_repr(plan: FaultPlan, data: st.DataObject) -> None:
    """eval() of it is equal, and gives the same outcomes; its faults are exact."""
    again = eval(repr(plan))
    assert again == plan
    one, two = (FaultyIO(BytesIO(bytearray(BYTES)), each) for each in (plan, again))
    for _ in range(4):
        addr, n = data.draw(st.integers(0, 64)), data.draw(st.integers(0, 40))
        dst, other = bytearray(n), bytearray(n)
        found = moved(lambda: one.copy_in(addr, dst))  # noqa: B023
        assert found == moved(lambda: two.copy_in(addr, other))  # noqa: B023
        assert dst == other
        done = found if isinstance(found, int) else int(found.split()[4])
        assert dst == BYTES[addr : addr + done].ljust(n, b"\0")


def test_plans_shrink() -> None:
    """To one fault, without what does not matter."""
    settings_ = settings(database=None, derandomize=True, max_examples=500)

    def hits(plan: FaultPlan) -> bool:
        io = FaultyIO(BytesIO(bytearray(64)), plan)
        return moved(lambda: io.copy_in(0, bytearray(8))) == 8 and moved(lambda: io.copy_out(8, b"x" * 8)) != 8

    found = find(guests.fault_plans(near=(0x8, 0x10)), hits, settings=settings_)
    assert len([step for step in found.steps if step is not None]) + len(found.faults) == 1
    assert 0 in (*found.steps, *(fault.byte for fault in found.faults))


@given(guests.faults(AMD64, near=(0x10000,), most=5, errors=(errno.EIO,)))
def test_drawn_faults(fault: Fault) -> None:
    """As the arguments limit them."""
    assert fault.errno == errno.EIO
    assert fault.byte <= 5


WHOLES: dict[str, Callable[[FaultyIO], object]] = {
    "an int": lambda io: copy_uint32_in(io, 0),
    "an int out": lambda io: copy_uint32_out(io, 0, 1),
    "a struct": lambda io: copy_struct_in(io, 0, "QQ"),
    "a struct out": lambda io: copy_struct_out(io, 0, "QQ", 1, 2),
    "a struct of a version": lambda io: copy_struct_from_user(io, 0, 40, "QQ"),
    "a struct of the ABI": lambda io: abi.TIMESPEC.copy_in(io, 0),
    "a string": lambda io: copy_string_in(io, 0, 60),
    "a string out": lambda io: copy_string_out(io, 0, b"string"),
    "a string of 16-bit units": lambda io: copy_utf16_in(io, 0, 30),
    "a number in decimal": lambda io: copy_int32_string_in_vec(io, AddrRangeSeq([AddrRange(0, 9)])),
    "numbers in two ranges": lambda io: copy_int32_strings_in_vec(io, AddrRangeSeq.from_pairs([0, 2, 2, 3]), 2),
    "iovecs": lambda io: copy_in_iovecs(io, 0, 2),
    "iovecs out": lambda io: copy_out_iovecs(io, 0, AddrRangeSeq.from_pairs([0, 2, 2, 3])),
    "a vector": lambda io: copy_in_vector(io, 0, 99, 99),
    "a vector out": lambda io: copy_vector_out(io, 0, [b"sh"], 32),
}


@pytest.mark.parametrize("code", [errno.EFAULT, errno.EIO])
@pytest.mark.parametrize("name", WHOLES)
def test_a_part_of_what_is_no_stream_is_no_result(name: str, code: int) -> None:
    """The system call returns the errno, whichever it is, wherever the fault comes."""
    for at in (1, 3, 17, 20, 33):
        io = FaultyIO(BytesIO(bytearray(b"1 2".ljust(64, b"\0"))), FaultPlan(faults=(Fault(addr=at, errno=code),)))
        result = 0
        try:
            WHOLES[name](io)
        except OSError as exc:
            result = linux_result(exc)
        assert result == -code if at <= 3 else result <= 0, at


def test_numbers_of_other_classes_become_plain_ones() -> None:
    """So that the repr of a plan replays it wherever it is read; a plan can be pickled."""

    class Number(int):
        def __repr__(self) -> str:
            return "Number"

    one = Number(1)
    fault = Fault(addr=one, length=one, byte=one, nth=one, seed=one, times=one, errno=one, access=AccessType(2))
    plan = FaultPlan((one, None), (fault,))
    assert eval(repr(plan)) == pickle.loads(pickle.dumps(plan)) == plan
    assert repr([Race(one, one, one)]) == "[Race(refetch=1, byte=1, value=1)]"


def test_the_tag_of_a_pointer_hides_no_fault() -> None:
    """The plan may have the guest's pointer, and the handler another one to the same byte."""
    space = AddressSpace(ARM64)
    start = space.mmap(0, 4096, READ_WRITE, mman.MAP_PRIVATE | ARM64.map_flags.anonymous)
    for tag in (0, 0x5A << 56):
        io = FaultyIO(space, FaultPlan(faults=(Fault(addr=start + 4 | tag),)))
        for addr in (start, start | 0x11 << 56):
            with pytest.raises(FaultError) as caught:
                io.copy_in(addr, bytearray(8))
            assert caught.value.transferred == 4


def test_faults_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sticky one may be met a million times."""
    monkeypatch.setattr(faulty_module, "_MOST", 3)
    io = faulty(Fault())
    for _ in range(5):
        moved(lambda: io.copy_in(0, bytearray(1)))
    assert len(io.injected) == 3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Fault(addr="x"), TypeError, "addr must be an int"),  # type: ignore[arg-type]
        (lambda: Fault(addr=-1), ValueError, "addr must not be negative"),
        (lambda: Fault(when=3), TypeError, "when must be a function of an Access"),  # type: ignore[arg-type]
        (lambda: Fault(probability=float("nan")), ValueError, "probability must lie between"),
        (lambda: RacingIO(BytesIO(b""), [Fault()]), TypeError, "races must be Races"),  # type: ignore[list-item]
    ],
)
def test_wrong_arguments_are_told_by_name(make: Callable[[], object], error: type[Exception], message: str) -> None:
    """And what they must be."""
    with pytest.raises(error, match=message):
        make()
