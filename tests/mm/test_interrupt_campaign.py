"""Mapping calls, copies and atomics that are interrupted at random: 100,000 times in the nightly profile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

import interrupted_calls
from safemem.atomics import FORCED
from usermem.mm.faulting import can_map

COUNT = settings().max_examples * 10

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "setitimer") or not can_map(), reason="this host has no timers, or cannot copy what may fault"
)


@pytest.mark.parametrize("tier", ["native", "lock"])
def test_interrupts_at_random(tier: str) -> None:
    """After each the tables are whole, no lock is held, copies are right, and the listener knows what is mapped.

    In a process of its own: a signal that ends it is a failure, too.
    """
    program = [sys.executable, "-X", "faulthandler", interrupted_calls.__file__ or "", str(COUNT), "1"]
    paths = [str(Path(__file__).parents[2]), *sys.path]
    environment = {**os.environ, FORCED: "lock" if tier == "lock" else "", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60 + COUNT / 20)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= COUNT
