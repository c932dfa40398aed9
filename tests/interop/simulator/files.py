"""Descriptors: a guest's, each of which stands for one of the host's.

The host's pipes, sockets and devices never block here: they are O_NONBLOCK, whatever the guest has asked for, and who
would block yields a Wait. The three that the simulator was started with stay as they are, for they are others', too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from attrs import define, evolve

from simulator.waits import Wait, Waiting, poll_now

READABLE: Final = select.POLLIN | select.POLLHUP | select.POLLERR
WRITABLE: Final = select.POLLOUT | select.POLLHUP | select.POLLERR
LIMIT: Final = 1024
"""RLIMIT_NOFILE."""


class OpenFile:
    """An open file description (struct file): a host's descriptor, closed when no descriptor refers to it."""

    def __init__(self, host: int, *, nonblocking: bool = False) -> None:
        self.host = host
        self.nonblocking = nonblocking
        """O_NONBLOCK, as the guest has it."""
        mode, flags = os.fstat(host).st_mode, fcntl.fcntl(host, fcntl.F_GETFL)
        self.can_block = not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
        self._answers_at_once = bool(flags & os.O_NONBLOCK)
        self._never = {os.O_RDONLY: WRITABLE, os.O_WRONLY: READABLE}.get(flags & os.O_ACCMODE, 0)
        self._users = 0

    def get(self) -> OpenFile:
        """Count a descriptor more."""
        self._users += 1
        return self

    def put(self) -> None:
        """Count a descriptor less."""
        self._users -= 1
        if not self._users:
            os.close(self.host)

    def blocking(self, events: int, move: Callable[[], int], *others: OpenFile) -> Waiting:
        """Move bytes when that does not block: read(2) and kin. The files stay open meanwhile."""
        at_once = events == self._never or (self.nonblocking and self._answers_at_once)
        with kept((self, *others)):
            while True:
                if at_once or self.events(events):
                    try:
                        return move()
                    except BlockingIOError:
                        pass  # another was quicker
                if self.nonblocking:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                yield Wait({self.host: events})

    def events(self, mask: int) -> int:
        """Which events of poll(2) there are now."""
        return poll_now({self.host: mask}).get(self.host, 0)

    def flags(self) -> int:
        """F_GETFL."""
        flags: int = fcntl.fcntl(self.host, fcntl.F_GETFL)
        return flags & ~os.O_NONBLOCK | (os.O_NONBLOCK if self.nonblocking else 0)

    def set_flags(self, flags: int) -> None:
        """F_SETFL."""
        self.nonblocking = bool(flags & os.O_NONBLOCK)
        if self.can_block:
            flags = flags & ~os.O_NONBLOCK | fcntl.fcntl(self.host, fcntl.F_GETFL) & os.O_NONBLOCK
        fcntl.fcntl(self.host, fcntl.F_SETFL, flags)


@contextmanager
def kept(files: Iterable[OpenFile]) -> Iterator[None]:
    """Keep files open while a system call waits, whatever another thread closes."""
    held = [file.get() for file in files]
    try:
        yield
    finally:
        for file in held:
            file.put()


@define
class Descriptor:
    """An entry of the table."""

    file: OpenFile
    cloexec: bool = False


class Files:
    """The descriptor table of a process (struct files_struct); threads share one."""

    def __init__(self) -> None:
        self.table: dict[int, Descriptor] = {}
        self.limit = LIMIT
        self._users = 1

    def get(self) -> Files:
        """Count a process more that shares it: CLONE_FILES."""
        self._users += 1
        return self

    @property
    def is_shared(self) -> bool:
        """Whether another process has it, too."""
        return self._users > 1

    def put(self) -> None:
        """Count a process less; the last one closes all."""
        self._users -= 1
        if not self._users:
            for fd in list(self.table):
                self.close(fd)

    def __getitem__(self, fd: int) -> OpenFile:
        """The open file. Raises OSError (EBADF)."""
        return self.entry(fd).file

    def entry(self, fd: int) -> Descriptor:
        """The entry. Raises OSError (EBADF)."""
        found = self.table.get(fd)
        if found is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return found

    def install(self, file: OpenFile, *, cloexec: bool = False, lowest: int = 0) -> int:
        """Give a file the lowest free descriptor. Raises OSError (EMFILE), and lets the file go then."""
        file.get()
        fd = next((fd for fd in range(lowest, self.limit) if fd not in self.table), -1)
        if fd < 0:
            file.put()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.table[fd] = Descriptor(file, cloexec)
        return fd

    def install_at(self, fd: int, file: OpenFile, *, cloexec: bool = False) -> int:
        """dup3(2): put a file at a number, and close what is there. Raises OSError (EBADF)."""
        if not 0 <= fd < self.limit:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        file.get()
        old = self.table.get(fd)
        self.table[fd] = Descriptor(file, cloexec)
        if old is not None:
            old.file.put()
        return fd

    def open_host(self, host: int, flags: int = 0, *, lowest: int = 0) -> int:
        """Install a host's descriptor, which is the table's from then on; flags are O_CLOEXEC, O_NONBLOCK."""
        file = OpenFile(host, nonblocking=bool(flags & os.O_NONBLOCK))
        return self.install(file, cloexec=bool(flags & os.O_CLOEXEC), lowest=lowest)

    def close(self, fd: int) -> None:
        """close(2). Raises OSError (EBADF)."""
        file = self[fd]
        del self.table[fd]
        file.put()

    def close_on_exec(self) -> None:
        """At execve."""
        for fd, entry in list(self.table.items()):
            if entry.cloexec:
                self.close(fd)

    def copy(self) -> Files:
        """A forked child's table."""
        files = Files()
        files.limit = self.limit
        files.table = {fd: evolve(entry, file=entry.file.get()) for fd, entry in self.table.items()}
        return files
