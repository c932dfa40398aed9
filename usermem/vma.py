"""VMAs: what the guest asked for. They merge and split as Linux's do.

Source: gVisor pkg/sentry/mm/vma.go; Linux mm/vma.c.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

from attrs import evolve, frozen

from hostarch import AccessType
from usermem.attached import Attached
from usermem.host_file import HostFile
from usermem.segment import SegmentSet
from usermem.shared_memory import SharedMemory


class MappedObject(Protocol):
    """Something that can be mapped: a file of the simulator's."""

    def size(self) -> int:
        """How many bytes it has now. Pages that lie wholly beyond them cannot be accessed."""
        ...

    def read_at(self, offset: int, dst: memoryview) -> int:
        """Fill dst with the bytes at offset and return how many there were; what is left stays zero."""
        ...


class WritableObject(MappedObject, Protocol):
    """One into which shared mappings are written back."""

    def write_at(self, offset: int, src: memoryview) -> object:
        """Take the bytes at offset, which lie inside, from src."""
        ...


@frozen
class VMA:
    """One mapping, [start, end), page-aligned. ``max_prot`` is what mprotect may grant at most.

    ``mapped`` is the object behind it, whose byte ``offset`` is at start; None for private anonymous memory.
    """

    start: int
    end: int
    prot: int
    max_prot: int
    shared: bool
    growsdown: bool = False
    mapped: MappedObject | None = None
    offset: int = 0
    name: str = ""

    @property
    def label(self) -> str:
        """What is mapped, for people: its name, or the path of the host's file."""
        if self.name or not isinstance(self.mapped, HostFile):
            return self.name
        return self.mapped.path

    @property
    def is_steady(self) -> bool:
        """Whether what can be accessed changes by calls alone: an object of the simulator's may shrink at any time."""
        return self.mapped is None or isinstance(self.mapped, SharedMemory | Attached)

    def split(self, at: int) -> tuple[VMA, VMA]:
        """See Segment.split."""
        right_offset = self.offset + at - self.start if self.mapped is not None else 0
        return evolve(self, end=at), evolve(self, start=at, offset=right_offset)

    def can_merge(self, right: VMA) -> bool:
        """Whether the next mapping says the same and continues this one."""
        return (
            self.end == right.start
            and self.prot == right.prot
            and self.max_prot == right.max_prot
            and self.shared == right.shared
            and self.growsdown == right.growsdown
            and self.name == right.name
            and _same(self.mapped, right.mapped)
            and (self.mapped is None or self.offset + self.end - self.start == right.offset)
        )


# How many searches for gaps are remembered.
_SEARCHES: Final = 8


def _same(left: MappedObject | None, right: MappedObject | None) -> bool:
    """Whether two mappings have the same behind them: of the host's files, those of one file that allow the same."""
    if isinstance(left, HostFile) and isinstance(right, HostFile):
        return left.key == right.key
    return left is right


class VMASet(SegmentSet[VMA]):
    """The mappings of an address space, in order, with no two neighbours that could be one."""

    __slots__ = ("_guard", "_searched")

    def __init__(self, guard: int = 0) -> None:
        """``guard`` is how many bytes find_gap keeps free below what grows down."""
        super().__init__()
        self._guard = guard
        # Of each (high, length): below high, no gap of that length or more ends above the address.
        # Placing n mappings is O(n) then, of one length or of some in turn.
        self._searched: dict[tuple[int, int], int] = {}

    def find_gap(self, length: int, low: int, high: int) -> int | None:
        """See SegmentSet.find_gap; remembers where the search may begin next time, as Linux's cached_hole_size did."""
        begin = high
        for (top, least), addr in self._searched.items():
            if top == high and least <= length:
                begin = min(begin, addr)
        found = super().find_gap(length, low, begin)
        while found is not None and found + length > (limit := self.limit_from(found)):
            found = super().find_gap(length, low, limit)
        if found is not None:
            self._searched.pop((high, length), None)
            if len(self._searched) >= _SEARCHES:
                del self._searched[next(iter(self._searched))]
            self._searched[high, length] = found + length
        return found

    def find_low_gap(self, length: int, low: int, high: int) -> int | None:
        """As find_gap, as low as possible."""
        while low + length <= high:
            vma = self.first_from(low)
            if vma is None or low + length <= self.limit_from(low):
                return low
            low = vma.end
        return None

    def limit_from(self, addr: int) -> int:
        """Where the free space that addr lies in should end: at the next mapping, or the guard below one that grows."""
        vma = self.first_from(addr)
        if vma is None:
            return 1 << 64
        return max(vma.start - self._guard, 0) if vma.growsdown else vma.start

    def remove(self, start: int, end: int) -> list[VMA]:
        """See SegmentSet.remove."""
        removed = super().remove(start, end)
        if removed and self._searched:
            # Of the gaps only the one around has changed.
            low, top = self.gap(removed[0].start, 0, 1 << 64)
            for (high, length), addr in self._searched.items():
                if top > addr and min(top, high) - low >= length:
                    self._searched[high, length] = min(top, high)
        return removed

    def add(self, vma: VMA) -> None:
        """Add a mapping where there is none, and merge it with its neighbours."""
        self.insert(vma)
        self.merge(vma.start, vma.end)

    def merge(self, start: int, end: int) -> None:
        """Join what can be joined from just before start to just after end."""
        i = max(self._index_from(start) - 1, 0)
        while i + 1 < len(self._segments) and self._starts[i] <= end:
            left, right = self._segments[i], self._segments[i + 1]
            if left.can_merge(right):
                self._segments[i : i + 2] = [evolve(left, end=right.end)]
                del self._starts[i + 1]
            else:
                i += 1

    def protect(self, start: int, end: int, prot: int) -> None:
        """Give everything mapped in [start, end) the rights prot."""
        for vma in super().remove(start, end):
            self.insert(evolve(vma, prot=prot))
        self.merge(start, end)

    def mapped_up_to(self, start: int, end: int) -> int:
        """The first address in [start, end) that is in no mapping; end if there is none."""
        for vma in self.overlapping(start, end):
            if vma.start > start:
                break
            start = vma.end
        return min(start, end)

    def _check(self) -> None:
        super()._check()
        for left, right in zip(self._segments, self._segments[1:], strict=False):
            assert not left.can_merge(right), f"{left} and {right} should be one"


def format_maps(vmas: VMASet, pointer_size: int) -> str:
    """The mappings as the text of /proc/PID/maps (proc_pid_maps(5)), a line each."""
    width = 25 + 6 * pointer_size - 1  # where Linux's show_map_vma() puts the name
    lines = []
    for vma in vmas:
        rights = f"{AccessType(vma.prot)}{'s' if vma.shared else 'p'}"
        device, inode, name = "00:00", 0, vma.label
        if isinstance(vma.mapped, HostFile):
            device = f"{os.major(vma.mapped.device):02x}:{os.minor(vma.mapped.device):02x}"
            inode = vma.mapped.inode
        line = f"{vma.start:08x}-{vma.end:08x} {rights} {vma.offset:08x} {device} {inode} "
        name = name.replace("\n", "\\012")
        lines.append(f"{line:<{width}} {name}\n" if name else f"{line}\n")
    return "".join(lines)
