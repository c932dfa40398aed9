"""open_core: an ELF core as read-only user memory, without a copy.

The file is mapped here once. Another process may truncate it, and a core that ran out of disk space is shorter than its
headers say; so only safecopy touches the mapping, and bytes that the file does not have are faults and no SIGBUS.

Source: core(5); Linux fs/coredump.c (vma_dump_size).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Self

from attrs import evolve

from hostarch import READ, AccessType, Arch, mman
from safemem import Block
from safemem.buffers import check_count, check_int
from usermem.errors import FaultError, FaultReason
from usermem.memories.elf import ET_CORE, NT_AUXV, NT_FILE, PT_LOAD, Elf, Segment, arch_of_elf, bad, read_elf
from usermem.memories.mapping import MappedRange, find
from usermem.memory_io import checked_start
from usermem.mm.host_mapping import HostMapping
from usermem.resolver import ResolvedIO


def open_core(path: str | os.PathLike[str], *, arch: Arch | None = None) -> CoreIO:
    """Open the ELF core at ``path``. ``arch`` is by default the machine that the core names.

    Raises OSError: ENOEXEC, with what is wrong, for a file that is no sound core, else what open(2) and mmap(2) say.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # which does not wait in a pipe
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise bad("it is no regular file")
        elf = read_elf(fd)
        if elf.type != ET_CORE:
            raise bad("it is an ELF file, but no core")
        return CoreIO(elf, arch_of_elf(elf) if arch is None else arch)
    except OSError as exc:
        exc.filename = path
        raise
    finally:
        os.close(fd)


class CoreIO(ResolvedIO):
    """The memory of the process that dumped a core: use :func:`open_core`.

    What is written to it is a fault (permission), with ``ignore_permissions`` too. Memory that was mapped and not
    dumped (a program's text, most often), or that the file is too short for, is a fault too (beyond-file).
    """

    def __init__(self, elf: Elf, arch: Arch) -> None:
        """Map the file, whose descriptor the caller may close. Raises as open_core."""
        self.arch = arch
        segments = _loads(elf)
        self.auxv: bytes = b""
        """The auxiliary vector as the kernel gave it to the program (NT_AUXV); empty if the core has none."""
        names: list[MappedRange] = []
        for kind, content in elf.notes():
            if kind == NT_FILE and not names:
                names = list(_files(elf, content))
            elif kind == NT_AUXV and not self.auxv:
                self.auxv = content
        size = os.fstat(elf.fd).st_size
        self._ranges = [_named(segment, names) for segment in segments]
        # Of each, where its bytes are in the file, and how many of them the file has.
        self._dumped = [(each.offset, max(min(each.file_size, size - each.offset), 0)) for each in segments]
        self._file: HostMapping | None = None
        if size:
            self._file = HostMapping(elf.fd, 0, size, mman.PROT_READ, mman.MAP_SHARED)

    def mappings(self) -> list[MappedRange]:
        """The mappings of the process, in order, with the names of files that NT_FILE gives."""
        return list(self._ranges)

    def close(self) -> None:
        """Give the file up. Blocks that are still referred to keep it mapped."""
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def range_fault(self, addr: int, length: int, access: AccessType) -> FaultError | None:
        try:
            checked_start(check_int(addr, "addr"), check_int(length, "length"), self.arch, access)
        except FaultError as fault:
            return fault.with_traceback(None)
        return None

    def resolve(
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[list[Block], FaultError | None]:
        """Raises ValueError if the core is closed."""
        file = self._file
        if file is None:
            raise ValueError("the core is closed")
        addr, length = check_int(addr, "addr"), check_count(length, "length")
        start = at = self.arch.untagged(addr)
        blocks: list[Block] = []
        while at < start + length:
            index = find(self._ranges, at)
            reason = self._reason(index, access, ignore_permissions)
            if reason is not None:
                return blocks, FaultError(addr + at - start, access, reason)
            mapping, (offset, size) = self._ranges[index], self._dumped[index]
            n = min(start + length, mapping.start + size) - at
            if n <= 0:
                return blocks, FaultError(addr + at - start, access, FaultReason.BEYOND_FILE)
            blocks.append(file.run(0, file.length).block(offset + at - mapping.start, n))
            at += n
        return blocks, None

    def _reason(self, index: int, access: AccessType, ignore_permissions: bool) -> FaultReason | None:
        """Why a mapping cannot be accessed, whatever was dumped of it."""
        if index < 0:
            return FaultReason.UNMAPPED
        readable = ignore_permissions or AccessType(self._ranges[index].prot).effective() & READ
        return None if readable and not access.write else FaultReason.PERMISSION


def _loads(elf: Elf) -> list[Segment]:
    """The segments of memory, in order. Raises OSError (ENOEXEC) if they overlap, or leave the address space."""
    segments = sorted((each for each in elf.segments if each.type == PT_LOAD and each.size), key=lambda x: x.start)
    end = 0
    for each in segments:
        if each.start < end:
            raise bad(f"its segments overlap at {each.start:#x}")
        end = each.start + each.size
        if end > 1 << (64 if elf.wide else 32):
            raise bad(f"the segment at {each.start:#x} leaves the address space")
        if each.file_size > each.size:
            raise bad(f"the segment at {each.start:#x} has more bytes in the file than in memory")
    return segments


def _files(elf: Elf, content: bytes) -> Iterator[MappedRange]:
    """The mapped files of a note NT_FILE: count, page size, then start, end and page of each, then all names."""
    word = elf.struct("N").size
    head = elf.struct("NN")
    if len(content) < head.size:
        raise bad("its table of mapped files is cut short")
    count, page = head.unpack_from(content)
    names_at = head.size + 3 * word * count
    if names_at > len(content):
        raise bad(f"its table of mapped files has {len(content)} bytes, too few for {count}")
    names = content[names_at:].split(b"\0", count)
    if len(names) <= count:
        raise bad(f"its table of mapped files has {len(names) - 1} names for {count}")
    for (start, end, pages), name in zip(
        elf.struct("NNN").iter_unpack(content[head.size : names_at]), names, strict=False
    ):
        yield MappedRange(start, end, 0, offset=pages * page, label=os.fsdecode(name))


def _named(segment: Segment, names: list[MappedRange]) -> MappedRange:
    """A segment as a mapping, with the file that is mapped there. ELF has its rights in the other order."""
    flags = segment.flags
    prot = (flags >> 2 & 1) | (flags & 2) | (flags & 1) << 2
    mapping = MappedRange(segment.start, segment.start + segment.size, prot)
    index = find(names, segment.start)
    if index < 0:
        return mapping
    file = names[index]
    return evolve(mapping, offset=file.offset + segment.start - file.start, label=file.label)
