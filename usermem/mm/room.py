"""How far memory that is placed may reach.

Source: gVisor pkg/sentry/mm/pma.go (getPMAsInternalLocked).
"""

from __future__ import annotations

from typing import Final

from usermem.mm.change import Tables
from usermem.mm.vma import VMA

# How many neighbours a window of anonymous memory may cover, so that placing one costs no more beside many.
_NEIGHBOURS: Final = 8


def room(tables: Tables, vma: VMA, addr: int) -> tuple[int, int]:
    """The addresses around addr that have no memory yet, and whose memory may be one run with addr's.

    For anonymous memory they reach over anonymous neighbours and free space, for what is mapped there later.
    """
    vmas = tables.vmas
    low, high = tables.pmas.gap(addr, 0, 1 << 64)
    if tables.guards.count:
        low, high = tables.guards.gap(addr, low, high)
    if not vma.backing.anonymous:
        return max(low, vma.start), min(high, vma.end)
    first = last = vma
    for _ in range(_NEIGHBOURS):
        before = vmas.last_before(first.start) if first.start > low else None
        if before is None or not before.backing.anonymous:
            low = max(low, before.end) if before is not None else low
            break
        first = before
    else:
        low = max(low, first.start)
    for _ in range(_NEIGHBOURS):
        after = vmas.first_from(last.end) if last.end < high else None
        if after is None or not after.backing.anonymous:
            high = min(high, after.start) if after is not None else high
            break
        last = after
    else:
        high = min(high, last.end)
    return low, high
