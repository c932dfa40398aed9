"""A subinterpreter uses user memory as the main interpreter does, beside it."""

from __future__ import annotations

import subprocess
import sys

import pytest

USE = """
import sys
sys.path[:] = {path}
import os, tempfile
from hostarch import mman
from usermem import AddressSpace, FaultError

class File:
    def size(self): return 8192
    def read_at(self, offset, dst): return 0
    def write_at(self, offset, src): self.got = bytes(src[:2])

space, file = AddressSpace(), File()
ANON = mman.MAP_ANONYMOUS
for flags in (mman.MAP_PRIVATE | ANON, mman.MAP_SHARED | ANON):
    addr = space.mmap(0, 65536, 3, flags)
    space.copy_out(addr, b"hi")
    assert space.read_bytes(addr, 2) == b"hi"
    assert space.swap_uint32(addr, 1) and space.load_uint32(addr) == 1
addr = space.map_object(0, 8192, 3, mman.MAP_SHARED, file)
space.copy_out(addr, b"hi")
space.munmap(addr, 8192)
assert file.got == b"hi"
with tempfile.TemporaryFile() as host:
    host.truncate(4096)
    addr = space.mmap(0, 8192, 3, mman.MAP_SHARED, host.fileno(), 0)
    try:
        space.read_bytes(addr, 5000)
    except FaultError as fault:
        assert fault.transferred == 4096
os.write(1, b"used ")
"""

MAIN = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
options = {} if sys.version_info[:2] != (3, 12) else {"isolated": False}  # where ctypes needs that
use = sys.argv[1].format(path=sys.path)
exec(use)
for _ in range(3):
    made = interpreters.create(**options)
    assert interpreters.run_string(made, use) is None
    interpreters.destroy(made)  # with a space that is open
exec(use)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="maps a file of the host's")
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs CPython's subinterpreters")
def test_a_space_in_a_subinterpreter() -> None:
    """One after the other, each with a space that is left open, and the main interpreter's before and after."""
    command = [sys.executable, "-W", "ignore", "-c", MAIN, USE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "used " * 5, "")
