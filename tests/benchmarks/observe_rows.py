"""The rows of ``observe``: how much longer AddressSpace.copy_in of 8 bytes takes through an observer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from attrs import frozen

from hostarch import AddrRange, AddrRangeSeq, mman
from timing import Run, best
from usermem import AddressSpace
from usermem.observe import (
    DoubleFetchDetector,
    Fault,
    FaultPlan,
    FaultyIO,
    Filter,
    ObservedIO,
    Race,
    RacingIO,
    TracingIO,
)

_ACCESSES = 64  # of one system call


@frozen
class Row:
    """``us``: how much longer one access takes, ``bar``: how much it may. ``ratio``: of the two times."""

    name: str
    us: float
    bar: float
    ratio: float

    @property
    def missed(self) -> bool:
        """Whether it takes longer than it may."""
        return self.us > self.bar


def rows(only: str) -> Iterator[Row]:
    """Tracing, what filters leave out, and detectors inside a system call that reads on and on."""
    space = AddressSpace()
    addr = space.mmap(0, 4096, mman.PROT_READ | mman.PROT_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    elsewhere = AddrRangeSeq([AddrRange(addr + 2048, addr + 2056)])
    stopped = TracingIO(space)
    stopped.stop()
    contenders: dict[str, tuple[ObservedIO, float]] = {
        "trace": (TracingIO(space, limit=1000), 2.0),
        "trace, filter by call": (TracingIO(space, only=Filter(calls={"copy_out"})), 0.3),
        "trace, filter by range": (TracingIO(space, only=Filter(ranges=elsewhere)), 0.3),
        "trace, filter by tag": (TracingIO(space, only=Filter(tags={"write"})), 0.3),
        "trace, stopped": (stopped, 0.05),
        "detector": (DoubleFetchDetector(space), 3.0),
        "racing": (RacingIO(space, [Race()]), 3.0),
        "faulty, another page": (FaultyIO(space, FaultPlan(faults=(Fault(addr=0, length=4096),))), 3.0),
    }
    for name, (io, bar) in contenders.items():
        if only in name:
            times = best({"ours": _reads(io, io, addr), "bare": _reads(space, io, addr)}, rounds=100)
            yield Row(name, (times["ours"] - times["bare"]) / 1000, bar, times["ours"] / times["bare"])


def _reads(io: Any, observer: ObservedIO, addr: int) -> Run:
    """n reads of 8 bytes each, one behind the other, of 64 in a system call."""
    call: Callable[..., Any] = observer.call

    def run(n: int) -> None:
        dst = bytearray(8)
        for start in range(0, n, _ACCESSES):
            with call("read"):
                for i in range(min(_ACCESSES, n - start)):
                    io.copy_in(addr + 8 * i, dst)

    return run
