"""Stacks: mappings that grow down to what is accessed below them.

Source: Linux mm/vma.c (expand_downwards, acct_stack_growth); mmap(2), MAP_GROWSDOWN.
"""

from __future__ import annotations

from attrs import evolve

from usermem.mapping import GUARD_PAGES, Mappings
from usermem.vma import VMA


class Growth(Mappings):
    """What an access to an address that is not mapped may do."""

    def _grow_down(self, addr: int) -> VMA | None:
        """Have the mapping above addr grow down to it if it may, and return it. Call it under the lock."""
        vma = self._vmas.first_from(addr)
        if vma is None or not vma.growsdown:
            return vma if vma is not None and vma.start <= addr else None
        start = self.arch.page_round_down(addr)
        if start < self.arch.min_addr or vma.end - start > self.stack_limit or not self._may_expand(vma.start - start):
            return None
        low, _ = self._vmas.gap(addr, 0, addr)
        before = self._vmas.find(low - 1)
        guard = GUARD_PAGES << self.arch.page_shift
        # What grows down itself, or cannot be accessed, may be nearer.
        if before is not None and before.prot and not before.growsdown and start - before.end < guard:
            return None
        self._add(evolve(vma, start=start, end=vma.start))
        return self._vmas.find(addr)
