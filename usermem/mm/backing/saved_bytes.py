"""SavedBytes: what private mappings of a file, or of an object, showed when a snapshot was saved.

It has the name that the file had, and its end. What a mapping of it writes, it writes to pages of its own.

Source: mmap(2), MAP_PRIVATE.
"""

from __future__ import annotations

from hostarch import mman
from usermem.mm.arena import Arena
from usermem.mm.backing.backing import Backing
from usermem.mm.extent import Extent, ExtentSet
from usermem.mm.host_calls import READ_WRITE, can_advise
from usermem.mm.host_mapping import Held, HostMapping
from usermem.mm.host_run import HostRun
from usermem.mm.image import maps_images
from usermem.mm.saved_space import SavedMapping

_WINDOW = 1 << 26

_arena = Arena()


class SavedBytes(Backing):
    """Bytes in an image, at the offsets at which mappings showed them; zeros where nothing was saved."""

    def __init__(self, mapping: SavedMapping) -> None:
        """Of a mapping, and of those beside it that showed more of the same; :meth:`add` says what they showed."""
        self.label: str = mapping.label
        self.device: int = mapping.device
        self.inode: int = mapping.inode
        self.name_format: str | None = mapping.name_format
        self.is_read_ahead: bool = not maps_images()
        self._accessible = mapping.accessible
        self._parts = ExtentSet()

    def add(self, part: Extent) -> None:
        """Let the bytes of an image be at the offsets [start, end) of an extent. Before anybody maps it."""
        self._parts = self._parts.exchange([], [part])

    def accessible(self, page: int) -> int | None:
        return None if self._accessible is None else -(-self._accessible // page) * page

    def run(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """A host mapping of its own. See Backing.run."""
        low, high = max(low, offset & -_WINDOW), min(high, (offset & -_WINDOW) + _WINDOW)
        part = self._parts.find(offset)
        if part is None:
            low, high = self._parts.gap(offset, low, high)
            return low, _arena.allocate(high - low)
        part = part.cut(max(low, part.start), min(high, part.end))
        length = part.end - part.start
        if self.is_read_ahead:
            run = _arena.allocate(length)
            part.image.read_at(part.offset, run.view())
            return part.start, run
        fd, place = part.image.place(part.offset)
        mapping = HostMapping(fd, place, length, READ_WRITE, mman.MAP_PRIVATE, plain=not part.image.may_fault)
        return part.start, mapping.run(0, length, Held(self, mapping))

    def unread(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """Zeros, where the bytes would have to be read. See Backing.unread."""
        return (low, _arena.allocate(high - low)) if self.is_read_ahead else self.run(offset, low, high)

    def private(self) -> SavedBytes:
        """Return self: it is private."""
        return self

    def discard(self, run: HostRun) -> bool:
        """Forget what private pages hold: the saved bytes are back (MADV_DONTNEED)."""
        return not run.is_imaged and not self.is_read_ahead and can_advise(run.address, len(run), mman.MADV_DONTNEED)
