"""HostLimits: what guests may take of this process together.

Source: Linux mm/mmap.c (vm.max_map_count).
"""

from __future__ import annotations

from functools import partial
from typing import Final

from attrs import Attribute, converters, define

from safemem.buffers import check_count


def counts(cls: type, fields: list[Attribute[int]]) -> list[Attribute[int]]:
    """The fields of a class as counts, converted when they are set; or None, where the type says so."""
    found = []
    for field in fields:
        convert = partial(check_count, name=field.name)
        found.append(field.evolve(converter=converters.optional(convert) if "None" in str(field.type) else convert))
    return found


@define(field_transformer=counts)
class HostLimits:
    """What all guests of this process together may take of it."""

    max_map_count: int = 1 << 15
    """How many mappings of the host's guests hold, at most: windows of files and of shared memory that were touched.

    The host allows 65,530 by default (vm.max_map_count), and needs some for itself: threads, malloc, libraries. Where
    it has none left for guests, what a guest touches is a fault (FaultReason.NO_MEMORY), and nothing else fails.
    """


host_limits: Final = HostLimits()
"""The limits of this process, which may be changed."""
