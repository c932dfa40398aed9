"""render: the mappings of a space, process or core for people, with sizes and holes; colour on a terminal.

``AddressSpace.maps`` gives the same to programs, as /proc/PID/maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hostarch import AccessType
from usermem.mm.maps import printable
from usermem.terminal import has_colour, paint

if TYPE_CHECKING:
    from usermem.address_space import AddressSpace
    from usermem.memories.core import CoreIO
    from usermem.memories.process import ProcessIO

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
# By what a mapping allows: writing red, executing green, reading plain, nothing dim.
_COLOURS: Final = {"w": "31", "x": "32", "r": "39", "-": "2"}


def render(space: AddressSpace | ProcessIO | CoreIO, colour: bool | None = None) -> str:
    """A line for each mapping and for each hole between two: addresses, size, rights, what is mapped.

    ``colour`` None is colour if the standard output is a terminal and NO_COLOR is not set.
    """
    if colour is None:
        colour = has_colour()
    width = 2 * space.arch.pointer_size
    lines = []
    end = None
    for mapping in space.mappings():
        if end is not None and mapping.start > end:
            lines.append(f"{'':{2 * width + 1}}  {human_size(mapping.start - end):>9}  ....  hole\n")
        rights = f"{AccessType(mapping.prot)}{'s' if mapping.shared else 'p'}"
        name = printable(mapping.label)
        offset = f" +{mapping.offset:#x}" if mapping.offset else ""
        size = human_size(mapping.end - mapping.start)
        line = f"{mapping.start:0{width}x}-{mapping.end:0{width}x}  {size:>9}  {rights}  {name}{offset}".rstrip()
        kind = next((letter for letter in "wxr" if letter in rights[:3]), "-")
        lines.append(f"{paint(line, _COLOURS[kind]) if colour else line}\n")
        end = mapping.end
    return "".join(lines)


def human_size(n: int) -> str:
    """A number of bytes in the largest unit of which there is one, with at most one decimal."""
    size = float(n)
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.1f}".removesuffix(".0") + f" {unit}"
