"""SavedSpace: an address space as plain values, which say nothing about the process that saved it.

The bytes are not among the values. A :class:`SavedExtent` names pages whose bytes are kept; all other pages are as
they were when they were mapped. :func:`check` holds for every SavedSpace that a file is written of or read from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from enum import IntEnum
from operator import itemgetter
from typing import Final

from attrs import frozen

from hostarch import ANY_ACCESS, Arch
from usermem.mm.limits import Limits
from usermem.mm.ranges import joined
from usermem.mm.vma import MLOCK_LAZY, MLOCK_NONE

PAGE: Final = 4096
"""Extents begin and end at multiples of this, in bytes: the smallest page of any machine."""

PRIVATE: Final = -1
"""SavedExtent.space of private memory, whose places are guest addresses."""

_GRAIN: Final = 1 << 16  # the last page of shared memory, on any machine
_LONGEST: Final = 1 << 62  # no memory is longer


class Behind(IntEnum):
    """What lies behind a mapping."""

    ANONYMOUS = 0
    """Private memory that begins as zeros."""
    SHARED = 1
    """The shared anonymous memory of which SavedMapping.number is the index in SavedSpace.memories."""
    OTHER = 2
    """Something that is not saved: a file of the host's, an object, a buffer. Mappings of equal numbers are of one."""


@frozen
class SavedMapping:
    """One mapping, [start, end). What has no words here is as in usermem.mm.vma.VMA.

    ``accessible`` is how many bytes of what is behind it could be accessed, None for all that is mapped. ``label``,
    ``device``, ``inode`` and ``name_format`` are what Backing has under these names. ``fork`` are the flags that
    madvise(2) left for fork(2).
    """

    start: int
    end: int
    prot: int
    max_prot: int
    shared: bool
    behind: Behind
    number: int = 0
    accessible: int | None = None
    offset: int = 0
    guard: int = 0
    mlock_mode: int = MLOCK_NONE
    fork: int = 0
    device: int = 0
    inode: int = 0
    name: str = ""
    label: str = ""
    name_format: str | None = None


@frozen
class SavedSpace:
    """All that an address space is, but for the bytes of its pages.

    ``base`` is the address below which mmap(2) places mappings. ``guards`` are the [start, end) of guarded pages, in
    order. ``memories`` are the lengths in bytes of the shared anonymous memories, by their numbers. The rest is as in
    usermem.mm.change.Tables.
    """

    arch: Arch
    base: int
    limits: Limits
    mappings: tuple[SavedMapping, ...] = ()
    guards: tuple[tuple[int, int], ...] = ()
    memories: tuple[int, ...] = ()
    brk_start: int = 0
    brk: int = 0
    mlock_future: int = MLOCK_NONE


@frozen
class SavedExtent:
    """Pages [start, end) of which the bytes are kept: guest addresses where ``space`` is PRIVATE, else offsets into
    the shared memory of that number. ``offset`` is where its bytes begin in the file it was loaded from.
    """

    space: int
    start: int
    end: int
    offset: int = 0


def check(saved: SavedSpace, extents: Sequence[SavedExtent]) -> None:
    """Raise ValueError, naming it, if a value contradicts the others or is none that an address space has.

    Mappings, guards and extents must be in order and not overlap; guards lie in mappings, and private extents in
    private ones.
    """
    arch = saved.arch
    page, top = arch.page_size, arch.max_addr
    if not 0 <= saved.brk_start <= saved.brk <= top or not 0 <= saved.base <= top:
        raise ValueError(f"brk_start, brk and base must be addresses up to {top:#x}")
    if not MLOCK_NONE <= saved.mlock_future <= MLOCK_LAZY:
        raise ValueError(f"mlock_future must be 0 to 2, not {saved.mlock_future}")
    for length in saved.memories:
        if not 0 < length <= _LONGEST:
            raise ValueError(f"shared memory must have 1 to 2**62 bytes, not {length}")
    _check_order("mappings", ((each.start, each.end) for each in saved.mappings), page, top)
    for mapping in saved.mappings:
        _check_mapping(mapping, len(saved.memories), page)
    _check_order("guards", saved.guards, page, top)
    _check_inside("guard", saved.guards, saved.mappings)
    _check_extents(saved, extents)


def _check_mapping(mapping: SavedMapping, memories: int, page: int) -> None:
    if (mapping.prot | mapping.max_prot) & ~ANY_ACCESS or not MLOCK_NONE <= mapping.mlock_mode <= MLOCK_LAZY:
        raise ValueError(f"the mapping at {mapping.start:#x} has a prot, max_prot or mlock_mode that there is not")
    if mapping.behind is Behind.SHARED and mapping.number >= memories:
        raise ValueError(f"the mapping at {mapping.start:#x} is of memory {mapping.number} of {memories}")
    if mapping.behind is Behind.ANONYMOUS and (mapping.shared or mapping.offset):
        raise ValueError(f"the mapping at {mapping.start:#x} is private and anonymous, and shared or has an offset")
    if mapping.offset & (page - 1) or mapping.offset + mapping.end - mapping.start > 1 << 64:
        raise ValueError(f"the mapping at {mapping.start:#x} has the offset {mapping.offset:#x}")
    # str.format() would follow names and attributes in it, and pad to any width.
    if mapping.name_format is not None and {"{", "}"} & set(mapping.name_format.replace("{}", "", 1)):
        raise ValueError(f"the mapping at {mapping.start:#x} has the name_format {mapping.name_format[:80]!r}")


def _check_extents(saved: SavedSpace, extents: Sequence[SavedExtent]) -> None:
    spaces = [PRIVATE, *range(len(saved.memories))]
    tops = [saved.arch.max_addr, *(-(-length // _GRAIN) * _GRAIN for length in saved.memories)]
    by_space: dict[int, list[tuple[int, int]]] = {space: [] for space in spaces}
    last = PRIVATE
    for extent in extents:
        if extent.space < last or extent.space not in by_space:
            raise ValueError(f"there is an extent of memory {extent.space} out of order, or of {len(saved.memories)}")
        by_space[last := extent.space].append((extent.start, extent.end))
    for space, top in zip(spaces, tops, strict=True):
        _check_order("extents", by_space[space], PAGE, top)
    _check_inside("private extent", by_space[PRIVATE], [each for each in saved.mappings if not each.shared])


def _check_order(name: str, ranges: Iterable[tuple[int, int]], page: int, top: int) -> None:
    last = 0
    for start, end in ranges:
        if not last <= start < end <= top or (start | end) & (page - 1):
            where = f"[{start:#x}, {end:#x})"
            raise ValueError(f"{name}: {where} is empty, not of whole pages, out of order, or beyond {top:#x}")
        last = end


def _check_inside(name: str, ranges: Iterable[tuple[int, int]], mappings: Iterable[SavedMapping]) -> None:
    """Raise ValueError if one of the ranges is not covered by mappings."""
    mapped = joined([(each.start, each.end) for each in mappings])
    for start, end in ranges:
        i = bisect_right(mapped, start, key=itemgetter(0)) - 1
        if i < 0 or end > mapped[i][1]:
            raise ValueError(f"the {name} [{start:#x}, {end:#x}) is not all mapped")
