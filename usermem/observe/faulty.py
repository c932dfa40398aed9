"""FaultyIO: user memory whose accesses fault where a plan says, to see what a simulator makes of it.

A fault on real memory happens where the mappings make it happen. A plan puts one anywhere: in the middle of the third
access, on the retry after a fault. The same plan gives the same faults, so that a failure can be run again.

Source: the idea is Linux's, fail_usercopy (Documentation/fault-injection), which draws by probability.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

from hostarch import READ, AccessType, AddrRange, AddrRangeSeq
from safemem import BlockSeq, BlockSeqReader, BlockSeqWriter, Reader, ReaderFunc, Writer, WriterFunc, zero_seq
from safemem.buffers import readable_view, writable_view
from safemem.errors import error
from usermem.errors import FaultError, FaultReason
from usermem.memory_io import IO
from usermem.observe.access import ATOMICS, Access
from usermem.observe.fault_plan import Armed, FaultPlan
from usermem.observe.observed import ObservedIO, unseen
from usermem.resolver import addr_at, checked_count

_TOP: Final = 1 << 64
_MOST: Final = 10_000


class FaultyIO(ObservedIO):
    """An IO over another one, with the faults of a plan; the reason of a FaultError is ``injected``.

    ``injected`` lists the first 10,000 errors, FaultErrors and OSErrors of other errnos, each as a twin of the one that
    was raised: without its traceback, which keeps the caller's buffers. Where the memory itself faults before the plan
    does, its own fault comes. A stream that stops before the fault does not meet it.

    ``on_fault`` is as AddressSpace's: called with the first address that is about to fault and the access, before a
    byte moves, it may bring in what is missing. If it returns True the fault is healed: the access goes on, and a fault
    that is not drawn by probability is over. What it accesses through this IO is neither counted nor faulted.
    """

    on_fault: Callable[[int, AccessType], bool] | None = None

    def __init__(self, io: IO, plan: FaultPlan) -> None:
        if not isinstance(plan, FaultPlan):
            raise TypeError(f"plan must be a FaultPlan, not {type(plan).__name__}")
        super().__init__(io)
        self.injected: list[Any] = []
        self._armed = plan.armed(self.arch)

    def _make(self, access: Access, args: tuple[Any, ...]) -> int:
        for allowed, armed in self._hits(access):
            if self.on_fault is not None:
                addr = access.addr if access.call in ATOMICS else addr_at(access.ranges, allowed)
                if unseen(self.on_fault, addr, access.access):
                    armed.heal()
                    continue
            if access.call in ATOMICS:
                return self._atomic(access, args, armed)
            return self._cut(access, args, _Cut(allowed), armed)
        return super()._make(access, args)

    def _hits(self, access: Access) -> list[tuple[int, Armed]]:
        """The faults that an access meets, and after how many bytes, the first first.

        Each fault is asked, so that it counts the access. What leaves 64 bits faults by itself.
        """
        hits = [(offset, armed) for armed in self._armed if (offset := armed.offset(access)) is not None]
        if access.call in ATOMICS:
            return hits
        if access.ars is None and not 0 <= access.addr <= _TOP - access.length:
            return []
        return sorted((hit for hit in hits if hit[0] < access.length), key=lambda hit: hit[0])

    def _atomic(self, access: Access, args: tuple[Any, ...], armed: Armed) -> int:
        # The memory's own fault comes first. Storing 0 where 0 is changes nothing.
        if access.access is READ:
            self.io.load_uint32(access.addr, ignore_permissions=access.ignore_permissions)
        else:
            self.io.compare_and_swap_uint32(access.addr, 0, 0, ignore_permissions=access.ignore_permissions)
        raise self._error(access, access.addr, 0, armed)

    def _cut(self, access: Access, args: tuple[Any, ...], cut: _Cut, armed: Armed) -> int:
        """An access that ends after the bytes that the fault allows, if the memory and the stream get that far.

        Any access is made as a stream over all of its ranges: so the memory checks and finds all of them.
        """
        ars = access.ars or AddrRangeSeq.of(AddrRange(access.addr, access.addr + access.length))
        ignore = access.ignore_permissions
        if access.call == "copy_out_from":
            moved = self.io.copy_out_from(ars, cut.reader(args[1]), ignore_permissions=ignore)
        elif access.call == "copy_in_to":
            moved = self.io.copy_in_to(ars, cut.writer(args[1]), ignore_permissions=ignore)
        elif access.call == "zero_out":
            moved = self.io.copy_out_from(ars, cut.reader(ReaderFunc(zero_seq)), ignore_permissions=ignore)
        elif access.call == "copy_out":
            with readable_view(args[1], "src") as view:
                reader = BlockSeqReader(BlockSeq.unchecked([view], len(view)))  # no other view outlives the call
                moved = self.io.copy_out_from(ars, cut.reader(reader), ignore_permissions=ignore)
        else:
            with writable_view(args[1], "dst") as view:
                writer = BlockSeqWriter(BlockSeq.unchecked([view], len(view)))
                moved = self.io.copy_in_to(ars, cut.writer(writer), ignore_permissions=ignore)
        if not cut.full:
            return moved
        raise self._error(access, addr_at(ars.pairs(), moved), moved, armed)

    def _error(self, access: Access, addr: int, transferred: int, armed: Armed) -> OSError:
        armed.injected()
        twins = [_error(armed.errno, access.access, addr, transferred) for _ in range(2)]
        if len(self.injected) < _MOST:
            self.injected.append(twins[0])
        return twins[1]


def _error(code: int, access: AccessType, addr: int, transferred: int) -> OSError:
    """What is raised: EFAULT is a FaultError, any other errno the OSError of its own, with ``transferred``."""
    if code == errno.EFAULT:
        return FaultError(addr, access, FaultReason.INJECTED, transferred)
    exc = error(code, f"injected at {addr:#x}")
    exc.transferred = transferred  # type: ignore[attr-defined]
    return exc


class _Cut:
    """The first ``allowed`` bytes of a stream's call; ``full``: it used them up."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self.full = False

    def reader(self, reader: Reader) -> Reader:
        """A Reader that passes on no more than those bytes."""
        return ReaderFunc(lambda dsts: self._move(reader.read_to_blocks, dsts))

    def writer(self, writer: Writer) -> Writer:
        """A Writer that passes on no more than those bytes."""
        return WriterFunc(lambda srcs: self._move(writer.write_from_blocks, srcs))

    def _move(self, move: Callable[[BlockSeq], int], blocks: BlockSeq) -> int:
        part = blocks.take_first(self._allowed)
        n = checked_count(move(part), part.num_bytes) if part else 0
        self.full = n == self._allowed
        return n
