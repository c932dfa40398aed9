"""VMAs (virtual memory areas): the guest's mappings. They merge and split as Linux's do.

Source: gVisor pkg/sentry/mm/vma.go; Linux mm/vma.c.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from attrs import define

from hostarch import mman
from usermem.mm.segment import SegmentSet

if TYPE_CHECKING:
    from usermem.mm.backing.backing import Backing


MLOCK_NONE: Final = 0
MLOCK_EAGER: Final = 1
"""Locked, and brought into memory at once (Linux's VM_LOCKED)."""
MLOCK_LAZY: Final = 2
"""Locked as they are touched (VM_LOCKED with VM_LOCKONFAULT). A mapping that is asked for both is lazy."""

VM_DONTCOPY: Final = 1
"""A forked child does not have the mapping (MADV_DONTFORK)."""
VM_WIPEONFORK: Final = 2
"""A forked child has the mapping, and zeros in it (MADV_WIPEONFORK)."""
VM_SEQ_READ: Final = 4
VM_RAND_READ: Final = 8
VM_DONTDUMP: Final = 16
VM_HUGEPAGE: Final = 32
VM_NOHUGEPAGE: Final = 64
"""These do nothing here but keep mappings apart, as in Linux: mremap, say, refuses a range of two."""


@define(eq=False)
class VMA:
    """One mapping, [start, end), page-aligned. A value: what changes a mapping puts another VMA in its place.

    ``max_prot`` is the most that mprotect may grant. ``backing`` is what lies behind the mapping; its byte ``offset``
    is at ``start`` (0 for private anonymous memory). A mapping that grows down keeps ``guard`` bytes free below it.
    ``name`` is its name in /proc/PID/maps, if it has one of its own. ``mlock_mode`` says whether its pages are locked,
    ``advice_flags`` (VM_DONTCOPY to VM_NOHUGEPAGE) what madvise(2) has said of it that lasts.
    """

    start: int
    end: int
    prot: int
    max_prot: int
    shared: bool
    backing: Backing
    offset: int = 0
    guard: int = 0
    name: str = ""
    mlock_mode: int = MLOCK_NONE
    advice_flags: int = 0

    @property
    def growsdown(self) -> bool:
        """Whether an access below it makes it grow (MAP_GROWSDOWN)."""
        return self.guard > 0

    @property
    def floor(self) -> int:
        """Where the free space below it ends for new mappings: ``start``, or the end of its guard."""
        return max(self.start - self.guard, 0) if self.guard else self.start

    @property
    def may_become_data(self) -> bool:
        """Whether the right to write is all that it lacks to count against RLIMIT_DATA."""
        return not self.shared and not self.guard and not self.prot & mman.PROT_WRITE

    @property
    def label(self) -> str:
        """What is mapped, for people: its name, or the path of the host's file."""
        return self.name or self.backing.label

    def offset_at(self, addr: int) -> int:
        """The offset into the backing of an address, inside or not."""
        return addr if self.backing.anonymous else self.offset + addr - self.start

    def cut(self, start: int, end: int) -> VMA:
        """The part in [start, end)."""
        return self.over(start, end, self.prot)

    def over(self, start: int, end: int, prot: int) -> VMA:
        """The same mapping over other addresses, which may reach beyond it, with other rights."""
        offset = 0 if self.backing.anonymous else self.offset + start - self.start
        backing, mode, flags = self.backing, self.mlock_mode, self.advice_flags
        return VMA(start, end, prot, self.max_prot, self.shared, backing, offset, self.guard, self.name, mode, flags)

    def placed(self, start: int, end: int) -> VMA:
        """The same mapping elsewhere: its backing from the same offset on."""
        prot, max_prot, shared, backing = self.prot, self.max_prot, self.shared, self.backing
        offset, guard, name = self.offset, self.guard, self.name
        return VMA(start, end, prot, max_prot, shared, backing, offset, guard, name, self.mlock_mode, self.advice_flags)

    def can_merge(self, right: VMA) -> bool:
        """Whether the next mapping says the same and continues this one."""
        return (
            self.end == right.start
            and self.prot == right.prot
            and self.max_prot == right.max_prot
            and self.shared == right.shared
            and self.guard == right.guard
            and self.name == right.name
            and self.mlock_mode == right.mlock_mode
            and self.advice_flags == right.advice_flags
            and (self.backing is right.backing or self.backing.key == right.backing.key)
            and (self.backing.anonymous or self.offset + self.end - self.start == right.offset)
        )


def locked_bytes(vma: VMA) -> int:
    """How many bytes count against RLIMIT_MEMLOCK."""
    return vma.end - vma.start if vma.mlock_mode else 0


def data_bytes(vma: VMA) -> int:
    """How many bytes count against RLIMIT_DATA: of private memory that may be written, but for stacks."""
    return vma.end - vma.start if vma.prot & mman.PROT_WRITE and not vma.shared and not vma.guard else 0


class VMASet(SegmentSet[VMA]):
    """The mappings of an address space, in order, with no two neighbours that could be one. Immutable."""

    __slots__ = ()

    def put(self, start: int, end: int, vmas: list[VMA], around: list[VMA] | None = None) -> VMASet:
        """The set with ``vmas`` in the place of [start, end), each merged with its neighbours where they can be one.

        ``around`` are the mappings in [start - 1, end + 1), if the caller has them.
        """
        old = self.overlapping(start - 1, end + 1) if around is None else around
        if not old and len(vmas) == 1:
            return self.exchange(old, vmas)
        new: list[VMA] = []
        if old and (first := old[0]).start < start:
            new.append(first if first.end <= start else first.over(first.start, start, first.prot))
        if old and (last := old[-1]).end > end:
            vmas = [*vmas, last if last.start >= end else last.over(end, last.end, last.prot)]
        joined: VMA | None = None  # the last of new, if it was made here
        for vma in vmas:
            if not new or (left := new[-1]).end != vma.start or not left.can_merge(vma):
                new.append(vma)
            elif left is joined:
                joined.end = vma.end
            else:
                new[-1] = joined = left.over(left.start, vma.end, left.prot)
        return self.exchange(old, new)

    def limit_from(self, addr: int) -> int:
        """Where the free space that addr lies in should end: at the next mapping, or the guard below one that grows."""
        vma = self.first_from(addr)
        return 1 << 64 if vma is None else vma.floor

    def _check(self) -> None:
        super()._check()
        vmas = list(self)
        for left, right in itertools.pairwise(vmas):
            assert not left.can_merge(right), f"{left} and {right} should be one"
