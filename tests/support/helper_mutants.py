"""IOs that offer faster strings and vectors of their own, each broken in one way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostarch import AddrRangeSeq
from mutants import PAGE, Wrapper
from usermem import FaultError, NameTooLongError
from usermem.strings import copy_string_in_chunks
from usermem.vec import copy_in_ranges

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Helper(Wrapper):
    """Its own ways do what the library's do: not broken."""

    def copy_string_in(self, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
        return copy_string_in_chunks(self.inner, addr, maxlen, ignore_permissions=ignore_permissions)

    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        return copy_in_ranges(self.inner, ars, dst, ignore_permissions=ignore_permissions)


class NulMissedAtTheBoundary(Helper):
    def copy_string_in(self, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
        found = super().copy_string_in(addr, maxlen, ignore_permissions=ignore_permissions)
        if (addr + len(found)) % PAGE == PAGE - 1:  # the NUL is the last byte of its page
            return (
                found
                + b"\0"
                + super().copy_string_in(addr + len(found) + 1, maxlen, ignore_permissions=ignore_permissions)
            )
        return found


class WholeChunkMustBeReadable(Helper):
    def copy_string_in(self, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
        chunk = bytearray(min(maxlen, 16))
        try:
            self.inner.copy_in(addr, chunk, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            fault.partial = b""
            raise
        return super().copy_string_in(addr, maxlen, ignore_permissions=ignore_permissions)


class NulDoesNotCount(Helper):
    def copy_string_in(self, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
        return super().copy_string_in(addr, maxlen + (maxlen > 0), ignore_permissions=ignore_permissions)


class TruncatedStringIsWhole(Helper):
    def copy_string_in(self, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
        try:
            return super().copy_string_in(addr, maxlen, ignore_permissions=ignore_permissions)
        except NameTooLongError as error:
            found: bytes = error.partial
            return found


class StringAtAFaultIsWhole(Helper):
    def copy_string_in(self, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
        try:
            return super().copy_string_in(addr, maxlen, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            found: bytes = fault.partial
            if not found:
                raise
            return found


class StringFaultLosesItsPart(Helper):
    def copy_string_in(self, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
        try:
            return super().copy_string_in(addr, maxlen, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            fault.partial = b""
            raise


class StringFaultsAtItsStart(Helper):
    def copy_string_in(self, addr: int, maxlen: int, *, ignore_permissions: bool = False) -> bytes:
        try:
            return super().copy_string_in(addr, maxlen, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            fault.address = addr
            raise


class VectorEndsAtItsFirstRange(Helper):
    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        return super().copy_in_vec(
            AddrRangeSeq.of(ars.head()) if ars else ars, dst, ignore_permissions=ignore_permissions
        )


class VectorFillsTooMuch(Helper):
    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        n = super().copy_in_vec(ars, dst, ignore_permissions=ignore_permissions)
        view = memoryview(dst).cast("B")
        view[n:] = bytes(len(view) - n)
        return n


class VectorChecksWhatItDoesNotReach(Helper):
    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        n = super().copy_in_vec(ars, dst, ignore_permissions=ignore_permissions)
        super().copy_in_vec(ars, bytearray(ars.num_bytes), ignore_permissions=ignore_permissions)
        return n


class VectorFaultCountsItsRangeOnly(Helper):
    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_in_vec(ars, dst, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            if len(ars) > 1 and ars.head().length:
                fault.transferred -= min(ars.head().length, fault.transferred)
            raise


HELPER_MUTANTS = [mutant for mutant in list(vars().values()) if isinstance(mutant, type) and Helper in mutant.__bases__]
