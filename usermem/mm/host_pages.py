"""What the host knows of this process's private pages: which of them are its own copies, and how to give those up.

A private mapping shows pages of a file, or zeros, until they are written: then the process has copies of its own, which
the host tells from the file's pages without any privilege. PAGEMAP_SCAN (Linux 6.7) tells ranges, /proc/self/pagemap a
word for each page. Where a sandbox refuses both nobody knows, and whoever asks has to compare bytes.

Source: Documentation/admin-guide/mm/pagemap.rst; madvise(2), process_madvise(2), proc_pid_statm(5).
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from contextlib import suppress
from typing import Final

from safemem.safecopy import address_of
from usermem.mm import host_calls
from usermem.mm.ranges import Ranges

_PAGEMAP: Final = "/proc/self/pagemap"

# struct pm_scan_arg, and the ioctl that takes it.
_ARGUMENTS: Final = struct.Struct("12Q")
_PAGEMAP_SCAN: Final = 0xC0606610
_FOUND: Final = 1 << 9  # ranges in one call
_IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_ZERO = 4, 8, 16, 32

# The last byte of a word of pagemap: bit 63 is for pages that are present, 62 swapped, 61 a file's.
_OWN_COPY: Final = bytes(bool(byte & 0xC0 and not byte & 0x20) for byte in range(256))
_WORDS: Final = 1 << 16  # in one call

# From this many ranges on one process_madvise is quicker than a madvise each: 0.2 us a range, and 2.5 us.
_FEW: Final = 4
_IOV_MAX: Final = 1024

# If so many pages of files are mapped, to look for those that were written (12 ns for each that is mapped) is quicker
# than to give all of them up (50 ns, and a fault when they are read again).
_MANY: Final = 1 << 11
_AROUND: Final = 16  # pages that are mapped at a page fault: fault_around_bytes, mm/memory.c
_LOOKS: Final = 1 << 8  # after so many times all are given up once, since the many may be others' by now


class _Host:
    """What this host has been found to have."""

    scans = sys.platform == "linux"
    advises_many = hasattr(os, "pidfd_open")
    others = 0
    """The pages of files that were mapped when those of images had just been given up."""
    looks_left = 0
    faults = 0
    """How many page faults the process had had then."""


def written(ranges: Ranges) -> Ranges | None:
    """Where in some ranges, in whole pages of private mappings, the process has copies of its own.

    Pages that were swapped out count. None if the host does not tell. Where there is no PAGEMAP_SCAN, anonymous pages
    that were only read count too.
    """
    try:
        fd = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _look(fd, ranges)
    except OSError:
        return None
    finally:
        os.close(fd)


def way() -> tuple[str, str]:
    """How this host tells which pages were written, in a word, and why, for people."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as view:
        if written([(address_of(view), address_of(view) + mmap.PAGESIZE)]) is None:
            return "comparing", f"this host does not tell which pages were written (no {_PAGEMAP}): bytes are compared"
    if _Host.scans:
        return "PAGEMAP_SCAN", "tells the ranges that were written"
    return "pagemap", f"a word a page of {_PAGEMAP}: this host has no PAGEMAP_SCAN (Linux 6.7)"


def drops_many() -> bool:
    """Whether one process_madvise gives many ranges up here: tried."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as view:
        return _Host.advises_many and _drop_many([(address_of(view), address_of(view) + mmap.PAGESIZE)])


def _look(fd: int, ranges: Ranges) -> Ranges:
    """Not in ``written``: CPython lets an interrupt at a jump back pass a clean-up of the same function by."""
    if _Host.scans:
        try:
            return [found for start, end in ranges for found in _scan(fd, start, end)]
        except (ImportError, OSError):
            _Host.scans = False  # an older kernel, or a sandbox
    return [found for start, end in ranges for found in _read_pagemap(fd, start, end)]


def _scan(fd: int, start: int, end: int) -> Ranges:
    import fcntl

    found: Ranges = []
    ranges = memoryview(bytearray(24 * _FOUND)).cast("Q")
    neither, either = _IS_FILE | _IS_ZERO, _IS_PRESENT | _IS_SWAPPED
    while start < end:
        asked = bytearray(
            _ARGUMENTS.pack(96, 0, start, end, 0, address_of(ranges), _FOUND, 0, neither, neither, either, 0)
        )
        count = fcntl.ioctl(fd, _PAGEMAP_SCAN, asked)
        start = _ARGUMENTS.unpack(asked)[4]  # how far it came
        words = ranges[: 3 * count].tolist()
        found += zip(words[::3], words[1::3], strict=True)
    return found


def _read_pagemap(fd: int, start: int, end: int) -> Ranges:
    size = mmap.PAGESIZE
    found: Ranges = []
    for first in range(start, end, _WORDS * size):
        count = (min(first + _WORDS * size, end) - first) // size
        words = os.pread(fd, 8 * count, first // size * 8)
        if len(words) < 8 * count:
            raise OSError(f"{_PAGEMAP} ends at {first:#x}")
        own = words[7::8] if sys.byteorder == "little" else words[::8]
        found += _marked(own.translate(_OWN_COPY), first)
    return found


def _marked(pages: bytes, first: int) -> Ranges:
    """The ranges of pages, the first at an address, whose bytes are 1 and not 0."""
    found: Ranges = []
    at = pages.find(1)
    while at >= 0:
        stop = pages.find(0, at)
        stop = stop if stop >= 0 else len(pages)
        found.append((first + at * mmap.PAGESIZE, first + stop * mmap.PAGESIZE))
        at = pages.find(1, stop)
    return found


def touched(start: int, end: int) -> Ranges:
    """Where in [start, end) there may be other bytes than zeros, or than those of the file below (mincore(2)).

    It does not tell pages that were swapped out from those that nobody has touched.
    """
    known = None if host_calls.swaps() else host_calls.resident(start, end - start, mmap.PAGESIZE)
    return [(start, end)] if known is None else _marked(known, start)


def revert(ranges: Ranges) -> None:
    """Give up the own copies in some ranges: the pages show their file again, or zeros. Raises OSError.

    If few pages are mapped, all of them are given up at once; if many are, those that were written.
    """
    if sum(end - start for start, end in ranges) <= _MANY * mmap.PAGESIZE:  # spares 4 us of the 20 of a small guest
        drop(ranges)
        return
    import resource

    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    if 0 <= faults - _Host.faults <= _MANY // _AROUND:  # no more pages can be mapped: 1 us, and statm is 2 to 5
        drop(ranges)
        _Host.faults = faults
        return
    mapped = _mapped()
    many = mapped - _Host.others > _MANY
    if many and _Host.looks_left:
        own = written(ranges)
        if own is not None:
            _Host.looks_left -= 1
            drop(own)
            return
    drop(ranges)
    _Host.faults = faults
    if many:
        _Host.others, _Host.looks_left = _mapped(), _LOOKS
    elif mapped < _Host.others:
        _Host.others = mapped


def _mapped() -> int:
    """How many pages of files this process has mapped; 0 if the host does not tell."""
    try:
        fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(fd, 128).split()[2])
    except (OSError, IndexError, ValueError):
        return 0
    finally:
        os.close(fd)


def drop(ranges: Ranges) -> None:
    """MADV_DONTNEED for all of some ranges of private mappings. Raises OSError."""
    if len(ranges) >= _FEW and _Host.advises_many:
        _Host.advises_many = _drop_many(ranges)
        if _Host.advises_many:
            return
    starts = [start for start, _ in ranges]
    lengths = [end - start for start, end in ranges]
    host_calls.drop(starts, lengths)


def _drop_part(pid: int, ranges: Ranges) -> bool:
    words = [word for start, end in ranges for word in (start, end - start)]
    done = host_calls.process_madvise(pid, struct.pack(f"@{len(words)}N", *words), len(ranges))
    return done == sum(words[1::2])


def _drop_many(ranges: Ranges) -> bool:
    """process_madvise(2) of this process itself (Linux 6.13); False if the host refuses: some may have been dropped."""
    pid = -1
    try:
        pid = os.pidfd_open(os.getpid())
        return all(_drop_part(pid, ranges[at : at + _IOV_MAX]) for at in range(0, len(ranges), _IOV_MAX))
    except OSError:
        return False
    finally:
        if pid >= 0:
            with suppress(OSError):
                os.close(pid)
