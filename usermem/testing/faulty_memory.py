"""FaultyMemory: host memory that really faults. Touching it past its edge kills the process; copying it must not."""

from __future__ import annotations

import ctypes
import mmap
import tempfile
from typing import Literal

from safemem import Block
from safemem.errors import error

_PAGE = mmap.PAGESIZE

Fault = Literal["segv", "bus"]


class FaultyMemory:
    """Some readable and writable pages, and behind them pages that fault as ``fault`` says.

    segv: mapped with PROT_NONE. bus: mapped, but beyond the end of their file. ``edge`` is the host address of the
    first byte that faults.
    """

    def __init__(self, fault: Fault, good_pages: int = 2, bad_pages: int = 2) -> None:
        """Raises OSError if the host refuses such memory."""
        total = (good_pages + bad_pages) * _PAGE
        self._good = good_pages * _PAGE
        if fault == "bus":
            with tempfile.TemporaryFile() as file:
                file.truncate(total)
                self._mmap = mmap.mmap(file.fileno(), total)
                file.truncate(self._good)
        else:
            self._mmap = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.edge: int = ctypes.addressof(ctypes.c_char.from_buffer(self._mmap)) + self._good
        if fault == "segv" and _libc().mprotect(ctypes.c_void_p(self.edge), ctypes.c_size_t(total - self._good), 0):
            raise error(ctypes.get_errno(), "mprotect")

    def block(self, length: int, valid: int, content: bytes = b"") -> Block:
        """A block of which ``valid`` bytes lie before the edge; they get ``content``."""
        start = self._good - valid
        content = content[:valid]
        self._mmap[start : start + len(content)] = content
        return Block.from_address(self.edge - valid, length, self)

    def before_edge(self, n: int) -> bytes:
        """The last n bytes that are there."""
        return self._mmap[self._good - n : self._good]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
