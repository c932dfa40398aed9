"""The running kernel's brk and ours, given the same calls between the same mappings."""

from __future__ import annotations

import json
import mmap
import platform
import random
import subprocess
import sys
from pathlib import Path

import pytest

from hostarch import mman

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or mmap.PAGESIZE != 4096,
    reason="needs a Linux kernel on x86-64 to compare with",
)
if sys.platform == "linux":
    import kernel_brk
    from kernel_memory import BASE, PAGE, GuestMemory

ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
RW = mman.PROT_READ | mman.PROT_WRITE


def random_calls(rng: random.Random) -> list[tuple[str, int, int, int, int]]:
    """The heap grows and shrinks; now and then something is mapped or unmapped in its way."""
    calls = []
    for _ in range(25):
        addr = BASE + rng.randrange(-1, 24) * PAGE
        name = rng.choice(["brk"] * 6 + ["mmap", "munmap"])
        if name == "brk":
            calls.append((name, addr + rng.choice([0, 0, 1, PAGE - 1]), 0, 0, 0))
        else:
            flags = ANON | rng.choice([0, 0, 0, mman.MAP_GROWSDOWN])
            calls.append((name, max(addr, BASE), rng.randrange(1, 4) * PAGE, rng.choice([RW, mman.PROT_READ]), flags))
    return calls


def ours(calls: list[tuple[str, int, int, int, int]]) -> list[object]:
    """What a space with its heap at BASE says."""
    guest = GuestMemory()
    guest.space.set_brk(BASE)
    found: list[object] = []
    for name, addr, length, prot, flags in calls:
        if name == "brk":
            result: object = guest.space.brk(addr)
        else:
            result = guest.mmap(addr, length, prot, flags) if name == "mmap" else guest.munmap(addr, length)
        guest.space._check()
        found.append([result, [[row.start, row.end, row.rights] for row in guest.rows()]])
    guest.close()
    return found


def test_random_calls() -> None:
    """Eighty sequences, with the same results and maps."""
    rng = random.Random(1)
    sequences = [random_calls(rng) for _ in range(80)]
    script = Path(kernel_brk.__file__)
    requests = [[call[:3] if call[0] == "munmap" else call for call in calls] for calls in sequences]
    child = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(requests), capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    answers = json.loads(child.stdout)
    if answers is None:
        pytest.skip("this process may not move its heap")
    for calls, theirs in zip(sequences, answers, strict=True):
        for i, (our, their) in enumerate(zip(ours(calls), theirs, strict=True)):
            assert our == their, f"call {i}, {calls[i]}, after {calls[:i]}"
