"""on_code_write hears of each write to executable memory, before a byte of it moves, whatever call it is made by."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import pytest

from edge_layouts import ANON, BASE, FIXED, PAGE, RW
from hostarch import READ_WRITE, WRITE, AddrRange, AddrRangeSeq, mman
from safemem import FromIOReader
from usermem import (
    AddressSpace,
    FaultError,
    IOSequence,
    copy_between,
    copy_out_vec,
    copy_string_out,
    copy_struct_out,
    read_fd,
    zero_out_vec,
)

RWX = RW | mman.PROT_EXEC
AT = BASE + 100
RANGES = AddrRangeSeq([AddrRange(AT, AT + 8), AddrRange(AT + 200, AT + 208)])
DATA = bytes(range(1, 17))


def _read_fd(space: AddressSpace) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, DATA)
        assert read_fd(space, reading, AT, 16) == 16
    finally:
        os.close(reading)
        os.close(writing)


WRITES: dict[str, Callable[[AddressSpace], object]] = {
    "copy_out": lambda space: space.copy_out(AT, DATA),
    "copy_out of a view": lambda space: space.copy_out(AT, memoryview(DATA)),
    "copy_out, rights ignored": lambda space: space.copy_out(AT, DATA, ignore_permissions=True),
    "zero_out": lambda space: space.zero_out(AT, 16),
    "copy_out_from": lambda space: space.copy_out_from(
        AddrRangeSeq([AddrRange(AT, AT + 16)]), FromIOReader(io.BytesIO(DATA))
    ),
    "copy_out_vec": lambda space: copy_out_vec(space, RANGES, DATA),
    "zero_out_vec": lambda space: zero_out_vec(space, RANGES, 16),
    "swap": lambda space: space.swap_uint32(AT, 5),
    "compare_and_swap": lambda space: space.compare_and_swap_uint64(AT + 4, 1, 2),
    "struct": lambda space: copy_struct_out(space, AT, "II", 1, 2),
    "string": lambda space: copy_string_out(space, AT, b"name"),
    "sequence": lambda space: IOSequence(space, RANGES).copy_out(DATA),
    "between": lambda space: copy_between(space, RANGES, space, AddrRangeSeq([AddrRange(BASE, BASE + 16)])),
    "read_fd": _read_fd,
    "blocks": lambda space: space.blocks(RANGES, WRITE),
    "resolve": lambda space: space.resolve(AT, 16, READ_WRITE),
}


@pytest.mark.parametrize("how", WRITES)
def test_each_way_of_writing(how: str) -> None:
    """Also when the pages were written before; only what is written, and the bytes are the old ones then."""
    with AddressSpace() as space:
        space.mmap(BASE, PAGE, RWX, FIXED)
        space.copy_out(BASE, b"\xee" * PAGE)
        for _ in range(2):
            WRITES[how](space)
        heard = []

        def listen(start: int, end: int) -> None:
            heard.append((start, end, space.read_bytes(BASE, PAGE)))

        space.on_code_write = listen
        assert space.on_code_write is listen
        for _ in range(3):
            heard.clear()
            space.zero_out(AT, 1)
            assert [each[:2] for each in heard] == [(AT, AT + 1)]
            heard.clear()
            before = space.read_bytes(BASE, PAGE)
            WRITES[how](space)
            assert heard[0][2] == before
            assert AT <= min(each[0] for each in heard) <= AT + 4
            assert AT + 4 <= max(each[1] for each in heard) <= AT + 208
            after = space.read_bytes(BASE, PAGE)
            changed = [BASE + i for i in range(PAGE) if before[i] != after[i]]
            assert all(any(start <= addr < end for start, end, _ in heard) for addr in changed)
        space.on_code_write = None
        heard.clear()
        WRITES[how](space)
        assert not heard


def test_what_it_does_not_hear_of() -> None:
    """Reads, memory that is not executable, and what cannot be written; rights that change count at once."""
    heard: list[tuple[int, int]] = []
    with AddressSpace() as space:
        space.mmap(BASE, 4 * PAGE, RW, FIXED)
        space.on_code_write = lambda start, end: heard.append((start, end))
        space.copy_out(BASE, DATA * 600)
        space.mprotect(BASE, PAGE, mman.PROT_READ | mman.PROT_EXEC)
        space.read_bytes(BASE, 16)
        with pytest.raises(FaultError):
            space.copy_out(BASE, DATA)
        assert not heard
        space.copy_out(BASE + PAGE - 8, DATA, ignore_permissions=True)
        assert heard == [(BASE + PAGE - 8, BASE + PAGE)]
        space.mprotect(BASE, 2 * PAGE, RWX)
        space.copy_out(BASE + 2 * PAGE - 8, DATA)
        assert heard[-1] == (BASE + 2 * PAGE - 8, BASE + 2 * PAGE)
        space.mprotect(BASE, 4 * PAGE, RW)
        heard.clear()
        space.copy_out(BASE, DATA * 600)
        assert space.fork().on_code_write is None
        assert not heard


def test_other_memory_is_as_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is not executable is looked up once, and one that is not written through it."""
    with AddressSpace() as space:
        space.mmap(BASE, PAGE, RW, FIXED)
        space.on_code_write = lambda start, end: None
        space.copy_out(BASE, DATA)
        space.read_bytes(BASE, 16)
        monkeypatch.setattr(space._map, "locate", None)
        space.copy_out(BASE + 8, DATA)
        assert space.read_bytes(BASE + 8, 16) == DATA


def test_what_it_raises_comes_out() -> None:
    """And nothing has been written."""

    def refuse(start: int, end: int) -> None:
        raise RuntimeError("no")

    with AddressSpace() as space:
        at = space.mmap(0, PAGE, RWX, ANON)
        space.on_code_write = refuse
        with pytest.raises(RuntimeError, match="no"):
            space.copy_out(at, DATA)
        with pytest.raises(RuntimeError, match="no"):
            space.zero_out(at, 5)
        with pytest.raises(RuntimeError, match="no"):
            space.swap_uint32(at, 1)
        assert space.read_bytes(at, 16) == bytes(16)
