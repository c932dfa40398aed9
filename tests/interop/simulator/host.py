"""The host's system calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def system_call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
    """syscall(2). Raises OSError."""
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def system_call_for_struct(size: int, number: int, *before: int | bytes, after: tuple[int, ...] = ()) -> bytes:
    """A system call that fills a struct, which is its argument between ``before`` and ``after``. Raises OSError."""
    struct = ctypes.create_string_buffer(size)
    system_call(number, *before, struct, *after)
    return struct.raw
