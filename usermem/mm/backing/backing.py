"""Backing: what lies behind a mapping, and answers for itself.

Nobody outside this folder asks which kind it is. A mapping holds a backing and an offset into it; the calls ask the
backing for memory, for its limits, and to do what only it knows how to do.

Source: gVisor pkg/sentry/memmap (Mappable), Linux's vm_operations_struct.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from hostarch import ANY_ACCESS
from safemem.errors import error

if TYPE_CHECKING:
    from usermem.mm.host_run import HostRun
    from usermem.mm.ranges import Ranges


class Copy(Protocol):
    """The bytes of shared anonymous memory as they were at one moment."""

    length: int
    """How many bytes the memory has."""

    data: Ranges
    """The offsets of the bytes that may be other than zero."""

    def read(self, start: int, end: int) -> bytes:
        """The bytes of [start, end) then."""
        ...

    def written(self) -> Ranges:
        """The pages of the memory whose bytes are others now."""
        ...

    def put_back(self) -> None:
        """Make the memory what it was, for all who share it. Raises OSError, MemoryError."""
        ...

    def twin(self) -> Backing:
        """New shared memory with the bytes of then. Raises MemoryError."""
        ...


def identity(it: object) -> object:
    """A key that is equal to this object's own alone, and keeps it alive: it itself where that is so."""
    kind = type(it)
    return it if kind.__eq__ is object.__eq__ and kind.__hash__ is object.__hash__ else Same(it)


class Same:
    """An object as a key, however it compares itself. It takes ten times as long as the object."""

    __slots__ = ("_it",)

    def __init__(self, it: object) -> None:
        self._it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self._it is other._it

    def __hash__(self) -> int:
        return id(self._it)


class Backing:
    """What a mapping shows. Offsets are in bytes, from the backing's start; each method here is a sound default.

    Methods are called without a lock, for they may be the simulator's code, be slow, or map and unmap. They may be
    called by several threads at once.
    """

    anonymous = False
    """Private memory that begins as zeros: its offsets are guest addresses, and neighbours merge."""

    steady = True
    """Whether only calls to us change which of its bytes can be accessed, so that its pages may be cached."""

    is_read_ahead = False
    """Whether private memory has to be read before it is there: then it is not zeros, nor what the host shows."""

    is_synced = False
    """Whether :meth:`sync` does anything."""

    max_prot: int = ANY_ACCESS
    """The rights that mprotect may grant at most."""

    label: str = ""
    """Its name in /proc/PID/maps, if the mapping has none of its own."""

    device: int = 0
    """The device number of the file behind it, as st_dev."""

    inode: int = 0
    """The inode number of the file behind it."""

    name_format: str | None = None
    """How PR_SET_VMA_ANON_NAME's name is shown, with ``{}``; None where the call is EBADF."""

    @property
    def key(self) -> object:
        """Neighbouring mappings merge only if the keys of their backings are equal."""
        return self

    @property
    def shared_memory(self) -> Backing | None:
        """The shared anonymous memory behind it, which a snapshot copies; None for anything else."""
        return None

    def data(self) -> Ranges:
        """Where shared anonymous memory may have other bytes than zeros, by offsets in whole host pages."""
        raise NotImplementedError

    def copied(self) -> Copy:
        """A copy of the bytes of shared anonymous memory. Raises MemoryError."""
        raise NotImplementedError

    @property
    def mapped(self) -> object:
        """The object that was mapped, as the simulator knows it; None for private anonymous memory."""
        return self

    @property
    def identity(self) -> object:
        """Equal, and hashable, for all mappings of one object, shared and private: Linux's inode."""
        return identity(self.mapped)

    def accessible(self, page: int) -> int | None:
        """How many bytes can be accessed now, where pages are ``page`` bytes long; None if all that is mapped."""
        return None

    def reach(self, page: int) -> int | None:
        """As :meth:`accessible`, also where the host finds that out when the memory is touched."""
        return self.accessible(page)

    def run(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """Host memory in which the byte at ``offset`` lies, and the offset of its first byte.

        The caller uses what lies in [low, high), page-aligned offsets around ``offset``, and nothing else; more may be
        returned if that costs nothing. Raises MemoryError if the host has no memory left, OSError if it refuses, and
        whatever the simulator's code raises.
        """
        raise NotImplementedError

    def unread(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """As :meth:`run`, for pages that an image will show: what has to be read to be there is left out."""
        return self.run(offset, low, high)

    def private(self) -> Backing:
        """What a MAP_PRIVATE mapping shows: the same bytes, but its own once they are written."""
        raise NotImplementedError

    def discard(self, run: HostRun) -> bool:
        """Make private memory what it was when it was mapped (MADV_DONTNEED).

        False if the map must forget the run instead, so that :meth:`run` gives the bytes anew.
        """
        return False

    def populate(self, run: HostRun, advice: int) -> bool:
        """Have the host hold the pages of memory that may fault (MADV_POPULATE_*); False if one is not in its file."""
        return True

    def resident(self, start: int, end: int, page: int) -> bytes:
        """A byte for each page of [start, end) that this mapping has not touched: 1 if the host holds it (mincore)."""
        return bytes((end - start) // page)

    def punch(self, start: int, end: int) -> None:
        """Make [start, end) zero for all who share it (MADV_REMOVE). Raises OSError where there can be no holes."""
        raise error(errno.EOPNOTSUPP, "MADV_REMOVE of what cannot have holes")

    def sync(self, run: HostRun, flags: int) -> None:
        """msync(2) of host memory in which a mapping of a host's file lies."""

    def write_back(self, start: int, end: int) -> None:
        """Give the simulator's object the bytes of [start, end) that were written. Raises what the object raises."""
