"""The host memory behind many ranges, by the pages that are cached.

A caller whose reader gives a byte a call comes back with the rest of the same ranges, again and again; n calls that
each look all of them up take O(n^2). So where there are many, what was found is kept for the next call, less what has
been used by then. An address space keeps one for reading and one for writing, and a change of its map drops both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from hostarch import AddrRangeSeq
from safemem import BlockSeq
from safemem.block import Piece

MANY: Final = 64
"""How long the flat list of a sequence is whose memory is kept: twice its ranges."""

Pages = dict[int, list[Any]]
"""Stretches by page numbers: see :mod:`usermem.mm.page_cache`."""

Rests = dict[int, tuple[AddrRangeSeq, BlockSeq]]
"""The ranges that were looked up last and their memory, by the id of the pages."""


def rest_of(ars: AddrRangeSeq, pages: Pages, rests: Rests) -> BlockSeq | None:
    """The memory of all ranges, if cached pages tell it, or it is the rest of what was found last; None says nothing.

    Take ``rests`` from the cache before ``pages``: a change in between leaves what is stored here in a dict that nobody
    asks any more.
    """
    known = rests.get(id(pages))
    if known is not None and (used := _used(*known, ars)) is not None:
        seq = known[1].drop_first(used)
    else:
        found = views(ars.pairs(), pages, False)
        if found is None:
            return None
        seq = BlockSeq.unchecked(*found)
    rests[id(pages)] = ars, seq
    return seq


def _used(known: AddrRangeSeq, seq: BlockSeq, ars: AddrRangeSeq) -> int | None:
    """How many bytes of the known ranges come before ``ars``, if that is all the rest of them; else None."""
    if known.flat is not ars.flat:
        return None
    index, offset = known.window or (0, 0)
    now, gone = ars.window or (0, 0)
    used = sum(ars.flat[index + 1 : now : 2]) - offset + gone
    return used if index <= now and 0 <= used == seq.num_bytes - ars.num_bytes else None


def views(ranges: Iterable[tuple[int, ...]], pages: Pages, join: bool) -> tuple[list[Piece], int] | None:
    """The memory of all ranges, and how many bytes they have, if cached pages tell it; None says nothing.

    With ``join`` ranges that touch, in one run of host memory, are one view.
    """
    found: list[Piece] = []
    total = 0
    # Ranges in the run of the one before need no lookup: low to limit, from first on. A range that starts at end
    # goes on from begin.
    first, low, limit, begin, end = 0, 0, -1, 0, -1
    try:
        for addr, n in ranges:
            start = addr - first
            stop = start + n
            if start < low or stop > limit:
                _, base, limit, run = pages[addr >> 12]
                if addr - base + n > limit:
                    return None
                view, first, end = run.view(), base + run.start, -1
                limit -= run.start
                start = low = addr - first
                stop = start + n
            if n:
                if start == end:
                    found[-1] = view[begin:stop]
                else:
                    found.append(view[start:stop])
                    begin = start
                total += n
                if join:
                    end = stop
    except KeyError:
        return None
    return found, total
