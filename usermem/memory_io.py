"""IO: the contract of user memory. Everything else is a function over it or a class that fulfils it.

A call moves all bytes and returns the count, or raises an OSError that says how many it moved (``transferred``) and
where it stopped. After an error the bytes before ``transferred`` have arrived and nothing behind them was touched.

An address is the guest's word: any int is accepted, and the worst it does is a FaultError. Counts and buffers are the
caller's: a negative count is a ValueError, a buffer that is none a TypeError.

Source: gVisor pkg/usermem/usermem.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from hostarch import AMD64, NO_ACCESS, AccessType, AddrRange, AddrRangeSeq, Arch
from safemem import Reader, Writer
from safemem.buffers import check_count, check_int
from usermem.errors import FaultError, FaultReason, bytes_before, cut_short

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class IO(Protocol):
    """Access to the contents of a user address space. Any object with these methods is one.

    With ``ignore_permissions`` a call ignores what the guest forbade by mmap or mprotect, as a debugger does. What the
    mapped object itself does not allow stays forbidden.
    """

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        """Copy all bytes of src to addr and return how many. Raises FaultError."""
        ...

    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        """Fill dst with the bytes at addr and return how many. Raises FaultError."""
        ...

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        """Set n bytes at addr to 0 and return n. Raises FaultError; ValueError if n < 0."""
        ...

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        """Let reader fill the memory at ars and return how many bytes it moved.

        Every range is checked first, zero-length ones too. The reader is called at most once, with exactly the
        accessible prefix of ars, and not at all if that has no bytes. Raises FaultError if nothing is accessible, or
        if the prefix was filled and more was asked for; a reader that stops before the hole gives a short count. The
        reader's own errors pass through.
        """
        ...

    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        """Let writer take the memory at ars and return how many bytes it moved. Rules as for copy_out_from."""
        ...

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        """Atomically store new in the uint32 at addr and return what was there. Raises FaultError."""
        ...

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        """Atomically store new in the uint32 at addr if it is old; returns what was there. Raises FaultError."""
        ...

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        """Atomically load the uint32 at addr. Raises FaultError."""
        ...


def arch_of(io: IO) -> Arch:
    """The machine an IO belongs to: its ``arch`` attribute if it has one, else AMD64."""
    arch: Arch = getattr(io, "arch", AMD64)
    return arch


def read_bytes(io: IO, addr: int, n: int, *, ignore_permissions: bool = False) -> bytes:
    """The n bytes at addr. Raises FaultError with the bytes before it in ``partial``.

    An IO that has a method of this name is asked for it.
    """
    try:
        found: bytes = io.read_bytes(addr, n, ignore_permissions=ignore_permissions)  # type: ignore[attr-defined]
    except AttributeError:
        if hasattr(io, "read_bytes"):
            raise
        addr, buffer = check_int(addr, "addr"), bytearray(check_count(n, "n"))
        try:
            io.copy_in(addr, buffer, ignore_permissions=ignore_permissions)
        except OSError as exc:
            cut_short(exc, bytes(buffer[: bytes_before(exc)]))
            raise
        return bytes(buffer)
    return found


def write_bytes(io: IO, addr: int, data: bytes, *, ignore_permissions: bool = False) -> int:
    """Store data that are no stream, and return how many: a part of them is no result.

    Raises FaultError with the bytes before it, which are stored, in ``partial``.
    """
    try:
        return io.copy_out(addr, data, ignore_permissions=ignore_permissions)
    except OSError as exc:
        cut_short(exc, data[: bytes_before(exc)])
        raise


def check_io_range(addr: int, length: int, arch: Arch = AMD64, access: AccessType = NO_ACCESS) -> AddrRange:
    """[addr, addr + length) if it lies in user space, whether anything is mapped there or not: Linux's access_ok().

    There is no lower bound, and an empty range may stand at the very end. Raises FaultError (outside-range) otherwise;
    then nothing of the range may be touched. The fault reports ``access``: what the range was to be checked for.
    """
    addr, length = check_int(addr, "addr"), check_int(length, "length")
    start = checked_start(addr, length, arch, access)
    return AddrRange(start, start + length)


def checked_start(addr: int, length: int, arch: Arch, access: AccessType = NO_ACCESS) -> int:
    """Where the range of :func:`check_io_range` begins. Raises as that does."""
    start = arch.untagged(addr) if arch.ignores_top_byte else addr
    if length < 0 or start < 0 or start + length > arch.max_addr:
        raise FaultError(addr, access, FaultReason.OUTSIDE_RANGE)
    return start
