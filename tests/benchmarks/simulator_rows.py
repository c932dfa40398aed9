"""The rows of ``simulator``: system calls of the simulator, against the same calls over uc.mem_read and uc.mem_write.

A call is timed from the registers to the result: the kernel reads the seven registers, finds the handler, which makes
the host's system call, and stores what it returns. Both sides have the same engine, task, files and memory, and go the
same way but for the handler. A string or a struct is timed alone: what one reads or stores it with in a handler.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any, Final

from attrs import frozen

from hostarch import mman
from timing import Prepared, Run, loop

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

_SIZE: Final = 1 << 20
_PAGE: Final = 4096
_RW: Final = mman.PROT_READ | mman.PROT_WRITE
_FIXED: Final = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED
_ARENA: Final = 0x1000_0000
_EDGE: Final = _ARENA + _SIZE  # nothing is mapped from here on
_CODE: Final = 0x2000_0000
_LOAD: Final = b"\x8a\x03"  # mov al, [rbx]
_DATA, _PATH, _STAT, _IOV, _WORD, _ACTION = (_ARENA + 0x10000 * n for n in range(1, 7))
_EACH_TURN: Final = 64
_FEW: Final = 16


@frozen
class SimulatorRow:
    """Times of both sides are ``best(runs)``; theirs / ours has to be ``bar`` at least."""

    name: str
    bar: float
    runs: dict[str, Run | Prepared]


class Machine:
    """A simulated process that does not run: its memory is filled, and system calls are made for it."""

    def __init__(self, folder: str) -> None:
        from unicorn import x86_const

        from simulator.kernel import Kernel

        self._rbx = x86_const.UC_X86_REG_RBX
        self.kernel = Kernel()
        self.kernel.start("/bin/true", ["true"], {}, cwd=folder)
        self.task: Any = self.kernel.tasks[0]
        self.space, self.uc = self.task.space, self.task.cpu.uc
        self.space.mmap(_ARENA, _SIZE, _RW, _FIXED)
        self.space.mmap(_CODE, _PAGE, mman.PROT_READ | mman.PROT_EXEC, _FIXED)
        self.space.copy_out(_CODE, _LOAD, ignore_permissions=True)
        self.space.zero_out(_ARENA, _SIZE)
        self._touch()
        (Path(folder) / "file").write_bytes(bytes(range(256)) * (_SIZE // 256))
        self.fd = self.task.files.open_host(os.open(Path(folder) / "file", os.O_RDWR | os.O_CLOEXEC))
        self.host = self.task.files[self.fd].host

    def _touch(self) -> None:
        """Let the CPU read all pages, so that the engine has them."""
        for page in range(_ARENA, _EDGE, _PAGE):
            self.uc.reg_write(self._rbx, page)
            self.uc.emu_start(_CODE, _CODE + len(_LOAD))

    def run(self, number: int, *arguments: int) -> Run:
        """What makes a system call so many times. The CPU has set rax again before each."""
        names = {
            "set_rax": self.task.cpu.set_result,
            "number": number,
            "call": self.kernel.system_call,
            "task": self.task,
        }
        run = loop("set_rax(number); call(task)", names)

        def with_registers(n: int) -> None:
            batch.write(*values)
            run(n)

        batch, values = self.task.cpu.arguments, (number, *arguments, *[0] * (6 - len(arguments)))
        return with_registers

    def result(self, number: int, *arguments: int) -> int:
        """Make one, and return what is in rax then."""
        self.run(number, *arguments)(1)
        return int(self.task.cpu.arguments.read()[0])

    def close_new(self, n: int) -> None:
        """Close what open(2) has opened."""
        for fd in [fd for fd in self.task.files.table if fd > self.fd]:
            self.task.files.close(fd)

    def rewind(self, n: int) -> None:
        """Go to the beginning of the file."""
        os.lseek(self.host, 0, os.SEEK_SET)

    def call(self, name: str, number: int, *arguments: int, prepare: Run | None = None) -> SimulatorRow:
        """A row of a system call. Raises ValueError if both sides return something else."""
        from simulator_by_hand import BY_HAND

        results, runs = [], {}
        for side, shift in (("ours", 0), ("theirs", BY_HAND)):
            run = self.run(number + shift, *arguments)
            if prepare is not None:
                prepare(1)
            results.append(self.result(number + shift, *arguments))
            runs[side] = run if prepare is None else Prepared(run, prepare, _EACH_TURN)
        if results[0] != results[1]:
            raise ValueError(f"{name} is {results[0]:#x}, by hand {results[1]:#x}")
        return SimulatorRow(name, 1.0, runs)


def _streams(machine: Machine) -> Iterator[SimulatorRow]:
    """read(2), write(2) and kin of a file, whose beginning each turn starts at."""
    space, fd, rewind = machine.space, machine.fd, machine.rewind
    ranges = (_DATA, 100, _DATA + 2 * _PAGE - 96, 200, _DATA + 3 * _PAGE, 300)
    space.copy_out(_IOV, Struct("<6Q").pack(*ranges))
    for size, n in (("64 B", 64), ("4 KiB", _PAGE)):
        yield machine.call(f"read {size}", 0, fd, _DATA, n, prepare=rewind)
        yield machine.call(f"write {size}", 1, fd, _DATA, n, prepare=rewind)
    yield machine.call("readv of 3", 19, fd, _IOV, 3, prepare=rewind)
    yield machine.call("writev of 3", 20, fd, _IOV, 3, prepare=rewind)


def _files(machine: Machine) -> Iterator[SimulatorRow]:
    """stat(2), open(2), and a system call that has structs in and out."""
    machine.space.copy_out(_PATH, b"file\0")
    machine.space.copy_out(_ACTION, Struct("<QQQQ").pack(_CODE, 0x1400_0000, _CODE, 0))
    yield machine.call("stat", 4, _PATH, _STAT)
    yield machine.call("fstat", 5, machine.fd, _STAT)
    yield machine.call("open", 2, _PATH, os.O_RDONLY, prepare=machine.close_new)
    yield machine.call("rt_sigaction", 13, 10, _ACTION, _ACTION + 64, 8)


def _futexes(machine: Machine) -> Iterator[SimulatorRow]:
    yield machine.call("futex wake of nobody", 202, _WORD, 129, 1)
    yield machine.call("futex wait, other value", 202, _WORD, 128, 1)


def _pair(name: str, ours: str, theirs: str, names: dict[str, Any]) -> SimulatorRow:
    """A row of two statements."""
    used = {side: {key: names[key] for key in names if key in each} for side, each in (("o", ours), ("t", theirs))}
    return SimulatorRow(name, 3, {"ours": loop(ours, used["o"]), "theirs": loop(theirs, used["t"])})


def _strings(machine: Machine) -> Iterator[SimulatorRow]:
    """A path of 20 and of 300 bytes: in a page, at the end of the last page, over an edge between two."""
    from simulator_by_hand import read_string
    from usermem import copy_string_in

    names = {"io": machine.task.memory, "uc": machine.uc, "copy_string_in": copy_string_in, "read_string": read_string}
    for n in (20, 300):
        places = {
            "": _PATH + 0x2000,
            ", at the last page's end": _EDGE - n - 1,
            ", over an edge": _PATH + 0x5000 - n // 2,
        }
        for place, addr in places.items():
            machine.space.copy_out(addr, b"x" * n + b"\0")
            ours, theirs = "copy_string_in(io, addr, 4096)", "read_string(uc, addr, 4096)"
            yield _pair(f"path of {n} B{place}", ours, theirs, names | {"addr": addr})


def _structs(machine: Machine) -> Iterator[SimulatorRow]:
    """One struct each, as the handlers read and store it."""
    import simulator_by_hand as by_hand
    from simulator.calls.stats import stat_of
    from usermem import abi, copy_in_iovecs

    names = {
        "io": machine.task.memory,
        "uc": machine.uc,
        "addr": _ACTION + 0x1000,
        "found": Path("/").stat(),
        "iov": _IOV,
    }
    names |= {name: getattr(by_hand, name) for name in dir(by_hand) if name.startswith(("read_", "write_"))}
    names |= {"stat_of": stat_of, "copy_in_iovecs": copy_in_iovecs, "action": abi.Sigaction(1, 2, 3, 4)}
    names |= {"TIMESPEC": abi.TIMESPEC, "STAT": abi.STAT, "SIGACTION": abi.SIGACTION}
    yield _pair("timespec in", "TIMESPEC.copy_in(io, addr)", "read_timespec(uc, addr)", names)
    yield _pair("stat out", "STAT.copy_out(io, addr, stat_of(found))", "write_stat(uc, addr, found)", names)
    yield _pair("sigaction in", "SIGACTION.copy_in(io, addr)", "read_sigaction(uc, addr)", names)
    yield _pair("sigaction out", "SIGACTION.copy_out(io, addr, action)", "write_sigaction(uc, addr, action)", names)
    yield _pair("iovec table of 3 in", "copy_in_iovecs(io, iov, 3)", "read_iovecs(uc, iov, 3)", names)


def rows(only: str) -> Iterator[SimulatorRow]:
    """All, or those whose name contains ``only``; none without Unicorn and pyelftools, which is said."""
    try:
        import elftools  # noqa: F401
        import unicorn  # noqa: F401
    except ImportError as error:
        print(f"nothing is measured without {error.name}: pip install -e '.[interop]'")
        return
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(folder)
        for part in (_streams, _files, _futexes, _strings, _structs):
            yield from (row for row in part(machine) if only in row.name)
