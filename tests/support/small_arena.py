"""An arena that reserves little at a time, and questions to ask about the pieces of host memory that it hands out."""

from __future__ import annotations

import ctypes
import gc
import mmap
from itertools import pairwise

from usermem.mm.arena import Arena
from usermem.mm.host_run import HostRun

PAGE = mmap.PAGESIZE
CHUNK = 16 * PAGE

Place = tuple[int, int]
"""The addresses, in this process, of a first byte and past a last."""


class SmallArena(Arena):
    """Its first reservation has 16 pages, so that what is free can be told page by page."""

    def __init__(self) -> None:
        super().__init__()
        self._next_chunk = CHUNK


def place(host: HostRun) -> Place:
    """Where in this process a piece is: the addresses of its first byte and past its last."""
    return host.address, host.address + len(host)


def overlap(a: Place, b: Place) -> bool:
    """Whether two places have a byte in common."""
    return a[0] < b[1] and b[0] < a[1]


def fill(host: HostRun, byte: int = 0xEE) -> None:
    """Write something into all of a piece."""
    host.view()[:] = bytes([byte]) * len(host)


def content(host: HostRun) -> bytes:
    """All bytes of a piece."""
    return host.view().tobytes()


def resident(at: Place) -> int:
    """How many pages of a place the kernel holds in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    vector = (ctypes.c_ubyte * ((at[1] - at[0]) // PAGE))()
    if libc.mincore(ctypes.c_void_p(at[0]), ctypes.c_size_t(at[1] - at[0]), vector):
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in vector)


def free_pages(arena: Arena) -> set[int]:
    """The addresses of the pages that an arena hands out: it is asked for single ones until it needs a new chunk."""
    gc.collect()
    chunks = len(arena.chunks)
    got: list[HostRun] = []
    while len(arena.chunks) == chunks:
        got.append(arena.allocate(PAGE))
    return {place(host)[0] for host in got[:-1]}


def check_free(arena: Arena) -> None:
    """Nothing is free twice."""
    free = sorted([*arena._free._ends.items(), *arena._returned, *arena._warm])
    assert all(end <= start for (_, end), (start, _) in pairwise(free)), free


def is_free(arena: Arena, at: Place) -> bool:
    """Whether the arena hands the place out again."""
    pages = free_pages(arena)
    found = [start in pages for start in range(at[0], at[1], PAGE)]
    assert all(found) or not any(found), "only a part is free"
    return all(found)
