"""The rows of ``snapshot``: what snapshots, restores and forks cost, against copies of the memory in the same run.

A restore follows a touch of some pages, off the clock. Copies are timed by themselves: in turns, each of them would
empty the processor's caches before a restore.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hostarch import mman
from mapping_rows import MappingRow
from peers import qiling
from timing import Prepared, best, loop
from usermem import AddressSpace

_PAGE = mmap.PAGESIZE
_RW = mman.PROT_READ | mman.PROT_WRITE
_ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
_BASE = 0x10_0000_0000
_SIZE = 64 << 20
_PIECES = 64
_DIRTY = 64
_ROUNDS = 400
_CYCLES = 10_000


def _filled(spread: int = _SIZE) -> AddressSpace:
    """A guest with 64 MiB resident, in 64 pieces that lie evenly in one mapping of ``spread`` bytes."""
    space = AddressSpace()
    space.mmap(_BASE, spread, _RW, _ANON | mman.MAP_FIXED)
    piece = bytes(range(1, 256)) * (_SIZE // _PIECES // 255 + 1)
    for at in range(0, spread, spread // _PIECES):
        space.copy_out(_BASE + at, piece[: _SIZE // _PIECES])
    return space


def _touch(space: AddressSpace, spread: int = _SIZE, count: int = _DIRTY) -> None:
    """Write to some pages, evenly: one in each piece."""
    for at in range(0, spread, spread // count):
        space.copy_out(_BASE + at, b"touched")


def _read(space: AddressSpace) -> None:
    """Read a word of every page, then touch some."""
    word = bytearray(8)
    for at in range(_BASE, _BASE + _SIZE, _PAGE):
        space.copy_in(at, word)
    _touch(space)


def _once(call: Callable[[], object], prepare: Callable[[], object]) -> Prepared:
    """A run of one call; what it returns goes off the clock."""
    kept: list[object] = []

    def before(_: int) -> None:
        kept.clear()
        prepare()

    return Prepared(lambda _: kept.append(call()), before, 1)


def _best(call: Callable[[], object], prepare: Callable[[], object] = lambda: None, rounds: int = _ROUNDS) -> float:
    """The best time of one call after ``prepare``, in ns."""
    return best({"": _once(call, prepare)}, rounds)[""]


def _copy() -> float:
    """The time of copying 64 MiB back from a bytearray that was saved, in ns: into memory that is there already."""
    space = _filled()
    (run,) = space.host_runs(_BASE, _BASE + _SIZE)
    saved = memoryview(bytearray(space.read_bytes(_BASE, _SIZE)))
    memory = memoryview((ctypes.c_char * _SIZE).from_address(run.address)).cast("B")

    def copy() -> None:
        memory[:] = saved

    return _best(copy, lambda: run, 40)


def _faster(name: str, what: str, ns: float, than: float, bar: float) -> MappingRow:
    return MappingRow(name, f"{ns / 1e3:.1f} us; {what} of {than / 1e3:.0f} us against it", than / ns, bar, more=True)


def _restores() -> Iterator[MappingRow]:
    """A restore of 64 MiB against copying it back; with Qiling's save and restore beside it."""
    space, copy = _filled(), _copy()
    snapshot = space.snapshot()
    restore = _best(lambda: space.restore(snapshot), lambda: _touch(space))
    yield _faster("restore, 64 of 16,384 pages", "a copy", restore, copy, 200)
    read = _best(lambda: space.restore(snapshot), lambda: _read(space), 100)
    yield _faster("restore, every page read since", "a copy", read, copy, 40)
    ql = qiling(_BASE, bytes(_SIZE))
    if ql is None:
        print("Qiling is not there: its save and restore are not compared")
        return
    theirs = _best(lambda: ql.mem.restore(ql.mem.save()), rounds=5)
    yield _faster("restore, against Qiling", "its save and restore", restore, theirs, 200)


def _spreads() -> Iterator[MappingRow]:
    """The same 64 MiB, as pieces of more and more address space."""
    runs = {}
    for spread in (64 << 20, 1 << 30, 16 << 30):
        space = _filled(spread)
        snapshot = space.snapshot()
        runs[spread >> 20] = _once(
            lambda space=space, snapshot=snapshot: space.restore(snapshot),  # type: ignore[misc]
            lambda space=space, spread=spread: _touch(space, spread),  # type: ignore[misc]
        )
    times = best({str(mib): run for mib, run in runs.items()}, _ROUNDS)
    for mib in (1 << 10, 16 << 10):
        ns = times[str(mib)]
        what = f"{ns / 1e3:.1f} us; 64 MiB resident, against as many in 64 MiB"
        yield MappingRow(f"restore, {mib >> 10} GiB sparse", what, ns / times["64"], 2.5)


def _small() -> Iterator[MappingRow]:
    """A page of a small guest, as fuzzers have it: how many a second, beside the least that the host asks for."""
    names: dict[str, object] = {"addr": _BASE + 7 * _PAGE, "word": b"touched"}
    runs = {}
    for who, listener in (("restore", None), ("told", lambda start, end, kind: None)):
        space = AddressSpace()
        space.mmap(_BASE, 1 << 20, _RW, _ANON | mman.MAP_FIXED)
        space.copy_out(_BASE, b"x" * (1 << 20))
        space.on_change = listener
        statement = "space.copy_out(addr, word); space.restore(snapshot)"
        runs[who] = loop(statement, names | {"space": space, "snapshot": space.snapshot()})
    madvise = ctypes.PyDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + 7 * _PAGE
    floor = {"memory": memory, "at": 7 * _PAGE, "madvise": madvise, "page": page, "size": _PAGE}
    runs["floor"] = loop("memory[at] = 1; madvise(page, size, 4)", floor)
    times = best(runs)
    rate, told = 1e9 / times["restore"], 1e9 / times["told"]
    yield MappingRow("restores a second, 1 MiB", "after one page was written", rate, 10_000, more=True)
    what = f"{times['restore'] / 1e3:.1f} us; against a madvise and a page fault of {times['floor'] / 1e3:.1f} us"
    yield MappingRow("restore, 1 page of 1 MiB", what, times["restore"] / times["floor"], 12)
    yield MappingRow("restores a second, listener", "the same, and a listener is told", told, 10_000, more=True)


def _forks() -> Iterator[MappingRow]:
    """A new space out of 64 MiB against a copy of it, and what its pages cost; and a snapshot of what was written."""
    space = _filled()
    snapshot = space.snapshot()
    copy = _copy()
    yield _faster("spawn from a snapshot", "a copy", _best(snapshot.spawn), copy, 50)
    yield _faster("fork", "a copy", _best(space.fork), copy, 50)
    for count in (64, 1024):
        child = snapshot.spawn()
        before = _resident()
        _touch(child, count=count)
        each = (_resident() - before) / (count * _PAGE)
        yield MappingRow(f"memory of {count} touched pages", "grown by, against their size", each, 2)
    taken = _best(space.snapshot, lambda: _touch(space), 100)
    yield _faster("snapshot, 64 pages written", "a copy", taken, copy, 4)


def _cycles() -> Iterator[MappingRow]:
    """What is left of 10,000 snapshots, restores and forks: what the process has after all, less after a tenth."""
    space = AddressSpace()
    space.mmap(_BASE, 1 << 20, _RW, _ANON | mman.MAP_FIXED)
    started = time.perf_counter()
    figures = []
    for turn in range(1, _CYCLES + 1):
        page = _BASE + turn % 256 * _PAGE
        space.copy_out(page, b"before")
        with space.snapshot() as snapshot, space.fork() as child:
            child.copy_out(page, b"child's")
            space.copy_out(page, b"after")
            space.restore(snapshot)
        if turn in (_CYCLES // 10, _CYCLES):
            gc.collect()
            figures.append((_descriptors(), _host_mappings(), _resident() / (1 << 20)))
    what = f"more after 10,000 cycles than after 1,000, of {(time.perf_counter() - started) / _CYCLES * 1e6:.0f} us"
    for name, bar, (before, after) in zip(
        ("descriptors", "host mappings", "MiB of memory"), (0, 16, 2), zip(*figures, strict=True), strict=True
    ):
        yield MappingRow(f"{name} of cycles", what, after - before, bar)


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _host_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("\n")


def _resident() -> int:
    """The resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def rows(only: str) -> Iterator[MappingRow]:
    """All, or those whose name contains ``only``."""
    for part in (_restores, _spreads, _small, _forks, _cycles):
        for row in part():
            if only in row.name:
                yield row
