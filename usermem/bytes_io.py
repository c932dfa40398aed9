"""BytesIO: the bytes of a buffer as user memory, addresses being offsets. The smallest IO; read this first.

Source: gVisor pkg/usermem/bytes_io.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostarch import AMD64, AccessType, AddrRange, AddrRangeSeq, Arch
from safemem import Block
from safemem.buffers import check_count, check_int, readable_view
from usermem.errors import FaultError, FaultReason
from usermem.io_sequence import IOSequence
from usermem.resolver import ResolvedIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class BytesIO(ResolvedIO):
    """User memory over a caller's buffer: address 0 is its first byte, and nothing is mapped past its last.

    There are no permissions to ignore, but a read-only buffer faults when written. A range of zero length is fine at
    any address, and atomics need no alignment.
    """

    _atomics_aligned = False

    def __init__(self, buffer: ReadableBuffer, arch: Arch = AMD64) -> None:
        """Raises TypeError if it is no buffer, ValueError if it is not contiguous."""
        self.arch = arch
        self._view = readable_view(buffer, "buffer")

    def range_fault(self, addr: int, length: int, access: AccessType) -> FaultError | None:
        """The fault if the range is ill-formed, so that its length is negative as an int64."""
        return FaultError(addr, access, FaultReason.OUTSIDE_RANGE) if check_int(length, "length") >> 63 else None

    def resolve(
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[list[Block], FaultError | None]:
        if not type(addr) is type(length) is int:
            addr, length = check_int(addr, "addr"), check_count(length, "length")
        if not length:
            return [], None
        if not 0 <= addr < len(self._view):
            return [], FaultError(addr, access, FaultReason.UNMAPPED)
        if access.write and self._view.readonly:
            return [], FaultError(addr, access, FaultReason.PERMISSION)
        n = min(length, len(self._view) - addr)
        fault = None if n == length else FaultError(addr + n, access, FaultReason.UNMAPPED)
        return [Block.from_view(self._view, addr, n)], fault


def bytes_io_sequence(buffer: ReadableBuffer) -> IOSequence:
    """An IOSequence over all bytes of a buffer. (gVisor's BytesIOSequence.)"""
    view = readable_view(buffer, "buffer")
    return IOSequence(BytesIO(view), AddrRangeSeq.of(AddrRange(0, len(view))))
