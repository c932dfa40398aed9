"""Where a guest's memory is in this process: for emulators that alias it."""

from __future__ import annotations

from mmap import PAGESIZE
from typing import Final

from attrs import field, frozen

from safemem import HostFaultError, safecopy
from safemem.buffers import check_int
from usermem.mm.arena import Arena
from usermem.mm.change import Change
from usermem.mm.host_run import HostRun
from usermem.mm.maps import printable
from usermem.mm.memory_map import MemoryMap
from usermem.mm.pma import PMA
from usermem.mm.vma import VMA

# How often it begins anew where others map meanwhile.
_ATTEMPTS: Final = 8

# How much untouched memory gets host address space in one call, in bytes: a guest may map half of the host's.
_MOST_PLACED: Final = 1 << 40


@frozen
class GuestRun:
    """Guest addresses [start, start + length) are ``length`` bytes at host address ``address``, with rights ``prot``.

    The memory stays alive as long as this object does.
    """

    start: int
    address: int
    length: int
    prot: int
    is_copy: bool = False
    """Whether the bytes are a copy: writes do not reach the guest, and changes do not show."""
    _runs: tuple[HostRun, ...] = field(default=(), repr=False, eq=False)

    @property
    def keepers(self) -> frozenset[object]:
        """What keeps the memory alive: equal ones keep the same, so that who keeps many runs can keep few of these."""
        return frozenset([run.keeper for run in self._runs])

    @property
    def end(self) -> int:
        """The first guest address past it."""
        return self.start + self.length


_copies = Arena()


def host_runs(mm: MemoryMap, start: int, end: int, copy_files: bool) -> list[GuestRun]:
    """See AddressSpace.host_runs."""
    start, end = check_int(start, "start"), check_int(end, "end")
    for _ in range(_ATTEMPTS):
        tables = mm.tables
        vmas, guards = tables.vmas, tables.guards
        found = _runs(mm, vmas.overlapping(start, end), (start, end), copy_files)
        tables = mm.tables
        if tables.vmas is vmas and tables.guards is guards:  # else a listener may have been told of what was found
            break
    return found


def _runs(mm: MemoryMap, vmas: list[VMA], part: tuple[int, int], copy_files: bool) -> list[GuestRun]:
    """The runs of some mappings in [start, end)."""
    found: list[GuestRun] = []
    placed = 0
    for vma in vmas:
        limit = mm.accessible_end(vma)
        at, stop = max(vma.start, part[0]), min(part[1], limit)
        while at < stop:
            tables = mm.tables
            if (guard := tables.guards.find(at)) is not None:
                at = guard.end
                continue
            pma = tables.pmas.find(at)
            if pma is None:
                pma = mm.fill(tables, vma, at, limit)
                placed += pma.end - pma.start
                if placed > _MOST_PLACED:
                    raise MemoryError(f"host_runs would place more than {_MOST_PLACED:#x} bytes: ask for fewer")
            last = min(pma.end, stop)
            run = pma.run.part(at - pma.start, last - pma.start)
            if run.may_fault and not copy_files:
                raise ValueError(
                    f"the memory at {at:#x}, {printable(vma.label) or 'of a file'}, must not be aliased: it may be "
                    "truncated, and touching it then kills the process. Ask for copies (copy_files=True)"
                )
            is_copy = run.may_fault and vma.shared
            if run.may_fault:
                run, wanted = _copied(run), len(run)
                stop = stop if len(run) == wanted else last  # the file ends there
                if len(run) and not is_copy:
                    _own(mm, vma, pma, PMA(at, run))
            if len(run):
                _append(found, GuestRun(at, run.address, len(run), vma.prot, is_copy, (run,)))
            at = last
    return found


def _own(mm: MemoryMap, vma: VMA, shown: PMA, copy: PMA) -> None:
    """Let a private mapping have a copy of the file's pages that ``shown`` shows, as if it had written all of them."""

    def build(change: Change) -> None:
        if change.vmas.find(copy.start) is vma and change.pmas.find(copy.start) is shown:  # else it was overtaken
            change.replace(copy)

    mm.change(build)


def _copied(run: HostRun) -> HostRun:
    """A copy of memory that may fault, in whole pages, as far as it does not."""
    copy = _copies.allocate(-(-len(run) // PAGESIZE) * PAGESIZE)
    try:
        done = safecopy.copy_in(copy.view()[: len(run)], run.address)
    except HostFaultError as exc:
        done = exc.transferred
    return copy.part(0, -(-done // PAGESIZE) * PAGESIZE)


def _append(found: list[GuestRun], run: GuestRun) -> None:
    """Add a run; to the last one, if it goes on where that ends, here and in the guest, with the same rights."""
    last = found[-1] if found else None
    if (
        last is not None
        and last.end == run.start
        and last.address + last.length == run.address
        and (last.prot, last.is_copy) == (run.prot, run.is_copy)
    ):
        length = last.length + run.length
        found[-1] = GuestRun(last.start, last.address, length, run.prot, run.is_copy, last._runs + run._runs)
    else:
        found.append(run)
