"""mlockall, munlockall and MADV_COLLAPSE against the running kernel: what cannot be random in a process that lives on.

A process of its own makes the calls, for mlockall concerns all of its memory.
"""

from __future__ import annotations

import json
import mmap
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from hostarch import AMD64, mman

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or mmap.PAGESIZE != 4096,
    reason="needs a Linux kernel on x86-64 to compare with",
)
if sys.platform == "linux":
    import kernel_memory
    from kernel_memory import BASE, PAGE, GuestMemory

HUGE = AMD64.huge_page_size
ANON = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
RW = mman.PROT_READ | mman.PROT_WRITE
MOVE = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED
COLLAPSE = mman.MADV_COLLAPSE

Call = tuple[str, tuple[int, ...]]
MAP: Call = ("mmap", (BASE, 4 * PAGE, RW, ANON))
PROBES: list[Call] = [("msync", (BASE + i * PAGE, PAGE, mman.MS_INVALIDATE)) for i in range(8)]
LOCKING: dict[str, list[Call]] = {
    "current": [MAP, ("mlockall", (1,)), *PROBES, ("mmap", (BASE + 4 * PAGE, PAGE, RW, ANON)), *PROBES],
    "future": [MAP, ("mlockall", (2,)), *PROBES, ("mmap", (BASE + 4 * PAGE, PAGE, RW, ANON)), *PROBES],
    "both": [MAP, ("mlockall", (3,)), ("mmap", (BASE + 4 * PAGE, PAGE, RW, ANON)), *PROBES],
    "both, then one": [MAP, ("mlockall", (3,)), ("mlockall", (1,)), ("mmap", (BASE + PAGE, PAGE, RW, ANON)), *PROBES],
    "on fault": [MAP, ("mlockall", (7,)), ("mmap", (BASE + 4 * PAGE, PAGE, RW, ANON)), *PROBES],
    "unlock": [MAP, ("mlockall", (3,)), ("munlockall", ()), ("mmap", (BASE + 4 * PAGE, PAGE, RW, ANON)), *PROBES],
    "moved": [MAP, ("mlockall", (1,)), ("mremap", (BASE, PAGE, 2 * PAGE, MOVE, BASE + 6 * PAGE)), *PROBES],
    "kept": [MAP, ("mlockall", (1,)), ("mremap", (BASE + PAGE, PAGE, PAGE, MOVE | 4, BASE + 6 * PAGE)), *PROBES],
    "flags": [("mlockall", (n,)) for n in (0, 4, 8, 9, 1 << 31)],
}
HUGE_AT = 1 << 39
TOUCH: Call = ("madvise", (HUGE_AT, PAGE, mman.MADV_POPULATE_WRITE))
COLLAPSING: list[Call] = [
    ("mmap", (HUGE_AT, 4 * HUGE, RW, ANON)),
    ("madvise", (HUGE_AT, HUGE, COLLAPSE)),
    TOUCH,
    *(("madvise", (HUGE_AT + at, size, COLLAPSE)) for at in (0, PAGE, HUGE) for size in (0, PAGE, HUGE, 2 * HUGE)),
    ("madvise", (HUGE_AT, 5 * HUGE, COLLAPSE)),
    ("madvise", (HUGE_AT - PAGE, PAGE, COLLAPSE)),
    ("mmap", (BASE, 4 * PAGE, RW, ANON | mman.MAP_POPULATE)),
    ("madvise", (BASE, PAGE, COLLAPSE)),
    ("madvise", (BASE, 5 * PAGE, COLLAPSE)),
    ("munmap", (HUGE_AT, 4 * HUGE)),
]

# Reads sequences of calls from its input, and prints what the kernel says to each.
_CHILD = """
import json, sys
from kernel_memory import KernelMemory
kernel = KernelMemory()
for calls in json.load(sys.stdin):
    print(json.dumps([getattr(kernel, name)(*args) for name, args in calls]))
    kernel.munlockall()
    kernel.close_window()
"""


def compare(sequences: list[list[Call]]) -> None:
    """Both give the same answers."""
    room = Path(kernel_memory.__file__).parent
    code = f"import sys; sys.path.insert(0, {str(room)!r}){_CHILD}"
    child = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(sequences), capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    for calls, line in zip(sequences, child.stdout.splitlines(), strict=True):
        guest = GuestMemory()
        guest.space.limits.memlock_limit = guest.space.limits.data_limit = None
        answers = [getattr(guest, name)(*args) for name, args in calls]
        for call, theirs, ours in zip(calls, json.loads(line), answers, strict=True):
            assert ours == theirs, f"{call} of {calls}"
        guest.close()


def test_locking_everything() -> None:
    """mlockall of what is there and of what comes, in each way."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit != resource.RLIM_INFINITY and not _is_privileged():
        pytest.skip("this process may not lock all of its memory")
    compare(list(LOCKING.values()))


def test_collapsing() -> None:
    """MADV_COLLAPSE, with huge pages touched and not, whole and not."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists():
        pytest.skip("the kernel has no transparent huge pages")
    compare([COLLAPSING])


def _is_privileged() -> bool:
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> 14 & 1)
