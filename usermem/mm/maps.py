"""The mappings as text: /proc/PID/maps.

Source: proc_pid_maps(5); Linux fs/proc/task_mmu.c (show_map_vma, get_vma_name).
"""

from __future__ import annotations

import os

from hostarch import AccessType
from usermem.mm.change import Tables
from usermem.mm.vma import VMA


def format_maps(tables: Tables, pointer_size: int) -> str:
    """A line for each mapping."""
    width = 25 + 6 * pointer_size - 1  # where Linux's show_map_vma() puts the name
    lines = []
    for vma in tables.vmas:
        rights = f"{AccessType(vma.prot)}{'s' if vma.shared else 'p'}"
        device = f"{os.major(vma.backing.device):02x}:{os.minor(vma.backing.device):02x}"
        line = f"{vma.start:08x}-{vma.end:08x} {rights} {vma.offset:08x} {device} {vma.backing.inode} "
        name = printable(name_of(vma, tables))
        lines.append(f"{line:<{width}} {name}\n" if name else f"{line}\n")
    return "".join(lines)


def printable(name: str) -> str:
    """A name as Linux's seq_path() escapes it: a newline is ``\\012``.

    So is all else that does something on a terminal or cannot be printed: control characters, what changes the
    direction of writing, bytes that are no UTF-8. A backslash stays as it is.
    """
    return name if name.isprintable() else "".join(c if c.isprintable() else _octal(c) for c in name)


def _octal(character: str) -> str:
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", errors))


def name_of(vma: VMA, tables: Tables) -> str:
    """The name that Linux shows: of the file, of the heap by its place, or the one it was given."""
    if vma.backing.anonymous and vma.start < tables.brk and vma.end > tables.brk_start:
        return "[heap]"
    return vma.label
