"""check_memory: does a memory hold what the model holds, with the same rights, and nothing where that has nothing?"""

from __future__ import annotations

from hostarch import READ
from usermem.memory_io import IO
from usermem.testing.model import ModelMemory
from usermem.testing.operations import CopyIn, CopyOut, Operation, outcome

_PAGES_OF_A_HOLE = 8


def check_memory(io: IO, model: ModelMemory) -> None:
    """Compare all bytes that the model has mapped, the rights of each page, and the first pages of each hole.

    Bytes are compared whatever the guest forbade. Rights are tried, by reading a byte and writing it back: a memory
    that counts or refuses accesses sees them. Raises AssertionError at the first difference.
    """
    spans = model.spans()
    for start, length in spans:
        if model.reason(start, READ, ignore_permissions=True) is None:
            _check_content(io, model, start, length)
    for start, length in spans:
        for addr in (start, start + length - 1):
            _check_rights(io, model, addr)
    ends = [0, *(start + length for start, length in spans)]
    starts = [*(start for start, _ in spans), model.arch.max_addr]
    for begin, end in zip(ends, starts, strict=True):
        hole = range(begin, end, model.arch.page_size)
        for addr in [*hole[:_PAGES_OF_A_HOLE], *range(end)[-1:]]:
            _check_rights(io, model, addr)


def _check_content(io: IO, model: ModelMemory, start: int, length: int) -> None:
    """The bytes of a span, in one copy."""
    found = bytearray(length)
    _check_same(CopyIn(start, 1, ignore_permissions=True), io, model)
    n = io.copy_in(start, found, ignore_permissions=True)
    known = model.content(start, length)
    if found != known or n != length:
        at = next((i for i in range(length) if found[i] != known[i]), n)
        raise AssertionError(
            f"memory holds what was written to it\n  from      {start + at:#x} on\n"
            f"  it holds  {found[at : at + 16].hex()}\n  must hold {known[at : at + 16].hex()}"
        )


def _check_rights(io: IO, model: ModelMemory, addr: int) -> None:
    _check_same(CopyIn(addr, 1), io, model)
    _check_same(CopyOut(addr, model.content(addr, 1)), io, model)
    _check_same(CopyIn(addr, 1, ignore_permissions=True), io, model)


def _check_same(call: Operation, io: IO, model: ModelMemory) -> None:
    theirs, expected = outcome(call, io), outcome(call, model)
    if theirs != expected:
        raise AssertionError(
            f"pages have the rights they were given\n  call      {call}\n  the IO    {theirs}\n  must give {expected}"
        )
