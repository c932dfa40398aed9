"""What differs between machines: page size, pointer width, byte order, where user addresses end.

An :class:`Arch` is a plain value. The package ships the common machines; make your own with :func:`attrs.evolve`,
for example ``attrs.evolve(AMD64, max_addr=1 << 21)``.

Rounding to pages lives here, for any int. A method that has no answer within the machine's width raises
``OverflowError``; its ``checked_`` twin returns None. Rounding to huge pages and cache lines is Addr's.

Source: gVisor pkg/hostarch (hostarch.go, sizes_util.go); user space limits from Linux arch/*/include/asm/processor.h.
"""

from __future__ import annotations

import sys
from struct import Struct
from typing import Final, Literal

from attrs import field, frozen, validators

from hostarch import mman
from hostarch.c_layout import c_struct
from hostarch.integers import check_int
from hostarch.short_repr import short_repr

ByteOrder = Literal["little", "big"]

HOST_BYTE_ORDER: Final[ByteOrder] = "little" if sys.byteorder == "little" else "big"


@frozen(repr=False)
class Arch:
    """One machine as user memory sees it.

    ``max_addr`` is the first address past user space, exclusive, as Linux's TASK_SIZE. ``min_addr`` limits only where
    ``mmap`` places things (vm.mmap_min_addr), not what can be accessed. Shifts are powers of two, in bytes.
    ``pointer`` and ``iovec`` are the layouts of a pointer and of a struct iovec. C aligns a field of a struct to
    ``max_align`` bytes at most: 4 for i386, else 8. ``family`` is the name up to a "-", by which machines are told
    apart that differ in more than these fields.
    """

    name: str
    pointer_size: int
    byte_order: ByteOrder
    max_addr: int
    page_shift: int = field(default=12, validator=validators.ge(12))
    huge_page_shift: int = 21
    min_addr: int = 0x10000
    map_flags: mman.MapFlags = mman.GENERIC_MAP_FLAGS
    ignores_top_byte: bool = False
    cache_line_shift: int = 6
    page_size: int = field(init=False)
    huge_page_size: int = field(init=False)
    cache_line_size: int = field(init=False)
    addr_mask: int = field(init=False)
    family: str = field(init=False)
    max_align: int = field(init=False)
    pointer: Struct = field(init=False, eq=False)
    iovec: Struct = field(init=False, eq=False)

    @page_size.default
    def _page_size(self) -> int:
        return 1 << self.page_shift

    @huge_page_size.default
    def _huge_page_size(self) -> int:
        return 1 << self.huge_page_shift

    @cache_line_size.default
    def _cache_line_size(self) -> int:
        return 1 << self.cache_line_shift

    @addr_mask.default
    def _addr_mask(self) -> int:
        return (1 << 8 * self.pointer_size) - 1

    @family.default
    def _family(self) -> str:
        return self.name.partition("-")[0]

    @max_align.default
    def _max_align(self) -> int:
        return 4 if self.family == "i386" else 8  # the i386 psABI's long long and double

    @pointer.default
    def _pointer(self) -> Struct:
        return self._struct("Q" if self.pointer_size == 8 else "I")

    @iovec.default
    def _iovec(self) -> Struct:
        return self._struct("QQ" if self.pointer_size == 8 else "II")

    def _struct(self, fields: str) -> Struct:
        return Struct(("<" if self.byte_order == "little" else ">") + fields)

    def __repr__(self) -> str:
        """As it is written in Python: the name of a machine that is shipped, else the call that makes it."""
        name = self.name.upper().replace("-", "_")
        return name if globals().get(name) == self else short_repr(self)

    def struct(self, format_: str) -> Struct:
        """The layout of a struct format as this machine's C compiler has it, compiled once.

        Formats are the standard library's. Without a prefix, or with ``@``, byte order, sizes (``l``, ``L``, ``n``,
        ``N``, ``P``) and alignment are this machine's, and as there no padding follows the last field: end with ``0q``,
        say. With ``=`` the byte order is this machine's, and fields are packed; ``<``, ``>`` and ``!`` are what they
        are. Raises struct.error.
        """
        return c_struct(format_, self.byte_order == "big", self.pointer_size, self.max_align)

    def page_round_down(self, x: int) -> int:
        """The largest multiple of the page size that is <= x."""
        return check_int(x, "x") >> self.page_shift << self.page_shift

    def page_round_up(self, x: int) -> int:
        """The smallest multiple of the page size that is >= x; OverflowError if it does not fit an address."""
        up = self.checked_page_round_up(x)
        if up is None:
            raise OverflowError(f"{x:#x} rounded up to {self.page_size:#x} bytes does not fit a {self.name} address")
        return up

    def checked_page_round_up(self, x: int) -> int | None:
        """As :meth:`page_round_up`, None where that raises."""
        if type(x) is not int:
            x = check_int(x, "x")
        up = -(-x >> self.page_shift << self.page_shift)
        return up if 0 <= up <= self.addr_mask else None

    def is_page_aligned(self, x: int) -> bool:
        """Whether x is a multiple of the page size."""
        return not check_int(x, "x") & (self.page_size - 1)

    def untagged(self, x: int) -> int:
        """x as the machine's access checks see it: on ARM64 bits 56 and up are copies of bit 55, elsewhere x.

        What is no address of the machine is left as it is.
        """
        x = check_int(x, "x")
        if not self.ignores_top_byte or not 0 <= x <= self.addr_mask:
            return x
        low = x & ((1 << 56) - 1)
        return low | (0xFF << 56) if low >> 55 else low


AMD64 = Arch("amd64", 8, "little", 0x7FFF_FFFF_F000, map_flags=mman.AMD64_MAP_FLAGS)
I386 = Arch("i386", 4, "little", 0xC000_0000, huge_page_shift=22)
ARM64 = Arch("arm64", 8, "little", 1 << 48, ignores_top_byte=True)
ARM64_16K = Arch("arm64-16k", 8, "little", 1 << 47, page_shift=14, huge_page_shift=25, ignores_top_byte=True)
ARM64_64K = Arch("arm64-64k", 8, "little", 1 << 48, page_shift=16, huge_page_shift=29, ignores_top_byte=True)
ARM = Arch("arm", 4, "little", 0xBF00_0000, min_addr=0x1000)
RISCV64 = Arch("riscv64", 8, "little", 1 << 38)
MIPS = Arch("mips", 4, "big", 0x7FFF_8000, map_flags=mman.MIPS_MAP_FLAGS)
MIPSEL = Arch("mipsel", 4, "little", 0x7FFF_8000, map_flags=mman.MIPS_MAP_FLAGS)
PPC64 = Arch(
    "ppc64",
    8,
    "big",
    1 << 47,
    page_shift=16,
    huge_page_shift=24,
    map_flags=mman.POWERPC_MAP_FLAGS,
    cache_line_shift=7,
)
S390X = Arch("s390x", 8, "big", 1 << 53, huge_page_shift=20, cache_line_shift=8)
