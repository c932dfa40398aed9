"""``usermem maps|read|string|argv PID|CORE ...``: look at the memory of a process or a core.

Exits with 0; with 1 if the memory cannot be read, and the reason on the standard error; with 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from usermem.errors import FaultError, NameTooLongError
from usermem.hexdump import hexdump
from usermem.iovec import copy_in_vector
from usermem.memories.arguments import program_arguments
from usermem.memories.core import CoreIO, open_core
from usermem.memories.process import ProcessIO
from usermem.render import render
from usermem.strings import copy_string_in

_PIECE: Final = 1 << 20
_MAX_STRING: Final = 32 * 4096  # of an argument, as execve(2) has it
_MAX_TOTAL: Final = 6 << 20

Memory = ProcessIO | CoreIO
Tool = Callable[[Memory, argparse.Namespace], None]


def _run(tool: Tool, args: argparse.Namespace) -> int:
    """Run one tool and return its exit status."""
    try:
        with open_memory(args.memory) as memory:
            tool(memory, args)
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as exc:
        sys.stdout.flush()
        print(f"usermem: {args.memory}: {exc}", file=sys.stderr)
        return 1
    return 0


def open_memory(name: str) -> Memory:
    """The process that has a number as its name, else the core at a path. Raises as ProcessIO and open_core."""
    return ProcessIO(int(name)) if name.isascii() and name.isdigit() else open_core(name)


def add_tools(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the tools to a parser's commands: ``run`` of what it parses takes that, and returns the exit status."""

    def add(name: str, tool: Tool, text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=text, description=text)
        parser.add_argument("memory", metavar="PID|CORE", help="a process, or the path of an ELF core, ./7 say")
        parser.set_defaults(run=partial(_run, tool))
        return parser

    add("maps", _maps, "Show the mappings, and the holes between them.")
    read = add("read", _read, "Show N bytes at ADDR, in hex and as text.")
    string = add("string", _string, "Write the string at ADDR, up to its NUL.")
    arguments = add("argv", _argv, "Write the strings of a program's arguments, a line for each.")
    for tool in (read, string):
        tool.add_argument("addr", metavar="ADDR", type=_number, help="decimal, or hex as 0x7f00")
    read.add_argument("n", metavar="N", type=_count, help="bytes")
    read.add_argument("--raw", action="store_true", help="write the bytes themselves, up to a fault")
    string.add_argument("--max", metavar="N", type=_count, default=4096, help="bytes, its NUL included (default 4096)")
    arguments.add_argument(
        "addr", metavar="ADDR", type=_number, nargs="?", help="of a table of pointers that ends with NULL, as envp"
    )


def _number(text: str) -> int:
    return int(text, 0)


def _count(text: str) -> int:
    n = int(text, 0)
    if n < 0:
        raise ValueError
    return n


def _maps(memory: Memory, args: argparse.Namespace) -> None:
    print(render(memory), end="")


def _read(memory: Memory, args: argparse.Namespace) -> None:
    left, addr = args.n, args.addr
    while left:
        n = min(left, _PIECE)
        if args.raw:
            _write_raw(memory, addr, n)
        else:
            print(hexdump(memory, addr, n), end="")
        left -= n
        addr += n


def _write_raw(memory: Memory, addr: int, n: int) -> None:
    try:
        sys.stdout.buffer.write(memory.read_bytes(addr, n))
    except FaultError as fault:
        sys.stdout.buffer.write(fault.partial)
        raise


def _string(memory: Memory, args: argparse.Namespace) -> None:
    try:
        _write_line(copy_string_in(memory, args.addr, args.max))
    except (FaultError, NameTooLongError) as exc:
        _write_line(exc.partial)
        raise


def _argv(memory: Memory, args: argparse.Namespace) -> None:
    if args.addr is not None:
        strings = copy_in_vector(memory, args.addr, _MAX_STRING, _MAX_TOTAL)
    elif isinstance(memory, CoreIO):
        strings = program_arguments(memory, memory.auxv)
    else:
        strings = program_arguments(memory, Path(f"/proc/{memory.pid}/auxv").read_bytes())
    for string in strings:
        _write_line(string)


def _write_line(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
