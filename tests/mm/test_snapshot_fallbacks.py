"""Hosts that know less: what snapshots answer is the same, whichever way is left.

Each way is forced; the machine of test_snapshot_machine runs under them as well. Pages that were swapped out, that were
only read, and huge pages are told apart as the kernel does.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import pytest

from campaign import times
from edge_layouts import FIXED, PAGE, RW
from hostarch import ARM64_16K, mman
from usermem import AddressSpace, FaultError, Snapshot
from usermem.mm import host_calls, host_pages, overlay

pytestmark = pytest.mark.skipif(sys.platform != "linux" or mmap.PAGESIZE != PAGE, reason="of Linux's pages of 4 KiB")

BASE, PAGES = 0x4000_0000, 64
PRIVATE_FILE = mman.MAP_PRIVATE | mman.MAP_FIXED
NO_PROC = (host_pages, "_PAGEMAP", "/nowhere/pagemap")
COPYING = (overlay, "maps_images", lambda: False)
Patch = tuple[object, str, object]

WAYS: dict[str, list[Patch]] = {
    "as it is": [],
    "pagemap": [(host_pages._Host, "scans", False)],
    "no /proc": [NO_PROC],
    "swap and no /proc": [NO_PROC, (host_calls, "swaps", lambda: True)],
    "one by one": [(host_pages._Host, "advises_many", False)],
    "always asked": [(host_pages, "_MANY", -(1 << 40)), (host_pages._Host, "looks_left", 1 << 20)],
    "copying": [COPYING],
    "copying, no mincore": [COPYING, (host_calls, "resident", lambda *args: None)],
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One way after the other."""
    for name in ("scans", "advises_many", "looks_left"):
        monkeypatch.setattr(host_pages._Host, name, getattr(host_pages._Host, name))
    for patch in WAYS[request.param]:
        monkeypatch.setattr(*patch)
    yield request.param


@pytest.fixture
def file() -> Iterator[int]:
    """A file with bytes, but for its last pages."""
    fd = os.memfd_create("file")
    os.ftruncate(fd, PAGES * PAGE)
    os.pwrite(fd, b"file" * PAGE * 8, 0)
    yield fd
    os.close(fd)


def content(space: AddressSpace) -> bytes:
    """All its bytes."""
    return space.read_bytes(BASE, PAGES * PAGE)


def dirty(space: AddressSpace, since: Snapshot) -> list[int]:
    """The numbers of dirty pages."""
    return [at // PAGE for ar in space.dirty_pages(since) for at in range(ar.start - BASE, ar.end - BASE, PAGE)]


@pytest.mark.parametrize("kind", ["zeros", "file"])
def test_contents_and_dirty_pages(kind: str, way: str, file: int) -> None:
    """Nested snapshots of pages in pieces, restored in both orders, forked and spawned."""
    space = AddressSpace()
    if kind == "zeros":
        space.mmap(BASE, PAGES * PAGE, RW, FIXED)
    else:
        space.mmap(BASE, PAGES * PAGE, RW, PRIVATE_FILE, file)
    moments: list[tuple[Snapshot, bytes]] = []
    for n in range(1, 6):
        written = range(0, PAGES, n)
        for page in written:
            space.copy_out(BASE + page * PAGE + n, b"written%d" % n)
        if moments:
            assert dirty(space, moments[-1][0]) == list(written)
        moments.append((space.snapshot(), content(space)))
    for snapshot, then in [*moments, *moments[::-2]]:
        space.zero_out(BASE, PAGES * PAGE)
        space.restore(snapshot)
        assert content(space) == then
        assert dirty(space, snapshot) == []
        for other in (snapshot.spawn(), space.fork()):
            other.copy_out(BASE + PAGE, b"another")
            assert content(other) == then[:PAGE] + b"another" + then[PAGE + 7 :]
            other.close()
        assert content(space) == then
    space.close()


def test_pages_that_were_only_read(way: str) -> None:
    """They are the same afterwards, and dirty only where the host tells no better."""
    space = AddressSpace()
    space.mmap(BASE, PAGES * PAGE, RW, FIXED)
    space.copy_out(BASE, b"x")
    snapshot = space.snapshot()
    assert content(space) == b"x".ljust(PAGES * PAGE, b"\0")
    assert way == "pagemap" or dirty(space, snapshot) == []
    later = space.snapshot()
    assert later.diff(snapshot).num_bytes == 0
    space.restore(snapshot)
    assert content(space) == b"x".ljust(PAGES * PAGE, b"\0")


def test_huge_pages(way: str) -> None:
    """A guest's memory that the host has in huge pages, of which one page was written."""
    size = 1 << 22
    space = AddressSpace()
    space.mmap(BASE, size, RW, FIXED)
    run = space.host_runs(BASE, BASE + size)[0]
    assert ctypes.CDLL(None).madvise(ctypes.c_void_p(run.address), ctypes.c_size_t(size), 14) in (0, -1)
    space.copy_out(BASE, bytes(range(256)) * (size // 256))
    then = space.read_bytes(BASE, size)
    snapshot = space.snapshot()
    space.copy_out(BASE + size // 2 + 3 * PAGE, b"one page")
    assert dirty(space, snapshot) == [size // 2 // PAGE + 3]
    with space.fork() as child:
        assert child.read_bytes(BASE, size) == space.read_bytes(BASE, size)
    space.restore(snapshot)
    assert space.read_bytes(BASE, size) == then


def test_a_file_that_changes_its_size(way: str, file: int) -> None:
    """Private pages go with the file's end (mmap(2)); what a snapshot has images of comes back."""
    space = AddressSpace()
    space.mmap(BASE, PAGES * PAGE, RW, PRIVATE_FILE, file)
    space.copy_out(BASE + 2 * PAGE, b"own")
    space.copy_out(BASE + 9 * PAGE, b"own")
    snapshot = space.snapshot()
    then = content(space)
    os.ftruncate(file, 5 * PAGE)
    space.copy_out(BASE + PAGE, b"later")
    space.restore(snapshot)
    assert space.read_bytes(BASE, 5 * PAGE) == then[: 5 * PAGE]
    with pytest.raises(FaultError):
        space.read_bytes(BASE + 6 * PAGE, 1)
    os.ftruncate(file, PAGES * PAGE)
    space.copy_out(BASE + 7 * PAGE, b"later")
    space.restore(snapshot)
    assert content(space)[5 * PAGE :] == bytes(4 * PAGE) + then[9 * PAGE : 10 * PAGE] + bytes((PAGES - 10) * PAGE)
    assert space.snapshot().spawn().read_bytes(BASE, 5 * PAGE) == then[: 5 * PAGE]


def test_large_pages_of_a_guest_behind_a_file(way: str, file: int) -> None:
    """16 KiB pages of a file that ends in the middle of one: zeros behind it are the guest's to write."""
    size = 4 * PAGE
    os.ftruncate(file, 2 * size + PAGE + 100)
    space = AddressSpace(ARM64_16K)
    space.mmap(BASE, 3 * size, RW, PRIVATE_FILE, file)
    tail = BASE + 2 * size + 2 * PAGE
    space.copy_out(tail, b"behind")
    snapshot = space.snapshot()
    then = space.read_bytes(BASE, 3 * size)
    space.copy_out(tail, b"later!")
    space.copy_out(BASE + size, b"later!")
    assert space.dirty_pages(snapshot).num_bytes == 2 * size
    later = space.snapshot()
    space.restore(snapshot)
    assert space.read_bytes(BASE, 3 * size) == then
    os.ftruncate(file, 3 * size)
    assert space.read_bytes(BASE, 3 * size) == then
    space.restore(later)
    assert space.read_bytes(tail, 6) == space.read_bytes(BASE + size, 6) == b"later!"
    assert snapshot.spawn().read_bytes(BASE, 3 * size) == then


def test_swapped_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A word of pagemap with bit 62 is an own copy, with bit 61 as well it is a file's. mincore(2) knows nothing."""
    words = [1 << 63, 1 << 62, 1 << 61 | 1 << 62, 0, 1 << 61 | 1 << 63, 1 << 62 | 5, 0]
    pagemap = tmp_path / "pagemap"
    pagemap.write_bytes(b"".join(word.to_bytes(8, sys.byteorder) for word in words))
    monkeypatch.setattr(host_pages._Host, "scans", False)
    monkeypatch.setattr(host_pages, "_PAGEMAP", os.fspath(pagemap))
    assert host_pages.written([(0, len(words) * PAGE)]) == [(0, 2 * PAGE), (5 * PAGE, 6 * PAGE)]
    assert host_pages.written([(0, 99 * PAGE)]) is None  # it ends too early
    monkeypatch.setattr(host_calls, "resident", lambda at, length, page: bytes(length // page))
    for swaps in (True, False):
        monkeypatch.setattr(host_calls, "swaps", lambda swaps=swaps: swaps)
        space = AddressSpace()
        space.mmap(BASE, PAGES * PAGE, RW, FIXED)
        space.copy_out(BASE, b"swapped out")
        assert (space.snapshot().spawn().read_bytes(BASE, 11) == b"swapped out") is swaps


def test_whether_the_host_has_swap_space() -> None:
    """As /proc/meminfo says."""
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("SwapTotal"))
    assert host_calls.swaps() == (int(total.split()[1]) > 0)


def test_copying_costs_what_is_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore of 1 MiB in a window of 64 is near a copy and a comparison of the 1 MiB."""
    monkeypatch.setattr(overlay, "maps_images", lambda: False)
    space = AddressSpace()
    space.mmap(BASE, 1 << 20, RW, FIXED)
    space.copy_out(BASE, b"x" * (1 << 20))
    snapshot = space.snapshot()
    ways: list[Callable[[], object]] = [
        lambda: space.restore(snapshot),
        lambda: space.read_bytes(BASE, 1 << 20) == bytes(1 << 20),
    ]
    restore, copy = (min(_time(act) for _ in range(20)) for act in ways)
    assert restore < 20 * copy + 1e-3


def _time(act: Callable[[], object]) -> float:
    start = perf_counter()
    act()
    return perf_counter() - start


IN_A_SANDBOX = """
import ctypes, errno, os, struct, sys
from usermem import AddressSpace
from usermem.mm import host_pages, image
from usermem.mm.backing.anonymous import WINDOW
late = sys.argv[1] == "late"

def seccomp():
    # struct sock_filter: load the number of the call; EPERM for each of those of the arguments; allow the rest.
    refused = [int(number) for number in sys.argv[2:]]
    program = [(0x20, 0, 0, 0)]
    for number in refused:
        program += (0x15, 0, 1, number), (6, 0, 0, 0x50000 | errno.EPERM)
    program.append((6, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.addressof(head), 0, 0) == 0

if not late:
    seccomp()
space = AddressSpace()
space.mmap(0x40000000, 64 << 12, 3, 0x32)
space.copy_out(0x40000000, b"then" * 65536)
with space.snapshot():
    pass
if late:
    seccomp()
for page in range(0, 64, 2):
    space.copy_out(0x40000000 + (page << 12), b"more")
first = space.snapshot()
then = space.read_bytes(0x40000000, 64 << 12)
for page in range(0, 64, 3):
    space.copy_out(0x40000000 + (page << 12), b"now")
assert space.dirty_pages(first).num_bytes == 22 << 12
child = space.fork()
now = space.read_bytes(0x40000000, 64 << 12)
space.restore(first)
assert space.read_bytes(0x40000000, 64 << 12) == then
assert child.read_bytes(0x40000000, 64 << 12) == now
assert first.spawn().read_bytes(0x40000000, 64 << 12) == then
child.close()
space.munmap(0x40000000, 64 << 12)
space.mmap(0x40000000, 64 << 12, 3, 0x32)
assert not any(space.read_bytes(0x40000000, 64 << 12))
space.restore(first)
assert space.read_bytes(0x40000000, 64 << 12) == then
print("mapped" if image.maps_images() else "copied", host_pages.way()[0])
"""
_CALLS = {"madvise": 28, "memfd_create": 319, "process_madvise": 440, "ioctl": 16, "mincore": 27, "fallocate": 285}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of calls are x86-64's")
@pytest.mark.parametrize("when", ["late", "early"][: times(1, 2)])
@pytest.mark.parametrize(
    "refused",
    [["madvise"], ["memfd_create"], ["ioctl", "process_madvise"], ["mincore", "madvise", "ioctl"], ["fallocate"]],
    ids="+".join,
)
def test_in_a_sandbox(refused: list[str], when: str) -> None:
    """The kernel itself refuses calls (seccomp(2)), from the start, or since a snapshot was made."""
    numbers = [str(_CALLS[name]) for name in refused]
    done = subprocess.run(
        [sys.executable, "-c", IN_A_SANDBOX, when, *numbers], capture_output=True, text=True, timeout=60, check=False
    )
    if "libc.prctl" in done.stderr:
        pytest.skip("this host lets nobody have a sandbox")
    assert done.returncode == 0, done.stderr
    copied = when == "early" and {"madvise", "memfd_create"} & {*refused}
    assert done.stdout.split()[0] == ("copied" if copied else "mapped")
