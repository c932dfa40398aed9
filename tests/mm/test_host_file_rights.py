"""What a file allows its mappings: seals of memory files, and mounts without execution."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from edge_layouts import PAGE, RW
from hostarch import mman
from usermem import AddressSpace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's files")

R, RX = mman.PROT_READ, mman.PROT_READ | mman.PROT_EXEC
F_ADD_SEALS, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE = 1033, 8, 16
WINDOW = 1 << 26  # how much of a file the host maps at a time


def code(call: Callable[[], object]) -> str:
    """The name of the errno that a call raises."""
    with pytest.raises(OSError) as caught:
        call()
    return errno.errorcode[caught.value.errno or 0]


def memory_file(seal: int = 0) -> int:
    """A memory file of a page, with a seal."""
    import fcntl

    fd = os.memfd_create("file", os.MFD_ALLOW_SEALING)
    os.write(fd, b"data" + bytes(PAGE - 4))
    if seal:
        fcntl.fcntl(fd, F_ADD_SEALS, seal)
    return fd


@pytest.mark.parametrize("seal", [F_SEAL_WRITE, F_SEAL_FUTURE_WRITE], ids=["write", "future write"])
def test_sealed_files(seal: int) -> None:
    """Sealed against writing: a shared mapping is read-only for good, a private one may be written."""
    fd = memory_file(seal)
    space = AddressSpace()
    assert code(lambda: space.mmap(0, PAGE, RW, mman.MAP_SHARED, fd)) == "EPERM"
    shared = space.mmap(0, PAGE, R, mman.MAP_SHARED, fd)
    assert space.read_bytes(shared, 4) == b"data"
    assert code(lambda: space.mprotect(shared, PAGE, RW)) == "EACCES"
    private = space.mmap(0, PAGE, RW, mman.MAP_PRIVATE, fd)
    assert space.copy_out(private, b"mine") == 4
    assert space.read_bytes(shared, 4) == b"data"
    os.close(fd)


@pytest.mark.parametrize("touched", [True, False])
@pytest.mark.parametrize("offset", [0, PAGE, WINDOW + PAGE])
def test_sealed_later(touched: bool, offset: int) -> None:
    """What was mapped before the seal may be written on, whenever it is touched; all see the same bytes."""
    import fcntl

    fd = memory_file()
    os.ftruncate(fd, offset + PAGE)
    os.pwrite(fd, b"data", offset)
    space = AddressSpace()
    before = space.mmap(0, PAGE, RW, mman.MAP_SHARED, fd, offset)
    if touched:
        assert space.read_bytes(before, 4) == b"data"
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    after = space.mmap(0, PAGE, R, mman.MAP_SHARED, fd, offset)
    assert space.copy_out(before, b"more") == 4
    assert space.read_bytes(after, 4) == os.pread(fd, 4, offset) == b"more"
    assert code(lambda: space.mprotect(after, PAGE, RW)) == "EACCES"
    os.close(fd)


@pytest.mark.parametrize("prot", [R, RW])
def test_a_file_that_is_mapped_cannot_be_sealed(prot: int) -> None:
    """F_SEAL_WRITE is EBUSY as long as a mapping shares the file's bytes and may be written, touched or not."""
    import fcntl

    fd = memory_file()
    space = AddressSpace()
    shared = space.mmap(0, 2 * PAGE, prot, mman.MAP_SHARED, fd)
    private = space.mmap(0, PAGE, RW, mman.MAP_PRIVATE, fd)
    assert code(lambda: fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)) == "EBUSY"
    space.munmap(shared, PAGE)
    assert code(lambda: fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)) == "EBUSY"
    space.munmap(shared + PAGE, PAGE)
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)
    assert space.copy_out(private, b"mine") == 4
    assert os.pread(fd, 4, 0) == b"data"
    os.close(fd)


def test_a_mount_without_execution(monkeypatch: pytest.MonkeyPatch) -> None:
    """PROT_EXEC is EPERM of mmap and EACCES of mprotect, private or shared; a descriptor's own rights come first."""
    fd = memory_file()
    write_only = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_flag=os.ST_NOEXEC))
    space = AddressSpace()
    for kind in (mman.MAP_PRIVATE, mman.MAP_SHARED):
        assert code(lambda k=kind: space.mmap(0, PAGE, RX, k, fd)) == "EPERM"  # type: ignore[misc]
        assert code(lambda k=kind: space.mmap(0, PAGE, RX, k, write_only)) == "EACCES"  # type: ignore[misc]
        addr = space.mmap(0, PAGE, R, kind, fd)
        assert code(lambda a=addr: space.mprotect(a, PAGE, RX)) == "EACCES"  # type: ignore[misc]
    os.close(fd)
    os.close(write_only)


# Prints what the kernel and a space say to PROT_EXEC on a mount of its own.
_MOUNTED = """
import ctypes, errno, os, sys, tempfile
from hostarch import mman
from usermem import AddressSpace
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_ssize_t
size = ctypes.c_size_t
if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None):
    sys.exit(77)
place = tempfile.mkdtemp()
try:
    if libc.mount(b"t", place.encode(), b"tmpfs", 8, None):
        sys.exit(77)
    fd = os.open(place + "/x", os.O_RDWR | os.O_CREAT, 0o700)
    os.ftruncate(fd, 4096)
    libc.umount2(place.encode(), 2)
finally:
    os.rmdir(place)
space = AddressSpace()
at = space.mmap(0, 4096, 1, mman.MAP_PRIVATE, fd)
kernel = libc.mmap(None, size(4096), 1, 2, fd, ctypes.c_long(0))
for theirs, ours in (
    (lambda: libc.mmap(None, size(4096), 5, 2, fd, ctypes.c_long(0)), lambda: space.mmap(0, 4096, 5, 2, fd)),
    (lambda: libc.mprotect(size(kernel), size(4096), 5), lambda: space.mprotect(at, 4096, 5)),
):
    code = ctypes.get_errno() if theirs() == -1 else 0
    try:
        ours()
        print(code, 0)
    except OSError as error:
        print(code, error.errno)
"""


def test_a_mount_of_its_own() -> None:
    """The kernel says the same of a file on a mount that is noexec."""
    child = subprocess.run([sys.executable, "-c", _MOUNTED], capture_output=True, text=True, timeout=60)
    if child.returncode == 77:
        pytest.skip("this process may not mount")
    assert child.returncode == 0, child.stderr
    said = [line.split() for line in child.stdout.splitlines()]
    assert said == [[str(errno.EPERM)] * 2, [str(errno.EACCES)] * 2]
