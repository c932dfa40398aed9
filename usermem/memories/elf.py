"""ELF headers, as far as a core file and the machine of a process need them: by our own minimal reading.

Every number is the file's word, so each is checked before it is used. Source: elf(5); Linux fs/binfmt_elf.c
(elf_core_dump, fill_files_note).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from struct import Struct
from typing import Final

from attrs import evolve, frozen

import hostarch
from hostarch import Arch
from safemem.errors import error

PT_LOAD: Final = 1
PT_NOTE: Final = 4
NT_AUXV: Final = 6
NT_FILE: Final = 0x46494C45
ET_CORE: Final = 4

_PN_XNUM: Final = 0xFFFF
_MAX_SEGMENTS: Final = 1 << 20
_MAX_NOTES: Final = 1 << 26  # bytes; Linux writes 16 MiB for NT_FILE at most, and some KiB a thread

# e_machine: the machine for 64-bit and 32-bit files.
_MACHINES: Final[dict[int, tuple[Arch | None, Arch | None]]] = {
    3: (None, hostarch.I386),
    8: (None, hostarch.MIPS),
    21: (hostarch.PPC64, None),
    22: (hostarch.S390X, None),
    40: (None, hostarch.ARM),
    62: (hostarch.AMD64, None),
    183: (hostarch.ARM64, None),
    243: (hostarch.RISCV64, None),
}


@frozen
class Segment:
    """A program header. Sizes and offsets are in bytes; ``flags`` are PF_X 1, PF_W 2 and PF_R 4."""

    type: int
    flags: int
    offset: int
    start: int
    file_size: int
    size: int


@frozen
class Elf:
    """The headers of a file that is open as ``fd``. ``segments`` has those that are memory or notes."""

    fd: int
    type: int
    machine: int
    order: str
    wide: bool
    segments: tuple[Segment, ...]

    def struct(self, fields: str) -> Struct:
        """A struct in the file's byte order. ``N`` is a word of the file's class."""
        return Struct(self.order + fields.replace("N", "Q" if self.wide else "I"))

    def notes(self) -> Iterator[tuple[int, bytes]]:
        """(type, content) of each note whose owner is CORE. Raises OSError (ENOEXEC) for a note that is cut short."""
        header = self.struct("III")
        for segment in self.segments:
            if segment.type != PT_NOTE:
                continue
            if segment.file_size > _MAX_NOTES:
                raise bad(f"its notes have {segment.file_size} bytes; at most {_MAX_NOTES} are read")
            data = read_at(self.fd, segment.offset, segment.file_size, "the notes")
            at = 0
            while at < len(data):
                if at + header.size > len(data):
                    raise bad("a note is cut short")
                name_size, size, kind = header.unpack_from(data, at)
                name_at = at + header.size
                content = name_at + -(-name_size // 4) * 4
                at = content + -(-size // 4) * 4
                if not name_size or content + size > len(data):
                    raise bad(f"a note at {name_at - header.size:#x} of the notes has no name, or is cut short")
                if data[name_at : name_at + name_size].rstrip(b"\0") == b"CORE":
                    yield kind, data[content : content + size]


def bad(reason: str) -> OSError:
    """What is raised for a file that is no ELF file of the kind that is asked for: ENOEXEC."""
    return error(errno.ENOEXEC, reason)


def read_at(fd: int, offset: int, size: int, what: str) -> bytes:
    """So many bytes of a file. Raises OSError (ENOEXEC) if it has fewer."""
    if offset + size > os.fstat(fd).st_size:
        raise bad(f"it ends before {what}")
    found = bytearray()
    while True:
        piece = os.pread(fd, size - len(found), offset + len(found))
        found += piece
        if len(found) == size:
            return bytes(found)
        if not piece:
            raise bad(f"it ends before {what}")


def read_elf(fd: int) -> Elf:
    """The headers of a file. Raises OSError: ENOEXEC, with what is wrong, if it is no sound ELF file."""
    ident = read_at(fd, 0, 16, "the end of an ELF header")
    if ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2) or ident[6] != 1:
        raise bad("it is no ELF file")
    order, wide = "<" if ident[5] == 1 else ">", ident[4] == 2
    elf = Elf(fd, 0, 0, order, wide, ())
    header = elf.struct("HHINNNIHHHHHH")
    fields = header.unpack(read_at(fd, 16, header.size, "the end of its header"))
    kind, machine, _, _, table, sections, _, _, entry_size, count, section_size, _, _ = fields
    if count == _PN_XNUM:  # the number is in the first section header (Linux fill_elf_note_phdr)
        section = elf.struct("IINNNNIINN")
        if section_size != section.size:
            raise bad(f"section headers have {section_size} bytes, not {section.size}")
        count = section.unpack(read_at(fd, sections, section.size, "its first section header"))[7]
    entry = elf.struct("IIQQQQQQ" if wide else "IIIIIIII")
    if count and entry_size != entry.size:
        raise bad(f"program headers have {entry_size} bytes, not {entry.size}")
    if count > _MAX_SEGMENTS:
        raise bad(f"it has {count} program headers; at most {_MAX_SEGMENTS} are read")
    data = read_at(fd, table, count * entry.size, "the end of its program headers")
    segments = tuple(_segment(x, wide) for x in entry.iter_unpack(data) if x[0] in (PT_LOAD, PT_NOTE))
    return evolve(elf, type=kind, machine=machine, segments=segments)


def _segment(fields: tuple[int, ...], wide: bool) -> Segment:
    if wide:
        kind, flags, offset, start, _, file_size, size, _ = fields
    else:
        kind, offset, start, _, file_size, size, flags, _ = fields
    return Segment(kind, flags, offset, start, file_size, size)


def arch_of_elf(elf: Elf) -> Arch:
    """The machine of a file. Raises OSError (ENOEXEC) if it is none that hostarch has."""
    arch = _MACHINES.get(elf.machine, (None, None))[not elf.wide]
    if arch is None:
        raise bad(f"its machine ({elf.machine}, {64 if elf.wide else 32} bits) is not known: give arch")
    if arch is hostarch.MIPS and elf.order == "<":
        return hostarch.MIPSEL
    return evolve(arch, byte_order="little" if elf.order == "<" else "big")
