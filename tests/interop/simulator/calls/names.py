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
AT_EMPTY_PATH: Final = 0x1000

_DESCRIPTOR: Final = re.compile(rb"/(?:proc/self|dev)/fd/(\d+)")
_STANDARD: Final = {b"/dev/stdin": 0, b"/dev/stdout": 1, b"/dev/stderr": 2}


class Path(NamedTuple):
    """A name, and the host's descriptor that it is relative to."""

    name: bytes
    at: int
    link: bytes | None = None
    """What readlink(2) says, of a link of the process's own."""


def path_at(task: Task, dirfd: int, addr: int, *, may_be_empty: bool = False) -> Path:
    """The path at addr. Raises OSError: EFAULT, ENAMETOOLONG, EBADF, ENOENT."""
    name = copy_string_in(task.memory, addr, PATH_MAX)
    if not name and not may_be_empty:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    cwd = task.process.directory.cwd
    if name.startswith((b"/proc/", b"/dev/")):
        return _own(task, name, cwd)
    return Path(name, cwd if dirfd == AT_FDCWD or name.startswith(b"/") else task.files[dirfd].host)


def _own(task: Task, name: bytes, cwd: int) -> Path:
    """A name that may be the process's own, which are the simulator's on the host."""
    if name == b"/proc/self":
        return Path(name, cwd, b"%d" % task.process.pid)
    name = re.sub(rb"^/proc/%d(?=/|$)" % task.process.pid, b"/proc/self/.", name).replace(b"self/./", b"self/")
    if name == b"/proc/self/exe":
        exe = os.fsencode(task.process.exe)
        return Path(exe, cwd, exe)
    if name == b"/proc/self/cwd":
        return Path(b"/proc/self/fd/%d" % cwd, cwd)
    found = _DESCRIPTOR.fullmatch(name)
    if found is None and name not in _STANDARD:
        return Path(name, cwd)
    entry = task.files.table.get(_STANDARD[name] if found is None else int(found[1]))
    return Path(b"/proc/self/fd/%d" % (entry.file.host if entry is not None else -1), cwd)
