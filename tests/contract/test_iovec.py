"""Iovec tables in a guest's own layout: what is checked, in which order, and what a fault leaves."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import AMD64, ARM64, I386, MIPS, NO_ACCESS, PPC64, S390X, WRITE, AddrRange, AddrRangeSeq, Arch
from patchy_io import PatchyIO
from safemem import BlockSeqReader
from sample_blocks import blocks
from usermem import (
    MAX_RW_COUNT,
    UIO_MAXIOV,
    BytesIO,
    FaultError,
    FaultReason,
    check_io_range,
    copy_in_iovecs,
    copy_out_iovecs,
    iovecs_io_sequence,
    linux_result,
    single_io_sequence,
)
from watched_io import WatchedIO

ARCHES = [AMD64, I386, MIPS, PPC64, S390X]
each_arch = pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)

Pairs = list[tuple[int, int]]


def table(arch: Arch, pairs: Pairs) -> bytes:
    """(base, length) entries as the guest's C compiler lays them out."""
    return b"".join(x.to_bytes(arch.pointer_size, arch.byte_order) for pair in pairs for x in pair)


def pairs_of(ars: AddrRangeSeq) -> Pairs:
    """The ranges as (start, length)."""
    return list(ars.pairs())


def sequence(pairs: Pairs) -> AddrRangeSeq:
    """The reverse of pairs_of."""
    return AddrRangeSeq(AddrRange(start, start + length) for start, length in pairs)


@each_arch
def test_layouts(arch: Arch) -> None:
    """Two words an entry, as wide and in the order that the machine has them; the table may lie anywhere."""
    pairs = [(0x1234_5678, 0x9ABC), (0, 0), (7, 1)]
    for offset in (0, 3):
        io = BytesIO(bytes(offset) + table(arch, pairs), arch)
        ars = copy_in_iovecs(io, offset, 3)
        assert (pairs_of(ars), len(ars), ars.num_bytes) == (pairs, 3, 0x9ABD)
        assert iovecs_io_sequence(io, offset, 2).addrs == sequence(pairs[:2])


def test_layouts_in_hex() -> None:
    """The same entry as four machines write it."""
    entry = sequence([(0x01020304, 5)])
    for arch, expected in (
        (AMD64, "0403020100000000 0500000000000000"),
        (I386, "04030201 05000000"),
        (MIPS, "01020304 00000005"),
        (S390X, "0000000001020304 0000000000000005"),
    ):
        memory = bytearray(16)
        n = copy_out_iovecs(BytesIO(memory, arch), 0, entry)
        assert memory[:n] == bytes.fromhex(expected)


@given(
    arch=st.sampled_from(ARCHES),
    pairs=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 1 << 20)), max_size=9),
    addr=st.integers(0, 20),
)
def test_out_and_in_again(arch: Arch, pairs: Pairs, addr: int) -> None:
    """What copy_out_iovecs writes is the table, no byte more, and copy_in_iovecs reads it back."""
    expected = table(arch, pairs)
    memory = bytearray(b"\xee" * (addr + len(expected) + 5))
    io = BytesIO(memory, arch)
    assert copy_out_iovecs(io, addr, sequence(pairs)) == len(expected)
    assert memory == b"\xee" * addr + expected + b"\xee" * 5
    assert pairs_of(copy_in_iovecs(io, addr, len(pairs))) == pairs


@each_arch
@pytest.mark.parametrize("bits", [0, 1])
def test_what_is_valid(arch: Arch, bits: int) -> None:
    """Up to the end of user space, mapped or not; empty ranges are kept, up to and including that end."""
    top = arch.max_addr
    pairs = [(top - 5, 5), (top, 0), (0, 0), (top - 1, bits), (0, 100)]
    assert pairs_of(copy_in_iovecs(BytesIO(table(arch, pairs), arch), 0, 5)) == pairs


@each_arch
@pytest.mark.parametrize("name", ["past", "past by nothing", "far", "wraps", "negative", "negative at the end"])
@pytest.mark.parametrize("index", range(4))
def test_a_bad_entry(arch: Arch, name: str, index: int) -> None:
    """EINVAL for a length with its sign bit, EFAULT for leaving user space, with the entries before it.

    All lengths that can be read are looked at before any address, as in Linux.
    """
    top, sign, most = arch.max_addr, 1 << 8 * arch.pointer_size - 1, arch.addr_mask
    bad, code = {
        "past": ((top - 5, 6), errno.EFAULT),
        "past by nothing": ((top + 1, 0), errno.EFAULT),
        "far": ((most, 1), errno.EFAULT),
        "wraps": ((most - 3, sign - 1), errno.EFAULT),
        "negative": ((0, sign), errno.EINVAL),
        "negative at the end": ((most, most), errno.EINVAL),
    }[name]
    worse = (most, 1) if code == errno.EINVAL else (0, most)
    pairs: Pairs = [(0x1000, 8)] * index + [bad, worse]
    memory = table(arch, pairs)
    for size in (len(memory), len(table(arch, pairs[: index + 1]))):
        if size == len(memory):
            with pytest.raises(OSError, match="iovec length"):
                copy_in_iovecs(BytesIO(memory, arch), 0, index + 2)
            continue
        with pytest.raises(OSError) as caught:
            copy_in_iovecs(BytesIO(memory[:size], arch), 0, index + 2)
        assert caught.value.errno == code
        assert linux_result(caught.value) == -code
        if isinstance(caught.value, FaultError):
            assert (caught.value.reason, caught.value.address) == (FaultReason.OUTSIDE_RANGE, bad[0])
            assert pairs_of(caught.value.partial) == pairs[:index]


@each_arch
def test_a_table_that_cannot_be_read_to_its_end(arch: Arch) -> None:
    """For every k: k readable bytes give the entries that are whole in ``partial``, and the fault at byte k."""
    size = 2 * arch.pointer_size
    pairs = [(0x1000 * i, i) for i in range(3)]
    memory = table(arch, pairs)
    for k in range(len(memory)):
        io = PatchyIO({0x3000 - k: memory[:k]}, arch)
        with pytest.raises(FaultError) as caught:
            copy_in_iovecs(io, 0x3000 - k, 3)
        fault = caught.value
        assert (fault.address, fault.transferred, pairs_of(fault.partial)) == (0x3000, k, pairs[: k // size])
        assert linux_result(fault) == -errno.EFAULT


def test_a_long_table_that_faults_late() -> None:
    """Over many entries the count and ``partial`` hold as well."""
    pairs = [(0x1000 * i, 1) for i in range(5000)]
    memory = table(AMD64, pairs)
    assert pairs_of(copy_in_iovecs(BytesIO(memory), 0, 5000)) == pairs
    for whole in (1023, 1024, 1025, 4000):
        with pytest.raises(FaultError) as caught:
            copy_in_iovecs(BytesIO(memory[: 16 * whole + 3]), 0, 5000)
        fault = caught.value
        assert (fault.transferred, fault.address) == (16 * whole + 3,) * 2
        assert pairs_of(fault.partial) == pairs[:whole]


@each_arch
def test_a_table_that_leaves_the_address_space(arch: Arch) -> None:
    """A table that wraps, or ends where addresses do, is EFAULT before a byte of it is read."""
    size = 2 * arch.pointer_size
    top = arch.addr_mask + 1
    memory = bytearray(table(arch, [(1, 1)] * 4))
    io = WatchedIO(PatchyIO({top - 4 * size: memory}, arch))
    for addr, n in ((top - size, 1), (top - 4 * size, 4), (top - size, 2), (top, 1), (-size, 1), (0, top), (-1, 1)):
        with pytest.raises(FaultError) as caught:
            copy_in_iovecs(io, addr, n)
        assert (caught.value.transferred, pairs_of(caught.value.partial)) == (0, [])
    assert io.accesses == []
    assert pairs_of(copy_in_iovecs(io, top - 4 * size, 3)) == [(1, 1)] * 3


@each_arch
def test_writing_a_table_that_leaves_the_address_space(arch: Arch) -> None:
    """The same when a table is written: EFAULT before a byte of it is."""
    size = 2 * arch.pointer_size
    top = arch.addr_mask + 1
    memory = bytearray(table(arch, [(1, 1)] * 4))
    io = PatchyIO({top - 4 * size: memory}, arch)
    for addr, n in ((top - size, 1), (top - size, 2), (top, 1)):
        with pytest.raises(FaultError) as caught:
            copy_out_iovecs(io, addr, sequence([(2, 2)] * n))
        assert caught.value.transferred == 0
    assert memory == table(arch, [(1, 1)] * 4)


@each_arch
def test_a_table_that_cannot_be_written_to_its_end(arch: Arch) -> None:
    """For every k: k bytes are stored and in ``partial``; half a table is no result but EFAULT."""
    whole = table(arch, [(2, 3)] * 3)
    for k in range(len(whole)):
        memory = bytearray(k)
        with pytest.raises(FaultError) as caught:
            copy_out_iovecs(PatchyIO({0x3000 - k: memory}, arch), 0x3000 - k, sequence([(2, 3)] * 3))
        fault = caught.value
        assert (fault.address, fault.transferred, fault.partial) == (0x3000, k, whole[:k])
        assert memory == whole[:k]
        assert linux_result(fault) == -errno.EFAULT


@pytest.mark.parametrize("addr", [0, 5, 1 << 63, (1 << 64) - 1])
def test_no_entries(addr: int) -> None:
    """With n = 0 nothing is read, wherever the table would be; a negative n is the caller's ValueError."""
    io = WatchedIO(BytesIO(b""))
    assert copy_in_iovecs(io, addr, 0) == AddrRangeSeq()
    assert iovecs_io_sequence(io, addr, 0).num_bytes == 0
    assert copy_out_iovecs(io, addr, AddrRangeSeq()) == 0
    with pytest.raises(ValueError, match="n must not be negative"):
        copy_in_iovecs(io, addr, -1)
    assert io.accesses == []


def test_the_greatest_total() -> None:
    """Beyond MAX_RW_COUNT ranges become empty where they start, after they were checked as they were."""
    assert MAX_RW_COUNT == 0x7FFFF000
    half = 0x4000_0000
    pairs = [(0x1000, half), (1 << 40, half), (1 << 41, half), (5, 0), (6, 7)]
    ars = copy_in_iovecs(BytesIO(table(AMD64, pairs)), 0, 5)
    assert pairs_of(ars) == [(0x1000, half), (1 << 40, MAX_RW_COUNT - half), (1 << 41, 0), (5, 0), (6, 0)]
    assert ars.num_bytes == MAX_RW_COUNT
    exactly = [(0, MAX_RW_COUNT), (9, 0)]
    assert pairs_of(copy_in_iovecs(BytesIO(table(AMD64, exactly)), 0, 2)) == exactly
    for bad, code in (((AMD64.max_addr - 1, 2), errno.EFAULT), ((0, 1 << 63), errno.EINVAL)):
        with pytest.raises(OSError) as caught:
            copy_in_iovecs(BytesIO(table(AMD64, [*pairs, bad])), 0, 6)
        assert caught.value.errno == code


def test_the_greatest_number() -> None:
    """readv(2) takes 1024 ranges; more, or fewer than none, is EINVAL before anything is read."""
    assert UIO_MAXIOV == 1024
    io = WatchedIO(BytesIO(table(AMD64, [(0, 1)] * 1025)))
    assert iovecs_io_sequence(io, 0, 1024).num_bytes == 1024
    io.accesses.clear()
    for iovcnt in (1025, -1, 1 << 31, -(1 << 31)):
        with pytest.raises(OSError) as caught:
            iovecs_io_sequence(io, 0, iovcnt)
        assert linux_result(caught.value) == -errno.EINVAL
    assert io.accesses == []
    assert len(copy_in_iovecs(io, 0, 1025)) == 1025


@each_arch
def test_writing_a_table_into_a_hole(arch: Arch) -> None:
    """For every k: k bytes of room take k bytes of the table, and the fault is at byte k."""
    expected = table(arch, [(0x1000, 8), (0x2000, 0)])
    for k in range(len(expected)):
        memory = bytearray(b"\xee" * k)
        with pytest.raises(FaultError) as caught:
            copy_out_iovecs(
                PatchyIO({0x3000 - k: memory} if k else {}, arch), 0x3000 - k, sequence([(0x1000, 8), (0x2000, 0)])
            )
        assert (caught.value.transferred, caught.value.address) == (k, 0x3000)
        assert memory == expected[:k]


def test_ranges_that_do_not_fit_the_layout() -> None:
    """A range past a 32-bit machine's addresses is the caller's ValueError, and nothing is written."""
    memory = bytearray(64)
    for bad in ((1 << 32, 1), (0, 1 << 32)):
        with pytest.raises(ValueError, match="32-bit"):
            copy_out_iovecs(BytesIO(memory, I386), 0, sequence([(1, 1), bad]))
    assert memory == bytes(64)


def test_options_and_io_of_the_sequences() -> None:
    """The table is read, and the sequence made, with the options of the call."""
    io = WatchedIO(BytesIO(bytearray(table(AMD64, [(0, 2), (20, 3)]) + bytes(8))))
    seq = iovecs_io_sequence(io, 0, 2, ignore_permissions=True)
    assert (seq.io, seq.ignore_permissions, io.ignored) == (io, True, [True])
    assert seq.copy_out_from(BlockSeqReader(blocks(b"abcdefgh"))) == 5
    assert single_io_sequence(io, 0, 2, ignore_permissions=True).ignore_permissions is True
    assert copy_out_iovecs(io, 0, sequence([(1, 1)]), ignore_permissions=True) == 16
    assert io.ignored == [True] * 3


@each_arch
def test_single_io_sequence(arch: Arch) -> None:
    """read(2)'s buffer: checked, then cut to MAX_RW_COUNT; a negative length is EFAULT; empty ones are kept."""
    io = BytesIO(b"", arch)
    top = arch.max_addr
    for addr, length, expected in (
        (0x1000, 5, 5),
        (top - 5, 5, 5),
        (top, 0, 0),
        (0, 0, 0),
        (0, MAX_RW_COUNT + 1, MAX_RW_COUNT),
        (0, top, min(top, MAX_RW_COUNT)),
    ):
        if addr + length <= top:
            assert pairs_of(single_io_sequence(io, addr, length).addrs) == [(addr, expected)]
    size_t = arch.addr_mask  # -1 as an unsigned register has it
    bad = [(0, -1), (0, -(1 << 63)), (top - 5, 6), (top + 1, 0), (-1, 1), (1 << 70, 0), (top, 1 << 62), (0, 1 << 62)]
    for addr, length in (*bad, (0x1000, size_t), (0x1000, top)):
        with pytest.raises(FaultError) as caught:
            single_io_sequence(io, addr, length)
        assert (caught.value.address, caught.value.reason) == (addr, FaultReason.OUTSIDE_RANGE)


@each_arch
def test_check_io_range(arch: Arch) -> None:
    """Linux's access_ok: any range that ends at or before the end of user space, NULL too; nothing else."""
    top = arch.max_addr
    for addr, length in ((0, 0), (0, top), (top, 0), (top - 1, 1), (0x1000, 0x1000)):
        assert check_io_range(addr, length, arch) == AddrRange(addr, addr + length)
    for addr, length in ((0, top + 1), (top, 1), (top + 1, 0), (-1, 0), (-1, 5), (0, -1), (top, -top), (1 << 64, 0)):
        with pytest.raises(FaultError) as caught:
            check_io_range(addr, length, arch)
        assert (caught.value.address, caught.value.transferred, caught.value.access) == (addr, 0, NO_ACCESS)
        with pytest.raises(FaultError) as caught:
            check_io_range(addr, length, arch, WRITE)
        assert (caught.value.address, caught.value.access) == (addr, WRITE)


def test_tagged_addresses() -> None:
    """Where the machine ignores the top byte, so does the check; elsewhere a tag is just a bad address."""
    tagged = 0x5A << 56 | 0x1000
    assert check_io_range(tagged, 8, ARM64) == AddrRange(0x1000, 0x1008)
    for addr in (tagged, 1 << 63):
        with pytest.raises(FaultError):
            check_io_range(addr, 8, AMD64)
    with pytest.raises(FaultError):
        check_io_range(0x5A << 56 | 1 << 55, 8, ARM64)
