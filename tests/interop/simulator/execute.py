"""execve(2): another program in a process. Source: Linux fs/exec.c, fs/binfmt_script.c."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import frozen
from elftools.common.exceptions import ELFError

from elf_loader import load
from hostarch import auxvec
from simulator.cpu import CPU
from simulator.process import Memory, Process, new_space
from usermem import AddressSpace

String = str | bytes
_SCRIPTS: Final = 5
_LINE: Final = 256


@frozen
class Image:
    """A program in memory of its own."""

    space: AddressSpace
    cpu: CPU
    exe: str
    name: bytes

    def take_over(self, process: Process) -> CPU:
        """Be what a process runs, on its CPU. This cannot fail any more."""
        process.memory.put()
        process.memory = Memory(self.space, process.kernel.wrap)
        process.exe, process.name = self.exe, self.name
        return self.cpu


def execute(process: Process, path: bytes, argv: Sequence[String], envp: Sequence[String], at: int = -1) -> Image:
    """Load a program, or a script's interpreter, as a process would have it.

    ``at`` is a descriptor of the host's that the path is relative to; -1 is where the process is. Raises OSError.
    """
    cwd = process.directory.cwd
    at = cwd if at < 0 else at
    argv = list(argv)
    name = path.rpartition(b"/")[2][:15]
    for _ in range(_SCRIPTS + 1):
        line = _first_line(path, at)
        if line is None:
            break
        argv = [*line, path, *argv[1:]]
        path, at = line[0], cwd
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    space = new_space(process.limits)
    host = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    file = f"/proc/self/fd/{host}"
    try:
        program = load(space, file, argv, envp, name=os.fsdecode(path), auxv=_identity())
        cpu = CPU(space)
        cpu.jump(program.entry, program.stack.pointer)
        return Image(space, cpu, str(Path(file).readlink()), name)
    except ELFError:
        space.close()
        raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC)) from None
    except BaseException:
        space.close()
        raise
    finally:
        os.close(host)


def _first_line(path: bytes, at: int) -> list[bytes] | None:
    """The interpreter that a script names, and its argument; None for another file. Raises OSError."""
    if not os.access(path, os.X_OK, dir_fd=at, effective_ids=True) or not _is_file(path, at):
        os.stat(path, dir_fd=at)
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        head = os.pread(file, _LINE, 0)
    finally:
        os.close(file)
    if not head.startswith(b"#!"):
        return None
    line, newline, _ = head[2:].partition(b"\n")
    whole = newline or len(head) < _LINE
    words = re.split(rb"[ \t]+", line[: _LINE - 3].partition(b"\0")[0].strip(b" \t"), maxsplit=1)
    if not words[0] or (not whole and len(words) == 1):
        raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC))
    return words


def _is_file(path: bytes, at: int) -> bool:
    return stat.S_ISREG(os.stat(path, dir_fd=at).st_mode)


def _identity() -> list[tuple[int, int]]:
    return [
        (auxvec.AT_UID, os.getuid()),
        (auxvec.AT_EUID, os.geteuid()),
        (auxvec.AT_GID, os.getgid()),
        (auxvec.AT_EGID, os.getegid()),
        (auxvec.AT_CLKTCK, 100),
        (auxvec.AT_SECURE, 0),
    ]
