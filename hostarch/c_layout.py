"""The standard library's struct formats as a guest's C compiler lays them out, not the host's.

Source: the "struct" module's documentation (byte order, size, and alignment); the psABIs of the machines.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache

_ITEM = re.compile(r"\s*(\d*)([^\d\s])")
_WORDS = {"l": "n", "L": "N", "P": "N", "n": "n", "N": "N"}  # as wide as a pointer: n signed, N unsigned
_BYTES = "xcbB?sp"


@lru_cache(1024)
def c_struct(format_: str, big: bool, pointer_size: int, max_align: int) -> struct.Struct:
    """The Struct of a format on a machine. See Arch.struct. Raises struct.error."""
    order = ">" if big else "<"
    if format_[:1] in ("<", ">", "!"):
        return struct.Struct(format_)
    if format_[:1] == "=":
        return struct.Struct(order + format_[1:])
    made, offset = order, 0
    for count, code in _items(format_.removeprefix("@")):
        if code in _WORDS:
            code = ((_WORDS[code] == "n" and "qi") or "QI")[pointer_size == 4]
        size = struct.calcsize("<" + code)
        if code not in _BYTES:
            padding = -offset % min(size, max_align)
            made += f"{padding}x" * (padding > 0)
            offset += padding
        made += count + code
        offset += int(count or 1) * size
    return struct.Struct(made)


def _items(format_: str) -> list[tuple[str, str]]:
    """(count, code) of each item. Raises struct.error."""
    rest = format_.rstrip()
    found = _ITEM.findall(rest)
    if sum(len(item[0]) + 1 for item in found) != len("".join(rest.split())):
        raise struct.error(f"bad struct format {format_!r}")
    return found
