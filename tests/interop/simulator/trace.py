"""A line for each system call, as strace prints them."""

from __future__ import annotations

import errno
import sys

from simulator.process import Task
from simulator.table import CALLS


def print_call(task: Task, result: int | None) -> None:
    """Print one to standard error."""
    call = CALLS.get(task.number)
    name = call.name if call is not None else f"syscall_{task.number}"
    count = len(call.conversions) if call is not None else 6
    arguments = ", ".join(f"{each:#x}" for each in task.registers[:count])
    print(f"[{task.tid}] {name}({arguments}) = {_shown(result)}", file=sys.stderr, flush=True)


def _shown(result: int | None) -> str:
    if result is None:
        return "?"
    if -4096 < result < 0:
        return f"-1 {errno.errorcode.get(-result, -result)}"
    return f"{result:#x}" if result > 9 else str(result)
