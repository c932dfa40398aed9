"""Copying host memory that may really fault, without a signal: SIGSEGV or SIGBUS would kill the interpreter.

The kernel does the copy (process_vm_readv and process_vm_writev on this very process) and reports how far it got.
These calls honour the rights of each page and are exact to the byte. Linux only; the calls are looked up when first
used. A host or sandbox that refuses them gives its OSError here, and nothing is touched.

Source: gVisor pkg/safecopy; process_vm_readv(2).
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from hostarch import mman
from safemem.errors import HostFaultError, add_transferred

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_TRANSFER = 1 << 30  # the kernel moves at most 0x7ffff000 bytes a call
_BOUNCE = 1 << 16
_POPULATE: Final = {"r": mman.MADV_POPULATE_READ, "w": mman.MADV_POPULATE_WRITE}


def address_of(view: memoryview) -> int:
    """The host address of a view's first byte."""
    import ctypes

    if not view.nbytes:
        return 0
    if not view.readonly:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))
    buffer = _py_buffer()()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), buffer, 0)
    address = int(buffer[0])
    ctypes.pythonapi.PyBuffer_Release(buffer)
    return address & (1 << 64) - 1


@cache
def _py_buffer() -> Any:
    """A Py_buffer: buf, obj, ... (Include/cpython/object.h), 80 bytes. Made once: a ctypes array type is a cycle."""
    import ctypes

    return ctypes.c_ssize_t * 16


def view_at(address: int, length: int) -> memoryview:
    """A writable view of host memory that may fault, for system calls alone: those report a fault, we would die of it.

    The caller keeps the memory alive.
    """
    view: memoryview = _view_from_memory()(address, length, 0x200)  # PyBUF_WRITE
    return view


@cache
def _view_from_memory() -> Any:
    import ctypes

    function = ctypes.pythonapi.PyMemoryView_FromMemory
    function.restype = ctypes.py_object
    function.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
    return function


@cache
def _process_vm(name: str) -> Callable[[int, int, int], int]:
    """The system call as ``call(local address, remote address, length) -> bytes moved``, raising OSError."""
    import ctypes

    class Iovec(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    try:
        function: Any = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        raise OSError(errno.ENOSYS, f"memory that may fault needs {name}(2), which this host does not have") from None
    function.restype = ctypes.c_ssize_t
    vector = (ctypes.POINTER(Iovec), ctypes.c_ulong)
    function.argtypes = (ctypes.c_int, *vector, *vector, ctypes.c_ulong)

    def call(local: int, remote: int, length: int) -> int:
        moved: int = function(os.getpid(), Iovec(local, length), 1, Iovec(remote, length), 1, 0)
        if moved < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{name}: {os.strerror(code)}")
        return moved

    return call


def _move(name: str, local: int, remote: int, length: int, right: str) -> int:
    call = _process_vm(name)
    done = 0
    while done < length:
        try:
            done += call(local + done, remote + done, min(length - done, _MAX_TRANSFER))
        except OSError as exc:
            if exc.errno == errno.EFAULT:
                break
            if exc.errno != errno.EINTR:
                add_transferred(exc, done)
                raise
    else:
        return done
    # Outside the except block: a context would keep the frames, and with them the caller's buffer.
    raise HostFaultError(remote + done, _signal_at(remote + done, right), done)


def _signal_at(address: int, right: str) -> signal.Signals:
    """Which signal touching an address would raise: memory mapped with the right still faults beyond its file's end.

    The kernel tells (madvise(2), MADV_POPULATE_READ and its twin), for which it needs no descriptor and does not go
    through its mappings. Where it does not (before Linux 5.14, or a sandbox) they are read, at 2.5 us for each; where
    no descriptor is left for that the answer is SIGSEGV.
    """
    populate = _populate()
    code = populate(address & -mmap.PAGESIZE, _POPULATE[right]) if populate is not None else None
    if code in (0, errno.EFAULT):  # 0 is a file that has grown since
        return signal.SIGBUS
    if code == errno.ENOMEM:
        return signal.SIGSEGV
    try:
        found = mapping_at(address)
    except OSError:
        found = []
    return signal.SIGBUS if found and right in found[1] else signal.SIGSEGV


@cache
def _populate() -> Callable[[int, int], int] | None:
    """``call(address of a host page, advice) -> errno``, which maps the page as if it were touched; None without it."""
    import ctypes

    try:
        madvise: Any = ctypes.CDLL(None, use_errno=True).madvise
    except (AttributeError, OSError, TypeError):
        return None
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if any(madvise(0, 0, advice) for advice in _POPULATE.values()):
        return None
    return lambda page, advice: ctypes.get_errno() if madvise(page, mmap.PAGESIZE, advice) else 0


def mapping_at(address: int) -> list[str]:
    """The fields of the line of /proc/self/maps for a host address: range, rights, offset, device, inode, and a name if
    it has one. Empty if nothing is mapped there, or the host does not tell."""
    try:
        return next(mappings(address, address + 1), [])
    except FileNotFoundError:
        return []


def mappings(start: int, end: int) -> Iterator[list[str]]:
    """The fields of each line of /proc/self/maps for a host mapping that has an address in [start, end): see above.

    Raises OSError, FileNotFoundError say, if the host does not tell.
    """

    def meets(fields: list[str]) -> bool:
        first, last = (int(x, 16) for x in fields[0].split("-"))
        return first < end and start < last

    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123 - pathlib is 3.5 ms
        yield from filter(meets, (line.rstrip("\n").split(maxsplit=5) for line in lines))


def copy_in(dst: memoryview, src: int) -> int:
    """Fill a writable flat view from host address src. Raises HostFaultError with the exact count."""
    return _move("process_vm_readv", address_of(dst), src, len(dst), "r")


def copy_out(dst: int, src: memoryview) -> int:
    """Copy a flat view to host address dst. Raises HostFaultError with the exact count."""
    return _move("process_vm_writev", address_of(src), dst, len(src), "w")


def copy(dst: int, src: int, length: int) -> int:
    """Copy between two host addresses, through a buffer; as by memmove where they overlap.

    Raises HostFaultError with the exact count; the source's fault if both fault at the same byte.
    """
    overlap = abs(dst - src) < length
    bounce = memoryview(bytearray(length if overlap else min(length, _BOUNCE)))
    done = 0
    while done < length:
        part = bounce[: min(length - done, len(bounce))]
        fault: OSError | None = None
        try:
            copy_in(part, src + done)
        except OSError as exc:
            fault, part = exc.with_traceback(None), part[: getattr(exc, "transferred", 0)]
        try:
            copy_out(dst + done, part)
        except OSError as exc:
            add_transferred(exc, done)
            raise exc from None
        if fault is not None:
            add_transferred(fault, done)
            try:
                raise fault
            finally:
                del fault
        done += len(part)
    return done


def zero_out(dst: int, length: int) -> int:
    """Set bytes at host address dst to 0. Raises HostFaultError with the exact count."""
    zeros = memoryview(bytes(min(length, _BOUNCE)))
    done = 0
    while done < length:
        try:
            done += copy_out(dst + done, zeros[: length - done])
        except OSError as exc:
            add_transferred(exc, done)
            raise
    return done
