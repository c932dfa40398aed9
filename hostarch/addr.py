"""Addr: an address with arithmetic that cannot silently leave the address space.

Source: gVisor pkg/hostarch/addr.go.
"""

from __future__ import annotations

from typing import Self

from hostarch.addr_range import AddrRange
from hostarch.arch import AMD64, Arch
from hostarch.integers import check_count, check_int

_MAX = (1 << 64) - 1


class Addr(int):
    """An address: an int from 0 to 2**64 - 1 with checked arithmetic by named methods.

    Every function of these packages takes plain ints as well; the operators of int are as they are and give ints.
    ``arch`` arguments say which machine's width and page size count. A method that has no answer raises
    OverflowError; its ``checked_`` twin returns None.
    """

    __slots__ = ()

    def __new__(cls, value: int = 0) -> Self:
        """Raises OverflowError unless 0 <= value < 2**64."""
        value = check_int(value, "value")
        if not 0 <= value <= _MAX:
            raise OverflowError(f"address {value:#x} is outside 64 bits")
        return super().__new__(cls, value)

    def __repr__(self) -> str:
        return f"Addr({int(self):#x})"

    def __str__(self) -> str:
        return f"{int(self):#x}"

    def checked_add_length(self, length: int, arch: Arch = AMD64) -> Addr | None:
        """As :meth:`add_length`, None where that raises OverflowError."""
        end = self + check_count(length, "length")
        return Addr(end) if end <= arch.addr_mask else None

    def add_length(self, length: int, arch: Arch = AMD64) -> Addr:
        """The address ``length`` bytes on. The end of the address space itself is not an address: OverflowError."""
        length = check_count(length, "length")
        return _or_raise(self.checked_add_length(length, arch), f"{self} + {length:#x} bytes leaves the address space")

    def wrapping_add(self, length: int, arch: Arch = AMD64) -> Addr:
        """The address ``length`` bytes on, counted around the end of the address space as the machine's adder does."""
        return Addr((self + check_int(length, "length")) & arch.addr_mask)

    def checked_to_range(self, length: int, arch: Arch = AMD64) -> AddrRange | None:
        """As :meth:`to_range`, None where that raises OverflowError."""
        end = self.checked_add_length(length, arch)
        return None if end is None else AddrRange(int(self), int(end))

    def to_range(self, length: int, arch: Arch = AMD64) -> AddrRange:
        """[self, self + length); OverflowError where :meth:`add_length` raises it."""
        return AddrRange(int(self), int(self.add_length(length, arch)))

    def round_down(self, arch: Arch = AMD64) -> Addr:
        """The start of the page this address lies in."""
        return self._down(arch.page_size)

    def round_up(self, arch: Arch = AMD64) -> Addr:
        """The first page boundary at or after this address; OverflowError if there is none."""
        return self._up(arch.page_size, arch)

    def checked_round_up(self, arch: Arch = AMD64) -> Addr | None:
        """As :meth:`round_up`, None where that raises."""
        return self._checked_up(arch.page_size, arch)

    def huge_round_down(self, arch: Arch = AMD64) -> Addr:
        """The start of the huge page this address lies in."""
        return self._down(arch.huge_page_size)

    def huge_round_up(self, arch: Arch = AMD64) -> Addr:
        """The first huge page boundary at or after this address; OverflowError if there is none."""
        return self._up(arch.huge_page_size, arch)

    def checked_huge_round_up(self, arch: Arch = AMD64) -> Addr | None:
        """As :meth:`huge_round_up`, None where that raises."""
        return self._checked_up(arch.huge_page_size, arch)

    def cache_line_round_down(self, arch: Arch = AMD64) -> Addr:
        """The start of the cache line this address lies in."""
        return self._down(arch.cache_line_size)

    def cache_line_round_up(self, arch: Arch = AMD64) -> Addr:
        """The first cache line boundary at or after this address; OverflowError if there is none."""
        return self._up(arch.cache_line_size, arch)

    def checked_cache_line_round_up(self, arch: Arch = AMD64) -> Addr | None:
        """As :meth:`cache_line_round_up`, None where that raises."""
        return self._checked_up(arch.cache_line_size, arch)

    def page_offset(self, arch: Arch = AMD64) -> int:
        """How far this address lies into its page, in bytes."""
        return self % arch.page_size

    def huge_page_offset(self, arch: Arch = AMD64) -> int:
        """How far this address lies into its huge page, in bytes."""
        return self % arch.huge_page_size

    def is_page_aligned(self, arch: Arch = AMD64) -> bool:
        """Whether this is the first address of a page."""
        return not self % arch.page_size

    def is_huge_page_aligned(self, arch: Arch = AMD64) -> bool:
        """Whether this is the first address of a huge page."""
        return not self % arch.huge_page_size

    def checked_to_pages_round_up(self, arch: Arch = AMD64) -> int | None:
        """How many pages reach from 0 to this address; None if their end has no address."""
        up = self.checked_round_up(arch)
        return None if up is None else up >> arch.page_shift

    def untagged(self, arch: Arch = AMD64) -> Addr:
        """The address without its tag, as access checks see it (gVisor's UntaggedUserAddr)."""
        return Addr(arch.untagged(self))

    def _down(self, size: int) -> Addr:
        return Addr(self - self % size)

    def _checked_up(self, size: int, arch: Arch) -> Addr | None:
        up = self + -self % size
        return Addr(up) if up <= arch.addr_mask else None

    def _up(self, size: int, arch: Arch) -> Addr:
        what = f"{self} rounded up to {size:#x} bytes does not fit a {arch.name} address"
        return _or_raise(self._checked_up(size, arch), what)


def _or_raise(value: Addr | None, what: str) -> Addr:
    if value is None:
        raise OverflowError(what)
    return value
