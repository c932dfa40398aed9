"""MemoryType: how the processor caches a mapping.

Source: gVisor pkg/hostarch/memory_type.go.
"""

from __future__ import annotations

from enum import IntEnum


class MemoryType(IntEnum):
    """The caching of a mapping, with gVisor's numbers."""

    WRITE_BACK = 0
    WRITE_COMBINE = 1
    UNCACHED = 2

    @property
    def short_string(self) -> str:
        """Two letters: WB, WC or UC."""
        return ("WB", "WC", "UC")[self]
