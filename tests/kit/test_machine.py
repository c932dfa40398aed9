"""GuestMachine: AddressSpace passes it on every machine, and one that is broken in one way does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from hostarch import AMD64, ARM64_16K, MIPS, READ, READ_WRITE, AddrRangeSeq, mman
from safemem import Reader
from usermem import AddressSpace, BytesIO
from usermem.testing import Layout, Mapping, ModelBytes, ModelMemory, check_memory
from usermem.testing.machine import GuestMachine

FIXED = mman.MAP_PRIVATE | mman.MAP_FIXED | mman.MAP_ANONYMOUS

TestAddressSpace = GuestMachine.TestCase
TestAddressSpace.settings = settings(stateful_step_count=30)


class MipsMachine(GuestMachine):
    """32 bits, big-endian, with its own constants for mmap."""

    arch = MIPS


class LargePages(GuestMachine):
    """Pages of 16 KiB."""

    arch = ARM64_16K
    pages = 3


TestMips = MipsMachine.TestCase
TestMips.settings = settings(max_examples=20, stateful_step_count=20)
TestLargePages = LargePages.TestCase
TestLargePages.settings = settings(max_examples=10, stateful_step_count=20)


class KeepsPagesAfterUnmap(AddressSpace):
    """munmap takes the first page only."""

    def munmap(self, addr: int, length: int) -> int:
        return super().munmap(addr, min(length, 4096))


class ProtectForgetsThePageCache(AddressSpace):
    """What could be written before mprotect still can."""

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        kept = {page: list(stretch) for page, stretch in self._writable.items()}
        try:
            return super().mprotect(addr, length, prot)
        finally:
            self._writable.update(kept)


class ProtectIsAllOrNothing(AddressSpace):
    """mprotect over a hole changes nothing."""

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        stop = self._map.tables.vmas.covered_up_to(addr, addr + length)
        return super().mprotect(addr if stop == addr + length else stop, length, prot)


class MapKeepsOldBytes(AddressSpace):
    """A mapping over another one shows its bytes."""

    def mmap(self, addr: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        stop = self._map.tables.vmas.covered_up_to(addr, addr + length)
        if stop == addr + length:
            self.mprotect(addr, length, prot)
            return addr
        return super().mmap(addr, length, prot, flags, fd, offset)


class StreamCopiesOneRange(AddressSpace):
    """copy_out_from stops after its first range."""

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        return super().copy_out_from(
            ars.take_first(ars.head().length) if ars else ars, reader, ignore_permissions=ignore_permissions
        )


BROKEN = [
    KeepsPagesAfterUnmap,
    ProtectForgetsThePageCache,
    ProtectIsAllOrNothing,
    MapKeepsOldBytes,
    StreamCopiesOneRange,
]
SEARCH = settings(
    max_examples=500, stateful_step_count=30, database=None, derandomize=True, phases=[Phase.generate], deadline=None
)


def machine_over(memory: Callable[[], AddressSpace]) -> type[GuestMachine]:
    """A machine that fuzzes this memory."""

    class Machine(GuestMachine):
        def make_memory(self) -> AddressSpace:
            return memory()

    return Machine


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_address_space_is_caught(broken: type[AddressSpace]) -> None:
    """Within five hundred runs."""
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine_over(broken), settings=SEARCH)


def test_broken_tables_are_caught() -> None:
    """The memory's own check is asked after each step."""

    class Contradicted(AddressSpace):
        def _check(self) -> None:
            raise AssertionError("the tables contradict each other")

    with pytest.raises(AssertionError, match="contradict"):
        run_state_machine_as_test(machine_over(Contradicted), settings=SEARCH)


def test_rules_of_ones_own() -> None:
    """A subclass adds system calls, with addresses and iovecs that know its pages."""
    seen: list[tuple[int, AddrRangeSeq]] = []

    class WithCalls(GuestMachine):
        @rule(addr=GuestMachine.addresses, ars=GuestMachine.iovecs, n=st.integers(0, 9))
        def call(self, addr: int, ars: AddrRangeSeq, n: int) -> None:
            seen.append((addr, ars))

    run_state_machine_as_test(WithCalls, settings=settings(SEARCH, max_examples=5))
    assert any(addr % 4096 == 0 for addr, _ in seen)
    assert any(len(ars) > 1 for _, ars in seen)


LAYOUT = Layout(AMD64, (Mapping(0x10000, 8192, READ_WRITE), Mapping(0x14000, 4096, READ)))
CHANGES: dict[str, Callable[[AddressSpace], object]] = {
    "a byte": lambda space: space.copy_out(0x11FFF, b"x"),
    "a byte of a page that is read-only": lambda space: space.copy_out(0x14000, b"x", ignore_permissions=True),
    "more rights": lambda space: space.mprotect(0x14000, 4096, 3),
    "less rights": lambda space: space.mprotect(0x11000, 4096, 1),
    "no rights": lambda space: space.mprotect(0x10000, 4096, 0),
    "a page less": lambda space: space.munmap(0x11000, 4096),
    "a page in a hole": lambda space: space.mmap(0x13000, 4096, 3, FIXED),
    "a page behind": lambda space: space.mmap(0x15000, 4096, 3, FIXED),
    "a page over another": lambda space: space.mmap(0x10000, 4096, 1, FIXED),
}


@pytest.mark.parametrize("change", CHANGES)
def test_check_memory_sees_every_change(change: str) -> None:
    """What was done to the memory and not to the model."""
    space, model = LAYOUT.address_space(), LAYOUT.model()
    check_memory(space, model)
    CHANGES[change](space)
    with pytest.raises(AssertionError):
        check_memory(space, model)


def test_check_memory_of_anything() -> None:
    """Of bytes without pages, of nothing at all, and of what is mapped and cannot be read even so."""
    check_memory(BytesIO(bytearray(b"bytes")), ModelBytes(b"bytes"))
    check_memory(BytesIO(b""), ModelBytes(b""))
    with pytest.raises(AssertionError, match=r"from +0x3 on"):
        check_memory(BytesIO(bytearray(b"bytEs")), ModelBytes(b"bytes"))
    check_memory(AddressSpace(), ModelMemory())
    space, model = AddressSpace(), ModelMemory()
    space.map_object(0x10000, 4096, 0, FIXED, None, max_prot=0)
    model.map(0x10000, 4096, 0, 0)
    check_memory(space, model)
