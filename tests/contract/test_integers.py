"""Integers that are no plain ints: NumPy's, ctypes' and what has only ``__index__``, in every public call.

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
from hostarch import AMD64, ARM64, READ, READ_WRITE, WRITE, AccessType, Addr, AddrRange, AddrRangeSeq, mman
from hostarch.integers import check_count, check_int
from patchy_io import PatchyIO
from safemem import Block, BlockSeq, FDReader, FDWriter, FromIOReader, atomics
from safemem.datagram import DatagramSocket
from usermem import (
    IO,
    AddressSpace,
    BytesIO,
    FaultError,
    FaultPlan,
    FaultyIO,
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
    copy_struct_in,
    copy_struct_out,
    copy_uint8_in,
    copy_uint16_out,
    copy_uint32_in,
    hexdump,
    iovecs_io_sequence,
    linux_result,
    pread_fd,
    pwrite_fd,
    read_fd,
    readv_fd,
    single_io_sequence,
    write_fd,
    writev_fd,
    zero_out_vec,
)
from usermem.messages import recvmmsg_into_user, recvmsg_into_user, sendmmsg_from_user, sendmsg_from_user

Like = Callable[[int], Any]
SIZE = 2 * PAGE


class Index:
    """An integer by ``__index__`` alone."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


_NUMPY = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "longlong")
_CTYPES = ("c_uint8", "c_int32", "c_uint32", "c_int64", "c_uint64", "c_void_p")
KINDS = ["index", "address", *_CTYPES, *_NUMPY]


def kind_of(name: str) -> Like:
    """What makes an integer of a kind from an int that fits it, and leaves others as they are."""
    make: Any = {"index": Index, "address": Addr}.get(name) or getattr(ctypes, name, None)
    if make is None:
        make = getattr(pytest.importorskip("numpy"), name)

    def like(value: int) -> Any:
        try:
            made = make(value)
            return made if check_int(made, "made") == value else value
        except OverflowError:
            return value

    return like


@pytest.fixture(params=KINDS)
def like(request: pytest.FixtureRequest) -> Like:
    """A kind of integers."""
    return kind_of(request.param)


def plain(value: int) -> int:
    """No kind: the value itself."""
    return value


CONTENT = bytearray(pattern(SIZE))
CONTENT[64:80] = Struct("<QQ").pack(BASE + 8, 5)  # an iovec
CONTENT[96:128] = Struct("<QQQQ").pack(BASE + 140, BASE + 143, 0, 0)  # an argument vector
CONTENT[140:150] = b"ab\0cde\0 77"


def _space() -> AddressSpace:
    """A small guest address whose memory lies far into a large piece of the host's."""
    space = AddressSpace()
    far, window = 1 << 44, 1 << 26
    space.mmap(far, 100 * window, RW, FIXED)
    for i in range(100):
        space.copy_out(far + i * window, b"other memory of this guest")
    space.mmap(BASE, SIZE, RW, FIXED)
    space.copy_out(BASE, CONTENT)
    space.mprotect(BASE, SIZE, RW)  # forgets its pages
    return space


def _warm() -> AddressSpace:
    space = _space()
    space.copy_out(BASE, space.read_bytes(BASE, 4))
    copy_uint32_in(space, BASE)
    return space


MEMORIES: dict[str, Callable[[], ResolvedIO]] = {
    "a space": _space,
    "a space with cached pages": _warm,
    "bytes": lambda: BytesIO(bytearray(BASE) + CONTENT),
    "pieces": lambda: PatchyIO({BASE: CONTENT[:PAGE], BASE + PAGE: CONTENT[PAGE:]}),
}


def _filled(n: int, fill: Callable[[bytearray], object]) -> object:
    buffer = bytearray(n)
    return fill(buffer), bytes(buffer)


def _with_file(use: Callable[[int], object]) -> object:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"0123456789")
        file.seek(0)
        return use(file.fileno()), os.pread(file.fileno(), 99, 0)


def _range(i: Like, addr: int, n: int) -> AddrRange:
    return AddrRange(i(addr), i(addr + n))


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
    "copy_struct_in": lambda m, i: copy_struct_in(m, i(BASE + 1), Struct("<HI")),
    "copy_struct_out": lambda m, i: copy_struct_out(m, i(BASE + 1), Struct("<HI"), 3, 4),
    "copy_string_in": lambda m, i: copy_string_in(m, i(BASE + 140), i(100)),
    "int32 strings": lambda m, i: copy_int32_strings_in_vec(m, AddrRangeSeq([_range(i, BASE + 147, 3)]), i(1)),
    "copy_in_vec": lambda m, i: _filled(9, lambda d: copy_in_vec(m, AddrRangeSeq([_range(i, BASE + 3, 9)]), d)),
    "copy_in_vec, pairs": lambda m, i: _filled(
        9, lambda dst: copy_in_vec(m, AddrRangeSeq.from_pairs([i(BASE + 3), i(4), i(BASE + 30), i(5)]), dst)
    ),
    "copy_out_vec": lambda m, i: copy_out_vec(m, AddrRangeSeq.of(_range(i, BASE + 3, 9)), b"new"),
    "zero_out_vec": lambda m, i: zero_out_vec(m, AddrRangeSeq.of(_range(i, BASE + 3, 90)), i(8)),
    "copy_out_from": lambda m, i: m.copy_out_from(AddrRangeSeq.of(_range(i, BASE, 9)), FromIOReader(io.BytesIO(b"ab"))),
    "copy_in_iovecs": lambda m, i: copy_in_iovecs(m, i(BASE + 64), i(1)),
    "copy_out_iovecs": lambda m, i: copy_out_iovecs(m, i(BASE + 64), AddrRangeSeq([_range(i, BASE, 3)])),
    "copy_in_vector": lambda m, i: copy_in_vector(m, i(BASE + 96), i(100), i(100)),
    "single_io_sequence": lambda m, i: _filled(9, single_io_sequence(m, i(BASE + 3), i(9)).copy_in),
    "iovecs_io_sequence": lambda m, i: _filled(9, iovecs_io_sequence(m, i(BASE + 64), i(1)).copy_in),
    "IOSequence": lambda m, i: _filled(
        9, IOSequence(m, AddrRangeSeq([_range(i, BASE, 9)])).drop_first(i(2)).take_first(i(3)).copy_in
    ),
    "IOSequence.zero_out": lambda m, i: IOSequence(m, AddrRangeSeq([_range(i, BASE, 9)])).zero_out(i(3)),
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
    "FDReader": lambda m, i: _with_file(
        lambda fd: m.copy_out_from(AddrRangeSeq([_range(i, BASE, 5)]), FDReader(i(fd), i(2)))
    ),
    "FDWriter": lambda m, i: _with_file(
        lambda fd: m.copy_in_to(AddrRangeSeq([_range(i, BASE, 5)]), FDWriter(i(fd), i(2)))
    ),
    "a reader's count": lambda m, i: m.copy_out_from(AddrRangeSeq([_range(i, BASE, 5)]), _Says(i(0))),
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


def _checked(result: object) -> object:
    """The result, in which every number is an int."""
    if isinstance(result, tuple | list):
        return [_checked(part) for part in result]
    assert result is None or isinstance(result, int | bytes | str | AddrRange | AddrRangeSeq | Block), type(result)
    return result


@pytest.mark.parametrize("make", [_space, _warm, MEMORIES["bytes"]])
def test_what_a_resolver_is_asked(make: Callable[[], ResolvedIO], like: Like) -> None:
    """The calls of a resolver, made from outside. (One of the user's own is given ints by our functions.)"""
    memory = make()
    (block,), fault = memory.resolve(like(BASE + 3), like(40), READ)
    assert (block.tobytes(), fault) == (bytes(CONTENT[3:43]), None)
    assert memory.range_fault(like(BASE), like(40), READ) is None


@pytest.mark.parametrize("memory", MEMORIES)
def test_accesses(memory: str, like: Like) -> None:
    """Every function over an IO, and the IO's own."""
    for name, access in ACCESSES.items():
        results = []
        for kind in (plain, like):
            io_ = MEMORIES[memory]()
            result = _checked(access(io_, kind))
            results.append((result, io_.read_bytes(BASE, SIZE)))
        assert results[0] == results[1], name


MAPPING_CALLS: dict[str, Callable[[AddressSpace, Like, int], object]] = {
    "mmap": lambda s, i, fd: s.mmap(i(0), i(PAGE), i(1), i(ANON)),
    "mmap at a hint": lambda s, i, fd: s.mmap(i(BASE), i(PAGE + 1), i(1), i(ANON)),
    "mmap populated": lambda s, i, fd: s.mmap(i(0), i(PAGE), i(RW), i(ANON | mman.MAP_POPULATE)),
    "mmap shared": lambda s, i, fd: s.mmap(
        i(0x7FF0_0000), i(PAGE), i(RW), i(mman.MAP_SHARED | mman.MAP_ANONYMOUS | mman.MAP_FIXED)
    ),
    "mmap of a file": lambda s, i, fd: s.mmap(i(0), i(PAGE), i(1), i(mman.MAP_PRIVATE), i(fd), i(PAGE)),
    "map_object": lambda s, i, fd: s.map_object(
        i(0), i(PAGE), i(1), i(mman.MAP_SHARED), SharedMemory(i(SIZE)), i(PAGE), i(7)
    ),
    "map_object of nothing": lambda s, i, fd: s.map_object(i(0), i(PAGE), i(1), i(mman.MAP_SHARED), None),
    "attach": lambda s, i, fd: s.attach(i(0x7FF0_0000), bytearray(PAGE), i(1), i(mman.MAP_FIXED)),
    "munmap": lambda s, i, fd: s.munmap(i(BASE), i(1)),
    "mprotect": lambda s, i, fd: s.mprotect(i(BASE + PAGE), i(1), i(0)),
    "mremap": lambda s, i, fd: s.mremap(i(BASE), i(SIZE), i(4 * PAGE), i(mman.MREMAP_MAYMOVE)),
    "mremap to a place": lambda s, i, fd: s.mremap(
        i(BASE), i(SIZE), i(SIZE), i(mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED), i(0x7FF0_0000)
    ),
    "madvise": lambda s, i, fd: s.madvise(i(BASE), i(PAGE), i(mman.MADV_DONTNEED)),
    "madvise populating": lambda s, i, fd: s.madvise(i(BASE), i(PAGE), i(mman.MADV_POPULATE_WRITE)),
    "msync": lambda s, i, fd: s.msync(i(BASE), i(PAGE), i(mman.MS_SYNC)),
    "mincore": lambda s, i, fd: len(s.mincore(i(BASE), i(SIZE))),
    "brk": lambda s, i, fd: (s.set_brk(i(0x7000_0000)), s.brk(i(0x7000_0001)), s.brk(i(0))),
    "set_name": lambda s, i, fd: s.set_name(i(BASE), i(PAGE), "name"),
    "host_runs": lambda s, i, fd: [(run.start, run.length) for run in s.host_runs(i(BASE), i(BASE + SIZE))],
    "blocks": lambda s, i, fd: s.blocks(AddrRangeSeq([_range(i, BASE, 9)]), WRITE).tobytes(),
}


def test_mapping_calls(like: Like) -> None:
    """Every call that changes the map or looks at it; the map is the same after it, and its numbers are ints."""
    with tempfile.TemporaryFile(buffering=0) as file:
        file.truncate(SIZE)
        for name, call in MAPPING_CALLS.items():
            results = []
            for kind in (plain, like):
                with AddressSpace() as space:
                    space.mmap(BASE, SIZE, RW, FIXED)
                    space.copy_out(BASE, CONTENT)
                    result = _checked(call(space, kind, file.fileno()))
                    maps = [(vma.start, vma.end, vma.prot, vma.offset, vma.name) for vma in space.mappings()]
                    results.append((result, _checked(maps)))
                    space._check()
            assert results[0] == results[1], name


VALUES: dict[str, Callable[[Like], object]] = {
    "linux_result": lambda i: linux_result(i(5)),
    "check_io_range": lambda i: check_io_range(i(BASE), i(PAGE)),
    "Addr": lambda i: [Addr(i(5)), Addr(i(5)).add_length(i(3)), Addr(5).wrapping_add(i(3)), Addr(5).to_range(i(3))],
    "AddrRange": lambda i: [
        _range(i, BASE, 3).length,
        _range(i, BASE, 3).contains(i(BASE + 1)),
        _range(i, BASE, 3).can_split_at(i(BASE + 1)),
        AddrRange(i(5), i(3)).length,
        str(_range(i, BASE, 3)),
    ],
    "AddrRangeSeq": lambda i: AddrRangeSeq([_range(i, 10, 90), _range(i, 110, 9)]).drop_first(i(92)).take_first(i(3)),
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
        assert _checked(call(like)) == _checked(call(plain)), name


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
    for space in (_space(), _warm()):
        n = getattr(np, name)(np.iinfo(name).max)
        calls: list[Callable[[], object]] = [
            lambda n=n, space=space: copy_string_in(space, BASE + 200, n),
            lambda n=n, space=space: single_io_sequence(space, BASE, n).copy_in_to(_Takes()),
            lambda n=n, space=space: space.zero_out(BASE, n),
        ]
        for call in calls:
            with pytest.raises(FaultError) as caught:
                call()
            assert caught.value.address in (BASE, BASE + SIZE)
        assert space.cached_view(BASE, n, False) is None
        assert space.read_bytes(1 << 44, 26) == b"other memory of this guest"


class _Takes:
    def write_from_blocks(self, srcs: BlockSeq) -> int:
        return srcs.num_bytes


@pytest.mark.parametrize("fd", [-1, 1 << 31, 0xFFFF_FFFF, 1 << 63, (1 << 64) - 1])
def test_descriptors_as_registers_have_them(fd: int, like: Like) -> None:
    """A raw register of 32 or 64 bits that is no descriptor is EBADF in every call that takes one."""
    space = _warm()
    before = space.maps()
    calls: list[Callable[[], object]] = [
        lambda: space.mmap(0, PAGE, 1, mman.MAP_PRIVATE, like(fd), 0),
        lambda: read_fd(space, like(fd), BASE, 1),
        lambda: write_fd(space, like(fd), BASE, 0),
        lambda: pread_fd(space, like(fd), BASE, 1, 0),
        lambda: pwrite_fd(space, like(fd), BASE, 1, 0),
        lambda: readv_fd(space, like(fd), BASE + 64, 1),
        lambda: writev_fd(space, like(fd), BASE + 64, 1),
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
    space = _warm()
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
