"""Another process truncates a snapshot's file, or writes into it, while spaces map it: no signal comes.

Each access gives the bytes of then or a fault with an exact count. Read into memory, nothing is lost.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from campaign import times
from edge_layouts import FIXED, PAGE, one
from every_mapping import BASE, RW, EveryMapping, contents
from hostarch import AMD64, ARM64_16K, WRITE, AddrRange, AddrRangeSeq, mman
from safemem import FromIOReader
from usermem import (
    AddressSpace,
    FaultError,
    FaultReason,
    Snapshot,
    SnapshotFileError,
    copy_in_vec,
    copy_out_vec,
    copy_string_in,
)
from usermem.mm import saved_state, snapshot_file
from usermem.mm.faulting import can_map
from usermem.mm.image import maps_images

pytestmark = pytest.mark.skipif(
    not (can_map() and maps_images()), reason="this host maps no files whose pages may be lost"
)

PAGES = 8
ZEROS = bytes(2 * PAGE)
LEFT = 3  # pages that are there after the file was truncated
DATA = 1 << 16

TRUNCATE = "import os, sys; os.truncate(sys.argv[1], int(sys.argv[2]))"
OVERWRITE = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
size = os.fstat(fd).st_size
for at in range(0, size, 4096):
    os.pwrite(fd, b"\\xee" * min(4096, size - at), at)
"""


def elsewhere(code: str, *arguments: object) -> None:
    """Run some code in another process."""
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, timeout=30)


def byte(page: int) -> bytes:
    """What a page is full of."""
    return bytes([65 + page])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of a space with private pages at BASE, each of another letter."""
    with AddressSpace() as space:
        space.mmap(BASE, PAGES * PAGE, RW, FIXED)
        for page in range(PAGES):
            space.copy_out(BASE + page * PAGE, byte(page) * PAGE)
        space.snapshot().save(tmp_path / "a")
    return tmp_path / "a"


def truncate(path: Path) -> None:
    """Leave the first few pages of the data."""
    elsewhere(TRUNCATE, path, DATA + LEFT * PAGE)


Access = Callable[[AddressSpace, int], object]


def vec(space: AddressSpace, addr: int) -> AddrRangeSeq:
    """Two ranges around an address."""
    return AddrRangeSeq([AddrRange(addr - PAGE, addr - 5), AddrRange(addr - 5, addr + PAGE)])


ACCESSES: dict[str, tuple[int, Access]] = {
    "copy_in": (PAGE, lambda space, at: space.copy_in(at - PAGE, bytearray(2 * PAGE))),
    "copy_out": (PAGE, lambda space, at: space.copy_out(at - PAGE, ZEROS)),
    "zero_out": (PAGE, lambda space, at: space.zero_out(at - PAGE, 2 * PAGE)),
    "a short copy": (0, lambda space, at: space.read_bytes(at, 4)),
    "string": (PAGE, lambda space, at: copy_string_in(space, at - PAGE, 2 * PAGE)),
    "iovec in": (PAGE, lambda space, at: copy_in_vec(space, vec(space, at), bytearray(2 * PAGE))),
    "iovec out": (PAGE, lambda space, at: copy_out_vec(space, vec(space, at), ZEROS)),
    "load": (0, lambda space, at: space.load_uint32(at)),
    "swap": (0, lambda space, at: space.swap_uint32(at, 1)),
    "compare and swap": (0, lambda space, at: space.compare_and_swap_uint32(at, 0, 1)),
    "from": (PAGE, lambda space, at: space.copy_out_from(one(at - PAGE, 2 * PAGE), FromIOReader(io.BytesIO(ZEROS)))),
}


@pytest.mark.parametrize("name", ACCESSES)
@pytest.mark.parametrize("touched", [False, True])
def test_every_access(path: Path, name: str, touched: bool) -> None:
    """It ends where the file does, with an exact count and the right address."""
    count, access = ACCESSES[name]
    space = Snapshot.load(path).spawn()
    if touched:
        contents(space)
    truncate(path)
    end = BASE + LEFT * PAGE
    with pytest.raises(FaultError) as caught:
        access(space, end)
    assert (caught.value.reason, caught.value.address) == (FaultReason.BEYOND_FILE, end)
    assert caught.value.transferred == count


def kept(space: AddressSpace, written: dict[int, bytes], pages: int = LEFT) -> None:
    """A space has what is left and faults beyond it, but for what was written."""
    for page in range(PAGES):
        addr = BASE + page * PAGE
        if page in written or page < pages:
            assert space.read_bytes(addr, PAGE)[-100:] == written.get(page, byte(page)) * 100
        else:
            with pytest.raises(FaultError) as caught:
                space.read_bytes(addr, 1)
            assert caught.value.reason is FaultReason.BEYOND_FILE


def test_snapshot_restore_fork_spawn_and_save(path: Path) -> None:
    """They work on: own pages stay, all others are old or fault. To save what is lost is an error."""
    loaded = Snapshot.load(path)
    space, other = loaded.spawn(), loaded.spawn()
    since, before = space.snapshot(), other.snapshot()
    space.copy_out(BASE + PAGE, b"x" * PAGE)
    space.mprotect(BASE + 2 * PAGE, PAGE, RW)
    later = space.snapshot()
    truncate(path)
    kept(space, {1: b"x"})
    kept(space.fork(), {1: b"x"})
    kept(later.spawn(), {1: b"x"})
    kept(loaded.spawn(), {})
    dirty = [(each.start, each.end) for each in space.dirty_pages(since)]
    assert dirty == [(BASE + PAGE, BASE + 2 * PAGE)]
    assert space.dirty_pages(later).num_bytes == 0
    space.copy_out(BASE, b"y" * PAGE)
    kept(space, {0: b"y", 1: b"x"})
    space.restore(later)
    kept(space, {1: b"x"})
    space.restore(since)
    kept(space, {})
    since.diff(later)
    loaded.diff(before)
    for snapshot in (loaded, since, later, other.snapshot()):
        with pytest.raises(OSError, match="truncated") as caught:
            snapshot.save(path.parent / "b")
        assert caught.value.errno == errno.EIO
    with pytest.raises(SnapshotFileError, match="truncated"):
        Snapshot.load(path)
    assert [each.name for each in path.parent.iterdir()] == ["a"]
    space.munmap(BASE, PAGES * PAGE)
    space.restore(later)
    kept(space, {1: b"x"})
    space.madvise(BASE, PAGES * PAGE, mman.MADV_DONTNEED)
    assert space.read_bytes(BASE, PAGES * PAGE) == bytes(PAGES * PAGE)


def test_blocks_and_aliases(path: Path) -> None:
    """Blocks need safecopy and are no arrays; to alias the memory is refused, and copied up to the file's end."""
    space = Snapshot.load(path).spawn()
    blocks = space.blocks(one(BASE, PAGES * PAGE), WRITE)
    assert all(block.need_safecopy for block in blocks)
    with pytest.raises(BufferError, match="may fault and has no view"):
        next(iter(blocks)).view()
    with pytest.raises(ValueError, match="must not be aliased"):
        space.host_runs(BASE, BASE + PAGE)
    truncate(path)
    assert [(run.start, run.length) for run in space.host_runs(BASE, BASE + PAGES * PAGE, copy_files=True)] == [
        (BASE, LEFT * PAGE)
    ]
    del blocks


@pytest.mark.parametrize("arch", [AMD64, ARM64_16K], ids=lambda arch: arch.name)
@pytest.mark.parametrize("size", [0, DATA - 1, DATA, DATA + 5 * PAGE])
def test_every_kind_of_mapping(tmp_path: Path, arch: object, size: int) -> None:
    """A truncated file of all kinds of mappings: each page has its old bytes or faults, in each call."""
    every = EveryMapping(arch, tmp_path)  # type: ignore[arg-type]
    every.space.snapshot().save(tmp_path / "a")
    loaded = Snapshot.load(tmp_path / "a")
    space = loaded.spawn()
    since = space.snapshot()
    elsewhere(TRUNCATE, tmp_path / "a", size)
    old = {each[0]: each for each in contents(every.space)}
    space.madvise(every.at(8), every.page, mman.MADV_KEEPONFORK)
    for each in (space, space.fork(), since.spawn(), space.snapshot().spawn()):
        for mine in contents(each):
            assert mine == old[mine[0]] or mine[1] == "BEYOND_FILE"
    space.dirty_pages(since)
    space.copy_out(every.at(20), b"shared is not the file's")
    space.restore(since)
    space.brk(every.at(2110))
    space.mremap(every.at(60), every.page, every.page, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, every.at(300))
    space.mlock(every.at(70), every.page)
    space.munmap(every.at(0), 100 * every.page)
    space.restore(since)
    with pytest.raises(OSError, match="truncated"):  # shared memory is copied out of the file
        loaded.spawn()
    every.close()


@pytest.mark.parametrize("code", [TRUNCATE, OVERWRITE])
def test_in_memory(path: Path, code: str) -> None:
    """Nothing that happens to the file is seen. The memory may be aliased."""
    loaded = Snapshot.load(path, in_memory=True)
    space = loaded.spawn()
    address = space.host_runs(BASE, BASE + PAGE)[0].address
    elsewhere(code, path, 0)
    kept(space, {}, PAGES)
    assert ctypes.string_at(address, PAGE) == byte(0) * PAGE
    ctypes.memmove(address, b"x" * PAGE, PAGE)
    kept(space, {0: b"x"}, PAGES)
    kept(loaded.spawn(), {}, PAGES)
    loaded.save(path.parent / "b")
    kept(Snapshot.load(path.parent / "b").spawn(), {}, PAGES)


def test_overwritten(path: Path) -> None:
    """Pages that are a space's own keep their bytes; others may show the new ones. To load it again is an error."""
    space = Snapshot.load(path).spawn()
    space.copy_out(BASE + PAGE, b"x")
    elsewhere(OVERWRITE, path)
    for page in range(PAGES):
        assert space.read_bytes(BASE + page * PAGE + 1, PAGE - 1) in (byte(page) * (PAGE - 1), b"\xee" * (PAGE - 1))
    assert space.read_bytes(BASE + PAGE, 3) == b"xBB"
    with pytest.raises(SnapshotFileError):
        Snapshot.load(path)


def test_truncated_in_the_middle_of_reading_it_into_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is an error, not zeros."""

    def verified(path: Path) -> object:
        found = load(path)
        os.truncate(path, DATA + PAGE)
        return found

    load = snapshot_file.load
    monkeypatch.setattr(saved_state, "load", verified)
    with pytest.raises(OSError, match="truncated"):
        Snapshot.load(path, in_memory=True)
    os.truncate(path, 0)
    gc.collect()
    with pytest.raises(ValueError, match="empty"):
        load(path)


def test_over_and_over(tmp_path: Path) -> None:
    """While a process truncates and lengthens the file: pages are those of then, zeros or faults."""
    with AddressSpace() as space:
        space.mmap(BASE, 64 * PAGE, RW, FIXED)
        space.copy_out(BASE, b"x" * 64 * PAGE)
        space.snapshot().save(tmp_path / "a")
    loaded = Snapshot.load(tmp_path / "a")
    loop = "import os, sys\nwhile os.getppid() == int(sys.argv[2]):\n  for n in (0, 20, 7, 90):\n"
    loop += f"    os.truncate(sys.argv[1], {DATA} + n * {PAGE})"
    other = subprocess.Popen([sys.executable, "-c", loop, str(tmp_path / "a"), str(os.getpid())])
    try:
        for _ in range(times(20, 500)):
            space = loaded.spawn()
            since = space.snapshot()
            for page in range(64):
                _poke(space, BASE + page * PAGE)
            space.fork().close()
            space.dirty_pages(since)
            space.restore(since)
            space.close()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def _poke(space: AddressSpace, addr: int) -> None:
    try:
        assert set(space.read_bytes(addr, PAGE)) <= {0, ord("x"), ord("y")}
        space.copy_out(addr, b"y")
    except FaultError as fault:
        assert fault.reason is FaultReason.BEYOND_FILE
