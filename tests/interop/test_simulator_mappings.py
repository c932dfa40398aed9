"""A C program that makes mapping calls at random, in the simulator and really: the same results, the same bytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from campaign import times
from kernel_messages import needs_linux

pytestmark = needs_linux
for module in ("unicorn", "elftools"):
    pytest.importorskip(
        module, reason="needs Unicorn and pyelftools: pip install -e '.[interop]'", exc_type=ImportError
    )
from simulated import run_really, run_simulated  # noqa: E402
from simulator.kernel import Kernel  # noqa: E402

SOURCE = Path(__file__).resolve().parent / "programs" / "mappings.c"
CALLS = 1500
LIMIT = 120.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program, static: where the kernel maps a shared library is no matter of it."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    path = tmp_path_factory.mktemp("program") / "mappings"
    made = subprocess.run([compiler, "-static", "-O1", "-w", "-o", path, SOURCE], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"gcc says {made.stderr}")
    return str(path)


@pytest.mark.parametrize("seed", range(1, 1 + times(3, 25)))
def test_mapping_calls(program: str, seed: int, tmp_path: Path) -> None:
    """Each call returns the same, and the CPU loads the same from each page or faults in the same way."""
    work = tmp_path / "work"
    work.mkdir()
    command = [program, str(seed), str(CALLS)]
    real = run_really(command, work)
    assert real.status == 0
    assert real.stdout.count(b" hash ") == CALLS // 50
    found = run_simulated(command, work, kernel=Kernel(limit=LIMIT))
    assert found.stdout.decode().splitlines() == real.stdout.decode().splitlines()
    assert found == real
