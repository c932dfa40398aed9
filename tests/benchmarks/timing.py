"""Timing by ratio: contenders take turns in one process, and each keeps its best time.

The machines are noisy and their speed drifts, so absolute times mean little; the ratio of two best times taken in
turns is stable to a few per cent.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

Run = Callable[[int], object]
"""Does its work the given number of times."""


def loop(statement: str, names: Mapping[str, object]) -> Run:
    """A function that executes a statement n times, with names as local variables."""
    parameters = ", ".join(f"{name}={name}" for name in names)
    source = f"def run(n, {parameters}):\n    for _ in range(n):\n        {statement}\n"
    scope = dict(names)
    exec(compile(source, f"<{statement}>", "exec"), scope)  # a call would cost as much as what is measured
    run: Run = scope["run"]  # type: ignore[assignment]
    return run


def _count(run: Run, slice_s: float) -> int:
    """How many executions take about ``slice_s`` seconds."""
    n = 1
    while True:
        started = time.perf_counter_ns()
        run(n)
        took = time.perf_counter_ns() - started
        if took > slice_s * 1e9 / 4 or n > 1 << 24:
            return max(1, int(n * slice_s * 1e9 / max(took, 1)))
        n *= 2


def best(runs: Mapping[str, Run], rounds: int = 150, slice_s: float = 0.002) -> dict[str, float]:
    """The best time of one execution of each, in ns: they take turns for many short rounds."""
    counts = {name: _count(run, slice_s) for name, run in runs.items()}
    # Again, now that caches and the allocator have seen the work: what ran first was measured cold.
    counts = {name: _count(run, slice_s) for name, run in runs.items()}
    found = dict.fromkeys(runs, float("inf"))
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, run in runs.items():
                n = counts[name]
                started = time.perf_counter_ns()
                run(n)
                found[name] = min(found[name], (time.perf_counter_ns() - started) / n)
    finally:
        if enabled:
            gc.enable()
    return found
