"""Each observer keeps the contract, alone and over others in any order; what the library does over one is seen."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Callable
from itertools import permutations

import pytest

from hostarch import AMD64, ARM64, MIPS, READ, READ_WRITE, AddrRange, AddrRangeSeq, mman
from safemem import FromIOReader
from usermem import (
    IO,
    AddressSpace,
    BytesIO,
    FaultError,
    Futex,
    FutexTable,
    abi,
    copy_between,
    copy_in_vec,
    copy_out_iovecs,
    copy_string_in,
    copy_uint16_in,
    copy_uint32_in,
    copy_uint64_out,
    iovecs_io_sequence,
    observe,
    read_fd,
    readv_fd,
    write_fd,
)
from usermem.observe import (
    Access,
    DoubleFetchDetector,
    FaultPlan,
    FaultyIO,
    ObservedIO,
    Race,
    RacingIO,
    SystemCall,
    TracingIO,
)
from usermem.testing import Layout, Mapping, ModelMemory, check_io

LAYOUT = Layout(AMD64, (Mapping(0x10000, 4096, READ_WRITE), Mapping(0x11000, 4096, READ)))
ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
RW = mman.PROT_READ | mman.PROT_WRITE

Wrap = Callable[[IO], ObservedIO]

OBSERVERS: dict[str, Wrap] = {
    "tracing": TracingIO,
    "detector": DoubleFetchDetector,
    "racing": lambda io: RacingIO(io, [Race(0, 0, 1)]),
    "faulty": lambda io: FaultyIO(io, FaultPlan()),
}

ALL: dict[str, Wrap] = {**OBSERVERS, "no race": lambda io: RacingIO(io, [])}


def stacked(names: tuple[str, ...]) -> tuple[IO, ModelMemory]:
    """Observers over each other over a space, and the model; all in one system call."""
    io: IO = LAYOUT.address_space()
    for name in names:
        io = ALL[name](io)
    return io, LAYOUT.model()


@pytest.mark.parametrize("name", OBSERVERS)
def test_each_keeps_the_contract(name: str) -> None:
    """As the memory beneath."""
    check_io(lambda: stacked((name,)))


@pytest.mark.parametrize("names", [("faulty", "detector", "tracing"), ("tracing", "no race", "faulty", "detector")])
def test_stacks_keep_the_contract(names: tuple[str, ...]) -> None:
    """Inside a system call, too, where detectors look at each access."""
    with SystemCall("everything"):
        check_io(lambda: stacked(names))


@pytest.mark.parametrize("names", list(permutations(OBSERVERS)))
def test_order_does_not_matter(names: tuple[str, ...]) -> None:
    """Every observer of a stack sees each access once, in whatever order they lie."""
    io, _ = stacked(names)
    traces, layer = [], io
    while isinstance(layer, ObservedIO):
        traces += [layer] if isinstance(layer, TracingIO) else []
        layer = layer.io
    assert isinstance(io, ObservedIO)
    with io.call("copy") as call:
        io.copy_out(0x10000, b"four")
        io.copy_in(0x10000, bytearray(4))
        io.copy_in(0x10002, bytearray(4))
    (trace,) = traces
    assert [access.call for access in trace.accesses] == ["copy_out", "copy_in", "copy_in"]
    assert {access.tag for access in trace.accesses} == {"copy"}
    for observer in call.states:
        if isinstance(observer, RacingIO):
            assert list(observer.raced) == [(0x10002, ord("u"), 1)]
        if isinstance(observer, DoubleFetchDetector):
            assert [finding.kind.name for finding in observer.findings] == ["LATE_FETCH", "LATE_FETCH", "DOUBLE_FETCH"]


def test_the_helpers_are_seen() -> None:
    """Strings, integers, structs, iovecs, descriptors and copies between memories come down to the contract."""
    space = AddressSpace()
    addr = space.mmap(0, 8192, RW, ANON)
    space.copy_out(addr, b"string\0")
    trace = TracingIO(space)

    def seen(call: Callable[[], object]) -> list[tuple[str, int]]:
        trace.clear()
        call()
        return [(access.call, access.moved) for access in trace.accesses]

    copy_out_iovecs(space, addr + 64, AddrRangeSeq([AddrRange(addr, addr + 3)]))
    ars = AddrRangeSeq([AddrRange(addr, addr + 3), AddrRange(addr + 8, addr + 10)])
    assert seen(lambda: copy_string_in(trace, addr, 99)) == [("copy_in", 64)]
    assert seen(lambda: copy_uint32_in(trace, addr)) == [("copy_in", 4)]
    assert seen(lambda: copy_uint16_in(trace, addr)) == [("copy_in", 2)]
    assert seen(lambda: copy_uint64_out(trace, addr + 512, 1)) == [("copy_out", 8)]
    assert seen(lambda: abi.TIMESPEC.copy_in(trace, addr)) == [("copy_in", 16)]
    assert seen(lambda: copy_in_vec(trace, ars, bytearray(9))) == [("copy_in", 3), ("copy_in", 2)]
    assert seen(lambda: iovecs_io_sequence(trace, addr + 64, 1).copy_in(bytearray(9))) == [
        ("copy_in", 16),
        ("copy_in", 3),
    ]
    with tempfile.TemporaryFile() as file:
        fd = file.fileno()
        assert seen(lambda: write_fd(trace, fd, addr, 7)) == [("copy_in_to", 7)]
        os.lseek(fd, 0, os.SEEK_SET)
        assert seen(lambda: read_fd(trace, fd, addr + 600, 3)) == [("copy_out_from", 3)]
        assert seen(lambda: readv_fd(trace, fd, addr + 64, 1)) == [("copy_in", 16), ("copy_out_from", 3)]
    assert seen(lambda: copy_between(trace, ars, trace, ars)) == [("copy_out_from", 5), ("copy_in_to", 5)]
    assert seen(lambda: trace.load_uint32(addr)) == [("load_uint32", 4)]
    for name in ("read_bytes", "copy_string_in", "copy_uint32_in", "copy_in_vec", "cached_view", "cached_views"):
        assert hasattr(space, name) and not hasattr(trace, name)


@pytest.mark.parametrize("name", OBSERVERS)
def test_machine_and_futexes_are_those_beneath(name: str) -> None:
    """The arch passes through, and words of shared memory are the same words."""
    assert OBSERVERS[name](BytesIO(b"", MIPS)).arch is MIPS
    space = AddressSpace()
    addr = space.mmap(0, 4096, RW, mman.MAP_SHARED | mman.MAP_ANONYMOUS)
    table, ready = FutexTable(), []
    table.wait(Futex(OBSERVERS[name](space), addr), 0, lambda: ready.append(1))
    assert table.wake(Futex(space, addr)) == 1
    assert ready == [1]


@pytest.mark.parametrize("name", OBSERVERS)
def test_what_a_reader_gave_is_not_lost(name: str) -> None:
    """Bytes behind a fault stay in the source."""
    io = OBSERVERS[name](LAYOUT.address_space())
    import io as files

    file = files.BytesIO(b"x" * 10)
    reader = FromIOReader(file)
    with io.call("read"), pytest.raises(FaultError) as caught:
        io.copy_out_from(AddrRangeSeq([AddrRange(0x10FFC, 0x11004)]), reader)
    assert caught.value.transferred == 4
    assert io.copy_out_from(AddrRangeSeq([AddrRange(0x10000, 0x10010)]), reader) == 6


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_fault_leaves_no_garbage(name: str) -> None:
    """Nor a buffer that cannot be resized while the error is at hand."""
    io = OBSERVERS[name](LAYOUT.address_space())

    def fault() -> None:
        buffer = bytearray(64)
        try:
            with io.call("read"):
                io.copy_in(0x12000 - 8, buffer)
        except FaultError as exc:
            buffer += b"more"
            assert exc.transferred == 8

    fault()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            fault()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_callbacks_may_use_the_memory() -> None:
    """What they access is seen by no observer, and does not call them again."""
    space = AddressSpace()
    addr = space.mmap(0, 4096, RW, ANON)
    found: list[bytes] = []

    def look(access: Access) -> None:
        data = bytearray(4)
        detector.copy_in(access.addr, data)
        found.append(bytes(data))

    trace = TracingIO(space, on_access=look)
    detector = DoubleFetchDetector(trace)
    with detector.call("write"):
        detector.copy_in(addr, bytearray(4))
        detector.copy_out(addr, b"four")
    assert found == [bytes(4), b"four"]
    assert len(trace.accesses) == 2
    assert not detector.findings


def test_an_error_of_a_callback_comes_out_of_the_access() -> None:
    """The bytes have moved by then."""

    def refuse(access: Access) -> None:
        raise LookupError("mine")

    memory = bytearray(8)
    with pytest.raises(LookupError, match="mine"):
        TracingIO(BytesIO(memory), on_access=refuse).copy_out(0, b"four")
    assert memory == b"four" + bytes(4)


def test_threads_have_their_own_system_calls() -> None:
    """Each is found by its own double fetches only, and all accesses are recorded with their own tag."""
    space = AddressSpace()
    addr = space.mmap(0, 4096, RW, ANON)
    trace = TracingIO(space)
    detector = DoubleFetchDetector(trace)
    start = threading.Barrier(4)

    def run(name: str, again: bool) -> None:
        start.wait(10)
        for _ in range(200):
            with detector.call(name):
                detector.copy_in(addr, bytearray(8))
                detector.copy_in(addr + (4 if again else 8), bytearray(8))

    threads = [threading.Thread(target=run, args=(f"call{i}", i == 3)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [finding.call for finding in detector.findings] == ["call3"]
    assert {name: sum(access.tag == name for access in trace.accesses) for name in ("call0", "call3")} == {
        "call0": 400,
        "call3": 400,
    }


def test_pointer_tags_do_not_hide_a_byte() -> None:
    """On ARM64 the top byte of an address does not count."""
    space = AddressSpace(ARM64)
    addr = space.mmap(0, 4096, RW, mman.MAP_PRIVATE | ARM64.map_flags.anonymous)
    detector = DoubleFetchDetector(space)
    with detector.call("read"):
        detector.copy_in(addr, bytearray(4))
        detector.copy_in(addr | 0x5A << 56, bytearray(4))
    assert [finding.range.start for finding in detector.findings] == [addr]


def test_bad_arguments_are_those_of_the_contract() -> None:
    """The same errors as without an observer, by name."""
    io = observe.TracingIO(BytesIO(bytearray(8)))
    with pytest.raises(TypeError, match="addr must be an int"):
        io.copy_in("0", bytearray(4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="src must be a bytes-like object"):
        io.copy_out(0, 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dst must be a writable"):
        io.copy_in(0, b"four")
    with pytest.raises(ValueError, match="n must not be negative"):
        io.zero_out(0, -1)
