"""In what order the running kernel looks at a guest's arguments, and what it says of those that are too long."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import sys
from collections.abc import Callable

import pytest

from edge_layouts import BASE, FIXED, PAGE, RW
from hostarch import AMD64
from safemem.safecopy import address_of
from usermem import (
    AddressSpace,
    copy_in_vector,
    copy_struct_from_user,
    iovecs_io_sequence,
    linux_result,
    read_fd,
    readv_fd,
    single_io_sequence,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux" or sys.maxsize < 1 << 32, reason="asks a 64-bit Linux")

_SIZE = 80 * PAGE


@pytest.fixture
def space() -> AddressSpace:
    """A guest's memory, writable."""
    space = AddressSpace()
    space.mmap(BASE, _SIZE, RW, FIXED)
    return space


def _name(call: Callable[[], object]) -> str:
    """The errno of what a call raises."""
    try:
        return f"no error but {call()}"
    except OSError as exc:
        return errno.errorcode[-linux_result(exc)]


def _kernel(name: str, *arguments: object) -> str:
    """The errno of a system call made by this process on /dev/zero."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype = ctypes.c_ssize_t
    fd = os.open("/dev/zero", os.O_RDONLY)
    try:
        found = function(fd, *arguments)
    finally:
        os.close(fd)
    return f"no error but {found}" if found >= 0 else errno.errorcode[ctypes.get_errno()]


@pytest.mark.parametrize("count", [(1 << 64) - 1, 1 << 63, AMD64.max_addr, 1 << 62])
def test_a_count_that_leaves_user_space(space: AddressSpace, count: int) -> None:
    """read(2) looks at all of its buffer before it cuts the count: EFAULT, also of (size_t)-1."""
    buffer = ctypes.create_string_buffer(16)
    expected = _kernel("read", buffer, ctypes.c_size_t(count))
    fd = os.open("/dev/zero", os.O_RDONLY)
    for call in (lambda: single_io_sequence(space, BASE, count), lambda: read_fd(space, fd, BASE, count)):
        assert _name(call) == expected == "EFAULT"
    os.close(fd)


@pytest.mark.parametrize(
    "table",
    [
        [(1 << 63, 5), (0, -1)],
        [(0, -1), (1 << 63, 5)],
        [(BASE, 5), (1 << 63, 0), (BASE, 5), (0, 1 << 63)],
        [(1 << 63, 5), (0, 5)],
        [(1 << 63, 0), (0, 0)],
    ],
)
def test_lengths_come_before_addresses(space: AddressSpace, table: list[tuple[int, int]]) -> None:
    """A negative length anywhere in a table of iovecs is EINVAL, whatever the addresses are."""
    packed = b"".join(struct.pack("<QQ", start, length % (1 << 64)) for start, length in table)
    expected = _kernel("readv", packed, len(table))
    space.copy_out(BASE, packed)
    fd = os.open("/dev/zero", os.O_RDONLY)
    for call in (
        lambda: iovecs_io_sequence(space, BASE, len(table)),
        lambda: readv_fd(space, fd, BASE, len(table)),
    ):
        assert _name(call) == expected
    os.close(fd)


@pytest.mark.parametrize(
    ("pages", "strings"), [(33, 1), (31, 80)], ids=["a string of 33 pages", "80 strings of 31 pages"]
)
def test_arguments_that_are_too_long(space: AddressSpace, pages: int, strings: int) -> None:
    """execve(2) says E2BIG, of one string and of all of them."""
    with pytest.raises(OSError) as caught:
        os.execve("/bin/true", ["true", *["a" * (pages * PAGE)] * strings], {})
    space.copy_out(BASE + 2 * PAGE, b"a" * (pages * PAGE) + b"\0")
    space.copy_out(BASE, struct.pack(f"<{strings + 1}Q", *[BASE + 2 * PAGE] * strings, 0))
    ours = _name(lambda: copy_in_vector(space, BASE, 32 * PAGE, 2 << 20))
    assert ours == errno.errorcode[caught.value.errno or 0] == "E2BIG"


def _execve(table: int) -> str:
    """The errno of an execve(2) of a child of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.fork()
    if not pid:
        libc.execve(b"/bin/true", ctypes.c_void_p(table), None)
        os._exit(ctypes.get_errno())
    return errno.errorcode[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]


_LONG, _FITS = 33 * PAGE, 31 * PAGE
_HOLE, _ERROR, _LAST = -1, -2, -3
_POINTERS = {_HOLE: 1, _ERROR: (1 << 64) - 4095, _LAST: (1 << 64) - 4096}  # the kernel takes _ERROR for an errno


@pytest.mark.parametrize("whole", [True, False], ids=["", "no end of the table"])
@pytest.mark.parametrize(
    "strings",
    [
        [_LONG, _HOLE],
        [_HOLE, _LONG],
        [_LONG, _FITS],
        [_HOLE, *[_FITS] * 70],
        [*[_FITS] * 70, _HOLE],
        [*[_FITS] * 66, _HOLE, *[_FITS] * 4],
        [_FITS] * 70,
        [_ERROR, _LONG],
        [_LAST, _LONG],
    ],
    ids=[
        "long, hole",
        "hole, long",
        "long, fits",
        "hole, many",
        "many, hole",
        "many, hole, some",
        "many",
        "error",
        "no error",
    ],
)
def test_which_argument_is_met_first(strings: list[int], whole: bool) -> None:
    """execve(2) reads the whole table, and then the strings from the last to the first."""
    with mmap.mmap(-1, _SIZE) as memory, AddressSpace() as space:
        at = address_of(memoryview(memory))
        end = at + _SIZE - PAGE
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), ctypes.c_size_t(PAGE), 0)
        pointers = [_POINTERS.get(size, end - PAGE - size) for size in strings]
        table = struct.pack(f"<{len(pointers)}Q", *pointers) + (bytes(8) if whole else b"")
        space.mmap(at, end - at, RW, FIXED)
        for addr, data in ((end - PAGE - _LONG, b"a" * (_LONG - 1)), (end - len(table), table)):
            ctypes.memmove(addr, data, len(data))
            space.copy_out(addr, data)
        start = end - len(table)
        assert _name(lambda: copy_in_vector(space, start, 32 * PAGE, 2 << 20)) == _execve(start)


_OPENAT2, _HOW = 437, struct.Struct("<3Q")


@pytest.mark.parametrize(
    ("size", "behind"),
    [(24, b""), (40, bytes(16)), (40, bytes(15) + b"x"), (40, bytes(8)), (40, b"x"), (PAGE, b""), (PAGE + 1, b"")],
)
def test_a_struct_with_a_size(size: int, behind: bytes) -> None:
    """openat2(2) takes a struct that is longer than it knows if zeros follow; else E2BIG or EFAULT."""
    content = _HOW.pack(os.O_RDONLY, 0, 0) + behind
    with mmap.mmap(-1, 2 * PAGE) as memory, AddressSpace() as space:
        end = address_of(memoryview(memory)) + PAGE
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect(ctypes.c_void_p(end), ctypes.c_size_t(PAGE), 0)
        start = end - len(content)
        ctypes.memmove(start, content, len(content))
        space.mmap(end - PAGE, PAGE, RW, FIXED)
        space.copy_out(start, content)
        fd = libc.syscall(_OPENAT2, -1, b"/", ctypes.c_void_p(start), ctypes.c_size_t(size))
        if fd >= 0:
            os.close(fd)
            assert copy_struct_from_user(space, start, size, _HOW) == (os.O_RDONLY, 0, 0)
        elif ctypes.get_errno() == errno.ENOSYS:
            pytest.skip("this kernel has no openat2")
        else:
            assert _name(lambda: copy_struct_from_user(space, start, size, _HOW)) == errno.errorcode[ctypes.get_errno()]
