"""``python tests/interop/supervisor [POLICY...] PROGRAM ARGS...``: run a program under a policy, log its calls."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where the package is

from supervisor import Handler, Supervisor  # noqa: E402
from supervisor.policies import Files, Network, host_named, random_from  # noqa: E402


def handlers(args: argparse.Namespace) -> dict[str, Handler | None]:
    """What answers which calls; the rest of those that are logged goes to the kernel."""
    found: dict[str, Handler | None] = dict.fromkeys(("execve", "execveat", "uname", "connect"))
    found |= Files(args.deny, dict(pair.split("=", 1) for pair in args.replace)).handlers()
    if args.deny_address:
        found |= Network(args.deny_address).handlers()
    if args.hostname:
        found["uname"] = host_named(args.hostname)
    if args.random is not None:
        found["getrandom"] = random_from(args.random)
    return found


def main() -> int:
    """Run the program and return its status, as a shell has it."""
    parser = argparse.ArgumentParser(
        prog="supervisor", description="Run a program and answer some of its system calls."
    )
    parser.add_argument("--deny", metavar="PATTERN", action="append", default=[], help="refuse to open these paths")
    parser.add_argument("--replace", metavar="PATH=FILE", action="append", default=[], help="open another file")
    parser.add_argument("--deny-address", metavar="PATTERN", action="append", help="such as '*:443' or 'unix:*'")
    parser.add_argument("--hostname", metavar="NAME", help="what uname says")
    parser.add_argument("--random", metavar="SEED", type=int, help="the same random numbers each time")
    parser.add_argument("--log", metavar="FILE", type=argparse.FileType("w"), default=sys.stderr)
    parser.add_argument("program", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if not args.program:
        parser.error("no program")
    try:
        supervisor = Supervisor(args.program, handlers(args), log=lambda line: print(line, file=args.log, flush=True))
    except OSError as error:
        parser.exit(125, f"supervisor: {error.strerror}\n")
    with supervisor:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is the program's
        status = supervisor.run()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
