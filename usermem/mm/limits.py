"""Limits: what the owner of an address space allows its guest.

Source: getrlimit(2); Linux mm/mmap.c (may_expand_vm, mlock_future_ok).
"""

from __future__ import annotations

from typing import Final

from attrs import define

from usermem.mm.host_limits import counts
from usermem.mm.vma import VMA, VMASet, data_bytes, locked_bytes

MAX_MAP_COUNT: Final = 65_530
"""How many mappings Linux allows by default: vm.max_map_count."""

STACK_LIMIT: Final = 8 << 20
"""How long Linux lets a stack grow by default, in bytes: RLIMIT_STACK."""

MEMLOCK_LIMIT: Final = 8 << 20
"""How many bytes Linux lets a process lock by default: RLIMIT_MEMLOCK."""


@define(field_transformer=counts)
class Limits:
    """What the owner of an address space allows its guest. The guest has no privileges (CAP_IPC_LOCK).

    To set one raises TypeError if it is no int, and ValueError if it is negative.
    """

    max_map_count: int = MAX_MAP_COUNT
    """How many mappings there may be (vm.max_map_count)."""
    address_limit: int | None = None
    """How many bytes may be mapped (RLIMIT_AS); None for any number."""
    stack_limit: int = STACK_LIMIT
    """How long a MAP_GROWSDOWN mapping may grow, in bytes (RLIMIT_STACK)."""
    data_limit: int | None = None
    """How many bytes of private memory may be writable (RLIMIT_DATA), and how long the heap; None for any number."""
    memlock_limit: int | None = MEMLOCK_LIMIT
    """How many bytes may be locked (RLIMIT_MEMLOCK); None for any number, 0 forbids mlock(2)."""
    max_pma_count: int = 1 << 17
    """How many pieces (PMAs) the memory behind the mappings may be in, at about 1 KiB of host memory each. A call that
    would cut it into more is ENOMEM: mappings may merge again where their memory does not. What is touched gets memory
    all the same."""
    populate_limit: int = 1 << 30
    """How many bytes one call populates at most (MAP_POPULATE, MADV_POPULATE_*); what is behind them is left alone."""
    mincore_limit: int = 1 << 28
    """How many pages mincore answers for in one call, at a byte of host memory each; it is EAGAIN for more."""

    def may_expand(self, vmas: VMASet, vma: VMA, length: int) -> bool:
        """Whether there may be ``length`` more bytes of what ``vma`` is."""
        if self.address_limit is not None and vmas.num_bytes + length > self.address_limit:
            return False
        return not data_bytes(vma) or self.may_have_data(vmas, length)

    def may_have_data(self, vmas: VMASet, length: int) -> bool:
        """Whether ``length`` more private bytes may be writable."""
        return self.data_limit is None or vmas.total(data_bytes) + length <= self.data_limit

    def may_lock(self, vmas: VMASet, length: int) -> bool:
        """Whether ``length`` more bytes may be locked."""
        return self.memlock_limit is None or vmas.total(locked_bytes) + length <= self.memlock_limit

    def may_grow(self, vmas: VMASet, vma: VMA, length: int) -> bool:
        """Whether ``vma``, which is mapped, may grow by ``length`` bytes."""
        return (not vma.mlock_mode or self.may_lock(vmas, length)) and self.may_expand(vmas, vma, length)
