"""The guest of the tour: its mappings, and the buffers that the file goes into."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from hostarch import AddrRange, AddrRangeSeq, mman
from usermem.address_space import AddressSpace

PAGE = 4096
_ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
_FIXED = _ANON | mman.MAP_FIXED_NOREPLACE
_RW = mman.PROT_READ | mman.PROT_WRITE
_TEXT = 0x40_0000
_HEAP = 0x1000_0000
_STACK = 0x7FFF_0000_0000
_STACK_SIZE = 8 * PAGE

Say = Callable[[str], None]
"""What is told of each step, line by line: ``print``, say."""


@frozen
class Guest:
    """A guest's memory with text, heap and stack, and the buffers in its heap that a file of ``size`` bytes fits."""

    size: int
    space: AddressSpace
    buffers: AddrRangeSeq
    hole: int
    stack_end: int

    @property
    def scratch(self) -> int:
        """A page of the stack for tables and words."""
        return self.stack_end - 2 * PAGE

    def fill_hole(self) -> None:
        """Map the page that is missing, as a guest may when it sees EFAULT."""
        self.space.map_object(self.hole, PAGE, _RW, _FIXED, None, name="[heap]")


def build_guest(space: AddressSpace, size: int) -> Guest:
    """Lay out three buffers that straddle pages, the last of which runs into a hole, and map what is around them."""
    first, second = size // 5, size // 5 * 2
    third = size - first - second
    one = AddrRange(_HEAP + PAGE - 100, _HEAP + PAGE - 100 + first)
    two = AddrRange(one.end + 64, one.end + 64 + second)
    hole = space.arch.page_round_up(two.end + 64 + third // 2)
    three = AddrRange(hole - third // 2, hole - third // 2 + third)
    space.map_object(_TEXT, PAGE, mman.PROT_READ | mman.PROT_EXEC, _FIXED, None, name="guest")
    space.map_object(_HEAP, hole - _HEAP, _RW, _FIXED, None, name="[heap]")
    rest = space.arch.page_round_up(three.end) - hole - PAGE
    if rest > 0:
        space.map_object(hole + PAGE, rest, _RW, _FIXED, None, name="[heap]")
    stack = space.map_object(_STACK, _STACK_SIZE, _RW, _ANON | mman.MAP_STACK, None, name="[stack]")
    return Guest(size, space, AddrRangeSeq([one, two, three]), hole, stack + _STACK_SIZE)
