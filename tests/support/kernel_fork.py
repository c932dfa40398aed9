"""A process of its own whose window takes calls and is forked: see :mod:`kernel_memory`.

Run as a program it reads a call a line from its input, makes it, and prints the answer and the mappings of the window.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from hostarch import AccessType
from kernel_memory import BASE, DATA, FILE, PAGE, KernelMemory, Result, Row, join, new_file, without_privileges
from usermem.mm.vma import (
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_HUGEPAGE,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_WIPEONFORK,
    VMA,
)

PAGES = 16
"""How many pages of the window, from BASE on, are looked at."""

_ADVICE = {
    "dc": VM_DONTCOPY,
    "wf": VM_WIPEONFORK,
    "sr": VM_SEQ_READ,
    "rr": VM_RAND_READ,
    "dd": VM_DONTDUMP,
    "hg": VM_HUGEPAGE,
    "nh": VM_NOHUGEPAGE,
}
"""The names of flags in smaps."""

_FLAGS = (*_ADVICE, "lo")
_SECONDS = 60  # how long a call may take: the process ends by itself

Shown = tuple[int, int, str, int]
"""A mapping: its first page and the page after the last, from BASE on, its rights and VmFlags, and its offset."""


def shown(rows: Sequence[Row]) -> list[Shown]:
    """The rows as both sides have them, with neighbours joined that differ in nothing."""
    return [
        ((row.start - BASE) // PAGE, (row.end - BASE) // PAGE, row.rights, row.offset)
        for row in join(sorted(rows, key=lambda row: row.start))
    ]


def guest_row(vma: VMA) -> Row:
    """A mapping of a guest's with its rights and flags as the kernel shows them."""
    flags = {name: vma.advice_flags & flag for name, flag in _ADVICE.items()} | {"lo": vma.mlock_mode}
    words = [f"{AccessType(vma.prot)}{'s' if vma.shared else 'p'}", *(name for name, there in flags.items() if there)]
    what: object = vma.backing.inode or (id(vma.backing) if vma.shared else None)
    return Row(vma.start, vma.end, " ".join(words), vma.offset if what else 0, what)


class ForkedProcess:
    """The program as a process. Its memory takes the calls of :class:`KernelMemory`, and these."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def call(self, name: str, *args: int) -> tuple[Result, list[Shown]]:
        """Make a call; ``begin`` empties the window and its file is new, ``fill`` reads bytes into a range."""
        answer, rows = self._ask(name, args)
        return answer, [(row[0], row[1], row[2], row[3]) for row in rows]

    def fork(self) -> tuple[list[Shown], list[str]]:
        """fork(2): the mappings of the child, and the first bytes of each page from BASE on; "" for none."""
        rows, pages = self._ask("fork", ())
        return [(row[0], row[1], row[2], row[3]) for row in rows], pages

    def _ask(self, name: str, args: Sequence[int]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, args]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Let the process end, and wait for it."""
        self._process.communicate(timeout=60)


def flagged_rows(memory: KernelMemory) -> list[Shown]:
    """The mappings of the window as this process's smaps has them."""
    flags = {}
    for start, words in re.findall(
        r"^([0-9a-f]+)-[0-9a-f]+ .*\n(?:[A-Z].*\n)*?VmFlags: (.*)$", Path("/proc/self/smaps").read_text(), re.MULTILINE
    ):
        flags[int(start, 16)] = "".join(f" {flag}" for flag in _FLAGS if flag in words.split())
    return shown([evolve(row, rights=row.rights + flags[row.start]) for row in memory.raw_rows()])


def _in_child(memory: KernelMemory) -> tuple[list[Shown], list[str]]:
    """What a child that is forked off sees."""
    ours, its = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            memory.reopen()
            pages = [memory.content(at, at + 8).hex() for at in range(BASE, BASE + PAGES * PAGE, PAGE)]
            os.write(its, json.dumps([flagged_rows(memory), pages]).encode())
        finally:
            os._exit(0)
    os.close(its)
    with os.fdopen(ours) as file:
        rows, pages = json.load(file)
    os.waitpid(pid, 0)
    return rows, pages


def _serve() -> None:
    memory = KernelMemory()
    source = new_file(DATA)
    with without_privileges():
        for line in sys.stdin:
            signal.alarm(_SECONDS)
            name, args = json.loads(line)
            answer: Any = 0
            if name == "fork":
                print(json.dumps(_in_child(memory)), flush=True)
                continue
            if name == "begin":
                memory.munlockall()
                memory.close_window()
                os.ftruncate(memory.file, 0)
                os.pwrite(memory.file, FILE, 0)
            elif name == "fill":
                answer = memory.read(source, [tuple(args)], 0)
            else:
                answer = getattr(memory, name)(*args)
            print(json.dumps([answer, flagged_rows(memory)]), flush=True)


if __name__ == "__main__":
    _serve()
