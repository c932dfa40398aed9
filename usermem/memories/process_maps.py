"""The mappings of a process, asked of the kernel: one by the ioctl of Linux 6.11, or all as text.

Source: proc_pid_maps(5); Linux fs/proc/task_mmu.c (PROCMAP_QUERY, pagemap_read).
"""

from __future__ import annotations

import errno
import mmap
import os
from struct import Struct
from typing import Final, Self

from usermem.memories.mapping import MappedRange, find

_PROCMAP_QUERY: Final = 0xC0686611
# struct procmap_query: size, query_flags, query_addr, vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode,
# dev_major, dev_minor, vma_name_size, build_id_size, vma_name_addr, build_id_addr. vma_flags are as PROT_READ and so
# on, and 8 for a shared mapping.
_QUERY: Final = Struct("=9Q4I2Q")
_GUARD: Final = 1 << 58  # PM_GUARD_REGION, since Linux 6.15


class Maps:
    """/proc/PID/maps, as long as an access asks it: what it has told it tells again. A context manager.

    Raises OSError if the kernel does not tell: ESRCH also of a process that has no memory any longer.
    """

    def __init__(self, pid: int) -> None:
        self._file = open(f"/proc/{pid}/maps", "rb")  # noqa: PTH123, SIM115 - pathlib takes 3.5 ms; __exit__ closes it
        self._known: list[MappedRange] = []
        self._complete = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def all(self) -> list[MappedRange]:
        """All mappings, in order."""
        if not self._complete:
            self._known = [_parsed(line) for line in self._file]  # of bytes: in text a name's \r would end a line
            self._complete = True
        if not self._known:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return self._known

    def at(self, addr: int) -> MappedRange | None:
        """The mapping that holds addr, perhaps without its name; None if there is none."""
        index = find(self._known, addr)
        if index >= 0:
            return self._known[index]
        if not self._complete:
            try:
                return self._query(addr)
            except OSError as exc:
                if exc.errno not in (errno.ENOTTY, errno.EINVAL, errno.EPERM, errno.EACCES):
                    raise
            self.all()  # before Linux 6.11, or where a sandbox refuses the ioctl
            return self.at(addr)
        return None

    def _query(self, addr: int) -> MappedRange | None:
        """The same by the ioctl. Raises OSError where there is none."""
        import fcntl

        query = bytearray(_QUERY.pack(_QUERY.size, 0, addr, *[0] * 12))
        try:
            fcntl.ioctl(self._file, _PROCMAP_QUERY, query)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                return None
            raise
        _, _, _, start, end, flags, _, offset, inode, *_ = _QUERY.unpack(query)
        self._known = [MappedRange(start, end, flags & 7, bool(flags & 8), offset, inode)]
        return self._known[0]


def _parsed(line: bytes) -> MappedRange:
    addresses, rights, offset, _, inode, *label = line.rstrip(b"\n").split(maxsplit=5)
    start, end = (int(x, 16) for x in addresses.split(b"-"))
    prot = sum(1 << bit for bit in range(3) if rights[bit] != ord("-"))
    return MappedRange(start, end, prot, rights[3:] == b"s", int(offset, 16), int(inode), *map(os.fsdecode, label))


def is_guard(pid: int, addr: int) -> bool:
    """Whether addr lies in a page that MADV_GUARD_INSTALL guards; False where the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:  # noqa: PTH123
            word = os.pread(file.fileno(), 8, addr // mmap.PAGESIZE * 8)
    except OSError:
        return False
    return bool(int.from_bytes(word, "little") & _GUARD)
