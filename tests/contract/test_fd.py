"""read_fd and its kin over any IO and any descriptor: exact counts, and nothing lost."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hostarch import AddrRangeSeq, mman
from safemem import Reader, Writer
from usermem import (
    IO,
    AddressSpace,
    BytesIO,
    FaultError,
    pread_fd,
    preadv_fd,
    pwrite_fd,
    pwritev_fd,
    read_fd,
    readv_fd,
    write_fd,
    writev_fd,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

PAGE = 4096
BASE = 0x1000_0000
RW = mman.PROT_READ | mman.PROT_WRITE
FIXED = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
NO_DESCRIPTORS = [-1, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, -(1 << 70)]

Move = Callable[[IO, int, int, int], int]


class Foreign:
    """An IO of somebody else's, with what the contract names and nothing more."""

    def __init__(self, memory: AddressSpace) -> None:
        self._memory = memory

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        return self._memory.copy_out(addr, src, ignore_permissions=ignore_permissions)

    def copy_in(self, addr: int, dst: WriteableBuffer, *, ignore_permissions: bool = False) -> int:
        return self._memory.copy_in(addr, dst, ignore_permissions=ignore_permissions)

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        return self._memory.zero_out(addr, n, ignore_permissions=ignore_permissions)

    def copy_out_from(self, ars: AddrRangeSeq, reader: Reader, *, ignore_permissions: bool = False) -> int:
        return self._memory.copy_out_from(ars, reader, ignore_permissions=ignore_permissions)

    def copy_in_to(self, ars: AddrRangeSeq, writer: Writer, *, ignore_permissions: bool = False) -> int:
        return self._memory.copy_in_to(ars, writer, ignore_permissions=ignore_permissions)

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        return self._memory.swap_uint32(addr, new, ignore_permissions=ignore_permissions)

    def compare_and_swap_uint32(self, addr: int, old: int, new: int, *, ignore_permissions: bool = False) -> int:
        return self._memory.compare_and_swap_uint32(addr, old, new, ignore_permissions=ignore_permissions)

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        return self._memory.load_uint32(addr, ignore_permissions=ignore_permissions)


@pytest.fixture(params=["AddressSpace", "cached", "foreign"])
def io(request: pytest.FixtureRequest) -> IO:
    """Two pages at BASE, and a hole behind."""
    space = AddressSpace()
    space.mmap(BASE, 2 * PAGE, RW, FIXED)
    if request.param == "cached":
        space.copy_out(BASE, bytes(2 * PAGE))
        space.copy_out(BASE + PAGE, bytes(PAGE))
        space.read_bytes(BASE, 1)
        space.read_bytes(BASE + PAGE, 1)
    return Foreign(space) if request.param == "foreign" else space


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that does not wait: outlet, inlet."""
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for end in ends:
        os.close(end)


def _table(io: IO, *pairs: tuple[int, int]) -> int:
    """An iovec table in the first page."""
    io.copy_out(BASE, b"".join(struct.pack("<QQ", *pair) for pair in pairs))
    return BASE


def test_what_lies_behind_a_hole_stays_in_the_pipe(io: IO, pipe: tuple[int, int]) -> None:
    """The count is what was stored, the rest can be read by whoever comes next."""
    outlet, inlet = pipe
    os.write(inlet, b"abcdefgh")
    assert read_fd(io, outlet, BASE + 2 * PAGE - 3, 100) == 3
    with pytest.raises(FaultError) as caught:
        read_fd(io, outlet, BASE + 2 * PAGE, 100)
    assert (caught.value.address, caught.value.transferred) == (BASE + 2 * PAGE, 0)
    table = _table(io, (BASE + PAGE, 2), (BASE + 2 * PAGE - 1, 9))
    assert readv_fd(io, outlet, table, 2) == 3
    assert os.read(outlet, 100) == b"gh"
    with pytest.raises(BlockingIOError):
        read_fd(io, outlet, BASE, 1)
    found = bytearray(3)
    io.copy_in(BASE + 2 * PAGE - 3, found)
    assert found == b"abf"


def test_what_lies_before_a_hole_is_written(io: IO, pipe: tuple[int, int]) -> None:
    """write and writev give what can be read."""
    outlet, inlet = pipe
    io.copy_out(BASE + 2 * PAGE - 3, b"xyz")
    assert write_fd(io, inlet, BASE + 2 * PAGE - 3, 50) == 3
    table = _table(io, (BASE + 2 * PAGE - 2, 1), (BASE + 2 * PAGE - 1, 8))
    assert writev_fd(io, inlet, table, 2) == 2
    assert os.read(outlet, 100) == b"xyzyz"
    with pytest.raises(FaultError):
        write_fd(io, inlet, BASE + 2 * PAGE, 1)


@pytest.mark.parametrize("fd", NO_DESCRIPTORS)
@pytest.mark.parametrize("addr", [BASE, BASE + 2 * PAGE, -1])
@pytest.mark.parametrize("n", [0, 8])
def test_any_int_is_a_descriptor(io: IO, fd: int, addr: int, n: int) -> None:
    """EBADF, whatever the address is."""
    calls: list[Callable[[], int]] = [
        lambda: read_fd(io, fd, addr, n),
        lambda: write_fd(io, fd, addr, n),
        lambda: pread_fd(io, fd, addr, n, 5),
        lambda: pwrite_fd(io, fd, addr, n, 5),
        lambda: readv_fd(io, fd, addr, n),
        lambda: writev_fd(io, fd, addr, n),
        lambda: preadv_fd(io, fd, addr, n, 5),
        lambda: pwritev_fd(io, fd, addr, n, 5),
    ]
    for call in calls:
        with pytest.raises(OSError, match="descriptor") as caught:
            call()
        assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("offset", [-1, 1 << 63, (1 << 64) - 1])
def test_an_offset_that_is_negative(io: IO, offset: int) -> None:
    """EINVAL, and nothing is moved."""
    with Path(os.devnull).open("r+b", buffering=0) as file:
        for move in (pread_fd, pwrite_fd, preadv_fd, pwritev_fd):
            with pytest.raises(OSError, match="argument") as caught:
                move(io, file.fileno(), BASE, 8, offset)
            assert caught.value.errno == errno.EINVAL


def test_offsets_leave_the_position(io: IO) -> None:
    """pread and pwrite go where they are told, up to a hole."""
    file = os.memfd_create("file")
    os.write(file, b"0123456789")
    assert pread_fd(io, file, BASE + 2 * PAGE - 4, 9, 3) == 4
    assert pwrite_fd(io, file, BASE + 2 * PAGE - 4, 9, 6) == 4
    assert os.pread(file, 20, 0) == b"0123453456"
    assert os.lseek(file, 0, os.SEEK_CUR) == 10
    os.close(file)


def test_an_empty_datagram_is_sent(io: IO) -> None:
    """write(2) of nothing to a datagram socket is a message; to read nothing takes none."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        assert write_fd(io, left.fileno(), BASE, 0) == 0
        assert right.recv(10, socket.MSG_DONTWAIT) == b""
        left.send(b"kept")
        assert read_fd(io, right.fileno(), BASE, 0) == 0
        assert right.recv(10, socket.MSG_DONTWAIT) == b"kept"


def test_memory_of_a_file_that_was_cut(pipe: tuple[int, int]) -> None:
    """Where touching memory would raise SIGBUS, the pipe keeps what cannot be stored."""
    outlet, inlet = pipe
    file = os.memfd_create("mapped")
    os.ftruncate(file, 2 * PAGE)
    with AddressSpace() as space:
        addr = space.mmap(0, 2 * PAGE, RW, mman.MAP_SHARED, file)
        os.ftruncate(file, PAGE)
        os.write(inlet, b"abcdefgh")
        assert read_fd(space, outlet, addr + PAGE - 5, 8) == 5
        with pytest.raises(FaultError):
            read_fd(space, outlet, addr + PAGE, 8)
        assert os.read(outlet, 8) == b"fgh"
        assert os.pread(file, 5, PAGE - 5) == b"abcde"
        assert write_fd(space, inlet, addr + PAGE - 5, 8) == 5
    os.close(file)


def test_permissions_can_be_ignored(pipe: tuple[int, int]) -> None:
    """As a debugger does."""
    outlet, inlet = pipe
    with AddressSpace() as space:
        addr = space.mmap(0, PAGE, mman.PROT_READ, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        os.write(inlet, b"abc")
        with pytest.raises(FaultError):
            read_fd(space, outlet, addr, 3)
        assert read_fd(space, outlet, addr, 3, ignore_permissions=True) == 3
        assert space.read_bytes(addr, 3) == b"abc"


def test_a_table_that_cannot_be_read_is_no_count(pipe: tuple[int, int]) -> None:
    """Half a table that was read is no result of readv."""
    outlet, inlet = pipe
    os.write(inlet, b"abc")
    io = BytesIO(bytearray(24))
    with pytest.raises(FaultError):
        readv_fd(io, outlet, 0, 2)
    with pytest.raises(OSError, match="iovecs") as caught:
        readv_fd(io, outlet, 0, 1025)
    assert caught.value.errno == errno.EINVAL
    assert os.read(outlet, 9) == b"abc"


@pytest.mark.parametrize("warm", [True, False])
def test_neighbours_and_ranges_that_only_look_so(pipe: tuple[int, int], warm: bool) -> None:
    """Ranges that touch, overlap, are empty, or lie at the same offset of other memory: each has its own bytes."""
    outlet, inlet = pipe
    with AddressSpace() as space:
        space.mmap(BASE, PAGE, RW, FIXED)
        others = [BASE + PAGE * 16 * i for i in (1, 2)]
        for i, other in enumerate(others, 1):
            space.attach(other, mmap.mmap(-1, PAGE), flags=FIXED)  # host memory of its own
            space.copy_out(other, bytes([i, 16 + i] * 2048))
        a, b = others
        pairs = [(a, 64), (a + 64, 6), (b + 70, 3), (b + 73, 0), (b + 73, 2), (a + 75, 1), (a + 70, 5), (a + 71, 4)]
        table = _table(space, *pairs)
        expected = b"".join(space.read_bytes(*pair) for pair in pairs)
        if not warm:
            for addr in (BASE, a, b):
                space.mprotect(addr, PAGE, mman.PROT_NONE)
                space.mprotect(addr, PAGE, RW)
        assert writev_fd(space, inlet, table, len(pairs)) == len(expected)
        assert os.read(outlet, 1000) == expected
        data = bytes(range(100, 100 + len(expected)))
        os.write(inlet, data)
        assert readv_fd(space, outlet, table, len(pairs)) == len(data)
        model = dict(zip([addr + i for addr, n in pairs for i in range(n)], data, strict=True))
        assert {addr: space.read_bytes(addr, 1)[0] for addr in model} == model
