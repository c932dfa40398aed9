"""IOs that offer faster strings and vectors of their own, each broken in one way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostarch import AddrRangeSeq
from mutants import PAGE, Wrapper
from usermem import DEFAULT_OPTS, FaultError, IOOpts, NameTooLongError
from usermem.strings import copy_string_in_chunks
from usermem.vec import copy_in_ranges

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Helper(Wrapper):
    """Its own ways do what the library's do: not broken."""

    def copy_string_in(self, addr: int, maxlen: int, opts: IOOpts = DEFAULT_OPTS) -> bytes:
        return copy_string_in_chunks(self.inner, addr, maxlen, opts)

    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        return copy_in_ranges(self.inner, ars, dst, opts)


class NulMissedAtTheBoundary(Helper):
    def copy_string_in(self, addr: int, maxlen: int, opts: IOOpts = DEFAULT_OPTS) -> bytes:
        found = super().copy_string_in(addr, maxlen, opts)
        if (addr + len(found)) % PAGE == PAGE - 1:  # the NUL is the last byte of its page
            return found + b"\0" + super().copy_string_in(addr + len(found) + 1, maxlen, opts)
        return found


class WholeChunkMustBeReadable(Helper):
    def copy_string_in(self, addr: int, maxlen: int, opts: IOOpts = DEFAULT_OPTS) -> bytes:
        chunk = bytearray(min(maxlen, 16))
        try:
            self.inner.copy_in(addr, chunk, opts)
        except FaultError as fault:
            fault.partial = b""
            raise
        return super().copy_string_in(addr, maxlen, opts)


class NulDoesNotCount(Helper):
    def copy_string_in(self, addr: int, maxlen: int, opts: IOOpts = DEFAULT_OPTS) -> bytes:
        return super().copy_string_in(addr, maxlen + (maxlen > 0), opts)


class TruncatedStringIsWhole(Helper):
    def copy_string_in(self, addr: int, maxlen: int, opts: IOOpts = DEFAULT_OPTS) -> bytes:
        try:
            return super().copy_string_in(addr, maxlen, opts)
        except NameTooLongError as error:
            found: bytes = error.partial
            return found


class StringAtAFaultIsWhole(Helper):
    def copy_string_in(self, addr: int, maxlen: int, opts: IOOpts = DEFAULT_OPTS) -> bytes:
        try:
            return super().copy_string_in(addr, maxlen, opts)
        except FaultError as fault:
            found: bytes = fault.partial
            if not found:
                raise
            return found


class StringFaultLosesItsPart(Helper):
    def copy_string_in(self, addr: int, maxlen: int, opts: IOOpts = DEFAULT_OPTS) -> bytes:
        try:
            return super().copy_string_in(addr, maxlen, opts)
        except FaultError as fault:
            fault.partial = b""
            raise


class StringFaultsAtItsStart(Helper):
    def copy_string_in(self, addr: int, maxlen: int, opts: IOOpts = DEFAULT_OPTS) -> bytes:
        try:
            return super().copy_string_in(addr, maxlen, opts)
        except FaultError as fault:
            fault.address = addr
            raise


class VectorEndsAtItsFirstRange(Helper):
    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        return super().copy_in_vec(AddrRangeSeq.of(ars.head()) if ars else ars, dst, opts)


class VectorFillsTooMuch(Helper):
    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        n = super().copy_in_vec(ars, dst, opts)
        view = memoryview(dst).cast("B")
        view[n:] = bytes(len(view) - n)
        return n


class VectorChecksWhatItDoesNotReach(Helper):
    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        n = super().copy_in_vec(ars, dst, opts)
        super().copy_in_vec(ars, bytearray(ars.num_bytes), opts)
        return n


class VectorFaultCountsItsRangeOnly(Helper):
    def copy_in_vec(self, ars: AddrRangeSeq, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        try:
            return super().copy_in_vec(ars, dst, opts)
        except FaultError as fault:
            if len(ars) > 1 and ars.head().length:
                fault.transferred -= min(ars.head().length, fault.transferred)
            raise


HELPER_MUTANTS = [mutant for mutant in list(vars().values()) if isinstance(mutant, type) and Helper in mutant.__bases__]
