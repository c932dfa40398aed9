"""Contents: the bytes of private host memory where nobody has written, which are compared and copied back.

Source: CRIU's images.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from typing import Final

from safemem import HostFaultError, safecopy
from safemem.safecopy import view_at
from usermem.mm import host_pages
from usermem.mm.extent import ExtentSet
from usermem.mm.ranges import Ranges, differing, joined

_CHUNK: Final = 1 << 28  # bytes that the host is asked of at a time
_PAGE: Final = mmap.PAGESIZE


class Contents:
    """What private memory of one owner holds where nobody has written: the bytes of images, or those of the base."""

    def __init__(self, fd: int = -1, origin: int = 0) -> None:
        """The base is zeros; or the file of a descriptor, of which host address ``a`` shows the byte at origin + a."""
        self.extents: ExtentSet = ExtentSet()
        self._fd = fd
        self._origin = origin

    def copy_back(self, start: int, end: int) -> None:
        """Put the bytes back that were there before somebody wrote, where they are others."""
        for low, high in self.compared(start, end):
            if self._is_plain(low, high):
                view_at(low, high - low)[:] = self._clean(low, high)
                continue
            for at in range(low, high, _PAGE):
                with suppress(HostFaultError):  # the file has been truncated
                    safecopy.copy_out(at, memoryview(self._clean(at, at + _PAGE)))

    def _is_plain(self, start: int, end: int) -> bool:
        """Whether nothing in [start, end) can fault: no file that somebody can truncate."""
        return self._fd < 0 and not any(extent.image.may_fault for extent in self.extents.within(start, end))

    def _read(self, start: int, end: int) -> bytes:
        """The bytes of [start, end) now: what cannot be read is zeros."""
        return bytes(view_at(start, end - start)) if self._is_plain(start, end) else bytes_at(start, end)

    def compared(self, start: int, end: int) -> Ranges:
        """Where the bytes are others than those of the images and the base: for hosts that do not tell."""
        touched = [(extent.start, extent.end) for extent in self.extents.within(start, end)]
        for at in range(start, end, _CHUNK):
            touched += host_pages.touched(at, min(at + _CHUNK, end))
        return differing(joined(touched), self._read, self._clean)

    def _clean(self, start: int, end: int) -> bytes:
        """The bytes of [start, end) as they were before somebody wrote."""
        base = os.pread(self._fd, end - start, self._origin + start) if self._fd >= 0 else b""
        clean = bytearray(base.ljust(end - start, b"\0"))
        for extent in self.extents.within(start, end):
            extent.image.read_at(extent.offset, memoryview(clean)[extent.start - start : extent.end - start])
        return bytes(clean)


def bytes_at(start: int, end: int) -> bytes:
    """The bytes at host addresses, which may fault: what cannot be read is zeros."""
    read = bytearray(end - start)
    with suppress(HostFaultError):
        safecopy.copy_in(memoryview(read), start)
    return bytes(read)
