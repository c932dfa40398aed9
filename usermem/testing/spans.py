"""Spans: the bytes of a memory that check_io fills and looks at."""

from __future__ import annotations

from attrs import evolve, frozen

from hostarch import READ, WRITE
from usermem.testing.model import ModelMemory
from usermem.testing.operations import CopyOut

NEAR = 24
"""How many bytes before and behind an edge are looked at."""


@frozen
class Span:
    """Bytes of which all can be read or none, and written or not, whatever the guest forbade."""

    addr: int
    length: int
    readable: bool
    writable: bool


def all_spans(model: ModelMemory) -> list[Span]:
    """All bytes that can be read, whatever the guest forbade."""
    spans = (Span(start, length, *_rights(model, start)) for start, length in model.spans())
    return [span for span in spans if span.readable]


def _rights(model: ModelMemory, addr: int) -> tuple[bool, bool]:
    """Whether a byte can be read, and written, whatever the guest forbade."""
    return (
        model.reason(addr, READ, ignore_permissions=True) is None,
        model.reason(addr, WRITE, ignore_permissions=True) is None,
    )


def spans_around(model: ModelMemory, edge: int) -> list[Span]:
    """The bytes shortly before and behind an edge."""
    spans: list[Span] = []
    for addr in range(max(edge - NEAR, 0), edge + NEAR):
        readable, writable = _rights(model, addr)
        if spans and (spans[-1].readable, spans[-1].writable) == (readable, writable):
            spans[-1] = evolve(spans[-1], length=spans[-1].length + 1)
        else:
            spans.append(Span(addr, 1, readable, writable))
    return spans


def fills(spans: list[Span]) -> list[CopyOut]:
    """Calls that put a pattern without a 0 into all that can be written."""
    return [
        CopyOut(
            span.addr,
            bytes(addr * 7 % 251 + 1 for addr in range(span.addr, span.addr + span.length)),
            ignore_permissions=True,
        )
        for span in spans
        if span.writable
    ]
