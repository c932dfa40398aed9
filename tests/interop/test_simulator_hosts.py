"""What a program may do to the simulator: nothing that ends it, that leaves something behind, or another process's."""

from __future__ import annotations

import errno
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kernel_messages import needs_linux

pytestmark = needs_linux
WHY = "needs Unicorn and pyelftools: pip install -e '.[interop]'"
for module in ("unicorn", "elftools"):
    pytest.importorskip(module, reason=WHY, exc_type=ImportError)
from simulated import run_simulated  # noqa: E402
from simulator.calls import processes  # noqa: E402
from simulator.cpu import CPU  # noqa: E402
from simulator.kernel import Kernel  # noqa: E402
from test_simulator_programs import compiled  # noqa: E402

HERE = Path(__file__).resolve().parent
HEADERS = 7  # of 7 words each, from 64 on
WORDS = (0, 1, 7, 4096, 1 << 32, (1 << 47) - 4096, 1 << 63, (1 << 64) - 1)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_programs(seed: int, tmp_path: Path) -> None:
    """Headers in which a word or two are others: an error of execve's or an end, and no descriptor more."""
    choice = random.Random(seed)
    data = bytearray(Path(shutil.which("true") or "/bin/true").read_bytes())
    for _ in range(choice.choice((1, 2))):
        start, size = choice.choice(((16, 2), (18, 2), (24, 8), (32, 8), (40, 8), (54, 2), (56, 2), *[(64, 8)] * 9))
        at = start + (8 * choice.randrange(7 * HEADERS) if start == 64 else 0)
        data[at : at + size] = (choice.choice(WORDS) & (1 << 8 * size) - 1).to_bytes(size, "little")
    path = tmp_path / "program"
    path.write_bytes(data[: choice.choice((len(data), len(data), len(data), choice.randrange(200)))])
    path.chmod(0o755)
    before = open_files()
    with suppress(OSError):
        run_simulated([str(path)], tmp_path, kernel=Kernel(limit=2))
    assert open_files() == before


@pytest.mark.parametrize("size", [(1 << 64) - 1, 1 << 63, 1 << 47])
def test_a_segment_that_is_nowhere(size: int, tmp_path: Path) -> None:
    """ENOEXEC, whatever the numbers add up to."""
    data = bytearray(Path(shutil.which("true") or "/bin/true").read_bytes())
    load = next(at for at in range(64, 1000, 56) if data[at] == 1)
    data[load + 40 : load + 48] = size.to_bytes(8, "little")
    path = tmp_path / "program"
    path.write_bytes(data)
    path.chmod(0o755)
    with pytest.raises(OSError, match="Exec format"):
        run_simulated([str(path)], tmp_path)


@pytest.mark.parametrize("wanted", [errno.EAGAIN, errno.ENOMEM])
def test_a_fork_that_fails(wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of tasks, or where the host has no memory for an engine, the caller is told; nothing is left."""
    if wanted == errno.EAGAIN:
        monkeypatch.setattr(processes, "_MOST_TASKS", 1)
    else:
        monkeypatch.setattr(processes, "CPU", _no_room)
    before = open_files()
    perl = shutil.which("perl") or pytest.skip("needs perl")
    script = 'print defined(fork) ? "forked" : $! + 0, "\\n"; print wait, "\\n"'
    outcome = run_simulated([perl, "-e", script], tmp_path, kernel=Kernel(limit=10))
    assert outcome.stdout.split() == [b"%d" % wanted, b"-1"]
    assert open_files() == before


def open_files() -> list[str]:
    """What this process has open, but for memory files, which later spaces use again."""
    gc.collect()
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sorted(str(link) for link in links if "usermem" not in link.name and "/proc/" not in str(link))


def _no_room(*_: object) -> CPU:
    raise MemoryError


def test_another_process_gets_no_signal(tmp_path: Path) -> None:
    """kill(2) knows simulated processes only, by any number and for all."""
    shell = shutil.which("bash") or "bash"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        script = f"kill -9 {other.pid} || kill -9 -{other.pid} || kill -9 {os.getppid()} || kill -9 -- -1; echo alive"
        outcome = run_simulated([shell, "-c", f"exec 2> /dev/null; {script}"], tmp_path)
        assert outcome.stdout == b"alive\n"
        assert other.poll() is None
        assert other.stdin is not None
        other.stdin.write(b"\n")


@pytest.mark.parametrize("name", ["/proc/self/mem", "/proc/$$/mem", "/proc/thread-self/mem", "/proc/../proc/self/comm"])
def test_the_simulator_is_not_written(name: str, tmp_path: Path) -> None:
    """What /proc has of the simulator's own process is read only, and its memory is not there."""
    shell = shutil.which("bash") or "bash"
    script = f"exec 2> /dev/null; (: <> {name}) || echo refused; (: < {name}) || echo refused"
    outcome = run_simulated([shell, "-c", script], tmp_path)
    assert outcome.stdout == b"refused\n" * (2 if name.endswith("mem") else 1)


@pytest.mark.parametrize("size", [340_000, 400_000, 420_000, 440_000])
def test_memory_that_the_host_lacks(size: int, tmp_path: Path) -> None:
    """Under a limit of its own the simulator kills the program, and lives."""
    path = compiled("stack", tmp_path, "-static")
    limit = f"ulimit -v {size}; exec {sys.executable} {HERE / 'simulator'} --limit 10 {path}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["sh", "-c", limit], env=environment, capture_output=True, timeout=30, check=False)
    assert done.returncode in (126, 128 + signal.SIGKILL), done.stderr
