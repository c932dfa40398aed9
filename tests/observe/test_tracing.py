"""TracingIO: accesses as values, filters, the ring, callbacks, JSON, tables, lines like strace's; off."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
from array import array
from collections.abc import Callable

import pytest

from hostarch import AMD64, ARM64, MIPS, READ, READ_WRITE, WRITE, AddrRange, AddrRangeSeq, Arch, mman
from safemem import BlockSeq, ReaderFunc
from usermem import AddressSpace, BytesIO, FaultError, FaultReason, linux_result, readv_fd
from usermem.iovec import copy_out_iovecs
from usermem.observe import Access, Filter, SystemCall, TracingIO, json_lines, render
from usermem.observe.filter import CALLS


def ranges(*pairs: tuple[int, int]) -> AddrRangeSeq:
    """(addr, length) each."""
    return AddrRangeSeq([AddrRange(addr, addr + n) for addr, n in pairs])


def everything(memory: TracingIO) -> None:
    """Each call of the contract once."""
    memory.copy_out(0, b"four")
    memory.copy_in(4, bytearray(4))
    memory.zero_out(8, 4)
    memory.copy_out_from(ranges((12, 2), (20, 2)), ReaderFunc(lambda blocks: 3))
    memory.copy_in_to(ranges((12, 4)), memory_sink())
    memory.swap_uint32(16, 1)
    memory.compare_and_swap_uint32(16, 1, 2)
    memory.load_uint32(16)


class memory_sink:
    """A Writer that takes all."""

    def write_from_blocks(self, srcs: BlockSeq) -> int:
        return srcs.num_bytes


def traced(**options: object) -> TracingIO:
    """32 bytes with a trace."""
    return TracingIO(BytesIO(bytearray(32)), **options)  # type: ignore[arg-type]


def test_each_access_is_a_value() -> None:
    """Call, access, where, how much was asked for and moved."""
    trace = traced()
    everything(trace)
    assert [(a.call, a.access, a.ranges, a.length, a.moved) for a in trace.accesses] == [
        ("copy_out", WRITE, ((0, 4),), 4, 4),
        ("copy_in", READ, ((4, 4),), 4, 4),
        ("zero_out", WRITE, ((8, 4),), 4, 4),
        ("copy_out_from", WRITE, ((12, 2), (20, 2)), 4, 3),
        ("copy_in_to", READ, ((12, 4),), 4, 4),
        ("swap_uint32", READ_WRITE, ((16, 4),), 4, 4),
        ("compare_and_swap_uint32", READ_WRITE, ((16, 4),), 4, 4),
        ("load_uint32", READ, ((16, 4),), 4, 4),
    ]
    stream = trace.accesses[3]
    assert stream.spans(AMD64) == [(12, 14), (20, 22)]
    assert [stream.spans(AMD64, n) for n in (0, 2, 3)] == [[], [(12, 14)], [(12, 14), (20, 21)]]
    again = traced()
    everything(again)
    assert again.accesses == trace.accesses and len(set(trace.accesses)) == 8


def test_faults_and_other_errors() -> None:
    """A fault is a copy without traceback, which would keep the caller's buffer; another error is its type."""
    trace = traced()
    with pytest.raises(FaultError):
        trace.copy_out(30, b"four", ignore_permissions=True)

    def fails(blocks: BlockSeq) -> int:
        exc = LookupError()
        exc.transferred = 2  # type: ignore[attr-defined]
        try:
            raise exc
        finally:
            del exc

    with pytest.raises(LookupError):
        trace.copy_out_from(ranges((0, 4)), ReaderFunc(fails))
    fault, error = trace.accesses
    assert fault.fault is not None and fault.fault.__traceback__ is None
    assert (fault.moved, fault.fault.address, fault.fault.reason) == (2, 32, FaultReason.UNMAPPED)
    assert fault.ignore_permissions
    assert (error.moved, error.fault, error.error) == (2, None, "LookupError")
    assert str(fault) == "copy_out 0x1e+4 moved 2 fault 0x20 unmapped"
    assert str(error) == "copy_out_from 0x0+4 moved 2 LookupError"


@pytest.mark.parametrize(
    ("only", "seen"),
    [
        (Filter(), set(CALLS)),
        (Filter(calls={"copy_in", "zero_out"}), {"copy_in", "zero_out"}),
        (Filter(access=READ), {"copy_in", "copy_in_to", "swap_uint32", "compare_and_swap_uint32", "load_uint32"}),
        (Filter(access=WRITE, calls={"copy_in", "copy_out"}), {"copy_out"}),
        (Filter(ranges=ranges((7, 2))), {"copy_in", "zero_out"}),
        (Filter(ranges=ranges((0, 0), (21, 1), (13, 1))), {"copy_out_from", "copy_in_to"}),
        (Filter(ranges=ranges((16, 1))), {"swap_uint32", "compare_and_swap_uint32", "load_uint32"}),
        (Filter(tags={"read"}), set()),
        (Filter(tags={"call"}), set(CALLS)),
    ],
)
def test_filters(only: Filter, seen: set[str]) -> None:
    """What they leave out is done, and not recorded."""
    memory = bytearray(32)
    trace = TracingIO(BytesIO(memory), only=only)
    with trace.call("call") as call:
        everything(trace)
    assert {access.call for access in trace.accesses} == seen
    assert trace.accesses_of(call) == trace.accesses
    assert memory[:4] == b"four" and memory[16] == 2


def test_a_bad_filter() -> None:
    """By name."""
    with pytest.raises(ValueError, match="read_bytes"):
        Filter(calls={"read_bytes"})
    with pytest.raises(ValueError, match="limit"):
        traced(limit=0)


def test_wrong_arguments_are_refused_under_a_filter() -> None:
    """By the memory, as without."""
    trace = traced(only=Filter(ranges=ranges((0, 4))))
    with pytest.raises(TypeError, match="addr must be an int"):
        trace.copy_in("0", bytearray(4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dst must be"):
        trace.copy_in(0, 4)  # type: ignore[arg-type]


def test_the_ring_is_bounded() -> None:
    """The last are kept, of all and of each call."""
    trace = traced(limit=2)
    with trace.call("reads") as call:
        for addr in range(5):
            trace.copy_in(addr, bytearray(1))
    assert [access.addr for access in trace.accesses] == [access.addr for access in trace.accesses_of(call)] == [3, 4]
    trace.clear()
    assert not trace.accesses


def test_tags_are_of_the_innermost_call() -> None:
    """And of none behind it, though it raised."""
    trace = traced()
    with trace.call("outer"):
        trace.copy_in(0, bytearray(1))
        with pytest.raises(LookupError), trace.call("inner"):
            trace.copy_in(0, bytearray(1))
            raise LookupError
        trace.copy_in(0, bytearray(1))
    trace.copy_in(0, bytearray(1))
    assert [access.tag for access in trace.accesses] == ["outer", "inner", "outer", None]


def test_a_call_that_waits_goes_on() -> None:
    """What it did before is still known, and its line comes once."""
    lines: list[str] = []
    trace: TracingIO = traced(on_call=lambda call: lines.append(trace.line(call)))
    call = trace.call("read", 0)
    with call:
        trace.copy_in(0, bytearray(1))
        call.waiting = True
    with trace.call("other"):
        trace.copy_in(8, bytearray(1))
    with call:
        trace.copy_in(1, bytearray(1))
        call.result = 2
    assert lines == ["other() = ?  in 0x8+1", "read(0) = 2  in 0x0+2"]


def test_tasks_have_their_own_calls() -> None:
    """Two asyncio tasks whose calls are interleaved."""
    trace = traced()

    async def run(name: str) -> None:
        with trace.call(name):
            for _ in range(2):
                trace.copy_in(0, bytearray(1))
                await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(run("one"), run("two"))

    asyncio.run(both())
    assert [access.tag for access in trace.accesses] == ["one", "two", "one", "two"]


def test_json_lines() -> None:
    """One object a line, which says all."""
    file = io.StringIO()
    trace = traced(on_access=json_lines(file))
    with trace.call("read"), pytest.raises(FaultError):
        trace.copy_in_to(ranges((0, 4), (30, 4)), memory_sink())
    assert [json.loads(line) for line in file.getvalue().splitlines()] == [
        {
            "call": "copy_in_to",
            "access": "r--",
            "ranges": [[0, 4], [30, 4]],
            "moved": 6,
            "fault": {"address": 32, "reason": "unmapped"},
            "tag": "read",
        }
    ]


def test_render() -> None:
    """A line for each system call and method."""
    trace = traced()
    with trace.call("read"):
        trace.copy_out(0, b"four")
        trace.copy_out(8, b"four")
    with pytest.raises(FaultError):
        trace.copy_in(31, bytearray(2))
    lines = render(trace.accesses).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["-", "copy_in", "1", "1", "1", "0x1f-0x21"],
        ["read", "copy_out", "2", "8", "0", "0x0-0xc"],
    ]


def test_a_line_like_straces() -> None:
    """Name, arguments, result; the bytes fetched and stored, and the fault."""
    space = AddressSpace()
    addr = space.mmap(0x10000, 8192, READ_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED)
    copy_out_iovecs(space, addr, ranges((addr + 8192 - 48, 64)))
    lines: list[str] = []
    trace = TracingIO(space, on_call=lambda call: lines.append(trace.line(call)))
    with open(os.__file__, "rb") as file, trace.call("readv", 3, addr, 1, b"x") as call:  # noqa: PTH123
        call.result = linux_result(readv_fd(trace, file.fileno(), addr, 1))
    with pytest.raises(FaultError), trace.call("read"):
        trace.copy_out(1, b"x")
    with trace.call("exit"):
        pass
    with pytest.raises(LookupError), trace.call("bug"):
        raise LookupError
    assert lines == [
        "readv(3, 0x10000, 1, b'x') = 48  in 0x10000+16  out 0x11fd0+48  fault 0x12000 unmapped",
        "read() = -1 EFAULT (Bad address)  fault 0x1 unmapped",
        "exit() = ?",
        "bug() = LookupError",
    ]
    assert str(SystemCall("x", (-1, 4096, True))) == "x(-1, 0x1000, True) = ?"
    failed = SystemCall("x")
    failed.result = -errno.ENOSYS
    assert "ENOSYS" in str(failed)


def test_a_trace_that_is_off_is_the_memory_itself() -> None:
    """Its methods are those beneath, the faster ones too, until it starts again."""
    space = AddressSpace()
    addr = space.mmap(0, 4096, READ_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    trace = TracingIO(space)
    trace.stop()
    for name in (
        *CALLS,
        "read_bytes",
        "copy_string_in",
        "copy_uint32_in",
        "copy_in_vec",
        "cached_view",
        "cached_views",
    ):
        assert getattr(trace, name) == getattr(space, name)
    trace.copy_out(addr, b"four")
    assert not trace.accesses
    trace.start()
    assert trace.copy_in(addr, bytearray(4)) == 4
    assert [access.call for access in trace.accesses] == ["copy_in"]
    assert not hasattr(trace, "read_bytes")


def test_an_access_is_completed_before_it_is_shown() -> None:
    """A callback sees the tag and what moved."""
    seen: list[Access] = []
    trace = traced(on_access=seen.append)
    with trace.call("read"):
        trace.copy_out(0, b"four")
    assert [(access.tag, access.moved) for access in seen] == [("read", 4)]


class Number(int):
    """An int of the caller's own class, as NumPy's and ctypes' are."""


@pytest.mark.parametrize("arch", [AMD64, ARM64, MIPS])
def test_filters_by_range_see_all_kinds_of_arguments(arch: Arch) -> None:
    """Integers of other classes, all buffers, pointers with tags."""
    space = AddressSpace(arch)
    start = space.mmap(0, 4096, READ_WRITE, mman.MAP_PRIVATE | arch.map_flags.anonymous)
    trace = TracingIO(space, only=Filter(ranges=ranges((start + 8, 4))))
    tag = 0x5A << 56 if arch is ARM64 else 0
    for addr in (start + 8 | tag, Number(start + 11)):
        trace.copy_in(addr, array("H", [0]))
        trace.copy_out(addr, memoryview(b"x"))
        trace.zero_out(addr, Number(2))
        trace.copy_out_from(ranges((addr, 2)), ReaderFunc(lambda blocks: blocks.num_bytes))
    assert len(trace.accesses) == 8
    for addr in (start + 12 | tag, Number(start + 6)):
        trace.copy_in(addr, array("H", [0]))
        trace.zero_out(addr, Number(2))
        trace.copy_out_from(ranges((addr, 2)), ReaderFunc(lambda blocks: blocks.num_bytes))
    assert len(trace.accesses) == 8


def test_one_name_is_enough_for_a_filter() -> None:
    """And is not taken for its letters."""
    trace = traced(only=Filter(calls="copy_in", tags="pread"))
    for name in ("pread", "read"):
        with trace.call(name):
            everything(trace)
    assert [(access.tag, access.call) for access in trace.accesses] == [("pread", "copy_in")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TracingIO(None), "io must be an IO, not NoneType"),  # type: ignore[arg-type]
        (lambda: traced(only="copy_in"), "only must be a Filter, not str"),
        (lambda: Filter(ranges=[AddrRange(0, 8)]), "ranges must be an AddrRangeSeq, not list"),  # type: ignore[arg-type]
    ],
)
def test_wrong_options_are_told_at_once(make: Callable[[], object], message: str) -> None:
    """By name, and what they must be."""
    with pytest.raises(TypeError, match=message):
        make()
