"""Refuse system calls to this process and its children, for good: a seccomp filter, as a sandbox has. No root needed.

Source: seccomp(2), linux/filter.h, arch/x86/entry/syscalls/syscall_64.tbl.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

CAN_REFUSE = sys.platform == "linux" and platform.machine() == "x86_64"

_NUMBERS = {
    "close": 3,
    "fstat": 5,
    "poll": 7,
    "lseek": 8,
    "mmap": 9,
    "munmap": 11,
    "readv": 19,
    "writev": 20,
    "mremap": 25,
    "msync": 26,
    "mincore": 27,
    "madvise": 28,
    "dup": 32,
    "getpid": 39,
    "sendmsg": 46,
    "recvmsg": 47,
    "setsockopt": 54,
    "getsockopt": 55,
    "fcntl": 72,
    "ftruncate": 77,
    "readlink": 89,
    "fstatfs": 138,
    "openat": 257,
    "newfstatat": 262,
    "fallocate": 285,
    "recvmmsg": 299,
    "sendmmsg": 307,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "memfd_create": 319,
}

CALLS = tuple(_NUMBERS)
"""The system calls that can be refused: those that this package makes, beside those that every program makes."""

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD_NUMBER, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x0005_0000, 0x7FFF_0000


def refuse(*names: str, code: int = errno.EPERM) -> None:
    """Have these system calls fail with an errno from now on. Raises OSError if the host has no seccomp."""
    lines = [(_LOAD_NUMBER, 0, 0, 0)]
    for name in names:
        lines += [(_IF_EQUAL, 0, 1, _NUMBERS[name]), (_RETURN, 0, 0, _ERRNO | code)]
    program = ctypes.create_string_buffer(
        b"".join(struct.pack("HBBI", *line) for line in [*lines, (_RETURN, 0, 0, _ALLOW)])
    )
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(lines) + 1, ctypes.addressof(program)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
