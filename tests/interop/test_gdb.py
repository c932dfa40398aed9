"""FunctionIO over gdb, by the very lines of its docstring: a process that gdb is attached to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hostarch import mman
from other_process import OtherProcess

BASE = 0x2000_0000
PAGE = 4096

# Runs in gdb's own Python.
_SCRIPT = """
import gdb
from hostarch import AddrRangeSeq
from safemem import ReaderFunc
from usermem import FaultError, copy_in_vec, copy_string_in
from usermem.memories import FunctionIO, function

first, second = (line.strip() for line in function.__doc__.splitlines() if "gdb." in line)
exec(first)
io = eval(second)
assert copy_string_in(io, BASE, 4096) == b"of the target"
assert io.copy_out(BASE + 4, b"gdb, not ") == 9
assert io.zero_out(BASE + 100, 50) == 50
ars = AddrRangeSeq.from_pairs((BASE + PAGE - 7, 8 * PAGE))
for call in (
    lambda: io.read_bytes(BASE + PAGE - 7, 8 * PAGE),
    lambda: io.copy_out(BASE + PAGE - 7, bytes(8 * PAGE)),
    lambda: io.copy_out_from(ars, ReaderFunc(lambda dsts: dsts.num_bytes)),
):
    try:
        call()
    except FaultError as fault:
        assert (fault.transferred, fault.address) == (PAGE + 7, BASE + 2 * PAGE), fault
        assert fault.reason.value == "unmapped"
    else:
        raise AssertionError("no fault")
buffer = bytearray(6)
assert copy_in_vec(io, AddrRangeSeq.from_pairs((BASE, 4, BASE + 8, 2)), buffer) == 6
assert buffer == b"of t n", buffer
print("all is right")
"""


def gdb(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run gdb, whose Python finds what ours does."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = ["gdb", "-nx", "-q", "-batch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": paths})


def test_gdb(tmp_path: Path) -> None:
    """Strings, writes that the process sees, and exact faults though gdb's calls do all or nothing."""
    if shutil.which("gdb") is None:
        pytest.skip("needs gdb: apt install gdb")
    version = gdb("-ex", "python import sys; print(sys.version_info >= (3, 11))")
    if version.stdout.strip() != "True":
        pytest.skip(f"gdb has no Python of 3.11 and up: {version.stdout}{version.stderr}")
    script = tmp_path / "script.py"
    script.write_text(f"BASE, PAGE = {BASE}, {PAGE}\n{_SCRIPT}")
    with OtherProcess() as other:
        other.mmap(BASE, 2 * PAGE, mman.PROT_READ | mman.PROT_WRITE)
        other.poke(BASE, b"of the target\0")
        done = gdb("-p", str(other.pid), "-x", str(script))
        if "ptrace: Operation not permitted" in done.stderr:
            pytest.skip(f"gdb may not attach: {done.stderr}")
        assert "all is right" in done.stdout, done.stderr
        assert other.peek(BASE, 13) == b"of tgdb, not "
