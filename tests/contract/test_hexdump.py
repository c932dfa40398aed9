"""hexdump shows every byte that was asked for, in its place, and none that was not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_layouts import BASE, FIXED, PAGE, RW, pattern
from hostarch import AMD64, I386, AccessType, mman
from safemem import Block
from usermem import AddressSpace, BytesIO, FaultError, FaultReason, hexdump
from usermem.observe import FaultPlan, FaultyIO
from watched_io import WatchedIO

LINE = re.compile(r"([0-9a-f]{8,16})  (.{23})  (.{23})  \|(.{16})\|\n")


def parse(text: str) -> dict[int, str]:
    """The cells of a dump by address: two digits, or "--"."""
    cells: dict[int, str] = {}
    for line in text.splitlines(keepends=True):
        match = LINE.fullmatch(line)
        assert match is not None, line
        row = int(match[1], 16)
        assert row % 16 == 0
        for i in range(16):
            cell = match[2 + i // 8][i % 8 * 3 : i % 8 * 3 + 2]
            shown = match[4][i]
            if cell.strip("- "):
                byte = int(cell, 16)
                assert shown == (chr(byte) if 0x20 <= byte <= 0x7E else ".")
            else:
                assert shown in ". "
            if cell != "  ":
                cells[row + i] = cell
    return cells


@given(st.binary(max_size=80), st.integers(0, 90), st.integers(0, 90))
def test_every_byte_in_its_place(data: bytes, addr: int, n: int) -> None:
    """Read back, the dump has the bytes that were asked for, ``--`` where there are none, and nothing else."""
    expected = {at: f"{data[at]:02x}" if at < len(data) else "--" for at in range(addr, addr + n)}
    assert parse(hexdump(BytesIO(data), addr, n)) == expected


def test_how_it_looks() -> None:
    """Sixteen bytes a line in two groups, the address as wide as the machine's, dots for what is no ASCII."""
    first, second = hexdump(BytesIO(b"\x00\x01 ABC~\x7f\xff0123456789", I386), 0, 19).splitlines()
    assert first == "00000000  00 01 20 41 42 43 7e 7f  ff 30 31 32 33 34 35 36  |.. ABC~..0123456|"
    assert second.startswith("00000010  37 38 39                                          |789")
    assert hexdump(BytesIO(b"A"), 0, 1).startswith("0000000000000000  41 ")


@pytest.mark.parametrize("addr", [0, 5, 16, BASE])
def test_no_bytes_no_lines(addr: int) -> None:
    """Nothing asked for, nothing shown, wherever it is."""
    assert hexdump(BytesIO(b"sixteen bytes..."), addr, 0) == ""


def test_a_fault_is_shown() -> None:
    """A hole and a page that may not be read show as ``--``, and end where they end."""
    space = AddressSpace()
    space.mmap(BASE, 3 * PAGE, RW, FIXED)
    space.copy_out(BASE, pattern(3 * PAGE))
    space.munmap(BASE + PAGE, PAGE)
    cells = parse(hexdump(space, BASE + PAGE - 5, PAGE + 10))
    assert [cells[BASE + PAGE - 5 + i] for i in range(PAGE + 10)] == [
        *(f"{byte:02x}" for byte in pattern(PAGE)[-5:]),
        *["--"] * PAGE,
        *(f"{byte:02x}" for byte in pattern(3 * PAGE)[2 * PAGE : 2 * PAGE + 5]),
    ]
    space.mprotect(BASE, PAGE, mman.PROT_NONE)
    assert set(parse(hexdump(space, BASE, 20)).values()) == {"--"}
    assert "--" not in parse(hexdump(space, BASE, 20, ignore_permissions=True)).values()


def test_the_edges_of_addresses() -> None:
    """Any address can be dumped: what lies outside user space cannot be read."""
    space = AddressSpace()
    space.mmap(AMD64.max_addr - PAGE, PAGE, RW, FIXED)
    cells = parse(hexdump(space, AMD64.max_addr - 3, 6))
    assert list(cells.values()) == ["00", "00", "00", "--", "--", "--"]
    for addr in ((1 << 64) - 3, 1 << 64, 1 << 200, -5):
        assert hexdump(space, addr, 6).count("--") == 6


def test_only_what_was_asked_for_is_read() -> None:
    """No byte outside the range is touched, and none twice."""
    io = WatchedIO(BytesIO(pattern(100)))
    hexdump(io, 10, 50)
    touched = [at for method, addr, n in io.accesses for at in range(addr, addr + n) if method == "copy_in"]
    assert sorted(touched) == list(range(10, 60))


class HolesIO(BytesIO):
    """A BytesIO of which some bytes cannot be read, each for itself, by an injected fault."""

    def __init__(self, size: int, holes: set[int]) -> None:
        super().__init__(pattern(size))
        self.holes = holes

    def resolve(
        self, addr: int, length: int, access: AccessType, *, ignore_permissions: bool = False
    ) -> tuple[list[Block], FaultError | None]:
        """See ResolvedIO."""
        hole = min((at for at in self.holes if addr <= at < addr + length), default=None)
        if hole is None:
            return super().resolve(addr, length, access)
        blocks, fault = super().resolve(addr, hole - addr, access)
        return blocks, fault or FaultError(hole, access, FaultReason.INJECTED)


@given(st.sets(st.integers(0, 60)), st.integers(0, 40), st.integers(0, 40))
def test_holes_of_single_bytes(holes: set[int], addr: int, n: int) -> None:
    """Wherever a row has its holes, each is shown, and nothing else."""
    data = pattern(50)
    expected = {at: "--" if at in holes or at >= 50 else f"{data[at]:02x}" for at in range(addr, addr + n)}
    assert parse(hexdump(HolesIO(50, holes), addr, n)) == expected


@pytest.mark.parametrize("hit", [0, 3, 15])
def test_a_planned_fault_is_one_byte(hit: int) -> None:
    """It hits one byte of the second row; the access to the bytes behind it passes."""
    io = FaultyIO(BytesIO(pattern(64)), FaultPlan([None, hit]))
    assert [at for at, cell in parse(hexdump(io, 0, 64)).items() if cell == "--"] == [16 + hit]


def test_one_access_a_row(tmp_path: Path) -> None:
    """Where all of a row can be read, and where none can, for whatever reason; only where a buffer ends, a few."""
    space = AddressSpace()
    space.mmap(BASE, 3 * PAGE, RW, FIXED)
    space.mprotect(BASE + PAGE, PAGE, mman.PROT_NONE)
    space.munmap(BASE + 2 * PAGE, PAGE)
    with (tmp_path / "file").open("wb+", buffering=0) as file:
        file.write(b"x")
        flags = mman.MAP_PRIVATE | mman.MAP_FIXED
        space.mmap(BASE + 3 * PAGE, 2 * PAGE, mman.PROT_READ, flags, file.fileno(), 0)
    for page, missing in enumerate((False, True, True, False, True)):
        for start, n, rows in ((0, PAGE, PAGE // 16), (7, 30, 3), (PAGE - 40, 40, 3)):
            io = WatchedIO(space)
            assert hexdump(io, BASE + page * PAGE + start, n).count("--") == n * missing
            assert len(io.accesses) == rows, page
    io = WatchedIO(BytesIO(pattern(100)))
    hexdump(io, 0, 1000)
    assert len(io.accesses) <= 63 + 16


def test_a_negative_count() -> None:
    """Is the caller's mistake."""
    with pytest.raises(ValueError, match=r"\bn\b"):
        hexdump(BytesIO(b""), 0, -1)
