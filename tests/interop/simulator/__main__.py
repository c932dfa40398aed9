"""Run a program in the simulator: ``python tests/interop/simulator [--trace] [--limit SECONDS] PROGRAM ARGS...``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __package__ == "":
    sys.path.remove(str(Path(__file__).resolve().parent))

from simulator.kernel import Kernel
from simulator.trace import print_call


def main() -> int:
    """Exit as the program does: 128 and the signal if one has ended it."""
    parser = argparse.ArgumentParser(prog="simulator", description="Run an x86-64 Linux program in the simulator.")
    parser.add_argument("--trace", action="store_true", help="print system calls to standard error")
    parser.add_argument("--limit", type=float, help="kill all processes after so many seconds")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    path = shutil.which(options.program) or options.program
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's would wait for the engine
    kernel = Kernel(trace=print_call if options.trace else None, limit=options.limit)
    try:
        process = kernel.start(path, [options.program, *options.arguments], os.environ)
    except (OSError, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        print(f"simulator: {options.program}: {why}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    kernel.run()
    return process.exit_code


if __name__ == "__main__":
    sys.exit(main())
