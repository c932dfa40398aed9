"""The rows of ``walk``: dropping a range from a long sequence costs no more than from a short one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import frozen

from hostarch import AddrRangeSeq
from safemem import Block, BlockSeq
from timing import Run, best

_SIZES = (1_000, 10_000, 100_000)


@frozen
class WalkRow:
    """The time of one step at ``size`` ranges, in ns, and its ratio to the time at the smallest size."""

    name: str
    size: int
    ns: float
    ratio: float
    bar: float = 1.5


def rows() -> Iterator[WalkRow]:
    """Both kinds of sequence, walked whole by drop_first."""
    data = memoryview(bytearray(8))
    kinds: dict[str, Callable[[int], AddrRangeSeq | BlockSeq]] = {
        "AddrRangeSeq": lambda n: AddrRangeSeq.from_pairs([x for i in range(n) for x in (i * 4096, 8)]),
        "BlockSeq": lambda n: BlockSeq([Block(data) for _ in range(n)]),
    }
    for name, make in kinds.items():
        first = 0.0
        for size in _SIZES:
            ns = best({"walk": _walk(make(size))}, rounds=5)["walk"] / size
            first = first or ns
            yield WalkRow(name, size, ns, ns / first)


def _walk(seq: AddrRangeSeq | BlockSeq) -> Run:
    def run(n: int) -> None:
        for _ in range(n):
            rest = seq
            while not rest.is_empty():
                rest = rest.drop_first(8)

    return run
