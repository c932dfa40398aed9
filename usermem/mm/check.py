"""Whether the tables of an address space, and the pages it remembers, contradict each other: for stress tests."""

from __future__ import annotations

from hostarch import mman
from usermem.mm.memory_map import MemoryMap
from usermem.mm.page_cache import PageCache


def check(mm: MemoryMap, cache: PageCache) -> None:
    """Raise AssertionError if the tables contradict each other: for stress tests."""
    tables = mm.tables
    tables.vmas._check()
    tables.pmas._check()
    tables.guards._check()
    for guard in tables.guards:
        assert tables.vmas.covered_up_to(guard.start, guard.end) == guard.end, f"{guard} is not mapped"
        assert tables.pmas.is_free(guard.start, guard.end), f"{guard} has memory"
    for pages, right in ((cache.readable, mman.PROT_READ), (cache.writable, mman.PROT_WRITE)):
        for page, (_, base, limit, run) in pages.items():
            addr = page << 12
            if base + limit <= addr:
                continue
            vma, pma = tables.vmas.find(addr), tables.pmas.find(addr)
            assert vma is not None and pma is not None, f"{addr:#x} is cached and not mapped"
            assert pma.run is run and base == pma.start - run.start, f"{addr:#x} has moved"
            assert base + limit <= min(vma.end, pma.end), f"{addr:#x} is cached with too much"
            assert right & (vma.prot | (mman.PROT_READ if vma.prot else 0)), f"{addr:#x} has other rights"
