"""A file that another process cuts and lengthens while it is copied: every count is exact, and no signal comes."""

from __future__ import annotations

import io
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from campaign import times
from edge_layouts import one
from hostarch import READ, AddrRange, AddrRangeSeq, mman
from safemem import FDReader, FDWriter, FromIOReader, FromIOWriter, HostFaultError
from usermem import AddressSpace, FaultError, copy_in_vec, copy_out_vec, copy_string_in, copy_uint32_in
from usermem.errors import FaultReason
from usermem.mm.faulting import can_map

PAGE = mmap.PAGESIZE
PAGES = 8
FLAGS = {"shared": mman.MAP_SHARED, "private": mman.MAP_PRIVATE}
SECONDS = 0.5
LEAST = times(5_100, 51_000)  # copies of each kind of mapping

pytestmark = pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")

TRUNCATE = """
import os, sys
fd, size = int(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
n = 0
while os.getppid() == int(sys.argv[3]):
    os.ftruncate(fd, n * 1237 % size)
    os.ftruncate(fd, size)
    n += 1
"""


@contextmanager
def truncated(fd: int) -> Iterator[None]:
    """Another process cuts the file and lengthens it again, over and over."""
    other = subprocess.Popen(
        [sys.executable, "-c", TRUNCATE, str(fd), str(PAGES * PAGE), str(os.getpid())],
        pass_fds=[fd],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        yield
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate()


Copy = Callable[[AddressSpace, int, int], int]


def _copy_in(space: AddressSpace, addr: int, n: int) -> int:
    dst = bytearray(b"\xee" * n)
    try:
        moved = space.copy_in(addr, dst)
        assert 0xEE not in dst
        return moved
    except FaultError as fault:
        assert dst[fault.transferred :] == b"\xee" * (n - fault.transferred)
        assert 0xEE not in dst[: fault.transferred]
        raise


def _copy_in_vec(space: AddressSpace, addr: int, n: int) -> int:
    half = n // 2
    ranges = AddrRangeSeq([AddrRange(addr, addr + half), AddrRange(addr + half, addr + n)])
    return copy_in_vec(space, ranges, bytearray(n))


def _copy_out_vec(space: AddressSpace, addr: int, n: int) -> int:
    half = n // 2
    ranges = AddrRangeSeq([AddrRange(addr, addr + half), AddrRange(addr + half, addr + n)])
    return copy_out_vec(space, ranges, bytes(n))


def _to_file(space: AddressSpace, addr: int, n: int) -> int:
    sink = io.BytesIO()
    try:
        return space.copy_in_to(one(addr, n), FromIOWriter(sink))
    except FaultError as fault:
        assert len(sink.getvalue()) == fault.transferred
        raise


def _to_fd(space: AddressSpace, addr: int, n: int) -> int:
    fd = os.memfd_create("sink")
    try:
        return space.copy_in_to(one(addr, n), FDWriter(fd))
    except FaultError as fault:
        assert os.fstat(fd).st_size == fault.transferred
        raise
    finally:
        os.close(fd)


def _from_fd(space: AddressSpace, addr: int, n: int) -> int:
    fd = os.open("/dev/zero", os.O_RDONLY)
    try:
        # A stream may give less: what the kernel could store before memory went away that is there again.
        return n if 0 < space.copy_out_from(one(addr, n), FDReader(fd)) <= n else 0
    finally:
        os.close(fd)


def _word(space: AddressSpace, addr: int, n: int) -> int:
    space.swap_uint32(addr & -4, 1)
    copy_uint32_in(space, addr & -4)
    return n


def _string(space: AddressSpace, addr: int, n: int) -> int:
    copy_string_in(space, addr, 1)  # a zero or one byte
    return n


COPIES: dict[str, Copy] = {
    "copy_in": _copy_in,
    "copy_out": lambda space, addr, n: space.copy_out(addr, bytes(n)),
    "zero_out": lambda space, addr, n: space.zero_out(addr, n),
    "read_bytes": lambda space, addr, n: len(space.read_bytes(addr, n)),
    "copy_in_vec": _copy_in_vec,
    "copy_out_vec": _copy_out_vec,
    "to a file object": _to_file,
    "from a file object": lambda space, addr, n: space.copy_out_from(one(addr, n), FromIOReader(io.BytesIO(bytes(n)))),
    "to a descriptor": _to_fd,
    "from a descriptor": _from_fd,
}
SHORT: dict[str, Copy] = {"words": _word, "strings": _string}


def checked(copy: Copy, space: AddressSpace, addr: int, n: int) -> bool:
    """Make a copy: it is whole, or its fault is at the beginning of a page, so many bytes behind its own."""
    try:
        moved = copy(space, addr, n)
    except FaultError as fault:
        assert fault.reason is FaultReason.BEYOND_FILE
        if copy in COPIES.values():
            assert fault.address == addr + fault.transferred
            # Two ranges are two copies, and the file may be cut between them.
            between = fault.transferred == n // 2 and copy in (_copy_in_vec, _copy_out_vec)
            assert not fault.transferred or fault.address % PAGE == 0 or between
            assert fault.transferred < n
        return False
    assert moved == n
    return True


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_copies_of_every_kind(tmp_path: Path, flags: int) -> None:
    """In three threads, for seconds, within pages and across them."""
    with (tmp_path / "file").open("wb+", buffering=0) as file, AddressSpace() as space:
        file.truncate(PAGES * PAGE)
        addr = space.mmap(0, PAGES * PAGE, mman.PROT_READ | mman.PROT_WRITE, flags, file.fileno(), 0)
        counts: list[tuple[int, int]] = []
        errors: list[BaseException] = []

        def work(seed: int) -> None:
            good = bad = 0
            copies = [*COPIES.values(), *SHORT.values(), *[_copy_in, _string] * 8]
            end = time.monotonic() + SECONDS
            i = seed
            try:
                while time.monotonic() < end or good + bad < LEAST // 3:
                    at = i * 7919 % ((PAGES - 2) * PAGE)
                    n = (16, 64, PAGE, PAGE + 100)[i % 4] if i % 5 == 0 else 32
                    if checked(copies[i % len(copies)], space, addr + at, n):
                        good += 1
                    else:
                        bad += 1
                    i += 1
            except BaseException as exc:
                errors.append(exc)
            counts.append((good, bad))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        with truncated(file.fileno()):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        good, bad = (sum(column) for column in zip(*counts, strict=True))
        assert good > 0
        assert bad > 0
        assert good + bad >= LEAST


def test_blocks_of_it_only_copy(tmp_path: Path) -> None:
    """What is pinned faults in the copy, not under the hands of who holds it."""
    with (tmp_path / "file").open("wb+", buffering=0) as file, AddressSpace() as space:
        file.truncate(2 * PAGE)
        addr = space.mmap(0, 2 * PAGE, mman.PROT_READ, mman.MAP_SHARED, file.fileno(), 0)
        blocks = space.blocks(one(addr, 2 * PAGE), READ)
        file.truncate(PAGE)
        with pytest.raises(BufferError):
            blocks.views()
        with pytest.raises(HostFaultError) as caught:
            blocks.tobytes()
        assert caught.value.transferred == PAGE
