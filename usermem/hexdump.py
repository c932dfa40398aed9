"""hexdump: user memory for people to read, holes and all."""

from __future__ import annotations

from safemem.buffers import check_count, check_int
from usermem.errors import FaultError, FaultReason
from usermem.memory_io import IO, arch_of

_ROW = 16
# A fault for one of these reasons holds for the rest of the page, and a row lies in one page.
_OF_A_PAGE = (FaultReason.UNMAPPED, FaultReason.PERMISSION, FaultReason.BEYOND_FILE, FaultReason.NO_MEMORY)


def hexdump(io: IO, addr: int, n: int, *, ignore_permissions: bool = False) -> str:
    """n bytes from addr as lines of 16, in hex and as ASCII; ``--`` where nothing can be read.

    Memory has pages: a row whose first byte cannot be read is shown as missing, without an access to its other bytes.

    Raises ValueError if n < 0; a fault is shown, not raised.
    """
    addr = check_int(addr, "addr")
    n = check_count(n, "n")
    width = 2 * arch_of(io).pointer_size
    lines = []
    for row in range(addr - addr % _ROW, addr + n, _ROW) if n else ():
        start, stop = max(row, addr), min(row + _ROW, addr + n)
        known = _read(io, start, stop - start, ignore_permissions)
        cells = ["  "] * (start - row) + ["--" if byte is None else f"{byte:02x}" for byte in known]
        cells += ["  "] * (_ROW - len(cells))
        text = "".join(chr(byte) if byte is not None and 0x20 <= byte <= 0x7E else "." for byte in known)
        text = text.rjust(stop - row, ".").ljust(_ROW, ".")
        lines.append(f"{row:0{width}x}  {' '.join(cells[:8])}  {' '.join(cells[8:])}  |{text}|\n")
    return "".join(lines)


def _read(io: IO, addr: int, n: int, ignore_permissions: bool) -> list[int | None]:
    """The n bytes at addr, which lie in one row; None for each that cannot be read."""
    found: list[int | None] = []
    while len(found) < n:
        rest = bytearray(n - len(found))
        try:
            io.copy_in(addr + len(found), rest, ignore_permissions=ignore_permissions)
            found += rest
        except FaultError as fault:
            found += rest[: fault.transferred]
            whole = not found and fault.reason in _OF_A_PAGE
            found += [None] * (n if whole else 1)
    return found
