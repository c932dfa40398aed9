"""Which pages were written since a state, and which differ between two states.

Private pages that have the same place in the same image are the same. What was written since the last image was made,
the host knows; the bytes of shared anonymous memory are compared.
"""

from __future__ import annotations

from hostarch import AddrRange, AddrRangeSeq, Arch
from usermem.mm.change import Tables
from usermem.mm.extent import Extent, same_page
from usermem.mm.pma import PMASet
from usermem.mm.ranges import Ranges, differing, joined
from usermem.mm.segment_diff import changed, differences
from usermem.mm.state import State, seen, shared_mappings
from usermem.mm.vma import VMA, VMASet


def dirty(tables: Tables, since: State) -> Ranges:
    """The guest addresses, in host pages, that are mapped now and were written since, or show other memory.

    Nobody may be in the middle of an access.
    """
    found = _written(tables.pmas) + _moved_since(since, tables)
    for start, end, old, new in differences(*changed(since.tables.vmas, tables.vmas)):
        if new is not None and not (old is not None and shows_same(start, old, new)) and not _zeros(old, new):
            found.append((start, end))
    for memory, vmas in shared_mappings(tables.vmas).items():
        copy = since.copies.get(memory)
        found += _where_mapped(vmas, copy.written() if copy is not None else memory.data())
    return _mapped(tables.vmas, found)


def different(one: State, other: State) -> Ranges:
    """The guest addresses, in host pages, whose bytes differ, or that are mapped in one of the two only."""
    found: Ranges = []
    compared: Ranges = []
    for start, end, old, new in differences(*changed(one.tables.vmas, other.tables.vmas)):
        # Of the space's own memory images and copies say what is not zero: that is compared below.
        if old is None or new is None or not (shows_same(start, old, new) or (_is_own(old) and _is_own(new))):
            found.append((start, end))
    for start, end, before, after in _moved(one, other):
        vma = one.tables.vmas.find(start)
        a_file_shows = vma is not None and not _is_own(vma)
        (found if a_file_shows and (before is None or after is None) else compared).append((start, end))
    for each in (one, other):
        for memory, vmas in shared_mappings(each.tables.vmas).items():
            for state in (one, other):
                if memory in state.copies:
                    compared += _where_mapped(vmas, state.copies[memory].data)
    both = _mapped(other.tables.vmas, _mapped(one.tables.vmas, compared))
    return _mapped_in_either(one, other, found + differing(both, one.read, other.read))


def _mapped_in_either(one: State, other: State, found: Ranges) -> Ranges:
    return joined(_mapped(one.tables.vmas, found) + _mapped(other.tables.vmas, found))


def page_ranges(arch: Arch, ranges: Ranges) -> AddrRangeSeq:
    """Some ranges in whole pages of the guest's."""
    down, up = arch.page_round_down, arch.page_round_up
    pages = joined([(down(start), up(end)) for start, end in ranges])
    return AddrRangeSeq([AddrRange(start, end) for start, end in pages])


def shows_same(addr: int, old: VMA, new: VMA) -> bool:
    """Whether two mappings show the same of the same backing at an address."""
    same = old.backing is new.backing or old.backing.key == new.backing.key
    return same and old.shared == new.shared and old.offset_at(addr) == new.offset_at(addr)


def _zeros(old: VMA | None, new: VMA) -> bool:
    """Whether what is mapped now is zeros but for what images and pages say, and was so before."""
    return new.backing.anonymous and (old is None or old.backing.anonymous)


def _is_own(vma: VMA) -> bool:
    """Whether what is mapped is the space's own: no file, object or buffer."""
    return vma.backing.anonymous or vma.backing.shared_memory is not None


def _moved(one: State, other: State) -> list[tuple[int, int, Extent | None, Extent | None]]:
    """Where two states show other pages of images, or only one shows any: (start, end, the one's, the other's)."""
    if one.tables.pmas is other.tables.pmas and all(
        part.extents is other.parts[overlay].extents for overlay, part in one.parts.items()
    ):
        return []
    both = differences(list(one.extents), list(other.extents))
    return [each for each in both if not same_page(each[2], each[3])]


def _moved_since(since: State, tables: Tables) -> Ranges:
    """Where a space shows other pages of images than a state of it did, or only one of the two shows any."""
    if tables.pmas is not since.tables.pmas:
        return [(start, end) for start, end, *_ in _moved(since, seen(tables, {}))]
    found: Ranges = []
    for overlay, extents, spans in since.parts.values():
        if overlay.extents is not extents:
            now = [extent for span in spans for extent in overlay.extents.within(*span)]
            both = differences(list(extents), now)
            found += [(start, end) for start, end, old, new in both if not same_page(old, new)]
    return tables.pmas.private.guest_ranges(found)


def _written(pmas: PMASet) -> Ranges:
    """The guest addresses of private memory that somebody has written since the last image of it was made."""
    private = pmas.private
    return private.guest_ranges([found for overlay, spans in private.spans.items() for found in overlay.written(spans)])


def _where_mapped(vmas: list[VMA], parts: Ranges) -> Ranges:
    """The guest addresses at which mappings of a shared anonymous memory show some parts of it."""
    found: Ranges = []
    for vma in vmas:
        distance = vma.start - vma.offset
        found += [(max(low + distance, vma.start), min(high + distance, vma.end)) for low, high in parts]
    return [(start, end) for start, end in found if start < end]


def _mapped(vmas: VMASet, ranges: Ranges) -> Ranges:
    """What of some ranges is mapped."""
    return joined(
        [
            (max(vma.start, start), min(vma.end, end))
            for start, end in joined(ranges)
            for vma in vmas.overlapping(start, end)
        ]
    )
