"""Files of the host's behind guest mappings: what the guest sees of them, what they see of it, and their ends."""

from __future__ import annotations

import errno
import gc
import io
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_layouts import one
from hostarch import READ, AddrRange, AddrRangeSeq, mman
from safemem import BlockSeq, FromIOReader, FromIOWriter
from usermem import AddressSpace, FaultError, copy_in_vec, copy_string_in, copy_uint32_in, linux_result
from usermem.errors import FaultReason
from usermem.mm.faulting import can_map
from usermem.testing.operations import pattern

PAGE = mmap.PAGESIZE
R, W, RW = mman.PROT_READ, mman.PROT_WRITE, mman.PROT_READ | mman.PROT_WRITE
SIZE = 3 * PAGE + 100
DATA = pattern(SIZE)

pytestmark = pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of three pages and a piece, open for all."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("flags", [mman.MAP_SHARED, mman.MAP_PRIVATE, mman.MAP_SHARED_VALIDATE])
def test_the_guest_reads_the_file(fd: int, flags: int) -> None:
    """Its bytes, zeros to the end of the last page, and nothing behind that; from any page on."""
    with AddressSpace() as space:
        addr = space.mmap(0, 6 * PAGE, R, flags, fd, 0)
        assert space.read_bytes(addr, SIZE) == DATA
        assert space.read_bytes(addr + SIZE, 4 * PAGE - SIZE) == bytes(4 * PAGE - SIZE)
        with pytest.raises(FaultError) as caught:
            space.read_bytes(addr, 6 * PAGE)
        fault = caught.value
        assert (fault.address, fault.transferred, fault.reason) == (addr + 4 * PAGE, 4 * PAGE, FaultReason.BEYOND_FILE)
        assert fault.partial == DATA + bytes(4 * PAGE - SIZE)
        assert fault.signo.name == "SIGBUS"
        later = space.mmap(0, PAGE, R, flags, fd, 2 * PAGE)
        assert space.read_bytes(later, PAGE) == DATA[2 * PAGE : 3 * PAGE]
        with pytest.raises(FaultError):
            space.copy_out(addr, b"x")


def test_shared_pages_are_the_files(fd: int) -> None:
    """Each sees what the other writes, at once; two mappings see each other."""
    with AddressSpace() as space:
        addr = space.mmap(0, 4 * PAGE, RW, mman.MAP_SHARED, fd, 0)
        again = space.mmap(0, PAGE, R, mman.MAP_SHARED, fd, PAGE)
        assert space.copy_out(addr + PAGE - 2, b"guest") == 5
        assert os.pread(fd, 5, PAGE - 2) == b"guest"
        assert space.read_bytes(again, 3) == b"est"
        os.pwrite(fd, b"host", 10)
        assert space.read_bytes(addr + 10, 4) == b"host"
        space.zero_out(addr, 8)
        assert os.pread(fd, 8, 0) == bytes(8)
        assert space.msync(addr, 4 * PAGE, mman.MS_SYNC) == 0
        space.copy_out(addr + SIZE, b"behind the end")  # which is in the last page, and not in the file
        assert os.fstat(fd).st_size == SIZE


def test_private_pages_are_the_guests(fd: int) -> None:
    """What it writes, nobody else sees, and it keeps; until it says that it needs it no more."""
    with AddressSpace() as space:
        addr = space.mmap(0, 2 * PAGE, RW, mman.MAP_PRIVATE, fd, 0)
        space.copy_out(addr, b"mine")
        assert os.pread(fd, 4, 0) == DATA[:4]
        os.pwrite(fd, b"theirs", 0)
        assert space.read_bytes(addr, 6) == b"mine" + DATA[4:6]
        os.pwrite(fd, b"seen", PAGE)
        assert space.read_bytes(addr + PAGE, 4) == b"seen"
        space.madvise(addr, PAGE, mman.MADV_DONTNEED)
        assert space.read_bytes(addr, 6) == b"theirs"


def test_a_file_that_grows_and_shrinks(fd: int) -> None:
    """Pages come and go with it."""
    with AddressSpace() as space:
        addr = space.mmap(0, 6 * PAGE, RW, mman.MAP_SHARED, fd, 0)
        os.ftruncate(fd, 6 * PAGE)
        assert space.read_bytes(addr, 6 * PAGE) == DATA + bytes(6 * PAGE - SIZE)
        os.ftruncate(fd, PAGE)
        with pytest.raises(FaultError) as caught:
            space.copy_out(addr + PAGE - 10, bytes(20))
        assert (caught.value.transferred, linux_result(caught.value)) == (10, 10)
        with pytest.raises(FaultError) as caught:
            space.copy_in(addr + PAGE, bytearray(1))
        assert linux_result(caught.value) == -errno.EFAULT


def test_every_kind_of_copy(fd: int) -> None:
    """Strings, vectors, words, streams: across the end of the file each says how far it got."""
    with AddressSpace() as space:
        addr = space.mmap(0, 6 * PAGE, RW, mman.MAP_SHARED, fd, 0)
        end = addr + 4 * PAGE
        space.copy_out(end - 3, b"abc")
        with pytest.raises(FaultError) as caught:
            copy_string_in(space, end - 3, 100)
        assert caught.value.partial == b"abc"
        ranges = AddrRangeSeq([AddrRange(addr, addr + 4), AddrRange(end - 2, end + 2)])
        into = bytearray(8)
        with pytest.raises(FaultError) as caught:
            copy_in_vec(space, ranges, into)
        assert (caught.value.transferred, bytes(into)) == (6, DATA[:4] + b"bc\0\0")
        assert copy_uint32_in(space, addr) == int.from_bytes(DATA[:4], "little")
        assert space.swap_uint32(addr, 7) == int.from_bytes(DATA[:4], "little")
        with pytest.raises(FaultError):
            space.load_uint32(end)
        with pytest.raises(FaultError) as caught:
            space.copy_out_from(one(end - 4, 10), FromIOReader(io.BytesIO(b"0123456789")))
        assert (caught.value.transferred, space.read_bytes(end - 4, 4)) == (4, b"0123")
        sink = io.BytesIO()
        with pytest.raises(FaultError) as caught:
            space.copy_in_to(one(end - 4, 10), FromIOWriter(sink))
        assert (caught.value.transferred, sink.getvalue()) == (4, b"0123")
        blocks = space.blocks(one(addr, 10), READ)
        assert isinstance(blocks, BlockSeq)
        assert blocks.need_safecopy
        assert blocks.tobytes() == space.read_bytes(addr, 10)


@pytest.mark.parametrize(
    ("mode", "prot", "flags", "code"),
    [
        (os.O_RDONLY, RW, mman.MAP_SHARED, errno.EACCES),
        (os.O_RDONLY, RW, mman.MAP_PRIVATE, 0),
        (os.O_RDONLY, R, mman.MAP_SHARED, 0),
        (os.O_WRONLY, W, mman.MAP_SHARED, errno.EACCES),
        (os.O_WRONLY, R, mman.MAP_PRIVATE, errno.EACCES),
        (os.O_RDWR, R, 0, errno.EINVAL),
    ],
)
def test_what_the_descriptor_allows(tmp_path: Path, mode: int, prot: int, flags: int, code: int) -> None:
    """As the kernel's own mmap, asked for the same."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    fd = os.open(path, mode)
    try:
        with AddressSpace() as space:
            for call in (
                lambda: space.mmap(0, PAGE, prot, flags, fd, 0),
                lambda: mmap.mmap(fd, PAGE, flags=flags, prot=prot),
            ):
                if code:
                    with pytest.raises(OSError) as caught:
                        call()
                    assert caught.value.errno == code
                else:
                    call()
    finally:
        os.close(fd)


def test_rights_that_cannot_come_later(tmp_path: Path) -> None:
    """A shared mapping of a file that is open for reading never becomes writable; a private one may."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    with AddressSpace() as space:
        shared, private = (space.mmap(0, PAGE, R, flags, fd, 0) for flags in (mman.MAP_SHARED, mman.MAP_PRIVATE))
        os.close(fd)
        with pytest.raises(PermissionError):
            space.mprotect(shared, PAGE, RW)
        assert space.mprotect(private, PAGE, RW) == 0
        assert space.copy_out(private, b"x") == 1
        assert space.read_bytes(shared, 5) == DATA[:5]


def test_descriptors_that_are_none() -> None:
    """EBADF, whatever else is wrong; a pipe is ENODEV or EACCES, as the host says; nothing is mapped."""
    outlet, inlet = os.pipe()
    with AddressSpace() as space:
        for fd in (-1, 1 << 20):
            with pytest.raises(OSError, match="descriptor"):
                space.mmap(0, 0, R, mman.MAP_PRIVATE, fd, 0)
        with pytest.raises(OSError) as caught:
            space.mmap(0, PAGE, R, mman.MAP_PRIVATE, outlet, 0)
        assert caught.value.errno in (errno.ENODEV, errno.EACCES)
        assert space.maps() == ""
    os.close(outlet)
    os.close(inlet)


def test_a_refusal_unmaps_nothing(fd: int) -> None:
    """With MAP_FIXED over something: it stays if the file cannot be mapped."""
    outlet, inlet = os.pipe()
    with AddressSpace() as space:
        addr = space.mmap(0, PAGE, RW, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
        space.copy_out(addr, b"here")
        with pytest.raises(OSError):
            space.mmap(addr, PAGE, R, mman.MAP_PRIVATE | mman.MAP_FIXED, outlet, 0)
        assert space.read_bytes(addr, 4) == b"here"
        space.mmap(addr, PAGE, R, mman.MAP_PRIVATE | mman.MAP_FIXED, fd, 0)
        assert space.read_bytes(addr, 4) == DATA[:4]
    os.close(outlet)
    os.close(inlet)


def test_moved_and_cut(fd: int) -> None:
    """mremap and munmap leave each page the bytes it had; a private page that was written, too."""
    with AddressSpace() as space:
        addr = space.mmap(0, 4 * PAGE, RW, mman.MAP_PRIVATE, fd, 0)
        space.copy_out(addr + 2 * PAGE, b"mine")
        space.munmap(addr + PAGE, PAGE)
        to = space.mremap(addr + 2 * PAGE, PAGE, 2 * PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, addr + 16 * PAGE)
        assert space.read_bytes(to, 8) == b"mine" + DATA[2 * PAGE + 4 : 2 * PAGE + 8]
        assert space.read_bytes(to + PAGE, 100) == DATA[3 * PAGE :]
        assert space.read_bytes(addr, PAGE) == DATA[:PAGE]
        shared = space.mmap(0, PAGE, RW, mman.MAP_SHARED, fd, 0)
        twice = space.mremap(shared, 0, PAGE, mman.MREMAP_MAYMOVE)
        space.copy_out(twice, b"both")
        assert space.read_bytes(shared, 4) == b"both"


def test_what_was_private_is_gone_with_its_page(fd: int) -> None:
    """A page that was written, and unmapped, does not come back when the mapping grows over it."""
    with AddressSpace() as space:
        addr = space.mmap(0x10_0000, 2 * PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, fd, 0)
        space.copy_out(addr + PAGE, b"secret")
        space.munmap(addr + PAGE, PAGE)
        assert space.mremap(addr, PAGE, 2 * PAGE) == addr
        assert space.read_bytes(addr + PAGE, 6) == DATA[PAGE : PAGE + 6]


def test_mappings_of_one_file_are_one(fd: int) -> None:
    """Where one goes on as the other ended, as Linux joins them: mremap takes them together."""
    with AddressSpace() as space:
        fixed = mman.MAP_SHARED | mman.MAP_FIXED
        addr = space.mmap(0x10_0000, PAGE, RW, fixed, fd, 0)
        space.mmap(addr + PAGE, PAGE, RW, fixed, fd, PAGE)
        assert space.maps().count("\n") == 1
        to = space.mremap(addr, 2 * PAGE, 3 * PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, 0x20_0000)
        assert space.read_bytes(to, 3 * PAGE) == DATA[: 3 * PAGE]
        space.mmap(to + 3 * PAGE, PAGE, RW, fixed, fd, 0)
        space.mmap(to + 4 * PAGE, PAGE, RW, mman.MAP_PRIVATE | mman.MAP_FIXED, fd, PAGE)
        assert space.maps().count("\n") == 3


def test_maps_names_the_file(fd: int, tmp_path: Path) -> None:
    """Device, inode, offset and path, as /proc/PID/maps does."""
    status = os.fstat(fd)
    with AddressSpace() as space:
        space.mmap(0, PAGE, R, mman.MAP_SHARED, fd, PAGE)
        fields = space.maps().split()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        assert fields[1:] == ["r--s", f"{PAGE:08x}", device, str(status.st_ino), str(tmp_path / "file")]


def test_nothing_is_left_behind(fd: int) -> None:
    """Descriptors and host mappings go with the last block that refers to them."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    space = AddressSpace()
    addr = space.mmap(0, PAGE, RW, mman.MAP_SHARED, fd, 0)
    blocks = space.blocks(one(addr, 4), READ)
    space.munmap(addr, PAGE)
    assert blocks.tobytes() == DATA[:4]
    for _ in range(50):
        space.munmap(space.mmap(0, PAGE, RW, mman.MAP_SHARED, fd, 0), PAGE)
    del blocks
    space.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
