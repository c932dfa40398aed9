"""ObjectPages: the pages of a simulator's file that shared mappings have in common, and their way back into it.

All shared mappings of one object, in all address spaces of this process, see the same pages. Pages are read when they
are first touched; those that have changed since are written back by msync and munmap, if the object has ``write_at``.

Source: mmap(2), MAP_SHARED; gVisor pkg/sentry/fsutil (CachingInodeOperations).
"""

from __future__ import annotations

import mmap
import threading
from hashlib import blake2b
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from usermem.shared_memory import HostPiece

if TYPE_CHECKING:
    from usermem.vma import MappedObject

WINDOW: Final = 1 << 18
"""How much of an object is read at a time, in bytes."""

_PAGE: Final = 4096  # the unit of what is written back

_lock = threading.Lock()
_known: WeakValueDictionary[int, ObjectPages] = WeakValueDictionary()


def shared_pages(mapped: MappedObject) -> ObjectPages:
    """The pages of an object: the same as long as somebody has them mapped."""
    with _lock:
        pages = _known.get(id(mapped))
        if pages is None:
            pages = _known[id(mapped)] = ObjectPages(mapped)
        return pages


class _Window:
    """Some pages, and what each was when it was last the object's."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.view = memoryview(memory)
        self.digests = [self.digest(at) for at in range(0, len(memory), _PAGE)]

    def digest(self, at: int) -> bytes:
        """Of the page at an offset."""
        return blake2b(self.view[at : at + _PAGE], digest_size=16).digest()


class ObjectPages:
    """A MappedObject that keeps the pages of another."""

    def __init__(self, mapped: MappedObject) -> None:
        self.mapped = mapped
        self._windows: dict[int, _Window] = {}
        self._lock = threading.RLock()  # read_at and write_at may touch what is mapped

    def size(self) -> int:
        """See MappedObject."""
        return self.mapped.size()

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject. What is mapped counts, not what the object was."""
        done = 0
        while done < len(dst):
            piece = self.piece(offset + done)
            start = offset + done - self.window_start(offset + done)
            part = piece.memory[start : start + len(dst) - done]
            dst[done : done + len(part)] = part
            done += len(part)
        return done

    @staticmethod
    def window_start(offset: int) -> int:
        """Where the window begins that an offset lies in."""
        return offset // WINDOW * WINDOW

    def piece(self, offset: int) -> HostPiece:
        """The memory of the window that an offset lies in, read if nobody has touched it. Raises what read_at does."""
        start = self.window_start(offset)
        with self._lock:
            window = self._windows.get(start)
            if window is None:
                memory = mmap.mmap(-1, WINDOW)
                self.mapped.read_at(start, memoryview(memory))
                window = self._windows[start] = _Window(memory)
            return HostPiece(window.memory, 0, WINDOW)

    def sync(self, start: int, end: int) -> None:
        """Write back the pages of [start, end) that have changed, as far as the object reaches now."""
        write_at = getattr(self.mapped, "write_at", None)
        if write_at is None:
            return
        with self._lock:
            size = self.mapped.size()
            for base, window in sorted(self._windows.items()):
                for at in range(0, WINDOW, _PAGE):
                    offset = base + at
                    if offset + _PAGE <= start or offset >= min(end, size):
                        continue
                    digest = window.digest(at)
                    if digest != window.digests[at // _PAGE]:
                        before, window.digests[at // _PAGE] = window.digests[at // _PAGE], digest
                        try:  # it is written back by now: write_at may itself unmap
                            write_at(offset, window.view[at : at + min(_PAGE, size - offset)])
                        except BaseException:
                            window.digests[at // _PAGE] = before
                            raise
