"""Snapshot files give back what was saved, whoever wrote them, and cost what their pages cost."""

from __future__ import annotations

import gzip
import json
import mmap
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hostarch
from hostarch import AMD64, MIPS, Arch
from snapshot_samples import (
    DATA,
    EXTENTS,
    PAGE,
    SPACE,
    contents,
    loaded,
    loaded_pages,
    names,
    page_bytes,
    pages,
    put_together,
    take_apart,
)
from usermem.mm.limits import Limits
from usermem.mm.saved_space import PRIVATE, Behind, SavedExtent, SavedMapping, SavedSpace
from usermem.mm.snapshot_file import save

RECORDED = Path(__file__).parents[1] / "vectors" / "snapshot_1.gz"


def places(extents: tuple[SavedExtent, ...]) -> list[tuple[int, int, int]]:
    return [(each.space, each.start, each.end) for each in extents]


def test_a_space_comes_back(tmp_path: Path) -> None:
    """Values and bytes are those that were saved; the bytes can be mapped out of the file."""
    save(tmp_path / "a", SPACE, pages())
    with loaded(tmp_path / "a") as found:
        assert found.saved == SPACE
        assert places(found.extents) == places(EXTENTS)
        for each in found.extents:
            assert each.offset % PAGE == 0
            with mmap.mmap(found.file.fd, each.end - each.start, mmap.MAP_PRIVATE, offset=each.offset) as memory:
                assert memory[:] == page_bytes(each.start, each.end)
        assert not os.get_inheritable(found.file.fd)


def test_a_recorded_file_is_read(tmp_path: Path) -> None:
    """A file that was written when version 1 was made is read as it was meant; what is saved now is the same file."""
    path = tmp_path / "recorded"
    path.write_bytes(gzip.decompress(RECORDED.read_bytes()))
    with loaded(path) as found:
        assert found.saved == SPACE
        assert contents(found) == {place: page_bytes(*place[1:]) for place in places(EXTENTS)}
    save(tmp_path / "now", SPACE, pages())
    old, new = take_apart(path), take_apart(tmp_path / "now")
    assert json.loads(new[1].pop("metadata")) == json.loads(old[1].pop("metadata"))  # else it is another version
    assert old == new


def test_a_file_made_by_hand(tmp_path: Path) -> None:
    """What the description of the format says is what is written: header, padding and checksums to the byte."""
    save(tmp_path / "a", SPACE, pages())
    put_together(tmp_path / "b", *take_apart(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_metadata_lacks_what_has_a_default(tmp_path: Path) -> None:
    """A file that was written before a field was added has its default."""
    save(tmp_path / "a", SPACE, pages())
    data, tables = take_apart(tmp_path / "a")
    meta = json.loads(tables["metadata"])
    meta["limits"] = {}
    del meta["arch"]["map_flags"], meta["arch"]["page_shift"]
    put_together(tmp_path / "a", data, {**tables, "metadata": json.dumps(meta).encode()})
    with loaded(tmp_path / "a") as found:
        assert found.saved.limits == Limits()
        assert found.saved.arch == Arch("amd64", 8, "little", AMD64.max_addr)


ARCHES = [value for value in vars(hostarch).values() if isinstance(value, Arch)]
NUMBER = st.integers(0, (1 << 64) - 2)
NAME = st.text(max_size=20) | st.text(st.characters(categories=("Cs", "Cc", "L")), max_size=9)


@st.composite
def spaces(draw: st.DrawFn) -> tuple[SavedSpace, list[SavedExtent]]:
    """A space with any values that fit each other, and extents of it."""
    arch = draw(st.sampled_from([*ARCHES, evolve(AMD64, name="own", max_addr=1 << 21, min_addr=0)]))
    memories = tuple(draw(st.lists(st.integers(1, 1 << 40), max_size=3)))
    bounds = sorted(draw(st.sets(st.integers(1, min(arch.max_addr >> arch.page_shift, 400)), min_size=2, max_size=12)))
    kinds = [Behind.ANONYMOUS, Behind.OTHER, *([Behind.SHARED] if memories else [])]
    mappings, guards, extents = [], [], []
    for start, end in zip(bounds[::2], bounds[1::2], strict=False):
        start, end = start << arch.page_shift, end << arch.page_shift
        behind = draw(st.sampled_from(kinds))
        shared = behind is not Behind.ANONYMOUS and draw(st.booleans())
        mappings.append(
            SavedMapping(
                *(start, end, draw(st.integers(0, 7)), draw(st.integers(0, 7)), shared, behind),
                number=draw(st.integers(0, len(memories) - 1) if behind is Behind.SHARED else NUMBER),
                accessible=draw(st.none() | NUMBER),
                offset=0 if behind is Behind.ANONYMOUS else draw(st.integers(0, 1 << 46)) << arch.page_shift,
                guard=draw(NUMBER),
                mlock_mode=draw(st.integers(0, 2)),
                fork=draw(st.integers(0, (1 << 32) - 1)),
                device=draw(NUMBER),
                inode=draw(NUMBER),
                name=draw(NAME),
                label=draw(NAME),
                name_format=draw(st.none() | st.sampled_from(["", "[anon:{}]", "{}"])),
            )
        )
        if draw(st.booleans()):
            guards.append((start, start + arch.page_size))
        if not shared and draw(st.booleans()):
            extents.append(SavedExtent(PRIVATE, start, start + draw(st.integers(1, (end - start) // PAGE)) * PAGE))
    for number, length in enumerate(memories):
        if draw(st.booleans()):
            last = draw(st.integers(1, min(-(-length // 65536) * 16, 300)))
            extents.append(SavedExtent(number, draw(st.integers(0, last - 1)) * PAGE, last * PAGE))
    brk_start, brk = sorted(draw(st.tuples(*[st.integers(0, arch.max_addr)] * 2)))
    limits = Limits(address_limit=draw(st.none() | NUMBER), stack_limit=draw(NUMBER))
    tables = tuple(mappings), tuple(guards), memories
    lock = draw(st.integers(0, 2))
    return SavedSpace(arch, draw(st.integers(0, arch.max_addr)), limits, *tables, brk_start, brk, lock), extents


@given(spaces(), st.booleans())
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=settings().max_examples // 2,
)
def test_any_space_comes_back(tmp_path: Path, drawn: tuple[SavedSpace, list[SavedExtent]], from_file: bool) -> None:
    """Whatever fits together comes back, and what was loaded can be saved again out of the file."""
    space, extents = drawn
    save(tmp_path / "a", space, list(reversed(pages(extents))))
    with loaded(tmp_path / "a") as found:
        if from_file:
            save(tmp_path / "b", found.saved, loaded_pages(found))
            assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
        assert found.saved == space
        assert contents(found) == {place: page_bytes(*place[1:]) for place in places(tuple(extents))}


def test_a_large_extent_in_pieces(tmp_path: Path) -> None:
    """A source is asked for a MiB at most, in order."""
    space = evolve(SPACE, memories=(5 << 20,))
    extent = SavedExtent(0, 3 * PAGE, (5 << 20) - PAGE)
    asked = []

    def source(start: int, end: int) -> bytes:
        asked.append((start, end))
        return page_bytes(start, end)

    save(tmp_path / "a", space, [(extent, source)])
    assert [end for _, end in asked[:-1]] == [start for start, _ in asked[1:]]
    assert max(end - start for start, end in asked) <= 1 << 20
    with loaded(tmp_path / "a") as found:
        assert contents(found) == {(0, extent.start, extent.end): page_bytes(extent.start, extent.end)}


def test_holes_cost_nothing(tmp_path: Path) -> None:
    """1 GiB in which 64 pages were written is a file of few blocks, and loads in a time that shows it."""
    size, step = 1 << 30, 1 << 24
    zeros = bytes(1 << 20)
    written = zeros[: 5 * PAGE] + b"x" * 100 + zeros[5 * PAGE + 100 :]
    save(
        tmp_path / "a",
        evolve(SPACE, memories=(size,)),
        [(SavedExtent(0, 0, size), lambda start, _: zeros if start % step else written)],
    )
    began = time.process_time()
    with loaded(tmp_path / "a") as found:
        used = time.process_time() - began
        status = os.fstat(found.file.fd)
        assert status.st_size > size
        if os.lseek(found.file.fd, DATA, os.SEEK_DATA) == DATA:
            pytest.skip("this file system knows no holes")
        assert status.st_blocks * 512 < 64 * 2 * PAGE + (3 << 20)
        assert used < 0.2
        assert os.pread(found.file.fd, 3 * PAGE, DATA + size - step + 4 * PAGE).strip(b"\0") == b"x" * 100


@pytest.mark.parametrize(
    "kind", [str, os.fsencode, Path, lambda path: type("P", (), {"__fspath__": lambda self: os.fsencode(path)})()]
)
def test_paths(tmp_path: Path, kind: Callable[[Path], str]) -> None:
    """A path is a str, bytes or os.PathLike of either; also one that is relative, or not UTF-8."""
    name = tmp_path / os.fsdecode(b"\xff new\nline")
    save(kind(name), SPACE, pages())
    with loaded(kind(name)) as found:
        assert found.saved == SPACE
    assert names(tmp_path) == [name.name]


def test_a_path_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without a directory is in the working directory."""
    monkeypatch.chdir(tmp_path)
    save("a", SPACE, pages())
    assert (tmp_path / "a").is_file()


@pytest.mark.parametrize("call", [lambda path: save(path, SPACE, pages()), lambda path: loaded(path).__enter__()])
@pytest.mark.parametrize("path", [0, 1.5, None, bytearray(b"a")])
def test_no_paths(path: object, call: Callable[[object], object]) -> None:
    """A descriptor is no path."""
    with pytest.raises(TypeError):
        call(path)


def test_permissions(tmp_path: Path) -> None:
    """A new file has those of open(); one that is replaced keeps its own."""
    path = tmp_path / "a"
    old = os.umask(0o027)
    try:
        save(path, SPACE, pages())
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        save(path, SPACE, pages())
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(old)


def test_other_machines(tmp_path: Path) -> None:
    """A machine of another byte order and other flags comes back equal."""
    space = SavedSpace(evolve(MIPS, cache_line_shift=5), 0x1000, Limits())
    save(tmp_path / "a", space, [])
    with loaded(tmp_path / "a") as found:
        assert found.saved.arch == space.arch
        assert found.saved.arch.map_flags == MIPS.map_flags
        assert not found.extents
