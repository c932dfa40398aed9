"""Filter: which accesses a TracingIO records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from attrs import field, frozen

from hostarch import READ, READ_WRITE, WRITE, AccessType, AddrRangeSeq
from usermem.observe.system_call import current

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


def _checked_calls(calls: Iterable[str]) -> frozenset[str]:
    found = frozenset(calls)
    if not found <= _ACCESS.keys():
        raise ValueError(f"calls: {sorted(found - _ACCESS.keys())} are no methods of IO")
    return found


def _checked_tags(tags: Iterable[str] | None) -> frozenset[str] | None:
    if isinstance(tags, str):
        raise TypeError(f"tags must be names of system calls, as in {{{tags!r}}}, not a str")
    return None if tags is None else frozenset(tags)


@frozen(kw_only=True)
class Filter:
    """Conditions on an access, all of which must hold.

    Raises ValueError for a call that IO does not have; TypeError for tags that are one string.
    """

    calls: frozenset[str] = field(default=frozenset(CALLS), converter=_checked_calls)
    """Methods of the contract."""
    access: AccessType = READ_WRITE
    """Accesses that do one of these: with WRITE all but copy_in, copy_in_to and load_uint32."""
    ranges: AddrRangeSeq | None = None
    """Accesses that touch one of these bytes. Pointer tags are part of an address here."""
    tags: frozenset[str] | None = field(default=None, converter=_checked_tags)
    """Accesses in system calls of these names."""

    def excludes(self) -> Callable[[str, int, object], bool]:
        """A function that tells, of a call, its address and its buffer, length or ranges, whether it is left out.

        It is made once, because it runs for each access: a set and a context variable take 0.1 us.
        """
        calls = frozenset(call for call in self.calls if _ACCESS[call] & self.access)
        some = len(calls) < len(CALLS)
        tags = self.tags
        spans = None if self.ranges is None else [(addr, addr + n) for addr, n in self.ranges.pairs() if n > 0]
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
            if type(addr) is int and (addr >= high or (type(what) is bytearray and addr + len(what) <= low)):
                return True  # as for most accesses; in a third of the time
            return not _touches(spans, addr, what)

        return excluded


def _touches(spans: list[tuple[int, int]], addr: int, what: object) -> bool:
    """Whether an access touches one of the spans. Arguments of wrong types touch none; the memory refuses them."""
    kind = type(what)
    if kind is AddrRangeSeq:
        return any(_touches(spans, start, length) for start, length in what.pairs())  # type: ignore[attr-defined]
    try:
        end = addr + (what if kind is int else len(what) if kind is bytearray else memoryview(what).nbytes)  # type: ignore
    except TypeError:
        return False
    return any(addr < stop and start < end for start, stop in spans)
