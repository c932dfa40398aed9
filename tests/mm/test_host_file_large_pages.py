"""Guests whose pages are larger than the host's: behind a file's end their last page is whole, as on such a machine."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from each_line import Event, interrupt
from hostarch import ARM64_16K, ARM64_64K, Arch, mman
from usermem import AddressSpace, FaultError, FaultReason
from usermem.mm.backing import host_file
from usermem.mm.faulting import can_map
from usermem.testing.operations import pattern

HOST_PAGE = 4096
R, RW = mman.PROT_READ, mman.PROT_READ | mman.PROT_WRITE
SHARED, PRIVATE = mman.MAP_SHARED, mman.MAP_PRIVATE

pytestmark = [
    pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault"),
    pytest.mark.skipif(mmap.PAGESIZE != HOST_PAGE, reason="the host's own pages are large"),
]
every_arch = pytest.mark.parametrize("arch", [ARM64_16K, ARM64_64K], ids=lambda arch: arch.name)
every_kind = pytest.mark.parametrize("flags", [SHARED, PRIVATE], ids=["shared", "private"])


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """An empty file."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def fill(fd: int, size: int) -> bytes:
    """Give the file that size and a pattern, and return its bytes."""
    os.truncate(fd, 0)
    os.pwrite(fd, pattern(size), 0)
    return pattern(size)


def end_of(arch: Arch, size: int) -> int:
    """Where the guest's last page of a file ends."""
    return -(-size // arch.page_size) * arch.page_size


def check(space: AddressSpace, addr: int, pages: int, expected: bytes) -> None:
    """The mapping of some pages shows these bytes, zeros to the end of the guest's page, and nothing after it."""
    page = space.arch.page_size
    end = end_of(space.arch, len(expected))
    assert space.read_bytes(addr, end) == expected + bytes(end - len(expected))
    for at in (addr + end, addr + (pages - 1) * page):
        with pytest.raises(FaultError) as caught:
            space.read_bytes(at - 4 if at == addr + end and end else at, 8)
        assert (caught.value.reason, caught.value.address) == (FaultReason.BEYOND_FILE, at)


SIZES = (1, HOST_PAGE - 1, HOST_PAGE, HOST_PAGE + 1, 3 * HOST_PAGE, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 100_000)


@every_arch
@every_kind
@pytest.mark.parametrize("size", SIZES)
def test_the_last_page_is_whole(fd: int, arch: Arch, flags: int, size: int) -> None:
    """Behind the file's end it is zero, can be read and written, and the file does not grow by it."""
    data = fill(fd, size)
    pages = size // arch.page_size + 3
    with AddressSpace(arch) as space:
        addr = space.mmap(0, pages * arch.page_size, RW, flags, fd, 0)
        check(space, addr, pages, data)
        end = end_of(arch, size)
        if end > size:
            assert space.copy_out(addr + size, b"b" * (end - size)) == end - size
            assert space.read_bytes(addr + size, end - size) == b"b" * (end - size)
        with pytest.raises(FaultError) as caught:
            space.copy_out(addr + end - 4, b"too far")
        assert (caught.value.transferred, caught.value.reason) == (4, FaultReason.BEYOND_FILE)
    assert os.fstat(fd).st_size == size


@every_arch
@every_kind
def test_an_empty_file_has_no_page(fd: int, arch: Arch, flags: int) -> None:
    """Until it has a byte."""
    with AddressSpace(arch) as space:
        addr = space.mmap(0, 3 * arch.page_size, RW, flags, fd, 0)
        check(space, addr, 3, b"")
        check(space, addr, 3, fill(fd, 1))


@every_arch
@every_kind
def test_the_file_grows_and_shrinks(fd: int, arch: Arch, flags: int) -> None:
    """After each step the mapping shows the file's bytes, also where its zeros were, and zeros where its bytes were."""
    pages = 6
    with AddressSpace(arch) as space:
        addr = space.mmap(0, pages * arch.page_size, RW, flags, fd, 0)
        sizes = [100, HOST_PAGE + 1, 3 * HOST_PAGE, arch.page_size + 5, 4 * arch.page_size, 2 * arch.page_size - 1]
        for size in [*sizes, *reversed(sizes), 0, sizes[3]]:
            check(space, addr, pages, fill(fd, size))


@every_arch
@every_kind
def test_another_mapping_of_the_file(fd: int, arch: Arch, flags: int) -> None:
    """Each finds the end where it is now, though only one of them was used when the file had another."""
    with AddressSpace(arch) as space, AddressSpace(arch) as other:
        addrs = [(mm, mm.mmap(0, 3 * arch.page_size, RW, flags, fd, 0)) for mm in (space, other)]
        for mm, addr in addrs:
            check(mm, addr, 3, fill(fd, 100))
        check(*addrs[0], 3, fill(fd, 2 * HOST_PAGE))
        data = fill(fd, 100)
        check(*addrs[1], 3, data)
        check(*addrs[0], 3, data)


@every_arch
def test_zeros_that_moved_half_way(fd: int, arch: Arch) -> None:
    """An interrupt before any line, while zeros move in three mappings: the next access of each is right."""
    for at in count(1):
        data = fill(fd, 100)
        with AddressSpace(arch) as space:
            addrs = [space.mmap(0, 3 * arch.page_size, RW, flags, fd, 0) for flags in (SHARED, PRIVATE, PRIVATE)]
            for addr in addrs:
                check(space, addr, 3, data)
            data = fill(fd, 2 * HOST_PAGE + 1)
            event = Event([host_file], at, interrupt)
            with suppress(KeyboardInterrupt):
                event.during(partial(space.read_bytes, addrs[0], 1))
            for addr in addrs:
                check(space, addr, 3, data)
        if not event.where:
            break
    assert at > 20


@every_arch
def test_what_is_written_behind_the_end_is_common(fd: int, arch: Arch) -> None:
    """Shared mappings have the last page in common; a private one has its own."""
    fill(fd, 100)
    size = arch.page_size
    with AddressSpace(arch) as space:
        first, second = (space.mmap(0, size, RW, SHARED, fd, 0) for _ in range(2))
        private = space.mmap(0, size, RW, PRIVATE, fd, 0)
        space.copy_out(first + size - 6, b"behind")
        third = space.mmap(0, size, R, SHARED, fd, 0)
        assert [space.read_bytes(at + size - 6, 6) for at in (first, second, third)] == [b"behind"] * 3
        assert space.read_bytes(private + size - 6, 6) == bytes(6)


@every_arch
@every_kind
def test_from_an_offset_and_moved(fd: int, arch: Arch, flags: int) -> None:
    """Pages that begin behind the file's start, cut, moved and protected, end where the file does."""
    page = arch.page_size
    data = fill(fd, 3 * page + 100)
    with AddressSpace(arch) as space:
        addr = space.mmap(0, 4 * page, RW, flags, fd, 2 * page)
        check(space, addr, 4, data[2 * page :])
        space.munmap(addr, page)
        to = space.mremap(addr + page, 3 * page, 5 * page, mman.MREMAP_MAYMOVE)
        check(space, to, 5, data[3 * page :])
        space.mprotect(to, page, R)
        check(space, to, 5, data[3 * page :])
        data = fill(fd, 4 * page + 100)
        check(space, to, 5, data[3 * page :])
        space._check()


@every_arch
def test_private_pages_keep_what_was_written(fd: int, arch: Arch) -> None:
    """In pages that the file still has; MADV_DONTNEED brings back the file's bytes, and the zeros behind them."""
    page = arch.page_size
    data = fill(fd, page + 100)
    with AddressSpace(arch) as space:
        addr = space.mmap(0, 2 * page, RW, PRIVATE, fd, 0)
        space.copy_out(addr + 10, b"mine")
        space.copy_out(addr + 2 * page - 4, b"mine")
        assert space.read_bytes(addr, 2 * page) == data[:10] + b"mine" + data[14:] + bytes(page - 104) + b"mine"
        space.madvise(addr, 2 * page, mman.MADV_DONTNEED)
        assert space.read_bytes(addr, 2 * page) == data + bytes(page - 100)


@every_arch
def test_a_file_that_may_only_be_read(fd: int, arch: Arch) -> None:
    """Its last page is whole, too, and is not written."""
    data = fill(fd, 100)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        with AddressSpace(arch) as space:
            addr = space.mmap(0, 2 * arch.page_size, R, SHARED, read_only, 0)
            check(space, addr, 2, data)
            with pytest.raises(FaultError):
                space.copy_out(addr + 200, b"x")
    finally:
        os.close(read_only)


@every_kind
def test_the_hosts_pages_end_where_the_hosts_do(fd: int, flags: int) -> None:
    """A guest with pages of 4 KiB that maps the same file sees no more than it should."""
    data = fill(fd, 100)
    with AddressSpace(ARM64_64K) as large, AddressSpace() as small:
        addr = large.mmap(0, 1 << 16, RW, flags, fd, 0)
        assert large.read_bytes(addr, 1 << 16) == data + bytes((1 << 16) - 100)
        at = small.mmap(0, 1 << 16, RW, flags, fd, 0)
        assert small.read_bytes(at, HOST_PAGE) == data + bytes(HOST_PAGE - 100)
        with pytest.raises(FaultError):
            small.read_bytes(at + HOST_PAGE, 1)
