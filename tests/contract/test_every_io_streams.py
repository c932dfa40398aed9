"""Readers and Writers at every IO we ship: called at most once with exactly what is accessible, and nothing is lost.

Where memory ends (the layouts of edge_layouts.py), where the stream ends, where either raises, and where host memory
itself faults under the copy.
"""

from __future__ import annotations

import errno
import io as stdio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edge_layouts import BASE, LAYOUTS, Layout, one, pattern, pieces, source
from hostarch import READ, WRITE, AddrRange, AddrRangeSeq
from patchy_io import PatchyIO
from safemem import (
    Block,
    BlockSeq,
    BlockSeqReader,
    FDReader,
    FDWriter,
    FromIOReader,
    FromIOWriter,
    HostFaultError,
    Reader,
    ReaderFunc,
    Writer,
    WriterFunc,
)
from scripted_files import GivesParts
from usermem import FaultError, ResolvedIO
from usermem.testing.faulty_memory import Fault, FaultyMemory

with_layouts = pytest.mark.parametrize("make", LAYOUTS)
with_readable_layouts = pytest.mark.parametrize("make", [make for make in LAYOUTS if READ in make().accesses])
HOST_FAULTS: list[Fault] = ["segv", "bus"]


@with_layouts
def test_a_reader_gets_the_prefix_once(make: Callable[[], Layout]) -> None:
    """The reader is called once with exactly the k bytes before the edge, and not at all for none."""
    for k in make().ks():
        layout = make()
        calls: list[int] = []

        def fill(dsts: BlockSeq, calls: list[int] = calls) -> int:
            calls.append(dsts.num_bytes)
            return source(b"\xaa" * dsts.num_bytes).read_to_blocks(dsts)

        with pytest.raises(FaultError) as caught:
            layout.io.copy_out_from(
                pieces(layout.edge - k, k + layout.behind),
                ReaderFunc(fill),
                ignore_permissions=layout.ignore_permissions,
            )
        assert (caught.value.transferred, caught.value.address) == (k, layout.edge)
        assert calls == ([k] if k else [])
        assert layout.content() == pattern(layout.size)[: layout.size - k] + b"\xaa" * k


@with_readable_layouts
def test_a_writer_gets_the_prefix_once(make: Callable[[], Layout]) -> None:
    """The writer is called once with exactly the k bytes before the edge, and not at all for none."""
    for k in make().ks():
        layout = make()
        calls: list[bytes] = []

        def take(srcs: BlockSeq, calls: list[bytes] = calls) -> int:
            calls.append(srcs.tobytes())
            return srcs.num_bytes

        with pytest.raises(FaultError) as caught:
            layout.io.copy_in_to(
                pieces(layout.edge - k, k + layout.behind),
                WriterFunc(take),
                ignore_permissions=layout.ignore_permissions,
            )
        assert (caught.value.transferred, caught.value.address) == (k, layout.edge)
        assert calls == ([pattern(layout.size)[layout.size - k :]] if k else [])


@with_layouts
@pytest.mark.parametrize("given", [0, 1, 19])
def test_a_stream_that_ends_before_the_edge_is_no_fault(make: Callable[[], Layout], given: int) -> None:
    """A reader with fewer bytes than are accessible gives a short count, and 0 at its end."""
    layout = make()
    reader = source(b"\xaa" * given)
    assert (
        layout.io.copy_out_from(one(layout.edge - 20, 40), reader, ignore_permissions=layout.ignore_permissions)
        == given
    )
    expected = pattern(layout.size)[: layout.size - 20] + b"\xaa" * given + pattern(layout.size)[given - 20 :]
    assert layout.content() == expected
    assert layout.io.copy_out_from(one(layout.edge - 20, 40), reader, ignore_permissions=layout.ignore_permissions) == 0
    assert layout.content() == expected


@with_readable_layouts
@pytest.mark.parametrize("taken", [0, 1, 19])
def test_a_writer_that_takes_less_is_no_fault(make: Callable[[], Layout], taken: int) -> None:
    """A writer that takes fewer bytes than are accessible gives a short count."""
    layout = make()
    writer = WriterFunc(lambda srcs: taken)
    assert (
        layout.io.copy_in_to(one(layout.edge - 20, 40), writer, ignore_permissions=layout.ignore_permissions) == taken
    )


class BrokenError(Exception):
    """What a reader or writer of the test's own raises."""

    transferred = 0


@with_readable_layouts
@pytest.mark.parametrize("done", [0, 1, 20])
def test_own_errors_pass_through(make: Callable[[], Layout], done: int) -> None:
    """A reader's or writer's own error comes out as the same object with its own count, before any fault behind it."""
    error = BrokenError()
    error.transferred = done

    def move(blocks: BlockSeq) -> int:
        raise error

    layout = make()
    with pytest.raises(BrokenError) as caught:
        layout.io.copy_in_to(one(layout.edge - 20, 40), WriterFunc(move), ignore_permissions=layout.ignore_permissions)
    assert caught.value is error
    assert error.transferred == done
    if WRITE in layout.accesses:
        with pytest.raises(BrokenError) as caught:
            layout.io.copy_out_from(
                one(layout.edge - 20, 40), ReaderFunc(move), ignore_permissions=layout.ignore_permissions
            )
        assert caught.value is error
        assert error.transferred == done


def test_an_error_between_two_blocks_says_what_arrived() -> None:
    """A file that fails after two of three runs of memory: the same error, with the two runs in ``transferred``."""
    layout = next(make for make in LAYOUTS if make.__name__ == "split_run")()
    error = BrokenError()
    first, second = len(layout.before[0]), len(layout.before[1])
    file = GivesParts(b"\xaa" * first, b"\xaa" * second, error)
    with pytest.raises(BrokenError) as caught:
        layout.io.copy_out_from(one(layout.edge - layout.size, layout.size), FromIOReader(file))
    two = first + second
    assert caught.value is error
    assert error.transferred == two
    assert layout.content() == b"\xaa" * two + pattern(layout.size)[two:]


def test_would_block_between_two_blocks_is_a_short_count() -> None:
    """As above with BlockingIOError: progress is a count, the error comes when there is none."""
    layout = next(make for make in LAYOUTS if make.__name__ == "split_run")()
    first, second = len(layout.before[0]), len(layout.before[1])
    file = GivesParts(b"\xaa" * first, b"\xaa" * second, BlockingIOError(errno.EAGAIN, "later"))
    whole = one(layout.edge - layout.size, layout.size)
    assert layout.io.copy_out_from(whole, FromIOReader(file)) == first + second


@with_layouts
def test_would_block_is_a_count_or_itself(make: Callable[[], Layout]) -> None:
    """BlockingIOError with bytes moved is their count; without, the same object comes out."""
    error = BlockingIOError(errno.EAGAIN, "later")

    def move(blocks: BlockSeq) -> int:
        raise error

    layout = make()
    with pytest.raises(BlockingIOError) as caught:
        layout.io.copy_out_from(
            one(layout.edge - 20, 40), ReaderFunc(move), ignore_permissions=layout.ignore_permissions
        )
    assert caught.value is error
    error.transferred = 7  # type: ignore[attr-defined]
    assert (
        layout.io.copy_out_from(
            one(layout.edge - 20, 40), ReaderFunc(move), ignore_permissions=layout.ignore_permissions
        )
        == 7
    )


@pytest.mark.parametrize("count", [-1, 21])
def test_an_impossible_count_is_an_error(count: int) -> None:
    """A reader or writer that claims less than nothing or more than it was given is a ValueError."""
    io = PatchyIO({BASE: bytearray(20)})
    with pytest.raises(ValueError, match="reader or writer"):
        io.copy_out_from(one(BASE, 20), ReaderFunc(lambda dsts: count))
    with pytest.raises(ValueError, match="reader or writer"):
        io.copy_in_to(one(BASE, 20), WriterFunc(lambda srcs: count))


@pytest.mark.parametrize("count", [None, "20", 20.0], ids=repr)
def test_a_count_that_is_none_is_an_error(count: Any) -> None:
    """A reader or writer that returns no int is a TypeError that says whose result it was."""
    io = PatchyIO({BASE: bytearray(20)})
    expected = f"^what the reader or writer returned must be an int, not {type(count).__name__}$"
    with pytest.raises(TypeError, match=expected):
        io.copy_out_from(one(BASE, 20), ReaderFunc(lambda dsts: count))
    with pytest.raises(TypeError, match=expected):
        io.copy_in_to(one(BASE, 20), WriterFunc(lambda srcs: count))


READERS: dict[str, Callable[[int], Reader]] = {
    "FromIOReader": lambda fd: FromIOReader(stdio.FileIO(fd, closefd=False)),
    "FDReader": FDReader,
    "FDReader offset": lambda fd: FDReader(fd, offset=0),
}


@with_layouts
@pytest.mark.parametrize("reader", READERS)
def test_a_file_loses_nothing_at_the_edge(make: Callable[[], Layout], reader: str, tmp_path: Path) -> None:
    """What the guest got at the fault and what the file gives after it are the file's bytes, each once."""
    path = tmp_path / "source"
    for k in make().ks():
        layout = make()
        data = b"\x99" + pattern(k + layout.behind)
        path.write_bytes(data)
        with path.open("rb", buffering=0) as file:
            stream = READERS[reader](file.fileno())
            start = layout.edge - k
            with pytest.raises(FaultError) as caught:
                layout.io.copy_out_from(
                    one(start, k + layout.behind), stream, ignore_permissions=layout.ignore_permissions
                )
            assert caught.value.transferred == k
            assert layout.content()[layout.size - k :] == data[:k]
            io = layout.repair()
            rest = one(start + k, layout.behind)
            while rest.num_bytes:
                n = io.copy_out_from(rest, stream, ignore_permissions=layout.ignore_permissions)
                assert n > 0
                rest = rest.drop_first(n)
            assert io.read_bytes(start, k + layout.behind, ignore_permissions=layout.ignore_permissions) == data[:-1]
            assert io.copy_out_from(one(start, 9), stream, ignore_permissions=layout.ignore_permissions) == 1


def faulty_guest(fault: Fault, k: int) -> tuple[ResolvedIO, AddrRangeSeq, FaultyMemory]:
    """Ten good bytes and a range whose host memory faults after k: the ranges ask for 24 of its bytes."""
    memory = FaultyMemory(fault)
    io = PatchyIO({BASE: bytearray(10), 2 * BASE: memory.block(24, k), 3 * BASE: bytearray(64)})
    return io, AddrRangeSeq([AddrRange(BASE, BASE + 10), AddrRange(2 * BASE, 2 * BASE + 24)]), memory


@pytest.mark.parametrize("fault", HOST_FAULTS)
@pytest.mark.parametrize("reader", READERS)
def test_bytes_behind_a_host_fault_stay_pending(fault: Fault, reader: str, tmp_path: Path) -> None:
    """Memory that faults under the copy: k bytes arrive, the fault is the guest's, and the rest comes with the next."""
    data = pattern(40)
    path = tmp_path / "source"
    path.write_bytes(data)
    for k in range(24):
        io, ranges, memory = faulty_guest(fault, k)
        with path.open("rb", buffering=0) as file:
            stream = READERS[reader](file.fileno())
            with pytest.raises(FaultError) as caught:
                io.copy_out_from(ranges, stream)
            assert (caught.value.transferred, caught.value.address) == (10 + k, 2 * BASE + k)
            assert io.read_bytes(BASE, 10) + memory.before_edge(k) == data[: 10 + k]
            rest = one(3 * BASE, 64)
            while n := io.copy_out_from(rest, stream):
                rest = rest.drop_first(n)
            assert io.read_bytes(3 * BASE, 30 - k) == data[10 + k :]
            assert rest.num_bytes == 64 - (30 - k)


WRITERS: dict[str, Callable[[int], Writer]] = {
    "FromIOWriter": lambda fd: FromIOWriter(stdio.FileIO(fd, "wb", closefd=False)),
    "FDWriter": FDWriter,
    "FDWriter offset": lambda fd: FDWriter(fd, offset=0),
}


@pytest.mark.parametrize("fault", HOST_FAULTS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_host_fault_under_a_writer(fault: Fault, writer: str, tmp_path: Path) -> None:
    """What lies before the byte that faults is written, and nothing else; the fault is the guest's."""
    for k in range(24):
        io, ranges, memory = faulty_guest(fault, k)
        io.copy_out(BASE, pattern(10))
        content = memory.before_edge(k)
        with (tmp_path / "sink").open("wb", buffering=0) as file, pytest.raises(FaultError) as caught:
            io.copy_in_to(ranges, WRITERS[writer](file.fileno()))
        assert (caught.value.transferred, caught.value.address) == (10 + k, 2 * BASE + k)
        assert (tmp_path / "sink").read_bytes() == pattern(10) + content


@pytest.mark.parametrize("fault", HOST_FAULTS)
def test_a_readers_own_memory_faults(fault: Fault) -> None:
    """A fault in the reader's own memory is its own error, no fault of the guest's, and comes out as it is."""
    io = PatchyIO({BASE: bytearray(24)})
    memory = FaultyMemory(fault)
    reader = BlockSeqReader(BlockSeq.of(memory.block(24, 7, b"seven!!")))
    with pytest.raises(HostFaultError) as caught:
        io.copy_out_from(one(BASE, 24), reader)
    assert (caught.value.transferred, caught.value.address) == (7, memory.edge)
    assert io.read_bytes(BASE, 24) == b"seven!!" + bytes(17)


def test_host_faults_that_cannot_be_the_guests() -> None:
    """A host fault in memory that cannot fault, or behind all that was given, is the reader's or writer's own."""
    plain, memory = bytearray(24), FaultyMemory("segv")
    errors = [
        (Block(plain), HostFaultError(Block(plain).address)),
        (memory.block(24, 24), HostFaultError(memory.edge, transferred=24)),
        (memory.block(24, 24), HostFaultError(memory.edge, transferred=99)),
    ]

    def move(blocks: BlockSeq) -> int:
        raise error

    for block, error in errors:
        io = PatchyIO({BASE: block})
        with pytest.raises(HostFaultError) as caught:
            io.copy_out_from(one(BASE, 24), ReaderFunc(move))
        assert caught.value is error
        with pytest.raises(HostFaultError) as caught:
            io.copy_in_to(one(BASE, 24), WriterFunc(move))
        assert caught.value is error


@pytest.mark.parametrize("fault", HOST_FAULTS)
def test_plain_copies_over_a_host_fault(fault: Fault) -> None:
    """copy_in, copy_out, zero_out and read_bytes over memory that faults after k bytes: exactly k, and where."""
    for k in range(24):
        io, _, memory = faulty_guest(fault, k)
        start = 2 * BASE
        calls: list[Callable[[], object]] = [
            partial(io.copy_out, start, b"\xaa" * 24),
            partial(io.read_bytes, start, 24),
            partial(io.copy_in, start, bytearray(24)),
            partial(io.zero_out, start, 24),
        ]
        for call, left in zip(calls, (b"\xaa", b"\xaa", b"\xaa", b"\0"), strict=True):
            with pytest.raises(FaultError) as caught:
                call()
            assert (caught.value.transferred, caught.value.address) == (k, 2 * BASE + k)
            assert memory.before_edge(k) == left * k
