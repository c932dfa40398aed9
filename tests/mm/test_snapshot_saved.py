"""A snapshot that is saved and loaded starts the same spaces as before, which go on in the same way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_layouts import FIXED, PAGE, pattern
from every_mapping import BASE, RW, EveryMapping, assert_same, contents, maps
from hostarch import AMD64, ARM64_16K, ARM64_64K, I386, MIPS, PPC64, RISCV64, S390X, Arch, mman
from map_rows import rows
from simulator_file import SimulatorFile
from usermem import AddressSpace, SharedMemory, Snapshot
from usermem.mm import overlay, saved_state
from usermem.mm.backing import saved_bytes

ARCHS = (AMD64, I386, MIPS, RISCV64, S390X, ARM64_16K, ARM64_64K, PPC64)
MOVE = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED

in_memory = pytest.mark.parametrize("in_memory", [False, True], ids=["mapped", "in_memory"])


@pytest.fixture(params=ARCHS, ids=lambda arch: arch.name)
def every(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EveryMapping]:
    """A space on each machine."""
    every = EveryMapping(request.param, tmp_path)
    yield every
    every.close()


@pytest.fixture
def one(tmp_path: Path) -> Iterator[EveryMapping]:
    """A space on one machine."""
    every = EveryMapping(AMD64, tmp_path)
    yield every
    every.close()


def reloaded(snapshot: Snapshot, path: Path, *, in_memory: bool = False) -> Snapshot:
    """A snapshot after it was saved and loaded."""
    snapshot.save(path)
    return Snapshot.load(path, in_memory=in_memory)


def plain(pages: int = 4, arch: Arch = AMD64) -> AddressSpace:
    """A space with some written pages at BASE."""
    space = AddressSpace(arch)
    space.mmap(BASE, pages * PAGE, RW, FIXED)
    space.copy_out(BASE, pattern(pages * PAGE))
    return space


@in_memory
def test_every_kind_of_mapping(every: EveryMapping, tmp_path: Path, in_memory: bool) -> None:
    """Mappings, rights, locks, names, the heap, each byte, each fault, limits; and where the next mapping goes."""
    snapshot = every.space.snapshot()
    loaded = reloaded(snapshot, tmp_path / "a", in_memory=in_memory)
    old, new = snapshot.spawn(), loaded.spawn()
    assert_same(every.space, new)
    assert new.arch == every.arch
    assert new.limits == every.space.limits
    assert new.limits is not loaded.spawn().limits
    flags = mman.MAP_PRIVATE | every.arch.map_flags.anonymous
    assert old.mmap(0, every.page, RW, flags) == new.mmap(0, every.page, RW, flags)
    assert_same(old, new)


def calls(every: EveryMapping) -> dict[str, Callable[[AddressSpace], object]]:
    """What may happen to a space; each does the same to a space that was loaded."""
    at, page = every.at, every.page
    return {
        "merge": lambda space: space.mprotect(at(0), 4 * page, RW),
        "merge of a file's": lambda space: space.mprotect(at(60), 8 * page, RW),
        "write": lambda space: [space.copy_out(at(n) + 9, b"more") for n in (0, 1, 21, 43, 60, 65, 70, 100, 110)],
        "forget": lambda space: space.madvise(at(0), 2 * page, mman.MADV_DONTNEED),
        "forget own pages of shared memory": lambda space: space.madvise(at(40), 3 * page, mman.MADV_DONTNEED),
        "forget of a file's": lambda space: space.madvise(at(63), page, mman.MADV_DONTNEED),
        "no guard": lambda space: space.madvise(at(4), page, mman.MADV_GUARD_REMOVE),
        "guard": lambda space: space.madvise(at(60), page, mman.MADV_GUARD_INSTALL),
        "no guard in a file": lambda space: space.madvise(at(60), page, mman.MADV_GUARD_REMOVE),
        "punch": lambda space: space.madvise(at(22), page, mman.MADV_REMOVE),
        "move": lambda space: space.mremap(at(0), 2 * page, 3 * page, MOVE, at(200)),
        "move of a file's": lambda space: space.mremap(at(62), 2 * page, 2 * page, MOVE, at(210)),
        "leave": lambda space: space.mremap(at(8), page, page, MOVE | mman.MREMAP_DONTUNMAP, at(220)),
        "shrink": lambda space: space.mremap(at(100), 4 * page, 3 * page),
        "grow": lambda space: space.mremap(at(50), 2 * page, 3 * page),
        "map": lambda space: space.mmap(0, 3 * page, RW, mman.MAP_PRIVATE | every.arch.map_flags.anonymous),
        "a stack grows": lambda space: space.copy_out(at(1996), b"stack"),
        "brk": lambda space: space.brk(at(2105)),
        "populate": lambda space: space.madvise(at(60), 5 * page, mman.MADV_POPULATE_READ),
        "lock": lambda space: space.mlock(at(20), page),
        "name": lambda space: space.set_name(at(21), page, "shared too"),
        "unmap": lambda space: space.munmap(at(60), 3 * page),
        "unmap all": lambda space: space.munmap(0, every.arch.max_addr & -page),
    }


@in_memory
@pytest.mark.parametrize("arch", [AMD64, ARM64_16K], ids=lambda arch: arch.name)
def test_what_is_called_later(tmp_path: Path, arch: Arch, in_memory: bool) -> None:
    """The same calls in a row have the same effects, also in a fork, and after a restore to a snapshot in between."""
    every = EveryMapping(arch, tmp_path)
    snapshot = every.space.snapshot()
    loaded = reloaded(snapshot, tmp_path / "a", in_memory=in_memory)
    spaces = snapshot.spawn(), loaded.spawn()
    middle = [space.snapshot() for space in spaces]
    for name, call in calls(every).items():
        outcome = [result(call, space) for space in spaces]
        assert outcome[0] == outcome[1], name
        assert_same(*spaces)
        if name in ("write", "move of a file's"):
            assert_same(*(space.fork() for space in spaces))
            middle += [space.snapshot() for space in spaces]
    for i in range(len(middle) - 2, -1, -2):
        for space, each in zip(spaces, middle[i : i + 2], strict=True):
            space.restore(each)
        assert_same(*spaces)
    assert_same(every.space, spaces[1])
    every.close()


def result(call: Callable[[AddressSpace], object], space: AddressSpace) -> object:
    """What a call returns, or its errno."""
    try:
        return call(space)
    except OSError as exc:
        return exc.errno


@in_memory
def test_forgotten_pages_of_a_file(tmp_path: Path, one: EveryMapping, in_memory: bool) -> None:
    """MADV_DONTNEED brings the saved bytes back, those that were written before too; the file is not needed."""
    loaded = reloaded(one.space.snapshot(), tmp_path / "a", in_memory=in_memory)
    before = contents(one.space)
    os.ftruncate(one.file, 0)
    one.object.data.clear()
    space = loaded.spawn()
    for start, length in ((60, 6), (100, 3), (110, 2)):
        space.mprotect(one.at(start), length * PAGE, RW)
        space.copy_out(one.at(start), b"l" * length * PAGE)
        space.munlock(one.at(start), length * PAGE)
        space.madvise(one.at(start), length * PAGE, mman.MADV_DONTNEED)
    assert contents(space) == before


def test_shared_mappings_of_others_are_refused(tmp_path: Path) -> None:
    """The error names what is shared; nothing is written, and nothing has changed."""
    path = tmp_path / "a"
    plain().snapshot().save(path)
    before = path.read_bytes()
    file = os.open(tmp_path / "a file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, PAGE)
    refused: dict[str, Callable[[AddressSpace], object]] = {
        "a file": lambda space: space.mmap(BASE, PAGE, RW, mman.MAP_SHARED, file),
        "SimulatorFile": lambda space: space.map_object(BASE, PAGE, RW, mman.MAP_SHARED, SimulatorFile(bytes(PAGE))),
        "attached bytearray of 4096 bytes": lambda space: space.attach(BASE, bytearray(PAGE)),
        "by name": lambda space: space.attach(BASE, bytearray(PAGE), name="by name"),
    }
    for name, call in refused.items():
        with AddressSpace() as space:
            call(space)
            seen = space.maps()
            with pytest.raises(ValueError, match=f"the mapping at {BASE:#x} shares .*{name}.*unmap it to save"):
                space.snapshot().save(path)
            assert space.maps() == seen
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "a file"]
    assert path.read_bytes() == before
    os.close(file)


class Failing(SimulatorFile):
    """An object that raises when it is read."""

    def read_at(self, offset: int, dst: memoryview) -> int:
        """See MappedObject."""
        raise RuntimeError("the object's")


def test_objects_that_raise_and_that_shrink(tmp_path: Path) -> None:
    """What an object raises comes out of save, and nothing is written. Pages that it has lost fault."""
    space, mapped = AddressSpace(), SimulatorFile(b"x" * 4 * PAGE)
    space.map_object(BASE, 4 * PAGE, RW, mman.MAP_PRIVATE, mapped)
    space.copy_out(BASE, b"written")
    snapshot = space.snapshot()
    del mapped.data[2 * PAGE :]
    assert contents(reloaded(snapshot, tmp_path / "a").spawn()) == contents(space)
    space.map_object(BASE + 8 * PAGE, PAGE, RW, mman.MAP_PRIVATE, Failing(bytes(PAGE)))
    with pytest.raises(RuntimeError, match="the object's"):
        space.snapshot().save(tmp_path / "b")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_file_of_a_large_page_that_nobody_has_touched(tmp_path: Path) -> None:
    """The zeros behind the end of a file, up to the guest's page, are saved too."""
    page, path = ARM64_16K.page_size, tmp_path / "file"
    path.write_bytes(b"x" * (page + 5))
    with path.open("rb") as file, AddressSpace(ARM64_16K) as space:
        space.mmap(BASE, 4 * page, RW, mman.MAP_PRIVATE, file.fileno())
        new = reloaded(space.snapshot(), tmp_path / "a").spawn()
        assert_same(space, new)


def test_a_snapshot_that_is_older_than_the_space(tmp_path: Path) -> None:
    """What is saved is what was then; also after the space was closed."""
    space = plain()
    memory = SharedMemory(PAGE)
    space.map_object(BASE + 8 * PAGE, PAGE, RW, mman.MAP_SHARED, memory)
    space.copy_out(BASE + 8 * PAGE, b"then")
    snapshot = space.snapshot()
    then = maps(space), contents(space)
    space.copy_out(BASE, b"now")
    space.copy_out(BASE + 8 * PAGE, b"now!")
    space.munmap(BASE + PAGE, PAGE)
    space.mmap(BASE + 20 * PAGE, PAGE, RW, FIXED)
    for _ in range(2):
        new = reloaded(snapshot, tmp_path / "a").spawn()
        assert (maps(new), contents(new)) == then
        space.close()


@in_memory
def test_of_a_space_that_was_loaded(tmp_path: Path, one: EveryMapping, in_memory: bool) -> None:
    """Its snapshots are saved, with what was written since; and the loaded snapshot itself is."""
    loaded = reloaded(one.space.snapshot(), tmp_path / "a", in_memory=in_memory)
    space = loaded.spawn()
    for number in (0, 1, 20, 41, 60, 65, 100):
        space.copy_out(one.at(number) + 50, b"written later")
    assert_same(reloaded(space.snapshot(), tmp_path / "b", in_memory=in_memory).spawn(), space)
    assert_same(reloaded(loaded, tmp_path / "c").spawn(), one.space)
    assert (tmp_path / "a").stat().st_size == (tmp_path / "c").stat().st_size


def test_over_the_file_that_is_loaded(tmp_path: Path, one: EveryMapping) -> None:
    """Spaces that map the old file keep its bytes; the loaded snapshot starts more of them."""
    loaded = reloaded(one.space.snapshot(), tmp_path / "a")
    old, touched = loaded.spawn(), loaded.spawn()
    contents(touched)
    new = old.fork()
    new.copy_out(BASE, b"another")
    new.munmap(one.at(60), 8 * PAGE)
    for _ in range(2):
        new = reloaded(new.snapshot(), tmp_path / "a").spawn()
    for space in (old, touched, loaded.spawn()):
        assert_same(space, one.space)
    assert new.read_bytes(BASE, 7) == b"another"


@in_memory
def test_many_spaces_of_two_loads(tmp_path: Path, one: EveryMapping, in_memory: bool) -> None:
    """They are on their own; the snapshots may be closed."""
    path = tmp_path / "a"
    snapshots = [reloaded(one.space.snapshot(), path, in_memory=in_memory), Snapshot.load(path, in_memory=in_memory)]
    spaces = [snapshot.spawn() for snapshot in snapshots for _ in range(20)]
    for snapshot in snapshots:
        snapshot.close()
    for i, space in enumerate(spaces):
        for number in (1, 20, 41, 60, 100):
            space.copy_out(one.at(number), b"own %2d" % i)
    for i, space in enumerate(spaces):
        for number in (1, 20, 41, 60, 100):
            assert space.read_bytes(one.at(number), 6) == b"own %2d" % i
        space.close()


def test_a_file_that_was_loaded_is_no_snapshot_of_a_space(tmp_path: Path) -> None:
    """It starts spaces and is compared; to restore it, or ask for dirty pages since, is a ValueError."""
    space = plain()
    snapshot = space.snapshot()
    loaded = reloaded(snapshot, tmp_path / "a")
    for call in (space.restore, space.dirty_pages, loaded.spawn().restore):
        with pytest.raises(ValueError, match=r"another address space: spawn\(\)"):
            call(loaded)
    assert loaded.diff(snapshot).num_bytes == 0
    space.copy_out(BASE + PAGE, b"else")
    assert [(each.start, each.end) for each in loaded.diff(space.snapshot())] == [(BASE + PAGE, BASE + 2 * PAGE)]
    loaded.close()
    with pytest.raises(ValueError, match="the snapshot is closed"):
        loaded.spawn()
    with pytest.raises(ValueError, match="the snapshot is closed"):
        loaded.save(tmp_path / "b")


def test_dirty_pages_of_a_loaded_space(tmp_path: Path, one: EveryMapping) -> None:
    """What is read is not dirty, what is written is."""
    space = reloaded(one.space.snapshot(), tmp_path / "a").spawn()
    since = space.snapshot()
    contents(space)
    assert space.dirty_pages(since).num_bytes == 0
    for number in (1, 20, 42, 60, 101):
        space.copy_out(one.at(number) + 77, b"dirty")
    found = [number for each in space.dirty_pages(since) for number in range(each.start // PAGE, each.end // PAGE)]
    assert found == [one.at(number) // PAGE for number in (1, 20, 40, 42, 60, 101)]  # 40 shows what 20 does
    space.restore(since)
    assert_same(space, one.space)


def test_where_no_images_can_be_mapped(tmp_path: Path, one: EveryMapping, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages are read into memory: nobody can truncate them, and all may be aliased."""
    one.space.snapshot().save(tmp_path / "a")
    for module in (overlay, saved_state, saved_bytes):
        monkeypatch.setattr(module, "maps_images", lambda: False)
    loaded = Snapshot.load(tmp_path / "a")
    os.truncate(tmp_path / "a", 0)
    space = loaded.spawn()
    assert_same(space, one.space)
    assert space.host_runs(BASE, BASE + 2 * PAGE)[0].length == 2 * PAGE
    assert rows(space) == rows(one.space)
    assert_same(reloaded(space.snapshot(), tmp_path / "b").spawn(), one.space)


def test_much_shared_memory_in_pieces(tmp_path: Path) -> None:
    """Every other page of 16 MiB is saved, loaded and copied to a new space in a moment."""
    space = AddressSpace()
    space.mmap(BASE, 1 << 24, RW, mman.MAP_SHARED | mman.MAP_ANONYMOUS)
    for addr in range(BASE, BASE + (1 << 24), 2 * PAGE):
        space.copy_out(addr, addr.to_bytes(8, "big"))
    new = reloaded(space.snapshot(), tmp_path / "a").spawn()
    assert new.read_bytes(BASE, 1 << 24) == space.read_bytes(BASE, 1 << 24)
