"""A space that has mappings of every kind that a snapshot can hold, and all there is to see of a space."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hostarch import Arch, mman
from simulator_file import SimulatorFile
from usermem import AddressSpace, FaultError, SharedMemory
from usermem.mm.backing.caller_buffer import CallerBuffer

RW = mman.PROT_READ | mman.PROT_WRITE
BASE = 0x1000_0000

Seen = list[tuple[int, bytes] | tuple[int, str, int]]


class EveryMapping:
    """The space, its page size, and the addresses of its mappings."""

    def __init__(self, arch: Arch, directory: Path) -> None:
        """The files behind its mappings are made in a directory."""
        self.arch = arch
        self.page = page = arch.page_size
        self.space = AddressSpace(arch, seed=7, address_limit=1 << 36, data_limit=1 << 30, memlock_limit=1 << 25)
        flags = arch.map_flags
        self.fixed = mman.MAP_PRIVATE | flags.fixed
        self.shared = mman.MAP_SHARED | flags.fixed
        self.anonymous = self.fixed | flags.anonymous
        self.memory = SharedMemory(3 * page - 5)
        self.object = SimulatorFile(bytes(range(256)) * (2 * page // 256) + b"end")
        self.file = self.made(directory / "long", b"file" * (5 * page // 4) + b"end")
        self.short = self.made(directory / "short", b"short")
        self.empty = self.made(directory / "empty", b"")
        self.private_memory()
        self.shared_memory()
        self.private_others()

    def at(self, number: int) -> int:
        """The address of a page."""
        return BASE + number * self.page

    def made(self, path: Path, content: bytes) -> int:
        """The descriptor of a new file."""
        path.write_bytes(content)
        return os.open(path, os.O_RDWR)

    def close(self) -> None:
        """Close the space and the files."""
        self.space.close()
        for fd in (self.file, self.short, self.empty):
            os.close(fd)

    def private_memory(self) -> None:
        """Private anonymous memory of every kind."""
        space, page, at = self.space, self.page, self.at
        space.mmap(at(0), 12 * page, RW, self.anonymous)
        for number in (1, 2, 6, 8):
            space.copy_out(at(number), b"page %d" % number)
        space.mprotect(at(2), page, mman.PROT_NONE)
        space.mprotect(at(3), page, mman.PROT_READ | mman.PROT_EXEC)
        space.madvise(at(4), page, mman.MADV_GUARD_INSTALL)
        space.set_name(at(5), page, "a name")
        space.mlock(at(6), page)
        space.madvise(at(7), page, mman.MADV_DONTFORK)
        space.madvise(at(8), page, mman.MADV_WIPEONFORK)
        space.mmap(at(2000), page, RW, self.anonymous | self.arch.map_flags.growsdown)
        space.copy_out(at(1998), b"stack")
        space.set_brk(at(2100))
        space.brk(at(2102) + 3)
        space.copy_out(at(2101), b"heap")
        space.mlockall(self.arch.map_flags.mcl_future)

    def shared_memory(self) -> None:
        """One shared anonymous memory: twice, at an offset, beyond its end, and private; and one of the guest's."""
        space, page, at = self.space, self.page, self.at
        space.map_object(at(20), 4 * page, RW, self.shared, self.memory)
        space.map_object(at(30), 2 * page, mman.PROT_READ, self.shared, self.memory, page)
        space.map_object(at(40), 4 * page, RW, self.fixed, self.memory)
        space.copy_out(at(20) + 5, b"shared")
        space.copy_out(at(22) + 5, b"the last")
        space.copy_out(at(41), b"its own")
        space.mmap(at(50), 2 * page, RW, self.shared | self.arch.map_flags.anonymous)
        space.copy_out(at(51), b"one more")

    def private_others(self) -> None:
        """Private mappings of files, an object and a buffer: partly written, in pieces, beyond their ends."""
        space, page, at = self.space, self.page, self.at
        space.mmap(at(60), 8 * page, RW, self.fixed, self.file)
        space.copy_out(at(61) + 1, b"written")
        space.copy_out(at(65) + 2, b"written behind the end")
        space.mprotect(at(61), 2 * page, mman.PROT_READ)
        space.mmap(at(70), 2 * page, RW, self.fixed, self.file, 2 * page)
        space.mmap(at(80), 2 * page, mman.PROT_READ, self.fixed, self.short)
        space.mmap(at(90), page, RW, self.fixed, self.empty)
        space.map_object(at(100), 4 * page, RW, self.fixed, self.object)
        space.copy_out(at(101) + 3, b"written")
        space.map_object(at(110), 2 * page, RW, self.fixed, CallerBuffer(bytearray(b"buffer" * page)[: 2 * page]))
        space.copy_out(at(110) + 3, b"written")


def maps(space: AddressSpace) -> str:
    """The text of the mappings without the inode numbers of shared anonymous memory, which is new."""
    return re.sub(r"\b00:01 \d+ +", "00:01 ", space.maps())


def contents(space: AddressSpace) -> Seen:
    """The bytes of each page, or its fault."""
    found: Seen = []
    for vma in space.mappings():
        for addr in range(vma.start, vma.end, space.arch.page_size):
            try:
                found.append((addr, space.read_bytes(addr, space.arch.page_size, ignore_permissions=True)))
            except FaultError as fault:
                found.append((addr, fault.reason.name, fault.transferred))
    return found


def states(space: AddressSpace) -> list[tuple[int, int, int, int, int]]:
    """What maps does not tell of each mapping."""
    return [(vma.start, vma.max_prot, vma.guard, vma.mlock_mode, vma.advice_flags) for vma in space.mappings()]


def assert_same(one: AddressSpace, other: AddressSpace) -> None:
    """All that there is to see of two spaces is the same."""
    for space in (one, other):
        space._check()
    assert maps(one) == maps(other)
    assert states(one) == states(other)
    assert one.brk(0) == other.brk(0)
    for mine, theirs in zip(contents(one), contents(other), strict=True):
        assert mine == theirs, hex(mine[0])
