"""A process whose heap is moved into the window of kernel_memory, and which makes the calls that it reads.

Input: JSON, a list of sequences of calls ``[name, addr, length, prot, flags]``. Output: null if the kernel does not let
this process move its heap; else for each sequence, for each call, ``[result, [[start, end, rights], ...]]``.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

from kernel_memory import BASE, KernelMemory

_SYS_BRK = 12
_SET_MM, _SET_MM_MAP = 35, 14
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


class _Map(ctypes.Structure):
    """struct prctl_mm_map: PR_SET_MM_MAP, prctl(2), needs no privilege."""

    _fields_ = (
        ("code", ctypes.c_uint64 * 2),
        ("data", ctypes.c_uint64 * 2),
        ("heap", ctypes.c_uint64 * 2),
        ("stack", ctypes.c_uint64),
        ("args_and_environment", ctypes.c_uint64 * 4),
        ("auxv", ctypes.c_uint64),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    )

    @classmethod
    def with_heap_at(cls, addr: int) -> _Map:
        """What proc_pid_stat(5) says of this process, but for the heap."""
        # Fields are counted from 1, and the second, which may hold anything, ends with the last parenthesis.
        text = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        field = [0, 0, 0, 0, *map(int, text[1:])]
        code, data = tuple(field[26:28]), tuple(field[45:47])
        return cls(code, data, (addr, addr), field[28], tuple(field[48:52]), 0, 0, (1 << 32) - 1)


def main() -> None:
    """Answer standard input on standard output."""
    sequences = json.load(sys.stdin)
    libc = ctypes.CDLL(None)
    libc.syscall.restype = libc.malloc.restype = ctypes.c_size_t
    # What malloc will need from here on: it must not move the end of the heap.
    libc.mallopt(_MMAP_THRESHOLD, 1 << 25)
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.free(ctypes.c_size_t(libc.malloc(ctypes.c_size_t(1 << 24))))
    kernel = KernelMemory()
    moved = _Map.with_heap_at(BASE)
    answers = []
    for calls in sequences:
        kernel.close_window()
        libc.prctl(_SET_MM, _SET_MM_MAP, ctypes.byref(moved), ctypes.c_size_t(ctypes.sizeof(moved)), ctypes.c_size_t(0))
        if libc.syscall(_SYS_BRK, ctypes.c_size_t(0)) != BASE:
            json.dump(None, sys.stdout)
            return
        found = []
        for name, addr, *rest in calls:
            if name == "brk":
                result = libc.syscall(_SYS_BRK, ctypes.c_size_t(addr))
            else:
                result = getattr(kernel, name)(addr, *rest)
            found.append((result, [(row.start, row.end, row.rights) for row in kernel.rows()]))
        answers.append(found)
    json.dump(answers, sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
