"""The mappings of a process, asked of the kernel: one by the ioctl of Linux 6.11, or all as text.

Source: proc_pid_maps(5); Linux fs/proc/task_mmu.c (PROCMAP_QUERY, pagemap_read).
"""

from __future__ import annotations

import errno
import mmap
import os
from struct import Struct
from typing import Final

from usermem.memories.mapping import MappedRange, find

_PROCMAP_QUERY: Final = 0xC0686611
# struct procmap_query: size, query_flags, query_addr, vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode,
# dev_major, dev_minor, vma_name_size, build_id_size, vma_name_addr, build_id_addr. vma_flags are as PROT_READ and so
# on, and 8 for a shared mapping.
_QUERY: Final = Struct("=9Q4I2Q")
_GUARD: Final = 1 << 58  # PM_GUARD_REGION, since Linux 6.15


def read_maps(pid: int) -> list[MappedRange]:
    """All mappings, in order. Raises OSError if the kernel does not tell."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:  # noqa: PTH123 - 3.5 ms
        return [_parsed(line) for line in lines]


def _parsed(line: str) -> MappedRange:
    addresses, rights, offset, _, inode, *label = line.rstrip("\n").split(maxsplit=5)
    start, end = (int(x, 16) for x in addresses.split("-"))
    prot = sum(1 << bit for bit in range(3) if rights[bit] != "-")
    return MappedRange(start, end, prot, rights[3] == "s", int(offset, 16), int(inode), *label)


def mapping_at(pid: int, addr: int) -> MappedRange | None:
    """The mapping that holds addr, without its name; None if there is none. Raises OSError as :func:`read_maps`."""
    import fcntl

    query = bytearray(_QUERY.pack(_QUERY.size, 0, addr, *[0] * 12))
    fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _PROCMAP_QUERY, query)
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            return None
        if exc.errno not in (errno.ENOTTY, errno.EINVAL, errno.EPERM, errno.EACCES):
            raise
    else:
        _, _, _, start, end, flags, _, offset, inode, *_ = _QUERY.unpack(query)
        return MappedRange(start, end, flags & 7, bool(flags & 8), offset, inode)
    finally:
        os.close(fd)
    ranges = read_maps(pid)  # before Linux 6.11, or where a sandbox refuses the ioctl
    index = find(ranges, addr)
    return None if index < 0 else ranges[index]


def is_guard(pid: int, addr: int) -> bool:
    """Whether addr lies in a page that MADV_GUARD_INSTALL guards; False where the kernel does not tell."""
    try:
        fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        word = os.pread(fd, 8, addr // mmap.PAGESIZE * 8)
    except OSError:
        return False
    finally:
        os.close(fd)
    return bool(int.from_bytes(word, "little") & _GUARD)
