"""Timing by ratio: contenders take turns in one process, and each keeps its best time.

The machines are noisy and their speed drifts, so absolute times mean little; the ratio of two best times taken in
turns is stable to a few per cent.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from textwrap import indent

from attrs import frozen

from usermem.terminal import Progress

Run = Callable[[int], object]
"""Does its work the given number of times."""


@frozen
class Prepared:
    """A run that consumes what ``prepare(count)`` makes off the clock, before each turn of ``count`` executions."""

    run: Run
    prepare: Run
    count: int = 64


def loop(statement: str, names: Mapping[str, object]) -> Run:
    """A function that executes a statement n times, with names as local variables."""
    parameters = ", ".join(f"{name}={name}" for name in names)
    source = f"def run(n, {parameters}):\n    for _ in range(n):\n{indent(statement, ' ' * 8)}\n"
    scope = dict(names)
    exec(compile(source, f"<{statement}>", "exec"), scope)  # a call would cost as much as what is measured
    run: Run = scope["run"]  # type: ignore[assignment]
    return run


def _timed(run: Run | Prepared, n: int) -> int:
    """The time of n executions, in ns."""
    if isinstance(run, Prepared):
        run.prepare(n)
        run = run.run
    started = time.perf_counter_ns()
    run(n)
    return time.perf_counter_ns() - started


def _count(run: Run | Prepared, slice_s: float) -> int:
    """How many executions take about ``slice_s`` seconds."""
    if isinstance(run, Prepared):
        _timed(run, run.count)
        return run.count
    n = 1
    while True:
        took = _timed(run, n)
        if took > slice_s * 1e9 / 4 or n > 1 << 24:
            return max(1, int(n * slice_s * 1e9 / max(took, 1)))
        n *= 2


def best(runs: Mapping[str, Run | Prepared], rounds: int = 150, slice_s: float = 0.002) -> dict[str, float]:
    """The best time of one execution of each, in ns: they take turns for many short rounds."""
    counts = {name: _count(run, slice_s) for name, run in runs.items()}
    # Again, now that caches and the allocator have seen the work: what ran first was measured cold. The larger count
    # is right: a run that the host interrupts seems to need few executions.
    counts = {name: max(counts[name], _count(run, slice_s)) for name, run in runs.items()}
    found = dict.fromkeys(runs, float("inf"))
    enabled = gc.isenabled()
    gc.disable()
    try:
        with Progress(", ".join(runs), rounds) as show:
            for done in range(rounds):
                for name, run in runs.items():
                    n = counts[name]
                    found[name] = min(found[name], _timed(run, n) / n)
                show(done)
    finally:
        if enabled:
            gc.enable()
    return found
