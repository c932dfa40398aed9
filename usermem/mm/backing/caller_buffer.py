"""CallerBuffer: a buffer of the caller's behind guest addresses, without a copy.

The buffer is exported as long as something refers to its pages: a bytearray cannot be resized meanwhile, an mmap object
not be closed. One that maps a file, which another process may truncate, is copied with safecopy only, and so is one of
which the host does not say what it maps.
"""

from __future__ import annotations

import errno
import mmap
from typing import TYPE_CHECKING, Final

from hostarch import mman
from safemem import Block, copy
from safemem.buffers import readable_view
from safemem.errors import error
from safemem.safecopy import address_of, mappings
from usermem.mm import host_calls
from usermem.mm.backing.backing import Backing
from usermem.mm.backing.private_object import PrivateObject
from usermem.mm.faulting import can_map
from usermem.mm.host_mapping import Held
from usermem.mm.host_run import HostRun

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Shared anonymous memory has a name as a file has. On the kernel's own mount nobody else can make files of these names.
_KERNELS_MOUNT: Final = "00:01"
_NEVER_TRUNCATED: Final = ("/dev/zero (deleted)", "[anon_shmem:", "/SYSV")


class CallerBuffer(Backing):
    """A buffer as it is: both see what either writes."""

    def __init__(self, buffer: ReadableBuffer) -> None:
        """Raises TypeError if it is no buffer, ValueError if its bytes are not contiguous.

        Raises OSError (ENODEV) if it may be truncated and the host cannot copy memory that may fault.
        """
        self._view = readable_view(buffer, "buffer")
        self._base = address_of(self._view)
        memory: mmap.mmap | memoryview | None = buffer if isinstance(buffer, mmap.mmap) else self._view
        self._memory = None if _may_fault(self._view) else memory
        self.max_prot: int = mman.PROT_READ | mman.PROT_EXEC | mman.PROT_WRITE * (not self._view.readonly)

    def __repr__(self) -> str:
        return f"<attached {type(self._view.obj).__name__} of {self._view.nbytes} bytes>"

    def size(self) -> int:
        """How many bytes it has, always."""
        return len(self._view)

    def read_at(self, offset: int, dst: memoryview) -> int:
        """Fill dst with the bytes at offset and return how many there were."""
        _, run = self.run(offset, 0, self.size())
        return copy(Block(dst), run.block(offset, max(len(self._view) - offset, 0)))

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


def _may_fault(view: memoryview) -> bool:
    """Whether the memory behind a view may be a mapping of a file: then it may become shorter than it looks."""
    if type(view.obj) in (bytes, bytearray) or not view.nbytes:
        return False
    start = address_of(view)
    try:
        found = list(mappings(start, start + view.nbytes))
    except OSError:
        found = []
    if found and not any(map(_is_file, found)):
        return False
    if not can_map():
        raise error(errno.ENODEV, "buffer may be a mapping of a file, and this host cannot copy memory that may fault")
    return True


def _is_file(fields: list[str]) -> bool:
    """Whether a line of /proc/self/maps is for a file that can be truncated."""
    if fields[4] == "0":
        return False
    return fields[3] != _KERNELS_MOUNT or not "".join(fields[5:]).startswith(_NEVER_TRUNCATED)
