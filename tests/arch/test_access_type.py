"""AccessType: a set of the rights read, write and execute, in the bits of mmap(2).

Sets of letters are the model, the standard library's mmap module knows the bits.
"""

from __future__ import annotations

import mmap
import pickle

import pytest

from hostarch import (
    ANY_ACCESS,
    EXECUTE,
    NO_ACCESS,
    READ,
    READ_EXECUTE,
    READ_WRITE,
    WRITE,
    AccessType,
)

ALL = [AccessType(bits) for bits in range(8)]
every_right = pytest.mark.parametrize("p", ALL, ids=str)


def letters(access: AccessType) -> set[str]:
    """The set as letters, by its three properties."""
    return {c for c, held in zip("rwx", (access.read, access.write, access.execute), strict=True) if held}


@pytest.mark.parametrize(
    ("access", "held"),
    [
        (NO_ACCESS, ""),
        (READ, "r"),
        (WRITE, "w"),
        (EXECUTE, "x"),
        (READ_WRITE, "rw"),
        (READ_EXECUTE, "rx"),
        (ANY_ACCESS, "rwx"),
    ],
)
def test_names(access: AccessType, held: str) -> None:
    """The named sets hold what their names say."""
    assert letters(access) == set(held)


@every_right
def test_text(p: AccessType) -> None:
    """str has a place for each letter, as in /proc/PID/maps."""
    assert str(p) == "".join(c if c in letters(p) else "-" for c in "rwx")
    assert str(p) in repr(p)


@every_right
def test_prot(p: AccessType) -> None:
    """prot is the argument of mmap(2), a plain int, and makes the set again."""
    bits = {"r": mmap.PROT_READ, "w": mmap.PROT_WRITE, "x": mmap.PROT_EXEC}
    assert p.prot() == sum(bits[c] for c in letters(p)) == p
    assert type(p.prot()) is int
    assert AccessType(p.prot()) == p


@every_right
def test_any(p: AccessType) -> None:
    """any says whether the set has a member, and so does its truth."""
    assert p.any() == bool(letters(p)) == bool(p)


@every_right
def test_effective(p: AccessType) -> None:
    """What can be written or executed can be read; nothing else is added."""
    assert letters(p.effective()) == letters(p) | ({"r"} if letters(p) & {"w", "x"} else set())
    assert p.effective().effective() == p.effective()


@every_right
@pytest.mark.parametrize("q", ALL, ids=str)
def test_set_algebra(p: AccessType, q: AccessType) -> None:
    """Union, intersection and inclusion are those of sets, and take plain ints too."""
    assert letters(p.union(q)) == letters(p) | letters(q)
    assert letters(p.intersect(q)) == letters(p) & letters(q)
    assert p.superset_of(q) == (letters(p) >= letters(q))
    assert p.union(int(q)) == p.union(q) and p.intersect(int(q)) == p.intersect(q)
    assert p.superset_of(int(q)) == p.superset_of(q)
    assert type(p.union(q)) is type(p.intersect(q)) is AccessType


@pytest.mark.parametrize("bits", [8, -1, 0x01000000, 1 << 64])
def test_other_bits(bits: int) -> None:
    """Bits beyond the three rights are no rights."""
    with pytest.raises(ValueError, match="PROT_READ"):
        AccessType(bits)


@every_right
def test_pickles(p: AccessType) -> None:
    """A copy by pickle is the same set of the same type."""
    copied = pickle.loads(pickle.dumps(p))
    assert copied == p and type(copied) is AccessType


def test_default() -> None:
    """AccessType() is the empty set."""
    assert AccessType() == NO_ACCESS
