"""IOs that are broken where one range, one page or one call does not show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostarch import AddrRange, AddrRangeSeq
from mutants import PAGE, Wrapper
from safemem import Block, BlockSeq, HostFaultError, Reader, ReaderFunc, Writer
from usermem import IO, FaultError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class RangesTakenForOneSpan(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        if ars and 0 <= ars.head().start < 0x7FFF_0000_0000:
            ars = AddrRangeSeq.of(AddrRange(ars.head().start, ars.head().start + ars.num_bytes))
        return super().copy_out_from(ars, reader, ignore_permissions=ignore_permissions)


class TwoRangesAtMost(Wrapper):
    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        return super().copy_in_to(AddrRangeSeq(list(ars)[:2]), writer, ignore_permissions=ignore_permissions)


class NoRangesRaise(Wrapper):
    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        ars.head()
        return super().copy_in_to(ars, writer, ignore_permissions=ignore_permissions)


class FaultCountedFromTheFirstRange(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_out_from(ars, reader, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            if fault.reason.value != "outside-range":
                fault.address = ars.head().start + fault.transferred
            raise


class StreamOptionsIgnored(Wrapper):
    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        return super().copy_in_to(ars, writer)


class AtomicOptionsIgnored(Wrapper):
    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        return super().swap_uint32(addr, new)


class EndsAtAnInnerPageEnd(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        n = len(memoryview(src))
        inside = PAGE - addr % PAGE
        done = super().copy_out(addr, src, ignore_permissions=ignore_permissions)
        if 8 < inside < n:
            super().zero_out(addr + inside, n - inside, ignore_permissions=ignore_permissions)
        return done


class MiddleOfLongCopiesLost(Wrapper):
    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        n = super().copy_in(addr, dst, ignore_permissions=ignore_permissions)
        memoryview(dst)[64:-64] = bytes(max(len(memoryview(dst)) - 128, 0))
        return n


class WritesElsewhereToo(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        n = super().copy_out(addr, src, ignore_permissions=ignore_permissions)
        try:
            super().copy_out(addr + 512, src, ignore_permissions=ignore_permissions)
        except FaultError:
            return n
        return n


class NeverLooksAgain(Wrapper):
    def __init__(self, inner: IO) -> None:
        super().__init__(inner)
        self.seen: dict[int, int] = {}

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        if addr not in self.seen:
            self.seen[addr] = super().load_uint32(addr, ignore_permissions=ignore_permissions)
        return self.seen[addr]


class FourthFaultIsACount(Wrapper):
    faults = 0

    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_in(addr, dst, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            self.faults += 1
            if self.faults == 4:
                return fault.transferred
            raise


class FirstUseMustBeACopy(Wrapper):
    def __init__(self, inner: IO) -> None:
        super().__init__(inner)
        self.used = False

    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        self.used = True
        return super().copy_in(addr, dst, ignore_permissions=ignore_permissions)

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        self.used = True
        return super().copy_out(addr, src, ignore_permissions=ignore_permissions)

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        found = super().swap_uint32(addr, new, ignore_permissions=ignore_permissions)
        return found if self.used else found + 1


class OwnOSErrorIsAFault(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        def read(dsts: BlockSeq) -> int:
            try:
                return reader.read_to_blocks(dsts)
            except BlockingIOError:
                raise
            except OSError as exc:
                raise HostFaultError(0, transferred=getattr(exc, "transferred", 0)) from exc

        return super().copy_out_from(ars, ReaderFunc(read), ignore_permissions=ignore_permissions)


class MessagesRefused(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        if getattr(reader, "message_oriented", False):
            raise ValueError("a message reader")
        return super().copy_out_from(ars, reader, ignore_permissions=ignore_permissions)


class FaultsCannotBePickled(Wrapper):
    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        try:
            return super().zero_out(addr, n, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            fault.io = lambda: self  # type: ignore[attr-defined]
            raise


class CountsHaveAPart(Wrapper):
    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        try:
            return super().copy_in(addr, dst, ignore_permissions=ignore_permissions)
        except FaultError as fault:
            fault.partial = b""
            raise


class HalfOfTheWordStored(Wrapper):
    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        found = super().swap_uint32(addr, new, ignore_permissions=ignore_permissions)
        super().swap_uint32(addr, (new & 0xFFFF) | (found & 0xFFFF0000), ignore_permissions=ignore_permissions)
        return found


class TypeErrorOfItsOwn(Wrapper):
    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        return super().zero_out(addr, n, ignore_permissions=ignore_permissions) + len(Block)  # type: ignore[arg-type]


SUBTLE_MUTANTS = [
    mutant for mutant in list(vars().values()) if isinstance(mutant, type) and Wrapper in mutant.__bases__
]
