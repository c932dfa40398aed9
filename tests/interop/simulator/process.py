"""Processes and their tasks: what Linux has in task_struct, signal_struct and mm_struct."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import define, field

from hostarch import AMD64
from simulator.cpu import CPU
from simulator.files import Files
from simulator.siginfo import Siginfo
from simulator.waits import Wait, Waiting
from usermem import IO, AddressSpace, abi

if TYPE_CHECKING:
    from simulator.kernel import Kernel

Wrap: TypeAlias = Callable[[AddressSpace], IO]
"""Puts something between the system calls and user memory: a FaultyIO."""

RLIM_INFINITY: Final = (1 << 64) - 1
LIMITS: Final = {3: (8 << 20, RLIM_INFINITY), 4: (0, RLIM_INFINITY), 7: (1024, 4096)}
"""RLIMIT_STACK, RLIMIT_CORE, RLIMIT_NOFILE of the first process; the others are infinite."""


class Memory:
    """An address space, and the way to it that system calls take; of all tasks that share it (CLONE_VM)."""

    def __init__(self, space: AddressSpace, wrap: Wrap) -> None:
        self.space = space
        self.io = wrap(space)
        self.users = 1

    def get(self) -> Memory:
        """Count a process more."""
        self.users += 1
        return self

    def put(self) -> None:
        """Count a process less; the last one closes the space."""
        self.users -= 1
        if not self.users:
            self.space.close()


@define
class Directory:
    """Where a process is (struct fs_struct)."""

    cwd: int
    """A descriptor of the host's."""
    umask: int
    users: int = 1

    def get(self) -> Directory:
        """Count a process more that shares it: CLONE_FS."""
        self.users += 1
        return self

    def put(self) -> None:
        """Count a process less."""
        self.users -= 1
        if not self.users:
            os.close(self.cwd)

    def copy(self) -> Directory:
        """A forked child's."""
        return Directory(os.dup(self.cwd), self.umask)

    def move(self, host: int) -> None:
        """chdir(2) to a descriptor of the host's, which it keeps."""
        os.close(self.cwd)
        self.cwd = host


Pending: TypeAlias = dict[int, list[Siginfo]]


@define(eq=False)
class Process:
    """A thread group."""

    kernel: Kernel
    pid: int
    parent: Process | None
    memory: Memory
    files: Files
    directory: Directory
    pgid: int
    sid: int
    exe: str = ""
    """The file that it runs, and its name."""
    name: bytes = b""
    actions: dict[int, abi.Sigaction] = field(factory=dict)
    limits: dict[int, tuple[int, int]] = field(factory=lambda: dict(LIMITS))
    tasks: list[Task] = field(factory=list)
    children: list[Process] = field(factory=list)
    pending: Pending = field(factory=dict)
    exit_signal: int = 17
    stopped: bool = False
    report: int | None = None
    """As wait(2) gives it, that it has stopped or goes on, until somebody has waited for that."""
    alarm: float | None = None
    """When SIGALRM is due, in monotonic seconds."""
    interval: float = 0
    status: int | None = None
    """As wait(2) gives it, when it has ended."""

    def unshare_files(self) -> None:
        """Have a descriptor table of its own: unshare_files(), at execve."""
        if self.files.is_shared:
            shared, self.files = self.files, self.files.copy()
            shared.put()

    @property
    def exit_code(self) -> int:
        """As a shell has it, of a process that has ended: 128 and the signal if one has ended it."""
        status = self.status or 0
        return 128 + (status & 0x7F) if status & 0x7F else status >> 8


@define(eq=False)
class Task:
    """A thread."""

    tid: int
    process: Process
    cpu: CPU
    mask: int = 0
    """Bit n - 1: signal n is blocked."""
    saved_mask: int | None = None
    """What a handler's end makes of the mask, after rt_sigsuspend and kin."""
    pending: Pending = field(factory=dict)
    altstack: tuple[int, int, int] = (0, 2, 0)
    """Address, flags (SS_DISABLE), size."""
    clear_child_tid: int = 0
    number: int = -1
    """The system call that is under way, or was the last."""
    registers: list[int] = field(factory=list)
    call: Waiting | None = None
    """A system call that waits, and what for."""
    wait: Wait | None = None
    interrupted: bool = False
    """A signal has ended a system call: its action decides about a restart."""
    alive: bool = True

    @property
    def kernel(self) -> Kernel:
        """The kernel."""
        return self.process.kernel

    @property
    def memory(self) -> IO:
        """User memory: all that system calls read and write goes through it."""
        return self.process.memory.io

    @property
    def space(self) -> AddressSpace:
        """The address space, for mapping calls."""
        return self.process.memory.space

    @property
    def files(self) -> Files:
        """The descriptors."""
        return self.process.files


def new_space(limits: dict[int, tuple[int, int]]) -> AddressSpace:
    """An empty space with a process's limits."""
    stack, data, size = (limits.get(resource, (RLIM_INFINITY,))[0] for resource in (3, 2, 9))
    return AddressSpace(
        AMD64,
        stack_limit=min(stack, 1 << 40),
        data_limit=None if data == RLIM_INFINITY else data,
        address_limit=None if size == RLIM_INFINITY else size,
    )
