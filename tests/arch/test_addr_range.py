"""AddrRange: [start, end), well-formed or as the guest said it.

Python's own range is the model of well-formed ranges; what gVisor says of empty and ill-formed ones is a table.
"""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import AMD64, ARM64_64K, AddrRange

BOUNDS = range(6)
NONEMPTY = [AddrRange(a, b) for a in BOUNDS for b in BOUNDS if a < b]
U64 = st.integers(0, 2**64 - 1)


def addresses(ar: AddrRange) -> set[int]:
    """The addresses of a small range."""
    return set(range(ar.start, ar.end))


@pytest.mark.parametrize("ar", NONEMPTY, ids=str)
def test_single(ar: AddrRange) -> None:
    """A range holds the addresses that Python's range does, and can be cut at all but the first."""
    assert ar.well_formed()
    assert ar.length == len(addresses(ar))
    for addr in BOUNDS:
        assert ar.contains(addr) == (addr in addresses(ar))
        assert ar.can_split_at(addr) == (addr in addresses(ar) - {ar.start})


@pytest.mark.parametrize("a", NONEMPTY, ids=str)
def test_pairs(a: AddrRange) -> None:
    """Overlap, inclusion and intersection of ranges with addresses are those of sets."""
    for b in NONEMPTY:
        common = addresses(a) & addresses(b)
        assert a.overlaps(b) == bool(common)
        assert a.is_superset_of(b) == (addresses(a) >= addresses(b))
        assert addresses(a.intersect(b)) == common
        if not common:
            assert a.intersect(b) == AddrRange(max(a.start, b.start), max(a.start, b.start))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((5, 5), (0, 10), True),
        ((0, 10), (5, 5), True),
        ((0, 0), (0, 10), False),
        ((0, 10), (0, 0), False),
        ((10, 10), (0, 10), False),
        ((5, 5), (5, 5), False),
    ],
)
def test_overlap_of_empty(a: tuple[int, int], b: tuple[int, int], expected: bool) -> None:
    """An empty range overlaps one that it lies strictly inside, and nothing else."""
    assert AddrRange(*a).overlaps(AddrRange(*b)) is expected


@pytest.mark.parametrize(
    ("inner", "expected"), [((0, 0), True), ((10, 10), True), ((5, 5), True), ((11, 11), False)], ids=str
)
def test_superset_of_empty(inner: tuple[int, int], expected: bool) -> None:
    """An empty range at either bound is inside."""
    assert AddrRange(0, 10).is_superset_of(AddrRange(*inner)) is expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [((0, 5), (7, 9), (7, 7)), ((7, 9), (0, 5), (7, 7)), ((0, 5), (5, 9), (5, 5)), ((3, 3), (0, 9), (3, 3))],
)
def test_intersect_of_disjoint(a: tuple[int, int], b: tuple[int, int], expected: tuple[int, int]) -> None:
    """Without a common address the intersection is empty, at the greater start."""
    assert AddrRange(*a).intersect(AddrRange(*b)) == AddrRange(*expected)


@pytest.mark.parametrize(
    ("start", "end", "length"), [(5, 3, 2**64 - 2), (1, 0, 2**64 - 1), (2**64 - 4, 0, 4), (2**64 - 1, 1, 2)]
)
def test_ill_formed(start: int, end: int, length: int) -> None:
    """An ill-formed range is kept as it was said, contains nothing, and has the length that wraps."""
    ar = AddrRange(start, end)
    assert (ar.start, ar.end) == (start, end)
    assert not ar.well_formed()
    assert ar.length == length
    assert not any(ar.contains(addr) or ar.can_split_at(addr) for addr in (0, start, end, end - 1))


def test_empty() -> None:
    """An empty range is well-formed, has no address and cannot be cut."""
    ar = AddrRange(5, 5)
    assert ar.well_formed() and ar.length == 0
    assert not ar.contains(5) and not ar.can_split_at(5)


@pytest.mark.parametrize(
    ("start", "end"), [(0, 2**64), (0x1000, 0x1000 + 2**64), (0x1000, 0x1008 + 2**64), (-(2**65), 8)]
)
def test_length_past_64_bits(start: int, end: int) -> None:
    """Only an ill-formed range's length wraps: a well-formed one of 2**64 bytes or more is not short or empty."""
    ar = AddrRange(start, end)
    assert ar.well_formed()
    assert ar.length == end - start


@given(U64, U64)
def test_alignment(start: int, end: int) -> None:
    """A range is aligned when both bounds are, to the machine's own pages."""
    ar = AddrRange(start, end)
    for arch in (AMD64, ARM64_64K):
        assert ar.is_page_aligned(arch) == (start % arch.page_size == 0 == end % arch.page_size)
        assert ar.is_huge_page_aligned(arch) == (start % arch.huge_page_size == 0 == end % arch.huge_page_size)


def test_alignment_by_default() -> None:
    """Without a machine, pages are those of amd64."""
    assert AddrRange(0x1000, 0x2000).is_page_aligned()
    assert not AddrRange(0x1000, 0x2000).is_page_aligned(ARM64_64K)
    assert not AddrRange(0x1000, 0x2001).is_page_aligned()
    assert AddrRange(0, 1 << 21).is_huge_page_aligned()
    assert not AddrRange(0, 1 << 20).is_huge_page_aligned()


def test_text() -> None:
    """str is the interval, in hexadecimal."""
    assert str(AddrRange(0x10, 0x20)) == "[0x10, 0x20)"
    assert str(AddrRange(5, 3)) == "[0x5, 0x3)"


def test_value() -> None:
    """A range cannot be changed, equals one with the same bounds, and can be a key."""
    ar = AddrRange(1, 2)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ar.start = 0  # type: ignore[misc]
    assert ar == AddrRange(1, 2) != AddrRange(1, 3)
    assert len({ar, AddrRange(1, 2)}) == 1
