"""copy_between: process_vm_readv between two user memories, with exact counts whichever side faults."""

from __future__ import annotations

import ctypes
import os
from itertools import starmap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import READ, WRITE, AddrRange, AddrRangeSeq, mman
from patchy_io import PatchyIO
from safemem import Block
from usermem import AddressSpace, BytesIO, FaultError, FaultReason, copy_between, linux_result
from usermem.testing.faulty_memory import FaultyMemory
from watched_io import WatchedIO

KINDS = ["hole", "segv", "bus"]
TEXT = b"abcdefgh"
TOP = 1 << 64


def ranges(*pairs: tuple[int, int]) -> AddrRangeSeq:
    """A sequence of [start, end) ranges."""
    return AddrRangeSeq(AddrRange(start, end) for start, end in pairs)


class Side:
    """Eight bytes from address ``start`` on, of which only the first ``valid`` are there.

    hole: the IO knows it. segv, bus: only the host's memory does, when it is touched.
    """

    def __init__(self, kind: Any, start: int, valid: int, content: bytes) -> None:
        self._memory = FaultyMemory("segv" if kind == "hole" else kind)
        self._valid = valid
        block = self._memory.block(valid if kind == "hole" else 8, valid, content)
        self.io = PatchyIO({start: block})
        self.ars = ranges((start, start + 3), (start + 3, start + 3), (start + 3, start + 8))

    def content(self) -> bytes:
        """The bytes that are there."""
        return self._memory.before_edge(self._valid)


def run(dst: Side, src: Side) -> int | FaultError:
    """The count, or the fault."""
    try:
        return copy_between(dst.io, dst.ars, src.io, src.ars)
    except FaultError as exc:
        return exc


@pytest.mark.parametrize("dst_kind", KINDS)
@pytest.mark.parametrize("src_kind", KINDS)
def test_every_pair_of_faults(src_kind: str, dst_kind: str) -> None:
    """The source faults at j, the destination at k: min(j, k) bytes move and no more, and the first side's fault."""
    for j in range(9):
        for k in range(9):
            src = Side(src_kind, 0x1000, j, TEXT)
            dst = Side(dst_kind, 0x5000, k, b"\xee" * 8)
            result = run(dst, src)
            moved = min(j, k)
            assert dst.content() == TEXT[:moved] + b"\xee" * (k - moved)
            assert src.content() == TEXT[:j]
            if moved == 8:
                assert result == 8
                continue
            assert isinstance(result, FaultError)
            assert result.transferred == moved
            assert linux_result(result) == (moved or -14)
            if j < k:
                assert (result.address, result.access) == (0x1000 + j, READ)
            if k < j:
                assert (result.address, result.access) == (0x5000 + k, WRITE)
            again = copy_again(dst, src, moved)
            assert (again.transferred, again.address, again.access) == (0, result.address, result.access)


def copy_again(dst: Side, src: Side, moved: int) -> FaultError:
    """The fault of the rest."""
    with pytest.raises(FaultError) as caught:
        copy_between(dst.io, dst.ars.drop_first(moved), src.io, src.ars.drop_first(moved))
    return caught.value


@pytest.mark.parametrize("dst_kind", KINDS)
@pytest.mark.parametrize("src_kind", KINDS)
def test_both_fault_at_the_same_byte(src_kind: str, dst_kind: str) -> None:
    """The source's fault, but for a hole of the destination: that is known before the source's memory is touched."""
    for k in range(8):
        result = run(Side(dst_kind, 0x5000, k, b""), Side(src_kind, 0x1000, k, TEXT))
        assert isinstance(result, FaultError)
        assert result.transferred == k
        destinations = dst_kind == "hole" and src_kind != "hole"
        assert (result.access, result.address) == ((WRITE, 0x5000 + k) if destinations else (READ, 0x1000 + k))


def test_the_shorter_side_bounds_the_copy() -> None:
    """min of both lengths, without an error, and nothing behind it is looked at."""
    target = bytearray(b"\xee" * 8)
    src, dst = BytesIO(TEXT), BytesIO(target)
    assert copy_between(dst, ranges((0, 3), (100, 200)), src, ranges((5, 8))) == 3
    assert copy_between(dst, ranges((4, 5)), src, ranges((0, 1), (90, 99))) == 1
    assert target == b"fgh\xeea\xee\xee\xee"
    for empty in (ranges(), ranges((3, 3))):
        assert copy_between(dst, empty, src, ranges((0, 8))) == 0
        assert copy_between(dst, ranges((0, 8)), src, empty) == 0
    assert target == b"fgh\xeea\xee\xee\xee"


def test_one_access_a_side_with_its_own_options() -> None:
    """Each side is asked once, for all of its ranges, with the options given for it."""
    src, dst = WatchedIO(BytesIO(TEXT)), WatchedIO(BytesIO(bytearray(8)))
    assert copy_between(dst, ranges((0, 2), (4, 8)), src, ranges((1, 4), (4, 7)), src_ignore_permissions=True) == 6
    assert src.accesses == [("copy_in_to", -1, 6)]
    assert dst.accesses == [("copy_out_from", -1, 6)]
    assert (src.ignored, dst.ignored) == ([True], [False])


def test_ranges_outside_user_space() -> None:
    """A range that leaves user space, empty or not, is found before a byte moves, and is its side's fault."""
    with AddressSpace() as space:
        addr = space.mmap(0, 4096, mman.PROT_READ | mman.PROT_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        space.copy_out(addr, TEXT)
        good, bad = ranges((addr, addr + 4), (addr + 8, addr + 12)), 1 << 63
        for end in (bad, bad + 4):
            mixed = ranges((addr, addr + 4), (bad, end), (addr + 4, addr + 8))
            for dst_ars, src_ars, access in ((good, mixed, READ), (mixed, good, WRITE)):
                with pytest.raises(FaultError) as caught:
                    copy_between(space, dst_ars, space, src_ars)
                fault = caught.value
                assert (fault.transferred, fault.address, fault.access) == (0, bad, access)
                assert fault.reason is FaultReason.OUTSIDE_RANGE
        assert space.read_bytes(addr, 12) == TEXT + bytes(4)


def test_ill_formed_ranges() -> None:
    """A range that ends before it starts is longer than any other: the other side bounds it, and two are a fault."""
    target = bytearray(8)
    src, dst = BytesIO(TEXT), BytesIO(target)
    ill_formed = AddrRangeSeq.of(AddrRange(2, 0))
    assert copy_between(dst, ranges((0, 3)), src, ill_formed) == 3
    assert copy_between(dst, ill_formed, src, ranges((6, 8))) == 2
    assert target == b"cdgh\0\0\0\0"
    with pytest.raises(FaultError) as caught:
        copy_between(dst, ill_formed, src, ill_formed)
    assert (caught.value.transferred, caught.value.address) == (0, 2)
    assert target == b"cdgh\0\0\0\0"


def test_permissions_of_both_sides() -> None:
    """The source must be readable, the destination writable, unless its own options say otherwise."""
    with AddressSpace() as one, AddressSpace() as two:
        flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
        src = one.mmap(0, 8192, mman.PROT_READ | mman.PROT_WRITE, flags)
        dst = two.mmap(0, 8192, mman.PROT_READ | mman.PROT_WRITE, flags)
        one.copy_out(src + 4092, TEXT)
        one.mprotect(src + 4096, 4096, mman.PROT_NONE)
        two.mprotect(dst + 4096, 4096, mman.PROT_READ)
        ars = {one: ranges((src + 4092, src + 4100)), two: ranges((dst + 4090, dst + 4098))}
        for ignore_dst, ignore_src, moved, address in (
            (False, False, 4, src + 4096),
            (True, False, 4, src + 4096),
            (False, True, 6, dst + 4096),
        ):
            with pytest.raises(FaultError) as caught:
                copy_between(
                    two,
                    ars[two],
                    one,
                    ars[one],
                    dst_ignore_permissions=ignore_dst,
                    src_ignore_permissions=ignore_src,
                )
            fault = caught.value
            assert (fault.transferred, fault.address, fault.reason) == (moved, address, FaultReason.PERMISSION)
        assert copy_between(two, ars[two], one, ars[one], dst_ignore_permissions=True, src_ignore_permissions=True) == 8
        assert two.read_bytes(dst + 4090, 8) == TEXT


def test_overlapping_runs_are_moved() -> None:
    """Within one run of memory it is a memmove, either way."""
    for dst, src in ((2, 0), (0, 2)):
        memory = bytearray(b"0123456789")
        io = BytesIO(memory)
        assert copy_between(io, ranges((dst, dst + 8)), io, ranges((src, src + 8))) == 8
        assert memory[dst : dst + 8] == b"0123456789"[src : src + 8]


def test_between_pages_that_are_cached() -> None:
    """One range to one, whole or what is left of it: the bytes, and no more of them; and faults once rights change."""
    with AddressSpace() as one, AddressSpace() as two:
        flags, rights = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS, mman.PROT_READ | mman.PROT_WRITE
        src, dst = one.mmap(0, 4096, rights, flags), two.mmap(0, 4096, rights, flags)
        one.copy_out(src, TEXT)
        for start, n in ((0, 6), (2, 4), (1, 4)):
            two.copy_out(dst, bytes(16))
            one.read_bytes(src, 1)
            src_ars, dst_ars = ranges((src, src + 6)), ranges((dst + 4, dst + 10))
            if start:
                src_ars, dst_ars = (ars.drop_first(start).take_first(n) for ars in (src_ars, dst_ars))
            assert copy_between(two, dst_ars, one, src_ars) == n
            assert two.read_bytes(dst, 16) == (bytes(4 + start) + TEXT[start : start + n]).ljust(16, b"\0")
        assert copy_between(one, ranges((src + 2, src + 8)), one, ranges((src, src + 6))) == 6
        assert one.read_bytes(src, 8) == b"ababcdef"
        for space, page, access in ((two, dst, WRITE), (one, src, READ)):
            space.mprotect(page, 4096, mman.PROT_NONE)
            with pytest.raises(FaultError) as caught:
                copy_between(two, ranges((dst, dst + 8)), one, ranges((src, src + 8)))
            assert (caught.value.address, caught.value.access) == (page, access)


def test_at_the_top_of_the_address_space() -> None:
    """Both sides may end with the last address; one byte more is a fault past it."""
    target = bytearray(8)
    src, dst = PatchyIO({TOP - 8: TEXT}), PatchyIO({TOP - 8: target})
    assert copy_between(dst, ranges((TOP - 4, TOP)), src, ranges((TOP - 5, TOP - 1))) == 4
    assert target == b"\0\0\0\0defg"


PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda p: (p[0], p[0] + p[1])), max_size=5)


@given(src_pairs=PAIRS, dst_pairs=PAIRS, src_there=st.sets(st.integers(0, 39)), dst_there=st.sets(st.integers(0, 39)))
def test_against_a_byte_at_a_time(
    src_pairs: list[tuple[int, int]], dst_pairs: list[tuple[int, int]], src_there: set[int], dst_there: set[int]
) -> None:
    """Any ranges, any holes: as a loop that reads a byte and then writes it, up to the first that cannot."""
    sources = [i for start, end in src_pairs for i in range(start, end)]
    targets = [i for start, end in dst_pairs for i in range(start, end)]
    expected: tuple[int, int, object] | None = None
    model = dict.fromkeys(dst_there, 0)
    for done, (source, target) in enumerate(zip(sources, targets, strict=False)):
        if source not in src_there:
            expected = (done, source, READ)
            break
        if target not in dst_there:
            expected = (done, target, WRITE)
            break
        model[target] = 100 + source
    src = PatchyIO({i: bytes([100 + i]) for i in src_there})
    dst = PatchyIO({i: bytearray(1) for i in dst_there})
    got: tuple[int, int, object] | None = None
    try:
        assert copy_between(dst, ranges(*dst_pairs), src, ranges(*src_pairs)) == min(len(sources), len(targets))
    except FaultError as exc:
        got = (exc.transferred, exc.address, exc.access)
    assert got == expected
    assert {i: dst.read_bytes(i, 1)[0] for i in dst_there} == model


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _kernel(dst: list[tuple[int, int]], src: list[tuple[int, int]]) -> int:
    """What process_vm_readv(2) on this very process returns, or minus its errno."""
    call = ctypes.CDLL(None, use_errno=True).process_vm_readv
    call.restype = ctypes.c_ssize_t
    call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
    local, remote = (_Iovec * len(dst))(*starmap(_Iovec, dst)), (_Iovec * len(src))(*starmap(_Iovec, src))
    moved: int = call(os.getpid(), local, len(dst), remote, len(src), 0)
    return moved if moved >= 0 else -ctypes.get_errno()


SPLITS = st.lists(st.integers(0, 30), min_size=1, max_size=4)


@given(sizes=SPLITS, room=SPLITS, there=st.integers(0, 60))
def test_against_the_kernel(sizes: list[int], room: list[int], there: int) -> None:
    """Source memory that faults after some bytes: the count, and the bytes, of the kernel's own system call."""
    memory = FaultyMemory("segv")
    source = memory.block(200, there, bytes(range(1, 61)))
    ours, theirs = bytearray(200), bytearray(200)
    src_pairs: list[tuple[int, int]] = []
    dst_pairs: list[tuple[int, int]] = []
    for sizes_, pairs in ((sizes, src_pairs), (room, dst_pairs)):
        at = 0
        for size in sizes_:
            pairs.append((at, at + size))
            at += size
    result: int | FaultError
    try:
        result = copy_between(BytesIO(ours), ranges(*dst_pairs), PatchyIO({0: source}), ranges(*src_pairs))
    except FaultError as exc:
        result = exc
    base = Block(theirs).address
    kernel = _kernel(
        [(base + start, end - start) for start, end in dst_pairs],
        [(source.address + start, end - start) for start, end in src_pairs],
    )
    assert linux_result(result) == kernel
    assert ours == theirs
