"""Access: one call of the IO contract as a value."""

from __future__ import annotations

from typing import Any, Final

from attrs import define, field

from hostarch import AccessType, AddrRangeSeq, Arch
from usermem.errors import FaultError

FETCHES: Final = frozenset(("copy_in", "copy_in_to"))
"""The calls that copy bytes out of user memory. Atomics are none: see DoubleFetchDetector."""
ATOMICS: Final = frozenset(("swap_uint32", "compare_and_swap_uint32", "load_uint32"))
"""The calls on words."""


@define(unsafe_hash=True)  # not frozen: making one takes 0.18 us; frozen takes 0.65, a NamedTuple 0.26
class Access:
    """One access to user memory. A value, not to be changed: an ObservedIO completes it before it hands it out."""

    call: str
    """The method of the contract: ``"copy_in"``, ``"swap_uint32"``, …"""
    access: AccessType
    """READ, WRITE, or READ_WRITE for the atomics that store."""
    addr: int
    """The first address; 0 if there are no ranges."""
    length: int
    """How many bytes were asked for."""
    ars: AddrRangeSeq | None = None
    """The ranges of copy_out_from and copy_in_to; None for the other calls."""
    ignore_permissions: bool = field(default=False, kw_only=True)
    moved: int = 0
    """How many bytes were moved; for an atomic 4 or 0."""
    fault: FaultError | None = None
    """A copy, without traceback, of the FaultError that ended the access."""
    error: str | None = None
    """The type of any other exception that ended it: a Reader's or Writer's own, OSError for a refused atomic."""
    tag: str | None = None
    """The name of the system call that made the access (:class:`SystemCall`)."""

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The (address, length) of each range, as asked for."""
        return ((self.addr, self.length),) if self.ars is None else tuple(self.ars.pairs())

    def spans(self, arch: Arch, first: int | None = None) -> list[tuple[int, int]]:
        """The [start, end) of the ``first`` bytes (None: of all asked for), without pointer tags, none empty."""
        left = self.length if first is None else first
        if self.ars is None and not arch.ignores_top_byte:
            return [(self.addr, self.addr + left)] if left > 0 else []
        found = []
        for addr, length in self.ranges:
            n = min(length, left)
            if n > 0:
                start = arch.untagged(addr) if arch.ignores_top_byte else addr
                found.append((start, start + n))
                left -= n
        return found

    def as_dict(self) -> dict[str, Any]:
        """The access in JSON's types: what was asked, what moved, and fault, error and tag if they are set."""
        found: dict[str, Any] = {
            "call": self.call,
            "access": str(self.access),
            "ranges": [list(pair) for pair in self.ranges],
            "moved": self.moved,
        }
        if self.fault is not None:
            found["fault"] = {"address": self.fault.address, "reason": self.fault.reason.value}
        return found | {name: value for name in ("error", "tag") if (value := getattr(self, name)) is not None}

    def __str__(self) -> str:
        """The access for people: ``copy_in 0x1000+8``, with what moved if it is less, and why."""
        where = ", ".join(f"{addr:#x}+{length}" for addr, length in self.ranges)
        moved = "" if self.moved == self.length else f" moved {self.moved}"
        why = f" fault {self.fault.address:#x} {self.fault.reason.value}" if self.fault else f" {self.error or ''}"
        return f"{self.call} {where}{moved}{why}".rstrip()
