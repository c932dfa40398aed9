"""What loaded snapshots cost: processes that load one file share its clean pages, and pay for the pages they write."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from campaign import times
from edge_layouts import FIXED, PAGE
from every_mapping import BASE, RW
from usermem import AddressSpace, Snapshot
from usermem.mm.image import maps_images

pytestmark = pytest.mark.skipif(
    not (maps_images() and Path("/proc/self/smaps").exists()), reason="this host does not tell, or maps no images"
)

SIZE = 16 << 20
KIB = 1 << 10

CHILD = """
import json, sys
from usermem import Snapshot

path, base, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def figures():
    found, counts = {"Rss": 0, "Pss": 0, "Anonymous": 0}, False
    for line in open("/proc/self/smaps"):
        name, _, value = line.partition(":")
        if name in found:
            found[name] += counts and int(value.split()[0])
        elif "-" in line.split()[0]:
            counts = path in line
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            found["own"] = int(line.split()[1])
    print(json.dumps(found), flush=True)

sys.stdin.readline()
buffer = bytearray(size)  # and all that is used later on
Snapshot.load(path).spawn().copy_in(base, buffer)
figures()
sys.stdin.readline()
snapshot = Snapshot.load(path)
space = snapshot.spawn()
figures()
sys.stdin.readline()
space.copy_in(base, buffer)
figures()
sys.stdin.readline()
for page in range(16):
    space.copy_out(base + page * 4096 * 7, b"x")
figures()
sys.stdin.readline()
"""


def test_processes_share_clean_pages(tmp_path: Path) -> None:
    """Three processes read all of a file's pages: each page is there once; what one writes costs it that page."""
    path = tmp_path / "a"
    with AddressSpace() as space:
        space.mmap(BASE, SIZE, RW, FIXED)
        space.copy_out(BASE, b"some bytes" * (SIZE // 10))
        space.snapshot().save(path)
    with ExitStack() as stack:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, str(path), str(BASE), str(SIZE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        warm, loaded, read, written = ([asked(process) for process in processes] for _ in range(4))
        for i in range(3):
            assert loaded[i]["Rss"] * KIB < SIZE // 4
            assert loaded[i]["own"] - warm[i]["own"] < 4 * KIB
            assert read[i]["own"] - loaded[i]["own"] < 4 * KIB
            assert read[i]["Rss"] * KIB >= SIZE
            assert read[i]["Anonymous"] == 0
            assert read[i]["Pss"] < read[i]["Rss"] * 0.7 or i < 2  # the last one finds the others there
            assert written[i]["Anonymous"] == 16 * PAGE // KIB


def asked(process: subprocess.Popen[str]) -> dict[str, int]:
    """What a process says when it has made its next step."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    found: dict[str, int] = json.loads(process.stdout.readline())
    return found


def quickest(snapshot: Snapshot) -> float:
    """Seconds of a spawn."""
    best = 1.0
    for _ in range(times(20, 200)):
        start = time.perf_counter()
        space = snapshot.spawn()
        best = min(best, time.perf_counter() - start)
        space.close()
    return best


@pytest.mark.parametrize(("length", "step"), [(SIZE, PAGE), (1 << 30, 1 << 20)], ids=["dense", "sparse"])
def test_spawn_is_as_quick_as_from_memory(tmp_path: Path, length: int, step: int) -> None:
    """Twice the time at most; the holes of 1 GiB take no disk, and are neither written nor read."""
    space = AddressSpace()
    space.mmap(BASE, length, RW, FIXED)
    for addr in range(BASE, BASE + length, step):
        space.copy_out(addr, b"x")
    snapshot = space.snapshot()
    snapshot.save(tmp_path / "a")
    assert (tmp_path / "a").stat().st_blocks * 512 < (length // step + 1024) * PAGE
    start = time.perf_counter()
    loaded = Snapshot.load(tmp_path / "a")
    assert time.perf_counter() - start < 2
    assert quickest(loaded) < 3 * quickest(snapshot) + 0.0005
    assert loaded.spawn().read_bytes(BASE + length - step, 2) == b"x\0"
