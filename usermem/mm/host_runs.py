"""Where a guest's memory is in this process: for emulators that alias it."""

from __future__ import annotations

from contextlib import suppress

from attrs import field, frozen

from safemem import HostFaultError, safecopy
from safemem.buffers import check_int
from usermem.mm.arena import Arena
from usermem.mm.host_run import HostRun
from usermem.mm.memory_map import MemoryMap
from usermem.mm.vma import VMA


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
    def end(self) -> int:
        """The first guest address past it."""
        return self.start + self.length


_copies = Arena()


def host_runs(mm: MemoryMap, start: int, end: int, copy_files: bool) -> list[GuestRun]:
    """See AddressSpace.host_runs."""
    mm.check_open()
    start, end = check_int(start, "start"), check_int(end, "end")
    found: list[GuestRun] = []
    tables = mm.tables
    for vma in tables.vmas.overlapping(start, end):
        limit = mm.accessible_end(vma)
        at, stop = max(vma.start, start), min(end, limit)
        while at < stop:
            pma = tables.pmas.find(at) or mm.fill(tables, vma, at, limit)
            last = min(pma.end, stop)
            run = pma.run.part(at - pma.start, last - pma.start)
            if run.may_fault and not copy_files:
                raise ValueError(
                    f"the memory at {at:#x}, {vma.label or 'of a file'}, must not be aliased: it may be truncated, "
                    "and touching it then kills the process. Ask for copies (copy_files=True)"
                )
            _append(found, _copied(vma, at, run) if run.may_fault else _run(vma, at, run))
            at, tables = last, mm.tables
    return found


def _run(vma: VMA, start: int, run: HostRun, is_copy: bool = False) -> GuestRun:
    return GuestRun(start, run.address, len(run), vma.prot, is_copy, (run,))


def _copied(vma: VMA, start: int, run: HostRun) -> GuestRun:
    """A copy of memory that may fault; zeros where it does."""
    copy = _copies.allocate(len(run))
    with suppress(HostFaultError):  # the file ends there: what was read is in its place, and the rest is zero
        safecopy.copy_in(copy.view(), run.address)
    return _run(vma, start, copy, is_copy=True)


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
