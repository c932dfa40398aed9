"""The system calls, a function each. Importing this fills :data:`simulator.table.CALLS`.

What each does, section 2 of the manual says; docstrings here are about what is the simulator's own.
"""

from simulator.calls import (
    children,
    clocks,
    descriptors,
    futexes,
    identity,
    mappings,
    paths,
    polls,
    processes,
    signal_calls,
    stats,
    transfers,
)

__all__ = [
    "children",
    "clocks",
    "descriptors",
    "futexes",
    "identity",
    "mappings",
    "paths",
    "polls",
    "processes",
    "signal_calls",
    "stats",
    "transfers",
]
