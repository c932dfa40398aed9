"""The system calls, a function each. Importing this fills :data:`simulator.table.CALLS`."""

from simulator.calls import (
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
