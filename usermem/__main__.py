"""``python -m usermem [FILE]``: the tour. ``python -m usermem doctor``: what this host offers.

``python -m usermem maps|read|string|argv PID|CORE ...``: the memory of a process or a core."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the tour and return its exit status: 0 if every byte came out as it went in. Or run what is asked for."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("maps", "read", "string", "argv"):
        from usermem.memories import tools

        return tools.main(argv)
    parser = argparse.ArgumentParser(
        prog="usermem",
        description="Take a file through a guest's memory the way a syscall simulator does, and show each step.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=Path,
        default=Path(argparse.__file__),
        help="default: a Python source file; the word doctor tells instead what this host offers, and what is used;"
        " maps, read, string and argv look at the memory of a process or a core: see usermem maps --help",
    )
    args = parser.parse_args(argv)
    if args.file == Path("doctor"):
        from usermem.doctor import doctor

        print(doctor(), end="")
        return 0
    if not args.file.is_file():
        parser.error(f"{args.file} is not a regular file")
    from usermem.tour import tour

    return tour(args.file)


if __name__ == "__main__":
    sys.exit(main())
