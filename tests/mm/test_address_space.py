"""mmap, munmap and mprotect of an AddressSpace behave as Linux's: errnos, and where mappings go, on every machine.

How mappings split and merge is in test_address_space_maps.py, what the memory behind them does in
test_address_space_memory.py. The running kernel is asked the same in tests/kernel/test_mmap_mprotect.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from edge_layouts import ANON, BASE, FIXED, PAGE, RW, GrowingObject
from hostarch import AMD64, ARM, ARM64, ARM64_64K, I386, MIPS, PPC64, READ, Arch, mman
from map_rows import rows
from usermem import AddressSpace

R = mman.PROT_READ
NONE = mman.PROT_NONE
NOREPLACE = ANON | mman.MAP_FIXED_NOREPLACE
TOP = AMD64.max_addr


def sample() -> AddressSpace:
    """Pages 0 to 3 rw, page 4 free, pages 5 to 7 r and never more."""
    space = AddressSpace()
    space.mmap(BASE, 4 * PAGE, RW, FIXED)
    space.map_object(BASE + 5 * PAGE, 3 * PAGE, R, FIXED, None, max_prot=READ)
    return space


def map_a_pipe(space: AddressSpace) -> int:
    """Map the end of a pipe that can be read."""
    ends = os.pipe()
    try:
        return space.mmap(0, PAGE, RW, mman.MAP_PRIVATE, ends[0])
    finally:
        for fd in ends:
            os.close(fd)


Call = Callable[[AddressSpace], object]
ERRNOS: list[tuple[str, int, Call]] = [
    ("no length", errno.EINVAL, lambda s: s.mmap(0, 0, RW, ANON)),
    ("offset not aligned", errno.EINVAL, lambda s: s.mmap(0, PAGE, RW, ANON, -1, 1)),
    ("no type", errno.EINVAL, lambda s: s.mmap(0, PAGE, RW, mman.MAP_ANONYMOUS)),
    ("MAP_SHARED_VALIDATE of no file", errno.EINVAL, lambda s: s.mmap(0, PAGE, RW, mman.MAP_ANONYMOUS | 3)),
    ("MAP_FIXED not aligned", errno.EINVAL, lambda s: s.mmap(BASE + 1, PAGE, RW, FIXED)),
    ("MAP_FIXED_NOREPLACE not aligned", errno.EINVAL, lambda s: s.mmap(BASE + 1, PAGE, RW, NOREPLACE)),
    ("shared and growing", errno.EINVAL, lambda s: s.mmap(0, PAGE, RW, mman.MAP_ANONYMOUS | mman.MAP_SHARED | 0x100)),
    ("no file", errno.EBADF, lambda s: s.mmap(0, PAGE, RW, mman.MAP_PRIVATE)),
    ("no file comes before no length", errno.EBADF, lambda s: s.mmap(0, 0, RW, mman.MAP_PRIVATE)),
    ("the offset comes before no file", errno.EINVAL, lambda s: s.mmap(0, 0, RW, mman.MAP_PRIVATE, -1, 1)),
    ("a pipe cannot be mapped", errno.ENODEV, map_a_pipe),
    ("fixed at 0", errno.EPERM, lambda s: s.mmap(0, PAGE, RW, FIXED)),
    ("fixed below the lowest", errno.EPERM, lambda s: s.mmap(AMD64.min_addr - PAGE, PAGE, RW, NOREPLACE)),
    ("something is there", errno.EEXIST, lambda s: s.mmap(BASE, PAGE, RW, NOREPLACE)),
    ("something is in part there", errno.EEXIST, lambda s: s.mmap(BASE + 4 * PAGE, 2 * PAGE, RW, NOREPLACE)),
    ("NOREPLACE wins over FIXED", errno.EEXIST, lambda s: s.mmap(BASE, PAGE, RW, NOREPLACE | mman.MAP_FIXED)),
    ("the place comes before the type", errno.EEXIST, lambda s: s.mmap(BASE, PAGE, RW, NOREPLACE & ~mman.MAP_PRIVATE)),
    ("longer than user space", errno.ENOMEM, lambda s: s.mmap(0, TOP + 1, NONE, ANON)),
    ("as long as user space", errno.ENOMEM, lambda s: s.mmap(0, TOP, NONE, ANON)),
    ("length of 2**64 - 1", errno.ENOMEM, lambda s: s.mmap(0, (1 << 64) - 1, NONE, ANON)),
    ("negative length", errno.ENOMEM, lambda s: s.mmap(0, -1, NONE, ANON)),
    ("fixed over the top", errno.ENOMEM, lambda s: s.mmap(TOP - PAGE, 2 * PAGE, RW, FIXED)),
    ("fixed at the top", errno.ENOMEM, lambda s: s.mmap(TOP, PAGE, RW, FIXED)),
    ("fixed at the end of 64 bits", errno.ENOMEM, lambda s: s.mmap((1 << 64) - PAGE, PAGE, RW, NOREPLACE)),
    ("fixed below 0", errno.ENOMEM, lambda s: s.mmap(-PAGE, PAGE, RW, FIXED)),
    ("negative offset", errno.EOVERFLOW, lambda s: s.mmap(0, PAGE, RW, ANON, -1, -PAGE)),
    (
        "an object's offset not aligned",
        errno.EINVAL,
        lambda s: s.map_object(0, PAGE, R, ANON, GrowingObject(b"", 9), 1),
    ),
    ("more than its own limit", errno.EACCES, lambda s: s.map_object(0, PAGE, RW, ANON, None, max_prot=READ)),
    ("growing object", errno.EINVAL, lambda s: s.map_object(0, PAGE, R, ANON | 0x100, GrowingObject(b"", 9))),
    ("munmap of nothing", errno.EINVAL, lambda s: s.munmap(BASE, 0)),
    ("munmap not aligned", errno.EINVAL, lambda s: s.munmap(BASE + 1, PAGE)),
    ("munmap of a negative length", errno.EINVAL, lambda s: s.munmap(BASE, -PAGE)),
    ("munmap over the top", errno.EINVAL, lambda s: s.munmap(TOP - PAGE, PAGE + 1)),
    ("munmap at 2**64", errno.EINVAL, lambda s: s.munmap(1 << 64, PAGE)),
    ("munmap below 0", errno.EINVAL, lambda s: s.munmap(-PAGE, PAGE)),
    ("mprotect not aligned", errno.EINVAL, lambda s: s.mprotect(BASE + 1, PAGE, R)),
    ("mprotect to unknown rights", errno.EINVAL, lambda s: s.mprotect(BASE, PAGE, 0x100)),
    ("mprotect that grows both ways", errno.EINVAL, lambda s: s.mprotect(BASE, 0, R | 0x3000000)),
    ("PROT_GROWSDOWN of what does not grow", errno.EINVAL, lambda s: s.mprotect(BASE, PAGE, R | mman.PROT_GROWSDOWN)),
    ("PROT_GROWSUP of what does not grow", errno.EINVAL, lambda s: s.mprotect(BASE, PAGE, R | mman.PROT_GROWSUP)),
    ("mprotect of nothing mapped", errno.ENOMEM, lambda s: s.mprotect(BASE + 4 * PAGE, PAGE, R)),
    ("mprotect over the top", errno.ENOMEM, lambda s: s.mprotect(TOP - PAGE, 2 * PAGE, R)),
    ("mprotect that wraps", errno.ENOMEM, lambda s: s.mprotect(BASE, (1 << 64) - PAGE, R)),
    ("wrapping comes before unknown rights", errno.ENOMEM, lambda s: s.mprotect(BASE, (1 << 64) - PAGE, 0x100)),
    ("mprotect of a negative length", errno.ENOMEM, lambda s: s.mprotect(BASE + PAGE, -PAGE, R)),
    ("more than is allowed", errno.EACCES, lambda s: s.mprotect(BASE + 5 * PAGE, PAGE, RW)),
]


@pytest.mark.parametrize(("code", "call"), [row[1:] for row in ERRNOS], ids=[row[0] for row in ERRNOS])
def test_errnos(code: int, call: Call) -> None:
    """Each call fails with Linux's errno, and changes nothing."""
    space = sample()
    before = space.maps()
    with pytest.raises(OSError) as caught:
        call(space)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]
    assert space.maps() == before
    space._check()


NO_ERRORS: list[tuple[str, Call]] = [
    ("munmap of what is not mapped", lambda s: s.munmap(BASE + 4 * PAGE, 1)),
    ("munmap of everything", lambda s: s.munmap(0, TOP)),
    ("munmap of the last page", lambda s: s.munmap(TOP - PAGE, PAGE)),
    ("mprotect of no bytes", lambda s: s.mprotect(BASE + 4 * PAGE, 0, R)),
    ("mprotect of no bytes to unknown rights", lambda s: s.mprotect(BASE, 0, 0x100)),
    ("mprotect with PROT_SEM", lambda s: s.mprotect(BASE, PAGE, R | mman.PROT_SEM)),
    ("mprotect of what grows", lambda s: s.mprotect(s.mmap(0, PAGE, RW, ANON | 0x100), PAGE, R | mman.PROT_GROWSDOWN)),
    ("the last page", lambda s: s.mmap(TOP - PAGE, PAGE, RW, NOREPLACE)),
    ("the lowest page", lambda s: s.mmap(AMD64.min_addr, PAGE, RW, NOREPLACE)),
    ("unknown rights of a new mapping", lambda s: s.mmap(0, PAGE, R | 0x100, ANON)),
]


@pytest.mark.parametrize("call", [row[1] for row in NO_ERRORS], ids=[row[0] for row in NO_ERRORS])
def test_no_errors(call: Call) -> None:
    """What looks odd and is allowed."""
    space = sample()
    call(space)
    space._check()


def test_placement_is_top_down() -> None:
    """Without a hint mappings come to lie one below the other, the first one 128 MiB below the end of user space."""
    space = AddressSpace()
    first = space.mmap(0, 1, RW, ANON)
    assert first == TOP - (128 << 20) - PAGE
    second = space.mmap(0, 3 * PAGE, R, ANON)
    assert second == first - 3 * PAGE
    space.munmap(first, PAGE)
    assert space.mmap(0, 2 * PAGE, R, ANON) == second - 2 * PAGE
    assert space.mmap(0, PAGE, R, ANON) == first


HINTS = [
    ("free", BASE + 10 * PAGE, BASE + 10 * PAGE),
    ("not aligned", BASE + 10 * PAGE + 5, BASE + 10 * PAGE),
    ("fits between", BASE + 4 * PAGE, BASE + 4 * PAGE),
    ("taken", BASE, None),
    ("too low", PAGE, AMD64.min_addr),
    ("too low and not aligned", PAGE + 1, AMD64.min_addr),
    ("within the first page: no hint", 0x123, None),
    ("beyond user space", TOP, None),
    ("the last page", TOP - PAGE, TOP - PAGE),
    ("the end of 64 bits", (1 << 64) - 1, None),
]


@pytest.mark.parametrize(("hint", "expected"), [row[1:] for row in HINTS], ids=[row[0] for row in HINTS])
def test_hints(hint: int, expected: int | None) -> None:
    """A hint is rounded and taken if nothing is there, else the mapping is placed as without one."""
    space = sample()
    free = TOP - (128 << 20) - PAGE
    assert space.mmap(hint, PAGE, RW, ANON) == (free if expected is None else expected)


def test_placement_when_little_is_left() -> None:
    """The room kept for the stack is used last, and then there is ENOMEM."""
    space = AddressSpace(evolve(AMD64, max_addr=1 << 20))
    got = [space.mmap(0, PAGE, RW, ANON) for _ in range(((1 << 20) - AMD64.min_addr) // PAGE)]
    gap = (1 << 20) // 6 & -PAGE
    assert got[0] == (1 << 20) - gap - 2 * PAGE  # the gap's bound is rounded down
    assert sorted(got) == list(range(AMD64.min_addr, 1 << 20, PAGE))
    with pytest.raises(OSError, match="Cannot allocate memory"):
        space.mmap(0, PAGE, RW, ANON)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=12), st.integers(1, 12))
def test_the_highest_gap_is_taken(taken: list[tuple[int, int]], pages: int) -> None:
    """A mapping without a hint goes as high as it fits below the stack's room, as counting page by page finds."""
    space = AddressSpace(evolve(AMD64, max_addr=1 << 18, min_addr=8 * PAGE))
    gap = space.arch.max_addr - space.arch.page_round_down(space.arch.max_addr - space.arch.max_addr // 6)
    low, high = 8, ((1 << 18) - gap) // PAGE
    free = set(range(low, 64))
    for start, n in taken:
        if start + 8 + n <= 64:
            space.mmap((start + 8) * PAGE, n * PAGE, R, FIXED)
            free -= set(range(start + 8, start + 8 + n))
    fits = [at for at in range(low, high - pages + 1) if free.issuperset(range(at, at + pages))]
    anywhere = [at for at in range(low, 64 - pages + 1) if free.issuperset(range(at, at + pages))]
    if anywhere:
        assert space.mmap(0, pages * PAGE, R, ANON) == max(fits or anywhere) * PAGE
    else:
        with pytest.raises(OSError, match="Cannot allocate memory"):
            space.mmap(0, pages * PAGE, R, ANON)


ARCHES = [
    # Where the first page without a hint goes: 128 MiB, or a sixth of user space if that is less, below its end.
    (AMD64, 0x7FFFF7FFE000),
    (I386, 0xB7FFF000),
    (ARM, 0xB6FFF000),
    (ARM64, 0xFFFFF7FFF000),
    (ARM64_64K, 0xFFFFF7FF0000),
    (MIPS, 0x77FF7000),
    (PPC64, 0x7FFFF7FF0000),
]


@pytest.mark.parametrize(("arch", "first"), ARCHES, ids=[arch.name for arch, _ in ARCHES])
def test_machines(arch: Arch, first: int) -> None:
    """Page size, end of user space and the values of the flags are the machine's."""
    flags, size = arch.map_flags, arch.page_size
    private = mman.MAP_PRIVATE | flags.anonymous
    space = AddressSpace(arch)
    assert space.mmap(0, 1, RW, private) == first
    assert rows(space, first) == [(0, 1, "rw-p")]
    assert space.munmap(first, 1) == 0
    assert space.maps() == ""
    with pytest.raises(OSError, match="Invalid argument"):
        space.mmap(BASE + size // 2, 1, RW, private | flags.fixed)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        space.mmap(arch.max_addr, 1, RW, private | flags.fixed)
    last = arch.max_addr - size
    assert space.mmap(last, size, RW, private | flags.fixed_noreplace) == last
    with pytest.raises(OSError, match="File exists"):
        space.mmap(last, 1, RW, private | flags.fixed_noreplace)


def test_flags_of_mips() -> None:
    """On MIPS 0x800 is MAP_ANONYMOUS, and 0x20, which is that elsewhere, means nothing."""
    space = AddressSpace(MIPS)
    with pytest.raises(OSError, match="Bad file descriptor"):
        space.mmap(0, PAGE, RW, mman.MAP_PRIVATE | 0x20)
    addr = space.mmap(0, PAGE, RW, mman.MAP_PRIVATE | 0x800 | 0x1000)
    space.mmap(addr + PAGE, PAGE, RW, mman.MAP_PRIVATE | 0x800 | 0x10)
    assert [row[:2] for row in rows(space, addr)] == [(0, 1), (1, 2)]  # 0x1000 is MAP_GROWSDOWN there


def test_tags_in_mapping_calls() -> None:
    """On ARM64 mprotect and munmap pass over the tag in the top byte of an address, as copies do."""
    space = AddressSpace(ARM64)
    addr = space.mmap(0, 2 * PAGE, RW, ANON)
    tagged = addr | 0xAB << 56
    assert space.copy_out(tagged, b"tagged") == 6
    assert space.mprotect(tagged, PAGE, R) == 0
    assert rows(space, addr) == [(0, 1, "r--p"), (1, 2, "rw-p")]
    assert space.munmap(tagged, PAGE) == 0
    assert rows(space, addr) == [(1, 2, "rw-p")]
