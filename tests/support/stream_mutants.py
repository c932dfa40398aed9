"""A Reader and a Writer that are right, and others that are broken, each in one way."""

from __future__ import annotations

from safemem import Block, BlockSeq, HostFaultError, copy_seq
from safemem.errors import would_block
from usermem.testing.operations import pattern

STREAM = pattern(600)


class Source:
    """A Reader of STREAM; with ``error`` that is raised at the end, by the call that gives the last bytes."""

    def __init__(self, error: type[Exception] | None = None) -> None:
        self.left = STREAM
        self.error = error

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        if not dsts:
            return 0
        try:
            n = copy_seq(dsts, BlockSeq.of(Block(self.left)))
        except HostFaultError as fault:
            self.left = self.left[fault.transferred :]
            raise
        self.left = self.left[n:]
        if self.error is not None and not self.left:
            error = self.error()
            if n:
                error.transferred = n  # type: ignore[attr-defined]
            raise error
        return n


class LosesWhatAFaultKept(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        rest = self.left
        try:
            return super().read_to_blocks(dsts)
        except HostFaultError:
            self.left = rest[dsts.num_bytes :]
            raise


class GivesAgainWhatCameBeforeAFault(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        rest = self.left
        try:
            return super().read_to_blocks(dsts)
        except HostFaultError:
            self.left = rest
            raise


class FaultCountsNothing(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        try:
            return super().read_to_blocks(dsts)
        except HostFaultError as fault:
            fault.transferred = 0
            raise


class CountsOneMore(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        n = super().read_to_blocks(dsts)
        return n + 1 if 0 < n < dsts.num_bytes else n


class CountsOneLess(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        n = super().read_to_blocks(dsts)
        return n - 1 if n > 1 else n


class CountsWhatItWasAsked(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        return dsts.num_bytes if super().read_to_blocks(dsts) else 0


class CountIsNegative(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        return super().read_to_blocks(dsts) or (-1 if dsts else 0)


class RepeatsAByte(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        rest = self.left
        n = super().read_to_blocks(dsts)
        if n == 7:
            self.left = rest[6:]
        return n


class BlocksFilledBackToFront(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        return super().read_to_blocks(BlockSeq(list(dsts)[::-1]))


class FirstBlockOnly(Source):
    """Not broken: a short count is progress."""

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        return super().read_to_blocks(BlockSeq.of(dsts.head())) if dsts else 0


class SecondBlockFromTheStart(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        done = 0
        for block in dsts:
            before = self.left
            n = super().read_to_blocks(BlockSeq.of(block))
            done += n
            if done == n > 1:
                self.left = before[n - 1 :]
            if n < len(block):
                break
        return done


class EmptySequenceRaises(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        dsts.head()
        return super().read_to_blocks(dsts)


class EmptySequenceTakesAByte(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        if not dsts:
            self.left = self.left[1:]
        return super().read_to_blocks(dsts)


class SmallSequenceIsTheEnd(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        return super().read_to_blocks(dsts) if dsts.num_bytes >= 4 else 0


class EndIsAnError(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        n = super().read_to_blocks(dsts)
        if dsts and not n:
            raise EOFError
        return n


class StartsAgainAfterTheEnd(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        n = super().read_to_blocks(dsts)
        if dsts and not n:
            self.left = STREAM
        return n


class EndsEarly(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        return super().read_to_blocks(dsts) if len(self.left) > 64 else 0


class WritesBehindItsCount(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        n = super().read_to_blocks(dsts)
        if n < dsts.num_bytes and not any(block.need_safecopy for block in dsts):
            copy_seq(dsts.drop_first(n), BlockSeq.of(Block(b"?")))
        return n


class WouldBlockForEver(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        if dsts and not self.left:
            raise would_block()
        return super().read_to_blocks(dsts)


class TouchesAndWouldBlock(Source):
    later = False

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        self.later = not self.later
        if dsts and self.later:
            if not any(block.need_safecopy for block in dsts):
                copy_seq(dsts, BlockSeq.of(Block(self.left)))
            raise would_block()
        return super().read_to_blocks(dsts)


class FaultSomewhereElse(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        try:
            return super().read_to_blocks(dsts)
        except HostFaultError as fault:
            raise HostFaultError(0, fault.signo, fault.transferred) from fault


READER_MUTANTS = [
    mutant
    for mutant in list(vars().values())
    if isinstance(mutant, type) and Source in mutant.__bases__ and mutant is not FirstBlockOnly
]


class ErrorWithoutItsCount(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        try:
            return super().read_to_blocks(dsts)
        except ConnectionResetError as error:
            error.__dict__.pop("transferred", None)
            raise


class ErrorIsTheEnd(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        try:
            return super().read_to_blocks(dsts)
        except ConnectionResetError as error:
            return getattr(error, "transferred", 0)


class ErrorBeforeTheBytes(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        if 0 < len(self.left) < 16:
            self.left = b""
        return super().read_to_blocks(dsts)


class AnotherError(Source):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        try:
            return super().read_to_blocks(dsts)
        except ConnectionResetError as error:
            raise TimeoutError from error


FAILING_READER_MUTANTS = [ErrorWithoutItsCount, ErrorIsTheEnd, ErrorBeforeTheBytes, AnotherError]


class Sink:
    """A Writer into ``arrived``, with room for ``room`` bytes; then it ends, or raises ``error`` with the count."""

    def __init__(self, room: int = 1 << 20, error: type[Exception] | None = None) -> None:
        self.arrived = b""
        self.room = room
        self.error = error

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        if not srcs:
            return 0
        taken = bytearray(min(srcs.num_bytes, self.room))
        try:
            copy_seq(BlockSeq.of(Block(taken)), srcs)
        except HostFaultError as fault:
            self.arrived += taken[: fault.transferred]
            self.room -= fault.transferred
            raise
        self.arrived += taken
        self.room -= len(taken)
        if self.error is not None and not self.room:
            error = self.error()
            if taken:
                error.transferred = len(taken)  # type: ignore[attr-defined]
            raise error
        return len(taken)


class TakesAgainAfterAFault(Sink):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        try:
            return super().write_from_blocks(srcs)
        except HostFaultError as fault:
            self.arrived += self.arrived[len(self.arrived) - fault.transferred :]
            raise


class LosesWhatCameBeforeAFault(Sink):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        before = self.arrived
        try:
            return super().write_from_blocks(srcs)
        except HostFaultError:
            self.arrived = before
            raise


class SinkCountsOneMore(Sink):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        if srcs.num_bytes < 2:
            return super().write_from_blocks(srcs)
        return super().write_from_blocks(srcs.take_first(srcs.num_bytes - 1)) + 1


class SinkCountsOneLess(Sink):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        n = super().write_from_blocks(srcs)
        return n - 1 if n > 1 else n


class SkipsSmallBlocks(Sink):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        large = BlockSeq([block for block in srcs if len(block) != 2])
        super().write_from_blocks(large)
        return srcs.num_bytes


class WipesItsSource(Sink):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        n = super().write_from_blocks(srcs)
        for block in srcs:
            if not block.need_safecopy and not block.readonly:
                block.view()[:] = bytes(len(block))
        return n


class SinkEmptySequenceRaises(Sink):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        srcs.head()
        return super().write_from_blocks(srcs)


class EndDoesNotStay(Sink):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        n = super().write_from_blocks(srcs)
        if srcs and not n:
            self.room = 100
        return n


class KeepsTheBlocks(Sink):
    kept: BlockSeq | None = None

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        n = super().write_from_blocks(srcs)
        if n == 5 and not any(block.need_safecopy for block in srcs):
            self.kept = srcs
        elif self.kept is not None:
            at = len(self.arrived) - n - 5
            self.arrived = self.arrived[:at] + self.kept.take_first(5).tobytes() + self.arrived[at + 5 :]
            self.kept = None
        return n


WRITER_MUTANTS = [mutant for mutant in list(vars().values()) if isinstance(mutant, type) and Sink in mutant.__bases__]
