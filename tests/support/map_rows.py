"""maps() as numbers, for tests that compare whole maps."""

from __future__ import annotations

from edge_layouts import BASE
from usermem import AddressSpace


def rows(space: AddressSpace, base: int = BASE) -> list[tuple[int, int, str]]:
    """The mappings as (first page, page after the last, rights), pages counted from base."""
    lines = [line.split() for line in space.maps().splitlines()]
    bounds = [[int(x, 16) for x in line[0].split("-")] for line in lines]
    size = space.arch.page_size
    return [
        ((start - base) // size, (end - base) // size, line[1])
        for (start, end), line in zip(bounds, lines, strict=True)
    ]
