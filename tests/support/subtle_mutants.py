"""IOs that are broken where one range, one page or one call does not show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostarch import AddrRange, AddrRangeSeq
from mutants import PAGE, Wrapper
from safemem import Block, BlockSeq, HostFaultError, Reader, ReaderFunc, Writer
from usermem import DEFAULT_OPTS, IO, FaultError, IOOpts

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class RangesTakenForOneSpan(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, opts: IOOpts = DEFAULT_OPTS) -> int:
        if ars and 0 <= ars.head().start < 0x7FFF_0000_0000:
            ars = AddrRangeSeq.of(AddrRange(ars.head().start, ars.head().start + ars.num_bytes))
        return super().copy_out_from(ars, reader, opts)


class TwoRangesAtMost(Wrapper):
    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, opts: IOOpts = DEFAULT_OPTS) -> int:
        return super().copy_in_to(AddrRangeSeq(list(ars)[:2]), writer, opts)


class NoRangesRaise(Wrapper):
    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, opts: IOOpts = DEFAULT_OPTS) -> int:
        ars.head()
        return super().copy_in_to(ars, writer, opts)


class FaultCountedFromTheFirstRange(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, opts: IOOpts = DEFAULT_OPTS) -> int:
        try:
            return super().copy_out_from(ars, reader, opts)
        except FaultError as fault:
            if fault.reason.value != "outside-range":
                fault.address = ars.head().start + fault.transferred
            raise


class StreamOptionsIgnored(Wrapper):
    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, opts: IOOpts = DEFAULT_OPTS) -> int:
        return super().copy_in_to(ars, writer)


class AtomicOptionsIgnored(Wrapper):
    def swap_uint32(self, addr: int, new: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        return super().swap_uint32(addr, new)


class EndsAtAnInnerPageEnd(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        n = len(memoryview(src))
        inside = PAGE - addr % PAGE
        done = super().copy_out(addr, src, opts)
        if 8 < inside < n:
            super().zero_out(addr + inside, n - inside, opts)
        return done


class MiddleOfLongCopiesLost(Wrapper):
    def copy_in(self, addr: int, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        n = super().copy_in(addr, dst, opts)
        memoryview(dst)[64:-64] = bytes(max(len(memoryview(dst)) - 128, 0))
        return n


class WritesElsewhereToo(Wrapper):
    def copy_out(self, addr: int, src: ReadableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        n = super().copy_out(addr, src, opts)
        try:
            super().copy_out(addr + 512, src, opts)
        except FaultError:
            return n
        return n


class NeverLooksAgain(Wrapper):
    def __init__(self, inner: IO) -> None:
        super().__init__(inner)
        self.seen: dict[int, int] = {}

    def load_uint32(self, addr: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        if addr not in self.seen:
            self.seen[addr] = super().load_uint32(addr, opts)
        return self.seen[addr]


class FourthFaultIsACount(Wrapper):
    faults = 0

    def copy_in(self, addr: int, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        try:
            return super().copy_in(addr, dst, opts)
        except FaultError as fault:
            self.faults += 1
            if self.faults == 4:
                return fault.transferred
            raise


class FirstUseMustBeACopy(Wrapper):
    def __init__(self, inner: IO) -> None:
        super().__init__(inner)
        self.used = False

    def copy_in(self, addr: int, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        self.used = True
        return super().copy_in(addr, dst, opts)

    def copy_out(self, addr: int, src: ReadableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        self.used = True
        return super().copy_out(addr, src, opts)

    def swap_uint32(self, addr: int, new: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        found = super().swap_uint32(addr, new, opts)
        return found if self.used else found + 1


class OwnOSErrorIsAFault(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, opts: IOOpts = DEFAULT_OPTS) -> int:
        def read(dsts: BlockSeq) -> int:
            try:
                return reader.read_to_blocks(dsts)
            except BlockingIOError:
                raise
            except OSError as exc:
                raise HostFaultError(0, transferred=getattr(exc, "transferred", 0)) from exc

        return super().copy_out_from(ars, ReaderFunc(read), opts)


class MessagesRefused(Wrapper):
    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, opts: IOOpts = DEFAULT_OPTS) -> int:
        if getattr(reader, "message_oriented", False):
            raise ValueError("a message reader")
        return super().copy_out_from(ars, reader, opts)


class FaultsCannotBePickled(Wrapper):
    def zero_out(self, addr: int, n: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        try:
            return super().zero_out(addr, n, opts)
        except FaultError as fault:
            fault.io = lambda: self  # type: ignore[attr-defined]
            raise


class CountsHaveAPart(Wrapper):
    def copy_in(self, addr: int, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        try:
            return super().copy_in(addr, dst, opts)
        except FaultError as fault:
            fault.partial = b""
            raise


class HalfOfTheWordStored(Wrapper):
    def swap_uint32(self, addr: int, new: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        found = super().swap_uint32(addr, new, opts)
        super().swap_uint32(addr, (new & 0xFFFF) | (found & 0xFFFF0000), opts)
        return found


class TypeErrorOfItsOwn(Wrapper):
    def zero_out(self, addr: int, n: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        return super().zero_out(addr, n, opts) + len(Block)  # type: ignore[arg-type]


SUBTLE_MUTANTS = [
    mutant for mutant in list(vars().values()) if isinstance(mutant, type) and Wrapper in mutant.__bases__
]
