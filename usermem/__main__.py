"""The command ``usermem``, also ``python -m usermem``: the tour, what this host offers, and looks at other memory."""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import usermem
from usermem.memories.tools import add_tools
from usermem.terminal import BOLD, RED, has_colour, paint

_EXAMPLES = """\
examples:
  usermem                         the tour, with a Python source file
  usermem FILE                    the tour: short for usermem tour FILE
  usermem doctor                  which ways this host offers, and which are used
  usermem maps $$                 the mappings of the shell
  usermem read PID 0x7ffd0000 64  64 bytes of a process
  usermem argv ./core             what the program that left a core was started with
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status. Without a command, take the tour, of a file if one is named."""
    argv = sys.argv[1:] if argv is None else argv
    parser, names = _parser()
    if not argv or argv[0] == "--" or (argv[0] not in names and not argv[0].startswith("-")):
        argv = ["tour", *argv]
    args = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        status = run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 1
    return status


def _parser() -> tuple[argparse.ArgumentParser, set[str]]:
    """The parser, and the names of the commands."""
    parser = argparse.ArgumentParser(
        prog="usermem",
        description="User memory for syscall simulators: see it at work, or look at the memory of a process or core.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"usermem {usermem.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    text = "Take a file through a guest's memory the way a syscall simulator does, and show each step."
    tour = commands.add_parser("tour", help=text, description=text, epilog="Exits with 1 if a byte is not the same.")
    tour.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=_regular_file,
        default=Path(argparse.__file__),
        help="default: a Python source file",
    )
    tour.set_defaults(run=_tour)
    text = "Say which ways this host offers, which of them are used, and why."
    commands.add_parser("doctor", help=text, description=text).set_defaults(run=_doctor)
    add_tools(commands)
    return parser, set(commands.choices)


def _regular_file(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{name} is not a regular file; usermem --help shows the commands")
    return path


def _tour(args: argparse.Namespace) -> int:
    from usermem.tour import tour

    return tour(args.file, _say_in_colour if has_colour() else print)


def _say_in_colour(text: str) -> None:
    """Print what the tour says: headings bold, failures red."""
    for pattern, code in ((r"\A\n?\d+\. .*", BOLD), (r"\A(   the|\nAfter) .*\b(NOT|WRONG)\b.*", RED)):
        text = re.sub(pattern, paint(r"\g<0>", code), text)
    print(text)


def _doctor(args: argparse.Namespace) -> int:
    from usermem.doctor import doctor

    print(doctor(width=shutil.get_terminal_size().columns, colour=has_colour()), end="")
    return 0


def _reader_is_gone() -> bool:
    """Whether nobody reads the standard output any more, so that a broken pipe is its own and not a command's."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


if __name__ == "__main__":
    sys.exit(main())
