"""A process and its forked children, whose windows take calls: see :mod:`kernel_memory`.

Each has a pair of pipes. Run as a program it reads a call a line from the first pair, makes it, and answers with a
line; what it forks off does so with another pair. What a call writes into memory the process writes itself.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

from kernel_fork import Shown, flagged_rows
from kernel_memory import BASE, DATA, FILE, PAGE, KernelMemory, Memory, Result, new_file, without_privileges

MOST = 4
"""How many processes there may be at a time."""
_SECONDS = 60  # how long a process waits for the next call: it ends by itself

Looked = tuple[list[Shown], dict[int, str]]
"""The mappings, and for each page that is mapped, from BASE on, a digest of its bytes; "" if it cannot be had."""


def digests(memory: Memory, rows: list[Shown]) -> dict[int, str]:
    """The digests of all pages that are mapped."""
    found = {}
    for first, stop, *_ in rows:
        for page in range(first, stop):
            content = memory.content(BASE + page * PAGE, BASE + (page + 1) * PAGE)
            found[page] = content[:8].hex() + hashlib.blake2b(content, digest_size=8).hexdigest() if content else ""
    return found


class Family:
    """The program as a process, number 0, and its children."""

    def __init__(self) -> None:
        asked, answered = [os.pipe() for _ in range(MOST)], [os.pipe() for _ in range(MOST)]
        theirs = [(asked[i][0], answered[i][1]) for i in range(MOST)]
        ends = [end for both in theirs for end in both]
        self._asking = [os.fdopen(asked[i][1], "w") for i in range(MOST)]
        self._answers = [os.fdopen(answered[i][0]) for i in range(MOST)]
        self._process = subprocess.Popen([sys.executable, __file__, json.dumps(theirs)], pass_fds=ends)
        for end in ends:
            os.close(end)

    def call(self, who: int, name: str, *args: object) -> Any:
        """Have one of them make a call of KernelMemory's, or one of these.

        ``begin`` empties the window; its file is new. ``fill`` reads bytes into a range, ``poke`` writes bytes as a
        program does, ``pwrite`` into the file. ``fork`` makes the child of a number, and ``exit`` ends one. ``look``
        gives what there is.
        """
        self._asking[who].write(json.dumps([name, args]) + "\n")
        self._asking[who].flush()
        line = self._answers[who].readline()
        assert line, f"process {who} has died of {name} {args}"
        return json.loads(line)

    def look(self, who: int) -> Looked:
        """What one of them has."""
        rows, pages = self.call(who, "look")
        return [(row[0], row[1], row[2], row[3]) for row in rows], {int(page): digest for page, digest in pages}

    def close(self) -> None:
        """Let all end, and wait for the first."""
        for file in [*self._asking, *self._answers]:
            file.close()
        self._process.wait(60)


class _Member:
    """One of the processes, inside."""

    def __init__(self, ends: list[tuple[int, int]]) -> None:
        self.ends = ends
        self.number = 0
        self.memory = KernelMemory()
        self.source = new_file(DATA)

    def serve(self) -> None:
        """Make calls until nobody asks."""
        while line := self.line():
            signal.alarm(_SECONDS)
            name, args = json.loads(line)
            own = getattr(self, f"do_{name}", None)
            answer = own(*args) if own is not None else getattr(self.memory, name)(*args)
            os.write(self.ends[self.number][1], json.dumps(answer).encode() + b"\n")
            if name == "exit":
                os._exit(0)

    def line(self) -> bytes:
        """What is asked next, unbuffered: a child must not have it too."""
        line = b""
        while not line.endswith(b"\n") and (part := os.read(self.ends[self.number][0], 1 << 16)):
            line += part
        return line

    def do_begin(self) -> None:
        self.memory.munlockall()
        self.memory.close_window()
        os.ftruncate(self.memory.file, 0)
        os.pwrite(self.memory.file, FILE, 0)

    def do_fill(self, addr: int, length: int, offset: int) -> Result:
        return self.memory.read(self.source, [(addr, length)], offset)

    def do_poke(self, addr: int, text: str) -> None:
        ctypes.memmove(addr, bytes.fromhex(text), len(text) // 2)

    def do_pwrite(self, offset: int, text: str) -> None:
        os.pwrite(self.memory.file, bytes.fromhex(text), offset)

    def do_look(self) -> tuple[list[Shown], list[tuple[int, str]]]:
        rows = flagged_rows(self.memory)
        return rows, list(digests(self.memory, rows).items())

    def do_exit(self) -> None:
        """It ends when it has answered."""

    def do_fork(self, number: int) -> None:
        if not os.fork():
            self.number = number
            self.memory.reopen()
            self.serve()
            os._exit(0)


def _main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with without_privileges():
        _Member([(asked, answered) for asked, answered in json.loads(sys.argv[1])]).serve()


if __name__ == "__main__":
    _main()
