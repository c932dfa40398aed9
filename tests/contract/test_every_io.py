"""Every IO we ship, and one of the test's own, keeps the contract at every byte where memory can end.

A fault at byte k has moved exactly k bytes, names the address, left what lies behind it alone, and can be resumed from
there. Readers and Writers are in test_every_io_streams.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

import pytest
from attrs import evolve

from edge_layouts import ANON, LAYOUTS, PAGE, RW, Layout, one, pattern, pieces, sink, source
from hostarch import AMD64, ARM64_64K, I386, MIPS, PPC64, READ, WRITE, AccessType, AddrRange, AddrRangeSeq, Arch
from patchy_io import PatchyIO
from safemem import BlockSeq, ReaderFunc, WriterFunc
from usermem import (
    AddressSpace,
    FaultError,
    FaultReason,
    ResolvedIO,
    copy_in_vec,
    copy_out_vec,
    copy_string_in,
    zero_out_vec,
)
from usermem.testing.faulty_memory import FaultyMemory

ZEROING = ("zero_out", "zero_out_vec")


def read_bytes(io: ResolvedIO, addr: int, dst: memoryview, ignored: bool) -> int:
    """ResolvedIO.read_bytes, whose bytes before a fault are in ``partial``."""
    try:
        found = io.read_bytes(addr, len(dst), ignore_permissions=ignored)
    except FaultError as fault:
        dst[: len(fault.partial)] = fault.partial
        raise
    dst[:] = found
    return len(found)


WRITES: dict[str, Callable[[ResolvedIO, int, bytes, bool], int]] = {
    "copy_out": lambda io, addr, data, ignored: io.copy_out(addr, data, ignore_permissions=ignored),
    "write_bytes": lambda io, addr, data, ignored: io.write_bytes(addr, data, ignore_permissions=ignored),
    "zero_out": lambda io, addr, data, ignored: io.zero_out(addr, len(data), ignore_permissions=ignored),
    "copy_out_vec": lambda io, addr, data, ignored: copy_out_vec(
        io, pieces(addr, len(data)), data, ignore_permissions=ignored
    ),
    "zero_out_vec": lambda io, addr, data, ignored: zero_out_vec(
        io, pieces(addr, len(data)), len(data), ignore_permissions=ignored
    ),
    "copy_out_from": lambda io, addr, data, ignored: io.copy_out_from(
        one(addr, len(data)), source(data), ignore_permissions=ignored
    ),
    "copy_out_from pieces": lambda io, addr, data, ignored: io.copy_out_from(
        pieces(addr, len(data)), source(data), ignore_permissions=ignored
    ),
}
READS: dict[str, Callable[[ResolvedIO, int, memoryview, bool], int]] = {
    "copy_in": lambda io, addr, dst, ignored: io.copy_in(addr, dst, ignore_permissions=ignored),
    "read_bytes": read_bytes,
    "copy_in_vec": lambda io, addr, dst, ignored: copy_in_vec(
        io, pieces(addr, len(dst)), dst, ignore_permissions=ignored
    ),
    "copy_in_to": lambda io, addr, dst, ignored: io.copy_in_to(
        one(addr, len(dst)), sink(dst), ignore_permissions=ignored
    ),
    "copy_in_to pieces": lambda io, addr, dst, ignored: io.copy_in_to(
        pieces(addr, len(dst)), sink(dst), ignore_permissions=ignored
    ),
}


def check_fault(fault: FaultError, layout: Layout, k: int, access: AccessType) -> None:
    """The fault says everything about an access that stopped at the layout's edge after k bytes."""
    assert fault.transferred == k
    assert fault.address == layout.edge
    assert fault.reason is layout.reason
    assert fault.access == access
    assert fault.errno == errno.EFAULT


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("make", LAYOUTS)
def test_writing_faults_at_byte_k(make: Callable[[], Layout], name: str) -> None:
    """k bytes arrive, nothing around them changes, and writing the rest from there after a repair completes it."""
    for k in make().ks():
        layout = make()
        start = layout.edge - k
        data = b"\xaa" * (k + layout.behind)
        expected = bytes(len(data)) if name in ZEROING else data
        untouched = pattern(layout.size)[: layout.size - k]
        with pytest.raises(FaultError) as caught:
            WRITES[name](layout.io, start, data, layout.ignore_permissions)
        check_fault(caught.value, layout, k, WRITE)
        assert layout.content() == untouched + expected[:k]
        assert layout.sentinel == b"\xee" * len(layout.sentinel)
        io = layout.repair()
        assert WRITES[name](io, start + k, data[k:], layout.ignore_permissions) == layout.behind
        assert io.read_bytes(start, len(data), ignore_permissions=layout.ignore_permissions) == expected
        assert layout.content() == untouched + expected[:k]


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("make", [make for make in LAYOUTS if READ in make().accesses])
def test_reading_faults_at_byte_k(make: Callable[[], Layout], name: str) -> None:
    """k bytes arrive, the rest of the buffer is not touched, and reading the rest after a repair completes it."""
    for k in make().ks():
        layout = make()
        start = layout.edge - k
        dst = memoryview(bytearray(b"\xee" * (k + layout.behind)))
        with pytest.raises(FaultError) as caught:
            READS[name](layout.io, start, dst, layout.ignore_permissions)
        check_fault(caught.value, layout, k, READ)
        assert dst == pattern(layout.size)[layout.size - k :] + b"\xee" * layout.behind
        assert layout.content() == pattern(layout.size)
        dst[k:] = b"\x55" * layout.behind
        io = layout.repair()
        assert READS[name](io, start + k, dst[k:], layout.ignore_permissions) == layout.behind
        assert dst == pattern(layout.size)[layout.size - k :] + io.read_bytes(
            start + k, layout.behind, ignore_permissions=layout.ignore_permissions
        )
        assert b"\x55" not in dst[k:].tobytes()


def test_the_split_layout_is_split() -> None:
    """One of the layouts above really has several runs of host memory before its edge."""
    split = next(make for make in LAYOUTS if make.__name__ == "split_run")()
    assert len(split.before) == 3


def refuse(blocks: BlockSeq) -> int:
    """A reader or writer that must not be called."""
    raise AssertionError(f"called with {blocks}")


@pytest.mark.parametrize("make", LAYOUTS)
def test_zero_lengths_are_no_access(make: Callable[[], Layout]) -> None:
    """Nothing copied is 0 bytes and no fault wherever it is, mapped or not, and nobody is called for it."""
    layout = make()
    io, ignored = layout.io, layout.ignore_permissions
    for addr in (0, 1, layout.edge - 1, layout.edge, layout.edge + 1, layout.edge + PAGE):
        for write in WRITES.values():
            assert write(io, addr, b"", ignored) == 0
        for read in READS.values():
            assert read(io, addr, memoryview(bytearray()), ignored) == 0
        empty = AddrRangeSeq([AddrRange(addr, addr)] * 3)
        for ranges in (empty, AddrRangeSeq(), one(layout.edge - 8, 16).take_first(0)):
            assert io.copy_out_from(ranges, ReaderFunc(refuse), ignore_permissions=ignored) == 0
            assert io.copy_in_to(ranges, WriterFunc(refuse), ignore_permissions=ignored) == 0
    assert layout.content() == pattern(layout.size)


def test_zero_lengths_outside_user_space_fault() -> None:
    """As access_ok(): at the end of user space nothing may still be copied, one byte further it may not."""
    space = AddressSpace()
    top = AMD64.max_addr
    assert space.copy_out(top, b"") == space.zero_out(top, 0) == space.copy_in(top, bytearray()) == 0
    ranges = AddrRangeSeq([AddrRange(top + 1, top + 1)])
    calls: list[Callable[[], object]] = [
        lambda: space.copy_out(top + 1, b""),
        lambda: space.copy_in(top + 1, bytearray()),
        lambda: space.zero_out(top + 1, 0),
        lambda: space.read_bytes(top + 1, 0),
        lambda: space.copy_out_from(ranges, ReaderFunc(refuse)),
        lambda: space.copy_in_to(ranges, WriterFunc(refuse)),
    ]
    for call in calls:
        with pytest.raises(FaultError) as caught:
            call()
        assert (caught.value.address, caught.value.reason) == (top + 1, FaultReason.OUTSIDE_RANGE)


def test_every_range_is_checked_before_anything_moves() -> None:
    """A last range outside user space stops copy_out_from and copy_in_to before the first byte, even an empty one."""
    space = AddressSpace()
    addr = space.mmap(0, PAGE, RW, ANON)
    top = AMD64.max_addr
    for bad in (AddrRange(top + 1, top + 1), AddrRange(top - 1, top + 1), AddrRange(1 << 64, 1 << 64)):
        ranges = AddrRangeSeq([AddrRange(addr, addr + 8), bad])
        with pytest.raises(FaultError) as written:
            space.copy_out_from(ranges, ReaderFunc(refuse))
        with pytest.raises(FaultError) as read:
            space.copy_in_to(ranges, WriterFunc(refuse))
        for fault in (written.value, read.value):
            assert (fault.address, fault.transferred) == (bad.start, 0)


ARCHES = [AMD64, I386, ARM64_64K, MIPS, PPC64, evolve(AMD64, name="tiny", max_addr=1 << 21)]
with_arches = pytest.mark.parametrize("arch", ARCHES, ids=[arch.name for arch in ARCHES])


def space_to_the_top(arch: Arch) -> AddressSpace:
    """A space whose last page is mapped."""
    space = AddressSpace(arch)
    flags = arch.map_flags.fixed | arch.map_flags.anonymous | 2
    space.mmap(arch.max_addr - arch.page_size, arch.page_size, RW, flags)
    return space


@with_arches
def test_ranges_that_end_at_the_top(arch: Arch) -> None:
    """The last bytes of user space are like any others."""
    space = space_to_the_top(arch)
    top = arch.max_addr
    for n in (0, 1, 3, 4, 8, PAGE, arch.page_size):
        for name, write in WRITES.items():
            data = bytes(n) if name in ZEROING else pattern(n)
            assert write(space, top - n, data, False) == n
            for read in READS.values():
                dst = memoryview(bytearray(b"\xee" * n))
                assert read(space, top - n, dst, False) == n
                assert dst == data
    space.copy_out(top - 4, b"end\0")
    assert copy_string_in(space, top - 4, 1 << 20) == b"end"
    assert space.swap_uint32(top - 4, 1) == int.from_bytes(b"end\0", arch.byte_order)
    assert space.load_uint32(top - 4) == 1


@with_arches
def test_ranges_that_leave_by_the_top(arch: Arch) -> None:
    """A range that ends one byte past user space moves nothing at all, though most of it is mapped."""
    space = space_to_the_top(arch)
    top = arch.max_addr
    data = pattern(PAGE)
    space.copy_out(top - PAGE, data)
    for n in (1, 2, 9, PAGE):
        dst = memoryview(bytearray(b"\xee" * n))
        start = top - n + 1
        calls: list[Callable[[], object]] = [
            partial(space.copy_out, start, b"\xaa" * n),
            partial(space.zero_out, start, n),
            partial(space.copy_in, start, dst),
            partial(space.read_bytes, start, n),
            partial(space.copy_out_from, one(start, n), ReaderFunc(refuse)),
            partial(space.copy_in_to, one(start, n), WriterFunc(refuse)),
        ]
        for call in calls:
            with pytest.raises(FaultError) as caught:
                call()
            fault = caught.value
            assert (fault.address, fault.transferred) == (start, 0)
            assert fault.reason is FaultReason.OUTSIDE_RANGE
        assert dst == b"\xee" * n
        assert space.read_bytes(top - PAGE, PAGE) == data


@pytest.mark.parametrize("valid", range(7))
def test_read_bytes_of_host_memory_that_faults(valid: int) -> None:
    """A fault that only the host's memory knows of, behind a block that is whole: the count is of both."""
    memory = FaultyMemory("bus")
    io = PatchyIO({0x1000: bytearray(b"abcd"), 0x1004: memory.block(6, min(valid, 6), b"efghij")})
    if valid == 6:
        assert io.read_bytes(0x1000, 10) == b"abcdefghij"
        return
    with pytest.raises(FaultError) as caught:
        io.read_bytes(0x1000, 10)
    assert caught.value.partial == b"abcdefghij"[: 4 + valid]
    assert (caught.value.transferred, caught.value.address) == (4 + valid, 0x1004 + valid)
