"""The simulator's handlers under the observers: none fetches a byte twice or too late, and races change nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kernel_messages import needs_linux

pytestmark = needs_linux
for module in ("unicorn", "elftools", "simulator"):
    pytest.importorskip(
        module, reason="needs Unicorn and pyelftools: pip install -e '.[interop]'", exc_type=ImportError
    )
from simulated import prepare, run_simulated  # noqa: E402
from simulator.kernel import Kernel  # noqa: E402
from simulator.process import Task  # noqa: E402
from simulator.table import CALLS  # noqa: E402
from test_simulator_commands import APPLETS, BUSYBOX, DYNAMIC, SCRIPTS, needs_busybox, split  # noqa: E402
from test_simulator_programs import compiled  # noqa: E402
from usermem import AddressSpace  # noqa: E402
from usermem.observe import DoubleFetchDetector, Finding, Race, RacingIO, SystemCall, TracingIO  # noqa: E402

LIMIT = 20.0
COMMANDS = {
    **{f"busybox {name}": [BUSYBOX, *split(line)] for name, line in APPLETS.items() if name != "timeout"},
    **{f"sh {name}": [BUSYBOX, "sh", "-c", line] for name, line in SCRIPTS.items()},
    **{name: split(line) for name, line in DYNAMIC.items() if name != "timeout"},
}
REFETCHES = {"execve", "execveat"}
"""Calls that fetch a string for each argument that it is: busybox passes one as the path and as argv[0]."""


class ObservedKernel(Kernel):
    """All memory has a detector, over races, over a trace; each system call is one to them, though it may wait."""

    def __init__(self, races: list[Race]) -> None:
        self.racing: list[RacingIO] = []
        self.detectors: list[DoubleFetchDetector] = []
        self.calls: dict[Task, SystemCall] = {}
        self.names: set[str] = set()
        super().__init__(wrap=lambda space: self._observed(space, races), limit=LIMIT)

    def _observed(self, space: AddressSpace, races: list[Race]) -> DoubleFetchDetector:
        self.racing.append(RacingIO(TracingIO(space, limit=100), races))
        self.detectors.append(DoubleFetchDetector(self.racing[-1]))
        return self.detectors[-1]

    def system_call(self, task: Task) -> None:
        number = task.cpu.arguments.read()[0]
        name = CALLS[number].name if number in CALLS else "?"
        self.names.add(name)
        self.calls[task] = SystemCall(name, refetches=name in REFETCHES)
        with self.calls[task]:
            super().system_call(task)

    def go_on(self, task: Task, *, interrupted: bool = False) -> None:
        with self.calls[task]:
            super().go_on(task, interrupted=interrupted)

    @property
    def findings(self) -> list[Finding]:
        """Of all programs."""
        return [finding for each in self.detectors for finding in each.findings]


def check(kernel: ObservedKernel) -> None:
    """Nothing was found, and no byte changed but in calls that may."""
    assert not kernel.findings, "\n".join(map(str, kernel.findings))
    assert kernel.names & REFETCHES or not [change for each in kernel.racing for change in each.raced]


@needs_busybox
@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str, tmp_path: Path) -> None:
    """Each command of the simulator's own tests."""
    argv = COMMANDS[name]
    path = shutil.which(argv[0])
    if path is None:
        pytest.skip(f"there is no {argv[0]}")
    prepare(tmp_path / "work")
    kernel = ObservedKernel([Race(refetch, 0, 0xFF) for refetch in range(100)])
    run_simulated([path, *argv[1:]], tmp_path / "work", b"some\nlines\n", kernel)
    assert len(kernel.names) > 2
    check(kernel)


@pytest.mark.parametrize("name", ["threads", "signals", "processes"])
def test_programs(name: str, tmp_path: Path) -> None:
    """Threads, signal frames and futexes."""
    kernel = ObservedKernel([])
    run_simulated([compiled(name, tmp_path)], tmp_path, b"", kernel)
    check(kernel)
