"""CallerBuffer: a buffer of the caller's behind guest addresses, without a copy.

The buffer is exported as long as something refers to its pages: a bytearray cannot be resized meanwhile, an mmap object
not be closed. One that maps a file, which another process may truncate, is copied with safecopy only.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final

from hostarch import mman
from safemem.buffers import readable_view
from safemem.safecopy import address_of, mapping_at
from usermem.mm import host_calls
from usermem.mm.backing.backing import Backing
from usermem.mm.backing.private_object import PrivateObject
from usermem.mm.host_calls import Held
from usermem.mm.host_run import HostRun

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NEVER_TRUNCATED: Final = ("/dev/zero", "[anon_shmem", "/SYSV")  # the names of shared anonymous memory


class CallerBuffer(Backing):
    """A buffer as it is: both see what either writes."""

    def __init__(self, buffer: ReadableBuffer) -> None:
        """Raises TypeError if it is no buffer, ValueError if its bytes are not contiguous."""
        self._view = readable_view(buffer, "buffer")
        self._base = address_of(self._view)
        memory: mmap.mmap | memoryview | None = buffer if isinstance(buffer, mmap.mmap) else self._view
        self._memory = None if _maps_a_file(self._view) else memory
        self.max_prot = mman.PROT_READ | mman.PROT_EXEC | mman.PROT_WRITE * (not self._view.readonly)

    def size(self) -> int:
        """How many bytes it has, always."""
        return len(self._view)

    def read_at(self, offset: int, dst: memoryview) -> int:
        """Fill dst with the bytes at offset and return how many there were."""
        data = self._view[offset : offset + len(dst)]
        dst[: len(data)] = data
        return len(data)

    def accessible(self, page: int) -> int:
        """All of it: it is whole pages."""
        return len(self._view)

    def run(self, offset: int, low: int, high: int) -> tuple[int, HostRun]:
        """The whole buffer. See Backing.run."""
        return 0, HostRun(self._memory, self._base, 0, len(self._view), Held(self._view))

    def resident(self, start: int, end: int, page: int) -> bytes:
        return host_calls.resident(self._base + start, end - start, page) or b"\1" * ((end - start) // page)

    def private(self) -> Backing:
        """A copy of what is touched."""
        return PrivateObject(self)


def _maps_a_file(view: memoryview) -> bool:
    """Whether the memory behind a view is a mapping of a file: then it may become shorter than it looks."""
    found = mapping_at(address_of(view)) if view.nbytes else []
    return bool(found) and found[4] != "0" and not "".join(found[5:]).startswith(_NEVER_TRUNCATED)
