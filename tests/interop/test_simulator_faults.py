"""Commands in the simulator whose accesses to user memory fault where a plan says: EFAULT for the guest, no more."""

from __future__ import annotations

import errno
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from kernel_messages import needs_linux

pytestmark = needs_linux
WHY = "needs Unicorn and pyelftools: pip install -e '.[interop]'"
for module in ("unicorn", "elftools"):
    pytest.importorskip(module, reason=WHY, exc_type=ImportError)
from simulated import prepare, run_simulated  # noqa: E402
from simulator.kernel import Kernel  # noqa: E402
from simulator.process import Task  # noqa: E402
from simulator.table import CALLS  # noqa: E402
from test_simulator_commands import APPLETS, BUSYBOX, DYNAMIC, SCRIPTS, needs_busybox, split  # noqa: E402
from test_simulator_programs import compiled  # noqa: E402
from usermem import AddressSpace, FaultPlan, FaultyIO  # noqa: E402

LIMIT = 2.0  # a guest may wait for ever for what did not come
COMMANDS = {
    **{f"busybox {name}": [BUSYBOX, *split(line)] for name, line in APPLETS.items() if name != "timeout"},
    **{f"sh {name}": [BUSYBOX, "sh", "-c", line] for name, line in SCRIPTS.items()},
    **{name: split(line) for name, line in DYNAMIC.items() if name != "timeout"},
}


class FaultyKernel(Kernel):
    """Each program's accesses have faults of a plan; it notes them, and what system calls return."""

    def __init__(self, plan: FaultPlan) -> None:
        self.faulty: list[FaultyIO] = []
        self.results: list[tuple[str, int | None]] = []
        super().__init__(wrap=lambda space: self._faulty(space, plan), trace=self._note, limit=LIMIT)

    def _faulty(self, space: AddressSpace, plan: FaultPlan) -> FaultyIO:
        self.faulty.append(FaultyIO(space, plan))
        return self.faulty[-1]

    def _note(self, task: Task, result: int | None) -> None:
        self.results.append((CALLS[task.number].name if task.number in CALLS else "?", result))

    @property
    def injected(self) -> int:
        """How many faults there were."""
        return sum(len(each.injected) for each in self.faulty)


def random_plan(seed: str, share: float = 0.03) -> FaultPlan:
    """A fault here and there, in the middle of what is moved."""
    choice = random.Random(seed)
    return FaultPlan(tuple(choice.choice((0, 1, 5, 40)) if choice.random() < share else None for _ in range(5000)))


def descriptors() -> list[str]:
    """What this process has open, but for the library's own memory, which it keeps."""
    names = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # of iterdir's
            names.append(str(path.readlink()))
    return sorted(name for name in names if not name.startswith("/memfd:usermem"))


@needs_busybox
@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str, tmp_path: Path) -> None:
    """Whatever faults, the guests go on or end, and this process has no exception and loses no descriptor."""
    argv = COMMANDS[name]
    path = shutil.which(argv[0])
    if path is None:
        pytest.skip(f"there is no {argv[0]}")
    prepare(tmp_path / "work")
    before = descriptors()
    kernel = FaultyKernel(random_plan(name))
    run_simulated([path, *argv[1:]], tmp_path / "work", b"some\nlines\n", kernel)
    assert not kernel.processes and not kernel.tasks
    assert descriptors() == before


@needs_busybox
def test_each_access(tmp_path: Path) -> None:
    """Where one access faults, one system call returns EFAULT, and the program ends by itself."""
    prepare(tmp_path / "work")
    names = set()
    for n in range(40):
        kernel = FaultyKernel(FaultPlan((None,) * n + (0,)))
        run_simulated([BUSYBOX, "sort", "words"], tmp_path / "work", b"", kernel)
        failed = [name for name, result in kernel.results if result == -errno.EFAULT]
        assert len(failed) == kernel.injected
        names |= set(failed)
    assert names >= {"readlink", "openat", "read", "write"}


@pytest.mark.parametrize("name", ["threads", "signals", "processes"])
def test_programs(name: str, tmp_path: Path) -> None:
    """Threads, signal frames and futexes."""
    path = compiled(name, tmp_path)
    faults = 0
    for seed in range(4):
        kernel = FaultyKernel(random_plan(f"{name} {seed}", 0.02 * seed))
        run_simulated([path], tmp_path, b"", kernel)
        assert not kernel.processes
        faults += kernel.injected
    assert faults
