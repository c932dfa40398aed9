"""Image: pages as they were at one moment, which a snapshot keeps, in the process's memory file or in a file.

Source: CRIU's images.
"""

from __future__ import annotations

import errno
import mmap
import os
from functools import cache
from typing import Final, Protocol

from safemem import safecopy
from safemem.errors import error
from safemem.safecopy import address_of
from usermem.mm import host_calls
from usermem.mm.descriptor import Descriptor, read_into
from usermem.mm.faulting import can_map
from usermem.mm.memory_file import MemoryRange, memory_file

_SMALLEST_PAGE: Final = 4096


class Image(Protocol):
    """Pages as they were at one moment. Whoever made it fills it; after that nobody writes to it."""

    may_fault: bool
    """Whether its pages, mapped, may raise a signal: somebody can truncate the file."""

    def fill(self, offset: int, src: memoryview) -> None:
        """Put the bytes of src at ``offset``. Raises OSError."""
        ...

    def place(self, offset: int) -> tuple[int, int]:
        """The descriptor of the file that the byte at ``offset`` is in, and where in it."""
        ...

    def read_at(self, offset: int, dst: memoryview) -> int:
        """Fill dst with the bytes at ``offset`` and return how many there were: fewer if the file was truncated."""
        ...


class _Bytes:
    """An image for hosts that have no memory files. It is never mapped."""

    may_fault = False

    def __init__(self, length: int) -> None:
        self._bytes = bytearray(length)

    def place(self, offset: int) -> tuple[int, int]:
        raise MemoryError("the host has no memory file (memfd_create(2)) now: is a descriptor left?")

    def fill(self, offset: int, src: memoryview) -> None:
        if can_map():  # then src may be of a file that somebody truncates
            safecopy.copy_in(memoryview(self._bytes)[offset : offset + len(src)], address_of(src))
        else:
            self._bytes[offset : offset + len(src)] = src

    def read_at(self, offset: int, dst: memoryview) -> int:
        part = self._bytes[offset : offset + len(dst)]
        dst[: len(part)] = part
        return len(part)


class FileImage(Descriptor):
    """Pages of a file that somebody may truncate. The file is open as long as something refers to the image."""

    may_fault = True

    def place(self, offset: int) -> tuple[int, int]:
        """The descriptor of the file, and the offset."""
        return self.fd, offset

    def fill(self, offset: int, src: memoryview) -> None:
        """Raise OSError: it is not written."""
        raise error(errno.EBADF, "a snapshot's file is not written")

    def read_at(self, offset: int, dst: memoryview) -> int:
        """Fill dst from the offset on, and return how many bytes the file has there. Raises OSError."""
        return read_into(self.fd, offset, dst)


def read_whole(image: Image, offset: int, length: int) -> bytearray:
    """The ``length`` bytes of an image at ``offset``. Raises OSError (EIO) if the file has become shorter."""
    found = bytearray(length)
    count = image.read_at(offset, memoryview(found))
    if count < length:
        raise error(errno.EIO, "the snapshot's file was truncated after it was loaded")
    return found


def new_image(length: int) -> Image:
    """An image of zeros, to be filled before anybody sees it. Raises MemoryError."""
    return MemoryRange(length) if length and memory_file() is not None else _Bytes(length)


@cache
def maps_images() -> bool:
    """Whether images can be mapped here: a memory file over private pages, which MADV_DONTNEED shows again.

    No page of the host's may be larger than a guest's: it could belong to two mappings. Raises MemoryError if the host
    is out of descriptors or memory, and so cannot say.
    """
    size = mmap.PAGESIZE
    if size > _SMALLEST_PAGE:
        return False
    try:
        fd = os.memfd_create("usermem-probe", os.MFD_CLOEXEC)
    except AttributeError:
        return False
    except OSError as exc:
        if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return False
        raise MemoryError(f"the host has no memory file for the pages of a snapshot now: {exc}") from exc
    try:
        os.pwrite(fd, b"\1" * size, 0)
        with host_calls.reserve(size) as memory, memoryview(memory) as view:
            address = address_of(view)
            if list(host_calls.mappings_to_be([(address, address + size)], [size], [(fd, 0)])) != [address]:
                return False
            memory[0] = 2
            host_calls.drop([address], [size])
            return memory[0] == 1
    except (AttributeError, OSError):
        return False
    finally:
        os.close(fd)
