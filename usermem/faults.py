"""FaultyIO: user memory whose accesses fault where a plan says, to see what a simulator makes of it.

A fault on real memory happens where the mappings make it happen. A plan puts one anywhere: in the middle of the third
access, on the retry after a fault. The same plan gives the same faults, so that a failure can be run again.

Source: the idea is Linux's, fail_usercopy (Documentation/fault-injection), which draws by probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from attrs import field, frozen

from hostarch import READ, READ_WRITE, WRITE, AccessType, AddrRange, AddrRangeSeq, Arch
from safemem import (
    BlockSeq,
    BlockSeqReader,
    BlockSeqWriter,
    Reader,
    ReaderFunc,
    Writer,
    WriterFunc,
    zero_seq,
)
from safemem.buffers import check_count, check_int, readable_view, writable_view
from usermem.errors import FaultError, FaultReason
from usermem.memory_io import IO, arch_of
from usermem.resolver import checked_count

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


def _checked_steps(steps: Iterable[int | None]) -> tuple[int | None, ...]:
    return tuple(None if step is None else check_count(step, "steps") for step in steps)


@frozen
class FaultPlan:
    """For each access to come, in order: None lets it pass, a number n makes it fault before its byte n.

    An access of n bytes or fewer passes. An atomic faults whatever the number. Accesses past the end of the plan pass.
    Raises ValueError for a negative number.
    """

    steps: tuple[int | None, ...] = field(default=(), converter=_checked_steps)


class FaultyIO(IO):
    """An IO over another one, with the faults of a plan; their reason is ``injected``.

    It offers none of the faster methods that an IO may have, so that the plan sees every access. ``injected`` lists
    the faults so far, each as a twin of the one that was raised: without its traceback, which keeps the caller's
    buffers. Where the memory itself faults before the plan does, its own fault comes.
    """

    def __init__(self, io: IO, plan: FaultPlan) -> None:
        if not isinstance(plan, FaultPlan):
            raise TypeError(f"plan must be a FaultPlan, not {type(plan).__name__}")
        self.arch: Arch = arch_of(io)
        self.injected: list[FaultError] = []
        self._io = io
        self._steps = iter(plan.steps)

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        addr = check_int(addr, "addr")
        with readable_view(src, "src") as view:
            n = self._allowed(len(view), addr)
            if n is None:
                return self._io.copy_out(addr, view, ignore_permissions=ignore_permissions)
            reader = BlockSeqReader(BlockSeq.unchecked([view], len(view)))  # no other view outlives the call
            return self._copy_out_from(_one(addr, len(view)), reader, ignore_permissions, n)

    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        addr = check_int(addr, "addr")
        with writable_view(dst, "dst") as view:
            n = self._allowed(len(view), addr)
            if n is None:
                return self._io.copy_in(addr, view, ignore_permissions=ignore_permissions)
            writer = BlockSeqWriter(BlockSeq.unchecked([view], len(view)))
            return self._copy_in_to(_one(addr, len(view)), writer, ignore_permissions, n)

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        addr, n = check_int(addr, "addr"), check_count(n, "n")
        allowed = self._allowed(n, addr)
        if allowed is None:
            return self._io.zero_out(addr, n, ignore_permissions=ignore_permissions)
        return self._copy_out_from(_one(addr, n), ReaderFunc(zero_seq), ignore_permissions, allowed)

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        n = self._allowed(ars.num_bytes)
        if n is None:
            return self._io.copy_out_from(ars, reader, ignore_permissions=ignore_permissions)
        return self._copy_out_from(ars, reader, ignore_permissions, n)

    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        n = self._allowed(ars.num_bytes)
        if n is None:
            return self._io.copy_in_to(ars, writer, ignore_permissions=ignore_permissions)
        return self._copy_in_to(ars, writer, ignore_permissions, n)

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        self._atomic(addr, READ_WRITE, ignore_permissions)
        return self._io.swap_uint32(addr, new, ignore_permissions=ignore_permissions)

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        self._atomic(addr, READ_WRITE, ignore_permissions)
        return self._io.compare_and_swap_uint32(addr, old, new, ignore_permissions=ignore_permissions)

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        self._atomic(addr, READ, ignore_permissions)
        return self._io.load_uint32(addr, ignore_permissions=ignore_permissions)

    def _allowed(self, length: int, addr: int = 0) -> int | None:
        """How many bytes the plan lets through of this access; None if all. What leaves 64 bits faults by itself."""
        step = next(self._steps, None)
        return step if step is not None and step < length and 0 <= addr <= (1 << 64) - length else None

    def _atomic(self, addr: int, access: AccessType, ignore_permissions: bool) -> None:
        addr = check_int(addr, "addr")
        if next(self._steps, None) is None:
            return
        # The memory's own fault comes first. Storing 0 where 0 is changes nothing.
        if access is READ:
            self._io.load_uint32(addr, ignore_permissions=ignore_permissions)
        else:
            self._io.compare_and_swap_uint32(addr, 0, 0, ignore_permissions=ignore_permissions)
        raise self._fault(addr, access, 0)

    def _copy_out_from(self, ars: AddrRangeSeq, reader: Reader, ignore_permissions: bool, allowed: int) -> int:
        cut = _Cut(reader.read_to_blocks, allowed)
        moved = self._io.copy_out_from(ars, ReaderFunc(cut.move), ignore_permissions=ignore_permissions)
        return self._checked(ars, cut, moved, WRITE)

    def _copy_in_to(self, ars: AddrRangeSeq, writer: Writer, ignore_permissions: bool, allowed: int) -> int:
        cut = _Cut(writer.write_from_blocks, allowed)
        moved = self._io.copy_in_to(ars, WriterFunc(cut.move), ignore_permissions=ignore_permissions)
        return self._checked(ars, cut, moved, READ)

    def _checked(self, ars: AddrRangeSeq, cut: _Cut, moved: int, access: AccessType) -> int:
        """What a stream moved, unless the plan stopped it. The memory has checked and found all of ars by now."""
        if not cut.full:
            return moved
        rest = ars.drop_first(moved)
        while not rest.head().length:
            rest = rest.tail()
        raise self._fault(rest.head().start, access, moved)

    def _fault(self, addr: int, access: AccessType, transferred: int) -> FaultError:
        self.injected.append(FaultError(addr, access, FaultReason.INJECTED, transferred))
        return FaultError(addr, access, FaultReason.INJECTED, transferred)


class _Cut:
    """A reader's or writer's call over no more than the first ``allowed`` bytes; ``full``: it used them up."""

    def __init__(self, move: Callable[[BlockSeq], int], allowed: int) -> None:
        self._move = move
        self._allowed = allowed
        self.full = False

    def move(self, blocks: BlockSeq) -> int:
        part = blocks.take_first(self._allowed)
        n = checked_count(self._move(part), part.num_bytes) if part else 0
        self.full = n == self._allowed
        return n


def _one(addr: int, length: int) -> AddrRangeSeq:
    return AddrRangeSeq.of(AddrRange(addr, addr + length))
