"""A guest that lays out its messages by hand: fields at the offsets that its C compiler gives them."""

from __future__ import annotations

from hostarch import AMD64, ARM, I386, MIPS, S390X, Arch, mman
from usermem import AddressSpace

PAGE = 4096
BASE = 0x40000
ARCHES = [AMD64, I386, ARM, MIPS, S390X]
RW = mman.PROT_READ | mman.PROT_WRITE

# name, namelen, iov, iovlen, control, controllen, flags, msg_len, the next mmsghdr
OFFSETS = {8: (0, 8, 16, 24, 32, 40, 48, 56, 64), 4: (0, 4, 8, 12, 16, 20, 24, 28, 32)}
FIELDS = ("name", "namelen", "iov", "iovlen", "control", "controllen", "flags", "msg_len")
HOLE = BASE + 16 * PAGE
"""The first address behind the guest's memory."""
NAME, CONTROL, DATA, TABLE, TIME = (BASE + i * PAGE for i in (2, 4, 6, 1, 8))


class Guest:
    """16 pages, full of 0xee, and what is in them."""

    def __init__(self, arch: Arch = AMD64) -> None:
        self.arch = arch
        self.space = AddressSpace(arch)
        flags = mman.MAP_PRIVATE | arch.map_flags.anonymous | mman.MAP_FIXED
        self.space.mmap(BASE, 16 * PAGE, RW, flags)
        self.space.copy_out(BASE, b"\xee" * (16 * PAGE))
        self._tables = TABLE
        self.entry = OFFSETS[arch.pointer_size][8]

    def _size(self, field: str) -> int:
        return 4 if field in ("namelen", "flags", "msg_len") else self.arch.pointer_size

    def number(self, addr: int, size: int) -> int:
        """An unsigned number."""
        return int.from_bytes(self.space.read_bytes(addr, size), self.arch.byte_order)

    def put_number(self, addr: int, value: int, size: int) -> None:
        """Store one; a negative one wraps."""
        self.space.copy_out(addr, (value % (1 << 8 * size)).to_bytes(size, self.arch.byte_order))

    def put(self, ranges: list[tuple[int, int]], addr: int = BASE, **fields: int) -> int:
        """A struct mmsghdr; fields that are not given are 0, but msg_flags and msg_len. Returns its address."""
        word = self.arch.pointer_size
        given = {"iov": self._tables, "iovlen": len(ranges), "flags": 0x5555_5555, "msg_len": 0x6666_6666, **fields}
        for start, length in ranges:
            self.put_number(self._tables, start, word)
            self.put_number(self._tables + word, length, word)
            self._tables += 2 * word
        for field, offset in zip(FIELDS, OFFSETS[word], strict=False):
            self.put_number(addr + offset, given.get(field, 0), self._size(field))
        return addr

    def get(self, addr: int, field: str) -> int:
        """A field of a struct mmsghdr."""
        return self.number(addr + OFFSETS[self.arch.pointer_size][FIELDS.index(field)], self._size(field))

    def answers(self, addr: int) -> tuple[int, int, int]:
        """(namelen, controllen, flags)"""
        return self.get(addr, "namelen"), self.get(addr, "controllen"), self.get(addr, "flags")

    def read(self, addr: int, n: int) -> bytes:
        """Bytes of memory."""
        return self.space.read_bytes(addr, n)
