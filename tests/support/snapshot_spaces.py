"""Small address spaces for tests of snapshots, and questions to ask about them."""

from __future__ import annotations

from edge_layouts import BASE, FIXED, PAGE, RW
from hostarch import AddrRangeSeq
from usermem import AddressSpace, ChangeKind, Snapshot

Told = tuple[int, int, ChangeKind]


def new_space(pages: int = 4, how: int = FIXED, content: bytes = b"then") -> AddressSpace:
    """A space with pages at BASE, each of which begins with the same bytes."""
    space = AddressSpace()
    space.mmap(BASE, pages * PAGE, RW, how)
    for page in range(pages if content else 0):
        space.copy_out(BASE + page * PAGE, content)
    return space


def dirty(space: AddressSpace, since: Snapshot | None = None) -> list[tuple[int, int]]:
    """The dirty pages as (first, page after the last), counted from BASE."""
    return in_pages(space.dirty_pages(since))


def in_pages(found: AddrRangeSeq) -> list[tuple[int, int]]:
    """Ranges as (first page, page after the last), counted from BASE."""
    return [((ar.start - BASE) // PAGE, (ar.end - BASE) // PAGE) for ar in found]


def listen(space: AddressSpace) -> list[Told]:
    """What the space's listener is told from now on."""
    told: list[Told] = []
    space.on_change = lambda start, end, kind: told.append((start, end, kind))
    return told
