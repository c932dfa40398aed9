"""Who is told before executable memory is written: an emulator that has translated it.

The quick ways of the page cache pay nothing for it: while there is a listener, pages of executable mappings are not
cached for writing, so that each write to them asks the map where they are.
"""

from __future__ import annotations

from collections.abc import Callable

from hostarch import mman
from usermem.mm.memory_map import MemoryMap

CodeListener = Callable[[int, int], object]


def watch_code(mm: MemoryMap, listener: CodeListener | None) -> None:
    """Set the listener; None for none."""
    cache = mm._cache
    with mm._lock:
        mm.code_listener = listener
        held = cache.frozen
        try:
            cache.frozen = True
            cache.forget_all()
        finally:
            cache.frozen = held


def tell_code(mm: MemoryMap, start: int, end: int) -> None:
    """Tell the listener that [start, end), which lies in one mapping, is about to be written, if it is executable."""
    listener, vma = mm.code_listener, mm.tables.vmas.find(start)
    if listener is not None and vma is not None and vma.prot & mman.PROT_EXEC:
        listener(start, end)
