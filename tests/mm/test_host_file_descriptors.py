"""Mappings of one file share one descriptor, and closing it drops no lock that the process has on the file."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from edge_layouts import BASE, PAGE, RW, pattern
from hostarch import mman
from usermem import AddressSpace
from usermem.mm.faulting import can_map

ROOT = Path(__file__).resolve().parents[2]
R = mman.PROT_READ

pytestmark = pytest.mark.skipif(not can_map(), reason="this host cannot copy memory that may fault")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[BinaryIO]:
    """A file of two pages."""
    path = tmp_path / "database"
    path.write_bytes(pattern(2 * PAGE))
    with path.open("rb+", buffering=0) as file:
        yield file


def descriptors(file: BinaryIO) -> int:
    """How many descriptors of this process are open on a file."""
    gc.collect()
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists them is gone
            found += link.readlink() == Path(str(file.name))
    return found


MANY = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from hostarch import mman
from usermem import AddressSpace
PAGE, BASE = 4096, 1 << 32
fds = [os.open(sys.argv[1], flags) for flags in (os.O_RDWR, os.O_RDONLY)]
spaces = [AddressSpace() for _ in range(10)]
kinds = (mman.MAP_SHARED, mman.MAP_PRIVATE)
for i in range(10_000):
    at = BASE + i // 10 * 2 * PAGE
    flags = kinds[i // 10 % 2] | mman.MAP_FIXED
    spaces[i % 10].mmap(at, PAGE, mman.PROT_READ, flags, fds[i // 20 % 2], i // 10 % 2 * PAGE)
    if i % 100 < 10:
        assert spaces[i % 10].read_bytes(at, 1) == b"ab"[i // 10 % 2 : i // 10 % 2 + 1], i
assert [len(space.mappings()) for space in spaces] == [1000] * 10
assert len(os.listdir("/proc/self/fd")) < 20
with open("/proc/self/maps") as maps:
    print(sum("the file" in line for line in maps))
for space in spaces:
    space.close()
"""


def test_ten_thousand_mappings_of_one_file(tmp_path: Path) -> None:
    """In a process that may have 256 descriptors, of two kinds, by two descriptors, in ten spaces."""
    path = tmp_path / "the file"
    path.write_bytes(b"a" * PAGE + b"b" * PAGE)
    child = subprocess.run(
        [sys.executable, "-c", MANY, path], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert child.returncode == 0, child.stderr
    # Shared ones have a window in common; private ones that were touched have one each.
    assert int(child.stdout) <= 600


def test_mappings_share_a_descriptor(file: BinaryIO) -> None:
    """One for each file, and how it was opened; none is left when nothing is mapped, and ours is not used up."""
    with AddressSpace() as space, AddressSpace() as other:
        for i in range(20):
            for mm in (space, other):
                mm.mmap(BASE + 2 * i * PAGE, PAGE, R, mman.MAP_SHARED | mman.MAP_FIXED, file.fileno(), i % 2 * PAGE)
                mm.mmap(0, PAGE, RW, mman.MAP_PRIVATE, file.fileno(), 0)
        assert descriptors(file) == 2
        with Path(str(file.name)).open("rb", buffering=0) as reader:
            at = space.mmap(0, PAGE, R, mman.MAP_SHARED, reader.fileno(), 0)
        assert descriptors(file) == 3
        assert space.read_bytes(at, PAGE) == pattern(PAGE)
    assert descriptors(file) == 1
    assert os.pread(file.fileno(), 4, 0) == pattern(4)


def test_the_guests_descriptor_may_be_closed(tmp_path: Path) -> None:
    """And its number used for another file: what is mapped stays what it is."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1" * PAGE)
    second.write_bytes(b"2" * PAGE)
    with AddressSpace() as space:
        found = []
        for path in (first, second, first):
            with path.open("rb", buffering=0) as file:
                found.append(space.mmap(0, PAGE, R, mman.MAP_SHARED, file.fileno(), 0))
        assert [space.read_bytes(at, 1) for at in found] == [b"1", b"2", b"1"]


def locked(file: BinaryIO) -> bool:
    """Whether another process finds a lock on a file."""
    child = os.fork()
    if not child:
        code = 2
        try:
            with Path(str(file.name)).open("rb+") as own:
                fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            code = 0
        except OSError:
            code = 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 1)
    return bool(code)


def unmap(space: AddressSpace, file: BinaryIO) -> None:
    """Map the file and unmap it."""
    at = space.mmap(0, PAGE, RW, mman.MAP_SHARED, file.fileno(), 0)
    space.copy_out(at, b"touched")
    space.munmap(at, PAGE)


def map_over(space: AddressSpace, file: BinaryIO) -> None:
    """Map the file, and something else in its place."""
    at = space.mmap(0, PAGE, R, mman.MAP_PRIVATE, file.fileno(), 0)
    space.mmap(at, PAGE, R, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED)


def close(space: AddressSpace, file: BinaryIO) -> None:
    """Map the file and close the space."""
    space.mmap(0, PAGE, R, mman.MAP_PRIVATE, file.fileno(), 0)
    space.close()


def drop(space: AddressSpace, file: BinaryIO) -> None:
    """Map the file in a space that simply goes."""
    AddressSpace().mmap(0, PAGE, R, mman.MAP_SHARED, file.fileno(), 0)


def fail(space: AddressSpace, file: BinaryIO) -> None:
    """Have the mapping refused: by the limit, and for its place."""
    space.limits.address_limit = PAGE
    with pytest.raises(OSError, match="may not grow"):
        space.mmap(0, 2 * PAGE, R, mman.MAP_SHARED, file.fileno(), 0)
    space.limits.address_limit = None
    at = space.mmap(0, PAGE, R, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    with pytest.raises(FileExistsError):
        space.mmap(at, PAGE, R, mman.MAP_SHARED | mman.MAP_FIXED_NOREPLACE, file.fileno(), 0)


def map_another_file(space: AddressSpace, file: BinaryIO) -> None:
    """After the file is unmapped, map others: then descriptors that serve nothing are closed."""
    unmap(space, file)
    for i in range(4):
        path = Path(str(file.name)).with_name(f"other{i}")
        path.write_bytes(bytes(PAGE))
        with path.open("rb+", buffering=0) as other:
            unmap(space, other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="asks another process for the lock")
@pytest.mark.parametrize("call", [unmap, map_over, close, drop, fail, map_another_file])
@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH], ids=["write lock", "read lock"])
def test_a_lock_stays(file: BinaryIO, call: Callable[[AddressSpace, BinaryIO], None], kind: int) -> None:
    """POSIX record locks go with the first descriptor that is closed; mmap(2) and munmap(2) close none."""
    fcntl.lockf(file, kind, 100, 50)
    assert locked(file)
    call(AddressSpace(), file)
    gc.collect()
    assert locked(file)
    fcntl.lockf(file, fcntl.LOCK_UN)
    assert not locked(file)


def test_a_lock_that_is_released_later(file: BinaryIO) -> None:
    """Its file's descriptor, which had to wait, is closed by the next mmap of any file; it serves a new mapping too."""
    space = AddressSpace()
    fcntl.lockf(file, fcntl.LOCK_EX)
    unmap(space, file)
    assert descriptors(file) == 2
    unmap(space, file)
    assert descriptors(file) == 2
    fcntl.lockf(file, fcntl.LOCK_UN)
    other = Path(str(file.name)).with_name("other")
    other.write_bytes(bytes(PAGE))
    with other.open("rb+", buffering=0) as another:
        space.mmap(0, PAGE, R, mman.MAP_SHARED, another.fileno(), 0)
        assert descriptors(file) == 1


def test_locks_on_many_files(tmp_path: Path) -> None:
    """Descriptors that wait are closed, some at each mapping call, and no more of them wait than files are locked."""
    space = AddressSpace()
    with ExitStack() as stack:
        files = []
        for i in range(13):
            path = tmp_path / f"file{i}"
            path.write_bytes(bytes(PAGE))
            files.append(stack.enter_context(path.open("rb+", buffering=0)))
        for file in files[:-1]:
            fcntl.lockf(file, fcntl.LOCK_EX)
            unmap(space, file)
        assert [descriptors(file) for file in files] == [2] * 12 + [1]
        for file in files[::2]:
            fcntl.lockf(file, fcntl.LOCK_UN)
        for _ in range(12):
            unmap(space, files[-1])
        assert [descriptors(file) for file in files[:-1]] == [1, 2] * 6
