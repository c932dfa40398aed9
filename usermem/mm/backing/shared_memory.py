"""SharedMemory: anonymous memory that several mappings, address spaces and forked processes have in common.

A SharedMemory is a range of the process's memory file, which nobody can truncate. Touched, a window of the file is
mapped, which small memories next to each other share. A child process that is forked off has the file too, so it sees
the same bytes even where neither had touched them before.

Source: mmap(2), MAP_SHARED with MAP_ANONYMOUS; Linux mm/shmem.c.
"""

from __future__ import annotations

import itertools
import mmap
import os
from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import Final

from hostarch import mman
from safemem.buffers import check_count, check_positive
from usermem.mm import holes, host_calls
from usermem.mm.backing.backing import Backing
from usermem.mm.backing.private_object import PrivateObject
from usermem.mm.host_calls import MAP_NORESERVE, READ_WRITE
from usermem.mm.host_mapping import Held, HostMapping
from usermem.mm.host_run import HostRun, mmap_address
from usermem.mm.image import Image, new_image, read_whole
from usermem.mm.memory_file import MemoryFile, MemoryRange, memory_file, rounded
from usermem.mm.ranges import Ranges, differing, joined

_WINDOW: Final = 1 << 26
_CHUNK: Final = 1 << 20  # copied at a time
_MADV_REMOVE: Final = getattr(mmap, "MADV_REMOVE", None)
_SHMEM_DEVICE: Final = os.makedev(0, 1) if hasattr(os, "makedev") else 0

_inodes = itertools.count(1)


def _window(file: MemoryFile, start: int) -> HostMapping:
    """The host mapping of a window of the memory file, which all small memories in it have in common."""
    mapping: HostMapping | None = file.windows.get(start)
    if mapping is None:
        mapping = HostMapping(file.fd, start, _WINDOW, READ_WRITE, mman.MAP_SHARED, plain=True)
        mapping = file.windows.setdefault(start, mapping)
    return mapping


class SharedMemory(Backing):
    """``length`` bytes, zeros at first, which nobody can truncate.

    Map it by ``AddressSpace.map_object``, as often as you like: all MAP_SHARED mappings see the same bytes, a
    MAP_PRIVATE one keeps what it writes to itself. A child process that is forked off later shares them.
    """

    label = "/dev/zero (deleted)"
    name_format: str | None = "[anon_shmem:{}]"
    device = _SHMEM_DEVICE

    def __init__(self, length: int) -> None:
        """``length`` in bytes, above 0. Raises MemoryError, OSError or ValueError if the host refuses."""
        self._length = length = check_positive(length, "length")
        self._room = rounded(length)  # the rest of the last page is shared, too
        self.inode: int = next(_inodes)
        self._range: MemoryRange | None = None
        self._whole: mmap.mmap | None = None
        if memory_file() is not None:
            self._range = MemoryRange(length)
            return
        host_calls.check_mappings()
        if hasattr(mmap, "MAP_SHARED"):
            self._whole = mmap.mmap(-1, self._room, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        else:
            self._whole = mmap.mmap(-1, self._room)
        self._counted = host_calls.Unmapping()

    def size(self) -> int:
        """How many bytes it has, always."""
        return self._length

    def read_at(self, offset: int, dst: memoryview) -> int:
        """Fill dst with the bytes at offset and return how many there were."""
        offset = check_count(offset, "offset")
        done = 0
        while done < len(dst) and offset + done < self._room:
            start, run = self.run(offset + done, 0, self._room)
            skip = offset + done - start
            part = run.view()[skip : skip + len(dst) - done]
            dst[done : done + len(part)] = part
            done += len(part)
        return done

    @property
    def shared_memory(self) -> SharedMemory:
        """Return self."""
        return self

    def copied(self) -> SharedCopy:
        """A copy of its bytes, but for what was never touched. Raises MemoryError if the host has no memory left.

        Who shares it may be in other address spaces, or other processes: nobody keeps track of what they write.
        """
        data = self.data()
        image, at = new_image(sum(end - start for start, end in data)), 0
        for start, end in data:
            for low in range(start, end, _CHUNK):
                part = self.read(low, min(low + _CHUNK, end))
                image.fill(at, memoryview(part))
                at += len(part)
        return SharedCopy(self, data, image)

    def data(self) -> Ranges:
        """Where it may have other bytes than zeros, in whole host pages."""
        if self._range is None:
            return [(0, self._room)]
        fd, first = self._range.place(0)
        return [(start - first, end - first) for start, end in holes.data(fd, first, first + self._room)]

    def read(self, start: int, end: int) -> bytes:
        """The bytes of [start, end)."""
        part = bytearray(end - start)
        self.read_at(start, memoryview(part))
        return bytes(part)

    def write(self, offset: int, src: bytes) -> None:
        """Put some bytes at offset, for all who share it."""
        done = 0
        while done < len(src):
            start, run = self.run(offset + done, 0, self._room)
            skip = offset + done - start
            part = run.view()[skip : skip + len(src) - done]
            part[:] = src[done : done + len(part)]
            done += len(part)

    def accessible(self, page: int) -> int:
        """All of its pages, the last one whole. See Backing.accessible."""
        return -(-self._length // page) * page

    def run(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """What of it lies in the window of the memory file around ``offset``. See Backing.run."""
        if self._range is None:
            assert self._whole is not None
            return 0, HostRun(self._whole, mmap_address(self._whole), 0, self._room, Held(self))
        first = self._range.start
        window = (first + offset) & -_WINDOW
        mapping = _window(self._range.file, window)
        start, end = max(window, first), min(window + _WINDOW, first + self._room)
        return start - first, mapping.run(start - window, end - window, Held(self, mapping))

    def resident(self, start: int, end: int, page: int) -> bytes:
        stop = max(start, min(end, self._room))
        if self._range is not None:
            fd, first = self._range.place(start)
            found = host_calls.file_resident(fd, first, first + stop - start, page, True)
        else:
            assert self._whole is not None
            base = mmap_address(self._whole)
            found = host_calls.resident(base + start, stop - start, page) or b"\1" * ((stop - start) // page)
        return found.ljust((end - start) // page, b"\0")

    def private(self) -> Backing:
        """Pages of its own for a MAP_PRIVATE mapping, as the host's copy-on-write has it."""
        return PrivateObject(self) if self._range is None else _PrivateMemory(self, self._range)

    def punch(self, start: int, end: int) -> None:
        """Make [start, end) zero for all who share it; bytes beyond the last page are not touched (MADV_REMOVE)."""
        end = min(end, self._room)
        if start >= end:
            return
        if self._range is not None:
            fd, first = self._range.place(start)
            host_calls.punch_hole(fd, first, first + end - start)
            return
        assert self._whole is not None
        # Where the host can, it gets its memory back. It does so for whole pages of its own.
        if _MADV_REMOVE is not None and not (start | end) & (mmap.PAGESIZE - 1):
            try:
                self._whole.madvise(_MADV_REMOVE, start, end - start)
                return
            except OSError:
                pass
        self._whole[start:end] = bytes(end - start)


class SharedCopy:
    """The bytes of a shared memory as they were at one moment. It keeps the memory alive."""

    def __init__(self, memory: SharedMemory, data: Ranges, image: Image, first: int = 0) -> None:
        """The bytes of ``data``, some ranges of the memory, are in the image in a row, from an offset on."""
        self.memory = memory
        self.length: int = memory.size()
        self.data = data
        self._image = image
        before = itertools.accumulate((end - start for start, end in data), initial=first)
        self._distances = [at - start for at, (start, _) in zip(before, data, strict=False)]

    def read(self, start: int, end: int) -> bytes:
        """The bytes of [start, end) then. Raises OSError (EIO) if they are in a file that was truncated."""
        found = bytearray(end - start)
        first = bisect_right(self.data, start, key=itemgetter(1))
        stop = bisect_left(self.data, end, key=itemgetter(0))
        for (low, high), distance in zip(self.data[first:stop], self._distances[first:stop], strict=True):
            low, high = max(low, start), min(high, end)
            found[low - start : high - start] = read_whole(self._image, low + distance, high - low)
        return bytes(found)

    def written(self) -> Ranges:
        """The pages of the memory whose bytes are others now."""
        return differing(joined([*self.memory.data(), *self.data]), self.memory.read, self.read)

    def put_back(self) -> None:
        """Make the memory what it was, for all who share it. Raises OSError."""
        for start, end in self.written():
            then = self.read(start, end)
            if any(then):
                self.memory.write(start, then)
            else:
                self.memory.punch(start, end)

    def twin(self) -> SharedMemory:
        """A new memory with the bytes of then. Raises MemoryError."""
        memory = SharedMemory(self.memory.size())
        for start, end in self.data:
            for low in range(start, end, _CHUNK):
                memory.write(low, self.read(low, min(low + _CHUNK, end)))
        return memory


class _PrivateMemory(Backing):
    """A MAP_PRIVATE mapping of a SharedMemory: pages are shared until they are written."""

    def __init__(self, shared: SharedMemory, memory: MemoryRange) -> None:
        self._shared = shared
        self._range = memory
        self.inode = shared.inode

    label = SharedMemory.label
    name_format = SharedMemory.name_format
    device = SharedMemory.device

    @property
    def key(self) -> object:
        """Neighbours of one memory merge."""
        return type(self), self._shared

    @property
    def shared_memory(self) -> SharedMemory:
        """What it shows where it was not written."""
        return self._shared

    @property
    def mapped(self) -> object:
        """The SharedMemory."""
        return self._shared

    def accessible(self, page: int) -> int:
        return self._shared.accessible(page)

    def resident(self, start: int, end: int, page: int) -> bytes:
        return self._shared.resident(start, end, page)

    def run(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """A host mapping of its own. See Backing.run."""
        start, end = max(offset & -_WINDOW, low), min((offset & -_WINDOW) + _WINDOW, high, self._range.length)
        fd, first = self._range.place(start)
        mapping = HostMapping(fd, first, end - start, READ_WRITE, mman.MAP_PRIVATE, plain=True)
        return start, mapping.run(0, end - start, Held(self._shared, mapping))

    def private(self) -> Backing:
        """Return self: it is private."""
        return self

    def discard(self, run: HostRun) -> bool:
        """Forget what its pages hold: the shared bytes are back. A host that refuses maps them anew."""
        return not run.is_imaged and host_calls.can_advise(run.address, len(run), mman.MADV_DONTNEED)
