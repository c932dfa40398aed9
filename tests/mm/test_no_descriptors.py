"""A process that has no descriptor left: what is mapped can be used, and a fault is told as ever."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest

from hostarch import mman
from safemem import safecopy
from usermem import AddressSpace, FaultError, copy_string_in
from usermem.errors import FaultReason
from usermem.mm.faulting import can_map

resource = pytest.importorskip("resource")

RW = mman.PROT_READ | mman.PROT_WRITE
PAGE = mmap.PAGESIZE
FLAGS = {"shared": mman.MAP_SHARED, "private": mman.MAP_PRIVATE}


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Have the host refuse every new descriptor, in a ``with``."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


ACCESSES: dict[str, tuple[Callable[[AddressSpace, int], object], int]] = {
    "copy_in": (lambda space, end: space.copy_in(end - 4000, bytearray(8000)), 4000),
    "copy_out": (lambda space, end: space.copy_out(end - 96, b"z" * 200), 96),
    "read_bytes": (lambda space, end: space.read_bytes(end - 96, 200), 96),
    "zero_out": (lambda space, end: space.zero_out(end - 6, 20), 6),
    "copy_string_in": (lambda space, end: copy_string_in(space, end - 10, 5000), 10),
    "swap_uint32": (lambda space, end: space.swap_uint32(end, 1), 0),
    "load_uint32": (lambda space, end: space.load_uint32(end), 0),
}


@pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")
@pytest.mark.parametrize("name", ACCESSES)
@pytest.mark.parametrize("flags", FLAGS)
def test_a_fault_in_a_truncated_file(name: str, flags: str) -> None:
    """It has the exact count, the address, and the reason of a fault behind the file's end."""
    access, count = ACCESSES[name]
    with tempfile.TemporaryFile() as file, AddressSpace() as space:
        file.write(b"a" * 4 * PAGE)
        file.flush()
        addr = space.mmap(0, 4 * PAGE, RW, FLAGS[flags], file.fileno(), 0)
        assert space.read_bytes(addr, 1) == b"a"
        file.truncate(PAGE)
        with no_descriptors(), pytest.raises(FaultError) as caught:
            access(space, addr + PAGE)
    fault = caught.value
    assert (fault.errno, fault.transferred, fault.reason) == (errno.EFAULT, count, FaultReason.BEYOND_FILE)
    assert fault.address == addr + PAGE


@pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")
def test_a_host_that_does_not_try_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no MADV_POPULATE_READ the count is exact without a descriptor, and only the reason not."""
    monkeypatch.setattr(safecopy, "_populate", lambda: None)
    with tempfile.TemporaryFile() as file, AddressSpace() as space:
        file.truncate(PAGE)
        addr = space.mmap(0, 2 * PAGE, RW, mman.MAP_SHARED, file.fileno(), 0)
        faults = []
        for limit in (no_descriptors(), nullcontext()):
            with limit, pytest.raises(FaultError) as caught:
                space.read_bytes(addr + PAGE - 5, 10)
            faults.append((caught.value.transferred, caught.value.reason))
    assert faults == [(5, FaultReason.UNMAPPED), (5, FaultReason.BEYOND_FILE)]


FIRST_USES = """
import os, resource, sys
from hostarch import AddrRange, AddrRangeSeq, mman
from safemem import Block, BlockSeq, BlockSeqReader, atomics
from usermem import AddressSpace, copy_uint32_in, render

class File:
    def size(self): return 8192
    def read_at(self, offset, dst): dst[:4] = b"file"; return 4
    def write_at(self, offset, src): self.got = bytes(src[:4])

space, file = AddressSpace(), File()
ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
shared = space.map_object(0, 8192, 3, mman.MAP_SHARED, file)
private = space.map_object(0, 8192, 3, mman.MAP_PRIVATE, file)
program = os.open(sys.executable, os.O_RDONLY)
space.mmap(0, 4096, 1, mman.MAP_PRIVATE, program)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
anonymous = [space.mmap(0, 8192, 3, mman.MAP_ANONYMOUS | flags) for flags in (mman.MAP_PRIVATE, mman.MAP_SHARED)]
for addr in (*anonymous, shared, private):
    ars = AddrRangeSeq.of(AddrRange(addr, addr + 5))
    assert space.copy_in(addr, bytearray(5000)) == 5000
    assert space.copy_out(addr, b"some") == 4
    assert space.copy_out_from(ars, BlockSeqReader(BlockSeq.of(Block(b"12345")))) == 5
    assert space.swap_uint32(addr, 7) and space.load_uint32(addr) == copy_uint32_in(space, addr) == 7
    assert space.blocks(ars).tobytes()[:1] == b"\\7"
    assert space.mincore(addr, 8192)[:1] == b"\\1"
    space.mprotect(addr, 4096, 1)
    space.host_runs(addr, addr + 8192)
assert space.madvise(space.mremap(space.mmap(0, 8192, 3, ANON), 8192, 1 << 20, 1), 4096, 4) == 0
assert os.path.realpath(sys.executable) in space.maps() and os.path.realpath(sys.executable) in render(space)
space.munmap(shared, 8192)
assert atomics.tier() == sys.argv[1]
assert file.got == b"\\7\\0\\0\\0", file.got
space.close()
"""


def test_first_uses() -> None:
    """Of all that is mapped: what they load was loaded when the space was made, or when it was mapped."""
    tier = in_a_child("from safemem import atomics; print(atomics.tier(), end='')")
    assert in_a_child(FIRST_USES, tier) == ""


def in_a_child(*args: str) -> str:
    """What a program prints, with some arguments; it has to end well."""
    command = [sys.executable, "-W", "error", "-c", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
