"""What is alive when the interpreter ends goes without a word: its modules are empty by then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, socket, sys
from hostarch import mman
from safemem.datagram import DatagramQueue, DatagramSocket, datagram_pair
from usermem import AddressSpace, Snapshot
from usermem.memories import ProcessIO

PRIVATE, SHARED = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS, mman.MAP_SHARED | mman.MAP_ANONYMOUS
space = AddressSpace()
private = space.mmap(0, 8192, 3, PRIVATE)
space.copy_out(private, b"x")
space.copy_out(space.mmap(0, 8192, 3, SHARED), b"x")
fd = os.open(sys.executable, os.O_RDONLY)
space.read_bytes(space.mmap(0, 8192, 1, mman.MAP_PRIVATE, fd), 10)
snapshot = space.snapshot()
spawned = snapshot.spawn()
space.copy_out(private, b"y")
second = spawned.snapshot()
space.restore(snapshot)
snapshot.save(sys.argv[1])
loaded = Snapshot.load(sys.argv[1])
child = space.fork()
child.copy_out(private, b"z")
space.munmap(private, 4096)
os.kept = (space, snapshot, spawned, second, loaded, loaded.spawn(), child, datagram_pair(), ProcessIO(os.getpid()))
os.kept += (DatagramQueue(DatagramSocket(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))),)
"""


def test_nothing_is_said(tmp_path: Path) -> None:
    """A module that outlives ours keeps one of each kind that has a destructor of its own."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
