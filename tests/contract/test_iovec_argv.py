"""copy_in_vector: the argv and envp of execve, for every layout, with its limits and what a fault leaves."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import AMD64, I386, MIPS, PPC64, S390X, Arch
from patchy_io import PatchyIO
from usermem import BytesIO, FaultError, copy_in_vector, linux_result
from watched_io import WatchedIO

ARCHES = [AMD64, I386, MIPS, PPC64, S390X]
each_arch = pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
STRINGS_AT = 0x5000
PLENTY = 1 << 30


def words(arch: Arch, *values: int) -> bytes:
    """Pointers as the machine stores them."""
    return b"".join(value.to_bytes(arch.pointer_size, arch.byte_order) for value in values)


def guest(arch: Arch, strings: list[bytes], table_at: int = 0x1003) -> PatchyIO:
    """A table of pointers at table_at, ending with NULL, to these strings; holes around both."""
    pointers = []
    at = STRINGS_AT
    for string in strings:
        pointers.append(at)
        at += len(string) + 1
    memory = b"".join(string + b"\0" for string in strings)
    return PatchyIO({table_at: words(arch, *pointers, 0), STRINGS_AT: memory}, arch)


@each_arch
def test_layouts(arch: Arch) -> None:
    """Pointers as wide and in the order that the machine has them, up to NULL; the strings without their NULs."""
    strings = [b"ls", b"", b"-l", b"\xff" * 200]
    assert copy_in_vector(guest(arch, strings), 0x1003, PLENTY, PLENTY) == strings
    assert copy_in_vector(guest(arch, []), 0x1003, PLENTY, PLENTY) == []


def test_pointers_may_repeat_and_go_back() -> None:
    """The table says where the strings are, in any order, twice, or one inside the other."""
    io = PatchyIO({0x1000: words(AMD64, 0x5003, 0x5000, 0x5001, 0x5000, 0), 0x5000: b"ab\0cd\0"})
    assert copy_in_vector(io, 0x1000, PLENTY, PLENTY) == [b"cd", b"ab", b"b", b"ab"]


@pytest.mark.parametrize(
    ("max_elem", "max_total", "expected"),
    [
        pytest.param(5, 10, [b"four", b"more"], id="exactly enough"),
        pytest.param(4, 10, (), id="the NUL counts against an element"),
        pytest.param(5, 9, (b"four",), id="and against the total"),
        pytest.param(5, 5, (), id="a total that is used up"),
        pytest.param(5, 6, (b"four",), id="one byte left, which is no room for a string"),
        pytest.param(0, 10, (), id="no room in an element"),
        pytest.param(5, 0, (), id="no total"),
    ],
)
def test_limits(max_elem: int, max_total: int, expected: list[bytes] | tuple[bytes, ...]) -> None:
    """Every string costs its length and one: too long for what is left is E2BIG, as is nothing left.

    A tuple is the strings before the one that is too long, or nothing if the total was used up.
    """
    io = guest(AMD64, [b"four", b"more"])
    if isinstance(expected, list):
        assert copy_in_vector(io, 0x1003, max_elem, max_total) == expected
        return
    with pytest.raises(OSError) as caught:
        copy_in_vector(io, 0x1003, max_elem, max_total)
    assert linux_result(caught.value) == -errno.E2BIG
    assert getattr(caught.value, "partial", None) == list(expected)


def test_empty_strings_cost_a_byte() -> None:
    """A table of pointers to nothing ends by its total."""
    io = guest(AMD64, [b""] * 9)
    assert copy_in_vector(io, 0x1003, 1, 9) == [b""] * 9
    with pytest.raises(OSError) as caught:
        copy_in_vector(io, 0x1003, 1, 8)
    assert caught.value.errno == errno.E2BIG


def test_null_comes_before_every_limit() -> None:
    """An empty table needs no room at all."""
    assert copy_in_vector(guest(AMD64, []), 0x1003, 0, 0) == []


@pytest.mark.parametrize(("max_elem", "max_total", "name"), [(-1, 9, "max_elem_size"), (9, -1, "max_total_size")])
def test_negative_limits(max_elem: int, max_total: int, name: str) -> None:
    """A negative limit is the caller's ValueError, before anything is read."""
    io = WatchedIO(guest(AMD64, [b"a"]))
    with pytest.raises(ValueError, match=name):
        copy_in_vector(io, 0x1003, max_elem, max_total)
    assert io.accesses == []


@each_arch
def test_a_table_that_runs_into_a_hole(arch: Arch) -> None:
    """For every k: k readable bytes give the strings of the pointers that are whole, and the fault at byte k."""
    memory = words(arch, 0x5000, 0x5002, 0x5004, 0)
    for k in range(len(memory)):
        io = PatchyIO({0x3000 - k: memory[:k], 0x5000: b"a\0b\0c\0"}, arch)
        with pytest.raises(FaultError) as caught:
            copy_in_vector(io, 0x3000 - k, PLENTY, PLENTY)
        assert caught.value.address == 0x3000
        assert caught.value.partial == [b"a", b"b", b"c"][: k // arch.pointer_size]
        assert linux_result(caught.value) == -errno.EFAULT


@pytest.mark.parametrize("pointer", [0x5003, 0x6000, 1, (1 << 64) - 1, 1 << 63])
def test_a_string_that_cannot_be_read(pointer: int) -> None:
    """A pointer to nowhere, or a string that runs into a hole: EFAULT with the strings before it."""
    io = PatchyIO({0x1000: words(AMD64, 0x5000, pointer, 0), 0x5000: b"ab\0cd"})
    with pytest.raises(FaultError) as caught:
        copy_in_vector(io, 0x1000, PLENTY, PLENTY)
    assert caught.value.address == (0x5005 if pointer == 0x5003 else pointer)
    assert caught.value.partial == [b"ab"]
    assert linux_result(caught.value) == -errno.EFAULT


@pytest.mark.parametrize(
    ("table", "code", "before"),
    [
        pytest.param(["long", "hole"], errno.EFAULT, [], id="the last string"),
        pytest.param(["ok", "hole", "long"], errno.E2BIG, [b"ok"], id="the last string is too long"),
        pytest.param(["ok", "ok", "ok", "ok", "hole"], errno.EFAULT, [b"ok"] * 3, id="the total, and a hole"),
        pytest.param(["hole", "ok", "ok", "ok", "ok"], errno.E2BIG, [], id="a hole, and the total"),
        pytest.param(["ok", "long", None], errno.EFAULT, [b"ok"], id="the table"),
        pytest.param(["ok", "ok", "ok", "ok", None], errno.EFAULT, [b"ok"] * 3, id="the table, and the total"),
        pytest.param(["hole"] * 12, errno.E2BIG, [], id="more pointers than bytes"),
        pytest.param(["hole"] * 11, errno.EFAULT, [], id="not more"),
    ],
)
@each_arch
def test_what_is_met_first(arch: Arch, table: list[str | None], code: int, before: list[bytes]) -> None:
    """execve reads the whole table, and then the strings from the last to the first. (None is a hole in the table.)"""
    at = {"ok": 0x5000, "long": 0x5010, "hole": 0x6000}
    pointers = words(arch, *[at[name] for name in table if name]) + (b"" if None in table else words(arch, 0))
    io = PatchyIO({0x1000: pointers, 0x5000: b"ok\0".ljust(16) + b"too long\0"}, arch)
    with pytest.raises(OSError) as caught:
        copy_in_vector(io, 0x1000, 8, 11)
    assert linux_result(caught.value) == -code
    assert caught.value.partial == before  # type: ignore[attr-defined]


@each_arch
def test_a_table_at_the_top_goes_on_at_the_bottom(arch: Arch) -> None:
    """The table's address wraps, as the machine's adder does."""
    size = arch.pointer_size
    top = arch.addr_mask + 1
    pieces = {top - 2 * size: words(arch, 0x5000, 0x5002), 0: words(arch, 0x5004, 0), 0x5000: b"a\0b\0c\0"}
    assert copy_in_vector(PatchyIO(pieces, arch), top - 2 * size, PLENTY, PLENTY) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("addr", [-8, 1 << 64, 1 << 70, 0, (1 << 64) - 1])
def test_any_int_is_an_address(addr: int) -> None:
    """The worst it does is a FaultError with nothing in ``partial``."""
    with pytest.raises(FaultError) as caught:
        copy_in_vector(PatchyIO({}), addr, PLENTY, PLENTY)
    assert (caught.value.address, caught.value.partial) == (addr, [])


def test_options_are_handed_on() -> None:
    """Table and strings are read with the options of the call."""
    io = WatchedIO(BytesIO(words(AMD64, 16, 0) + b"abc\0"))
    assert copy_in_vector(io, 0, PLENTY, PLENTY, ignore_permissions=True) == [b"abc"]
    assert set(io.ignored) == {True}


@given(
    arch=st.sampled_from(ARCHES),
    strings=st.lists(st.binary(max_size=80).map(lambda s: s.replace(b"\0", b"?")), max_size=6),
    max_elem=st.integers(0, 90),
    max_total=st.integers(0, 300),
)
def test_against_a_count_by_hand(arch: Arch, strings: list[bytes], max_elem: int, max_total: int) -> None:
    """Any strings, any limits: as far as the limits reach, and the error of the one that is met."""
    left = max_total
    too_long = False
    good: list[bytes] = []
    for string in strings:
        too_long = len(string) + 1 > min(max_elem, left)
        if too_long:
            break
        left -= len(string) + 1
        good.append(string)
    io = guest(arch, strings)
    try:
        assert copy_in_vector(io, 0x1003, max_elem, max_total) == good
        assert not too_long
    except OSError as exc:
        assert too_long
        assert exc.errno == errno.E2BIG
        assert exc.partial == (good if left else [])  # type: ignore[attr-defined]
