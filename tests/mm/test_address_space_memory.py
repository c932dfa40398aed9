"""What the memory of an AddressSpace does: rights are enforced, and contents outlive what should not touch them.

Mapped objects are in test_object_pages.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW, one, pattern, sink, source
from hostarch import (
    ANY_ACCESS,
    ARM64_64K,
    EXECUTE,
    MIPS,
    NO_ACCESS,
    PPC64,
    READ,
    READ_WRITE,
    WRITE,
    AccessType,
    Arch,
    mman,
)
from usermem import (
    AddressSpace,
    FaultError,
    FaultReason,
    copy_in_vec,
    copy_string_in,
    copy_uint32_in,
    copy_uint32_out,
)

R, W, X, NONE = mman.PROT_READ, mman.PROT_WRITE, mman.PROT_EXEC, mman.PROT_NONE


def mapped(prot: int = RW, pages: int = 1, max_prot: int = ANY_ACCESS) -> AddressSpace:
    """Pages at BASE that hold a pattern."""
    space = AddressSpace()
    space.mmap(BASE, pages * PAGE, RW, FIXED)
    space.copy_out(BASE, pattern(pages * PAGE))
    space.mprotect(BASE, pages * PAGE, prot)
    return space


def can_read(space: AddressSpace, addr: int = BASE) -> bool:
    """Whether a byte can be read, as all readers agree."""
    found = set()
    for read in (partial(space.read_bytes, addr, 1), partial(space.copy_in, addr, bytearray(1))):
        try:
            read()
            found.add(True)
        except FaultError as fault:
            assert (fault.reason, fault.access) == (FaultReason.PERMISSION, READ)
            found.add(False)
    (answer,) = found
    return answer


def can_write(space: AddressSpace, addr: int = BASE) -> bool:
    """Whether a byte can be written, as all writers agree; it is written if so."""
    found = set()
    for write in (
        partial(space.copy_out, addr, b"w"),
        partial(space.zero_out, addr, 1),
        partial(space.copy_out_from, one(addr, 1), source(b"w")),
    ):
        try:
            write()
            found.add(True)
        except FaultError as fault:
            assert (fault.reason, fault.access) == (FaultReason.PERMISSION, WRITE)
            found.add(False)
    (answer,) = found
    return answer


RIGHTS = [(prot, bool(prot), bool(prot & W)) for prot in range(8)]


@pytest.mark.parametrize(("prot", "read", "write"), RIGHTS, ids=[str(AccessType(row[0])) for row in RIGHTS])
def test_rights(prot: int, read: bool, write: bool) -> None:
    """Any right gives reading, also writing or executing alone; only the right to write gives writing."""
    space = mapped(prot)
    for _ in range(2):  # the second time the page may be remembered
        assert can_read(space) is read
        assert can_write(space) is write
    assert space.copy_out(BASE, b"debug", ignore_permissions=True) == 5
    assert space.read_bytes(BASE, 5, ignore_permissions=True) == b"debug"
    assert can_read(space) is read
    assert can_write(space) is write


@pytest.mark.parametrize(("prot", "read", "write"), RIGHTS, ids=[str(AccessType(row[0])) for row in RIGHTS])
def test_rights_that_change(prot: int, read: bool, write: bool) -> None:
    """After mprotect from all rights to some, and back, accesses are judged by the new ones at once."""
    space = mapped(RW | X)
    for _ in range(2):
        assert can_read(space)
        assert can_write(space)
        space.mprotect(BASE, PAGE, prot)
        assert can_read(space) is read
        assert can_write(space) is write
        space.mprotect(BASE, PAGE, RW | X)


@pytest.mark.parametrize("limit", range(8), ids=lambda limit: str(AccessType(limit)))
def test_ignored_rights_end_at_the_limit(limit: int) -> None:
    """ignore_permissions gives what mprotect could have given, and no more."""
    space = AddressSpace()
    space.map_object(BASE, PAGE, NONE, FIXED, None, max_prot=limit)
    for allowed, call in (
        (limit, partial(space.read_bytes, BASE, 1, ignore_permissions=True)),
        (limit & W, partial(space.copy_out, BASE, b"w", ignore_permissions=True)),
    ):
        if allowed:
            call()
        else:
            with pytest.raises(FaultError) as caught:
                call()
            assert caught.value.reason is FaultReason.PERMISSION


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(
    ("access", "allowed"),
    [(NO_ACCESS, True), (READ, True), (WRITE, True), (READ_WRITE, True), (EXECUTE, False), (ANY_ACCESS, False)],
    ids=str,
)
def test_resolving_asks_for_every_right(access: AccessType, allowed: bool, warm: bool) -> None:
    """blocks() and resolve() of a rw page give what the page allows, whether it was accessed before or not."""
    space = mapped(RW)
    if warm:
        assert can_read(space)
        assert can_write(space)
    blocks, fault = space.resolve(BASE, 8, access)
    assert (fault is None, bool(blocks)) == (allowed, allowed)
    if not allowed:
        with pytest.raises(FaultError) as caught:
            space.blocks(one(BASE, 8), access)
        assert (caught.value.access, caught.value.reason) == (access, FaultReason.PERMISSION)


def test_resolving_for_nothing_teaches_nothing() -> None:
    """That a page is there, asked without any right, does not make it readable afterwards."""
    space = mapped(NONE)
    space.resolve(BASE, 8, NO_ACCESS)
    assert not can_read(space)
    assert not can_write(space)


def test_contents_outlive_changes_of_rights() -> None:
    """mprotect moves no bytes, however often and wherever it cuts."""
    space = mapped(RW, 4)
    for prot, start, pages in ((NONE, 1, 2), (R, 0, 4), (X, 2, 1), (W, 3, 1), (RW, 0, 4)):
        space.mprotect(BASE + start * PAGE, pages * PAGE, prot)
        assert space.read_bytes(BASE, 4 * PAGE, ignore_permissions=True) == pattern(4 * PAGE)
        space._check()


def test_contents_outlive_what_is_unmapped_beside_them() -> None:
    """munmap takes its pages' bytes and no other's; what is mapped there again is zero."""
    space = mapped(RW, 4)
    space.munmap(BASE + PAGE, 2 * PAGE)
    assert space.read_bytes(BASE, PAGE) == pattern(PAGE)
    assert space.read_bytes(BASE + 3 * PAGE, PAGE) == pattern(4 * PAGE)[3 * PAGE :]
    space.mmap(BASE + PAGE, 2 * PAGE, RW, FIXED)
    assert space.read_bytes(BASE, 4 * PAGE) == pattern(PAGE) + bytes(2 * PAGE) + pattern(4 * PAGE)[3 * PAGE :]
    space._check()


@pytest.mark.parametrize("over", [False, True], ids=["munmap", "mmap over it"])
def test_what_is_unmapped_is_gone(over: bool) -> None:
    """A page that was read and written by every way is not there any more once it was unmapped or replaced."""
    space = mapped(RW, 2)
    assert can_read(space)
    assert can_write(space)
    assert copy_uint32_in(space, BASE)
    if over:
        space.map_object(BASE, PAGE, NONE, FIXED, None)
    else:
        space.munmap(BASE, PAGE)
    for call in (
        partial(space.read_bytes, BASE, 4),
        partial(space.copy_in, BASE, bytearray(4)),
        partial(space.copy_out, BASE, b"four"),
        partial(copy_uint32_in, space, BASE),
        partial(copy_string_in, space, BASE, 9),
        partial(copy_in_vec, space, one(BASE, 4), bytearray(4)),
    ):
        with pytest.raises(FaultError) as caught:
            call()
        assert (caught.value.transferred, caught.value.address) == (0, BASE)
    assert space.read_bytes(BASE + PAGE, 4) == pattern(PAGE + 4)[PAGE:]


def test_a_mapping_over_another_is_zero() -> None:
    """MAP_FIXED replaces whole pages, and leaves the others; the guest's word at the seam is copied from both sides."""
    space = mapped(RW, 3)
    space.mmap(BASE + PAGE, 1, RW, FIXED)
    assert space.read_bytes(BASE, 3 * PAGE) == pattern(PAGE) + bytes(PAGE) + pattern(3 * PAGE)[2 * PAGE :]
    assert space.copy_out(BASE + PAGE - 2, b"seam") == 4
    assert space.read_bytes(BASE + PAGE - 3, 6) == pattern(PAGE)[-3:-2] + b"seam\0"


@pytest.mark.parametrize("arch", [ARM64_64K, MIPS, PPC64], ids=["arm64-64k", "mips", "ppc64"])
def test_other_machines_memory(arch: Arch) -> None:
    """Large pages have one right each, and words have the guest's byte order."""
    space = AddressSpace(arch)
    size = arch.page_size
    addr = space.mmap(0, 2 * size, RW, mman.MAP_PRIVATE | arch.map_flags.anonymous)
    assert copy_uint32_out(space, addr + size - 4, 0x01020304) == 4
    expected = bytes([4, 3, 2, 1]) if arch.byte_order == "little" else bytes([1, 2, 3, 4])
    assert space.read_bytes(addr + size - 4, 4) == expected
    for _ in range(2):
        assert copy_uint32_in(space, addr + size - 4) == space.load_uint32(addr + size - 4) == 0x01020304
    space.mprotect(addr + size, size, NONE)
    with pytest.raises(FaultError) as caught:
        space.copy_out(addr + PAGE, b"\xaa" * 2 * size)
    assert (caught.value.transferred, caught.value.address) == (size - PAGE, addr + size)


def closed_calls(space: AddressSpace) -> dict[str, Callable[[], object]]:
    """Every access and every change."""
    return {
        "mmap": partial(space.mmap, 0, PAGE, RW, ANON),
        "map_object": partial(space.map_object, 0, PAGE, RW, ANON, None),
        "munmap": partial(space.munmap, BASE, PAGE),
        "mprotect": partial(space.mprotect, BASE, PAGE, R),
        "copy_in": partial(space.copy_in, BASE, bytearray(1)),
        "copy_out": partial(space.copy_out, BASE, b"x"),
        "zero_out": partial(space.zero_out, BASE, 1),
        "no bytes": partial(space.zero_out, BASE, 0),
        "read_bytes": partial(space.read_bytes, BASE, 1),
        "write_bytes": partial(space.write_bytes, BASE, b"x"),
        "outside": partial(space.read_bytes, 1 << 200, 1),
        "copy_out_from": partial(space.copy_out_from, one(BASE, 1), source(b"x")),
        "copy_in_to": partial(space.copy_in_to, one(BASE, 1), sink(memoryview(bytearray(1)))),
        "load": partial(space.load_uint32, BASE),
        "load not aligned": partial(space.load_uint32, BASE + 1),
        "swap": partial(space.swap_uint32, BASE, 1),
        "compare and swap": partial(space.compare_and_swap_uint32, BASE, 0, 1),
        "uint32": partial(copy_uint32_in, space, BASE),
        "string": partial(copy_string_in, space, BASE, 9),
        "blocks": partial(space.blocks, one(BASE, 1)),
        "resolve": partial(space.resolve, BASE, 1, READ),
    }


@pytest.mark.parametrize("name", closed_calls(AddressSpace()))
def test_a_closed_space(name: str) -> None:
    """Every access and every change raises ValueError, also where a page was remembered, and nothing is mapped."""
    with mapped() as space:
        assert can_read(space)
        assert copy_uint32_in(space, BASE)
    space.close()
    with pytest.raises(ValueError, match="closed"):
        closed_calls(space)[name]()
    assert space.maps() == ""


def test_blocks_outlive_a_closed_space() -> None:
    """What was handed out before the space was closed stays readable."""
    space = mapped()
    blocks = space.blocks(one(BASE, 9))
    space.close()
    assert blocks.tobytes() == pattern(9)
