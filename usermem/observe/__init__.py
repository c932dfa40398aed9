"""Observers: IOs over an IO, for tests of a simulator. They see, change or fail what its handlers do to user memory.

- :class:`TracingIO`: each access as a value, with filters, as JSON lines, as a table, as lines like strace(1)'s.
- :class:`DoubleFetchDetector`: bytes fetched twice or too late, stray writes, uninitialised bytes that leak.
- :class:`RacingIO`: changes a byte between two fetches of it.
- :class:`FaultyIO`: faults where a :class:`FaultPlan` says.

They wrap any IO, and each other in any order. ``with io.call("readv", fd, iov, n):`` bounds a system call for all.
"""

from usermem.observe.access import Access
from usermem.observe.double_fetch import DoubleFetchDetector, Finding, FindingKind
from usermem.observe.fault_plan import Fault, FaultPlan
from usermem.observe.faulty import FaultyIO
from usermem.observe.filter import Filter
from usermem.observe.observed import ObservedIO
from usermem.observe.place import Place
from usermem.observe.racing import Race, RacingIO
from usermem.observe.system_call import SystemCall
from usermem.observe.tracing import TracingIO, json_lines, render

__all__ = [
    "Access",
    "DoubleFetchDetector",
    "Fault",
    "FaultPlan",
    "FaultyIO",
    "Filter",
    "Finding",
    "FindingKind",
    "ObservedIO",
    "Place",
    "Race",
    "RacingIO",
    "SystemCall",
    "TracingIO",
    "json_lines",
    "render",
]
