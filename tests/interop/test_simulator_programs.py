"""C programs in the simulator, and really: threads, signals, processes, a stack that grows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kernel_messages import needs_linux

pytestmark = needs_linux
WHY = "needs Unicorn and pyelftools: pip install -e '.[interop]'"
for module in ("unicorn", "elftools"):
    pytest.importorskip(module, reason=WHY, exc_type=ImportError)
from simulated import run_really, run_simulated  # noqa: E402

PROGRAMS = Path(__file__).resolve().parent / "programs"


def compiled(name: str, folder: Path, *options: str) -> str:
    """A program out of its source. Skips if it cannot be made."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path = folder / name
    command = [compiler, "-O1", "-pthread", "-w", *options, "-o", str(path), str(PROGRAMS / f"{name}.c")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"the C compiler says {made.stderr}")
    return str(path)


@pytest.mark.parametrize("linking", ["-static", "-pie"])
@pytest.mark.parametrize("name", ["threads", "signals", "processes", "stack", "edges"])
def test_program(name: str, linking: str, tmp_path: Path) -> None:
    """It prints the same, and ends in the same way."""
    path = compiled(name, tmp_path, *([linking] if linking == "-static" else ["-fPIE", linking]))
    work = tmp_path / "work"
    work.mkdir()
    real = run_really([path], work)
    assert run_simulated([path], work) == real
