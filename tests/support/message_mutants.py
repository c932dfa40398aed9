"""A message Reader and a message Writer that are right, and others that are broken, each in one way."""

from __future__ import annotations

from safemem import Block, BlockSeq, HostFaultError, copy_seq
from safemem.errors import would_block
from usermem.testing.operations import pattern

MESSAGES = [b"first", b"", pattern(600), b"x", pattern(70_000), b"", b"\xee\xee", b"last"]


class Messages:
    """A Reader of MESSAGES; behind them it would block, or raises ``error``."""

    message_oriented = True

    def __init__(self, error: type[Exception] | None = None) -> None:
        self.left = list(MESSAGES)
        self.error = error

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        if not self.left:
            raise would_block() if self.error is None else self.error()
        n = copy_seq(dsts, BlockSeq.of(Block(self.left[0])))
        self.left.pop(0)
        return n


class FaultLosesTheMessage(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        try:
            return super().read_to_blocks(dsts)
        except HostFaultError:
            self.left.pop(0)
            raise


class FaultLosesWhatWasCopied(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        try:
            return super().read_to_blocks(dsts)
        except HostFaultError as fault:
            self.left[0] = self.left[0][max(fault.transferred, 1) :]
            raise


class FaultOfAMessageCountsNothing(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        try:
            return super().read_to_blocks(dsts)
        except HostFaultError as fault:
            fault.transferred = 0
            raise


class FaultIsAShortMessage(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        try:
            return super().read_to_blocks(dsts)
        except HostFaultError as fault:
            self.left.pop(0)
            return fault.transferred


class TouchesMemoryThatItDoesNotNeed(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        if self.left:
            dsts.tobytes()
        return super().read_to_blocks(dsts)


class RestOfAMessageComesNext(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        rest = self.left[0][dsts.num_bytes :] if self.left else b""
        n = super().read_to_blocks(dsts)
        if rest:
            self.left.insert(0, rest)
        return n


class TwoMessagesInOne(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        n = super().read_to_blocks(dsts)
        return n + super().read_to_blocks(dsts.drop_first(n)) if n and n < dsts.num_bytes and self.left else n


class SkipsEmptyMessages(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        while self.left and not self.left[0]:
            self.left.pop(0)
        return super().read_to_blocks(dsts)


class EmptyMessagesBlock(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        if self.left and not self.left[0]:
            raise would_block()
        return super().read_to_blocks(dsts)


class NoMessageIsAnEmptyOne(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        return super().read_to_blocks(dsts) if self.left else 0


class CountsWhatFoundNoRoom(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        n = len(self.left[0]) if self.left else 0
        super().read_to_blocks(dsts)
        return n


class TouchesBehindTheMessage(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        n = super().read_to_blocks(dsts)
        copy_seq(dsts.drop_first(n), BlockSeq.of(Block(b"!")))
        return n


class GivesTheFirstMessageAgain(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        if len(self.left) == len(MESSAGES) - 2:
            self.left[0] = MESSAGES[0].ljust(600)
        return super().read_to_blocks(dsts)


class AnotherErrorForAMessage(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        if len(self.left) == 3:
            raise LookupError
        return super().read_to_blocks(dsts)


class ErrorBeforeTheLastMessage(Messages):
    def read_to_blocks(self, dsts: BlockSeq) -> int:
        if len(self.left) == 1:
            self.left.clear()
        return super().read_to_blocks(dsts)


class Mailbox:
    """A Writer into ``arrived``; with ``most`` it takes so many messages and then raises ``error``."""

    message_oriented = True

    def __init__(self, most: int = 1000, error: type[Exception] = BrokenPipeError) -> None:
        self.arrived: list[bytes] = []
        self.most = most
        self.error = error

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        if len(self.arrived) == self.most:
            raise self.error
        self.arrived.append(srcs.tobytes())
        return srcs.num_bytes


class SendsWhatCameBeforeAFault(Mailbox):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        try:
            return super().write_from_blocks(srcs)
        except HostFaultError as fault:
            self.arrived.append(srcs.take_first(fault.transferred).tobytes())
            raise


class SendsAShortMessage(Mailbox):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        try:
            return super().write_from_blocks(srcs)
        except HostFaultError as fault:
            return super().write_from_blocks(srcs.take_first(fault.transferred))


class DropsEmptyMessages(Mailbox):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        return super().write_from_blocks(srcs) if srcs else 0


class SendsTwice(Mailbox):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        super().write_from_blocks(srcs)
        return super().write_from_blocks(srcs)


class SendsABlockAMessage(Mailbox):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        return sum(super(SendsABlockAMessage, self).write_from_blocks(BlockSeq.of(block)) for block in srcs)


class SendsTheFirstBlock(Mailbox):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        return super().write_from_blocks(srcs.take_blocks(1))


class CountsNothing(Mailbox):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        super().write_from_blocks(srcs)
        return 0


class WipesTheMessage(Mailbox):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        n = super().write_from_blocks(srcs)
        copy_seq(srcs, BlockSeq.of(Block(bytes(n))))
        return n


class ErrorThatCountsBytes(Mailbox):
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        try:
            return super().write_from_blocks(srcs)
        except BrokenPipeError as exc:
            exc.transferred = 1  # type: ignore[attr-defined]
            raise


class ErrorOfAnotherKind(Mailbox):
    def __init__(self, most: int = 1000) -> None:
        super().__init__(most, LookupError)


class ErrorThatDoesNotCome(Mailbox):
    def __init__(self, most: int = 1000) -> None:
        super().__init__()


MESSAGE_READER_MUTANTS = [
    FaultLosesTheMessage,
    FaultLosesWhatWasCopied,
    FaultOfAMessageCountsNothing,
    FaultIsAShortMessage,
    TouchesMemoryThatItDoesNotNeed,
    RestOfAMessageComesNext,
    TwoMessagesInOne,
    SkipsEmptyMessages,
    EmptyMessagesBlock,
    NoMessageIsAnEmptyOne,
    CountsWhatFoundNoRoom,
    TouchesBehindTheMessage,
    GivesTheFirstMessageAgain,
    AnotherErrorForAMessage,
]
FAILING_MESSAGE_READER_MUTANTS = [ErrorBeforeTheLastMessage]
MESSAGE_WRITER_MUTANTS = [
    SendsWhatCameBeforeAFault,
    SendsAShortMessage,
    DropsEmptyMessages,
    SendsTwice,
    SendsABlockAMessage,
    SendsTheFirstBlock,
    CountsNothing,
    WipesTheMessage,
]
FAILING_MESSAGE_WRITER_MUTANTS = [ErrorThatCountsBytes, ErrorOfAnotherKind, ErrorThatDoesNotCome]
