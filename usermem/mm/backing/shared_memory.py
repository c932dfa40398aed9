"""SharedMemory: anonymous memory that several mappings, address spaces and forked processes have in common.

All of it lies in one memory file of this process (memfd_create(2)), sealed so that nobody can truncate it. A
SharedMemory is a range of numbers in that file until it is touched: no descriptor of its own, no host mapping, no
host address space. Touched, a window of the file is mapped, which small memories next to each other share. A child
process that is forked off has the file too, so it sees the same bytes even where neither had touched them before.

After a fork nobody knows what the other process still uses. So both begin a new file for what they allocate from then
on, and the old file's memory is given back when its last SharedMemory is gone.

Source: mmap(2), MAP_SHARED with MAP_ANONYMOUS; Linux mm/shmem.c.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
from contextlib import suppress
from typing import Final
from weakref import WeakValueDictionary

from hostarch import mman
from safemem.buffers import check_count, check_positive
from safemem.fork import fork_safe_lock
from usermem.mm import host_calls
from usermem.mm.arena import MAP_NORESERVE, FreeList
from usermem.mm.backing.backing import Backing
from usermem.mm.backing.private_object import PrivateObject
from usermem.mm.host_calls import READ_WRITE, Held, HostMapping
from usermem.mm.host_run import HostRun, mmap_address

_WINDOW: Final = 1 << 26
_GRAIN: Final = 1 << 16  # no smaller than the largest page
_SIZE: Final = 1 << 62  # a memory file is sparse: only what is touched costs anything
_SLOT: Final = 1 << 47
_F_ADD_SEALS: Final = 1033
_F_SEAL_SHRINK: Final = 2
_MADV_REMOVE: Final = getattr(mmap, "MADV_REMOVE", None)
_SHMEM_DEVICE: Final = os.makedev(0, 1) if hasattr(os, "makedev") else 0

_inodes = itertools.count(1)


class _MemoryFile:
    """The memory file that shared memory is allocated in now, until a fork."""

    fd = -1

    def __init__(self) -> None:
        """Raises OSError or AttributeError where the host has no memory files."""
        self.fd = -1
        import fcntl

        self.fd = os.memfd_create("usermem-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, _SIZE)
        fcntl.fcntl(self.fd, _F_ADD_SEALS, _F_SEAL_SHRINK)
        self.retired = False
        self._free = FreeList()
        self._free.give(0, _SIZE // 2)
        self._spare = itertools.count(_SIZE // 2, _SLOT)
        self._lock = fork_safe_lock()
        self._windows: WeakValueDictionary[int, HostMapping] = WeakValueDictionary()

    def __del__(self) -> None:
        if self.fd >= 0:
            with suppress(OSError):  # a sandbox that refuses even that
                os.close(self.fd)

    def allocate(self, length: int) -> int:
        """The offset of ``length`` bytes that are nobody's. Raises MemoryError."""
        with self._lock: start = self._free.take(length)  # fmt: skip # noqa: E701 - see MemoryMap.change
        if start is None and length <= _SLOT:  # a signal handler, say, that came in where all was taken out
            start = next(self._spare)
        if start is None or start + length > _SIZE:
            raise MemoryError(f"the memory file has no {length:#x} bytes left")
        return start

    def give_back(self, start: int, end: int) -> None:
        """Take back a range that nothing refers to any more; what another process may still use is left alone."""
        if self.retired or sys.is_finalizing():  # the file goes with the process
            return
        try:
            host_calls.punch_hole(self.fd, start, end)
        except OSError:
            return  # a host that refuses: the range keeps its bytes, so it is not used again
        with self._lock: self._free.give(start, end)  # fmt: skip # noqa: E701

    def window(self, at: int) -> HostMapping:
        """The host mapping of the window that an offset lies in."""
        start = at & -_WINDOW
        mapping = self._windows.get(start)
        if mapping is None:
            mapping = HostMapping(self.fd, start, _WINDOW, READ_WRITE, mman.MAP_SHARED, plain=True)
            mapping = self._windows.setdefault(start, mapping)
        return mapping


_current: _MemoryFile | None = None


def _memory_file() -> _MemoryFile | None:
    """The memory file in use; None where the host has none."""
    global _current
    if _current is None:
        try:
            _current = _MemoryFile()
        except (AttributeError, ImportError, OSError):
            return None
    return _current


def _retire() -> None:
    global _current
    if _current is not None:
        _current.retired = True
    _current = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_retire, after_in_parent=_retire)


class SharedMemory(Backing):
    """``length`` bytes, zeros at first, which nobody can truncate.

    Map it by ``AddressSpace.map_object``, as often as you like: all MAP_SHARED mappings see the same bytes, a
    MAP_PRIVATE one keeps what it writes to itself. A child process that is forked off later shares them.
    """

    label = "/dev/zero (deleted)"
    name_format = "[anon_shmem:{}]"
    device = _SHMEM_DEVICE

    def __init__(self, length: int) -> None:
        """``length`` in bytes, above 0. Raises MemoryError, OSError or ValueError if the host refuses."""
        self._length = length = check_positive(length, "length")
        self._room = -(-length // _GRAIN) * _GRAIN  # the rest of the last page is shared, too
        self.inode = next(_inodes)
        self._file: _MemoryFile | None = None
        self._whole: mmap.mmap | None = None
        file = _memory_file()
        if file is not None:
            self._start = file.allocate(self._room)
            self._file = file
            return
        host_calls.check_mappings()
        if hasattr(mmap, "MAP_SHARED"):
            self._whole = mmap.mmap(-1, self._room, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        else:
            self._whole = mmap.mmap(-1, self._room)
        self._counted = host_calls.Unmapping()

    def __del__(self) -> None:
        file: _MemoryFile | None = getattr(self, "_file", None)
        if file is not None:
            file.give_back(self._start, self._start + self._room)

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

    def accessible(self, page: int) -> int:
        """All of its pages, the last one whole. See Backing.accessible."""
        return -(-self._length // page) * page

    def run(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """What of it lies in the window of the memory file around ``offset``. See Backing.run."""
        if self._file is None:
            assert self._whole is not None
            return 0, HostRun(self._whole, mmap_address(self._whole), 0, self._room, Held(self))
        window = (self._start + offset) & -_WINDOW
        mapping = self._file.window(window)
        start, end = max(window, self._start), min(window + _WINDOW, self._start + self._room)
        return start - self._start, mapping.run(start - window, end - window, Held(self, mapping))

    def resident(self, start: int, end: int, page: int) -> bytes:
        stop = max(start, min(end, self._room))
        if self._file is not None:
            found = host_calls.file_resident(self._file.fd, self._start + start, self._start + stop, page, True)
        else:
            assert self._whole is not None
            base = mmap_address(self._whole)
            found = host_calls.resident(base + start, stop - start, page) or b"\1" * ((stop - start) // page)
        return found.ljust((end - start) // page, b"\0")

    def private(self) -> Backing:
        """Pages of its own for a MAP_PRIVATE mapping, as the host's copy-on-write has it."""
        return PrivateObject(self) if self._file is None else _PrivateMemory(self, self._file, self._start)

    def punch(self, start: int, end: int) -> None:
        """Make [start, end) zero for all who share it; bytes beyond the last page are not touched (MADV_REMOVE)."""
        end = min(end, self._room)
        if start >= end:
            return
        if self._file is not None:
            host_calls.punch_hole(self._file.fd, self._start + start, self._start + end)
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


class _PrivateMemory(Backing):
    """A MAP_PRIVATE mapping of a SharedMemory: pages are shared until they are written."""

    def __init__(self, shared: SharedMemory, file: _MemoryFile, start: int) -> None:
        self._shared = shared
        self._file = file
        self._start = start
        self.inode = shared.inode

    label = SharedMemory.label
    name_format = SharedMemory.name_format
    device = SharedMemory.device

    @property
    def key(self) -> object:
        """Neighbours of one memory merge."""
        return type(self), self._shared

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
        room = self._shared.accessible(_GRAIN)
        start, end = max(offset & -_WINDOW, low), min((offset & -_WINDOW) + _WINDOW, high, room)
        mapping = HostMapping(self._file.fd, self._start + start, end - start, READ_WRITE, mman.MAP_PRIVATE, plain=True)
        return start, mapping.run(0, end - start, Held(self._shared, mapping))

    def private(self) -> Backing:
        """Return self: it is private."""
        return self

    def discard(self, run: HostRun) -> bool:
        """Forget what its pages hold: the shared bytes are back. A host that refuses maps them anew."""
        return host_calls.can_advise(run, mman.MADV_DONTNEED)
