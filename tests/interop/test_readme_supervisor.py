"""The README's supervisor runs: the code, and the command."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from supervised import ROOT, limited, nothing_left

__all__ = ["nothing_left"]
pytestmark = pytest.mark.usefixtures("nothing_left")
SECTION = (ROOT / "README.md").read_text().split("## A supervisor for a real process\n")[1].split("\n## ")[0]


def test_it_is_short() -> None:
    """At most 30 lines with its heading."""
    assert len(SECTION.rstrip().splitlines()) < 30


def test_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """It asserts what it says, and logs."""
    (block,) = re.findall(r"^```py\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)
    with limited():
        exec(compile(block, "README.md, a supervisor", "exec"), {"__name__": "readme"})
    assert "'/etc/passwd', O_RDONLY, 0o0) = -1 EACCES (Permission denied)" in capsys.readouterr().out


def test_command_runs() -> None:
    """The shell's command does what the options say."""
    (line,) = re.findall(r"^\.venv/bin/python (.*)$", SECTION, re.MULTILINE)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *shlex.split(line)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=30)
    assert (done.returncode, done.stdout) == (1, "nowhere\n")
    if Path("/etc/shadow").exists():
        assert "'/etc/shadow', O_RDONLY, 0o0) = -1 EACCES" in done.stderr
