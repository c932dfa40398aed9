"""Hypothesis strategies for guests: addresses at edges, ranges, layouts with holes, iovecs, strings at page ends,
fault plans, races, and whole operations.

Edges are where memory code breaks, so most draws lie at one: page ends, 0, the end of user space, 2**63, 2**64 - 1, and
lengths of 0. All of it shrinks to small numbers near the start of the first page. Everything takes any :class:`Arch`.

Needs hypothesis (``pip install 'usermem[testing]'``).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from itertools import pairwise

from attrs import frozen
from hypothesis import strategies as st

from hostarch import AMD64, READ, READ_WRITE, WRITE, AccessType, AddrRange, AddrRangeSeq, Arch
from usermem.observe.fault_plan import Fault, FaultPlan
from usermem.observe.racing import Race
from usermem.testing.layout import Layout, Mapping
from usermem.testing.operations import (
    CompareAndSwapUint32,
    CopyIn,
    CopyInTo,
    CopyInVec,
    CopyOut,
    CopyOutFrom,
    CopyOutVec,
    CopyStringIn,
    LoadUint32,
    Operation,
    Readv,
    StreamError,
    StreamOSError,
    SwapUint32,
    Temper,
    ZeroOut,
    ZeroOutVec,
    stream_fault,
)

# What is drawn as one number for each mapping: pages of hole before it, pages of it, its rights.
_HOLES, _PAGES, _RIGHTS = 3, 3, (3, 1, 0, 7, 5, 2, 4)

_FAULT_ACCESS = (READ_WRITE, READ, WRITE)

# How sequences of ranges are cut: take so many eighths of their bytes, and drop so many eighths of those.
_CUTS = st.sampled_from([None, None, None, (7, 0), (8, 2), (8, 5), (3, 3), (0, 0), (8, 8)])


def addresses(arch: Arch = AMD64, near: tuple[int, ...] = ()) -> st.SearchStrategy[int]:
    """Addresses of 64 bits, most of them a few bytes or a page from ``near`` or from a limit of the machine."""
    limits = (arch.min_addr, arch.max_addr, 0, arch.addr_mask, 1 << 63, (1 << 64) - 1)
    edges = _aimed(arch, near or (arch.page_round_up(arch.min_addr),))
    return st.one_of(edges, edges, edges, _aimed(arch, limits), st.integers(0, (1 << 64) - 1))


def _aimed(arch: Arch, anchors: tuple[int, ...]) -> st.SearchStrategy[int]:
    page = arch.page_size
    offsets = st.sampled_from([0, -1, 1, -4, 4, page - 1, -page, page]) | st.integers(-16, 16)
    return st.builds(
        lambda anchor, offset: max(0, min(anchor + offset, (1 << 64) - 1)), st.sampled_from(anchors), offsets
    )


def lengths(arch: Arch = AMD64, most: int | None = None) -> st.SearchStrategy[int]:
    """Counts of bytes: small, or around one and two pages; 0 often. At most ``most``, by default three pages."""
    page = arch.page_size
    most = 3 * page if most is None else most
    edges = [n for n in (0, 1, page - 1, page, page + 1, 2 * page) if n <= most]
    small = st.integers(0, min(most, 64))
    return st.one_of(small, small, st.sampled_from(edges), st.integers(0, most))


def addr_ranges(
    arch: Arch = AMD64, near: tuple[int, ...] = (), most: int | None = None
) -> st.SearchStrategy[AddrRange]:
    """Ranges that begin where :func:`addresses` says; some end past the address space, as a guest's may."""
    return _ranges(addresses(arch, near), lengths(arch, most))


def _ranges(starts: st.SearchStrategy[int], sizes: st.SearchStrategy[int]) -> st.SearchStrategy[AddrRange]:
    return st.builds(lambda addr, n: AddrRange(addr, addr + n), starts, sizes)


def _range_lists(
    arch: Arch, near: tuple[int, ...], max_ranges: int, most: int | None
) -> st.SearchStrategy[list[AddrRange]]:
    """Most lists have all their ranges at the edges in ``near``: one that leaves user space fails all the others."""
    tame = _aimed(arch, near) if near else addresses(arch)
    sizes = lengths(arch, most)
    tame_list = st.lists(_ranges(tame, st.integers(0, 16) | sizes), max_size=max_ranges)
    wild_list = st.lists(_ranges(addresses(arch, near), sizes), max_size=max_ranges)
    return st.one_of(tame_list, tame_list, tame_list, wild_list)


def addr_range_seqs(
    arch: Arch = AMD64, near: tuple[int, ...] = (), max_ranges: int = 5, most: int | None = None
) -> st.SearchStrategy[AddrRangeSeq]:
    """Sequences of such ranges, some of them cut by take_first and drop_first."""

    ranges = _range_lists(arch, near, max_ranges, most)

    @st.composite  # which, unlike map(), shows what came of it and not how
    def seqs(draw: st.DrawFn) -> AddrRangeSeq:
        seq = AddrRangeSeq(draw(ranges))
        cut = draw(_CUTS)
        if cut is None:
            return seq
        taken = seq.take_first(seq.num_bytes * cut[0] // 8)
        return taken.drop_first(taken.num_bytes * cut[1] // 8)

    return seqs()


def layouts(arch: Arch = AMD64, min_mappings: int = 0, max_mappings: int = 10) -> st.SearchStrategy[Layout]:
    """Mappings of a few pages with holes of up to two pages between them, at the bottom or the top of user space.

    One number is drawn for each mapping, so that a layout of ten is quick to draw and to shrink.
    """
    page = arch.page_size
    choices = _HOLES * _PAGES * len(_RIGHTS)

    numbers = st.lists(st.integers(0, choices - 1), min_size=min_mappings, max_size=max_mappings)

    @st.composite
    def made(draw: st.DrawFn) -> Layout:
        chosen = [(n % _HOLES, n // _HOLES % _PAGES + 1, _RIGHTS[n // (_HOLES * _PAGES)]) for n in draw(numbers)]
        addr = arch.page_round_up(arch.min_addr)
        if draw(st.booleans()):
            addr = arch.page_round_down(arch.max_addr) - page * sum(hole + pages for hole, pages, _ in chosen)
        mappings = []
        for hole, pages, rights in chosen:
            addr += hole * page
            mappings.append(Mapping(addr, pages * page, AccessType(rights)))
            addr += pages * page
        return Layout(arch, tuple(mappings))

    return made()


def iovecs(layout: Layout, max_ranges: int = 5) -> st.SearchStrategy[AddrRangeSeq]:
    """What a guest with this layout can pass to readv: ranges at the edges of its mappings, in its own pointers."""
    return iovecs_near(layout.arch, layout.edges, max_ranges)


def iovecs_near(
    arch: Arch, near: tuple[int, ...], max_ranges: int = 5, most: int | None = None
) -> st.SearchStrategy[AddrRangeSeq]:
    """What a guest can pass to readv, at any places; ``most`` limits the bytes of each range."""

    ranges = _range_lists(arch, near, max_ranges, most)

    @st.composite
    def tables(draw: st.DrawFn) -> AddrRangeSeq:
        return AddrRangeSeq.from_pairs([x for ar in draw(ranges) for x in (ar.start & arch.addr_mask, ar.length)])

    return tables()


def buffers(most: int = 300) -> st.SearchStrategy[bytes]:
    """Bytes to copy, 0 and 255 among them; never more than ``most``."""
    return st.binary(max_size=most)


@frozen
class PlacedString:
    """``text`` and a NUL (unless ``terminated`` is False), to be stored at ``addr``."""

    addr: int
    text: bytes
    terminated: bool

    @property
    def content(self) -> bytes:
        """The bytes to store."""
        return self.text + b"\0" * self.terminated


def strings_at_page_ends(layout: Layout, most: int = 80) -> st.SearchStrategy[PlacedString]:
    """Strings that end, with their NUL or without one, a few bytes before or behind an edge of the layout."""

    def place(text: bytes, edge: int, slack: int, terminated: bool) -> PlacedString:
        addr = edge - len(text) - terminated + slack
        return PlacedString(max(addr, 0), text, terminated)

    texts = st.binary(max_size=most).map(lambda text: text.replace(b"\0", b"0"))
    return st.builds(place, texts, st.sampled_from(layout.edges), st.integers(-2, 2), st.booleans())


def chunkings(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """Ways to cut a byte stream into pieces, none of them empty; whatever reads it must not care."""

    def cut(places: list[int]) -> list[bytes]:
        bounds = sorted({0, len(data), *places})
        return [data[start:end] for start, end in pairwise(bounds)]

    return st.lists(st.integers(0, len(data)), max_size=8).map(cut)


def fault_plans(max_accesses: int = 8, most: int = 64, near: tuple[int, ...] = ()) -> st.SearchStrategy[FaultPlan]:
    """For each of the first accesses whether it passes or after how many bytes it faults; most pass.

    With ``near`` (addresses, as of ``layout.edges``) up to two :func:`faults` come beside them.
    """
    step = st.none() | st.none() | st.integers(0, most)
    steps = st.lists(step, max_size=max_accesses).map(tuple)
    more = st.lists(faults(near=near, most=most), max_size=2).map(tuple) if near else st.just(())
    return st.builds(FaultPlan, steps, more)


def faults(
    arch: Arch = AMD64, near: tuple[int, ...] = (), most: int = 64, errors: tuple[int, ...] = (errno.EFAULT,)
) -> st.SearchStrategy[Fault]:
    """A byte or a page near the addresses in ``near``, one access, or some that are drawn by a seed.

    Most are sticky, and all shrink to the first byte of all accesses. ``most`` limits the bytes before them, ``errors``
    are the errnos to draw.
    """
    codes = st.sampled_from(errors)
    how = {"times": st.sampled_from([None, None, 1, 2]), "errno": codes, "access": st.sampled_from(_FAULT_ACCESS)}
    page = arch.page_size
    nth = st.integers(0, 20)
    return st.one_of(
        st.builds(Fault, byte=st.integers(0, most), nth=st.none() | nth, **how),
        st.builds(Fault, addr=addresses(arch, near), nth=st.none() | nth, **how),
        st.builds(
            lambda addr, **more: Fault(addr=addr - addr % page, length=page, **more), addresses(arch, near), **how
        ),
        st.builds(Fault, probability=st.sampled_from([0.5, 0.1, 0.01]), seed=st.integers(0, 1 << 16), **how),
    )


def races(max_races: int = 2, most: int = 64) -> st.SearchStrategy[list[Race]]:
    """One to ``max_races`` changes of a byte between two fetches of it, for RacingIO; they shrink to the first byte.

    ``most`` limits which byte of a refetch is changed.
    """
    values = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
    race = st.builds(Race, st.sampled_from([0, 0, 0, 1, 2, 3]), st.integers(0, most), values)
    return st.lists(race, min_size=1, max_size=max_races)


def tempers() -> st.SearchStrategy[Temper]:
    """Readers and writers that move all or stop short, and some that raise then: errors of their own, would-block."""
    errors = st.sampled_from([None, None, None, StreamError, StreamOSError, stream_fault, BlockingIOError])
    return st.builds(Temper, st.one_of(st.none(), st.none(), st.integers(0, 9)), errors)


def operations(
    arch: Arch = AMD64,
    near: tuple[int, ...] = (),
    most: int | None = None,
    kinds: Iterable[type[Operation]] | None = None,
) -> st.SearchStrategy[Operation]:
    """Calls on user memory, most of them at the edges in ``near``; ``most`` limits their bytes.

    ``kinds`` are the classes of :mod:`usermem.testing.operations` to draw, by default all of them.
    ``st.lists(operations(layout.arch, layout.edges))`` is a sequence of calls for a guest of that layout.
    """
    addrs = addresses(arch, near)
    aligned = addrs.map(lambda addr: addr & ~3)
    words = st.one_of(aligned, aligned, addrs)
    sizes = lengths(arch, most)
    data = buffers() if most is None else buffers(min(most, 300))
    ars = addr_range_seqs(arch, near, most=most)
    values = st.sampled_from([0, 1, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)
    ignored = st.sampled_from([False, False, True])
    made: dict[type[Operation], st.SearchStrategy[Operation]] = {
        CopyOut: st.builds(CopyOut, addrs, data, ignore_permissions=ignored),
        CopyIn: st.builds(CopyIn, addrs, sizes, ignore_permissions=ignored),
        ZeroOut: st.builds(ZeroOut, addrs, sizes, ignore_permissions=ignored),
        CopyStringIn: st.builds(CopyStringIn, addrs, sizes, ignore_permissions=ignored),
        CopyOutFrom: st.builds(CopyOutFrom, ars, tempers(), ignore_permissions=ignored),
        CopyInTo: st.builds(CopyInTo, ars, tempers(), ignore_permissions=ignored),
        CopyOutVec: st.builds(CopyOutVec, ars, data, ignore_permissions=ignored),
        CopyInVec: st.builds(CopyInVec, ars, sizes, ignore_permissions=ignored),
        ZeroOutVec: st.builds(ZeroOutVec, ars, sizes, ignore_permissions=ignored),
        Readv: st.builds(Readv, addrs, iovecs_near(arch, near, most=most), tempers(), ignore_permissions=ignored),
        SwapUint32: st.builds(SwapUint32, words, values, ignore_permissions=ignored),
        CompareAndSwapUint32: st.builds(
            CompareAndSwapUint32, words, st.none() | values, values, ignore_permissions=ignored
        ),
        LoadUint32: st.builds(LoadUint32, words, ignore_permissions=ignored),
    }
    return st.one_of([made[kind] for kind in (made if kinds is None else kinds)])
