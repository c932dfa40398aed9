"""A real program with and without a supervisor: what it prints, how it ends, what the supervisor logged of it."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from attrs import frozen

from supervisor import CONTINUE, SIGNATURES, Answer, Call, Handler, Supervisor
from supervisor.policies import Files, Network

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "tests" / "interop" / "supervisor"


@frozen
class Outcome:
    """Of a program that has ended."""

    status: int
    stdout: bytes
    stderr: bytes


@contextmanager
def limited(seconds: float = 20) -> Iterator[None]:
    """Raise TimeoutError in the middle of what takes longer."""

    def late(_: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def alone(argv: Sequence[str], **popen: Any) -> Outcome:
    """Run a program by itself."""
    done = subprocess.run(argv, capture_output=True, timeout=20, check=False, **popen)
    return Outcome(done.returncode, done.stdout, done.stderr)


def supervised(
    argv: Sequence[str], handlers: Mapping[str, Handler | None], *, log: list[str] | None = None, **options: Any
) -> Outcome:
    """Run it under a supervisor."""
    lines = [] if log is None else log
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr, limited():
        with Supervisor(argv, handlers, log=lines.append, stdout=stdout, stderr=stderr, **options) as supervisor:
            status = supervisor.run()
        for file in (stdout, stderr):
            file.seek(0)
        return Outcome(status, stdout.read(), stderr.read())


def python(script: str, *args: str) -> list[str]:
    """The command that runs a script."""
    return [sys.executable, "-I", "-S", "-c", script, *args]


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or goes within seconds."""
    for _ in range(300):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z" and os.getpid() != 1:
            return True
        time.sleep(0.01)
    return False


@cache
def refusal() -> str | None:
    """Why the host cannot supervise."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "needs Linux on x86-64"
    try:
        with Supervisor(["true"], {}) as supervisor:
            supervisor.run()
    except OSError as error:
        return f"needs seccomp user notification: {error}"
    return None


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Skip the test, and say why, where the host cannot supervise. After it no descriptor and no child is left."""
    if (why := refusal()) is not None:
        pytest.skip(why)
    before = _descriptors(), _children()
    yield
    assert (_descriptors(), _children()) == before


def _descriptors() -> list[str]:
    """Of this process."""
    return sorted(path.name for path in Path("/proc/self/fd").iterdir() if path.exists())


def _children() -> str:
    """Of this process's main thread."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def passing() -> dict[str, Handler | None]:
    """Handlers that read all arguments and pass all calls on."""

    def pass_on(call: Call, *values: Any) -> Answer:
        assert not any(isinstance(value, OSError) for value in values)
        return CONTINUE

    found: dict[str, Handler | None] = dict.fromkeys(SIGNATURES, pass_on)
    return found | Files().handlers() | Network(()).handlers()
