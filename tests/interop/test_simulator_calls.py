"""System calls with arguments at random, from a seed: an error for the guest, and no exception of Python's."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from hostarch import mman
from kernel_messages import needs_linux

pytestmark = needs_linux
WHY = "needs Unicorn and pyelftools: pip install -e '.[interop]'"
for module in ("unicorn", "elftools"):
    pytest.importorskip(module, reason=WHY, exc_type=ImportError)
from simulator.kernel import Kernel  # noqa: E402
from simulator.process import Process, Task  # noqa: E402
from simulator.table import CALLS  # noqa: E402

ENDS = {60, 231, 15}  # exit, exit_group, rt_sigreturn: of those the task does not go on
SLOW = {162}  # sync
FORKS = {56, 57, 58, 435}
NUMBERS = [*range(-3, 12), 64, 100, 255, 1024, 4096, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 62, 1 << 63]


def test_there_are_many() -> None:
    """How many numbers have a handler."""
    assert len(CALLS) >= 150


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """A task that never runs."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        process = Kernel().start("/bin/true", ["true"], {}, streams=(null, null, null), cwd=str(tmp_path))
    finally:
        os.close(null)
    return process.tasks[0]


def arguments(choice: random.Random, addresses: list[int]) -> list[int]:
    """Six registers."""
    values = [choice.choice(choice.choice((NUMBERS, NUMBERS, addresses))) for _ in range(6)]
    return [value & (1 << 64) - 1 for value in values]


@pytest.mark.parametrize("seed", range(8))
def test_arguments_at_random(task: Task, seed: int) -> None:
    """The kernel's own way makes each call, and what waits is interrupted."""
    choice = random.Random(seed)
    heap = task.space.mmap(0, 8192, 3, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    addresses = [0, 1, heap, heap + 1, heap + 4095, heap + 8190, heap + 8192, 0x1000, (1 << 47) - 1, 1 << 47]
    numbers = [*sorted(CALLS.keys() - ENDS - SLOW - FORKS), 1000]
    kernel, umask = task.kernel, os.umask(0o22)
    try:
        for _ in range(1500):
            if not task.space.mappings() or choice.random() < 0.02:
                task.space.mmap(heap, 8192, 3, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED)
                task.space.copy_out(heap, choice.randbytes(64) + bytes(64))
            task.number, registers = choice.choice(numbers), arguments(choice, addresses)
            task.cpu.arguments.write(task.number, *registers)
            kernel.system_call(task)
            if task.wait is not None:
                kernel.go_on(task, interrupted=True)
            task.interrupted = False
            result = task.cpu.arguments.read()[0]
            assert result < 1 << 47 or result >= (1 << 64) - 4096, (task.number, registers)
    finally:
        os.umask(umask)
        kernel.end(task.process, signal.SIGKILL)
    assert isinstance(task.process, Process) and not kernel.processes
