"""RacingIO: which byte changes before which fetch, and that nothing else does."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given

from hostarch import READ, AddrRange, AddrRangeSeq, mman
from safemem import BlockSeq, WriterFunc
from usermem import IO, AddressSpace, BytesIO, copy_string_in
from usermem.observe import DoubleFetchDetector, FaultPlan, FaultyIO, Race, RacingIO
from usermem.testing import strategies as guests


def fetched(io: IO, addr: int, n: int) -> bytes:
    """A copy in."""
    dst = bytearray(n)
    io.copy_in(addr, dst)
    return bytes(dst)


def test_the_race_says_which_refetch_and_which_byte() -> None:
    """Of the bytes that were fetched before; they are counted across ranges, and begin again at their end."""
    memory = bytearray(64)
    racing = RacingIO(BytesIO(memory), [Race(1, 3, 7), Race(2, 6, 8), Race(2, 1, 9)])
    with racing.call("read"):
        fetched(racing, 0, 4)
        fetched(racing, 16, 2)
        assert fetched(racing, 2, 4) == bytes(4)  # refetch 0, of two bytes
        assert not racing.raced
        ars = AddrRangeSeq([AddrRange(30, 34), AddrRange(16, 18), AddrRange(0, 3)])
        seen: list[bytes] = []

        def take(srcs: BlockSeq) -> int:
            seen.append(srcs.tobytes())
            return srcs.num_bytes

        racing.copy_in_to(ars, WriterFunc(take))  # refetch 1: 16, 17, 0, 1, 2
        assert seen == [bytes(7) + b"\7" + bytes(1)]
        assert fetched(racing, 30, 4) == b"\0\t\x08\0"  # refetch 2: 30 to 33
    assert list(racing.raced) == [(1, 0, 7), (32, 0, 8), (31, 0, 9)]
    assert memory[1] == 7


def test_nothing_is_raced_that_was_not_fetched_before() -> None:
    """In the call: not in the call before, not outside of any, not a word, not what lies behind a string's end."""
    memory = bytearray(b"name\0next\0" + bytes(54))
    racing = RacingIO(BytesIO(memory), [Race(n, 0, 9) for n in range(9)])
    for _ in range(2):
        with racing.call("rename"):
            assert copy_string_in(racing, 5, 60) == b"next"
            assert copy_string_in(racing, 0, 60) == b"name"
            racing.load_uint32(0)
        fetched(racing, 0, 64)
    assert not racing.raced
    with racing.call("rename"):
        copy_string_in(racing, 0, 60)
        assert copy_string_in(racing, 0, 60) == b"\tame"


def test_bytes_are_changed_beneath_all_observers() -> None:
    """A detector beneath does not take them for the handler's, and a plan does not count them."""
    memory = bytearray(8)
    detector = DoubleFetchDetector(FaultyIO(BytesIO(memory), FaultPlan((None, None, 0))))
    racing = RacingIO(detector, [Race(0, 0, 5)])
    with racing.call("read", writes=AddrRangeSeq()):
        fetched(racing, 0, 4)
        assert fetched(racing, 0, 4) == b"\5\0\0\0"
    assert [finding.kind.name for finding in detector.findings] == ["DOUBLE_FETCH"]


def test_what_the_guest_may_not_write_is_changed_if_the_object_allows() -> None:
    """Another mapping could have written it; a file that is only read by all cannot change."""
    space = AddressSpace()
    addr = space.mmap(0, 4096, mman.PROT_READ, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    fixed = space.attach(0, mmap.mmap(-1, 4096).read(4096), READ)
    for at, raced in ((addr, 1), (fixed, 0)):
        racing = RacingIO(space, [Race(0, 0, 5)])
        with racing.call("read"):
            fetched(racing, at, 4)
            fetched(racing, at, 4)
        assert len(racing.raced) == raced


@pytest.mark.parametrize("swap", ["swap_uint32", "compare_and_swap_uint32"])
def test_a_word_that_was_fetched_is_raced_before_it_is_swapped(swap: str) -> None:
    """What another thread stored in between is lost by a swap, and refused by a comparison."""
    memory = bytearray(8)
    racing = RacingIO(BytesIO(memory), [Race(0, 3, 0x80)])
    with racing.call("futex"):
        assert racing.load_uint32(0) == 0
        word = int.from_bytes(fetched(racing, 0, 4), "little")
        old = racing.swap_uint32(0, 7) if swap == "swap_uint32" else racing.compare_and_swap_uint32(0, word, 7)
    assert old == 0x8000_0000
    assert bytes(memory[:4]) == (b"\7\0\0\0" if swap == "swap_uint32" else b"\0\0\0\x80")


@pytest.mark.parametrize("bad", [{"refetch": -1}, {"byte": -1}, {"value": -1}, {"value": 256}])
def test_bad_races(bad: dict[str, int]) -> None:
    """They are told at once, by name."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        Race(**bad)


@given(guests.races(max_races=3, most=9))
def test_drawn_races_are_replayed_by_their_repr(races: list[Race]) -> None:
    """As many, and as far, as asked for."""
    assert eval(repr(races)) == races
    assert 1 <= len(races) <= 3
    assert all(race.byte <= 9 for race in races)
