"""Layout: the mappings of a guest, to be built as an AddressSpace, as a model, or as a memory of your own."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from hostarch import AccessType, Arch, mman
from usermem.address_space import AddressSpace
from usermem.testing.model import ModelMemory

_MAP = mman.MAP_PRIVATE | mman.MAP_FIXED


@frozen(repr=False)
class Mapping:
    """Pages with the same rights: ``length`` bytes at ``addr``, both multiples of the page size."""

    addr: int
    length: int
    prot: AccessType

    @property
    def end(self) -> int:
        """The first address past it."""
        return self.addr + self.length

    def __repr__(self) -> str:
        return f"Mapping({self.addr:#x}, {self.length:#x}, AccessType({int(self.prot)}))"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@frozen(repr=False)
class Layout:
    """Mappings of anonymous memory on one machine, in order and disjoint."""

    arch: Arch
    mappings: tuple[Mapping, ...]
    edges: tuple[int, ...] = field(init=False, eq=False)
    """Where a mapping begins or ends, in order; the start of the layout if there is none."""

    @edges.default
    def _edges(self) -> tuple[int, ...]:
        bounds = {bound for mapping in self.mappings for bound in (mapping.addr, mapping.end)}
        return tuple(sorted(bounds)) or (self.arch.page_round_up(self.arch.min_addr),)

    def __repr__(self) -> str:
        """As it is written in Python, with ``from hostarch import *`` and this module's names."""
        arch = self.arch.name.upper().replace("-", "_")
        return f"Layout({arch}, {self.mappings})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For hypothesis and IPython."""
        printer.text(repr(self))

    def address_space(self) -> AddressSpace:
        """A new AddressSpace with these mappings."""
        space = AddressSpace(self.arch)
        for mapping in self.mappings:
            space.mmap(mapping.addr, mapping.length, mapping.prot, _MAP | self.arch.map_flags.anonymous)
        return space

    def model(self) -> ModelMemory:
        """A new ModelMemory with these mappings."""
        model = ModelMemory(self.arch)
        for mapping in self.mappings:
            model.map(mapping.addr, mapping.length, mapping.prot)
        return model
