"""Bytes are operations and operations bytes: any of them, the same both ways, and a small change is a small change."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostarch import AMD64, ARM64, AddrRangeSeq, Arch
from usermem import AddressSpace
from usermem.testing import Layout, conformance_layout
from usermem.testing import strategies as guests
from usermem.testing.corpus import MAX_COUNT, Codec
from usermem.testing.operations import (
    KINDS,
    CopyIn,
    CopyInTo,
    CopyOut,
    LoadUint32,
    Operation,
    Refused,
    Temper,
    outcome,
)

LAYOUT = conformance_layout()
CODEC = Codec(LAYOUT.edges)
CLASSES = {kind for kinds in KINDS.values() for kind in kinds}


def from_chance(seed: int, size: int = 400) -> bytes:
    """Plain random bytes."""
    return random.Random(seed).randbytes(size)


@given(st.binary(max_size=200) | st.builds(from_chance, st.integers()))
def test_any_bytes_are_operations(data: bytes) -> None:
    """Encoding them is stable, and what is encoded decodes to the same."""
    operations = CODEC.decode(data)
    again = CODEC.encode(operations)
    assert CODEC.decode(again) == operations
    assert CODEC.encode(CODEC.decode(again)) == again


@pytest.mark.parametrize("arch", [AMD64, ARM64], ids=lambda arch: arch.name)
@given(data=st.data())
def test_any_operations_are_bytes(arch: Arch, data: st.DataObject) -> None:
    """They decode to equal operations, whatever edges the codec knows and the operations are aimed at."""
    layout = data.draw(guests.layouts(arch, max_mappings=60) | st.just(Layout(arch, ())))
    operations = data.draw(st.lists(guests.operations(arch, layout.edges), max_size=4))
    for codec in (Codec(layout.edges, arch=arch), Codec(arch=arch)):
        assert codec.decode(codec.encode(operations)) == operations


@pytest.mark.parametrize("n", [0, 191, 192, 223, 224, 255, 4091, 4092, 4099, 4100, 16387, 16388, MAX_COUNT])
def test_counts_of_every_form(n: int) -> None:
    """At the ends of each form, for a buffer, a writer and a range; the rest of the data is as it was."""
    ars = AddrRangeSeq.from_pairs([LAYOUT.edges[0], n] * 7)
    operations = [CopyIn(n, n), CopyInTo(ars, Temper(n, message=True)), CopyOut(-n, bytes(range(256)))]
    assert CODEC.decode(CODEC.encode(operations)) == operations


@pytest.mark.parametrize(
    "operation",
    [
        Refused(LoadUint32(0)),
        CopyIn(0, MAX_COUNT + 1),
        CopyIn(1 << 127, 1),
        CopyIn(0, -1),
        CopyInTo(AddrRangeSeq(), Temper(error=lambda: ValueError())),
    ],
    ids=repr,
)
def test_what_has_no_encoding_is_refused(operation: Operation) -> None:
    """With a ValueError that names the operation."""
    with pytest.raises(ValueError, match=r"has no encoding: \w"):
        CODEC.encode([operation])


def test_random_bytes_reach_everything() -> None:
    """All kinds, all edges, all rights and all errors, a few bytes an operation, and seldom much memory."""
    operations = [operation for seed in range(50) for operation in CODEC.decode(from_chance(seed))]
    assert {type(operation) for operation in operations} == CLASSES
    assert 50 * 400 / len(operations) < 10
    assert {operation.at for operation in operations} >= set(LAYOUT.edges)
    assert {operation.ignore_permissions for operation in operations} == {False, True}
    counts = [operation.n for operation in operations if isinstance(operation, CopyIn)]
    assert sum(n > 4 * 4096 + 4 for n in counts) < len(counts) / 50


def changed(before: list[Operation], after: list[Operation]) -> int:
    """How many operations, of the longer list, lie between the equal beginnings and the equal ends."""
    short = min(len(before), len(after))
    start = next((i for i in range(short) if before[i] != after[i]), short)
    end = next((i for i in range(short - start) if before[-1 - i] != after[-1 - i]), short - start)
    return max(len(before), len(after)) - start - end


@settings(max_examples=200)
@given(st.integers(), st.integers(0, 399), st.sampled_from(["changed", "inserted", "removed"]), st.integers(0, 255))
def test_a_small_change_is_a_small_change(seed: int, at: int, how: str, value: int) -> None:
    """A byte that is changed, inserted or removed changes one operation, splits it, or joins it to the one before."""
    data, byte = from_chance(seed), bytes((value,))
    mutated = data[:at] + (b"" if how == "removed" else byte) + data[at + (how != "inserted") :]
    assert changed(CODEC.decode(data), CODEC.decode(mutated)) <= 2


def test_most_small_changes_change_at_most_one_operation() -> None:
    """Of 49 operations in 400 bytes; and some that change nothing, as operands that are left over."""
    chance = random.Random(1)
    found = [0, 0, 0]
    for seed in range(300):
        data = bytearray(from_chance(seed))
        before = CODEC.decode(bytes(data))
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        found[changed(before, CODEC.decode(bytes(data)))] += 1
    assert found[0] < 150
    assert found[2] < 75


class Short(AddressSpace):
    """It is broken: a read that ends with a page does not fill the last byte."""

    def copy_in(self, addr, dst, *, ignore_permissions=False):  # type: ignore[no-untyped-def, override]
        n = super().copy_in(addr, dst, ignore_permissions=ignore_permissions)
        if n > 1 and (addr + n) % 4096 == 0:
            memoryview(dst)[n - 1 :] = b"\xee"
        return n


def differs(space: AddressSpace, data: bytes) -> bool:
    """Whether a space answers operations otherwise than the model."""
    with space:
        for mapping in LAYOUT.mappings:
            space.mmap(mapping.addr, mapping.length, mapping.prot, 0x32)
        model = LAYOUT.model()
        return any(outcome(op, space) != outcome(op, model) for op in CODEC.decode(data))


def test_plain_random_bytes_drive_a_memory() -> None:
    """They find what is planted, and nothing in what is right."""
    assert any(differs(Short(), from_chance(seed)) for seed in range(300))
    assert not any(differs(AddressSpace(), from_chance(seed)) for seed in range(30))


def test_fuzz_one_input_drives_a_memory() -> None:
    """hypothesis' entry for fuzzers, given random bytes, finds it too; a test of long inputs says how long."""

    @settings(database=None)
    @given(st.binary(min_size=200, max_size=200))
    def right(data: bytes) -> None:
        assert not differs(Short(), data)

    fuzz = right.hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        for seed in range(1000):
            fuzz(from_chance(seed, 2000))
