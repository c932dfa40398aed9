"""read_fd, write_fd and their kin give what the system calls give: counts, errnos, bytes, positions."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostarch import mman
from kernel_memory import BASE, DATA, PAGE, WINDOW, GuestMemory, KernelMemory, Result, new_file, new_pipe
from usermem import AddressSpace, FaultyIO, pread_fd, pwrite_fd, read_fd, readv_fd, write_fd, writev_fd

_RW = mman.PROT_READ | mman.PROT_WRITE
_FLAGS = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
_TABLE = BASE + 16 * PAGE
_NONE = (-1, 1 << 20, (1 << 31) - 1, -(1 << 31), 1 << 40, (1 << 64) - 1)
"""Ints that are no descriptors."""


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[KernelMemory, AddressSpace]]:
    """The same memory twice: two pages to be written, one to be read, none, and a page for tables."""
    kernel, guest = KernelMemory(), GuestMemory()
    for memory in (kernel, guest):
        for addr, length, prot in ((BASE, 2, _RW), (BASE + 2 * PAGE, 1, mman.PROT_READ), (_TABLE, 1, _RW)):
            assert memory.mmap(addr, length * PAGE, prot, _FLAGS) == addr
    yield kernel, guest.space
    kernel.close()
    guest.close()


def _answer(call: Callable[[], int]) -> Result:
    return GuestMemory._answer(None, call)  # type: ignore[arg-type]


edges = st.sampled_from([BASE, BASE + 2 * PAGE, BASE + 3 * PAGE, _TABLE])
addrs = st.builds(lambda edge, n: edge + n, edges, st.integers(-70, 70)) | st.sampled_from([0, 1 << 63, (1 << 64) - 8])
counts = st.integers(0, 200) | st.sampled_from([PAGE, 3 * PAGE, 1 << 62])
offsets = st.none() | st.integers(0, 300) | st.sampled_from([-1, len(DATA) + 5, 1 << 63, (1 << 64) - 1])
modes = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])


@given(addr=addrs, n=counts, offset=offsets, mode=modes, write=st.booleans(), cold=st.booleans(), fd=st.none() | st.sampled_from(_NONE))
def test_one_range(
    both: tuple[KernelMemory, AddressSpace],
    addr: int,
    n: int,
    offset: int | None,
    mode: int,
    write: bool,
    cold: bool,
    fd: int | None,
) -> None:
    """read, write, pread and pwrite, of files however they were opened, and of what is no descriptor."""
    kernel, space = both
    if cold:  # no page is cached
        space.mprotect(BASE, PAGE, mman.PROT_READ)
        space.mprotect(BASE, PAGE, _RW)
    found = []
    for of_guest in (False, True):
        kernel_content = DATA[:400]
        made = new_file(kernel_content)
        opened = os.open(f"/proc/self/fd/{made}", mode) if fd is None else fd
        os.lseek(made, 0, os.SEEK_SET)
        call: Callable[[], int]
        if not of_guest:
            move = kernel.write if write else kernel.read
            result = move(opened, [(addr, n)], offset)
        elif offset is None:
            call = lambda: (write_fd if write else read_fd)(space, opened, addr, n)  # noqa: B023, E731 - called at once
            result = _answer(call)
        else:
            at = offset
            call = lambda: (pwrite_fd if write else pread_fd)(space, opened, addr, n, at)  # noqa: B023, E731
            result = _answer(call)
        position = os.lseek(opened, 0, os.SEEK_CUR) if fd is None else 0
        found.append((result, position, os.pread(made, 1 << 16, 0)))
        os.close(made)
        if fd is None:
            os.close(opened)
    assert found[0] == found[1]
    for start in (BASE, BASE + PAGE, BASE + 2 * PAGE, _TABLE):
        assert kernel.content(start, start + PAGE) == space.read_bytes(start, PAGE)
