"""OtherProcess: a child whose memory a test maps, reads and writes, by calls that the child itself makes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, Self

from hostarch import mman

_PRIVATE = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED

# Runs one expression a line and prints what it gives. ctypes memory access is the child's own: it dies of a bad one.
_SCRIPT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
for name in "munmap", "mprotect", "madvise":
    getattr(libc, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int][: 2 + (name != "munmap")]
for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


class OtherProcess:
    """A Python interpreter that runs what it is told. A context manager, which ends it."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._child.pid

    def run(self, expression: str) -> Any:
        """What an expression gives in the child."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(expression + "\n")
        self._child.stdin.flush()
        return eval(self._child.stdout.readline())

    def mmap(self, addr: int, length: int, prot: int, flags: int = _PRIVATE, fd: int = -1, offset: int = 0) -> None:
        """mmap(2) at a fixed address."""
        assert self.run(f"libc.mmap({addr}, {length}, {prot}, {flags}, {fd}, {offset})") == addr

    def munmap(self, addr: int, length: int) -> None:
        """munmap(2)."""
        assert self.run(f"libc.munmap({addr}, {length})") == 0

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """mprotect(2)."""
        assert self.run(f"libc.mprotect({addr}, {length}, {prot})") == 0

    def peek(self, addr: int, n: int) -> bytes:
        """Bytes that the child reads itself."""
        found: bytes = self.run(f"ctypes.string_at({addr}, {n})")
        return found

    def poke(self, addr: int, data: bytes) -> None:
        """Bytes that the child writes itself."""
        self.run(f"ctypes.memmove({addr}, {data!r}, {len(data)})")

    def end(self) -> None:
        """End the child, and wait until its number is free."""
        self._child.kill()
        self._child.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
