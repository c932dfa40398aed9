"""Many ranges that are used up bit by bit: found once, and right after any change in between."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable

import pytest

from each_line import Event
from edge_layouts import BASE, FIXED, PAGE, RW, pattern
from hostarch import AddrRangeSeq, mman
from safemem import BlockSeq, ReaderFunc, WriterFunc
from safemem.block_seq import zero_seq
from usermem import AddressSpace, FaultError

MODULES = [importlib.import_module(f"usermem.{name}") for name in ("mm.page_cache", "mm.range_views", "resolver")]
COUNT = 200


def byte_ranges(count: int, step: int = 3) -> AddrRangeSeq:
    """So many bytes, apart."""
    return AddrRangeSeq.from_pairs([x for i in range(count) for x in (BASE + i * step, 1)])


def space_of(pages: int = 1) -> AddressSpace:
    """Some pages with a pattern, cached."""
    space = AddressSpace()
    space.mmap(BASE, pages * PAGE, RW, FIXED)
    for page in range(pages):
        space.copy_out(BASE + page * PAGE, pattern(PAGE))
        space.read_bytes(BASE + page * PAGE, 1)
    return space


def a_byte_a_call(space: AddressSpace, ars: AddrRangeSeq) -> int:
    """Fill the ranges by a reader that gives a byte a call, and return how many calls there were."""
    calls = 0
    while ars.num_bytes:
        ars = ars.drop_first(space.copy_out_from(ars, ReaderFunc(lambda dsts: zero_seq(dsts.take_first(1)))))
        calls += 1
    return calls


def test_n_calls_for_n_ranges_are_linear() -> None:
    """Twice as many ranges cost about twice as many lines, not four times."""
    space = space_of()

    def lines(count: int) -> int:
        event = Event(MODULES)
        event.during(lambda: a_byte_a_call(space, byte_ranges(count)))
        return event.lines

    assert lines(4 * COUNT) < 5 * lines(COUNT)


CHANGES: dict[str, Callable[[AddressSpace], object]] = {
    "unmapped": lambda space: space.munmap(BASE, PAGE),
    "protected": lambda space: space.mprotect(BASE, PAGE, mman.PROT_NONE),
    "mapped over": lambda space: space.mmap(BASE, PAGE, mman.PROT_NONE, FIXED),
    "moved": lambda space: space.mremap(BASE, PAGE, PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, BASE + 64 * PAGE),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_two_calls(name: str) -> None:
    """The rest is looked up anew: it is a fault, and what was there stays as it was."""
    space = space_of()
    ars = byte_ranges(COUNT)
    assert a_byte_a_call(space, ars.take_first(10)) == 10
    for _ in range(3):
        ars = ars.drop_first(space.copy_out_from(ars, ReaderFunc(lambda dsts: zero_seq(dsts.take_first(1)))))
    CHANGES[name](space)
    with pytest.raises(FaultError):
        space.copy_out_from(ars, ReaderFunc(zero_seq))


def test_other_memory_between_two_calls() -> None:
    """What is mapped in the place of the old memory is what the rest goes to; the old memory is given back."""
    space = space_of()
    ars = byte_ranges(COUNT)
    ars = ars.drop_first(space.copy_out_from(ars, ReaderFunc(lambda dsts: zero_seq(dsts.take_first(1)))))
    space.mmap(BASE, PAGE, RW, FIXED)
    assert space._cache.rests == {}
    space.copy_out(BASE, b"z" * PAGE)
    found: list[bytes] = []
    space.copy_in_to(ars, WriterFunc(lambda srcs: found.append(srcs.tobytes()) or srcs.num_bytes))  # type: ignore[func-returns-value]
    assert found == [b"z" * (COUNT - 1)]


def test_any_part_of_the_same_ranges() -> None:
    """Whatever was asked for last: heads, tails and middles of one sequence are each their own bytes."""
    rng = random.Random(13)
    space = space_of(3)
    flat = [x for _ in range(COUNT) for x in (BASE + rng.randrange(2 * PAGE), rng.choice([0, 1, 2, 50]))]
    whole = AddrRangeSeq.from_pairs(flat)
    part, last = whole, BlockSeq()

    def take(srcs: BlockSeq) -> int:
        nonlocal last
        last = srcs
        return srcs.num_bytes

    for _ in range(3000):
        choice = rng.randrange(6)
        if choice == 0:
            part = whole
        elif choice == 1:
            part = part.take_first(rng.randrange(part.num_bytes + 1))
        elif choice == 2 and not part.is_empty():
            part = part.tail()
        else:
            part = part.drop_first(min(part.num_bytes, rng.choice([0, 1, 3, 60])))
        last = BlockSeq()
        assert space.copy_in_to(part, WriterFunc(take)) == part.num_bytes
        assert last.tobytes() == b"".join([space.read_bytes(addr, n) for addr, n in part.pairs()])
