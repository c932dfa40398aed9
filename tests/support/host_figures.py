"""What this process costs the host, by /proc/self."""

from __future__ import annotations

import gc
from pathlib import Path

_PAGE = 4096


def resident() -> int:
    """How much memory this process has in RAM, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def peak() -> int:
    """The most memory that this process ever had in RAM, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def host_mappings() -> int:
    """How many mappings this process has; the host allows some 65,000."""
    return Path("/proc/self/maps").read_text().count("\n")
