"""FDReader and FDWriter where one call is several of the host's: as much moves as by one of Linux's."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import threading
from pathlib import Path

import pytest

from safemem import Block, BlockSeq, FDReader, FDWriter, HostFaultError
from usermem.testing.faulty_memory import Fault, FaultyMemory


def _great(kind: str) -> BlockSeq:
    """More than one system call takes: blocks without number, or much memory that may fault."""
    if kind == "blocks":
        return BlockSeq([Block(bytearray(700)) for _ in range(6000)])
    memory = FaultyMemory("segv", good_pages=1024)
    return BlockSeq.of(memory.block(4 << 20, 4 << 20))


@pytest.mark.parametrize("offset", [None, 0])
@pytest.mark.parametrize("kind", ["blocks", "memory that may fault"])
def test_a_call_moves_what_one_of_the_kernels_would(tmp_path: Path, kind: str, offset: int | None) -> None:
    """Regular files take and give all of it, and what a file lacks is a short count."""
    dsts, data = _great(kind), os.urandom(5 << 20)
    with (tmp_path / "file").open("wb+", buffering=0) as file:
        file.write(data)
        file.seek(0)
        assert FDReader(file.fileno(), offset).read_to_blocks(dsts) == dsts.num_bytes
        assert dsts.tobytes() == data[: dsts.num_bytes]
        file.truncate(3 << 20)
        file.seek(0)
        assert FDReader(file.fileno(), offset).read_to_blocks(dsts) == 3 << 20
        file.truncate(0)
        file.seek(0)
        assert FDWriter(file.fileno(), offset).write_from_blocks(dsts) == dsts.num_bytes
        assert os.pread(file.fileno(), 6 << 20, 0) == dsts.tobytes()


@pytest.mark.parametrize(("kind", "n"), [("blocks", 1024 * 700), ("memory that may fault", 1 << 20)])
def test_a_great_read_does_not_wait_for_more(kind: str, n: int) -> None:
    """A pipe gives what it has: where the first system call was filled, another one might wait."""
    dsts = _great(kind)
    outlet, inlet = os.pipe()
    if fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, 1 << 20) < n:
        pytest.skip("the host's pipes are small")
    data = os.urandom(n)
    assert os.write(inlet, data) == n
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(FDReader(outlet).read_to_blocks(dsts)))
    thread.start()
    thread.join(5)
    os.close(inlet)  # ends a wait
    waited = thread.is_alive()
    thread.join()
    os.close(outlet)
    assert not waited
    assert found == [n]
    assert dsts.take_first(n).tobytes() == data


@pytest.mark.parametrize("kind", ["blocks", "memory that may fault"])
def test_a_great_write_to_a_pipe(kind: str) -> None:
    """A pipe that waits takes all."""
    srcs = _great(kind)
    outlet, inlet = os.pipe()
    got = bytearray()

    def read() -> None:
        while part := os.read(outlet, 1 << 16):
            got.extend(part)

    thread = threading.Thread(target=read)
    thread.start()
    n = FDWriter(inlet).write_from_blocks(srcs)
    os.close(inlet)
    thread.join()
    os.close(outlet)
    assert n == srcs.num_bytes
    assert bytes(got) == srcs.tobytes()


@pytest.mark.parametrize("kind", ["blocks", "memory that may fault"])
def test_a_great_write_that_would_block(kind: str) -> None:
    """A pipe that does not wait takes what it has room for, and the error comes then."""
    srcs = _great(kind)
    outlet, inlet = os.pipe()
    os.set_blocking(inlet, False)
    n = FDWriter(inlet).write_from_blocks(srcs)
    assert 0 < n < srcs.num_bytes
    with pytest.raises(BlockingIOError) as caught:
        FDWriter(inlet).write_from_blocks(srcs.drop_first(n))
    assert not getattr(caught.value, "transferred", 0)
    os.close(outlet)
    os.close(inlet)


@pytest.mark.parametrize("fault", ["segv", "bus"])
def test_a_fault_far_into_a_great_transfer(tmp_path: Path, fault: Fault) -> None:
    """It counts what went before it, from the start of the whole."""
    memory = FaultyMemory(fault, good_pages=1024)
    size = 4 << 20
    blocks = BlockSeq([Block(bytearray(5)), memory.block(size + 9, size), Block(bytearray(5))])
    with (tmp_path / "file").open("wb+", buffering=0) as file:
        with pytest.raises(HostFaultError) as written:
            FDWriter(file.fileno(), 0).write_from_blocks(blocks)
        with pytest.raises(HostFaultError) as read:
            FDReader(file.fileno(), 0).read_to_blocks(blocks)
        assert os.fstat(file.fileno()).st_size == 5 + size
    assert written.value.transferred == read.value.transferred == 5 + size


def test_a_full_disk_after_progress_is_a_short_count(tmp_path: Path) -> None:
    """What the kernel says after it has moved something, it says at the next call."""
    srcs = _great("memory that may fault")
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, before[1]))
    try:
        writer = FDWriter(file, 0)
        assert writer.write_from_blocks(srcs) == 2 << 20
        with pytest.raises(OSError) as caught:
            writer.write_from_blocks(srcs.drop_first(2 << 20))
        assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
        os.close(file)
