"""A program that the running kernel has just started, without address space layout randomisation."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import frozen

_ADDR_NO_RANDOMIZE = 0x0040000
needs_programs = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to start programs")


def _plain_layout() -> None:
    ctypes.CDLL(None).personality(_ADDR_NO_RANDOMIZE)


@frozen
class Program:
    """A process that waits for its standard input."""

    pid: int

    @property
    def folder(self) -> Path:
        """Its folder in /proc."""
        return Path(f"/proc/{self.pid}")

    def read(self, addr: int, size: int) -> bytes:
        """Bytes of its memory."""
        with (self.folder / "mem").open("rb", buffering=0) as memory:
            memory.seek(addr)
            return memory.read(size)

    def string(self, addr: int) -> bytes:
        """A string of its memory."""
        return self.read(addr, 4096 - addr % 4096).partition(b"\0")[0]

    def wait(self) -> None:
        """Wait until it waits: Popen is back while execve is still under way."""
        end = time.monotonic() + 10
        while (self.folder / "stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < end, "the program does not wait for its input"
            time.sleep(0.0002)

    def stat(self) -> list[int]:
        """The fields of proc_pid_stat(5), counted from 1; those that are no numbers are 0."""
        text = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return [0, 0, 0, 0, *map(int, text[1:])]

    def maps(self) -> list[list[str]]:
        """The lines of proc_pid_maps(5): bounds, rights, offset, device, inode, perhaps a name."""
        return [line.split(maxsplit=5) for line in (self.folder / "maps").read_text().splitlines()]


@contextmanager
def started(file: str | Path, argv: Sequence[bytes | str], envp: dict[bytes, bytes] | None = None) -> Iterator[Program]:
    """``file``, run with these arguments and variables; it must read its standard input. Ended afterwards."""
    child = subprocess.Popen(
        list(argv),
        executable=file,
        env=envp or {},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_plain_layout,
    )
    try:
        program = Program(child.pid)
        program.wait()
        if int((program.folder / "personality").read_text(), 16) & _ADDR_NO_RANDOMIZE == 0:
            pytest.skip("this host does not let a process switch randomisation off")
        yield program
    finally:
        child.kill()
        child.communicate()


def _stop_at_entry() -> None:
    _plain_layout()
    if ctypes.CDLL(None).ptrace(0, 0, None, None):  # PTRACE_TRACEME: execve stops it
        raise OSError("this host does not let a process be traced")


@contextmanager
def stopped_at_entry(file: str, argv: Sequence[str]) -> Iterator[Program]:
    """``file`` as execve leaves it: not an instruction of it has run."""
    try:
        child = subprocess.Popen(
            list(argv),
            executable=file,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=_stop_at_entry,
        )
    except subprocess.SubprocessError:
        pytest.skip("this host does not let a process be traced")
    try:
        os.waitpid(child.pid, os.WUNTRACED)
        yield Program(child.pid)
    finally:
        child.kill()
        child.wait()


def exec_error(argv: Sequence[bytes], envp: dict[bytes, bytes], stack_limit: int) -> int:
    """The errno of execve of /bin/true with a limit to the stack; 0 if it ran, less than 0 if it was killed."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (stack_limit, resource.getrlimit(resource.RLIMIT_STACK)[1]))

    try:
        child = subprocess.Popen(
            list(argv), executable="/bin/true", env=envp, stderr=subprocess.DEVNULL, preexec_fn=limit
        )
    except OSError as exc:
        return exc.errno or -1
    return child.wait()
