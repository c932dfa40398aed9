"""ELF cores by hand: any class, byte order and damage. Source: elf(5), core(5)."""

from __future__ import annotations

import struct
from pathlib import Path

from attrs import field, frozen

PAGE = 4096
NT_FILE = 0x46494C45


@frozen
class Load:
    """A PT_LOAD segment: ``content`` is what was dumped of ``size`` bytes; ``flags`` are PF_R 4, PF_W 2, PF_X 1."""

    addr: int
    flags: int
    content: bytes
    size: int = field()

    @size.default
    def _size(self) -> int:
        return len(self.content)


@frozen
class CoreFile:
    """A core; ``files`` are (start, end, page, name) of NT_FILE. Fields that are set replace what would be right."""

    loads: list[Load]
    files: list[tuple[int, int, int, str]] = field(factory=list)
    auxv: bytes = b""
    wide: bool = True
    order: str = "<"
    machine: int = 62
    kind: int = 4
    many: bool = False  # the number of headers is in the first section header
    notes: bytes | None = None
    header: dict[int, int] = field(factory=dict)  # fields of the ELF header by their number

    def pack(self, fields: str, *values: int) -> bytes:
        """Values in the core's byte order; N is a word."""
        return struct.pack(self.order + fields.replace("N", "Q" if self.wide else "I"), *values)

    def note(self, kind: int, content: bytes) -> bytes:
        """A note of the owner CORE."""
        return self.pack("III", 5, len(content), kind) + b"CORE\0\0\0\0" + content + bytes(-len(content) % 4)

    def _notes(self) -> bytes:
        if self.notes is not None:
            return self.notes
        table = self.pack("NN", len(self.files), PAGE)
        table += b"".join(self.pack("NNN", start, end, page) for start, end, page, _ in self.files)
        table += b"".join(name.encode() + b"\0" for *_, name in self.files)
        return self.note(1, b"registers") + self.note(6, self.auxv) + self.note(NT_FILE, table)

    def bytes(self) -> bytes:
        """The file."""
        count = len(self.loads) + 1
        header_size, entry_size, section_size = (64, 56, 64) if self.wide else (52, 32, 40)
        notes = self._notes()
        notes_at = header_size + count * entry_size + (section_size if self.many else 0)
        at = -(-(notes_at + len(notes)) // PAGE) * PAGE
        entries = [(4, 0, notes_at, 0, len(notes), 0)]
        for load in self.loads:
            entries.append((1, load.flags, at, load.addr, len(load.content), load.size))
            at += -(-len(load.content) // PAGE) * PAGE
        sections = header_size + count * entry_size
        fields = [self.kind, self.machine, 1, 0, header_size, sections if self.many else 0, 0, header_size, entry_size]
        fields += [0xFFFF if self.many else count, section_size, 1 if self.many else 0, 0]
        for number, value in self.header.items():
            fields[number] = value
        data = b"\x7fELF" + bytes([2 if self.wide else 1, 1 if self.order == "<" else 2, 1]) + bytes(9)
        data += self.pack("HHINNNIHHHHHH", *fields)
        for kind, flags, offset, start, file_size, size in entries:
            if self.wide:
                data += self.pack("IIQQQQQQ", kind, flags, offset, start, 0, file_size, size, PAGE)
            else:
                data += self.pack("IIIIIIII", kind, offset, start, 0, file_size, size, flags, PAGE)
        if self.many:
            data += self.pack("IINNNNIINN", 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
        data += notes
        for load in self.loads:
            data += bytes(-len(data) % PAGE) + load.content
        return data

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        path.write_bytes(self.bytes())
        return path
