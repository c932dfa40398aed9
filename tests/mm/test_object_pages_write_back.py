"""What a guest writes to a simulator's file through a shared mapping comes back to it, whoever unmaps when.

And the file's own code: it may be slow, fail, hold a lock that others wait for, and be used while others map.
"""

from __future__ import annotations

import errno
import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW, one, pattern, source
from hostarch import mman
from simulator_file import SimulatorFile
from switching import quick_switches
from usermem import AddressSpace, FaultError

SHARED_HERE = mman.MAP_SHARED | mman.MAP_FIXED
KINDS = (mman.MAP_SHARED, mman.MAP_PRIVATE)


class File(SimulatorFile):
    """A simulator's file of two pages. ``on_write`` is called before it takes some bytes."""

    def __init__(self) -> None:
        super().__init__(bytes(2 * PAGE))
        self.on_write: Callable[[int], object] = lambda offset: None

    def write_at(self, offset: int, src: memoryview) -> object:
        """See WritableObject."""
        self.on_write(offset)
        return super().write_at(offset, src)


@pytest.fixture
def often_switched() -> Iterator[None]:
    """Threads take turns every 10 microseconds."""
    with quick_switches(1e-5):
        yield


UNMAPPING: dict[str, Callable[[AddressSpace], object]] = {
    "munmap": lambda space: space.munmap(BASE, 2 * PAGE),
    "mmap over it": lambda space: space.mmap(BASE, 2 * PAGE, RW, FIXED),
    "mremap over it": lambda space: space.mremap(
        BASE + 4 * PAGE, 2 * PAGE, 2 * PAGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, BASE
    ),
    "close": lambda space: space.close(),
}


def mapped_space(file: object) -> AddressSpace:
    """A space with two pages of a file at BASE, and two of its own behind a hole."""
    space = AddressSpace()
    space.map_object(BASE, 2 * PAGE, RW, SHARED_HERE, file)  # type: ignore[arg-type]
    space.mmap(BASE + 4 * PAGE, 2 * PAGE, RW, FIXED)
    return space


@pytest.mark.parametrize("name", UNMAPPING)
def test_a_write_while_others_are_written_back(name: str) -> None:
    """Another thread writes when a page is on its way: what copy_out counted is in the file, what faulted is not."""
    file = File()
    space = mapped_space(file)
    space.copy_out(BASE, b"first")
    space.copy_out(BASE + PAGE, b"second")
    outcome: list[int] = []

    def write() -> None:
        try:
            outcome.append(space.copy_out(BASE, b"LATER"))
        except FaultError as fault:
            outcome.append(fault.transferred)
        except ValueError:  # the space is closed
            outcome.append(0)

    def on_write(offset: int) -> None:
        if offset and not outcome:
            thread = threading.Thread(target=write)
            thread.start()
            thread.join()

    file.on_write = on_write
    UNMAPPING[name](space)
    count = outcome[0] if name == "munmap" else 0  # else it went to what is there now, or the space was closed
    assert file.data[:5] == b"LATER"[:count] + b"first"[count:]
    assert file.data[PAGE : PAGE + 6] == b"second"


def test_a_copy_that_is_in_flight() -> None:
    """One that ends after munmap writes to pages that nobody has mapped any more: the next mapping call writes back."""
    file = File()
    space = mapped_space(file)
    blocks = space.blocks(one(BASE, PAGE), ignore_permissions=True)
    space.munmap(BASE, 2 * PAGE)
    blocks.head().view()[:5] = b"later"
    del blocks
    gc.collect()
    AddressSpace().mmap(0, PAGE, RW, FIXED & ~mman.MAP_FIXED)  # of any space
    assert file.data[:5] == b"later"


@pytest.mark.usefixtures("often_switched")
def test_no_counted_write_is_lost() -> None:
    """A thread counts upward in the mapping until it faults; the file then has the last count that was taken."""
    for _ in range(150):
        file = File()
        space = mapped_space(file)
        space.copy_out(BASE + PAGE, b"x")
        last = 0

        def write(space: AddressSpace = space) -> None:
            nonlocal last
            try:
                for count in range(1, 1 << 20):
                    space.copy_out(BASE, count.to_bytes(8, "little"))
                    last = count
            except FaultError:
                pass

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(2e-4)
        space.munmap(BASE, 2 * PAGE)
        thread.join()
        assert int.from_bytes(file.data[:8], "little") == last


class Full(File):
    """A file on a disk that is full, while ``full`` is set."""

    full = True
    refusals = 0

    def write_at(self, offset: int, src: memoryview) -> object:
        """See WritableObject."""
        if self.full:
            self.refusals += 1
            raise OSError(errno.ENOSPC, "the disk is full")
        return super().write_at(offset, src)


@pytest.mark.parametrize("name", ["munmap", "mmap over it", "mremap over it"])
@pytest.mark.parametrize("teller", ["msync", "close"])
def test_a_full_disk_holds_up_no_unmapping(name: str, teller: str) -> None:
    """As in Linux the mapping goes. The error is told once, by the next msync, of anything, or by close."""
    file = Full()
    space = mapped_space(file)
    space.copy_out(BASE, b"dirty")
    at = space.mmap(0, PAGE, RW, FIXED & ~mman.MAP_FIXED)
    UNMAPPING[name](space)
    expected = {"munmap": [BASE + 4 * PAGE], "mremap over it": [BASE], "mmap over it": [BASE, BASE + 4 * PAGE]}[name]
    assert [vma.start for vma in space.mappings()] == [*expected, at]
    assert file.refusals == 1
    if teller == "msync":
        with pytest.raises(OSError, match="the disk is full"):
            space.msync(at, PAGE, mman.MS_SYNC)
        assert space.msync(at, PAGE, mman.MS_SYNC) == 0
        space.close()
    else:
        with pytest.raises(OSError, match="the disk is full"):
            space.close()
    space.close()
    assert space.maps() == ""
    with pytest.raises(ValueError, match="closed"):
        space.mmap(0, PAGE, RW, FIXED)


def test_close_on_a_full_disk() -> None:
    """It unmaps everything, gives other files what is theirs, and tells; the second close has nothing to tell."""
    full, other = Full(), File()
    space = mapped_space(full)
    space.map_object(BASE + 8 * PAGE, PAGE, RW, SHARED_HERE, other)
    space.copy_out(BASE, b"dirty")
    space.copy_out(BASE + 8 * PAGE, b"other")
    with pytest.raises(OSError, match="the disk is full"):
        space.close()
    assert other.data[:5] == b"other"
    assert space.maps() == ""
    space.close()


def test_msync_tries_again() -> None:
    """What the file refused stays in memory, and is written when there is room."""
    file = Full()
    with mapped_space(file) as space:
        space.copy_out(BASE, pattern(2 * PAGE))
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is full"):
                space.msync(BASE, 2 * PAGE, mman.MS_SYNC)
        assert space.read_bytes(BASE, 2 * PAGE) == pattern(2 * PAGE)
        file.full = False
        assert space.msync(BASE, 2 * PAGE, mman.MS_SYNC) == 0
    assert file.data == pattern(2 * PAGE)


def test_one_page_that_is_refused_keeps_back_no_other() -> None:
    """The pages behind it are written back too."""
    file = File()

    def on_write(offset: int) -> None:
        if not offset:
            raise OSError(errno.EIO, "a bad block")

    file.on_write = on_write
    space = mapped_space(file)
    space.copy_out(BASE, pattern(2 * PAGE))
    space.munmap(BASE, 2 * PAGE)
    assert file.data == bytes(PAGE) + pattern(2 * PAGE)[PAGE:]
    with pytest.raises(OSError, match="a bad block"):
        space.close()


class Slow(File):
    """A file that takes its time to read, and counts how often it had to."""

    reads = 0

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        self.reads += 1
        time.sleep(0.03)
        return super().read_at(offset, dst)


@pytest.mark.parametrize("kind", KINDS)
def test_others_that_map_do_not_starve_a_first_touch(kind: int) -> None:
    """A thread that calls mprotect all the time does not make the object be read for ever."""
    file = Slow()
    space = AddressSpace()
    space.map_object(BASE, PAGE, RW, kind | mman.MAP_FIXED, file)
    got: list[bytes] = []
    stop = threading.Event()

    def protect() -> None:
        while not stop.is_set():
            space.mprotect(BASE, PAGE, RW)

    threads = [
        threading.Thread(target=protect, daemon=True),
        threading.Thread(target=lambda: got.append(space.read_bytes(BASE, 4)), daemon=True),
    ]
    for thread in threads:
        thread.start()
    threads[1].join(10)
    stop.set()
    threads[0].join(10)
    assert got == [bytes(4)]
    assert file.reads < 10


class Locked(File):
    """A file with a lock, as files have; ``touched`` is set when a first touch is on its way to it."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.touched = threading.Event()

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        self.touched.set()
        with self.lock:
            return super().read_at(offset, dst)

    def read_into(self, space: AddressSpace, addr: int) -> int:
        """read(2) of the file, into a mapping of the file."""
        with self.lock:
            assert self.touched.wait(10)
            return space.copy_out_from(one(addr, 50), source(b"r" * 50))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_a_lock_is_read_into_its_own_mapping(kind: int) -> None:
    """One thread touches a page, which waits for the file's lock; one reads the file into that page, with the lock."""
    file = Locked()
    space = AddressSpace()
    space.map_object(BASE, 2 * PAGE, RW, kind | mman.MAP_FIXED, file)
    done: list[object] = []
    threads = [
        threading.Thread(target=lambda: done.append(file.read_into(space, BASE + 100)), daemon=True),
        threading.Thread(target=lambda: done.append(space.read_bytes(BASE, 4)), daemon=True),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(map(str, done)) == ["50", str(bytes(4))]
    assert space.read_bytes(BASE + 100, 50) == b"r" * 50


def test_a_page_that_has_changed_back() -> None:
    """The guest writes while its page is written, and then what was there before: the file has the last."""
    file = File()
    space = mapped_space(file)
    space.copy_out(BASE, b"one")
    turns = iter([b"two"])

    def on_write(offset: int) -> None:
        for text in turns:
            space.copy_out(BASE, text)

    file.on_write = on_write
    space.msync(BASE, PAGE, mman.MS_SYNC)
    space.copy_out(BASE, b"one")
    space.munmap(BASE, 2 * PAGE)
    assert file.data[:3] == b"one"


def test_older_bytes_that_arrive_last() -> None:
    """Two calls write one page back; the first is slow, and takes its place behind the second: it writes once more."""
    file = File()
    space = mapped_space(file)
    space.copy_out(BASE, b"older")
    calls = 0

    def write_at(offset: int, src: memoryview) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            space.copy_out(BASE, b"newer")
            thread = threading.Thread(target=space.msync, args=(BASE, PAGE, mman.MS_SYNC))
            thread.start()
            thread.join()
            assert file.data[:5] == b"newer"
        file.data[offset : offset + len(src)] = src

    file.write_at = write_at  # type: ignore[method-assign]
    space.msync(BASE, PAGE, mman.MS_SYNC)
    assert (bytes(file.data[:5]), calls) == (b"newer", 3)
    space.close()
    assert calls == 3


def test_a_page_that_was_written_in_part() -> None:
    """The file fails after it took some bytes, and the guest writes the old ones again: so the file gets them again."""
    file = File()
    space = mapped_space(file)

    def write_at(offset: int, src: memoryview) -> object:
        file.data[:3] = src[:3]
        del file.write_at
        raise OSError(errno.EIO, "half of it")

    file.write_at = write_at  # type: ignore[method-assign]
    space.copy_out(BASE, b"new")
    with pytest.raises(OSError, match="half of it"):
        space.msync(BASE, PAGE, mman.MS_SYNC)
    space.zero_out(BASE, 3)
    space.munmap(BASE, 2 * PAGE)
    assert file.data[:3] == bytes(3)
