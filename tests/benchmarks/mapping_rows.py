"""The rows of ``mapping``: what mappings cost as they become many, as ratios of the same work at two sizes."""

from __future__ import annotations

import mmap
import random
import time
from collections.abc import Callable, Iterator
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


def rows(only: str) -> Iterator[MappingRow]:
    """All, or those whose name contains ``only``."""
    for part in (_copies, _changes, _rights, _heap, _reserved):
        for row in part():
            if only in row.name:
                yield row
