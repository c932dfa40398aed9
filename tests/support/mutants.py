"""IOs that are broken, each in one way, over one that is right: what a conformance suite has to catch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostarch import AccessType, AddrRangeSeq
from safemem import BlockSeq, Reader, ReaderFunc, Writer, WriterFunc
from usermem import FaultError, FaultReason
from watched_io import WatchedIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

PAGE = 4096


class Wrapper(WatchedIO):
    """All calls as the inner IO's: not broken."""


class LastByteOfAPageLost(Wrapper):
    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        view = memoryview(dst)
        if len(view) > 1 and (addr + len(view)) % PAGE == 0:
            return super().copy_in(addr, view[:-1], ignore_permissions=ignore_permissions) + 1
        return super().copy_in(addr, dst, ignore_permissions=ignore_permissions)


class FaultCountsOneMore(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_out(addr, src, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            fault.transferred += 1
            raise


class FaultCountsNothing(Wrapper):
    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_in(addr, dst, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            fault.transferred = 0
            raise


class FaultAtTheStart(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_out(addr, src, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            raise FaultError(addr, fault.access, fault.reason, fault.transferred) from None


class FaultAtThePage(Wrapper):
    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        try:
            return super().zero_out(addr, n, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            raise FaultError(fault.address // PAGE * PAGE, fault.access, fault.reason, fault.transferred) from None


class WrongAccess(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_out(addr, src, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            raise FaultError(fault.address, AccessType(1), fault.reason, fault.transferred) from None


class WrongReason(Wrapper):
    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_in(addr, dst, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            raise FaultError(fault.address, fault.access, FaultReason.INJECTED, fault.transferred) from None


class AllOrNothing(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        before = bytearray(len(memoryview(src)))
        try:
            self.inner.copy_in(addr, before, ignore_permissions=True)
        except FaultError as fault:
            before = before[: fault.transferred]
        try:
            return super().copy_out(addr, src, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            self.inner.copy_out(addr, before[: fault.transferred], ignore_permissions=True)
            raise


class ZeroLengthRejected(Wrapper):
    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        if not len(memoryview(dst)):
            super().copy_in(addr, bytearray(1), ignore_permissions=ignore_permissions)
        return super().copy_in(addr, dst, ignore_permissions=ignore_permissions)


class ZeroLengthUnchecked(Wrapper):
    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        return super().zero_out(addr, n, ignore_permissions=ignore_permissions) if n else 0


class NegativeCountTaken(Wrapper):
    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        return super().zero_out(addr, max(n, 0), ignore_permissions=ignore_permissions)


class ZeroesWithBlanks(Wrapper):
    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        return (
            self.inner.copy_out(addr, b" " * n, ignore_permissions=ignore_permissions)
            if n > 0
            else super().zero_out(addr, n, ignore_permissions=ignore_permissions)
        )


class PermissionsIgnored(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        return super().copy_out(addr, src, ignore_permissions=True)


class PermissionsNeverIgnored(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        return super().copy_out(addr, src)


class PermissionOfTheLastPageOnly(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        n = len(memoryview(src))
        try:
            self.inner.copy_in_to(AddrRangeSeq(), WriterFunc(lambda srcs: 0))
            if n:
                last = bytearray(1)
                self.inner.copy_in(addr + n - 1, last)
                self.inner.copy_out(addr + n - 1, last)
        except FaultError:
            return super().copy_out(addr, src, ignore_permissions=ignore_permissions)
        return super().copy_out(addr, src, ignore_permissions=True)


class ReaderCalledTwice(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        def twice(dsts: BlockSeq) -> int:
            n = reader.read_to_blocks(dsts)
            return n + (reader.read_to_blocks(dsts.drop_first(n)) if n < dsts.num_bytes else 0)

        return super().copy_out_from(ars, ReaderFunc(twice), ignore_permissions=ignore_permissions)


class ReaderCalledForNothing(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        if not ars.num_bytes:
            reader.read_to_blocks(BlockSeq())
        return super().copy_out_from(ars, reader, ignore_permissions=ignore_permissions)


class ReaderGetsLess(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        def less(dsts: BlockSeq) -> int:
            return reader.read_to_blocks(dsts.take_first(max(dsts.num_bytes - 1, 1)))

        return super().copy_out_from(ars, ReaderFunc(less), ignore_permissions=ignore_permissions)


class WriterSeesOldBytes(Wrapper):
    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        def stale(srcs: BlockSeq) -> int:
            from safemem import Block

            return writer.write_from_blocks(BlockSeq.of(Block(bytes(srcs.num_bytes))))

        return super().copy_in_to(ars, WriterFunc(stale), ignore_permissions=ignore_permissions)


class ShortStreamFaults(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        n = super().copy_out_from(ars, reader, ignore_permissions=ignore_permissions)
        if n < ars.num_bytes:
            raise FaultError(ars.head().start + n, AccessType(2), FaultReason.UNMAPPED, n)
        return n


class FilledPrefixIsNoFault(Wrapper):
    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_in_to(ars, writer, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            if fault.transferred:
                return fault.transferred
            raise


class OwnErrorReplaced(Wrapper):
    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_in_to(ars, writer, ignore_permissions=ignore_permissions)
        except OSError:
            raise
        except Exception as exc:
            other = type(exc)()
            other.__dict__.update(exc.__dict__)
            raise other from exc


class OwnErrorWithoutItsCount(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_out_from(ars, reader, ignore_permissions=ignore_permissions)
        except OSError:
            raise
        except Exception as exc:
            exc.__dict__.pop("transferred", None)
            raise


class WouldBlockIsTheEnd(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_out_from(ars, reader, ignore_permissions=ignore_permissions)
        except BlockingIOError:
            return 0


class WouldBlockAfterProgressRaised(Wrapper):
    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        blocked: list[BlockingIOError] = []

        def watched(srcs: BlockSeq) -> int:
            try:
                return writer.write_from_blocks(srcs)
            except BlockingIOError as exc:
                blocked.append(exc)
                raise

        n = super().copy_in_to(ars, WriterFunc(watched), ignore_permissions=ignore_permissions)
        if blocked:
            raise blocked[0]
        return n


class RangesCheckedLate(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        with_bytes = AddrRangeSeq([ar for ar in ars if ar.length])
        return super().copy_out_from(with_bytes, reader, ignore_permissions=ignore_permissions)


class TopIsCutOff(Wrapper):
    top = 0x7FFF_FFFF_F000

    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        n = len(memoryview(dst))
        if addr < self.top < addr + n:
            super().copy_in(addr, memoryview(dst)[: self.top - addr], ignore_permissions=ignore_permissions)
            raise FaultError(self.top, AccessType(1), FaultReason.UNMAPPED, self.top - addr)
        return super().copy_in(addr, dst, ignore_permissions=ignore_permissions)


class SwapDoesNotStore(Wrapper):
    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        found = super().swap_uint32(addr, new, ignore_permissions=ignore_permissions)
        super().swap_uint32(addr, found, ignore_permissions=ignore_permissions)
        return found


class CompareAndSwapAlwaysStores(Wrapper):
    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        return super().swap_uint32(addr, new, ignore_permissions=ignore_permissions)


class CompareAndSwapReturnsTheNew(Wrapper):
    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        found = super().compare_and_swap_uint32(addr, old, new, ignore_permissions=ignore_permissions)
        return new if found == old else found


class LoadNeedsToWrite(Wrapper):
    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        return super().compare_and_swap_uint32(addr, 0, 0, ignore_permissions=ignore_permissions)


class MisalignedWordsTaken(Wrapper):
    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        try:
            return super().load_uint32(addr, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            if fault.reason is not FaultReason.UNALIGNED:
                raise
            word = bytearray(4)
            self.inner.copy_in(addr, word, ignore_permissions=ignore_permissions)
            return int.from_bytes(word, "little")


class HugeAddressesOverflow(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        return super().copy_out(
            int.from_bytes(addr.to_bytes(8, "little"), "little"), src, ignore_permissions=ignore_permissions
        )


MUTANTS = [mutant for mutant in list(vars().values()) if isinstance(mutant, type) and Wrapper in mutant.__bases__]
