"""RecordBoundaries: what is unfinished at every moment, and how little is looked at to know it."""

from __future__ import annotations

from typing import SupportsIndex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safemem.tls.record import HEADER
from safemem.tls.record_boundaries import RecordBoundaries
from tls_wire import cut


def record(size: int) -> bytes:
    """A record of so many bytes, none of whose body looks like a header."""
    return b"\x17\x03\x03" + (size - HEADER).to_bytes(2, "big") + b"\xff" * (size - HEADER)


runs = st.lists(st.tuples(st.sampled_from([5, 6, 22, 23, 260, 261, 517, 5 + 0x1717]), st.integers(1, 150)), max_size=6)


@given(runs, st.lists(st.integers(0, 1 << 13), max_size=12), st.booleans())
@example([(22, 2), (23, 1), (22, 3)], [65, 66, 67, 68, 69, 70, 71], False)
@example([(6, 200)], [1, 5, 6, 11, 12, 640, 1100], True)
@example([(261, 3), (5, 4), (517, 2)], [260, 261, 265, 266, 267], True)
def test_any_runs_and_chunking(runs: list[tuple[int, int]], places: list[int], stale: bool) -> None:
    """Records of one size in a row and of others, cut anywhere: how much has come of the one that has not ended."""
    sizes = [size for size, count in runs for _ in range(count)]
    edges = [0]
    for size in sizes:
        edges.append(edges[-1] + size)
    boundaries = RecordBoundaries()
    came = 0
    for part in cut(b"".join(map(record, sizes)), places):
        # What lies behind n in the buffer was received earlier, and is no part of this.
        boundaries.follow(bytearray(part + record(sizes[0]) * 3 * stale), len(part))
        came += len(part)
        expected = came - max(edge for edge in edges if edge <= came)
        assert (boundaries.unfinished, boundaries.inside) == (expected, expected > 0)


class Watched(bytes):
    """Bytes that count how many of them were looked at."""

    looked = 0

    def __getitem__(self, at: SupportsIndex | slice) -> bytes:  # type: ignore[override]
        found = super().__getitem__(at)
        self.looked += len(found) if isinstance(found, bytes) else 1
        return found  # type: ignore[return-value]


@pytest.mark.parametrize("sizes", [(5,), (5, 5, 6), (5, 6), (23, 23, 24), (30, 30, 30, 31)], ids=str)
def test_a_peer_cannot_make_it_slow(sizes: tuple[int, ...]) -> None:
    """Whatever sizes follow each other, each record costs a few looks, and not one at all that come."""
    stream = Watched(b"".join(map(record, sizes)) * 2000)
    boundaries = RecordBoundaries()
    boundaries.follow(stream, len(stream))
    assert not boundaries.inside
    assert stream.looked < 150 * 2000 * len(sizes)
