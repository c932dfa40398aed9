"""FaultyIO: user memory whose accesses fault where a plan says, to see what a simulator makes of it.

A fault on real memory happens where the mappings make it happen. A plan puts one anywhere: in the middle of the third
access, on the retry after a fault. The same plan gives the same faults, so that a failure can be run again.

Source: the idea is Linux's, fail_usercopy (Documentation/fault-injection), which draws by probability.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from attrs import field, frozen

from hostarch import READ, READ_WRITE, WRITE, AccessType, AddrRangeSeq, Arch
from safemem import BlockSeq, Reader, ReaderFunc, Writer, WriterFunc
from safemem.buffers import check_count, readable_view, writable_view
from usermem.errors import FaultError, FaultReason
from usermem.memory_io import DEFAULT_OPTS, IO, IOOpts, arch_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


def _checked_steps(steps: Iterable[int | None]) -> tuple[int | None, ...]:
    checked = tuple(steps)
    for step in checked:
        if step is not None:
            check_count(step, "steps")
    return checked


@frozen
class FaultPlan:
    """For each access to come, in order: None lets it pass, a number n makes it fault before its byte n.

    An access of n bytes or fewer passes. An atomic faults whatever the number. Accesses past the end of the plan pass.
    Raises ValueError for a negative number.
    """

    steps: tuple[int | None, ...] = field(default=(), converter=_checked_steps)


class FaultyIO:
    """An IO over another one, with the faults of a plan; their reason is ``injected``.

    It offers none of the faster methods that an IO may have, so that the plan sees every access. ``injected`` lists
    the faults that were raised so far. Where the memory itself faults before the plan does, its own fault comes.
    """

    def __init__(self, io: IO, plan: FaultPlan) -> None:
        self.arch: Arch = arch_of(io)
        self.injected: list[FaultError] = []
        self._io = io
        self._steps = iter(plan.steps)

    def copy_out(self, addr: int, src: ReadableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.copy_out."""
        with readable_view(src, "src") as view:
            n = self._allowed(len(view))
            if n is None:
                return self._io.copy_out(addr, view, opts)
            with view[:n] as part:
                self._io.copy_out(addr, part, opts)
            raise self._fault(addr + n, WRITE, n)

    def copy_in(self, addr: int, dst: WriteableBuffer, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.copy_in."""
        with writable_view(dst, "dst") as view:
            n = self._allowed(len(view))
            if n is None:
                return self._io.copy_in(addr, view, opts)
            with view[:n] as part:
                self._io.copy_in(addr, part, opts)
            raise self._fault(addr + n, READ, n)

    def zero_out(self, addr: int, n: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.zero_out."""
        check_count(n, "n")
        allowed = self._allowed(n)
        if allowed is None:
            return self._io.zero_out(addr, n, opts)
        self._io.zero_out(addr, allowed, opts)
        raise self._fault(addr + allowed, WRITE, allowed)

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.copy_out_from."""
        n = self._allowed(ars.num_bytes)
        if n is None:
            return self._io.copy_out_from(ars, reader, opts)

        def read(dsts: BlockSeq) -> int:
            return reader.read_to_blocks(dsts.take_first(n)) if n else 0

        return self._checked(ars, n, self._io.copy_out_from(ars, ReaderFunc(read), opts), WRITE)

    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.copy_in_to."""
        n = self._allowed(ars.num_bytes)
        if n is None:
            return self._io.copy_in_to(ars, writer, opts)

        def write(srcs: BlockSeq) -> int:
            return writer.write_from_blocks(srcs.take_first(n)) if n else 0

        return self._checked(ars, n, self._io.copy_in_to(ars, WriterFunc(write), opts), READ)

    def swap_uint32(self, addr: int, new: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.swap_uint32."""
        self._atomic(addr, READ_WRITE, opts)
        return self._io.swap_uint32(addr, new, opts)

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.compare_and_swap_uint32."""
        self._atomic(addr, READ_WRITE, opts)
        return self._io.compare_and_swap_uint32(addr, old, new, opts)

    def load_uint32(self, addr: int, opts: IOOpts = DEFAULT_OPTS) -> int:
        """See IO.load_uint32."""
        self._atomic(addr, READ, opts)
        return self._io.load_uint32(addr, opts)

    def _allowed(self, length: int) -> int | None:
        """How many bytes the plan lets through of this access; None if all."""
        step = next(self._steps, None)
        return None if step is None or step >= length else step

    def _atomic(self, addr: int, access: AccessType, opts: IOOpts) -> None:
        if next(self._steps, None) is None:
            return
        self._io.load_uint32(addr, opts)  # the memory's own fault comes first
        raise self._fault(addr, access, 0)

    def _checked(self, ars: AddrRangeSeq, allowed: int, moved: int, access: AccessType) -> int:
        """What a stream moved, unless it moved all that the plan let through."""
        if moved < allowed:
            return moved
        rest = ars.drop_first(allowed)
        while not rest.head().length:
            rest = rest.tail()
        raise self._fault(rest.head().start, access, allowed)

    def _fault(self, addr: int, access: AccessType, transferred: int) -> FaultError:
        fault = FaultError(addr, access, FaultReason.INJECTED, transferred)
        self.injected.append(fault)
        return fault
