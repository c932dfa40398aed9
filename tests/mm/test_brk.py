"""The heap before it has a place, and places that it cannot have."""

from __future__ import annotations

import pytest
from attrs import evolve

from edge_layouts import BASE, PAGE
from hostarch import AMD64, ARM64_64K, I386, Arch
from usermem import AddressSpace, FaultError

ARCHS = [AMD64, I386, ARM64_64K, evolve(AMD64, name="low", max_addr=1 << 21)]
every_arch = pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: arch.name)


@every_arch
@pytest.mark.parametrize("addr", [0, 1, 0x3000, BASE, 1 << 30, -1, 1 << 80])
def test_there_is_no_heap_before_it_has_a_place(arch: Arch, addr: int) -> None:
    """brk answers 0 and maps nothing: not the first page, nor any other."""
    with AddressSpace(arch) as space:
        assert space.brk(0) == 0
        assert space.brk(addr) == 0
        assert space.maps() == ""
        with pytest.raises(FaultError):
            space.copy_out(0, b"no page of nobody's")


@every_arch
def test_a_heap_that_cannot_be(arch: Arch) -> None:
    """Below min_addr or above max_addr it is refused by name, and the heap stays where it is."""
    space = AddressSpace(arch)
    with pytest.raises(ValueError, match="min_addr"):
        space.set_brk(arch.min_addr - 1)
    assert space.brk(0) == 0
    page = arch.page_size
    start = arch.min_addr + page
    space.set_brk(start)
    assert space.brk(start + 5) == start + 5
    before = space.maps()
    for bad in (0, -1, 0x1000, arch.min_addr - 1, arch.max_addr + 1, 1 << 80):
        with pytest.raises(ValueError, match=r"start must be an address from min_addr .* to max_addr"):
            space.set_brk(bad)
        assert (space.brk(0), space.maps()) == (start + 5, before)
    with pytest.raises(TypeError):
        space.set_brk("start")  # type: ignore[arg-type]
    assert space.brk(start + page + 1) == start + page + 1
    space._check()


@every_arch
def test_a_heap_at_the_ends(arch: Arch) -> None:
    """It may begin at min_addr, and at max_addr, where it has no room."""
    space = AddressSpace(arch)
    space.set_brk(arch.min_addr)
    assert space.brk(arch.min_addr + PAGE) == arch.min_addr + PAGE
    assert space.maps().startswith(f"{arch.min_addr:08x}-")
    space.set_brk(arch.max_addr)
    assert space.brk(arch.max_addr + 1) == space.brk(0) == arch.max_addr
