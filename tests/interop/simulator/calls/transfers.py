"""read, write and kin: between descriptors and user memory."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Final

from safemem import FDWriter
from simulator import signals
from simulator.files import READABLE, WRITABLE, OpenFile
from simulator.process import Task
from simulator.siginfo import Siginfo
from simulator.table import Int, Long, Result, syscall
from simulator.waits import Waiting
from usermem import (
    FaultError,
    IOSequence,
    copy_int64_in,
    copy_int64_out,
    iovecs_io_sequence,
    pread_fd,
    preadv_fd,
    pwrite_fd,
    pwritev_fd,
    read_fd,
    readv_fd,
    single_io_sequence,
    write_fd,
    writev_fd,
)

_LONGEST: Final = 0x7FFF_F000  # MAX_RW_COUNT


@syscall(0)
def sys_read(task: Task, fd: Int, addr: int, n: int) -> Result:
    file = task.files[fd]
    if not file.can_block or not n:
        return read_fd(task.memory, file.host, addr, n)
    return file.blocking(READABLE, lambda: read_fd(task.memory, file.host, addr, n))


@syscall(1)
def sys_write(task: Task, fd: Int, addr: int, n: int) -> Result:
    file = task.files[fd]
    if not file.can_block:
        return write_fd(task.memory, file.host, addr, n)
    return _write_all(task, file, single_io_sequence(task.memory, addr, n))


@syscall(19)
def sys_readv(task: Task, fd: Int, iov: int, iovcnt: int) -> Result:
    file = task.files[fd]
    if not file.can_block:
        return readv_fd(task.memory, file.host, iov, iovcnt)
    return file.blocking(READABLE, lambda: readv_fd(task.memory, file.host, iov, iovcnt))


@syscall(20)
def sys_writev(task: Task, fd: Int, iov: int, iovcnt: int) -> Result:
    file = task.files[fd]
    if not file.can_block:
        return writev_fd(task.memory, file.host, iov, iovcnt)
    return _write_all(task, file, iovecs_io_sequence(task.memory, iov, iovcnt))


@syscall(17)
def sys_pread64(task: Task, fd: Int, addr: int, n: int, offset: Long) -> Result:
    return pread_fd(task.memory, task.files[fd].host, addr, n, offset)


@syscall(18)
def sys_pwrite64(task: Task, fd: Int, addr: int, n: int, offset: Long) -> Result:
    return pwrite_fd(task.memory, task.files[fd].host, addr, n, offset)


@syscall(295)
def sys_preadv(task: Task, fd: Int, iov: int, iovcnt: int, offset: Long) -> Result:
    return preadv_fd(task.memory, task.files[fd].host, iov, iovcnt, offset)


@syscall(296)
def sys_pwritev(task: Task, fd: Int, iov: int, iovcnt: int, offset: Long) -> Result:
    return pwritev_fd(task.memory, task.files[fd].host, iov, iovcnt, offset)


@syscall(327)
def sys_preadv2(task: Task, fd: Int, iov: int, iovcnt: int, offset: Long, high: int, flags: Int) -> Result:
    if flags:
        return -errno.EOPNOTSUPP
    return sys_readv(task, fd, iov, iovcnt) if offset == -1 else sys_preadv(task, fd, iov, iovcnt, offset)


@syscall(328)
def sys_pwritev2(task: Task, fd: Int, iov: int, iovcnt: int, offset: Long, high: int, flags: Int) -> Result:
    if flags:
        return -errno.EOPNOTSUPP
    return sys_writev(task, fd, iov, iovcnt) if offset == -1 else sys_pwritev(task, fd, iov, iovcnt, offset)


@syscall(8)
def sys_lseek(task: Task, fd: Int, offset: Long, whence: Int) -> Result:
    return os.lseek(task.files[fd].host, offset, whence)


@syscall(40)
def sys_sendfile(task: Task, out_fd: Int, in_fd: Int, offset: int, count: int) -> Result:
    out, source = task.files[out_fd], task.files[in_fd]
    start = copy_int64_in(task.memory, offset) if offset else None

    def move() -> int:
        sent = _piped(task, lambda: os.sendfile(out.host, source.host, start, min(count, _LONGEST)))
        if start is not None:
            copy_int64_out(task.memory, offset, start + sent)
        return sent

    return out.blocking(WRITABLE, move, source) if out.can_block else move()


@syscall(326)
def sys_copy_file_range(task: Task, in_fd: Int, in_at: int, out_fd: Int, out_at: int, n: int) -> Result:
    source, out = task.files[in_fd], task.files[out_fd]
    starts = [copy_int64_in(task.memory, at) if at else None for at in (in_at, out_at)]
    moved = os.copy_file_range(source.host, out.host, min(n, _LONGEST), *starts)
    for at, start in zip((in_at, out_at), starts, strict=True):
        if start is not None:
            copy_int64_out(task.memory, at, start + moved)
    return moved


@syscall(74)
def sys_fsync(task: Task, fd: Int) -> Result:
    os.fsync(task.files[fd].host)
    return 0


@syscall(75)
def sys_fdatasync(task: Task, fd: Int) -> Result:
    os.fdatasync(task.files[fd].host)
    return 0


@syscall(77)
def sys_ftruncate(task: Task, fd: Int, length: Long) -> Result:
    os.ftruncate(task.files[fd].host, length)
    return 0


@syscall(221)
def sys_fadvise64(task: Task, fd: Int, offset: Long, length: Long, advice: Int) -> Result:
    os.posix_fadvise(task.files[fd].host, offset, length, advice)
    return 0


@syscall(285)
def sys_fallocate(task: Task, fd: Int, mode: Int, offset: Long, length: Long) -> Result:
    if mode:
        return -errno.EOPNOTSUPP
    os.posix_fallocate(task.files[fd].host, offset, length)
    return 0


def _write_all(task: Task, file: OpenFile, data: IOSequence) -> Waiting:
    """Write all there is, as a blocking write(2) does, or what fits before a signal, an error or a fault."""
    done = 0
    if not data.num_bytes:
        return os.write(file.host, b"")
    while True:
        rest = data.drop_first(done)
        try:
            done += yield from file.blocking(WRITABLE, lambda: _piped(task, lambda: _write_some(file, rest)))  # noqa: B023
        except OSError:
            if not done:
                raise
            return done
        if done >= data.num_bytes or file.nonblocking:
            return done


def _write_some(file: OpenFile, data: IOSequence) -> int:
    try:
        return data.copy_in_to(FDWriter(file.host))
    except FaultError as fault:
        if fault.transferred:
            return fault.transferred
        raise


def _piped(task: Task, move: Callable[[], int]) -> int:
    """Write to what may be a pipe that nobody reads any more: SIGPIPE."""
    try:
        return move()
    except BrokenPipeError:
        signals.send(task.process, Siginfo(signal.SIGPIPE), task)
        raise
