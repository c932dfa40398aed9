"""mmap(2) of any kind of descriptor with any arguments: which error the running kernel says first, or none."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from edge_layouts import ANON, PAGE, RW
from hostarch import mman
from usermem import AddressSpace

pytestmark = pytest.mark.skipif(sys.platform != "linux" or sys.maxsize < 1 << 32, reason="asks a 64-bit Linux")

_FAILED: Final = (1 << 64) - 1
_ADD_SEALS: Final = 1033
_SEAL_WRITE: Final = 8

KINDS = [0, mman.MAP_SHARED, mman.MAP_PRIVATE, mman.MAP_SHARED_VALIDATE, 15]
PROTS = [mman.PROT_NONE, mman.PROT_READ, RW, mman.PROT_READ | mman.PROT_EXEC]
LENGTHS = [0, 1, PAGE + 1, 1 << 47, (1 << 64) - 1]
OFFSETS = [0, 1, PAGE, (1 << 63) - 2 * PAGE, (1 << 63) - PAGE, (1 << 64) - PAGE]
OTHERS = [0, mman.MAP_SYNC, mman.MAP_GROWSDOWN, mman.MAP_HUGETLB, mman.MAP_HUGETLB | 21 << mman.MAP_HUGE_SHIFT, 1 << 23]


@pytest.fixture
def descriptors() -> Iterator[dict[str, int]]:
    """A descriptor of each kind."""
    import fcntl

    with ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile())
        file.truncate(4 * PAGE)
        found = {"none": 999_999, "negative": -1}
        ways = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR, "append": os.O_RDWR | os.O_APPEND}
        found.update({name: os.open(file.name, way) for name, way in (ways | {"a name": os.O_PATH}).items()})
        found["a directory"] = os.open("/", os.O_RDONLY)
        found["zeros"] = os.open("/dev/zero", os.O_RDWR)
        found["null"] = os.open("/dev/null", os.O_RDWR)
        found["a pipe"], found["its other end"] = os.pipe()
        found["a socket"] = socket.socket(socket.AF_UNIX).detach()
        for name, seal in (("memory", 0), ("sealed memory", _SEAL_WRITE)):
            found[name] = os.memfd_create(name, os.MFD_ALLOW_SEALING)
            os.ftruncate(found[name], 4 * PAGE)
            fcntl.fcntl(found[name], _ADD_SEALS, seal)
        for fd in found.values():
            if 0 <= fd < 999_999:
                stack.callback(os.close, fd)
        yield found


def _kernel(libc: ctypes.CDLL, length: int, prot: int, flags: int, fd: int, offset: int) -> str:
    found: int = libc.mmap(0, length, prot, flags, fd, offset)
    if found == _FAILED:
        return errno.errorcode[ctypes.get_errno()]
    libc.munmap(found, length)
    return "mapped"


def _ours(length: int, prot: int, flags: int, fd: int, offset: int) -> str:
    try:
        AddressSpace().mmap(0, length, prot, flags, fd, offset)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return "mapped"


def test_which_error_comes_first(descriptors: dict[str, int]) -> None:
    """All combinations, of files and of anonymous memory; each error comes in its turn."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_size_t
    libc.mmap.argtypes = (ctypes.c_size_t, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
    libc.munmap.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
    wrong = []
    for (name, fd), *rest in itertools.product(descriptors.items(), LENGTHS, PROTS, KINDS, OFFSETS, OTHERS):
        length, prot, kind, offset, other = rest
        flags = kind | other
        if name == "none":  # only looked at where a file is mapped
            flags |= ANON & ~mman.MAP_TYPE
        kernel = _kernel(libc, length, prot, flags, fd, offset)
        ours = _ours(length, prot, flags, fd, offset)
        if kernel != ours:
            wrong.append((name, hex(length), prot, hex(flags), hex(offset), kernel, ours))
    assert not wrong, "\n".join(map(str, [len(wrong), *wrong[:20]]))
