"""What names a futex word that processes may share: the object behind it, or the address space.

Source: Linux kernel/futex/core.c (get_futex_key).
"""

from __future__ import annotations

from hostarch import READ, WRITE, AccessType
from usermem.errors import FaultError, FaultReason
from usermem.mm.backing.backing import identity
from usermem.mm.memory_map import MemoryMap
from usermem.mm.page_cache import PagedIO

FutexKey = tuple[object, int]
"""An object or an address space, and the offset or the address in it."""


def futex_key(io: PagedIO, mm: MemoryMap, addr: int, access: AccessType) -> FutexKey:
    """See AddressSpace.futex_key."""
    # A page that is cached can be written: that is found in a third of the time.
    fault = None if io.cached_view(addr, 4, True) is not None else io.resolve(addr, 4, WRITE)[1]
    read_only = fault is not None and not access.write
    if read_only:
        _, fault = io.resolve(addr, 4, READ)
    vma = mm.tables.vmas.find(mm.arch.untagged(addr))
    if vma is None and fault is None:  # unmapped by another thread, meanwhile
        fault = FaultError(addr, access, FaultReason.UNMAPPED)
    if vma is not None and fault is None:
        if vma.shared or (read_only and not vma.backing.anonymous):
            return vma.backing.identity, vma.offset_at(mm.arch.untagged(addr))
        if not read_only:
            return identity(io), addr
        fault = FaultError(addr, WRITE, FaultReason.PERMISSION)
    try:
        raise fault or FaultError(addr, access, FaultReason.UNMAPPED)
    finally:
        del fault
