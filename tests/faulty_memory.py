"""Host memory that really faults: touching the byte after its first ones would kill the process."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Literal

from safemem import Block

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE

Fault = Literal["segv", "bus"]


class FaultyMemory:
    """Some readable and writable pages, and behind them pages that fault as ``fault`` says.

    segv: mapped with PROT_NONE. bus: mapped, but beyond the end of their file. ``edge`` is the host address of the
    first byte that faults.
    """

    def __init__(self, fault: Fault, good_pages: int = 2, bad_pages: int = 2) -> None:
        total = (good_pages + bad_pages) * _PAGE
        good = good_pages * _PAGE
        if fault == "bus":
            fd = os.memfd_create("faulty")
            try:
                os.ftruncate(fd, total)
                self._mmap = mmap.mmap(fd, total)
                os.ftruncate(fd, good)
            finally:
                os.close(fd)
        else:
            self._mmap = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._mmap))
        self.edge = start + good
        if fault == "segv" and _libc.mprotect(ctypes.c_void_p(self.edge), total - good, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        self._good = good

    def block(self, length: int, valid: int, content: bytes = b"") -> Block:
        """A block of which ``valid`` bytes lie before the edge; they get ``content``."""
        start = self._good - valid
        content = content[:valid]
        self._mmap[start : start + len(content)] = content
        return Block.from_address(self.edge - valid, length, self)

    def before_edge(self, n: int) -> bytes:
        """The last n bytes that are there."""
        return self._mmap[self._good - n : self._good]
