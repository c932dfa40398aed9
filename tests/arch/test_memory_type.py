"""MemoryType: the ways a processor caches a mapping, with gVisor's numbers and short names."""

from __future__ import annotations

import pytest

from hostarch import MemoryType


@pytest.mark.parametrize(
    ("number", "name", "short"), [(0, "WRITE_BACK", "WB"), (1, "WRITE_COMBINE", "WC"), (2, "UNCACHED", "UC")]
)
def test_types(number: int, name: str, short: str) -> None:
    """Number, name and short name belong together; ordinary memory is 0."""
    memory_type = MemoryType(number)
    assert (memory_type.name, memory_type.short_string) == (name, short)
    assert memory_type == number


def test_how_many() -> None:
    """There are three, and no number names a fourth."""
    assert len(MemoryType) == 3
    with pytest.raises(ValueError, match="3"):
        MemoryType(3)
