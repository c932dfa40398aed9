"""The rows of ``mapping``: what mappings cost as they become many, as ratios of the same work at two sizes."""

from __future__ import annotations

import mmap
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from attrs import frozen

from hostarch import mman
from peers import unicorn_over
from timing import best, loop
from usermem import AddressSpace

_PAGE = 4096
_BASE = 0x1_0000_0000
_RW = mman.PROT_READ | mman.PROT_WRITE
_ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
_FIXED = _ANON | mman.MAP_FIXED
_WARM = 10_000
_ROUNDS = 7
_STEPS = 1_000_000
_TURNS = 7
_SYNCED = 32 << 20


@frozen
class MappingRow:
    """A ratio and its bar: at most that, or at least if ``more`` is better. ``what`` says what was measured."""

    name: str
    what: str
    ratio: float
    bar: float
    more: bool = False

    @property
    def missed(self) -> bool:
        """Whether the bar is not reached."""
        return self.ratio < self.bar if self.more else self.ratio > self.bar


def _space(mappings: int, pages: int = 1) -> AddressSpace:
    """Mappings of some pages, with holes between."""
    space = AddressSpace(max_map_count=1 << 20)
    for i in range(mappings):
        space.mmap(_BASE + i * (pages + 1) * _PAGE, pages * _PAGE, _RW, _FIXED)
    return space


def _copies() -> Iterator[MappingRow]:
    """64 bytes, from one page and from random ones, at 10, 1,000 and 100,000 mappings."""
    spaces = {n: _space(n) for n in (10, 1_000, 100_000)}
    buffer = bytearray(64)
    runs = {}
    for n, space in spaces.items():
        space.copy_out(_BASE, bytes(64))
        runs[str(n)] = loop("space.copy_in(addr, buffer)", {"space": space, "addr": _BASE, "buffer": buffer})
    times = best(runs)
    for n in (1_000, 100_000):
        yield MappingRow(f"copy_in at {n} VMAs", "against 10", times[str(n)] / times["10"], 1.2)
    choice = random.Random(1)
    randoms = {}
    for n, space in spaces.items():
        pages = [choice.randrange(n) for _ in range(_WARM)]
        addrs = [_BASE + 2 * page * _PAGE for page in pages]
        for addr in addrs:
            space.copy_in(addr, buffer)
        randoms[n] = _quickest(partial(_copy_all, space, addrs, buffer)) / _WARM
    yield MappingRow("random pages, 100,000 VMAs", "against one page at 10", randoms[100_000] * 1e9 / times["10"], 5)


def _copy_all(space: AddressSpace, addrs: list[int], buffer: bytearray) -> None:
    copy_in = space.copy_in
    for addr in addrs:
        copy_in(addr, buffer)


def _quickest(run: Callable[[], object]) -> float:
    found = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        run()
        found = min(found, time.perf_counter() - started)
    return found


def _changes() -> Iterator[MappingRow]:
    """mmap and munmap between copies that keep 10,000 pages warm."""
    times = {}
    buffer = bytearray(64)
    for n in (10, _WARM):
        space = _space(n, _WARM // n)
        addrs = [_BASE + (i // (_WARM // n)) * _PAGE + i * _PAGE for i in range(_WARM)]

        def turn(space: AddressSpace = space, addrs: list[int] = addrs) -> None:
            for start in range(0, _WARM, 1000):
                space.munmap(space.mmap(0, 16 * _PAGE, _RW, _ANON), 16 * _PAGE)
                _copy_all(space, addrs[start : start + 1000], buffer)

        turn()
        times[n] = _quickest(turn)
    us = times[_WARM] * 1e6 / _WARM
    yield MappingRow(
        "mmap+munmap, 10,000 pages warm", f"{us:.2f} us a copy, 10,000 VMAs against 10", times[_WARM] / times[10], 2
    )


def _rights() -> Iterator[MappingRow]:
    """mprotect of one page of a mapping of 64 MiB that is whole, against Unicorn's."""
    size = 64 << 20
    page = _BASE + size // 2
    space = AddressSpace()

    def ours() -> Callable[[], object]:
        space.mmap(_BASE, size, _RW, _FIXED)
        for at in range(0, size, 256 * _PAGE):
            space.copy_out(_BASE + at, b"x")
        return lambda: space.mprotect(page, _PAGE, mman.PROT_READ)

    memory = mmap.mmap(-1, size)
    theirs = unicorn_over(memory, _BASE, page, _PAGE)
    mine = min(_timed(ours()) for _ in range(_ROUNDS))
    if theirs is None:
        print("Unicorn is not there: mprotect is not compared")
        return
    ratio = min(_timed(theirs()) for _ in range(_ROUNDS)) / mine
    yield MappingRow("mprotect in 64 MiB", f"{mine * 1e6:.1f} us; Unicorn's against it", ratio, 20, more=True)


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _heap() -> Iterator[MappingRow]:
    """A million steps of brk, each page touched; and 1 TiB that nobody touches."""
    maps = Path("/proc/self/maps")
    before = maps.read_text().count("\n") if maps.exists() else 0
    space = AddressSpace()
    space.set_brk(_BASE)
    marks = []
    started = time.perf_counter()
    for step in range(1, _STEPS + 1):
        space.brk(_BASE + step * 16)
        if step in (_STEPS // 10, _STEPS):
            marks.append((time.perf_counter() - started) / step)
    after = maps.read_text().count("\n") if maps.exists() else 0
    yield MappingRow(
        "brk, 10^6 steps", f"{marks[1] * 1e6:.2f} us a step; against the first tenth", marks[1] / marks[0], 1.5
    )
    yield MappingRow("host mappings for them", "so many more than before", float(after - before), 20)


def _reserved() -> Iterator[MappingRow]:
    started = time.perf_counter()
    space = AddressSpace()
    small = space.mmap(0, _PAGE, mman.PROT_NONE, _ANON)
    middle = time.perf_counter()
    space.mmap(0, 1 << 40, mman.PROT_NONE, _ANON)
    ended = time.perf_counter()
    assert small
    yield MappingRow(
        "1 TiB PROT_NONE", "against the first page and its space", (ended - middle) / (middle - started), 5
    )


def _in_turns(runs: Mapping[str, Callable[[], list[float]]]) -> dict[str, float]:
    """The time of each: the runs take turns, and of each slice of their time, which they return, the best counts."""
    found: dict[str, list[list[float]]] = {name: [] for name in runs}
    for _ in range(_TURNS):
        for name, run in runs.items():
            found[name].append(run())
    return {name: sum(map(min, zip(*times, strict=True))) for name, times in found.items()}


def _place(lengths: Sequence[int], flags: int = _ANON, limit: int | None = None) -> list[float]:
    """Map so many pages each, where there is room. Neighbours are not merged. A slice is 250 calls."""
    space = AddressSpace(max_map_count=1 << 20, address_limit=limit)
    mmap = space.mmap
    times = []
    for first in range(0, len(lengths), 250):
        started = time.perf_counter()
        for i, length in enumerate(lengths[first : first + 250]):
            mmap(0, length * _PAGE, mman.PROT_READ + 2 * (i & 1), flags)
        times.append(time.perf_counter() - started)
    return times


def _places() -> Iterator[MappingRow]:
    """Mappings of several lengths, in the low 2 GiB, under a limit: a call costs no more beside many."""
    choice = random.Random(1)
    runs = {
        "1,000": partial(_place, [1] * 1_000),
        "2,000": partial(_place, [1] * 2_000),
        "8,000": partial(_place, [1] * 8_000),
        "2,000 low": partial(_place, [1] * 2_000, _ANON | mman.MAP_32BIT),
        "8,000 limited": partial(_place, [1] * 8_000, limit=1 << 46),
        "8,000 falling": partial(_place, range(8_000, 0, -1)),
        "32,000 random": partial(_place, [choice.randrange(1, 65) for _ in range(32_000)]),
    }
    times = {name: total / int(name.split()[0].replace(",", "")) for name, total in _in_turns(runs).items()}

    def row(name: str, run: str, base: str, bar: float) -> MappingRow:
        return MappingRow(name, f"{times[run] * 1e6:.1f} us a call; against {base}", times[run] / times[base], bar)

    yield row("2,000 with MAP_32BIT", "2,000 low", "2,000", 1.5)
    yield row("8,000 with address_limit", "8,000 limited", "8,000", 1.2)
    yield row("8,000 of falling lengths", "8,000 falling", "1,000", 2)
    yield row("32,000 of 64 lengths", "32,000 random", "1,000", 2)


def _many() -> Iterator[MappingRow]:
    """mmap and munmap where there is room, beside 10 and beside 100,000 mappings with holes between."""
    spaces = {n: _space(n) for n in (10, 100_000)}
    runs = {
        str(n): loop(
            "space.munmap(space.mmap(0, size, rights, flags), size)",
            {"space": space, "size": _PAGE, "rights": _RW, "flags": _ANON},
        )
        for n, space in spaces.items()
    }
    times = best(runs)
    us = times["100000"] / 1e3
    yield MappingRow("mmap+munmap, 100,000 VMAs", f"{us:.1f} us a pair; against 10", times["100000"] / times["10"], 1.5)


class _Object:
    """A simulator's file that takes what is written back to it."""

    def size(self) -> int:
        return _SYNCED

    def read_at(self, offset: int, dst: memoryview) -> int:
        return len(dst)

    def write_at(self, offset: int, src: memoryview) -> int:
        return len(src)


def _syncs() -> Iterator[MappingRow]:
    """msync of an object's shared mapping page by page against once for all, of as many pages that were written."""

    def sync(step: int) -> list[float]:
        space = AddressSpace()
        space.map_object(_BASE, _SYNCED, _RW, mman.MAP_SHARED | mman.MAP_FIXED, _Object())
        space.copy_out(_BASE, b"x" * _SYNCED)
        msync = space.msync
        started = time.perf_counter()
        for at in range(_BASE, _BASE + _SYNCED, step):
            msync(at, step, mman.MS_SYNC)
        return [time.perf_counter() - started]

    times = _in_turns({"whole": partial(sync, _SYNCED), "pages": partial(sync, _PAGE)})
    us = times["pages"] * 1e6 / (_SYNCED // _PAGE)
    ratio = times["pages"] / times["whole"]
    yield MappingRow("msync of 32 MiB by pages", f"{us:.1f} us a page; against at once", ratio, 2)


def rows(only: str) -> Iterator[MappingRow]:
    """All, or those whose name contains ``only``."""
    for part in (_copies, _changes, _rights, _heap, _reserved, _places, _many, _syncs):
        for row in part():
            if only in row.name:
                yield row
