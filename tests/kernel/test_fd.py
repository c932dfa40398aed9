"""read_fd, write_fd and their kin give what the system calls give: counts, errnos, bytes, positions."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import mman
from kernel_memory import BASE, DATA, PAGE, GuestMemory, KernelMemory, Ranges, Result, new_file
from usermem import (
    AddressSpace,
    pread_fd,
    preadv_fd,
    pwrite_fd,
    pwritev_fd,
    read_fd,
    readv_fd,
    write_fd,
    writev_fd,
)

_RW = mman.PROT_READ | mman.PROT_WRITE
_FLAGS = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
_TABLE = BASE + 16 * PAGE
_PAGES = ((BASE, _RW), (BASE + PAGE, _RW), (BASE + 2 * PAGE, mman.PROT_READ), (_TABLE, _RW))
_NONE = (-1, 1 << 20, (1 << 31) - 1, -(1 << 31))
"""Ints that are no descriptors, as a C int has them."""

Both = tuple[KernelMemory, GuestMemory]


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    """The same memory twice: two pages that can be written, one that can be read, a hole; and a page for tables."""
    kernel, guest = KernelMemory(), GuestMemory()
    for memory in (kernel, guest):
        for addr, prot in _PAGES:
            assert memory.mmap(addr, PAGE, prot, _FLAGS) == addr
    yield kernel, guest
    kernel.close()
    guest.close()


_edges = st.sampled_from([*(addr for addr, _ in _PAGES), BASE + 3 * PAGE])
addrs = st.builds(int.__add__, _edges, st.integers(-70, 70)) | st.sampled_from([0, 1 << 63, (1 << 64) - 8])
counts = st.integers(0, 200) | st.sampled_from([PAGE, 3 * PAGE])
offsets = st.integers(0, 300) | st.sampled_from([-1, len(DATA), 1 << 63, (1 << 64) - 1])
modes = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
descriptors = st.none() | st.sampled_from(_NONE)


def _same(both: Both, mode: int, none: int | None, *calls: Callable[[int], Result]) -> None:
    """Each call, on a file of its own that was opened so, has the same result, position, file and memory."""
    kernel, guest = both
    found = []
    for call in calls:
        file = new_file(DATA[:400])
        opened = os.open(f"/proc/self/fd/{file}", mode)
        result = call(opened if none is None else none)
        content = os.pread(file, 1 << 17, 0)
        if isinstance(result, str):  # the kernel has let a file grow to where it could write nothing
            content = content.rstrip(b"\0")
        found.append((result, os.lseek(opened, 0, os.SEEK_CUR), content))
        os.close(opened)
        os.close(file)
    if found[0][0] == 0 and found[1][0] == "EFAULT":
        return  # Linux looks at a file's end before it looks at memory, and we the other way round
    assert found[0] == found[1]
    for addr, _ in _PAGES:
        assert kernel.content(addr, addr + PAGE) == guest.content(addr, addr + PAGE)


def _cool(space: AddressSpace) -> None:
    """Let no page be cached."""
    for addr, prot in _PAGES:
        space.mprotect(addr, PAGE, mman.PROT_NONE)
        space.mprotect(addr, PAGE, prot)


@given(
    addr=addrs,
    n=counts,
    offset=st.none() | offsets,
    mode=modes,
    none=descriptors,
    write=st.booleans(),
    cold=st.booleans(),
)
def test_one_range(
    both: Both, addr: int, n: int, offset: int | None, mode: int, none: int | None, write: bool, cold: bool
) -> None:
    """Files however they were opened, what is no descriptor, any offset; memory in part or not there, cached or not."""
    kernel, guest = both
    if cold:
        _cool(guest.space)

    def ours(fd: int) -> int:
        if offset is None:
            return (write_fd if write else read_fd)(guest.space, fd, addr, n)
        return (pwrite_fd if write else pread_fd)(guest.space, fd, addr, n, offset)

    host = kernel.write if write else kernel.read
    _same(both, mode, none, lambda fd: host(fd, [(addr, n)], offset), lambda fd: guest.answer(lambda: ours(fd)))


def _warm(space: AddressSpace) -> None:
    """Let all pages be cached, for each access that is allowed."""
    for addr, prot in _PAGES:
        byte = space.read_bytes(addr, 1)
        if prot & mman.PROT_WRITE:
            space.copy_out(addr, byte)


def _neighbours(addr: int, sizes: list[int]) -> Ranges:
    """Ranges each of which begins where the one before ends."""
    ranges = []
    for n in sizes:
        ranges.append((addr, n))
        addr = (addr + n) % (1 << 64)
    return ranges


@given(
    ranges=st.lists(st.builds(_neighbours, addrs, st.lists(counts, min_size=1, max_size=4)), max_size=3).map(
        lambda runs: [pair for run in runs for pair in run]
    ),
    offset=st.none() | offsets,
    mode=modes,
    none=descriptors,
    write=st.booleans(),
    warm=st.booleans(),
)
def test_readv_and_writev(
    both: Both, ranges: Ranges, offset: int | None, mode: int, none: int | None, write: bool, warm: bool
) -> None:
    """Several ranges, some of them neighbours, by a table in the guest's memory."""
    kernel, guest = both
    if warm:
        _warm(guest.space)
    table = b"".join(struct.pack("<QQ", *pair) for pair in ranges)
    for memory in both:
        zero = new_file(table)
        assert memory.read(zero, [(_TABLE, len(table))], None) == len(table)
        os.close(zero)
    host = kernel.write if write else kernel.read

    def ours(fd: int) -> int:
        if offset is None:
            return (writev_fd if write else readv_fd)(guest.space, fd, _TABLE, len(ranges))
        return (pwritev_fd if write else preadv_fd)(guest.space, fd, _TABLE, len(ranges), offset)

    _same(both, mode, none, lambda fd: host(fd, ranges, offset), lambda fd: guest.answer(lambda: ours(fd)))
