"""TracingIO: each access to user memory as a value, kept in a ring or given to a callback; and traces for people."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import IO as TextFile
from typing import Final

from safemem.buffers import check_positive
from usermem.memory_io import IO
from usermem.observe.access import Access
from usermem.observe.filter import CALLS, Filter
from usermem.observe.observed import ObservedIO, unseen
from usermem.observe.system_call import SystemCall, current

_FASTER: Final = (
    "read_bytes",
    "write_bytes",
    "copy_string_in",
    "copy_uint32_in",
    "copy_in_vec",
    "cached_view",
    "cached_views",
)


class TracingIO(ObservedIO):
    """An IO over another one that records each access.

    The last ``limit`` accesses are kept, of all and of each system call. ``on_access`` gets each; :func:`json_lines`
    makes such a callback. ``on_call`` gets each SystemCall that has ended, of which :meth:`line` makes a line. What a
    callback raises comes out of the access or the ``with``.

    A trace that is off costs nothing: :meth:`stop` puts the methods of the memory beneath, the faster ones too, in the
    place of this object's own, so that no call passes through it; :meth:`start` takes them away again.
    """

    def __init__(
        self,
        io: IO,
        *,
        only: Filter | None = None,
        limit: int = 1 << 16,
        on_access: Callable[[Access], object] | None = None,
        on_call: Callable[[SystemCall], object] | None = None,
    ) -> None:
        """Raises ValueError if limit < 1; TypeError if ``only`` is no Filter."""
        super().__init__(io)
        self._limit = check_positive(limit, "limit")
        self._ring: deque[Access] = deque(maxlen=self._limit)
        self._on_access = on_access
        self._on_call = on_call
        if only is not None:
            if not isinstance(only, Filter):
                raise TypeError(f"only must be a Filter, not {type(only).__name__}")
            self._excludes = only.excludes(self.arch)

    @property
    def accesses(self) -> list[Access]:
        """The accesses that are kept, in the order in which they ended."""
        return list(self._ring)

    def accesses_of(self, call: SystemCall) -> list[Access]:
        """The accesses of one system call that are kept."""
        return list(self._state(call))

    def clear(self) -> None:
        """Forget all accesses but those of system calls."""
        self._ring.clear()

    def stop(self) -> None:
        """Let all accesses go to the memory beneath, at its own speed. An access under way is still recorded."""
        for name in (*CALLS, *_FASTER):
            if hasattr(self.io, name):
                self.__dict__[name] = getattr(self.io, name)

    def start(self) -> None:
        """Record accesses again."""
        for name in (*CALLS, *_FASTER):
            self.__dict__.pop(name, None)

    def line(self, call: SystemCall) -> str:
        """A system call as strace(1) shows it, with the bytes it fetched and stored and the faults that it met.

        ``readv(3, 0x10000, 1) = 48  in 0x10000+16  out 0x11fd0+48  fault 0x12000 unmapped``
        """
        accesses = self.accesses_of(call)
        parts = [str(call)]
        for word, mask in ("in", 1), ("out", 2):
            spans = [span for each in accesses if each.access & mask for span in each.spans(self.arch, each.moved)]
            parts += [f"{word} " + " ".join(f"{a:#x}+{b - a}" for a, b in joined(spans))] if spans else []
        parts += [f"fault {each.fault.address:#x} {each.fault.reason.value}" for each in accesses if each.fault]
        return "  ".join(parts)

    def _after(self, access: Access) -> None:
        call = current()
        if call is not None:
            access.tag = call.name
            self._state(call).append(access)
        self._ring.append(access)
        if self._on_access is not None:
            unseen(self._on_access, access)

    def _new_state(self) -> deque[Access]:
        return deque(maxlen=self._limit)

    def call_ended(self, call: SystemCall) -> None:
        if self._on_call is not None:
            unseen(self._on_call, call)


def joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in their order, those that follow the one before at once joined to it."""
    found: list[tuple[int, int]] = []
    for start, end in spans:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def json_lines(file: TextFile[str]) -> Callable[[Access], None]:
    """A callback for ``on_access`` that writes each access as a line of JSON (:meth:`Access.as_dict`)."""
    import json

    def write(access: Access) -> None:
        file.write(json.dumps(access.as_dict()) + "\n")

    return write


def render(accesses: Iterable[Access]) -> str:
    """A table for people: for each system call and method how many accesses, bytes and faults, and where.

    Accesses outside of any system call have ``-`` for its name.
    """
    rows: dict[tuple[str, str], list[Access]] = {}
    for access in accesses:
        rows.setdefault((access.tag or "-", access.call), []).append(access)
    lines = [f"{'system call':16}{'access':24}{'count':>8}{'bytes':>12}{'faults':>8}  from        to\n"]
    for (tag, call), each in sorted(rows.items()):
        spans = [(addr, addr + n) for access in each for addr, n in access.ranges]
        low, high = min((s for s, _ in spans), default=0), max((e for _, e in spans), default=0)
        faults = sum(access.fault is not None for access in each)
        moved = sum(access.moved for access in each)
        lines.append(f"{tag:16}{call:24}{len(each):8}{moved:12}{faults:8}  {low:#x}-{high:#x}\n")
    return "".join(lines)
