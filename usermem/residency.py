"""Which pages of the guest's the host holds in memory.

Source: mincore(2).
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from safemem.safecopy import address_of
from usermem.attached import AttachedPiece
from usermem.host_file import FaultyPiece

if TYPE_CHECKING:
    from usermem.pma import PMA

_CHUNK: Final = 1 << 16  # pages that are asked for at a time


def resident_pages(pma: PMA, start: int, end: int, page: int) -> bytes:
    """A byte for each page of [start, end), which lies inside a PMA: 1 if one of the host's pages in it is there.

    Where the host cannot tell, all pages that have a place are.
    """
    count = (end - start) // page
    if pma.host is None:
        return bytes(count)
    address = _address(pma) + start - pma.start
    found = bytearray()
    step = page * _CHUNK
    for at in range(address, address + end - start, step):
        part = _ask(at, min(at + step, address + end - start), page)
        if part is None:
            return b"\1" * count
        found += part
    return bytes(found)


def touch(view: memoryview) -> None:
    """Have the host place every page of a view, as reading does."""
    view[:: mmap.PAGESIZE].tobytes()


def _address(pma: PMA) -> int:
    """The host address of a PMA that has one."""
    host = pma.host
    if isinstance(host, FaultyPiece):
        return host.start
    if isinstance(host, AttachedPiece):
        return address_of(host.view())
    assert host is not None
    assert host.memory is not None
    with memoryview(host.memory) as view:
        return address_of(view) + host.start


def _ask(start: int, end: int, page: int) -> bytes | None:
    """A byte for each guest page from a host address on, None if the host cannot tell."""
    size = mmap.PAGESIZE
    low = start & -size
    vector = ctypes.create_string_buffer(-(-(end - low) // size))
    mincore = _mincore()
    if mincore is None or mincore(low, end - low, vector):
        return None
    bits = bytes(byte & 1 for byte in vector.raw)
    if page == size and low == start:
        return bits
    return bytes(any(bits[(at - low) // size : -(-(at + page - low) // size)]) for at in range(start, end, page))


@cache
def _mincore() -> Any:
    try:
        function: Any = ctypes.CDLL(None).mincore
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    return function
