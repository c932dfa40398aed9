"""Integers that are no plain ints: NumPy's, ctypes' and what has only ``__index__``, in every public access.

A fixed-width integer wraps or raises OverflowError in arithmetic, so a call converts it first. The calls are made once
with plain ints and once with each kind, on pages that are cached and that are not: result and memory are the same.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import socket
import tempfile
from collections.abc import Callable
from struct import Struct
from typing import Any

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW, pattern
from guest_messages import Guest
from hostarch import AMD64, ARM64, READ, READ_WRITE, AccessType, Addr, AddrRange, AddrRangeSeq, mman
from hostarch.integers import check_count
from integer_kinds import KINDS, Like, checked, kind_of, plain, range_of
from patchy_io import PatchyIO
from safemem import Block, BlockSeq, FDReader, FDWriter, FromIOReader, atomics
from safemem.datagram import DatagramSocket
from usermem import (
    IO,
    AddressSpace,
    BytesIO,
    FaultError,
    IOReadWriter,
    IOSequence,
    ResolvedIO,
    SharedMemory,
    bytes_io_sequence,
    check_io_range,
    copy_in_iovecs,
    copy_in_vec,
    copy_in_vector,
    copy_int32_strings_in_vec,
    copy_int64_out,
    copy_out_iovecs,
    copy_out_vec,
    copy_pointer_in,
    copy_string_in,
    copy_struct_from_user,
    copy_struct_in,
    copy_struct_out,
    copy_uint8_in,
    copy_uint16_out,
    copy_uint32_in,
    hexdump,
    iovecs_io_sequence,
    linux_result,
    pread_fd,
    preadv_fd,
    pwrite_fd,
    pwritev_fd,
    read_fd,
    readv_fd,
    single_io_sequence,
    write_fd,
    writev_fd,
    zero_out_vec,
)
from usermem.messages import recvmmsg_into_user, recvmsg_into_user, sendmmsg_from_user, sendmsg_from_user
from usermem.observe import FaultPlan, FaultyIO

SIZE = 2 * PAGE

CONTENT = bytearray(pattern(SIZE))
CONTENT[64:80] = Struct("<QQ").pack(BASE + 8, 5)  # an iovec
CONTENT[96:128] = Struct("<QQQQ").pack(BASE + 140, BASE + 143, 0, 0)  # an argument vector
CONTENT[140:150] = b"ab\0cde\0 77"


_FAR = 1 << 44


def _space() -> Any:
    """A small guest address whose memory lies far into a large piece of the host's."""
    space, window = AddressSpace(), 1 << 26
    space.mmap(_FAR, 64 * window, RW, FIXED)
    for i in range(64):
        space.copy_out(_FAR + i * window, b"other memory of this guest")
    space.mmap(BASE, SIZE, RW, FIXED)
    return _filled_cold(space)


def _filled_cold(memory: Any) -> Any:
    """The memory with CONTENT in it, and no page cached."""
    memory.copy_out(BASE, CONTENT)
    if isinstance(memory, AddressSpace):
        memory.mprotect(BASE, SIZE, RW)
    return memory


def _filled_warm(memory: Any) -> Any:
    memory.copy_out(BASE, CONTENT)
    memory.copy_out(BASE, memory.read_bytes(BASE, 4))
    copy_uint32_in(memory, BASE)
    return memory


MEMORIES: dict[str, Callable[[], ResolvedIO]] = {
    "a space": _space,
    "bytes": lambda: BytesIO(bytearray(BASE) + CONTENT),
    "pieces": lambda: PatchyIO({BASE: CONTENT[:PAGE], BASE + PAGE: CONTENT[PAGE:]}),
}


@pytest.fixture(params=KINDS)
def like(request: pytest.FixtureRequest) -> Like:
    """A kind of integers."""
    return kind_of(request.param)


def _filled(n: int, fill: Callable[[bytearray], object]) -> object:
    buffer = bytearray(n)
    return fill(buffer), bytes(buffer)


def _with_file(use: Callable[[int], object]) -> object:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"0123456789")
        file.seek(0)
        return use(file.fileno()), os.pread(file.fileno(), 99, 0)


ACCESSES: dict[str, Callable[[Any, Like], object]] = {
    "read_bytes": lambda m, i: m.read_bytes(i(BASE + 3), i(9)),
    "read_bytes ignoring": lambda m, i: m.read_bytes(i(BASE + 3), i(9), ignore_permissions=True),
    "copy_in": lambda m, i: _filled(9, lambda dst: m.copy_in(i(BASE + 3), dst)),
    "copy_in of much": lambda m, i: _filled(4000, lambda dst: m.copy_in(i(BASE + 3), memoryview(dst))),
    "copy_out": lambda m, i: m.copy_out(i(BASE + 3), b"new"),
    "write_bytes": lambda m, i: m.write_bytes(i(BASE + 3), bytearray(b"new")),
    "zero_out": lambda m, i: m.zero_out(i(BASE + 3), i(100)),
    "swap_uint32": lambda m, i: m.swap_uint32(i(BASE + 4), i(99)),
    "compare_and_swap_uint32": lambda m, i: m.compare_and_swap_uint32(i(BASE + 4), i(1), i(99)),
    "load_uint32": lambda m, i: m.load_uint32(i(BASE + 4)),
    "swap_uint64": lambda m, i: m.swap_uint64(i(BASE + 8), i(99)),
    "load_uint64": lambda m, i: m.load_uint64(i(BASE + 8)),
    "copy_uint8_in": lambda m, i: copy_uint8_in(m, i(BASE + 1)),
    "copy_uint32_in": lambda m, i: copy_uint32_in(m, i(BASE + 4)),
    "copy_pointer_in": lambda m, i: copy_pointer_in(m, i(BASE + 1)),
    "copy_uint16_out": lambda m, i: copy_uint16_out(m, i(BASE + 1), i(7)),
    "copy_int64_out": lambda m, i: copy_int64_out(m, i(BASE + 1), i(7)),
    "copy_struct_from_user": lambda m, i: copy_struct_from_user(m, i(BASE + 1), i(5), Struct("<HI")),
    "copy_struct_in": lambda m, i: copy_struct_in(m, i(BASE + 1), Struct("<HI")),
    "copy_struct_out": lambda m, i: copy_struct_out(m, i(BASE + 1), Struct("<HI"), 3, 4),
    "copy_string_in": lambda m, i: copy_string_in(m, i(BASE + 140), i(100)),
    "int32 strings": lambda m, i: copy_int32_strings_in_vec(m, AddrRangeSeq([range_of(i, BASE + 147, 3)]), i(1)),
    "copy_in_vec": lambda m, i: _filled(9, lambda d: copy_in_vec(m, AddrRangeSeq([range_of(i, BASE + 3, 9)]), d)),
    "copy_in_vec, pairs": lambda m, i: _filled(
        9, lambda dst: copy_in_vec(m, AddrRangeSeq.from_pairs([i(BASE + 3), i(4), i(BASE + 30), i(5)]), dst)
    ),
    "copy_out_vec": lambda m, i: copy_out_vec(m, AddrRangeSeq.of(range_of(i, BASE + 3, 9)), b"new"),
    "zero_out_vec": lambda m, i: zero_out_vec(m, AddrRangeSeq.of(range_of(i, BASE + 3, 90)), i(8)),
    "copy_out_from": lambda m, i: m.copy_out_from(
        AddrRangeSeq.of(range_of(i, BASE, 9)), FromIOReader(io.BytesIO(b"ab"))
    ),
    "copy_in_iovecs": lambda m, i: copy_in_iovecs(m, i(BASE + 64), i(1)),
    "copy_out_iovecs": lambda m, i: copy_out_iovecs(m, i(BASE + 64), AddrRangeSeq([range_of(i, BASE, 3)])),
    "copy_in_vector": lambda m, i: copy_in_vector(m, i(BASE + 96), i(100), i(100)),
    "single_io_sequence": lambda m, i: _filled(9, single_io_sequence(m, i(BASE + 3), i(9)).copy_in),
    "iovecs_io_sequence": lambda m, i: _filled(9, iovecs_io_sequence(m, i(BASE + 64), i(1)).copy_in),
    "IOSequence": lambda m, i: _filled(
        9, IOSequence(m, AddrRangeSeq([range_of(i, BASE, 9)])).drop_first(i(2)).take_first(i(3)).copy_in
    ),
    "IOSequence.zero_out": lambda m, i: IOSequence(m, AddrRangeSeq([range_of(i, BASE, 9)])).zero_out(i(3)),
    "IOReadWriter": lambda m, i: (lambda f: (f.read(5), f.write(b"new"), f.addr))(IOReadWriter(m, i(BASE + 3))),
    "hexdump": lambda m, i: hexdump(m, i(BASE + 3), i(70)),
    "FaultyIO": lambda m, i: _faulted(FaultyIO(m, FaultPlan((None, i(3)))), i),
    "read_fd": lambda m, i: _with_file(lambda fd: read_fd(m, i(fd), i(BASE + 3), i(5))),
    "write_fd": lambda m, i: _with_file(lambda fd: write_fd(m, i(fd), i(BASE + 3), i(5))),
    "write_fd of nothing": lambda m, i: _with_file(lambda fd: write_fd(m, i(fd), i(BASE + 3), i(0))),
    "pread_fd": lambda m, i: _with_file(lambda fd: pread_fd(m, i(fd), i(BASE + 3), i(5), i(2))),
    "pwrite_fd": lambda m, i: _with_file(lambda fd: pwrite_fd(m, i(fd), i(BASE + 3), i(5), i(2))),
    "readv_fd": lambda m, i: _with_file(lambda fd: readv_fd(m, i(fd), i(BASE + 64), i(1))),
    "writev_fd": lambda m, i: _with_file(lambda fd: writev_fd(m, i(fd), i(BASE + 64), i(1))),
    "preadv_fd": lambda m, i: _with_file(lambda fd: preadv_fd(m, i(fd), i(BASE + 64), i(1), i(2))),
    "pwritev_fd": lambda m, i: _with_file(lambda fd: pwritev_fd(m, i(fd), i(BASE + 64), i(1), i(2))),
    "FDReader": lambda m, i: _with_file(
        lambda fd: m.copy_out_from(AddrRangeSeq([range_of(i, BASE, 5)]), FDReader(i(fd), i(2)))
    ),
    "FDWriter": lambda m, i: _with_file(
        lambda fd: m.copy_in_to(AddrRangeSeq([range_of(i, BASE, 5)]), FDWriter(i(fd), i(2)))
    ),
    "a reader's count": lambda m, i: m.copy_out_from(AddrRangeSeq([range_of(i, BASE, 5)]), _Says(i(0))),
}


class _Says:
    """A Reader that returns a count of a kind."""

    def __init__(self, count: int) -> None:
        self.count = count

    def read_to_blocks(self, dsts: BlockSeq) -> int:
        return self.count


def _faulted(memory: IO, i: Like) -> object:
    done = memory.copy_out(i(BASE), b"new"), memory.load_uint32
    with pytest.raises(FaultError) as caught:
        memory.zero_out(i(BASE + 8), i(9))
    return done[0], caught.value.address, caught.value.transferred


@pytest.mark.parametrize("memory", ["a space", "bytes"])
def test_what_a_resolver_is_asked(memory: str, like: Like) -> None:
    """The calls of a resolver, made from outside. (One of the user's own is given ints by our functions.)"""
    made = MEMORIES[memory]()
    for _ in range(2):
        (block,), fault = made.resolve(like(BASE + 3), like(40), READ)
        assert (block.tobytes(), fault) == (bytes(CONTENT[3:43]), None)
        assert made.range_fault(like(BASE), like(40), READ) is None


@pytest.mark.parametrize("memory", MEMORIES)
def test_accesses(memory: str, like: Like) -> None:
    """Every function over an IO, and the IO's own."""
    made = MEMORIES[memory]()
    for name, access in ACCESSES.items():
        for fill in (_filled_cold, _filled_warm):
            results = []
            for kind in (plain, like):
                result = checked(access(fill(made), kind))
                results.append((result, made.read_bytes(BASE, SIZE)))
            assert results[0] == results[1], name
    if memory == "a space":
        assert made.read_bytes(_FAR, 26) == b"other memory of this guest"


VALUES: dict[str, Callable[[Like], object]] = {
    "linux_result": lambda i: linux_result(i(5)),
    "check_io_range": lambda i: check_io_range(i(BASE), i(PAGE)),
    "Addr": lambda i: [Addr(i(5)), Addr(i(5)).add_length(i(3)), Addr(5).wrapping_add(i(3)), Addr(5).to_range(i(3))],
    "AddrRange": lambda i: [
        range_of(i, BASE, 3).length,
        range_of(i, BASE, 3).contains(i(BASE + 1)),
        range_of(i, BASE, 3).can_split_at(i(BASE + 1)),
        AddrRange(i(5), i(3)).length,
        str(range_of(i, BASE, 3)),
    ],
    "AddrRangeSeq": lambda i: (
        AddrRangeSeq([range_of(i, 10, 90), range_of(i, 110, 9)]).drop_first(i(92)).take_first(i(3))
    ),
    "AccessType": lambda i: [AccessType(i(3)), READ.union(i(2)), READ_WRITE.intersect(i(1)), READ.superset_of(i(3))],
    "Arch": lambda i: [
        AMD64.page_round_up(i(77)),
        AMD64.page_round_down(i(77)),
        AMD64.checked_page_round_up(i(77)),
        AMD64.is_page_aligned(i(77)),
        ARM64.untagged(i(77)),
    ],
    "Block": lambda i: Block(b"0123456789").drop_first(i(2)).take_first(i(3)).tobytes(),
    "Block.from_address": lambda i: len(Block.from_address(i(100), i(5)).drop_first(i(1))),
    "BlockSeq": lambda i: BlockSeq([Block(b"0123"), Block(b"4567")]).drop_first(i(2)).take_first(i(3)).tobytes(),
    "atomics": lambda i: [atomics.swap_uint32(Block(bytearray(4)), i(3)), atomics.fetch_add(4, _word(), i(3))],
    "SharedMemory": lambda i: [SharedMemory(i(100)).size(), SharedMemory(100).read_at(i(2), memoryview(bytearray(3)))],
    "bytes_io_sequence": lambda i: _filled(3, bytes_io_sequence(b"0123456789").drop_first(i(4)).copy_in),
    "check_count": lambda i: check_count(i(5), "n"),
}


def _word() -> Block:
    return Block(memoryview(bytearray(8))[:4])


def test_values(like: Like) -> None:
    """What is no call on memory."""
    for name, call in VALUES.items():
        assert checked(call(like)) == checked(call(plain)), name


def test_messages(like: Like) -> None:
    """The addresses, flags and counts of the four calls."""
    for kind in (plain, like):
        guest = Guest()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with DatagramSocket(ours) as sender, DatagramSocket(theirs) as receiver:
            header = guest.put([(0x48000, 5)])
            dontwait = int(socket.MSG_DONTWAIT)
            assert sendmsg_from_user(guest.space, sender, kind(header), kind(dontwait)) == 5
            assert sendmmsg_from_user(guest.space, sender, kind(header), kind(1), kind(dontwait)) == 1
            assert recvmsg_into_user(guest.space, receiver, kind(header), kind(dontwait)) == 5
            guest.put_number(0x49000, 0, 8)
            guest.put_number(0x49008, 0, 8)
            arguments = kind(header), kind(1), kind(dontwait), kind(0x49000)
            assert recvmmsg_into_user(guest.space, receiver, *arguments) == 1


@pytest.mark.parametrize("name", ["int32", "uint32", "int64", "uint64"])
def test_counts_that_wrap(name: str) -> None:
    """A length so large that adding it to an address wraps is the guest's: a fault, and no other memory."""
    np = pytest.importorskip("numpy")
    n = getattr(np, name)(np.iinfo(name).max)
    calls: list[Callable[[AddressSpace], object]] = [
        lambda space: copy_string_in(space, BASE + 200, n),
        lambda space: single_io_sequence(space, BASE, n).copy_in_to(_Takes()),
        lambda space: space.zero_out(BASE, n),
    ]
    space = _space()
    for fill in (_filled_cold, _filled_warm):
        for call in calls:
            with pytest.raises(FaultError) as caught:
                call(fill(space))
            assert caught.value.address in (BASE, BASE + SIZE)
        assert space.cached_view(BASE, n, False) is None
        assert space.read_bytes(_FAR, 26) == b"other memory of this guest"


class _Takes:
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        return srcs.num_bytes


@pytest.mark.parametrize("fd", [-1, 1 << 31, 0xFFFF_FFFF, 1 << 63, (1 << 64) - 1])
def test_descriptors_as_registers_have_them(fd: int, like: Like) -> None:
    """A raw register of 32 or 64 bits that is no descriptor is EBADF in every call that takes one."""
    space = _filled_warm(_space())
    before = space.maps()
    calls: list[Callable[[], object]] = [
        lambda: space.mmap(0, PAGE, 1, mman.MAP_PRIVATE, like(fd), 0),
        lambda: read_fd(space, like(fd), BASE, 1),
        lambda: write_fd(space, like(fd), BASE, 0),
        lambda: pread_fd(space, like(fd), BASE, 1, 0),
        lambda: pwrite_fd(space, like(fd), BASE, 1, 0),
        lambda: readv_fd(space, like(fd), BASE + 64, 1),
        lambda: writev_fd(space, like(fd), BASE + 64, 1),
        lambda: preadv_fd(space, like(fd), BASE + 64, 1, 0),
        lambda: pwritev_fd(space, like(fd), BASE + 64, 1, 0),
        lambda: FDReader(like(fd)).read_to_blocks(BlockSeq([Block(bytearray(1))])),
        lambda: FDWriter(like(fd)).write_from_blocks(BlockSeq([Block(b"1")])),
    ]
    for call in calls:
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF
    assert space.maps() == before


@pytest.mark.parametrize("value", [None, "1", 1.5, b"1", ctypes.c_double(1), ctypes.c_char(b"1"), [1]])
def test_what_is_no_integer(value: Any) -> None:
    """A TypeError that names the argument, in quick ways too."""
    space = _filled_warm(_space())
    calls: dict[str, Callable[[], object]] = {
        "addr": lambda: space.read_bytes(value, 1),
        "n": lambda: space.read_bytes(BASE, value),
        "maxlen": lambda: copy_string_in(space, BASE, value),
        "start": lambda: AddrRange(value, 5),
        "ranges": lambda: AddrRangeSeq.from_pairs([5, value]),
        "outcome": lambda: linux_result(value),
        "fd": lambda: read_fd(space, value, BASE, 1),
        "length": lambda: space.mmap(0, value, 1, ANON),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=name):
            call()
