"""Layout: the mappings of a guest, to be built as an AddressSpace, as a model, or as a memory of your own."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from hostarch import AMD64, NO_ACCESS, READ, READ_WRITE, WRITE, AccessType, Arch, mman
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
    """Mappings of anonymous memory on one machine, in order and disjoint. Raises ValueError if they are not so."""

    arch: Arch
    mappings: tuple[Mapping, ...]
    edges: tuple[int, ...] = field(init=False, eq=False)
    """Where a mapping, its first page or its last begins or ends, in order; where one could begin if there is none."""

    @edges.default
    def _edges(self) -> tuple[int, ...]:
        page = self.arch.page_size
        bounds = {
            bound for m in self.mappings for bound in (m.addr, m.addr + page, m.end - page, m.end) if bound <= m.end
        }
        return tuple(sorted(bounds)) or (self.arch.page_round_up(self.arch.min_addr),)

    def __attrs_post_init__(self) -> None:
        page, free = self.arch.page_size, 0
        for mapping in self.mappings:
            if mapping.addr % page or mapping.length % page or mapping.length <= 0:
                raise ValueError(f"{mapping} is not made of pages of {page:#x} bytes")
            if mapping.addr < free or mapping.end > self.arch.max_addr:
                raise ValueError(f"{mapping} is not behind the one before it, or leaves user space")
            free = mapping.end

    def __repr__(self) -> str:
        """As it is written in Python, with ``from hostarch import *`` and this module's names."""
        return f"Layout({self.arch}, {self.mappings})"

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


def conformance_layout(arch: Arch = AMD64) -> Layout:
    """A layout with every edge that check_io asks about: rights that change, inner page ends, holes, the top."""
    page = arch.page_size
    start = arch.page_round_up(arch.min_addr)
    sizes_and_rights = ((1, READ), (2, READ_WRITE), (1, NO_ACCESS), (1, WRITE))
    mappings = []
    for pages, rights in sizes_and_rights:
        mappings.append(Mapping(start, pages * page, rights))
        start += pages * page
    top = arch.page_round_down(arch.max_addr)
    return Layout(arch, (*mappings, Mapping(top - page, page, READ_WRITE)))
