"""MemoryFile: the memory file of this process, in which shared memory and the images of snapshots lie.

All of it is one file (memfd_create(2)), sealed so that nobody can truncate it. A range of numbers in it costs nothing
until it is touched: no descriptor of its own, no host mapping, no host address space. A child process that is forked
off has the file too.

After a fork nobody knows what the other process still uses. So both begin a new file for what they allocate from then
on, and the old file's memory is given back when its last range is gone.

Source: Linux mm/shmem.c.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from weakref import WeakValueDictionary

from safemem.fork import fork_safe_lock
from usermem.mm import host_calls
from usermem.mm.descriptor import read_into
from usermem.mm.free_list import FreeList

_GRAIN: Final = 1 << 16  # no smaller than the largest page
_SIZE: Final = 1 << 62  # a memory file is sparse: only what is touched costs anything
_SLOT: Final = 1 << 47
_F_ADD_SEALS: Final = 1033
_F_SEAL_SHRINK: Final = 2
MOST_WRITTEN: Final = 1 << 30
"""How many bytes one pwrite(2) is asked for."""


class MemoryFile:
    """The memory file that shared memory is allocated in now, until a fork."""

    fd: int = -1

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
        self.windows: WeakValueDictionary[int, Any] = WeakValueDictionary()
        """What of it is mapped shared, by offsets: SharedMemory's."""

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.fd >= 0 and not ended():
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


_current: MemoryFile | None = None


def memory_file() -> MemoryFile | None:
    """The memory file in use; None where the host has none."""
    global _current
    if _current is None:
        try:
            _current = MemoryFile()
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


def rounded(length: int) -> int:
    """A length in whole pages of the largest size that a guest or a host has."""
    return -(-length // _GRAIN) * _GRAIN


class MemoryRange:
    """Some bytes of the memory file, zeros at first, given back when the last reference to this object is gone."""

    may_fault = False

    def __init__(self, length: int) -> None:
        """``length`` in bytes; it is rounded up. Raises MemoryError if the host has no memory files, or none left."""
        self.length: int = rounded(length)
        file = memory_file()
        if file is None:
            raise MemoryError("this host has no memory files (memfd_create(2))")
        self.start: int = file.allocate(self.length)
        self.file = file

    def __del__(self, ended: Callable[[], bool] = sys.is_finalizing) -> None:
        file: MemoryFile | None = getattr(self, "file", None)  # not if its making was interrupted
        if file is not None and not ended():
            file.give_back(self.start, self.start + self.length)

    def place(self, offset: int) -> tuple[int, int]:
        """The descriptor of the file that the byte at ``offset`` is in, and where in it."""
        return self.file.fd, self.start + offset

    def fill(self, offset: int, src: memoryview) -> None:
        """Put the bytes of src at ``offset``, which lie inside. Raises OSError: EFAULT if src is memory that faults."""
        fd, at = self.place(offset)
        done = 0
        while done < len(src):
            done += os.pwrite(fd, src[done : done + MOST_WRITTEN], at + done)

    def read_at(self, offset: int, dst: memoryview) -> int:
        """Fill dst with the bytes at ``offset``, up to the end, and return how many there were."""
        fd, at = self.place(offset)
        return read_into(fd, at, dst[: max(self.length - offset, 0)])
