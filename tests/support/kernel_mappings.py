"""A process that makes the mapping calls it reads from its input, and answers what the kernel said to each.

Input: JSON, a list of sequences of calls ``[name, addr, length, prot, flags]``. Output: for each sequence, for each
call, ``[result, maps]``: 0 or an address, the name of an errno, or "elsewhere" for an address outside the window; and
the lines of /proc/self/maps in the window, cut after the rights. A sequence starts with an empty window.
"""

from __future__ import annotations

import ctypes
import errno
import json
import sys
from pathlib import Path

PAGE = 4096
WINDOW = 1 << 36, (1 << 36) + 64 * PAGE
"""Addresses that the kernel gives nobody who does not ask for them: its own choices are near the top."""

Call = tuple[str, int, int, int, int]
Answer = tuple[int | str, list[str]]


def window_lines(maps: str) -> list[str]:
    """The lines of a maps text that lie in the window, up to the rights."""
    found = []
    for line in maps.splitlines():
        bounds, rights = line.split()[:2]
        start, end = (int(x, 16) for x in bounds.split("-"))
        if start < WINDOW[1] and WINDOW[0] < end:
            found.append(f"{start:x}-{end:x} {rights}")
    return found


def main() -> None:
    """Answer standard input on standard output."""
    libc = ctypes.CDLL(None, use_errno=True)
    size, number = ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = size
    libc.mmap.argtypes = (size, size, number, number, number, size)
    libc.munmap.argtypes = (size, size)
    libc.mprotect.argtypes = (size, size, number)

    def answer(name: str, addr: int, length: int, prot: int, flags: int) -> int | str:
        if name == "mmap":
            result = int(libc.mmap(addr, length, prot, flags, -1, 0))
        elif name == "munmap":
            result = int(libc.munmap(addr, length)) % (1 << 64)
        else:
            result = int(libc.mprotect(addr, length, prot)) % (1 << 64)
        if result == (1 << 64) - 1:
            return errno.errorcode[ctypes.get_errno()]
        if result and not WINDOW[0] <= result < WINDOW[1]:
            libc.munmap(result, length)
            return "elsewhere"
        return result

    answers: list[list[Answer]] = []
    for calls in json.load(sys.stdin):
        if libc.munmap(WINDOW[0], WINDOW[1] - WINDOW[0]):
            raise OSError(ctypes.get_errno(), "munmap of the window")
        maps = Path("/proc/self/maps")
        answers.append([(answer(*call), window_lines(maps.read_text())) for call in calls])
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
