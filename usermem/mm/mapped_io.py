"""MappedIO: the IO contract over a MemoryMap.

Where bytes are, the map knows; this asks it for what the page cache does not know, calls the simulator's hook for what
faults, and says how far an access goes.

Source: gVisor pkg/sentry/mm/io.go.
"""

from __future__ import annotations

import mmap as host_mmap
import threading
from collections.abc import Callable

from hostarch import WRITE, AccessType, Arch
from safemem import Block
from safemem.buffers import check_count, check_int
from usermem.errors import FaultError, FaultReason
from usermem.memory_io import checked_start
from usermem.mm.backing.object_pages import released, write_back_released
from usermem.mm.code_writes import tell_code
from usermem.mm.limits import Limits
from usermem.mm.memory_map import CACHED, MemoryMap
from usermem.mm.page_cache import GONE, PagedIO, Stretch

# Of which spaces this thread runs a hook now.
_hooks = threading.local()


class MappedIO(PagedIO):
    """PagedIO over the memory of one map."""

    on_fault: Callable[[int, AccessType], bool] | None = None
    """Called without a lock for the first byte that cannot be accessed, with its address and the access. It may map,
    protect, or fill what is missing, and returns whether to try again, which is done once."""

    def __init__(self, arch: Arch, limits: Limits, seed: int | None = None) -> None:
        """An empty map. See MemoryMap for the seed."""
        super().__init__(arch)
        self._map = MemoryMap(arch, limits, self._cache, seed)

    def range_fault(self, addr: int, length: int, access: AccessType) -> FaultError | None:
        if not type(addr) is type(length) is int:
            addr, length = check_int(addr, "addr"), check_int(length, "length")
        if 0 <= addr <= addr + length <= self.arch.max_addr:
            return None
        self._map.check_open()
        try:
            checked_start(addr, length, self.arch, access)
        except FaultError as fault:
            return fault.with_traceback(None)
        return None

    def resolve(
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[list[Block], FaultError | None]:
        # MemoryMap.locate fills the page cache.
        self._map.check_open()
        write_back_released()
        if not type(addr) is type(length) is int:
            addr, length = check_int(addr, "addr"), check_count(length, "length")
        tag = addr - self.arch.untagged(addr) if self.arch.ignores_top_byte else 0
        addr -= tag
        end = addr + length
        cached: dict[int, Stretch] = {}
        if access in CACHED and not ignore_permissions:
            cached = self._writable if access & WRITE else self._readable
        blocks: list[Block] = []
        while addr < end:
            _, base, limit, run = cached.get(addr >> 12, GONE)
            if limit < 0 or base + limit <= addr:
                found = self._locate(addr, tag, access, ignore_permissions)
                if isinstance(found, FaultReason):
                    return blocks, FaultError(addr + tag, access, found)
                _, base, limit, run = found
                if self._map.code_listener is not None and access & WRITE:
                    tell_code(self._map, addr, min(base + limit, end))
            stop = min(base + limit, end)
            blocks.append(run.block(addr - base - run.start, stop - addr))
            addr = stop
        return blocks, None

    def _locate(self, addr: int, tag: int, access: AccessType, ignore_permissions: bool) -> Stretch | FaultReason:
        """MemoryMap.locate, and again if the hook has done something about a fault: what faults then is a fault."""
        found = self._map.locate(addr, access, ignore_permissions=ignore_permissions)
        if not isinstance(found, list) and self.on_fault is not None and self._handled(addr + tag, access):
            found = self._map.locate(addr, access, ignore_permissions=ignore_permissions)
        return found

    def _load(self, addr: int, n: int, access: AccessType) -> Stretch | FaultError | None:
        # Tags, ranges that leave user space and closed spaces go the slow way.
        if type(addr) is not int or not 0 <= addr <= self.arch.max_addr - n or self._map.tables.closed:
            return None
        if released:
            write_back_released()
        found = (self._writable if access is WRITE else self._readable).get(addr >> 12)
        if found is None or addr >= found[1] + found[2]:  # else what it was asked for is longer
            if self.on_fault is None:  # 50 ns of 1,550 that a fault takes
                located = self._map.locate(addr, access, ignore_permissions=False)
            else:
                located = self._locate(addr, 0, access, False)
            if isinstance(located, FaultReason):
                return FaultError(addr, access, located)
            found = located
            if self._map.code_listener is not None and access is WRITE:
                tell_code(self._map, addr, min(addr + n, found[1] + found[2]))
        return found if isinstance(found[0], host_mmap.mmap) else None

    def _handled(self, addr: int, access: AccessType) -> bool:
        """Whether the simulator's hook has done something about a fault. What it itself touches is no hook's."""
        running: set[int] = _hooks.__dict__.setdefault("running", set())
        if self.on_fault is None or id(self) in running:
            return False
        running.add(id(self))
        try:
            return self.on_fault(addr, access)
        finally:
            running.remove(id(self))
