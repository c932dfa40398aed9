"""Filter: which accesses a TracingIO records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from attrs import field, frozen
from attrs.converters import optional

from hostarch import READ, READ_WRITE, WRITE, AccessType, AddrRangeSeq, Arch
from safemem.buffers import check_int
from usermem.observe.observed import size_of
from usermem.observe.system_call import checked_ranges, current

_ACCESS: Final = {
    "copy_out": WRITE,
    "copy_in": READ,
    "zero_out": WRITE,
    "copy_out_from": WRITE,
    "copy_in_to": READ,
    "swap_uint32": READ_WRITE,
    "compare_and_swap_uint32": READ_WRITE,
    "load_uint32": READ,
}
CALLS: Final = tuple(_ACCESS)
"""The methods of the contract."""


def _names(names: Iterable[str]) -> frozenset[str]:
    return frozenset((names,) if isinstance(names, str) else names)


def _checked_calls(calls: Iterable[str]) -> frozenset[str]:
    found = _names(calls)
    if not found <= _ACCESS.keys():
        raise ValueError(f"calls: {sorted(found - _ACCESS.keys())} are no methods of IO")
    return found


def _checked_ranges(ranges: AddrRangeSeq | None) -> AddrRangeSeq | None:
    return checked_ranges(ranges, "ranges")


@frozen(kw_only=True)
class Filter:
    """Conditions on an access, all of which must hold.

    Raises ValueError for a call that IO does not have; TypeError for ranges that are no AddrRangeSeq.
    """

    calls: frozenset[str] = field(default=frozenset(CALLS), converter=_checked_calls)
    """Methods of the contract, or one of them."""
    access: AccessType = READ_WRITE
    """Accesses that do one of these: with WRITE all but copy_in, copy_in_to and load_uint32."""
    ranges: AddrRangeSeq | None = field(default=None, converter=_checked_ranges)
    """Accesses that touch one of these bytes, whatever the pointer tags."""
    tags: frozenset[str] | None = field(default=None, converter=optional(_names))
    """Accesses in system calls of these names, or of one."""

    def excludes(self, arch: Arch) -> Callable[[str, int, object], bool]:
        """A function that tells, of a call, its address and its buffer, length or ranges, whether it is left out.

        It is made once, because it runs for each access: a set and a context variable take 0.1 us.
        """
        calls = frozenset(call for call in self.calls if _ACCESS[call] & self.access)
        some = len(calls) < len(CALLS)
        tags = self.tags
        quick = not arch.ignores_top_byte
        spans = None
        if self.ranges is not None:
            spans = [(at := arch.untagged(addr), at + n) for addr, n in self.ranges.pairs() if n > 0]
        low = min((start for start, _ in spans or ()), default=0)
        high = max((end for _, end in spans or ()), default=0)

        def excluded(call: str, addr: int, what: object) -> bool:
            if some and call not in calls:
                return True
            if tags is not None:
                running = current()
                if running is None or running.name not in tags:
                    return True
            if spans is None:
                return False
            if quick and type(addr) is int and (addr >= high or (type(what) is bytearray and addr + len(what) <= low)):
                return True  # as for most accesses; in a third of the time
            return not any(
                start < end and at < stop for at, end in _touched(call, arch, addr, what) for start, stop in spans
            )

        return excluded


def _touched(call: str, arch: Arch, addr: int, what: Any) -> list[tuple[int, int]]:
    """The [start, end) of an access. Arguments of wrong types touch nothing; the memory refuses them."""
    try:
        if call in ("copy_out_from", "copy_in_to"):
            return [(at := arch.untagged(start), at + length) for start, length in what.pairs()]
        size = size_of(what, "buffer") if call in ("copy_out", "copy_in") else check_int(what, "n")
        return [(at := arch.untagged(addr), at + size)]
    except (AttributeError, TypeError):
        return []
