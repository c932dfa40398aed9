"""State: what an address space was at one moment.

Tables are values, so a state keeps those of its moment as they were, and with them the host memory behind them. What
was written until then has images (:mod:`usermem.mm.overlay`). So a state costs the pages that were written since the
one before.

Shared anonymous memory is copied. Files of the host's, objects of the simulator's and buffers of the caller's are not
the space's own: what shared mappings of them show belongs to no state.

Source: fork(2), whose copy of a process is of the same parts; CRIU's images.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from attrs import frozen

from usermem.mm.backing.backing import Backing, Copy
from usermem.mm.change import Tables
from usermem.mm.extent import Extent, ExtentSet
from usermem.mm.memory_map import MemoryMap
from usermem.mm.overlay import Overlay
from usermem.mm.pma import PMA
from usermem.mm.ranges import Ranges, joined
from usermem.mm.vma import VMA, VMASet


class Part(NamedTuple):
    """What private memory of one owner showed: its overlay, and the images in the host ranges that are the space's."""

    overlay: Overlay
    extents: ExtentSet
    spans: Ranges


@frozen(eq=False, slots=False)
class State:
    """What an address space was at one moment: its tables, the images of its private memory, and copies of shared."""

    tables: Tables
    parts: dict[Overlay, Part]
    copies: dict[Backing | None, Copy]
    loaded: ExtentSet | None = None
    """The images at guest addresses, of a state that was loaded: it has no memory."""

    def extents_of(self, pma: PMA) -> list[Extent]:
        """The images that show in private memory, at guest addresses; there are zeros or a file's bytes elsewhere."""
        overlay = pma.run.keeper.overlay
        if overlay is None or overlay not in self.parts:
            return []
        address = pma.run.address
        extents = self.parts[overlay].extents
        found = extents.within(address, address + len(pma.run)) if extents.count else []
        return [extent.moved(pma.start - address) for extent in found]

    @cached_property
    def extents(self) -> ExtentSet:
        """All images that show, at guest addresses."""
        if self.loaded is not None:
            return self.loaded
        found = [extent for pma in self.tables.pmas for extent in self.extents_of(pma)]
        return ExtentSet().exchange([], found)

    def read(self, start: int, end: int) -> bytes:
        """The bytes at guest addresses, as far as they are the space's own: zeros where they are not."""
        found = bytearray(end - start)
        for vma in self.tables.vmas.overlapping(start, end):
            copy = self.copies.get(vma.backing.shared_memory)
            if copy is not None:
                low, high = max(start, vma.start), min(end, vma.end)
                found[low - start : high - start] = copy.read(vma.offset_at(low), vma.offset_at(high))
        for extent in self.extents.within(start, end):
            extent.image.read_at(extent.offset, memoryview(found)[extent.start - start : extent.end - start])
        return bytes(found)


def take(mm: MemoryMap) -> State:
    """The state of a map now, where nobody is in the middle of an access. Raises MemoryError; nothing has changed then.

    What was written has images from now on, at the same host addresses.
    """
    tables = mm.tables
    for overlay, spans in private_spans(tables.pmas).items():
        overlay.capture(spans)
    return seen(tables, {memory: memory.copied() for memory in shared_memories(tables.vmas)})


def seen(tables: Tables, copies: dict[Backing | None, Copy]) -> State:
    """A state of what has images already: what was written since is not in it."""
    spans = private_spans(tables.pmas)
    return State(
        tables, {overlay: Part(overlay, _images(overlay, spans[overlay]), spans[overlay]) for overlay in spans}, copies
    )


def _images(overlay: Overlay, spans: Ranges) -> ExtentSet:
    """The images in some host ranges: the overlay's own set, if it has no others."""
    extents = overlay.extents
    own = [extent for start, end in spans for extent in extents.within(start, end)] if extents.count else []
    return extents if len(own) == extents.count else ExtentSet().exchange([], own)


def private_spans(pmas: Iterable[PMA]) -> dict[Overlay, Ranges]:
    """The host ranges of private memory, by whose they are."""
    found: dict[Overlay, Ranges] = {}
    for pma in pmas:
        overlay = pma.run.keeper.overlay
        if overlay is not None:
            found.setdefault(overlay, []).append((pma.run.address, pma.run.address + len(pma.run)))
    return {overlay: joined(spans) for overlay, spans in found.items()}


def shared_bytes(vma: VMA) -> int:
    """How many bytes of shared anonymous memory a mapping shows."""
    return vma.end - vma.start if vma.backing.shared_memory is not None else 0


def shared_memories(vmas: VMASet) -> list[Backing]:
    """The shared anonymous memories that are mapped, each once."""
    if not vmas.total(shared_bytes):
        return []
    memories = [vma.backing.shared_memory for vma in vmas]
    return list(dict.fromkeys(memory for memory in memories if memory is not None))
