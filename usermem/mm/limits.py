"""Limits: what the owner of an address space allows its guest, and what guests may take of this process together."""

from __future__ import annotations

from typing import Final

from attrs import define

MAX_MAP_COUNT: Final = 65_530
"""How many mappings Linux allows by default: vm.max_map_count."""

STACK_LIMIT: Final = 8 << 20
"""How long Linux lets a stack grow by default, in bytes: RLIMIT_STACK."""


@define
class Limits:
    """What the owner of an address space allows its guest."""

    max_map_count: int = MAX_MAP_COUNT
    """How many mappings there may be (vm.max_map_count)."""
    address_limit: int | None = None
    """How many bytes may be mapped (RLIMIT_AS); None for any number."""
    stack_limit: int = STACK_LIMIT
    """How long a MAP_GROWSDOWN mapping may grow, in bytes (RLIMIT_STACK)."""
    max_pma_count: int = 1 << 17
    """How many pieces (PMAs) the memory behind the mappings may be in, at about 1 KiB of host memory each. A call that
    would cut it into more is ENOMEM: mappings may merge again where their memory does not. What is touched gets memory
    all the same."""
    populate_limit: int = 1 << 30
    """How many bytes one call populates at most (MAP_POPULATE, MADV_POPULATE_*); what is behind them is left alone."""
    mincore_limit: int = 1 << 28
    """How many pages mincore answers for in one call, at a byte of host memory each; it is EAGAIN for more."""


@define
class HostLimits:
    """What all guests of this process together may take of it."""

    max_map_count: int = 1 << 15
    """How many mappings of the host's guests hold, at most: windows of files and of shared memory that were touched.

    The host allows 65,530 by default (vm.max_map_count), and needs some for itself: threads, malloc, libraries. Where
    it has none left for guests, what a guest touches is a fault (FaultReason.NO_MEMORY), and nothing else fails.
    """


host_limits: Final = HostLimits()
"""The limits of this process, which may be changed."""
