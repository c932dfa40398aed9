"""The page range that a call is about, with Linux's checks."""

from __future__ import annotations

import errno

from hostarch import Arch
from safemem.buffers import check_int
from safemem.errors import error


def page_range(arch: Arch, addr: int, length: int, name: str, overflow: int) -> tuple[int, int]:
    """[addr, end) in whole pages. Raises OSError: EINVAL if addr is not page-aligned, ``overflow`` for too much."""
    addr = arch.untagged(check_int(addr, "addr"))
    length = check_int(length, "length")
    if not arch.is_page_aligned(addr):
        raise error(errno.EINVAL, f"{name} at {addr:#x}")
    end = arch.checked_page_round_up(addr + length)
    if addr < 0 or length < 0 or end is None:
        raise error(overflow, f"{name} of {length:#x} bytes at {addr:#x}")
    return addr, end
