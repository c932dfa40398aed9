"""File names of a guest's, and where they lead on the host. They are not kept inside anything: this is no sandbox."""

from __future__ import annotations

import errno
import os
import re
from typing import Final, NamedTuple

from simulator.process import Task
from usermem import copy_string_in

PATH_MAX: Final = 4096
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_REMOVEDIR: Final = 0x200
AT_SYMLINK_FOLLOW: Final = 0x400
AT_EMPTY_PATH: Final = 0x1000

_DESCRIPTOR: Final = re.compile(rb"/(?:proc/self|dev)/fd/(\d+)")
_STANDARD: Final = {b"/dev/stdin": 0, b"/dev/stdout": 1, b"/dev/stderr": 2}


class Path(NamedTuple):
    """A name, and the host's descriptor that it is relative to."""

    name: bytes
    at: int


def path_at(task: Task, dirfd: int, addr: int, *, may_be_empty: bool = False) -> Path:
    """The path at addr. Raises OSError: EFAULT, ENAMETOOLONG, EBADF, ENOENT."""
    name = copy_string_in(task.memory, addr, PATH_MAX)
    if not name and not may_be_empty:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    absolute = dirfd == AT_FDCWD or name.startswith(b"/")
    return Path(_own(task, name), task.process.directory.cwd if absolute else task.files[dirfd].host)


def _own(task: Task, name: bytes) -> bytes:
    """A name where those of the process itself are of the simulator's."""
    if not name.startswith((b"/proc/", b"/dev/")):
        return name
    name = name.replace(b"/proc/%d" % task.process.pid, b"/proc/self")
    if name == b"/proc/self/exe":
        return os.fsencode(task.process.exe)
    found = _DESCRIPTOR.fullmatch(name)
    fd = _STANDARD.get(name, -1) if found is None else int(found[1])
    return b"/proc/self/fd/%d" % task.files.table[fd].file.host if fd in task.files.table else name
