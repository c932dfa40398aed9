"""The strategies draw what they say, reach the edges they are for, and shrink to what a person can read."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

import hostarch
from hostarch import AMD64, ARM64_64K, I386, MIPS, AccessType, AddrRange, AddrRangeSeq, Arch
from usermem import AddressSpace, BytesIO, FaultError, copy_out_iovecs
from usermem.observe import FaultPlan
from usermem.testing import Layout, Mapping, ModelMemory, check_memory
from usermem.testing import strategies as guests
from usermem.testing.operations import KINDS, CopyOut, Operation, outcome

SEARCH = settings(max_examples=5000, database=None, derandomize=True)
# What was found is not made shorter.
FIND = settings(SEARCH, phases=[Phase.generate])
MACHINES = [machine for machine in vars(hostarch).values() if isinstance(machine, Arch)]
ARCHES = [AMD64, I386, ARM64_64K, MIPS]
each_arch = pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)


@each_arch
@given(data=st.data())
def test_layouts_are_what_they_say(arch: Arch, data: st.DataObject) -> None:
    """Mappings are whole pages of user space, in order and disjoint, and an AddressSpace and the model take them."""
    layout = data.draw(guests.layouts(arch))
    end = arch.min_addr
    for mapping in layout.mappings:
        assert end <= mapping.addr < mapping.end <= arch.max_addr
        assert arch.is_page_aligned(mapping.addr) and arch.is_page_aligned(mapping.length)
        end = mapping.end
    space, model = layout.address_space(), layout.model()
    for mapping in layout.mappings:
        for io in (space, model):
            if mapping.prot:
                assert io.copy_in(mapping.end - 1, bytearray(1)) == 1
            else:
                with pytest.raises(FaultError):
                    io.copy_in(mapping.end - 1, bytearray(1))


@each_arch
def test_addresses_and_ranges(arch: Arch) -> None:
    """Addresses have 64 bits, lengths stay within what was asked for, sequences are valid."""

    @given(
        guests.addresses(arch),
        guests.lengths(arch, 100),
        guests.addr_ranges(arch, most=9),
        guests.addr_range_seqs(arch, max_ranges=3),
    )
    def check(addr: int, length: int, ar: AddrRange, seq: AddrRangeSeq) -> None:
        assert 0 <= addr < 1 << 64
        assert 0 <= length <= 100
        assert ar.well_formed() and ar.length <= 9
        assert len(seq) <= 3
        assert seq.num_bytes == sum(length for _, length in seq.pairs())

    check()


EDGES = {
    "the last byte of a page": lambda addr: addr % 4096 == 4095,
    "the first byte past user space": lambda addr: addr == AMD64.max_addr,
    "zero": lambda addr: addr == 0,
    "the sign bit": lambda addr: addr == 1 << 63,
    "the last address": lambda addr: addr == (1 << 64) - 1,
}


@pytest.mark.parametrize("edge", EDGES)
def test_addresses_reach_the_edges(edge: str) -> None:
    """A few hundred draws are enough for each."""
    found = find(guests.addresses(), EDGES[edge], settings=FIND)
    assert EDGES[edge](found)


def test_a_layout_shrinks_to_its_point() -> None:
    """What must have a hole between two mappings is two mappings of a page at the bottom, and a page of hole."""

    def has_a_hole(layout: Layout) -> bool:
        return any(left.end < right.addr for left, right in zip(layout.mappings, layout.mappings[1:], strict=False))

    found = find(guests.layouts(), has_a_hole, settings=settings(max_examples=2000, database=None))
    first, second = found.mappings
    assert (first.addr, first.length, str(first.prot)) == (AMD64.min_addr, 4096, "rw-")
    assert (second.addr, second.length, str(second.prot)) == (first.end + 4096, 4096, "rw-")


@pytest.mark.parametrize("arch", MACHINES, ids=lambda arch: arch.name)
def test_what_is_shown_can_be_pasted(arch: Arch) -> None:
    """The repr of a layout is Python that makes it again."""
    layout = Layout(arch, (Mapping(0x10000, 0x10000, AccessType(5)), Mapping(0x40000, 0x10000, AccessType(0))))
    names = {name: getattr(hostarch, name) for name in hostarch.__all__}
    assert eval(repr(layout), names | {"Layout": Layout, "Mapping": Mapping}) == layout


@given(st.data())
def test_strings_lie_at_page_ends(data: st.DataObject) -> None:
    """The last byte of a placed string is within two bytes of an edge, and the text has no NUL."""
    layout = data.draw(guests.layouts(min_mappings=1))
    placed = data.draw(guests.strings_at_page_ends(layout))
    assert b"\0" not in placed.text
    assert min(abs(placed.addr + len(placed.content) - edge) for edge in layout.edges) <= 2
    assert placed.content == placed.text + (b"\0" if placed.terminated else b"")


@given(st.data())
def test_iovecs_are_tables_a_guest_can_hold(data: st.DataObject) -> None:
    """At most as many ranges as asked for, and the same again through the guest's memory."""
    layout = data.draw(guests.layouts())
    ars = data.draw(guests.iovecs(layout, max_ranges=3))
    table = BytesIO(bytearray(64))
    size = copy_out_iovecs(table, 0, ars)
    assert size == 16 * len(ars) <= 48
    assert table.read_bytes(0, size) == b"".join(struct.pack("<QQ", *pair) for pair in ars.pairs())


@given(st.binary(max_size=50), st.data())
def test_chunkings_are_of_the_whole(stream: bytes, data: st.DataObject) -> None:
    """Joined again, the pieces are the stream, and none is empty."""
    chunks = data.draw(guests.chunkings(stream))
    assert b"".join(chunks) == stream
    assert all(chunks)


def copies(io: AddressSpace | ModelMemory, addr: int, src: bytes) -> list[object]:
    """A copy out and a copy in: counts, faults with everything they say, and the bytes."""
    dst = bytearray(b"\xee" * 40)
    outcome: list[object] = []
    for copy, buffer in ((io.copy_out, src), (io.copy_in, dst)):
        try:
            outcome.append(copy(addr, buffer))
        except FaultError as fault:
            outcome.append((fault.transferred, fault.address, fault.reason, fault.access))
    return [*outcome, dst]


@given(st.data())
def test_an_address_space_answers_as_the_model(data: st.DataObject) -> None:
    """For any layout and range: same counts, same addresses and reasons of faults, same bytes."""
    layout = data.draw(guests.layouts(min_mappings=1))
    space, model = layout.address_space(), layout.model()
    for _ in range(4):
        addr = data.draw(guests.addresses(layout.arch, layout.edges))
        src = data.draw(guests.buffers(40))
        assert copies(space, addr, src) == copies(model, addr, src)


@given(guests.fault_plans(max_accesses=3, most=5))
def test_fault_plans(plan: FaultPlan) -> None:
    """At most so many accesses, at most so many bytes."""
    assert len(plan.steps) <= 3
    assert all(step is None or 0 <= step <= 5 for step in plan.steps)


ALL_KINDS = [kind for kinds in KINDS.values() for kind in kinds]
LAYOUT = Layout(AMD64, (Mapping(0x10000, 8192, AccessType(3)), Mapping(0x13000, 4096, AccessType(1))))


def test_operations_of_every_kind() -> None:
    """Each kind of call is drawn, such that it works on what is mapped, and such that it gets somewhere and faults."""
    wanted = {(kind, faults) for kind in ALL_KINDS for faults in (False, True)}
    space = LAYOUT.address_space()

    def was_the_last(operation: Operation) -> bool:
        if operation.at >= LAYOUT.edges[0]:
            assert repr(operation).startswith(f"{type(operation).__name__}(a")
            wanted.discard((type(operation), "FaultError" in str(outcome(operation, space))))
        return not wanted

    with suppress(NoSuchExample):
        find(guests.operations(near=LAYOUT.edges), was_the_last, settings=FIND)
    assert not wanted


def test_operations_shrink_to_what_can_be_read() -> None:
    """What faults after a part is told in one short line."""

    def wanted(operation: Operation) -> bool:
        found = str(outcome(operation, LAYOUT.address_space()))
        return "FaultError" in found and "after 0 bytes" not in found

    found = find(guests.operations(near=LAYOUT.edges, kinds=(CopyOut,)), wanted, settings=SEARCH)
    assert repr(found) == "CopyOut(addr=0x11fff, src=b'\\x00\\x00')"


@given(st.data())
def test_any_operations_are_as_on_the_model(data: st.DataObject) -> None:
    """A sequence of calls on any layout of any machine gives the same, and leaves the same."""
    layout = data.draw(guests.layouts(data.draw(st.sampled_from(ARCHES)), max_mappings=3))
    space, model = layout.address_space(), layout.model()
    for operation in data.draw(st.lists(guests.operations(layout.arch, layout.edges, most=70), max_size=8)):
        assert outcome(operation, space) == outcome(operation, model), operation
    if layout.arch.page_size == 4096:
        check_memory(space, model)
