"""hexdump: user memory for people to read, holes and all."""

from __future__ import annotations

from safemem.buffers import check_count, check_int
from usermem.errors import FaultError
from usermem.memory_io import DEFAULT_OPTS, IO, IOOpts, arch_of

_ROW = 16


def hexdump(io: IO, addr: int, n: int, opts: IOOpts = DEFAULT_OPTS) -> str:
    """n bytes from addr as lines of 16, in hex and as ASCII; ``--`` where nothing can be read.

    Raises ValueError if n < 0; a fault is shown, not raised.
    """
    addr = check_int(addr, "addr")
    check_count(n, "n")
    lines = []
    for row in range(addr - addr % _ROW, addr + n, _ROW) if n else ():
        cells = [_cell(io, at, opts) if addr <= at < addr + n else None for at in range(row, row + _ROW)]
        shown = ["  " if cell is None else cell or "--" for cell in cells]
        text = "".join(chr(int(cell, 16)) if cell and " " <= chr(int(cell, 16)) <= "~" else "." for cell in cells)
        left = f"{row:0{2 * arch_of(io).pointer_size}x}"
        lines.append(f"{left}  {' '.join(shown[:8])}  {' '.join(shown[8:])}  |{text}|\n")
    return "".join(lines)


def _cell(io: IO, addr: int, opts: IOOpts) -> str:
    """One byte in hex, empty if it cannot be read."""
    byte = bytearray(1)
    try:
        io.copy_in(addr, byte, opts)
    except FaultError:
        return ""
    return byte.hex()
