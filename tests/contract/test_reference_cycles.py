"""A call that fails leaves nothing behind that only the garbage collector can end.

Error, traceback, frame and a local with the error would be a cycle: until it is collected the caller's buffer stays
exported, so a bytearray cannot be resized, and with the collector off a simulator grows at each -EFAULT.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader
from io import BytesIO as BytesFile
from pathlib import Path
from struct import Struct

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW, one, pieces, sink, source
from guest_messages import BASE as GUEST
from guest_messages import DATA, HOLE, Guest
from hostarch import AddrRange, AddrRangeSeq, mman
from patchy_io import PatchyIO
from safemem import (
    Block,
    BlockSeq,
    BlockSeqReader,
    BlockSeqWriter,
    FDReader,
    FDWriter,
    FromIOReader,
    FromIOWriter,
    FromVecReaderFunc,
    FromVecWriterFunc,
    ToIOReader,
    ToIOWriter,
)
from safemem.datagram import datagram_pair
from usermem import (
    AddressSpace,
    BytesIO,
    IOReadWriter,
    IOSequence,
    ResolvedIO,
    copy_between,
    copy_in_iovecs,
    copy_in_vec,
    copy_in_vector,
    copy_int32_strings_in_vec,
    copy_out_iovecs,
    copy_out_vec,
    copy_string_in,
    copy_struct_from_user,
    copy_struct_in,
    copy_struct_out,
    copy_uint16_in,
    copy_uint32_in,
    copy_uint64_in,
    copy_uint64_out,
    pread_fd,
    read_fd,
    readv_fd,
    write_fd,
    writev_fd,
    zero_out_vec,
)
from usermem.messages import recvmsg_into_user, sendmsg_from_user
from usermem.observe import FaultPlan, FaultyIO

TIMES = 20


def garbage(call: Callable[[], object], fails: bool = True) -> float:
    """How many objects one call, which fails, leaves in cycles."""
    if fails:
        with pytest.raises((OSError, ValueError)):
            call()
    gc.collect()
    gc.disable()
    try:
        for _ in range(TIMES):
            with suppress(OSError, ValueError):
                call()
        return gc.collect() / TIMES
    finally:
        gc.enable()


def all_garbage(calls: dict[str, Callable[[], object]], fails: bool = True) -> dict[str, float]:
    """The calls that leave some, and how much."""
    left = {name: garbage(call, fails) for name, call in calls.items()}
    return {name: count for name, count in left.items() if count}


def reads_and_writes(io: ResolvedIO, at: int) -> dict[str, Callable[[], object]]:
    """Calls at an address with 6 accessible bytes behind it, then a hole."""
    few, many = one(at, 64), pieces(at, 64)
    other = BytesIO(bytearray(64))
    file = IOReadWriter(io, at + 6)
    return {
        "read_bytes": lambda: io.read_bytes(at, 64),
        "read_bytes in the hole": lambda: io.read_bytes(at + 6, 8),
        "copy_out": lambda: io.copy_out(at, bytes(64)),
        "copy_out in the hole": lambda: io.copy_out(at + 6, bytes(64)),
        "copy_in": lambda: io.copy_in(at, bytearray(64)),
        "zero_out": lambda: io.zero_out(at, 64),
        "copy_out_from": lambda: io.copy_out_from(few, source(bytes(64))),
        "copy_out_from to many": lambda: io.copy_out_from(many, source(bytes(64))),
        "copy_in_to": lambda: io.copy_in_to(few, sink(memoryview(bytearray(64)))),
        "a writer that is full": lambda: io.copy_in_to(one(at, 6), sink(memoryview(bytearray(3)))),
        "load": lambda: io.load_uint32(at + 8),
        "swap": lambda: io.swap_uint64(at + 8, 1),
        "copy_out_vec": lambda: copy_out_vec(io, many, bytes(64)),
        "copy_in_vec": lambda: copy_in_vec(io, many, bytearray(64)),
        "zero_out_vec": lambda: zero_out_vec(io, many, 64),
        "copy_between, source": lambda: copy_between(other, one(0, 64), io, few),
        "copy_between, destination": lambda: copy_between(io, few, other, one(0, 64)),
        "copy_string_in": lambda: copy_string_in(io, at + 6, 64),
        "copy_struct_in": lambda: copy_struct_in(io, at, Struct("<Q")),
        "copy_struct_out": lambda: copy_struct_out(io, at, Struct("<Q"), 1),
        "copy_uint16_in": lambda: copy_uint16_in(io, at + 5),
        "copy_uint32_in": lambda: copy_uint32_in(io, at + 5),
        "copy_uint64_in": lambda: copy_uint64_in(io, at),
        "copy_uint64_out": lambda: copy_uint64_out(io, at, 1),
        "copy_struct_from_user, behind": lambda: copy_struct_from_user(io, at, 64, Struct("<I")),
        "copy_struct_from_user, before": lambda: copy_struct_from_user(io, at, 8, Struct("<Q")),
        "copy_in_iovecs": lambda: copy_in_iovecs(io, at, 3),
        "copy_out_iovecs": lambda: copy_out_iovecs(io, at, AddrRangeSeq([AddrRange(0, 1)])),
        "copy_in_vector": lambda: copy_in_vector(io, at, 64, 64),
        "copy_int32_strings": lambda: copy_int32_strings_in_vec(io, few, 9),
        "IOSequence": lambda: IOSequence(io, few).copy_in_to(sink(memoryview(bytearray(64)))),
        "file.read": lambda: file.read(8),
        "file.write": lambda: file.write(b"12345678"),
        "read_fd, no descriptor": lambda: read_fd(io, -1, at, 8),
        "write_fd, no descriptor": lambda: write_fd(io, -1, at, 8),
        "compare_and_swap": lambda: io.compare_and_swap_uint32(at + 8, 0, 1),
        "an injected fault, out": lambda: FaultyIO(io, FaultPlan((3,))).copy_out(at, bytes(6)),
        "an injected fault, in": lambda: FaultyIO(io, FaultPlan((3,))).copy_in(at, bytearray(6)),
        "an injected fault, a word": lambda: FaultyIO(io, FaultPlan((3,))).load_uint32(at + 2),
        "pread_fd": lambda: pread_fd(io, 0, at, 8, -1),
        "write_fd": lambda: write_fd(io, 1, at + 6, 8),
        "readv_fd": lambda: readv_fd(io, 0, at, 2),
        "writev_fd": lambda: writev_fd(io, 1, at, 2),
    }


def space() -> tuple[AddressSpace, int]:
    """An address space, and an address 6 bytes before its memory's end."""
    made = AddressSpace()
    made.mmap(BASE, PAGE, RW, FIXED)
    made.copy_out(BASE, b"\xee" * PAGE)
    return made, BASE + PAGE - 6


def layouts() -> dict[str, tuple[ResolvedIO, int]]:
    """An address space with a page that is cached, and IOs that are not quick."""
    return {
        "AddressSpace": space(),
        "BytesIO": (BytesIO(bytearray(b"\xee" * 10)), 4),
        "PatchyIO": (PatchyIO({16: bytearray(b"\xee" * 6)}), 16),
    }


@pytest.mark.parametrize("layout", layouts())
def test_a_fault_leaves_no_garbage(layout: str) -> None:
    """By every call, cached and not."""
    assert not all_garbage(reads_and_writes(*layouts()[layout]))


def mapping_calls() -> dict[str, Callable[[], object]]:
    """Calls that Linux refuses."""
    made, at = space()
    return {
        "mmap": lambda: made.mmap(1, 0, RW, FIXED),
        "mprotect": lambda: made.mprotect(BASE + PAGE, PAGE, RW),
        "mremap": lambda: made.mremap(BASE + PAGE, PAGE, 2 * PAGE),
        "madvise": lambda: made.madvise(BASE + PAGE, PAGE, mman.MADV_DONTNEED),
        "msync": lambda: made.msync(BASE, 2 * PAGE, mman.MS_SYNC),
        "mlock": lambda: made.mlock(BASE + PAGE, PAGE),
        "mincore": lambda: made.mincore(BASE + PAGE, PAGE),
        "munmap": lambda: made.munmap(1, PAGE),
        "blocks": lambda: made.blocks(one(at, 64)),
    }


class _Fails:
    """A simulator's object, or its hook, that does nothing but raise."""

    def size(self) -> int:
        return PAGE

    def read_at(self, offset: int, dst: memoryview) -> int:
        raise ValueError("read_at")

    def __call__(self, *args: object) -> bool:
        raise ValueError("hook")


def test_code_of_the_simulator_that_raises_leaves_no_garbage() -> None:
    """In a mapped object, in a hook, in a listener."""
    made, at = space()
    made.map_object(BASE + 2 * PAGE, PAGE, RW, mman.MAP_SHARED | mman.MAP_FIXED, _Fails())
    made.map_object(BASE + 4 * PAGE, PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, _Fails())
    hooked, _ = space()
    hooked.on_fault = _Fails()
    heard, _ = space()
    heard.on_change = _Fails()
    calls: dict[str, Callable[[], object]] = {
        "read_at": lambda: made.read_bytes(BASE + 2 * PAGE, 8),
        "read_at, private": lambda: made.copy_out(BASE + 4 * PAGE, bytes(8)),
        "read_at, from a descriptor": lambda: write_fd(made, 1, BASE + 4 * PAGE, 8),
        "on_fault": lambda: hooked.read_bytes(at, 64),
        "on_fault, copy_out": lambda: hooked.copy_out(at, bytes(64)),
        "on_change": lambda: heard.mmap(BASE, PAGE, RW, FIXED),
        "on_change, no bytes changed": lambda: heard.mprotect(BASE, PAGE, RW),
    }
    assert not all_garbage(calls)


def test_arguments_of_execve_leave_no_garbage() -> None:
    """Whatever is wrong with a table of strings."""
    made, at = space()
    made.copy_out(BASE, Struct("<QQQ").pack(BASE + 64, at, 0))
    made.copy_out(BASE + 64, b"string\0")
    calls: dict[str, Callable[[], object]] = {
        "a string in a hole": lambda: copy_in_vector(made, BASE, 64, 64),
        "a long string": lambda: copy_in_vector(made, BASE, 3, 64),
        "a long table": lambda: copy_in_vector(made, BASE, 64, 1),
    }
    assert not all_garbage(calls)


def test_a_refused_mapping_call_leaves_no_garbage() -> None:
    """By errno, not by fault."""
    assert not all_garbage(mapping_calls())


@pytest.mark.parametrize("layout", layouts())
def test_a_fault_that_is_met_and_not_raised_leaves_no_garbage(layout: str) -> None:
    """Calls that meet the hole and return what lies before it."""
    made, at = layouts()[layout]
    made.copy_out(at, b" 12 34")

    def buffered() -> bytes:
        with BufferedReader(IOReadWriter(made, at)) as file:
            return file.read(64)

    calls: dict[str, Callable[[], object]] = {
        "copy_int32_strings_in_vec": lambda: copy_int32_strings_in_vec(made, one(at, 64), 1),
        "BufferedReader": buffered,
        "a stream that stops before": lambda: made.copy_out_from(one(at, 64), source(b"x")),
    }
    assert not all_garbage(calls, fails=False)
    made.copy_out(at, b"string"[:5] + b"\0")
    assert not garbage(lambda: copy_string_in(made, at, 64), fails=False)


def test_streams_leave_no_garbage(tmp_path: Path) -> None:
    """Readers and Writers over host memory that faults, or with errors of their own."""

    def fails(_: object) -> int:
        raise ConnectionResetError("peer")

    class File:
        readinto = write = staticmethod(fails)

    bad = BlockSeq.of(Block.from_address(8, 16))
    good = BlockSeq.of(Block(bytearray(16)))
    path = tmp_path / "file"
    path.write_bytes(bytes(64))
    with path.open("r+b", buffering=0) as file:
        fd = file.fileno()
        calls: dict[str, Callable[[], object]] = {
            "BlockSeqReader": lambda: BlockSeqReader(good).read_to_blocks(bad),
            "BlockSeqWriter": lambda: BlockSeqWriter(bad).write_from_blocks(good),
            "FromIOReader, file": lambda: FromIOReader(File()).read_to_blocks(good),
            "FromIOReader, fault": lambda: FromIOReader(BytesFile(bytes(8))).read_to_blocks(bad),
            "FromIOWriter, file": lambda: FromIOWriter(File()).write_from_blocks(good),
            "FromIOWriter, fault": lambda: FromIOWriter(file).write_from_blocks(bad),
            "FromVecReaderFunc, function": lambda: FromVecReaderFunc(fails).read_to_blocks(good),
            "FromVecReaderFunc, fault": lambda: FromVecReaderFunc(lambda _: 8).read_to_blocks(bad),
            "FromVecWriterFunc, function": lambda: FromVecWriterFunc(fails).write_from_blocks(good),
            "FromVecWriterFunc, fault": lambda: FromVecWriterFunc(fails).write_from_blocks(bad),
            "FDReader": lambda: FDReader(fd, 0).read_to_blocks(bad),
            "FDWriter": lambda: FDWriter(fd, 0).write_from_blocks(bad),
            "ToIOReader": lambda: ToIOReader(FromVecReaderFunc(fails)).read(8),
            "ToIOWriter": lambda: ToIOWriter(FromVecWriterFunc(fails)).write(b"8"),
        }
        assert not all_garbage(calls)


def test_messages_leave_no_garbage() -> None:
    """A header, a name or data where there is no memory."""
    guest = Guest()
    here, there = datagram_pair()
    with here, there:
        in_hole = guest.put([(HOLE, 8)])
        name_in_hole = guest.put([(DATA, 8)], GUEST + PAGE // 2, name=HOLE, namelen=16)

        def receive(header: int) -> None:
            there.sendmsg(BlockSeq.of(Block(b"datagram")))
            recvmsg_into_user(guest.space, here, header)

        calls: dict[str, Callable[[], object]] = {
            "sendmsg of a hole": lambda: sendmsg_from_user(guest.space, here, in_hole),
            "sendmsg to a name in a hole": lambda: sendmsg_from_user(guest.space, here, name_in_hole),
            "recvmsg into a hole": lambda: receive(in_hole),
            "recvmsg by a header in a hole": lambda: recvmsg_into_user(guest.space, here, HOLE),
        }
        assert not all_garbage(calls)


def test_a_buffer_can_be_resized_after_a_fault() -> None:
    """At once, while the error is still at hand."""
    made, at = space()
    gc.disable()
    try:
        faulty = FaultyIO(made, FaultPlan((3,) * 2))  # which knows what it has injected
        calls: list[Callable[[int, bytearray], object]] = [
            made.copy_in,
            made.copy_out,
            lambda addr, buffer: copy_in_vec(made, one(addr, 64), buffer),
            lambda addr, buffer: faulty.copy_in(BASE, buffer),
            lambda addr, buffer: faulty.copy_out(BASE, buffer),
        ]
        for call in calls:
            buffer = bytearray(64)
            with suppress(OSError):
                call(at, buffer)
            buffer += b"more"
    finally:
        gc.enable()
