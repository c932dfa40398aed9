"""Each system call that we make, refused by a sandbox: another way is taken, or an error says so, and nothing leaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import refused_calls
import seccomp
import usermem

pytestmark = pytest.mark.skipif(
    not seccomp.CAN_REFUSE, reason="the numbers of system calls are those of Linux on x86-64"
)

FILES = {"file", "private file", "sealed file"}
ALL = {*FILES, "private", "shared", "own pages", "pipe", "datagrams", "object"}
FAILING: dict[str, set[str]] = {
    "close": {"pipe", "datagrams", "sealed file"},  # their own descriptors
    "fcntl": {*FILES, "datagrams"},  # by which Python duplicates a descriptor
    "ftruncate": {"sealed file"},  # its own
    "getpid": FILES,
    "memfd_create": {"sealed file"},  # its own
    "mmap": ALL,
    "mremap": {"sealed file"},
    "msync": {"file"},
    "munmap": FILES,
    "newfstatat": FILES,
    "process_vm_readv": FILES,
    "process_vm_writev": FILES,
    "readv": {"pipe"},
    "writev": {"pipe"},
}
"""The work that there is no other way for: it ends with an OSError. All else is done."""

BY_IMPORT = {"close", "mmap", "newfstatat", "openat"}
"""What Python needs to import anything."""


@pytest.mark.parametrize("when", ["before", "after"])
def test_each_call_refused(when: str) -> None:
    """Before the import, or in the middle: no wrong byte, nothing out of a destructor, no descriptor left open."""
    calls = [name for name in seccomp.CALLS if when == "after" or name not in BY_IMPORT]
    path = os.pathsep.join([str(Path(usermem.__file__).parent.parent), str(Path(seccomp.__file__).parent)])
    done = subprocess.run(
        [sys.executable, refused_calls.__file__, when, *calls],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["call"] for report in reports] == calls
    for report in reports:
        assert not report["wrong"], (report["call"], *report["wrong"])
        assert set(report["failed"]) == FAILING.get(report["call"], set()), report
    assert not done.stderr
