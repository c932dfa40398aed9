"""mincore(2): which pages of the guest's the host holds in memory.

Source: Linux mm/mincore.c.
"""

from __future__ import annotations

import errno

from safemem.errors import error
from usermem.mm import host_calls
from usermem.mm.host_run import HostRun
from usermem.mm.memory_map import MemoryMap
from usermem.mm.page_range import page_range


def mincore(mm: MemoryMap, addr: int, length: int) -> bytes:
    """See AddressSpace.mincore."""
    addr, end = page_range(mm.arch, addr, length, "mincore", errno.ENOMEM)
    if end > mm.arch.max_addr:
        raise error(errno.ENOMEM, f"mincore of {length:#x} bytes at {addr:#x}: beyond user space")
    size = mm.arch.page_size
    tables = mm.tables
    if tables.vmas.covered_up_to(addr, end) < end:
        raise error(errno.ENOMEM, f"mincore: not all of {end - addr:#x} bytes at {addr:#x} are mapped")
    pages = (end - addr) // size
    if pages > mm.limits.mincore_limit:
        raise error(errno.EAGAIN, f"mincore of {pages} pages: the limit is {mm.limits.mincore_limit}")
    found: list[bytes] = []  # zeros that nobody reads cost the host nothing, so they are not copied
    for vma in tables.vmas.overlapping(addr, end):
        at, stop = max(vma.start, addr), min(vma.end, end)
        for start, run in [*mm.runs(tables, at, stop), (stop, None)]:
            if start > at:
                found.append(vma.backing.resident(vma.offset_at(at), vma.offset_at(start), size))
            if run is not None:
                found += _resident_pages(run, size)
                at = start + len(run)
    return b"".join(found)


def _resident_pages(run: HostRun, page: int) -> list[bytes]:
    """A byte for each guest page of a run, in pieces: 1 if one of the host's pages in it is in memory.

    Where the host cannot tell, all pages that have a place are.
    """
    found: list[bytes] = []
    step = page * host_calls.PAGES_ASKED
    for at in range(run.address, run.address + len(run), step):
        part = host_calls.resident(at, min(step, run.address + len(run) - at), page)
        if part is None:
            return [b"\1" * (len(run) // page)]
        found.append(part)
    return found
