"""Reach: which bytes of a recorded request's memory can be accessed. A model by pages, for the rules alone."""

from __future__ import annotations

from typing import Any

_PAGE = 4096
_TOP = 0x7FFFFFFFF000


class Reach:
    """What is mapped at one moment of a ``bytesio`` or ``mm`` request; ``apply`` goes on to the next."""

    def __init__(self, req: dict[str, Any]) -> None:
        self.max_addr = req.get("max", _TOP)
        self._size = len(req.get("mem") or "") // 2 if req["op"] == "bytesio" else None
        self._pages: dict[int, tuple[str, str, bool]] = {}  # rights, most rights, lies in its file
        for m in req.get("maps") or ():
            for offset in range(0, m["len"], _PAGE):
                inside = "file_size" not in m or offset < m["file_size"]
                self._pages[m["addr"] + offset] = (m.get("perms", ""), m.get("max", "rwx"), inside)

    @property
    def of_bytes(self) -> bool:
        """Whether the memory is a ``bytesio`` request's."""
        return self._size is not None

    def apply(self, op: dict[str, Any], recorded: Any) -> None:
        """Follow an operation that changes the mappings."""
        if op["fn"] not in ("MProtect", "MUnmap") or recorded["err"] == "EINVAL":
            return
        start = op.get("addr", 0)
        end = min(start + op.get("len", 0), 1 << 64)
        if op["fn"] == "MUnmap":
            self._pages = {a: p for a, p in self._pages.items() if not start <= a < end}
            return
        for addr in range(start, end, _PAGE):
            if addr not in self._pages or not set(op.get("perms", "")) <= set(self._pages[addr][1]):
                break
            _, most, inside = self._pages[addr]
            self._pages[addr] = (op.get("perms", ""), most, inside)

    def accessible(self, addr: int, access: str, ignore: bool) -> bool:
        """Whether one byte can be read or written."""
        if self._size is not None:
            return addr < self._size
        rights, most, inside = self._pages.get(addr - addr % _PAGE, ("", "", False))
        granted = most if ignore else rights
        if granted.strip("r"):
            granted += "r"
        return inside and access in granted


def accessible_prefix(reach: Reach, op: dict[str, Any], access: str) -> int:
    """How many bytes of ``ranges`` can be accessed before the first that cannot."""
    ranges = op.get("ranges") or ()
    if any((end - start) % (1 << 64) >> 63 for start, end in ranges):
        return 0
    if not reach.of_bytes and any(end > reach.max_addr or end < start for start, end in ranges):
        return 0
    done = 0
    for start, end in ranges:
        for addr in range(start, end):
            if not reach.accessible(addr, access, bool(op.get("ignore"))):
                return done
            done += 1
    return done


def past_user_space(op: dict[str, Any], max_addr: int) -> bool:
    """Whether a MUnmap is well-formed but for reaching past the end of user space."""
    addr, length = op.get("addr", 0), op.get("len", 0)
    end = -(-(addr + length) // 4096) * 4096
    return bool(length > 0 and addr % 4096 == 0 and max_addr < end < 1 << 64)
