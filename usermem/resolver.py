"""ResolvedIO: the whole of IO, derived from one primitive.

The primitive is :meth:`ResolvedIO.resolve`: which host blocks are behind the accessible prefix of a range of user
addresses, and what stopped it. Everything here moves bytes between those blocks and somewhere else, exactly as far.
(gVisor's mm.withInternalMappings; vm-memory's get_slices.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from struct import Struct
from typing import TYPE_CHECKING, Any, TypeAlias

from hostarch import READ, READ_WRITE, WRITE, AccessType, AddrRangeSeq, Arch
from safemem import Block, BlockSeq, HostFaultError, Reader, Writer, atomics
from safemem.block_seq import copy_seq, zero_seq
from safemem.buffers import check_count, check_int, readable_view, writable_view
from safemem.errors import short_count
from usermem.errors import FaultError, FaultReason, bytes_before, cut_short

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


Found: TypeAlias = tuple[BlockSeq, FaultError | None]
"""The host memory behind the accessible prefix of ranges, and the fault that follows it."""


class ResolvedIO(ABC):
    """An IO over whatever :meth:`resolve` finds. Subclasses give ``arch`` and ``resolve``, and may check ranges."""

    arch: Arch
    # gVisor's BytesIO allows atomics at any address, its memory manager only at multiples of four.
    _atomics_aligned = True

    @abstractmethod
    def resolve(
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[list[Block], FaultError | None]:
        """The blocks behind the longest accessible prefix of [addr, addr + length), and what stopped it.

        The fault is None iff the blocks cover the whole range, and is not raised; its ``address`` is the first byte
        that is not accessible. No block is empty.
        """

    def range_fault(self, addr: int, length: int, access: AccessType) -> FaultError | None:
        """The fault, not raised, if [addr, addr + length) leaves user space; else None. Mappings do not matter.

        An IO without a user space of its own to leave accepts all.
        """
        return None

    def read_bytes(self, addr: int, n: int, *, ignore_permissions: bool = False) -> bytes:
        """The n bytes at addr. Raises FaultError with the bytes before it in ``partial``; ValueError if n < 0."""
        n = check_count(n, "n")
        data: bytes | bytearray = b""

        def take(srcs: BlockSeq) -> int:
            nonlocal data
            if not srcs.need_safecopy:
                data = srcs.tobytes()
                return len(data)
            data = bytearray(srcs.num_bytes)
            return copy_seq(_over(memoryview(data)), srcs)

        try:
            self._move(addr, n, READ, ignore_permissions, take)
        except OSError as exc:
            cut_short(exc, bytes(data[: bytes_before(exc)]))
            raise
        return bytes(data)

    def copy_struct_in(self, addr: int, layout: Struct, *, ignore_permissions: bool = False) -> tuple[Any, ...]:
        """The values of the struct at addr. Raises FaultError with the bytes before it in ``partial``."""
        return layout.unpack(self.read_bytes(addr, layout.size, ignore_permissions=ignore_permissions))

    def write_bytes(self, addr: int, data: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        """The same as :meth:`copy_out`, the twin of :meth:`read_bytes`."""
        return self.copy_out(addr, data, ignore_permissions=ignore_permissions)

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        """Copy all bytes of src to addr and return how many. Raises FaultError."""
        # The view is released at once: a caller may want to resize its buffer while it holds our error's traceback.
        with readable_view(src, "src") as view:
            srcs = _over(view)
            return self._move(addr, len(view), WRITE, ignore_permissions, lambda dsts: copy_seq(dsts, srcs))

    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        """Fill dst with the bytes at addr and return how many. Raises FaultError."""
        with writable_view(dst, "dst") as view:
            dsts = _over(view)
            return self._move(addr, len(view), READ, ignore_permissions, lambda srcs: copy_seq(dsts, srcs))

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        """Set n bytes at addr to 0 and return n. Raises FaultError; ValueError if n < 0."""
        n = check_count(n, "n")
        return self._move(addr, n, WRITE, ignore_permissions, zero_seq)

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        """Let reader fill the memory at ars and return how many bytes it moved. Raises as :meth:`IO.copy_out_from`.

        The reader is called at most once, with the accessible prefix of ars; one that stops before the hole gives a
        short count.
        """
        return self._stream(ars, WRITE, reader.read_to_blocks, ignore_permissions)

    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        """Let writer take the memory at ars and return how many bytes it moved. Rules as for copy_out_from."""
        return self._stream(ars, READ, writer.write_from_blocks, ignore_permissions)

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        """Atomically store new in the uint32 at addr and return what was there. Raises FaultError."""
        return self._atomic("swap", addr, 4, READ_WRITE, ignore_permissions, new)

    def swap_uint64(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        """As swap_uint32, for 8 bytes, at a multiple of 8 where addresses must be aligned."""
        return self._atomic("swap", addr, 8, READ_WRITE, ignore_permissions, new)

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        """Atomically store new in the uint32 at addr if it is old; returns what was there. Raises FaultError."""
        return self._atomic("compare_and_swap", addr, 4, READ_WRITE, ignore_permissions, old, new)

    def compare_and_swap_uint64(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        """As compare_and_swap_uint32, for 8 bytes."""
        return self._atomic("compare_and_swap", addr, 8, READ_WRITE, ignore_permissions, old, new)

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        """Atomically load the uint32 at addr. Raises FaultError."""
        return self._atomic("load", addr, 4, READ, ignore_permissions)

    def load_uint64(self, addr: int, *, ignore_permissions: bool = False) -> int:
        """As load_uint32, for 8 bytes."""
        return self._atomic("load", addr, 8, READ, ignore_permissions)

    def _check_range(self, addr: int, length: int, access: AccessType) -> None:
        """Raise what :meth:`range_fault` finds."""
        fault = self.range_fault(addr, length, access)
        if fault is not None:
            try:
                raise fault
            finally:
                del fault

    def _resolve_range(self, addr: int, length: int, access: AccessType, ignore_permissions: bool) -> Found:
        """:meth:`resolve`. Raises FaultError if the range leaves user space."""
        self._check_range(addr, length, access)
        blocks, fault = self.resolve(addr, length, access, ignore_permissions=ignore_permissions)
        return BlockSeq(blocks), fault

    def _resolve_seq(self, ars: AddrRangeSeq, access: AccessType, ignore_permissions: bool) -> Found:
        """:meth:`resolve` for many ranges. Raises FaultError, before anything is resolved, if one leaves user space."""
        for addr, length in ars.pairs():
            self._check_range(addr, length, access)
        blocks: list[Block] = []
        for addr, length in ars.pairs():
            found, fault = self.resolve(addr, length, access, ignore_permissions=ignore_permissions)
            blocks += found
            if fault is not None:
                return BlockSeq(blocks), fault
        return BlockSeq(blocks), None

    def _move(
        self, addr: int, n: int, access: AccessType, ignore_permissions: bool, move: Callable[[BlockSeq], int]
    ) -> int:
        """:meth:`_stream` over one range."""
        addr = check_int(addr, "addr")
        return moved(move, self._resolve_range(addr, n, access, ignore_permissions), ((addr, n),), access)

    def _stream(
        self, ars: AddrRangeSeq, access: AccessType, move: Callable[[BlockSeq], int], ignore_permissions: bool
    ) -> int:
        """Let ``move`` have the accessible prefix of the ranges at once, and return what it moved."""
        return moved(move, self._resolve_seq(ars, access, ignore_permissions), ars.pairs(), access)

    def _atomic(
        self,
        operation: atomics.Operation,
        addr: int,
        size: atomics.Size,
        access: AccessType,
        ignore_permissions: bool,
        *values: int,
    ) -> int:
        """Operate on the word at addr. It is there whole or not at all: nothing is ever transferred in part."""
        addr = check_int(addr, "addr")
        misaligned = self._atomics_aligned and addr & (size - 1)
        # Nothing of a misaligned word is resolved: no stack grows to it, and no hook hears of it.
        length = 0 if misaligned else size
        blocks: list[Block] = []
        fault = self.range_fault(addr, length, access)
        if fault is None:
            blocks, fault = self.resolve(addr, length, access, ignore_permissions=ignore_permissions)
        if misaligned:
            raise FaultError(addr, access, FaultReason.UNALIGNED)
        if fault is not None:
            raise FaultError(addr, access, fault.reason)
        block = blocks[0]
        if len(block) < size:  # it straddles two pieces of host memory, which no operation can do at once
            raise FaultError(addr, access, FaultReason.UNALIGNED)
        try:
            found: int = getattr(atomics, operation)(size, block, *values, self.arch.byte_order, aligned=False)
            return found
        except HostFaultError as exc:
            raise _guest_fault(exc, addr, access) from exc.with_traceback(None)


def _over(view: memoryview) -> BlockSeq:
    """A sequence of one view, or of none if it is empty."""
    return BlockSeq.unchecked([view] if view else [], len(view))


def moved(move: Callable[[BlockSeq], int], found: Found, ranges: Iterable[tuple[int, int]], access: AccessType) -> int:
    """Have ``move`` move the bytes that were found, behind which there is a fault, or all of the ranges are there."""
    seq, fault = found
    del found  # no frame that the fault passes may hold it: see safemem/errors.py
    most = seq.num_bytes
    done = 0
    if most:
        try:
            done = move(seq)
        except HostFaultError as exc:
            if not _is_ours(exc, seq):
                raise
            start = addr_at(ranges, exc.transferred) - exc.transferred
            raise _guest_fault(exc, start, access) from exc.with_traceback(None)
        except BlockingIOError as exc:
            done = short_count(exc, 0)
            fault = None
        if type(done) is not int or not 0 <= done <= most:
            done = checked_count(done, most)
    if fault is not None and done == most:
        fault.transferred = done
        try:
            raise fault
        finally:
            del fault
    return done


def checked_count(count: int, most: int) -> int:
    """What a reader or writer says it moved, if that can be."""
    count = check_int(count, "what the reader or writer returned")
    if not 0 <= count <= most:
        raise ValueError(f"the reader or writer returned {count} for {most} bytes")
    return count


def _is_ours(exc: HostFaultError, seq: BlockSeq) -> bool:
    """Whether a host fault happened in the blocks that were given, not in the reader's or writer's own memory."""
    rest = seq.drop_first(exc.transferred)
    return bool(rest) and rest.head().need_safecopy and rest.head().address == exc.address


def _guest_fault(exc: HostFaultError, addr: int, access: AccessType) -> FaultError:
    """A host fault in the blocks behind addr as the guest's."""
    reason = FaultReason.BEYOND_FILE if exc.signo.name == "SIGBUS" else FaultReason.UNMAPPED
    return FaultError(addr + exc.transferred, access, reason, exc.transferred)


def addr_at(ranges: Iterable[tuple[int, int]], offset: int) -> int:
    """The user address of a byte, counted from the start of the first range."""
    for addr, length in ranges:
        if offset < length:
            return addr + offset
        offset -= length
    raise ValueError(f"offset lies {offset} bytes beyond the ranges")
