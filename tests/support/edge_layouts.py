"""Layouts: user memory with an edge behind which nothing can be accessed, one of each kind that we ship.

The bytes before the edge are :func:`pattern`; what memory there is behind it holds 0xEE. And the ranges, readers and
writers to go to that edge with.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen

from hostarch import AMD64, ANY_ACCESS, READ, WRITE, AccessType, AddrRange, AddrRangeSeq, mman
from safemem import Block, BlockSeq, BlockSeqReader, BlockSeqWriter
from usermem import AddressSpace, BytesIO, FaultError, FaultReason, ResolvedIO

PAGE = 4096
RW = mman.PROT_READ | mman.PROT_WRITE
ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
FIXED = ANON | mman.MAP_FIXED
BASE = 0x20_0000
_TAIL = 24


def pattern(n: int) -> bytes:
    """n bytes, none of which is 0 or 0xEE, in an order that shows a shift."""
    return bytes(1 + 7 * i % 199 for i in range(n))


def one(addr: int, n: int) -> AddrRangeSeq:
    """One range."""
    return AddrRangeSeq.of(AddrRange(addr, addr + n))


def pieces(addr: int, n: int) -> AddrRangeSeq:
    """The same bytes in many ranges, some of them empty."""
    sizes = (1, 0, 5, 2, 0, 700, 3)
    found: list[AddrRange] = []
    at = addr
    while at < addr + n:
        found.append(AddrRange(at, min(at + sizes[len(found) % len(sizes)], addr + n)))
        at = found[-1].end
    return AddrRangeSeq(found)


def source(data: bytes) -> BlockSeqReader:
    """A Reader of the bytes."""
    return BlockSeqReader(BlockSeq.of(Block(data)))


def sink(dst: memoryview) -> BlockSeqWriter:
    """A Writer into the buffer."""
    return BlockSeqWriter(BlockSeq.of(Block(dst)))


@frozen
class Layout:
    """``before`` views hold the accessible bytes up to address ``edge``, ``sentinel`` bytes behind it.

    ``behind`` more bytes become accessible, in the IO that it returns, by ``repair()``.
    """

    io: ResolvedIO
    edge: int
    before: list[memoryview]
    sentinel: memoryview
    behind: int
    reason: FaultReason
    repair: Callable[[], ResolvedIO]
    ignore_permissions: bool = False
    accesses: tuple[AccessType, ...] = (READ, WRITE)
    size: int = field(init=False)

    @size.default
    def _size(self) -> int:
        return sum(map(len, self.before))

    def content(self) -> bytes:
        """The accessible bytes, whatever the guest's rights."""
        return b"".join(self.before)

    def ks(self) -> list[int]:
        """How many bytes before the edge an access should start: all of few, else those near the pages' ends."""
        if self.size < PAGE:
            return list(range(self.size + 1))
        ends = range(PAGE, self.size + 1, PAGE)
        return [*range(26), *(end + d for end in ends for d in (-1, 0, 1) if end + d <= self.size)]


def views(space: AddressSpace, addr: int, n: int) -> list[memoryview]:
    """The host memory behind guest addresses, which stays where it is whatever becomes of the rights."""
    return space.blocks(one(addr, n), READ, ignore_permissions=True).views()


def _space(pages: int) -> AddressSpace:
    """A space whose first pages hold the pattern, and the next two 0xEE."""
    space = AddressSpace()
    space.mmap(BASE, (pages + 2) * PAGE, RW, FIXED)
    space.copy_out(BASE, pattern(pages * PAGE))
    space.copy_out(BASE + pages * PAGE, b"\xee" * 2 * PAGE)
    return space


def _edge_of(
    space: AddressSpace,
    pages: int,
    reason: FaultReason,
    repair: Callable[[], object],
    behind: int = _TAIL,
    *,
    ignore_permissions: bool = False,
    accesses: tuple[AccessType, ...] = (READ, WRITE),
    sentinel: memoryview | None = None,
) -> Layout:
    def repaired() -> ResolvedIO:
        repair()
        return space

    edge = BASE + pages * PAGE
    before = views(space, BASE, pages * PAGE)
    return Layout(
        space, edge, before, sentinel or memoryview(b""), behind, reason, repaired, ignore_permissions, accesses
    )


def bytes_io() -> Layout:
    """A BytesIO that sees only the start of a buffer."""
    buffer = memoryview(bytearray(pattern(64) + b"\xee" * _TAIL))
    return Layout(
        BytesIO(buffer[:64]), 64, [buffer[:64]], buffer[64:], _TAIL, FaultReason.UNMAPPED, lambda: BytesIO(buffer)
    )


def hole() -> Layout:
    """A page, a hole, and a page behind it that the access would reach."""
    space = _space(1)
    space.munmap(BASE + PAGE, PAGE)
    sentinel = views(space, BASE + 2 * PAGE, PAGE)[0]
    return _edge_of(
        space,
        1,
        FaultReason.UNMAPPED,
        lambda: space.mmap(BASE + PAGE, PAGE, RW, FIXED),
        PAGE + _TAIL,
        sentinel=sentinel,
    )


def forbidden() -> Layout:
    """Pages that may not be accessed at all behind one that may."""
    space = _space(1)
    sentinel = views(space, BASE + PAGE, PAGE)[0]
    space.mprotect(BASE + PAGE, PAGE, mman.PROT_NONE)
    return _edge_of(space, 1, FaultReason.PERMISSION, lambda: space.mprotect(BASE + PAGE, PAGE, RW), sentinel=sentinel)


def read_only() -> Layout:
    """Pages that may be read only: an edge for writers."""
    space = _space(1)
    sentinel = views(space, BASE + PAGE, PAGE)[0]
    space.mprotect(BASE + PAGE, PAGE, mman.PROT_READ)
    return _edge_of(
        space,
        1,
        FaultReason.PERMISSION,
        lambda: space.mprotect(BASE + PAGE, PAGE, RW),
        accesses=(WRITE,),
        sentinel=sentinel,
    )


def split_run() -> Layout:
    """Three pages in two VMAs, the middle one from another place in host memory, then a hole."""
    space = _space(3)
    pinned = space.blocks(one(BASE + PAGE, PAGE))  # so that its host memory is not used again at once
    space.munmap(BASE + PAGE, PAGE)
    space.mmap(BASE + PAGE, PAGE, RW, FIXED)
    space.copy_out(BASE + PAGE, pattern(3 * PAGE)[PAGE : 2 * PAGE])
    del pinned
    space.mprotect(BASE + 2 * PAGE, PAGE, RW | mman.PROT_EXEC)
    space.munmap(BASE + 3 * PAGE, 2 * PAGE)
    return _edge_of(space, 3, FaultReason.UNMAPPED, lambda: space.mmap(BASE + 3 * PAGE, PAGE, RW, FIXED))


class GrowingObject:
    """A mapped object whose first bytes are ``data`` and whose others, up to ``length``, are zero."""

    def __init__(self, data: bytes, length: int) -> None:
        self.data = data
        self.length = length

    def size(self) -> int:
        """See MappedObject."""
        return self.length

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        part = self.data[offset : offset + len(dst)]
        dst[: len(part)] = part
        return max(min(self.length - offset, len(dst)), 0)


def beyond_object() -> Layout:
    """A mapping of two pages over an object that ends within the first."""
    space = AddressSpace()
    mapped = GrowingObject(b"object", 100)
    space.map_object(BASE, 2 * PAGE, RW, FIXED, mapped)
    space.copy_out(BASE, pattern(PAGE))

    def grow() -> None:
        mapped.length = 2 * PAGE

    return _edge_of(space, 1, FaultReason.BEYOND_FILE, grow)


def ignored_rights() -> Layout:
    """ignore_permissions over pages that forbid everything, up to a hole."""
    space = _space(1)
    space.munmap(BASE + PAGE, PAGE)
    sentinel = views(space, BASE + 2 * PAGE, PAGE)[0]
    space.mprotect(BASE, PAGE, mman.PROT_NONE)
    return _edge_of(
        space,
        1,
        FaultReason.UNMAPPED,
        lambda: space.mmap(BASE + PAGE, PAGE, mman.PROT_NONE, FIXED),
        PAGE + _TAIL,
        ignore_permissions=True,
        sentinel=sentinel,
    )


def ignored_rights_limit() -> Layout:
    """ignore_permissions up to a mapping that can never be accessed."""
    space = _space(1)
    space.map_object(BASE + PAGE, PAGE, mman.PROT_NONE, FIXED, None, max_prot=0)
    space.mprotect(BASE, PAGE, mman.PROT_NONE)

    def allow() -> None:
        space.map_object(BASE + PAGE, PAGE, mman.PROT_NONE, FIXED, None, max_prot=ANY_ACCESS)

    return _edge_of(space, 1, FaultReason.PERMISSION, allow, ignore_permissions=True)


class Crumbs(ResolvedIO):
    """The smallest IO of one's own: a buffer at an address, accessible up to ``end``, in blocks of three bytes."""

    def __init__(self, base: int, buffer: bytearray, end: int) -> None:
        self.arch = AMD64
        self.view = memoryview(buffer)
        self._base = base
        self.end = end

    def resolve(
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[list[Block], FaultError | None]:
        """See ResolvedIO.resolve."""
        stop = min(addr + length, self.end) if self._base <= addr <= self.end else addr
        starts = range(addr, stop, 3)
        blocks = [Block.from_view(self.view, at - self._base, min(3, stop - at)) for at in starts]
        fault = FaultError(stop, access, FaultReason.INJECTED) if stop < addr + length else None
        return blocks, fault


def crumbs() -> Layout:
    """An IO made of ResolvedIO and a resolve() of the test's own."""
    io = Crumbs(BASE, bytearray(pattern(64) + b"\xee" * _TAIL), BASE + 64)

    def repair() -> ResolvedIO:
        io.end += _TAIL
        return io

    return Layout(io, BASE + 64, [io.view[:64]], io.view[64:], _TAIL, FaultReason.INJECTED, repair)


LAYOUTS: tuple[Callable[[], Layout], ...] = (
    bytes_io,
    hole,
    forbidden,
    read_only,
    split_run,
    beyond_object,
    ignored_rights,
    ignored_rights_limit,
    crumbs,
)
