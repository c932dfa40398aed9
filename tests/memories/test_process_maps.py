"""The mappings of another process, as the kernel tells them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostarch import AddrRange, AddrRangeSeq, mman
from other_process import OtherProcess
from safemem import ReaderFunc
from usermem import render
from usermem.memories import MappedRange, ProcessIO, process_maps
from usermem.memories.process_maps import Maps

PAGE = mmap.PAGESIZE
BASE = 0x2000_0000
RW = mman.PROT_READ | mman.PROT_WRITE
SHARED_FIXED = mman.MAP_SHARED | mman.MAP_FIXED


@pytest.fixture
def other() -> Iterator[OtherProcess]:
    """A child with two pages of its own."""
    with OtherProcess() as child:
        child.mmap(BASE, 2 * PAGE, RW)
        yield child


@pytest.fixture
def io(other: OtherProcess) -> Iterator[ProcessIO]:
    """Its memory."""
    with ProcessIO(other.pid) as io:
        yield io


def seq(*pairs: tuple[int, int]) -> AddrRangeSeq:
    """Ranges."""
    return AddrRangeSeq([AddrRange(start, start + length) for start, length in pairs])


def test_many_mappings_are_asked_for_once(other: OtherProcess, io: ProcessIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one reading of the text for an access, however many ranges and mappings it is over."""
    monkeypatch.setattr(process_maps, "_PROCMAP_QUERY", 0xC06866FF)
    for i in range(20):
        other.mmap(BASE + (8 + i) * PAGE, PAGE, RW, SHARED_FIXED | mman.MAP_ANONYMOUS)
    parsed: list[bytes] = []
    real = process_maps._parsed

    def watched(line: bytes) -> MappedRange:
        parsed.append(line)
        return real(line)

    monkeypatch.setattr(process_maps, "_parsed", watched)
    lines = len(io.mappings())
    for ranges in ([(BASE + 8 * PAGE, 20 * PAGE)], [(BASE + i * PAGE, 8) for i in range(8, 28)]):
        parsed.clear()
        size = sum(length for _, length in ranges)
        assert io.copy_out_from(seq(*ranges), ReaderFunc(lambda dsts: dsts.num_bytes)) == size
        assert len(parsed) == lines


def test_a_file_may_have_any_name(other: OtherProcess, io: ProcessIO, tmp_path: Path) -> None:
    """As /proc/PID/maps shows it."""
    for name, shown in ((b"a\rb\x0bc", "a\rb\x0bc"), (b"\xff ", "\udcff "), (b"a\nb", "a\\012b")):
        path = os.fsencode(tmp_path) + b"/" + name
        Path(os.fsdecode(path)).write_bytes(b"x")
        other.mmap(BASE, PAGE, mman.PROT_READ, SHARED_FIXED, other.run(f"os.open({path!r}, os.O_RDONLY)"))
        assert [m.label for m in io.mappings() if m.start == BASE] == [f"{tmp_path}/{shown}"]


def test_mappings_are_those_of_proc(other: OtherProcess, io: ProcessIO) -> None:
    """Every line of /proc/PID/maps, and render() shows them."""
    lines = Path(f"/proc/{other.pid}/maps").read_text().splitlines()
    found = io.mappings()
    assert [f"{m.start:08x}-{m.end:08x}" for m in found] == [line.split()[0] for line in lines]
    assert [m.label for m in found] == [" ".join(line.split()[5:]) for line in lines]
    assert f"{BASE:016x}-{BASE + 2 * PAGE:016x}      8 KiB  rw-p" in render(io)
    with Maps(other.pid) as maps:
        for line in lines[:40]:
            mapping = maps.at(int(line.split("-")[0], 16))
            assert mapping is not None
            assert f"{mapping.start:08x}-{mapping.end:08x}" == line.split()[0]
        assert maps.at(BASE + 3 * PAGE) is None
